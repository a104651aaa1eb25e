//! Hooks: steps for other occasions than a stall. An agent is late, reports that it is critical, has died, is back, or
//! was given up.
//!
//! A hook takes its steps in order until one fails, and each step is checked again before it is taken: the agent may
//! be back or paused by then. Hooks share the limits of recovery up to a fixed part; a waiting hook holds no permit.
//! No step is ordered while fire is held. A started hook keeps its steps when the policy changes, and continues
//! after its agent has left.
//!
//! Bounds: one hook per agent and occasion, and [`HOOKS_MAX`] per locality.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::effect::{Action, Subject};
use super::rule_assignments::nanoseconds;
use super::{Engine, InFlight};
use crate::agent::{Agent, Locality, PerLocality};
use crate::fact::{AgentRef, Fact, HookOutcome, Occasion, StartFailure, WithdrawReason};
use crate::policy::{Mode, Step};

/// Hooks of a locality under way at the same time; more are dropped and counted.
const HOOKS_MAX: usize = 1024;

/// Delay before a step is tried again for which the observer lacked descriptors or memory: 1 s.
const POSTPONED_NS: u64 = 1_000_000_000;

/// The steps for an occasion.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    agent: AgentRef,
    /// The user of a local agent.
    uid: Option<u32>,
    occasion: Occasion,
    subject: Subject,
    steps: Vec<Step>,
    taken: usize,
    begun_ns: u64,
}

impl Hook {
    pub(super) fn agent(&self) -> Agent {
        self.agent.agent
    }

    pub(super) fn agent_ref(&self) -> &AgentRef {
        &self.agent
    }

    pub(super) fn occasion(&self) -> Occasion {
        self.occasion
    }

    /// Whether its next step takes a permit.
    pub(super) fn needs_permit(&self) -> bool {
        matches!(self.steps.get(self.taken), Some(Step::Run(_)))
    }

    /// The program of its next step, for display.
    pub(super) fn program(&self) -> String {
        match self.steps.get(self.taken) {
            Some(Step::Run(run)) => run.called(),
            Some(Step::Signal(_) | Step::Wait(_)) | None => String::new(),
        }
    }
}

/// Hooks of one locality.
#[derive(Debug, Default)]
struct Lane {
    /// Those whose next step waits for a permit, oldest first.
    ready: VecDeque<Hook>,
    under_way: HashSet<(Agent, Occasion)>,
}

/// Number of hooks under way.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    lanes: PerLocality<Lane>,
    /// Those in a wait step, by the time of its end. The number separates equal times.
    waiting: BTreeMap<(u64, u64), Hook>,
    waits: u64,
}

impl Hooks {
    /// False if the queue is full or the same hook is under way.
    fn add(&mut self, hook: Hook) -> bool {
        let lane = &mut self.lanes[hook.agent().locality()];
        let is_new = lane.under_way.len() < HOOKS_MAX
            && lane.under_way.insert((hook.agent(), hook.occasion));
        if is_new {
            lane.ready.push_back(hook);
        }
        is_new
    }

    /// The position of the next hook for which fire is not held.
    fn first(&self, locality: Locality, is_held: impl Fn(&Hook) -> bool) -> Option<usize> {
        let mut ready = self.lanes[locality].ready.iter();
        ready.position(|hook| !is_held(hook))
    }

    fn get(&self, locality: Locality, place: usize) -> Option<&Hook> {
        self.lanes[locality].ready.get(place)
    }

    fn take(&mut self, locality: Locality, place: usize) -> Option<Hook> {
        self.lanes[locality].ready.remove(place)
    }

    /// When the next wait is over.
    pub(super) fn next_wait_end_ns(&self) -> Option<u64> {
        self.waiting
            .first_key_value()
            .map(|((end_ns, _), _)| *end_ns)
    }

    /// Moves the hooks whose wait is over to the queue, in the order of their times.
    pub(super) fn end_waits(&mut self, now_ns: u64) {
        let later = self.waiting.split_off(&(now_ns, u64::MAX));
        let over = std::mem::replace(&mut self.waiting, later);
        for hook in over.into_values().rev() {
            self.go_on(hook);
        }
    }

    /// Queues the next step, before the hooks that have not started.
    fn go_on(&mut self, hook: Hook) {
        let lane = &mut self.lanes[hook.agent().locality()];
        lane.ready.push_front(hook);
    }

    /// Tries the step again later.
    pub(super) fn postpone(&mut self, hook: Hook, now_ns: u64) {
        self.wait(hook, now_ns.saturating_add(POSTPONED_NS));
    }

    fn wait(&mut self, hook: Hook, end_ns: u64) {
        self.waits += 1;
        self.waiting.insert((end_ns, self.waits), hook);
    }

    fn end(&mut self, hook: &Hook) {
        let lane = &mut self.lanes[hook.agent().locality()];
        lane.under_way.remove(&(hook.agent(), hook.occasion));
    }
}

impl Engine {
    /// Starts the hook of an occasion, if the agent's rule has one.
    pub(super) fn hook(&mut self, agent: Agent, occasion: Occasion) {
        let rule = self.rule_of(agent);
        let steps = rule.map_or(&[][..], |rule| rule.hooks.on(occasion));
        if steps.is_empty() || self.policy.mode == Mode::Observe || self.is_paused(agent) {
            return;
        }
        let steps = steps.to_vec();
        let called = self.agent_ref(agent);
        if self.policy.mode == Mode::DryRun {
            return self.publish(Fact::HookRehearsed {
                agent: called,
                occasion,
            });
        }
        if self.refusal_of(agent).is_some() {
            return self.publish(Fact::HookWithdrawn {
                agent: called,
                occasion,
                reason: WithdrawReason::UntrustedOrigin,
            });
        }
        let is_target = matches!(occasion, Occasion::Late | Occasion::Critical);
        let record = self.agents.get(agent);
        let hook = Hook {
            agent: called.clone(),
            uid: record.and_then(|record| record.lineage.user),
            occasion,
            subject: self.subject(agent, occasion.name(), is_target),
            steps,
            taken: 0,
            begun_ns: self.now.observer_ns,
        };
        if !self.hooks.add(hook) {
            self.publish(Fact::HookDropped {
                agent: called,
                occasion,
            });
        }
    }

    /// When a step of a hook may be due to be ordered.
    pub(super) fn next_hook_step_ns(&self) -> Option<u64> {
        let due = Locality::ALL.into_iter().filter_map(|locality| {
            let place = self.first_hook(locality)?;
            let hook = self.hooks.get(locality, place)?;
            // Without ladders no permit is out yet.
            // One that is to be withdrawn waits for no permit, nor do those behind it.
            let needs_permit = hook.needs_permit() && self.withdrawal(hook).is_none();
            let ladders = self.ladders.as_ref().filter(|_| needs_permit);
            ladders.map_or(Some(0), |core| core.hook_room_at_ns(hook.agent()))
        });
        due.min()
    }

    /// The next hook in turn.
    fn first_hook(&self, locality: Locality) -> Option<usize> {
        let is_held = |hook: &Hook| self.is_fire_held(hook.agent(), hook.uid);
        self.hooks.first(locality, is_held)
    }

    /// Continues the next hook that gets a permit; false if there is none.
    pub(super) fn order_next_hook_step(&mut self) -> bool {
        Locality::ALL
            .into_iter()
            .any(|locality| self.order_hook_step_in(locality))
    }

    fn order_hook_step_in(&mut self, locality: Locality) -> bool {
        let now_ns = self.now.observer_ns;
        let Some(place) = self.first_hook(locality) else {
            return false;
        };
        let Some(hook) = self.hooks.get(locality, place) else {
            return false;
        };
        let (agent, withdrawal) = (hook.agent(), self.withdrawal(hook));
        let needs_permit = hook.needs_permit() && withdrawal.is_none();
        if needs_permit && !self.ladders().take_hook_permit(agent, now_ns) {
            return false;
        }
        if let Some(hook) = self.hooks.take(locality, place) {
            match withdrawal {
                Some(reason) => self.withdraw(&hook, reason),
                None => self.take_hook_step(hook),
            }
        }
        true
    }

    /// Takes a hook's next step.
    fn take_hook_step(&mut self, mut hook: Hook) {
        let action = match hook.steps.get(hook.taken) {
            None => {
                let steps = hook.steps.len() as u64;
                return self.end_hook(&hook, HookOutcome::Done { steps });
            }
            Some(Step::Wait(wait)) => {
                let end_ns = self.now.observer_ns.saturating_add(nanoseconds(*wait));
                hook.taken += 1;
                return self.hooks.wait(hook, end_ns);
            }
            Some(step) => Action::of(step),
        };
        let Some(action) = action else {
            return;
        };
        // A program reports an agent, also one in a container or one that has left; a signal acts on its process.
        let refuse_foreign = matches!(action, Action::Signal(_));
        if refuse_foreign && self.slot_of(hook.agent()).is_none() {
            let outcome = HookOutcome::NotStarted(StartFailure::TargetGone);
            return self.end_hook(&hook, outcome);
        }
        let subject = hook.subject.clone();
        let in_flight = InFlight::Hook(Box::new(hook));
        self.order(in_flight, action, subject, refuse_foreign);
    }

    /// The outcome of an ordered step.
    pub(super) fn go_on_with(&mut self, mut hook: Box<Hook>) {
        hook.taken += 1;
        let steps = hook.steps.len();
        if hook.taken == steps {
            let steps = steps as u64;
            return self.end_hook(&hook, HookOutcome::Done { steps });
        }
        self.hooks.go_on(*hook);
    }

    pub(super) fn end_hook(&mut self, hook: &Hook, outcome: HookOutcome) {
        self.hooks.end(hook);
        self.publish(Fact::HookEnded {
            agent: hook.agent.clone(),
            occasion: hook.occasion,
            outcome,
            duration_ns: self.now.observer_ns.saturating_sub(hook.begun_ns),
        });
    }

    /// Ends the hook of an occasion.
    fn withdraw(&mut self, hook: &Hook, reason: WithdrawReason) {
        self.hooks.end(hook);
        self.publish(Fact::HookWithdrawn {
            agent: hook.agent.clone(),
            occasion: hook.occasion,
            reason,
        });
    }

    /// Why the rest of a hook is skipped: the operator no longer wants it, or the agent no longer needs it.
    fn withdrawal(&self, hook: &Hook) -> Option<WithdrawReason> {
        if hook.taken == hook.steps.len() {
            None
        } else if self.policy.mode != Mode::Enforce {
            Some(WithdrawReason::ModeChanged)
        } else if self.is_paused(hook.agent()) {
            Some(WithdrawReason::Paused)
        } else if hook.occasion == Occasion::Late && !self.is_late(hook.agent()) {
            Some(WithdrawReason::Returned)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(instance: u64, occasion: Occasion) -> Hook {
        let agent = Agent {
            slot: 1,
            pid: 7,
            instance,
            stream: 0,
        };
        Hook {
            agent: AgentRef {
                agent,
                name: String::new(),
                address: None,
                uid: None,
            },
            uid: Some(instance as u32),
            occasion,
            subject: Subject {
                agent,
                name: String::new(),
                status: None,
                silence_ms: 0,
                unit: None,
                user_unit: None,
                reason: occasion.name(),
                is_target: false,
                source: None,
            },
            steps: Vec::new(),
            taken: 0,
            begun_ns: 0,
        }
    }

    fn take(hooks: &mut Hooks, held: u32) -> Option<u64> {
        let place = hooks.first(Locality::Local, |hook| hook.uid == Some(held))?;
        let hook = hooks.take(Locality::Local, place)?;
        Some(hook.agent().instance)
    }

    #[test]
    fn one_hook_per_agent_and_occasion_is_under_way() {
        let mut hooks = Hooks::default();
        assert!(hooks.add(hook(1, Occasion::Late)));
        assert!(!hooks.add(hook(1, Occasion::Late)));
        assert!(hooks.add(hook(1, Occasion::Critical)));
        assert!(hooks.add(hook(2, Occasion::Late)));
        take(&mut hooks, 0);
        assert!(!hooks.add(hook(1, Occasion::Late)), "runs");
        hooks.end(&hook(1, Occasion::Late));
        assert!(hooks.add(hook(1, Occasion::Late)));
    }

    #[test]
    fn hooks_of_users_under_held_fire_delay_no_other_hooks() {
        let mut hooks = Hooks::default();
        hooks.add(hook(1, Occasion::Late));
        hooks.add(hook(2, Occasion::Late));
        assert_eq!(take(&mut hooks, 1), Some(2));
        assert_eq!(take(&mut hooks, 1), None);
        assert_eq!(take(&mut hooks, 2), Some(1));
    }

    #[test]
    fn hooks_have_a_bound() {
        let mut hooks = Hooks::default();
        for instance in 0..HOOKS_MAX as u64 {
            assert!(hooks.add(hook(instance, Occasion::Exit)));
        }
        assert!(!hooks.add(hook(u64::from(u32::MAX), Occasion::Exit)));
    }

    #[test]
    fn a_hook_that_has_waited_goes_on_before_those_that_have_not_begun() {
        let mut hooks = Hooks::default();
        hooks.wait(hook(1, Occasion::Late), 5);
        hooks.wait(hook(2, Occasion::Late), 5);
        hooks.add(hook(3, Occasion::Late));
        assert_eq!(hooks.next_wait_end_ns(), Some(5));
        hooks.end_waits(4);
        assert_eq!(take(&mut hooks, 0), Some(3));
        hooks.add(hook(4, Occasion::Late));
        hooks.end_waits(5);
        let order: Vec<u64> = std::iter::from_fn(|| take(&mut hooks, 0)).collect();
        assert_eq!(order, [1, 2, 4]);
        assert_eq!(hooks.next_wait_end_ns(), None);
    }
}
