//! The time a handle puts into its frames: nanoseconds since the handle was made (wire spec 3.3).
//!
//! Reads no clock itself. Values never decrease, whatever the clock does. Those of terminal frames
//! strictly increase.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The timestamps of one handle.
#[derive(Debug)]
pub(crate) struct Timeline {
    origin: Instant,
    last_ns: u64,
    regressions: u64,
}

impl Timeline {
    pub(crate) fn starting_at(origin: Instant) -> Self {
        #[cfg(all(unix, feature = "panic-handler"))]
        crate::panic::follow_timeline(origin);
        Self {
            origin,
            last_ns: 0,
            regressions: 0,
        }
    }

    /// Begins again at 0, for a process that was just forked. Regressions are kept: they tell about
    /// the clock, not about the process.
    pub(crate) fn restart_at(&mut self, origin: Instant) {
        *self = Self {
            regressions: self.regressions,
            ..Self::starting_at(origin)
        };
    }

    /// The timestamp for `now`: the previous one again if the clock has stepped back.
    pub(crate) fn timestamp_ns(&mut self, now: Instant) -> u64 {
        let elapsed_ns = elapsed_ns(self.origin, now);
        if elapsed_ns < self.last_ns {
            self.regressions = self.regressions.saturating_add(1);
        } else {
            self.last_ns = elapsed_ns;
        }
        self.last_ns
    }

    pub(crate) fn regressions(&self) -> u64 {
        self.regressions
    }
}

/// The timestamps of all terminal frames of this process.
pub(crate) static TERMINAL: Increasing = Increasing::new();

/// Timestamps that start at 1 or more and strictly increase, whoever asks (wire spec 3.3).
pub(crate) struct Increasing {
    last_ns: AtomicU64,
}

impl Increasing {
    pub(crate) const fn new() -> Self {
        Self {
            last_ns: AtomicU64::new(0),
        }
    }

    /// `own_ns`, or the least that is later than all given out before.
    pub(crate) fn at_least(&self, own_ns: u64) -> u64 {
        let after = |last_ns: u64| own_ns.max(last_ns.saturating_add(1));
        let update = self
            .last_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last_ns| {
                Some(after(last_ns))
            });
        let (Ok(last_ns) | Err(last_ns)) = update;
        after(last_ns)
    }
}

/// Nanoseconds from `origin` to `now`: 0 if `now` is earlier, all ones after 584 years.
pub(crate) fn elapsed_ns(origin: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_steps_back_repeats_the_last_timestamp_and_is_counted() {
        let origin = Instant::now();
        let at = |ns| origin + Duration::from_nanos(ns);
        let mut timeline = Timeline::starting_at(origin);

        let stamps = [10, 30, 20, 30, 31].map(|ns| timeline.timestamp_ns(at(ns)));

        assert_eq!(stamps, [10, 30, 30, 30, 31]);
        assert_eq!(timeline.regressions(), 1);
    }

    #[test]
    fn terminal_timestamps_start_at_one_and_always_increase() {
        let stamps = Increasing::new();
        let given = [0, 0, 5, 5, 3].map(|own_ns| stamps.at_least(own_ns));
        assert_eq!(given, [1, 2, 5, 6, 7]);
    }

    #[test]
    fn a_restart_begins_near_zero_and_keeps_the_count_of_regressions() {
        let origin = Instant::now();
        let later = origin + Duration::from_secs(5);
        let mut timeline = Timeline::starting_at(origin);
        timeline.timestamp_ns(later);
        timeline.timestamp_ns(origin);

        timeline.restart_at(later);

        assert_eq!(timeline.timestamp_ns(later + Duration::from_nanos(3)), 3);
        assert_eq!(timeline.regressions(), 1);
    }
}
