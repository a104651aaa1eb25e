//! The attention clock: time during which the observer was really watching.
//!
//! Silence may only be counted while somebody was listening (law 2). Before it sleeps, the observer
//! promises when it will look again at the latest. Waking within a tolerance of that promise proves
//! attention, and the whole interval counts. Waking later proves nothing about the interval since
//! the last look (the process may have been stopped, starved or suspended at any point of it), so
//! none of it counts: agents get it back as grace.
//!
//! A pause shorter than the interval between two looks can go unnoticed. The observer therefore
//! never promises to sleep longer than [`AttentionClock::longest_sleep_ns`]. Beats that the kernel
//! could not queue during a gap are lost; that is why the observer restarts everybody's silence after
//! one ([`crate::Tracker::restart_silence`]).
//!
//! Attention can also be in doubt: while the kernel's queue may have been full, beats may have been
//! refused that nobody heard of. A single overflow costs an agent a beat at most; but while one follows the
//! other, time counts a sixteenth. It is not a gap, since then a flood would switch the watch off; but an
//! agent must be silent for sixteen thresholds of flood to be called stalled.
//! What does not count is owed: the clock that silence is judged by stands still until it is paid.
//!
//! Readings that go backwards are treated as no time passed, and counted.

/// Gaps longer than this are also counted as clock jumps, as the 0.2.0 generation counted them.
const JUMP_NS: u64 = 5_000_000_000;

/// Lateness that is never called a gap: 1 ms, what a busy machine oversleeps as a matter of course.
const TOLERANCE_MIN_NS: u64 = 1_000_000;

/// Lateness that is always called a gap: 100 ms, far beyond scheduling noise.
const TOLERANCE_MAX_NS: u64 = 100_000_000;

/// Of doubtful time one part in this many counts.
const DOUBT_PARTS: u64 = 16;

/// Overflows that are further apart than this are single ones: 3 ms.
const OVERFLOW_PAUSE_NS: u64 = 3_000_000;

/// How far before a wake-up doubt reaches at most: 2 ms. A queue overflows within microseconds, but it
/// cannot be known when; who sleeps is woken by the first datagram, so only a busy machine needs longer.
const DOUBT_REACH_NS: u64 = 2_000_000;

/// Measures attention from raw monotonic readings. All times are nanoseconds.
#[derive(Clone, Debug)]
pub struct AttentionClock {
    last_raw_ns: u64,
    promised_raw_ns: u64,
    attention_ns: u64,
    /// Attention that was counted in doubt and does not count.
    owed_ns: u64,
    /// Everything before is settled.
    doubted_raw_ns: u64,
    /// The last overflow; 0 before the first.
    overflow_raw_ns: u64,
    tolerance_ns: u64,
    longest_sleep_ns: u64,
    regressions: u64,
    jumps: u64,
}

/// An interval that counts against nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its length, nanoseconds.
    pub gap_ns: u64,
}

impl AttentionClock {
    /// Starts at attention time 0. `shortest_threshold_ns` is the most impatient agent's threshold;
    /// lateness of an eighth of it (1 to 100 ms) is a gap.
    pub fn new(raw_ns: u64, shortest_threshold_ns: u64) -> Self {
        let mut clock = Self {
            last_raw_ns: raw_ns,
            promised_raw_ns: raw_ns,
            attention_ns: 0,
            owed_ns: 0,
            doubted_raw_ns: raw_ns,
            overflow_raw_ns: 0,
            tolerance_ns: u64::MAX,
            longest_sleep_ns: u64::MAX,
            regressions: 0,
            jumps: 0,
        };
        clock.heed(shortest_threshold_ns);
        clock
    }

    /// There is an agent with this threshold by now: the clock becomes as fine as it needs, and never coarser.
    pub fn heed(&mut self, threshold_ns: u64) {
        let tolerance_ns = (threshold_ns / 8).clamp(TOLERANCE_MIN_NS, TOLERANCE_MAX_NS);
        let longest_sleep_ns = (threshold_ns / 4).max(TOLERANCE_MIN_NS);
        self.tolerance_ns = self.tolerance_ns.min(tolerance_ns);
        self.longest_sleep_ns = self.longest_sleep_ns.min(longest_sleep_ns);
    }

    /// Takes a raw reading. Returns the gap if the observer came later than it had promised; the
    /// promise is used up either way.
    pub fn look(&mut self, raw_ns: u64) -> Option<Gap> {
        if raw_ns < self.last_raw_ns {
            self.regressions = self.regressions.saturating_add(1);
            return None;
        }
        let elapsed_ns = raw_ns - self.last_raw_ns;
        let late_ns = raw_ns.saturating_sub(self.promised_raw_ns);
        self.last_raw_ns = raw_ns;
        self.promised_raw_ns = raw_ns;
        if late_ns <= self.tolerance_ns {
            let paid_ns = self.owed_ns.min(elapsed_ns);
            self.owed_ns -= paid_ns;
            self.attention_ns = self.attention_ns.saturating_add(elapsed_ns - paid_ns);
            return None;
        }
        // What counts for nobody anyway need not be doubted.
        self.doubted_raw_ns = raw_ns;
        if elapsed_ns > JUMP_NS {
            self.jumps = self.jumps.saturating_add(1);
        }
        Some(Gap { gap_ns: elapsed_ns })
    }

    /// Promises to look again no later than `raw_ns`. Without a promise the observer is at work and
    /// must look again within the tolerance.
    pub fn promise(&mut self, raw_ns: u64) {
        self.promised_raw_ns = raw_ns.max(self.last_raw_ns);
    }

    /// Beats may have been refused between `from_raw_ns` and the last look: the queue may have been full.
    /// `woken_raw_ns` is the look that ended the last sleep. Returns the time that is now in doubt and was
    /// not before: none for a single overflow.
    pub fn doubt(&mut self, from_raw_ns: u64, woken_raw_ns: u64) -> u64 {
        let last_raw_ns = std::mem::replace(&mut self.overflow_raw_ns, self.last_raw_ns);
        if last_raw_ns == 0 || woken_raw_ns.saturating_sub(last_raw_ns) > OVERFLOW_PAUSE_NS {
            return 0;
        }
        let from_ns = from_raw_ns
            .max(woken_raw_ns.saturating_sub(DOUBT_REACH_NS))
            .max(self.doubted_raw_ns);
        let doubtful_ns = self.last_raw_ns.saturating_sub(from_ns);
        let owed_ns = doubtful_ns - doubtful_ns / DOUBT_PARTS;
        self.owed_ns = self.owed_ns.saturating_add(owed_ns);
        self.doubted_raw_ns = self.last_raw_ns;
        doubtful_ns
    }

    /// Attention time of the last look: when beats are heard.
    pub fn now_ns(&self) -> u64 {
        self.attention_ns
    }

    /// The same less what is owed: the time silence is judged by.
    pub fn judged_ns(&self) -> u64 {
        self.attention_ns.saturating_sub(self.owed_ns)
    }

    /// Raw time of the last look.
    pub fn raw_now_ns(&self) -> u64 {
        self.last_raw_ns
    }

    /// The raw time at which silence is judged as of `attention_ns` if no gap intervenes.
    pub fn raw_at(&self, attention_ns: u64) -> u64 {
        let ahead_ns = attention_ns.saturating_sub(self.judged_ns());
        self.last_raw_ns.saturating_add(ahead_ns)
    }

    /// The longest the observer may sleep while anybody is watched: a quarter of the shortest
    /// threshold, so that a longer pause is always noticed.
    pub fn longest_sleep_ns(&self) -> u64 {
        self.longest_sleep_ns
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

    fn clock() -> AttentionClock {
        AttentionClock::new(0, 2_000 * MS)
    }

    /// A clock whose queue has just overflowed.
    fn flooded_clock() -> AttentionClock {
        AttentionClock {
            overflow_raw_ns: 1,
            ..clock()
        }
    }

    #[test]
    fn a_kept_promise_counts_the_whole_sleep() {
        let mut clock = clock();
        clock.promise(500 * MS);
        assert_eq!(clock.look(502 * MS), None);
        assert_eq!(clock.now_ns(), 502 * MS);
    }

    #[test]
    fn waking_before_the_promise_counts_too() {
        let mut clock = clock();
        clock.promise(500 * MS);
        assert_eq!(clock.look(10 * MS), None);
        assert_eq!(clock.now_ns(), 10 * MS);
    }

    #[test]
    fn a_broken_promise_counts_nothing_since_the_last_look() {
        let mut clock = clock();
        clock.promise(500 * MS);
        assert_eq!(clock.look(3_000 * MS), Some(Gap { gap_ns: 3_000 * MS }));
        assert_eq!(clock.now_ns(), 0);
        clock.promise(3_400 * MS);
        assert_eq!(clock.look(3_400 * MS), None);
        assert_eq!(clock.now_ns(), 400 * MS);
    }

    #[test]
    fn the_tolerance_itself_is_not_a_gap_and_one_nanosecond_more_is() {
        let mut on_time = clock();
        on_time.promise(500 * MS);
        assert_eq!(on_time.look(600 * MS), None);
        let mut late = clock();
        late.promise(500 * MS);
        assert!(late.look(600 * MS + 1).is_some());
    }

    #[test]
    fn work_that_takes_longer_than_the_tolerance_is_a_gap() {
        let mut clock = clock();
        assert_eq!(clock.look(50 * MS), None, "a long turn");
        assert!(clock.look(250 * MS).is_some(), "stopped in mid-turn");
    }

    #[test]
    fn a_reading_that_goes_back_is_absorbed_and_counted_once() {
        let mut clock = clock();
        clock.look(MS);
        assert_eq!(clock.look(0), None);
        assert_eq!(clock.now_ns(), MS);
        assert_eq!((clock.take_regressions(), clock.take_regressions()), (1, 0));
    }

    #[test]
    fn only_gaps_above_five_seconds_are_jumps() {
        let mut clock = clock();
        clock.look(2_000 * MS);
        assert_eq!(clock.take_jumps(), 0);
        clock.look(12_000 * MS);
        assert_eq!((clock.take_jumps(), clock.take_jumps()), (1, 0));
    }

    #[test]
    fn raw_at_turns_a_deadline_into_a_wake_up_time_across_gaps() {
        let mut clock = clock();
        clock.look(10_000 * MS);
        assert_eq!(clock.now_ns(), 0);
        assert_eq!(clock.raw_at(2_000 * MS), 12_000 * MS);
        assert_eq!(clock.raw_at(0), 10_000 * MS);
    }

    #[test]
    fn doubtful_time_counts_a_sixteenth_and_is_owed_before_it_is_paid() {
        let mut clock = flooded_clock();
        clock.look(16 * MS);
        assert_eq!(clock.doubt(0, 2 * MS), 16 * MS);
        assert_eq!(
            clock.now_ns(),
            16 * MS,
            "beats are heard when they are heard"
        );
        assert_eq!(clock.judged_ns(), MS);
        assert_eq!(clock.raw_at(2 * MS), 17 * MS);
        clock.look(20 * MS);
        assert_eq!((clock.now_ns(), clock.judged_ns()), (16 * MS, 5 * MS));
        clock.look(40 * MS);
        assert_eq!(clock.judged_ns(), 25 * MS);
        assert_eq!(clock.now_ns(), 25 * MS);
    }

    #[test]
    fn in_an_endless_flood_time_passes_at_a_sixteenth() {
        let mut clock = clock();
        let mut raw_ns = 0;
        for _ in 0..1_600 {
            raw_ns += MS;
            clock.look(raw_ns);
            clock.doubt(raw_ns - MS, raw_ns);
        }
        let judged_ms = clock.judged_ns() / MS;
        assert!((99..=101).contains(&judged_ms), "{judged_ms} ms of 1600");
    }

    #[test]
    fn a_single_overflow_is_no_reason_to_doubt() {
        let mut clock = clock();
        for raw_ns in [5 * MS, 10 * MS, 15 * MS] {
            clock.look(raw_ns);
            assert_eq!(clock.doubt(raw_ns - MS, raw_ns), 0);
        }
        clock.look(16 * MS);
        assert_eq!(clock.doubt(15 * MS, 16 * MS), MS);
    }

    #[test]
    fn a_gap_counts_for_nobody_and_is_not_owed_besides() {
        let mut clock = flooded_clock();
        clock.look(MS);
        assert!(clock.look(10_000 * MS).is_some());
        assert_eq!(clock.doubt(0, MS), 0);
        assert_eq!(clock.judged_ns(), MS);
    }

    #[test]
    fn doubt_does_not_reach_into_a_sleep_nor_count_twice() {
        let mut clock = clock();
        clock.promise(499 * MS);
        clock.look(499 * MS);
        clock.doubt(0, 499 * MS);
        clock.look(500 * MS);
        clock.look(501 * MS);
        clock.doubt(0, 500 * MS);
        let owed_ns = 3 * MS - 3 * MS / 16;
        assert_eq!(clock.judged_ns(), 501 * MS - owed_ns);
        clock.doubt(0, 500 * MS);
        assert_eq!(clock.judged_ns(), 501 * MS - owed_ns);
    }

    #[test]
    fn impatient_agents_get_a_finer_clock() {
        let mut clock = AttentionClock::new(0, 10 * MS);
        assert_eq!(clock.longest_sleep_ns(), 2_500_000);
        clock.promise(MS);
        assert!(clock.look(MS + 1_250_001).is_some());
    }

    #[test]
    fn a_clock_becomes_finer_with_a_more_impatient_agent_and_never_coarser() {
        let mut clock = AttentionClock::new(0, 2_000_000_000);
        clock.heed(40_000_000);
        clock.heed(5_000_000_000);
        assert_eq!(clock.longest_sleep_ns(), 10_000_000);
        assert_eq!(clock.look(5_000_001), Some(Gap { gap_ns: 5_000_001 }));
    }
}
