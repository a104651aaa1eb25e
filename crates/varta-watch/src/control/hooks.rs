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
use varta_core::{Agent, Counter, Locality};

use super::recoveries::{Recoveries, Work, is_success};
use super::{Control, recovery_messages};
use crate::actions::{Ended, Subject};
use crate::report::line_limit::{LineKind, Owner};
use crate::report::messages;
use crate::settings::policy::{Mode, Occasion, Step};

/// Hooks of a kind under way at the same time; more are dropped and counted.
const HOOKS_MAX: usize = 1024;

/// When a step is tried again that the observer lacked the means for.
const POSTPONED: Duration = Duration::from_secs(1);

/// The steps for an occasion.
pub(super) struct Hook {
    agent: Agent,
    /// The user of an agent of this host.
    user: Option<u32>,
    who: messages::Who,
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

    /// Whose agent it is for.
    fn owner(&self) -> Owner {
        let address = self.who.address.map(Owner::Address);
        address
            .or(self.user.map(Owner::User))
            .unwrap_or(Owner::Others)
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
        let steps = rule.map_or(&[][..], |rule| occasion.steps(&rule.hooks));
        if steps.is_empty() || policy.mode == Mode::Observe || self.is_paused(agent) {
            return;
        }
        let who = self.name_of(agent);
        if policy.mode == Mode::DryRun {
            if self.may_tell(agent, LineKind::Hook) {
                recovery_messages::would_hook(&self.given.log, &who, occasion);
            }
            return;
        }
        if self.refusal_of(agent).is_some() {
            let owner = self.owner_of(agent);
            return self.withdrawn(&who, owner, occasion, NOT_ALLOWED);
        }
        let subject = Subject {
            is_target: matches!(occasion, Occasion::Late | Occasion::Critical),
            ..self.subject(agent, &who, occasion.name())
        };
        let is_new = self.recoveries.hooks.add(Hook {
            agent,
            user: self.recoveries.book.lineage_of(agent).user,
            who,
            occasion,
            subject,
            steps: steps.to_vec(),
            taken: 0,
            begun: Instant::now(),
        });
        if !is_new {
            self.given.counters.count(Counter::HooksDropped);
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
            self.end_hook(&hook, None);
            return false;
        };
        if let Some(why) = self.withdrawal(&hook) {
            self.recoveries.hooks.end(&hook);
            self.withdrawn(&hook.who, hook.owner(), hook.occasion, why);
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
            Err(error) if error.is_shortage() => {
                let now = Instant::now();
                self.throttle
                    .add_postponed(now, &hook.who, error.to_string());
                self.recoveries.hooks.wait(hook, now + POSTPONED);
            }
            Err(error) => self.end_hook(&hook, Some(error.to_string())),
        }
        false
    }

    /// A hook's program has ended.
    pub(super) fn hook_program_ended(&mut self, mut hook: Hook, ended: &Ended) {
        self.recoveries.core().give_back_hook(hook.agent);
        if is_success(ended) {
            hook.taken += 1;
            if hook.taken == hook.steps.len() {
                return self.end_hook(&hook, None);
            }
            return self.recoveries.hooks.go_on(hook);
        }
        let program = match &hook.steps[hook.taken] {
            Step::Run(run) => run.called(),
            Step::Signal(_) | Step::Wait(_) => String::new(),
        };
        let problem = format!("{program}: {}", recovery_messages::end_of(ended));
        self.end_hook(&hook, Some(problem));
    }

    fn end_hook(&mut self, hook: &Hook, problem: Option<String>) {
        self.recoveries.hooks.end(hook);
        self.given.counters.count(match problem {
            None => Counter::HooksDone,
            Some(_) => Counter::HooksFailed,
        });
        let result = problem.map_or(Ok(hook.steps.len()), Err);
        let took = hook.begun.elapsed();
        if result.is_err() || self.may_tell_of(hook.owner(), LineKind::Hook) {
            recovery_messages::hooked(&self.given.log, &hook.who, hook.occasion, &result, took);
        }
    }

    /// Nothing more is done for an occasion.
    fn withdrawn(&mut self, who: &messages::Who, owner: Owner, occasion: Occasion, why: &str) {
        self.given.counters.count(Counter::HooksWithdrawn);
        if self.may_tell_of(owner, LineKind::Hook) {
            recovery_messages::withdrawn(&self.given.log, who, occasion, why);
        }
    }

    /// Why nothing more is done, if it is not what the operator wants by now or not what the agent needs.
    fn withdrawal(&self, hook: &Hook) -> Option<&'static str> {
        if self.recoveries.policy.mode != Mode::Enforce {
            Some("--recovery-mode is another one by now")
        } else if self.is_paused(hook.agent) {
            Some("the agent is paused")
        } else if hook.occasion == Occasion::Late && !self.is_late(hook.agent) {
            Some("the agent is back")
        } else {
            None
        }
    }
}

/// Why nothing is done about who may be anybody.
const NOT_ALLOWED: &str = "recovery may not act on agents that are heard this way";

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
            who: messages::Who {
                pid: agent.pid,
                name: String::new(),
                address: None,
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
