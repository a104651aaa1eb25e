//! The position of an agent on its ladder, and the next step and its time.

use varta_core::policy::{Ladder, Step};

use super::records::Record;
use crate::S;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Handled,
    Failed,
    Postponed,
}

/// The recovery of a silence.
#[derive(Clone, Debug)]
pub(crate) struct Climb {
    /// `None` while the agent has none.
    pub(super) ladder: Option<Ladder>,
    /// When the first step could start, and when the engine knew.
    pub(super) begun_ns: u64,
    pub(super) known_ns: u64,
    /// Actions started about it.
    pub(super) acts: u32,
    pub(super) failures: u32,
    pub(super) gave_up: bool,
    /// Acting is not allowed, or the process has left.
    pub(super) is_refused: bool,
    /// The last step, and how and when it ended.
    pub(super) last: Option<(usize, Option<(End, u64)>)>,
    pub(super) is_user_wait_told: bool,
    pub(super) is_waiting: bool,
    /// The last time at which it was blocked.
    pub(super) waited_ns: u64,
}

impl Climb {
    pub(super) fn new(ladder: Option<Ladder>, begun_ns: u64, known_ns: u64) -> Self {
        Self {
            ladder,
            begun_ns,
            known_ns,
            acts: 0,
            failures: 0,
            gave_up: false,
            is_refused: false,
            last: None,
            is_user_wait_told: false,
            is_waiting: false,
            waited_ns: 0,
        }
    }

    pub(super) fn goes_on(&self) -> bool {
        self.ladder.is_some() && !self.gave_up && !self.is_refused
    }

    /// Restarts at the first step of a ladder.
    pub(super) fn begin_again(&mut self, ladder: Option<Ladder>, now_ns: u64) {
        self.ladder = ladder;
        self.begun_ns = now_ns;
        self.known_ns = now_ns;
        self.failures = 0;
        self.gave_up = false;
        self.is_refused = false;
        self.last = None;
    }
}

pub(super) fn nanoseconds(time: std::time::Duration) -> u64 {
    time.as_nanos() as u64
}

pub(super) fn is_action(step: &Step) -> bool {
    !matches!(step, Step::Wait(_))
}

pub(super) fn wait_ns(step: &Step) -> u64 {
    nanoseconds(match step {
        Step::Run(run) => run.wait,
        Step::Signal(signal) => signal.wait,
        Step::Wait(wait) => *wait,
    })
}

/// The pause after this many failures.
pub(super) fn pause_ns(ladder: &Ladder, failures: u32) -> u64 {
    let backoff_ns = nanoseconds(ladder.backoff);
    let longest_ns = nanoseconds(ladder.backoff_max).max(backoff_ns);
    (backoff_ns << failures.saturating_sub(1).min(20)).min(longest_ns)
}

/// The next step, not before `from_ns` and not after `until_ns`.
pub(super) struct Next {
    /// `None`: recovery gives up.
    pub(super) step: Option<usize>,
    pub(super) from_ns: u64,
    pub(super) until_ns: u64,
    /// The part of it in wait steps.
    pub(super) waits_ns: u64,
}

/// The first action from a step on, after the waits before it.
pub(super) fn next_from(ladder: &Ladder, step: usize, from_ns: u64, until_ns: u64) -> Next {
    let rest = &ladder.steps[step..];
    let waits = rest.iter().take_while(|step| !is_action(step));
    let waits_ns: u64 = waits.clone().map(wait_ns).sum();
    let next = step + waits.count();
    Next {
        step: (next < ladder.steps.len()).then_some(next),
        from_ns: from_ns + waits_ns,
        until_ns: until_ns + waits_ns,
        waits_ns,
    }
}

/// The next step of a record's silence; `None` while there is none.
pub(super) fn next_of(record: &Record) -> Option<Next> {
    let climb = record.climb.as_ref()?;
    let ladder = climb.ladder.as_ref()?;
    if climb.gave_up || climb.is_refused {
        return None;
    }
    let debounce_ns = nanoseconds(ladder.debounce);
    let Some((last, end)) = climb.last else {
        let (least_ns, most_ns) = match record.climbs {
            0 => (0, 0),
            1 => (debounce_ns, debounce_ns),
            climbs => {
                let pause_ns = pause_ns(ladder, climbs - 1);
                let most_ns = (pause_ns + pause_ns / 4).max(debounce_ns);
                (pause_ns.max(debounce_ns), most_ns)
            }
        };
        let after = |pause_ns| match pause_ns {
            0 => climb.begun_ns,
            pause_ns => climb.begun_ns.max(record.last_start_ns() + pause_ns),
        };
        return Some(next_from(
            ladder,
            0,
            after(least_ns),
            after(most_ns).max(climb.known_ns),
        ));
    };
    let (end, ended_ns) = end?;
    let is_last = !ladder.steps[last + 1..].iter().any(is_action);
    Some(match end {
        End::Handled => {
            let back_ns = ended_ns + wait_ns(&ladder.steps[last]);
            next_from(ladder, last + 1, back_ns, back_ns)
        }
        End::Postponed => next_from(ladder, last, ended_ns + S, ended_ns + S),
        End::Failed if is_last => {
            let pause_ns = pause_ns(ladder, climb.failures).max(debounce_ns);
            let until_ns = ended_ns + pause_ns + pause_ns / 4;
            next_from(ladder, last, ended_ns + pause_ns, until_ns)
        }
        End::Failed => next_from(ladder, last + 1, ended_ns, ended_ns),
    })
}

/// Starts within the window of the budget.
pub(super) fn spent(record: &Record, ladder: &Ladder, now_ns: u64) -> u32 {
    let window_ns = nanoseconds(ladder.window);
    let starts = record.starts.iter().rev();
    starts
        .take_while(|start_ns| now_ns - **start_ns < window_ns)
        .count() as u32
}
