//! Hooks: one at a time per agent and occasion, its steps in order, as long as the occasion still applies.

use varta_core::Agent;
use varta_core::engine::{Action, ActionId, Outcome, StepOrder};
use varta_core::fact::{HookOutcome, Occasion, WithdrawReason};
use varta_core::policy::{Mode, Step};

use super::ladders::{is_same, is_trusted};
use super::{Oracle, PUNCTUAL_NS, key};
use crate::S;

const OCCASIONS: [Occasion; 5] = [
    Occasion::Late,
    Occasion::Critical,
    Occasion::Exit,
    Occasion::Recovered,
    Occasion::GaveUp,
];

#[derive(Clone, Debug)]
pub(crate) struct Hook {
    agent: Agent,
    uid: Option<u32>,
    steps: Vec<Step>,
    taken: usize,
    /// When it last continued.
    since_ns: u64,
    /// When it was last blocked.
    waited_ns: u64,
    is_waiting: bool,
    in_flight: Option<ActionId>,
    /// A step could not be taken.
    is_stuck: bool,
}

impl Hook {
    /// The next action, and how long it waits before.
    fn next(&self) -> (Option<usize>, u64) {
        let mut wait_ns = 0;
        for (place, step) in self.steps.iter().enumerate().skip(self.taken) {
            match step {
                Step::Wait(wait) => wait_ns += wait.as_nanos() as u64,
                Step::Run(_) | Step::Signal(_) => return (Some(place), wait_ns),
            }
        }
        (None, wait_ns)
    }
}

impl Oracle {
    pub(super) fn occasion_of(&self, reason: &str) -> Option<Occasion> {
        let mut occasions = OCCASIONS.into_iter();
        occasions.find(|occasion| occasion.name() == reason)
    }

    pub(super) fn user_of_hook(&self, agent: Agent, reason: &'static str) -> Option<u32> {
        self.hooks
            .get(&(key(agent), reason))
            .and_then(|hook| hook.uid)
    }

    /// An occasion of hooks.
    pub(super) fn on_occasion(&mut self, agent: Agent, occasion: Occasion) {
        let Some(record) = self.records.get(&key(agent)) else {
            return;
        };
        let rule = record.rule.map(|rule| &self.policy.rules[rule]);
        let Some(hooks) = rule.map(|rule| &rule.hooks) else {
            return;
        };
        let steps = match occasion {
            Occasion::Late => &hooks.on_late,
            Occasion::Critical => &hooks.on_critical,
            Occasion::Exit => &hooks.on_exit,
            Occasion::Recovered => &hooks.on_recovered,
            Occasion::GaveUp => &hooks.on_gave_up,
        };
        if steps.is_empty() || self.policy.mode == Mode::Observe || self.is_paused(agent) {
            return;
        }
        if self.policy.mode == Mode::DryRun {
            return self.want("hook rehearsed", agent, occasion as u64);
        }
        if !is_trusted(record) {
            return self.want("hook refused", agent, occasion as u64);
        }
        let name = (key(agent), occasion.name());
        if self.hooks.contains_key(&name) {
            return self.want("hook dropped", agent, occasion as u64);
        }
        let hook = Hook {
            agent,
            uid: record.uid,
            steps: steps.clone(),
            taken: 0,
            since_ns: self.now.observer_ns,
            waited_ns: 0,
            is_waiting: false,
            in_flight: None,
            is_stuck: false,
        };
        self.hooks.insert(name, hook);
    }

    pub(super) fn hook_step(&mut self, order: &StepOrder, occasion: Occasion) {
        let agent = order.subject.agent;
        let is_paused = self.is_paused(agent);
        let is_late = self.is_late(agent);
        let is_present = self.is_present(agent);
        let hook = self.hooks.get_mut(&(key(agent), occasion.name()));
        let hook = hook.unwrap_or_else(|| panic!("no hook is under way: {order:?}"));
        assert_eq!(
            hook.in_flight, None,
            "one step of a hook at a time: {hook:?}"
        );
        assert_eq!(self.policy.mode, Mode::Enforce, "mode: {order:?}");
        assert!(!is_paused, "a hook for an agent that is paused: {order:?}");
        let is_right = occasion != Occasion::Late || is_late;
        assert!(is_right, "called late, and is back: {order:?}");
        let is_target = matches!(occasion, Occasion::Late | Occasion::Critical);
        assert_eq!(order.subject.is_target, is_target, "aim: {order:?}");
        let is_signal = matches!(order.action, Action::Signal(_));
        assert!(
            !is_signal || is_present,
            "a signal to an agent that has left: {order:?}"
        );
        let (next, wait_ns) = hook.next();
        let next = next.unwrap_or_else(|| panic!("no step is left: {hook:?}"));
        assert!(
            is_same(&hook.steps[next], &order.action),
            "another step: {order:?} {hook:?}"
        );
        let from_ns = hook.since_ns + wait_ns;
        assert!(
            self.now.observer_ns >= from_ns,
            "a step of a hook too early: {hook:?}"
        );
        hook.taken = next;
        hook.in_flight = Some(order.id);
    }

    fn is_late(&self, agent: Agent) -> bool {
        let heard = self.silence.get(agent);
        heard.is_some_and(|heard| heard.told_late || heard.told_stall)
    }

    pub(super) fn hook_outcome(&mut self, agent: Agent, occasion: Occasion, outcome: &Outcome) {
        let now_ns = self.now.observer_ns;
        let name = (key(agent), occasion.name());
        let hook = self
            .hooks
            .get_mut(&name)
            .expect("an outcome without a hook");
        hook.in_flight = None;
        hook.since_ns = now_ns;
        match outcome {
            Outcome::Started { .. } => {}
            Outcome::Ended(end) if !end.exit.is_success() => {
                self.hooks.remove(&name);
                self.want("hook failed", agent, occasion as u64);
            }
            Outcome::Ended(_) | Outcome::Signalled(_) | Outcome::Rehearsed { .. } => {
                hook.taken += 1;
            }
            Outcome::Postponed(_) => {
                hook.since_ns = now_ns + S;
                self.want("postponed", agent, 1);
            }
            Outcome::Failed(_) => hook.is_stuck = true,
        }
    }

    pub(super) fn hook_ended(&mut self, agent: Agent, occasion: Occasion, outcome: &HookOutcome) {
        let now_ns = self.now.observer_ns;
        let hook = self.hooks.remove(&(key(agent), occasion.name()));
        let hook = hook.unwrap_or_else(|| panic!("ended, and was not under way: {agent:?}"));
        assert_eq!(hook.in_flight, None, "ended in mid-step: {hook:?}");
        let (next, wait_ns) = hook.next();
        match outcome {
            HookOutcome::Done { steps } => {
                assert_eq!(next, None, "steps are left: {hook:?}");
                assert_eq!(*steps, hook.steps.len() as u64, "steps: {hook:?}");
                assert!(
                    now_ns >= hook.since_ns + wait_ns,
                    "ended too early: {hook:?}"
                );
            }
            HookOutcome::NotStarted(_) => {
                let is_signal =
                    next.is_some_and(|next| matches!(hook.steps[next], Step::Signal(_)));
                let is_gone = is_signal && !self.is_present(agent);
                assert!(hook.is_stuck || is_gone, "could have gone on: {hook:?}");
            }
            HookOutcome::ProgramFailed { .. } => panic!("no program has failed: {hook:?}"),
        }
    }

    pub(super) fn hook_withdrawn(
        &mut self,
        agent: Agent,
        occasion: Occasion,
        reason: WithdrawReason,
    ) {
        let is_right = match reason {
            WithdrawReason::UntrustedOrigin => false,
            WithdrawReason::ModeChanged => self.policy.mode != Mode::Enforce,
            WithdrawReason::Paused => self.is_paused(agent),
            WithdrawReason::Returned => occasion == Occasion::Late && !self.is_late(agent),
        };
        assert!(is_right, "withdrawn as {reason:?}: {agent:?}");
        let hook = self.hooks.remove(&(key(agent), occasion.name()));
        let hook = hook.unwrap_or_else(|| panic!("withdrawn, and was not under way: {agent:?}"));
        assert!(
            !self.is_held(agent, hook.uid),
            "withdrawn while fire is held: {hook:?}"
        );
        assert_eq!(hook.in_flight, None, "withdrawn in mid-step: {hook:?}");
    }

    /// Control is idle: hooks have continued, or are blocked.
    pub(super) fn check_hooks(&mut self) {
        let now_ns = self.now.observer_ns;
        let mut waiting = Vec::new();
        for (name, hook) in &self.hooks {
            let due_ns = hook.since_ns.max(hook.waited_ns) + hook.next().1;
            let is_asleep = now_ns <= due_ns + PUNCTUAL_NS;
            if hook.in_flight.is_some() {
                continue;
            }
            // Hooks of a locality wait for earlier ones that need a permit.
            let keeps_waiting = self.is_held(hook.agent, hook.uid)
                || self.is_control_late
                || self.is_asked
                || !self.has_place(hook.agent.locality(), true)
                || !self.may_start();
            if keeps_waiting || hook.is_waiting {
                waiting.push((*name, keeps_waiting));
            } else {
                assert!(is_asleep, "a hook does not go on: {hook:?}");
            }
        }
        for (name, is_waiting) in waiting {
            if let Some(hook) = self.hooks.get_mut(&name) {
                // A wait starts when the hook continues.
                hook.waited_ns = now_ns;
                hook.is_waiting = is_waiting;
            }
        }
    }
}
