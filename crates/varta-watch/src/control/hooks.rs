//! Hooks: steps for other occasions than a stall. An agent is late, calls itself critical, has died, is back, or was
//! given up.
//!
//! A hook takes its steps in order until one fails, and each is looked at anew before it is taken: what was right
//! when the agent was late may be wrong when it is back or paused. Hooks count against the limits of recovery, of
//! which they have a part; a hook that waits takes no place. Nothing is started while fire is held.
//! Bounds: one hook per agent and occasion, and `HOOKS_MAX` of agents here and as many of those elsewhere.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use varta_core::fact::{HookOutcome, Occasion, WithdrawReason};
use varta_core::{Agent, AgentRef, Fact, Locality};

use super::recoveries::{Recoveries, Work};
use super::{Control, nanoseconds};
use crate::actions::{Ended, Subject, is_shortage};
use crate::settings::policy::{Mode, Step};

/// Hooks of a kind under way at the same time; more are dropped and counted.
const HOOKS_MAX: usize = 1024;

/// When a step is tried again that the observer lacked the means for.
const POSTPONED: Duration = Duration::from_secs(1);

/// The steps for an occasion.
pub(super) struct Hook {
    agent: Agent,
    /// The user of an agent of this host.
    user: Option<u32>,
    who: AgentRef,
    occasion: Occasion,
    subject: Subject,
    steps: Vec<Step>,
    taken: usize,
    begun: Instant,
}

impl Hook {
    pub(super) const fn agent(&self) -> Agent {
        self.agent
    }

    /// Whether its next step takes a place.
    pub(super) fn needs_place(&self) -> bool {
        matches!(self.steps.get(self.taken), Some(Step::Run(_)))
    }
}

/// Hooks under way.
#[derive(Default)]
pub(super) struct Hooks {
    /// Those whose next step can be taken when there is room, oldest first, by kind.
    ready: [VecDeque<Hook>; 2],
    /// Those that take a step that waits, by when that is over. The number keeps equal times apart.
    waiting: BTreeMap<(Instant, u64), Hook>,
    waits: u64,
    under_way: [HashSet<(Agent, Occasion)>; 2],
}

impl Hooks {
    /// False if there is no room for another one, or the same is under way.
    fn add(&mut self, hook: Hook) -> bool {
        let kind = hook.agent.locality() as usize;
        let under_way = &mut self.under_way[kind];
        let is_new = under_way.len() < HOOKS_MAX && under_way.insert((hook.agent, hook.occasion));
        if is_new {
            self.ready[kind].push_back(hook);
        }
        is_new
    }

    /// The hook whose turn it is, of those of users for whom fire is not held.
    pub(super) fn first(&self, kind: Locality, is_held: impl Fn(u32) -> bool) -> Option<&Hook> {
        let mut ready = self.ready[kind as usize].iter();
        ready.find(|hook| !hook.user.is_some_and(&is_held))
    }

    /// Takes out that hook.
    fn take(&mut self, kind: Locality, is_held: impl Fn(u32) -> bool) -> Option<Hook> {
        let ready = &mut self.ready[kind as usize];
        let is_first = |hook: &Hook| !hook.user.is_some_and(&is_held);
        ready.remove(ready.iter().position(is_first)?)
    }

    /// When the next wait is over.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((end, _), _)| *end)
    }

    /// Those that have waited long enough can go on, the first of them first.
    pub(super) fn end_waits(&mut self, now: Instant) {
        let later = self.waiting.split_off(&(now, u64::MAX));
        let over = std::mem::replace(&mut self.waiting, later);
        for hook in over.into_values().rev() {
            self.go_on(hook);
        }
    }

    /// The next step can be taken: before those that have not begun.
    fn go_on(&mut self, hook: Hook) {
        self.ready[hook.agent.locality() as usize].push_front(hook);
    }

    fn wait(&mut self, hook: Hook, end: Instant) {
        self.waits += 1;
        self.waiting.insert((end, self.waits), hook);
    }

    fn end(&mut self, hook: &Hook) {
        let kind = hook.agent.locality() as usize;
        self.under_way[kind].remove(&(hook.agent, hook.occasion));
    }
}

impl Control {
    /// Takes the steps for an occasion, if the agent's rule has any.
    pub(super) fn hook(&mut self, agent: Agent, occasion: Occasion) {
        let policy = Arc::clone(&self.recoveries.policy);
        let rule = self.recoveries.book.rule_of(&policy, agent);
        let steps = rule.map_or(&[][..], |rule| rule.hooks.on(occasion));
        if steps.is_empty() || policy.mode == Mode::Observe || self.is_paused(agent) {
            return;
        }
        let who = self.agent_ref(agent);
        if policy.mode == Mode::DryRun {
            let agent = who;
            return self.publish(&Fact::HookRehearsed { agent, occasion });
        }
        if self.is_untrusted(agent) {
            return self.publish_withdrawn(who, occasion, WithdrawReason::UntrustedOrigin);
        }
        let subject = Subject {
            is_target: matches!(occasion, Occasion::Late | Occasion::Critical),
            ..self.subject(agent, who.name.clone(), occasion.name())
        };
        let is_new = self.recoveries.hooks.add(Hook {
            agent,
            user: self.recoveries.book.lineage_of(agent).user,
            who: who.clone(),
            occasion,
            subject,
            steps: steps.to_vec(),
            taken: 0,
            begun: Instant::now(),
        });
        if !is_new {
            let agent = who;
            self.publish(&Fact::HookDropped { agent, occasion });
        }
    }

    /// Takes the steps that are due and for which there is room.
    pub(super) fn take_hook_steps(&mut self, now_ns: u64) {
        for kind in Locality::ALL {
            while !self.recoveries.is_held(kind)
                && let Some(hook) = self
                    .recoveries
                    .hooks
                    .first(kind, |user| self.recoveries.is_held_for(user))
            {
                let agent = hook.agent;
                let needs_place = hook.needs_place() && self.withdrawal(hook).is_none();
                if needs_place && !self.recoveries.core().take_hook_permit(agent, now_ns) {
                    break;
                }
                let Recoveries { hooks, holds, .. } = &mut self.recoveries;
                let hook = hooks.take(kind, |user| holds.is_held_for(user));
                let runs = hook.is_some_and(|hook| self.take_hook_step(hook));
                if needs_place && !runs {
                    self.recoveries.core().give_back_hook(agent);
                }
            }
        }
    }

    /// Takes a hook's next step; true if that runs by now.
    fn take_hook_step(&mut self, mut hook: Hook) -> bool {
        let Some(step) = hook.steps.get(hook.taken) else {
            self.end_hook(hook, None);
            return false;
        };
        if let Some(reason) = self.withdrawal(&hook) {
            self.recoveries.hooks.end(&hook);
            self.publish_withdrawn(hook.who, hook.occasion, reason);
            return false;
        }
        let result = match step {
            Step::Wait(wait) => {
                let end = Instant::now() + *wait;
                hook.taken += 1;
                self.recoveries.hooks.wait(hook, end);
                return false;
            }
            Step::Signal(signal) => self
                .check_reach(hook.agent)
                .and_then(|()| self.signal(signal, hook.agent))
                .map(|_| ()),
            Step::Run(run) => {
                let policy = &self.recoveries.policy;
                let runner = &self.recoveries.runner;
                match runner.start(run, &policy.children, &hook.subject) {
                    Ok(running) => {
                        self.recoveries.working.spawn(async move {
                            let ended = running.wait().await;
                            let hook = Box::new(hook);
                            Work::Hook { hook, ended }
                        });
                        return true;
                    }
                    Err(error) => Err(error),
                }
            }
        };
        match result {
            Ok(()) => {
                hook.taken += 1;
                self.recoveries.hooks.go_on(hook);
            }
            Err(reason) if is_shortage(&reason) => {
                let postponed = Fact::StepPostponed {
                    agent: hook.who.clone(),
                    hook: Some(hook.occasion),
                    reason,
                    count: 1,
                };
                self.publish(&postponed);
                self.recoveries.hooks.wait(hook, Instant::now() + POSTPONED);
            }
            Err(reason) => self.end_hook(hook, Some(HookOutcome::NotStarted(reason))),
        }
        false
    }

    /// A hook's program has ended.
    pub(super) fn hook_program_ended(&mut self, mut hook: Hook, ended: Ended) {
        self.recoveries.core().give_back_hook(hook.agent);
        if ended.exit.is_success() {
            hook.taken += 1;
            if hook.taken == hook.steps.len() {
                return self.end_hook(hook, None);
            }
            return self.recoveries.hooks.go_on(hook);
        }
        let program = match &hook.steps[hook.taken] {
            Step::Run(run) => run.called(),
            Step::Signal(_) | Step::Wait(_) => String::new(),
        };
        let exit = ended.exit;
        self.end_hook(hook, Some(HookOutcome::ProgramFailed { program, exit }));
    }

    /// A hook has ended, with all of its steps or by a failure.
    fn end_hook(&mut self, hook: Hook, failure: Option<HookOutcome>) {
        self.recoveries.hooks.end(&hook);
        let steps = hook.steps.len() as u64;
        let ended = Fact::HookEnded {
            agent: hook.who,
            occasion: hook.occasion,
            outcome: failure.unwrap_or(HookOutcome::Done { steps }),
            duration_ns: nanoseconds(hook.begun.elapsed()),
        };
        self.publish(&ended);
    }

    fn publish_withdrawn(&mut self, agent: AgentRef, occasion: Occasion, reason: WithdrawReason) {
        let withdrawn = Fact::HookWithdrawn {
            agent,
            occasion,
            reason,
        };
        self.publish(&withdrawn);
    }

    /// Why nothing more is done, if it is not what the operator wants by now or not what the agent needs.
    fn withdrawal(&self, hook: &Hook) -> Option<WithdrawReason> {
        if self.recoveries.policy.mode != Mode::Enforce {
            Some(WithdrawReason::ModeChanged)
        } else if self.is_paused(hook.agent) {
            Some(WithdrawReason::Paused)
        } else if hook.occasion == Occasion::Late && !self.is_late(hook.agent) {
            Some(WithdrawReason::Returned)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hook(instance: u64, occasion: Occasion) -> Hook {
        let agent = Agent {
            slot: 1,
            pid: 7,
            instance,
            stream: 0,
        };
        Hook {
            agent,
            user: Some(instance as u32),
            who: AgentRef {
                agent,
                name: String::new(),
                address: None,
                uid: None,
            },
            occasion,
            subject: Subject {
                agent,
                name: String::new(),
                status: String::new(),
                silence_ms: 0,
                unit: None,
                user_unit: None,
                reason: occasion.name(),
                is_target: false,
                source: None,
            },
            steps: Vec::new(),
            taken: 0,
            begun: Instant::now(),
        }
    }

    fn take(hooks: &mut Hooks) -> Option<(u64, Occasion)> {
        let hook = hooks.ready[Locality::Local as usize].pop_front()?;
        Some((hook.agent.instance, hook.occasion))
    }

    #[test]
    fn one_hook_per_agent_and_occasion_is_under_way() {
        let mut hooks = Hooks::default();
        assert!(hooks.add(hook(1, Occasion::Late)));
        assert!(!hooks.add(hook(1, Occasion::Late)));
        assert!(hooks.add(hook(1, Occasion::Critical)));
        assert!(hooks.add(hook(2, Occasion::Late)));
        take(&mut hooks);
        assert!(!hooks.add(hook(1, Occasion::Late)), "runs");
        hooks.end(&hook(1, Occasion::Late));
        assert!(hooks.add(hook(1, Occasion::Late)));
    }

    #[test]
    fn hooks_of_users_for_whom_fire_is_held_keep_no_others_waiting() {
        let mut hooks = Hooks::default();
        hooks.add(hook(1, Occasion::Late));
        hooks.add(hook(2, Occasion::Late));
        let taken = |hooks: &mut Hooks, held: u32| {
            let hook = hooks.take(Locality::Local, |user| user == held)?;
            Some(hook.agent.instance)
        };
        assert_eq!(taken(&mut hooks, 1), Some(2));
        assert_eq!(taken(&mut hooks, 1), None);
        assert_eq!(taken(&mut hooks, 2), Some(1));
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
    fn who_has_waited_goes_on_before_those_that_have_not_begun() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut hooks = Hooks::default();
        hooks.wait(hook(1, Occasion::Late), at(5));
        hooks.wait(hook(2, Occasion::Late), at(5));
        hooks.add(hook(3, Occasion::Late));
        assert_eq!(hooks.next_due(), Some(at(5)));
        hooks.end_waits(at(4));
        assert_eq!(hooks.ready[0].len(), 1);
        hooks.end_waits(at(5));
        assert_eq!(hooks.ready[0].len(), 3);
        assert_eq!(take(&mut hooks), Some((1, Occasion::Late)));
        assert_eq!(take(&mut hooks), Some((2, Occasion::Late)));
        assert_eq!(take(&mut hooks), Some((3, Occasion::Late)));
        assert_eq!(hooks.next_due(), None);
    }
}
