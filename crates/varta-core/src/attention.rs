//! The attention clock: time during which the observer was watching.
//!
//! Before it sleeps, the observer sets the latest time of its wake-up. Beats sent meanwhile wait in a queue that
//! is read before any agent is judged, so the queue proves silence up to that time. Time after it is lateness:
//! the observer was stopped, starved or suspended, and its agents may have been, too (law 2).
//!
//! Lateness is tolerated up to an eighth of a threshold, 1 to 100 ms ([`tolerance_ns`]), and each agent is judged by
//! its own threshold. Lateness that no agent tolerates is taken off the clock by this module. Lateness that only
//! some agents tolerate stays on the clock, and [`crate::Tracker::excuse`] takes it off the silence of the rest.
//! Either way a gap shortens a silence by its own length only: the silence before it and after it counts.
//!
//! A pause that starts within a sleep and ends before the set wake-up is not noticed. It cannot cost an agent
//! more than [`longest_sleep_ns`], an eighth of its threshold. For beats that a full queue refused see
//! [`crate::overflow`].
//!
//! Readings that go backwards are treated as no time passed, and counted.

/// Lateness that is also counted as a clock jump, as the 0.2.0 generation counted them: 5 s.
const JUMP_NS: u64 = 5_000_000_000;

/// Lateness that every agent tolerates: 1 ms, the usual oversleep of a busy machine.
const TOLERANCE_MIN_NS: u64 = 1_000_000;

/// Lateness that no agent tolerates: more than 100 ms, far beyond scheduling noise.
const TOLERANCE_MAX_NS: u64 = 100_000_000;

/// Lateness of the observer, nanoseconds, that counts as silence of an agent with this threshold.
pub fn tolerance_ns(threshold_ns: u64) -> u64 {
    (threshold_ns / 8).clamp(TOLERANCE_MIN_NS, TOLERANCE_MAX_NS)
}

/// How long the observer may sleep while this is the shortest threshold of an agent: an eighth of it, at
/// least 1 ms.
pub fn longest_sleep_ns(shortest_threshold_ns: u64) -> u64 {
    (shortest_threshold_ns / 8).max(TOLERANCE_MIN_NS)
}

/// Measures attention from raw monotonic readings. All times are nanoseconds.
#[derive(Clone, Debug)]
pub struct AttentionClock {
    last_raw_ns: u64,
    promised_raw_ns: u64,
    attention_ns: u64,
    regressions: u64,
    jumps: u64,
}

/// The observer woke up later than the set time, and not all agents tolerate that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Lateness, nanoseconds: more than 1 ms.
    pub gap_ns: u64,
    /// Whether no agent tolerates it, so that the clock stood still meanwhile. Otherwise it counts, except
    /// for the agents that the tracker excuses.
    pub is_off_the_clock: bool,
}

impl AttentionClock {
    /// Starts at attention time 0.
    pub fn new(raw_ns: u64) -> Self {
        Self {
            last_raw_ns: raw_ns,
            promised_raw_ns: raw_ns,
            attention_ns: 0,
            regressions: 0,
            jumps: 0,
        }
    }

    /// Takes a raw reading. Returns the gap if it is more than 1 ms later than the set wake-up; the set time is
    /// used up either way.
    pub fn advance_to(&mut self, raw_ns: u64) -> Option<Gap> {
        if raw_ns < self.last_raw_ns {
            self.regressions = self.regressions.saturating_add(1);
            return None;
        }
        let elapsed_ns = raw_ns - self.last_raw_ns;
        let late_ns = raw_ns.saturating_sub(self.promised_raw_ns);
        self.last_raw_ns = raw_ns;
        self.promised_raw_ns = raw_ns;
        let is_off_the_clock = late_ns > TOLERANCE_MAX_NS;
        let counted_ns = match is_off_the_clock {
            true => elapsed_ns - late_ns,
            false => elapsed_ns,
        };
        self.attention_ns = self.attention_ns.saturating_add(counted_ns);
        if late_ns > JUMP_NS {
            self.jumps = self.jumps.saturating_add(1);
        }
        (late_ns > TOLERANCE_MIN_NS).then_some(Gap {
            gap_ns: late_ns,
            is_off_the_clock,
        })
    }

    /// Sets the latest time of the next reading. Without it the observer is at work, and all time until the
    /// next reading is lateness.
    pub fn promise(&mut self, raw_ns: u64) {
        self.promised_raw_ns = raw_ns.max(self.last_raw_ns);
    }

    /// Attention time of the last reading: the receive time of beats, and the time by which silence is
    /// judged.
    pub fn now_ns(&self) -> u64 {
        self.attention_ns
    }

    /// Raw time of the last reading.
    pub fn raw_now_ns(&self) -> u64 {
        self.last_raw_ns
    }

    /// The raw time at which it will be `attention_ns` if no gap intervenes.
    pub fn raw_at(&self, attention_ns: u64) -> u64 {
        let ahead_ns = attention_ns.saturating_sub(self.attention_ns);
        self.last_raw_ns.saturating_add(ahead_ns)
    }

    /// Readings that went backwards since the last call.
    pub fn take_regressions(&mut self) -> u64 {
        std::mem::take(&mut self.regressions)
    }

    /// Gaps of more than 5 s since the last call.
    pub fn take_jumps(&mut self) -> u64 {
        std::mem::take(&mut self.jumps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn gap(gap_ns: u64) -> Option<Gap> {
        Some(Gap {
            gap_ns,
            is_off_the_clock: gap_ns > 100 * MS,
        })
    }

    #[test]
    fn a_kept_promise_counts_the_whole_sleep() {
        let mut clock = AttentionClock::new(0);
        clock.promise(500 * MS);
        assert_eq!(clock.advance_to(501 * MS), None);
        assert_eq!(clock.now_ns(), 501 * MS);
    }

    #[test]
    fn waking_before_the_promise_counts_too() {
        let mut clock = AttentionClock::new(0);
        clock.promise(500 * MS);
        assert_eq!(clock.advance_to(10 * MS), None);
        assert_eq!(clock.now_ns(), 10 * MS);
    }

    #[test]
    fn a_gap_takes_its_own_length_off_and_no_more() {
        let mut clock = AttentionClock::new(0);
        clock.promise(500 * MS);
        assert_eq!(clock.advance_to(3_000 * MS), gap(2_500 * MS));
        assert_eq!(clock.now_ns(), 500 * MS, "what was slept before counts");
        clock.promise(3_400 * MS);
        assert_eq!(clock.advance_to(3_400 * MS), None);
        assert_eq!(clock.now_ns(), 900 * MS);
    }

    #[test]
    fn lateness_that_some_agents_tolerate_is_reported_and_stays_on_the_clock() {
        let mut clock = AttentionClock::new(0);
        clock.promise(10 * MS);
        assert_eq!(clock.advance_to(110 * MS), gap(100 * MS));
        assert_eq!(clock.now_ns(), 110 * MS);
        clock.promise(120 * MS);
        assert_eq!(clock.advance_to(220 * MS + 1), gap(100 * MS + 1));
        assert_eq!(clock.now_ns(), 120 * MS);
    }

    #[test]
    fn without_a_promise_everything_until_the_next_look_is_lateness() {
        let mut clock = AttentionClock::new(0);
        assert_eq!(clock.advance_to(MS), None);
        assert_eq!(clock.advance_to(51 * MS), gap(50 * MS));
        assert_eq!(clock.advance_to(251 * MS), gap(200 * MS));
        assert_eq!(clock.now_ns(), 51 * MS);
    }

    #[test]
    fn a_reading_that_goes_back_is_absorbed_and_counted_once() {
        let mut clock = AttentionClock::new(0);
        clock.advance_to(MS);
        assert_eq!(clock.advance_to(0), None);
        assert_eq!(clock.now_ns(), MS);
        assert_eq!((clock.take_regressions(), clock.take_regressions()), (1, 0));
    }

    #[test]
    fn only_gaps_above_five_seconds_are_jumps() {
        let mut clock = AttentionClock::new(0);
        clock.advance_to(5_000 * MS);
        assert_eq!(clock.take_jumps(), 0);
        clock.advance_to(12_000 * MS);
        assert_eq!((clock.take_jumps(), clock.take_jumps()), (1, 0));
    }

    #[test]
    fn raw_at_turns_a_deadline_into_a_wake_up_time_across_gaps() {
        let mut clock = AttentionClock::new(0);
        clock.advance_to(10_000 * MS);
        assert_eq!(clock.now_ns(), 0);
        assert_eq!(clock.raw_at(2_000 * MS), 12_000 * MS);
        assert_eq!(clock.raw_at(0), 10_000 * MS);
    }

    #[test]
    fn tolerance_is_an_eighth_of_a_threshold_within_bounds() {
        assert_eq!(tolerance_ns(0), MS);
        assert_eq!(tolerance_ns(80 * MS), 10 * MS);
        assert_eq!(tolerance_ns(u64::MAX), 100 * MS);
        assert_eq!(longest_sleep_ns(10 * MS), 1_250_000);
        assert_eq!(longest_sleep_ns(0), MS);
    }
}
