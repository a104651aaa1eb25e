//! The observer's raw clock: nanoseconds of `CLOCK_MONOTONIC` since the observer started.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// A copyable clock; all copies count from the same origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawClock {
    origin_ns: u64,
}

impl RawClock {
    pub(crate) fn start() -> Self {
        Self {
            origin_ns: monotonic_ns(),
        }
    }

    /// A clock that was started this many nanoseconds ago, even before the machine was.
    #[cfg(test)]
    pub(crate) fn started_before(ns: u64) -> Self {
        Self {
            origin_ns: monotonic_ns().wrapping_sub(ns),
        }
    }

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(self) -> u64 {
        monotonic_ns().wrapping_sub(self.origin_ns)
    }

    /// A time of this clock as time since boot, which also counts while the machine sleeps.
    pub(crate) fn boottime_ns_at(self, ns: u64) -> u64 {
        let asleep_ns = now_ns(ClockId::Boottime).saturating_sub(monotonic_ns());
        ns.saturating_add(self.origin_ns).saturating_add(asleep_ns)
    }

    /// The kernel's own time for a time of this clock, for absolute timers.
    pub(crate) fn timespec_at(self, ns: u64) -> Timespec {
        let ns = ns.saturating_add(self.origin_ns);
        Timespec {
            tv_sec: (ns / 1_000_000_000) as _,
            tv_nsec: (ns % 1_000_000_000) as _,
        }
    }
}

fn monotonic_ns() -> u64 {
    now_ns(ClockId::Monotonic)
}

fn now_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
