//! The timestamps of a handle's frames: nanoseconds since the handle was made (wire spec 3.3).
//!
//! Reads no clock itself. Values never decrease, even if the clock does. `terminal` makes those of terminal
//! frames.

use std::time::Instant;

use crate::terminal::elapsed_ns;

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
        crate::terminal_clock::CLOCK.follow(origin);
        Self {
            origin,
            last_ns: 0,
            regressions: 0,
        }
    }

    /// Restarts at 0, for a process that was just forked. Regressions are kept: they concern the clock, not
    /// the process.
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
