//! A ladder as data: its steps, and the arithmetic of its pauses.

/// A ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LadderTiming {
    /// Differs between two ladders with different actions and the same timing.
    pub tag: u64,
    /// The steps; at least one acts.
    pub steps: Vec<StepTiming>,
    /// Minimum time from the start of an action to the first one of a later silence, and between two attempts
    /// at the last step.
    pub debounce_ns: u64,
    /// Most actions started within the window, 1 to [`BUDGET_MAX`](super::BUDGET_MAX).
    pub budget: u32,
    /// The length of the sliding window.
    pub window_ns: u64,
    /// The first pause after a failure.
    pub backoff_ns: u64,
    /// The longest pause; pauses double up to it.
    pub backoff_max_ns: u64,
    /// An agent that was well for this long starts with its whole budget.
    pub reset_after_ns: u64,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepTiming {
    /// Do something.
    Act {
        /// How long the agent may take to come back after it was handled.
        grace_ns: u64,
        /// Whether it takes time and needs a permit; otherwise it is done at once.
        needs_permit: bool,
    },
    /// Wait.
    Wait {
        /// For how long.
        wait_ns: u64,
    },
}

impl LadderTiming {
    /// The number of the last step that acts.
    pub(super) fn last_action(&self) -> u32 {
        let acts = |step: &StepTiming| matches!(step, StepTiming::Act { .. });
        self.steps.iter().rposition(acts).unwrap_or(0) as u32
    }

    pub(super) fn grace_ns(&self, step: u32) -> u64 {
        match self.steps.get(step as usize) {
            Some(StepTiming::Act { grace_ns, .. }) => *grace_ns,
            Some(StepTiming::Wait { .. }) | None => 0,
        }
    }

    /// The pause after this many failures, or before a ladder restarts after this many silences: doubles up
    /// to the limit.
    pub(super) fn pause_ns(&self, failures: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(62);
        self.backoff_ns
            .saturating_mul(1 << doublings)
            .min(self.backoff_max_ns.max(self.backoff_ns))
    }
}
