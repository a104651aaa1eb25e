//! Gaps that count for some agents only, and restarts of silence: what judging a silence takes into account
//! beside its length.
//!
//! Gaps are kept in a ring of the latest [`GAPS`]. An older one is dropped, which can only affect an agent that was
//! silent through a thousand gaps that it does not tolerate.

use crate::attention::tolerance_ns;
use crate::slot::Slot;

/// Gaps kept. They are longer than 1 ms each and an agent tolerates those below an eighth of its threshold, so
/// this is many times what lies within one.
const GAPS: usize = 1024;

/// A gap that is on the clock.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    end_ns: u64,
    gap_ns: u64,
}

/// The latest gaps, oldest overwritten first.
#[derive(Debug)]
pub(super) struct RecentGaps {
    gaps: Box<[Gap]>,
    /// Gaps so far; the next one is stored at this place, modulo the ring.
    count: usize,
}

impl RecentGaps {
    pub(super) fn new() -> Self {
        Self {
            gaps: vec![Gap::default(); GAPS].into_boxed_slice(),
            count: 0,
        }
    }

    pub(super) fn push(&mut self, end_ns: u64, gap_ns: u64) {
        self.gaps[self.count % GAPS] = Gap { end_ns, gap_ns };
        self.count += 1;
    }

    /// The time since `since_ns` that does not count for an agent with this threshold.
    pub(super) fn excused_ns(&self, since_ns: u64, threshold_ns: u64) -> u64 {
        let tolerance_ns = tolerance_ns(threshold_ns);
        let kept = self.count.min(GAPS);
        let latest_first = (1..=kept).map(|back| self.gaps[(self.count - back) % GAPS]);
        latest_first
            .take_while(|gap| gap.end_ns > since_ns)
            .filter(|gap| gap.gap_ns > tolerance_ns)
            .fold(0, |sum, gap| sum.saturating_add(gap.gap_ns))
    }
}

/// Until this time a full queue may have refused beats.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restart {
    pub(super) at_ns: u64,
    /// Thresholds since an agent's last beat by which its stall may be put off.
    pub(super) thresholds: u64,
}

impl Restart {
    /// The time from which the silence of this agent counts with regard to the queue.
    pub(super) fn for_agent(self, facts: &Slot) -> u64 {
        let longest_ns = facts.threshold_ns.saturating_mul(self.thresholds);
        self.at_ns.min(facts.last_ns.saturating_add(longest_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn only_gaps_after_a_beat_that_the_agent_does_not_tolerate_are_excused() {
        let mut gaps = RecentGaps::new();
        gaps.push(100 * MS, 20 * MS);
        gaps.push(200 * MS, 10 * MS);
        gaps.push(300 * MS, 30 * MS);
        assert_eq!(gaps.excused_ns(0, 80 * MS), 50 * MS, "tolerates 10 ms");
        assert_eq!(gaps.excused_ns(100 * MS, 80 * MS), 30 * MS);
        assert_eq!(gaps.excused_ns(0, 8 * MS), 60 * MS);
        assert_eq!(gaps.excused_ns(0, 2_000 * MS), 0);
        assert_eq!(gaps.excused_ns(300 * MS, 8 * MS), 0);
    }

    #[test]
    fn the_latest_gaps_are_kept() {
        let mut gaps = RecentGaps::new();
        for i in 1..=3 * GAPS as u64 {
            gaps.push(i * 10 * MS, 2 * MS);
        }
        assert_eq!(gaps.excused_ns(0, 8 * MS), GAPS as u64 * 2 * MS);
        let last_ns = 3 * GAPS as u64 * 10 * MS;
        assert_eq!(gaps.excused_ns(last_ns - 50 * MS, 8 * MS), 10 * MS);
    }
}
