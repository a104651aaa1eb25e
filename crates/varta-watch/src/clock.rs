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

    /// Nanoseconds since the start.
    pub(crate) fn now_ns(self) -> u64 {
        monotonic_ns().saturating_sub(self.origin_ns)
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
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
