//! A ladder as data: its steps, and the arithmetic of its pauses.

/// A ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LadderTiming {
    /// Differs between two ladders that do different things in the same rhythm.
    pub tag: u64,
    /// At least one of them acts.
    pub steps: Vec<StepTiming>,
    /// Least time from the start of an action to that of the first one about a later silence, and
    /// between two attempts at the last step.
    pub debounce_ns: u64,
    /// Most actions started within the window, 1 to [`BUDGET_MAX`](super::BUDGET_MAX).
    pub budget: u32,
    /// The window, a time that slides.
    pub window_ns: u64,
    /// The first pause after a failure.
    pub backoff_ns: u64,
    /// What pauses double up to.
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
        /// It takes a while, so it needs one of the places for those; otherwise it is done at once.
        needs_permit: bool,
    },
    /// Do nothing for so long.
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

    /// The pause after so many failures, or before the climb after so many: doubles up to the limit.
    pub(super) fn pause_ns(&self, failures: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(62);
        self.backoff_ns
            .saturating_mul(1 << doublings)
            .min(self.backoff_max_ns.max(self.backoff_ns))
    }
}
