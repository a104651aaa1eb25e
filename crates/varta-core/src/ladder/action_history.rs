//! The start times of the last actions on an agent, from which budgets and pauses follow.

/// Most actions a budget can have: each costs 8 bytes per agent with actions.
pub const BUDGET_MAX: usize = 32;

/// The last [`BUDGET_MAX`] of them, newest first, 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ActionHistory([u64; BUDGET_MAX]);

impl ActionHistory {
    pub(super) const NONE: Self = Self([0; BUDGET_MAX]);

    /// Adds one. The oldest drops out, beyond the reach of any budget.
    pub(super) fn add(&mut self, now_ns: u64) {
        self.0.rotate_right(1);
        self.0[0] = now_ns.max(1);
    }

    /// Removes the last one: it had no effect.
    pub(super) fn take_back(&mut self) {
        self.0[0] = 0;
        self.0.rotate_left(1);
    }

    /// The last one; 0 for none.
    pub(super) fn last_ns(&self) -> u64 {
        self.0[0]
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().filter(|start_ns| **start_ns != 0).count() as u32
    }

    /// Whether there were as many as `budget` allows within the window before `now_ns`.
    pub(super) fn have_spent(&self, budget: u32, window_ns: u64, now_ns: u64) -> bool {
        let oldest_allowed_ns = self.0[(budget as usize).clamp(1, BUDGET_MAX) - 1];
        oldest_allowed_ns != 0 && now_ns.saturating_sub(oldest_allowed_ns) < window_ns
    }

    /// Removes those since `since_ns`.
    pub(super) fn forget_since(&mut self, since_ns: u64) {
        let later = self.0.iter().filter(|start_ns| **start_ns >= since_ns);
        let later = later.count();
        self.0.rotate_left(later);
        self.0[BUDGET_MAX - later..].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_since_a_time_are_forgotten_and_the_others_keep_their_order() {
        let mut history = ActionHistory::NONE;
        for start_ns in [10, 20, 30, 40] {
            history.add(start_ns);
        }
        history.forget_since(30);
        let mut left = ActionHistory::NONE;
        left.add(10);
        left.add(20);
        assert_eq!((history, history.count(), history.last_ns()), (left, 2, 20));
        history.forget_since(0);
        assert_eq!(history, ActionHistory::NONE);
    }
}
