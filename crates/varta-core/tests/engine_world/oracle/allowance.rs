//! What one agent may send: so many beats at once, and so many per second.

use varta_core::BeatLimit;

use crate::S;
use crate::beat_path::COMMON_RATE;

/// Beats that are left, in billionths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    limit: BeatLimit,
    left: u64,
    at_ns: u64,
}

impl Allowance {
    /// It has sent one beat.
    pub(super) fn of_newcomer(now_ns: u64) -> Self {
        Self {
            limit: BeatLimit::Common,
            left: u64::from(COMMON_RATE.burst - 1) * S,
            at_ns: now_ns,
        }
    }

    pub(super) fn replace(&mut self, limit: BeatLimit, now_ns: u64) {
        self.limit = limit;
        self.at_ns = now_ns;
        self.left = self.most();
    }

    fn most(&self) -> u64 {
        u64::from(match self.limit {
            BeatLimit::Common => COMMON_RATE.burst,
            BeatLimit::Own(rate) => rate.burst,
            BeatLimit::Unlimited => 0,
        }) * S
    }

    /// Whether it may send one more; if so, it has.
    pub(super) fn take(&mut self, now_ns: u64) -> bool {
        let per_second = match self.limit {
            BeatLimit::Common => COMMON_RATE.per_second,
            BeatLimit::Own(rate) => rate.per_second,
            BeatLimit::Unlimited => return true,
        };
        let left = self.left + (now_ns - self.at_ns) * u64::from(per_second);
        let left = left.min(self.most());
        if left < S {
            return false;
        }
        self.left = left - S;
        self.at_ns = now_ns;
        true
    }
}
