//! Stalls and their ladders: the ladder of an agent, and the next step to order.

use super::effect::{Action, Effect, StepOrder, Subject};
use super::input::ActionId;

use super::rule_assignments::nanoseconds;
use super::{AgentRecord, Engine, InFlight};
use crate::agent::BeatOrigin;
use crate::agent::{Agent, Locality};
use crate::fact::{DeferReason, Fact, Occasion, StartFailure, UntrustedOrigin};
use crate::ladder::{self as ladder, ActionEnd, GaveUp, Ladders, Next, Plan, SilenceEnded};
use crate::permits::{PermitLimits, UserBudget};
use crate::policy::{AgentRule, Ladder, LadderChoice, Mode, Policy, Step};

/// The occasion of a ladder, as placeholders name it.
const STALL: &str = "stall";

impl Engine {
    /// An agent has stalled.
    pub(super) fn on_stall(&mut self, agent: Agent, now_ns: u64) {
        if self.policy.mode == Mode::Observe || self.is_paused(agent) {
            return;
        }
        let Some(ladder) = self.ladder_of(agent) else {
            return;
        };
        let refusal = self.refusal_of(agent);
        if let Some(reason) = refusal {
            let fact = Fact::RecoveryRefused {
                agent: self.agent_ref(agent),
                reason,
            };
            self.publish_outcome(agent, fact);
        }
        // An agent that may not be acted on has no ladder.
        let ladder = Some(ladder).filter(|_| refusal.is_none());
        let reason = match self.ladders().on_stall(agent, ladder, now_ns) {
            Plan::TooRecent => DeferReason::TooRecent,
            Plan::StillActing => DeferReason::StillActing,
            Plan::Now | Plan::Nothing => return,
        };
        let fact = Fact::RecoveryDeferred {
            agent: self.agent_ref(agent),
            reason,
        };
        self.publish_outcome(agent, fact);
    }

    /// A stalled agent beats again.
    pub(super) fn on_return(&mut self, agent: Agent) {
        if self.end_silence(agent).acted && self.policy.mode != Mode::DryRun {
            let fact = Fact::Recovered {
                agent: self.agent_ref(agent),
            };
            self.publish_outcome(agent, fact);
        }
        self.hook(agent, Occasion::Recovered);
    }

    /// The silence of an agent is over, one way or the other.
    pub(super) fn end_silence(&mut self, agent: Agent) -> SilenceEnded {
        if let Some(record) = self.agents.get_mut(agent)
            && record.info.gave_up
        {
            record.info_mut().gave_up = false;
            self.show(agent);
        }
        let now_ns = self.now.observer_ns;
        let ladders = self.ladders.as_mut();
        ladders.map_or_else(SilenceEnded::default, |core| {
            core.on_silence_ended(agent, now_ns)
        })
    }

    /// An agent has left.
    pub(super) fn on_gone(&mut self, agent: Agent) {
        let Some(record) = self.agents.get(agent) else {
            return;
        };
        if let Some(ladders) = &mut self.ladders {
            ladders.on_gone(agent, record.lineage, self.now.observer_ns);
        }
        if let Some(rule) = record.rule {
            self.expectations.remove(rule);
        }
        self.set_pause(agent, None);
        self.agents.remove(agent);
        self.show(agent);
    }

    /// Starts the ladder of a silent agent that had none when its stall was reported.
    pub(super) fn recover_forgotten(&mut self, agent: Agent) {
        let ladders = self.ladders.as_ref();
        let is_known = ladders.is_some_and(|core| core.is_silent(agent));
        if !is_known && self.is_silent(agent) {
            self.on_stall(agent, self.now.observer_ns);
        }
    }

    /// The ladders, made when they are first needed.
    pub(super) fn ladders(&mut self) -> &mut Ladders {
        self.ladders.get_or_insert_with(|| {
            let mut core = Ladders::new(
                self.table.capacity(),
                rhythms(&self.policy),
                limits(&self.policy, self.options.own_uid),
                self.options.seed,
            );
            for record in self.agents.iter() {
                core.on_join(record.agent, record.lineage);
            }
            for locality in Locality::ALL {
                core.hold(locality, self.host.is_held(locality));
            }
            for uid in self.host.held_users() {
                core.hold_user(uid, true);
            }
            Box::new(core)
        })
    }

    /// The rule that applies to an agent.
    pub(super) fn rule_of(&self, agent: Agent) -> Option<&AgentRule> {
        let rule = self.agents.get(agent)?.rule?;
        self.policy.rules.get(rule)
    }

    fn ladder_of(&self, agent: Agent) -> Option<u32> {
        ladder_of(&self.policy, self.agents.get(agent)?)
    }

    /// Why the origin of an agent's beats forbids acting on it (observer spec 4.2).
    pub(super) fn refusal_of(&self, agent: Agent) -> Option<UntrustedOrigin> {
        refusal(self.agents.get(agent)?)
    }

    /// Orders the next due step of a ladder, or reports why it is not ordered; false if nothing is due.
    pub(super) fn order_next_step(&mut self) -> bool {
        let now_ns = self.now.observer_ns;
        let next = self.ladders.as_mut().and_then(|core| core.next(now_ns));
        match next {
            None => return false,
            Some(Next::Act(action)) => self.order_step(action),
            Some(Next::Waits(agent)) => {
                let limits = &self.policy.limits;
                let fact = Fact::WaitsForPermit {
                    agent: self.agent_ref(agent),
                    max_in_flight: limits.max_in_flight as u64,
                    starts_per_second: limits.starts_per_second,
                };
                self.publish_outcome(agent, fact);
            }
            Some(Next::UserWaits(agent, uid)) => {
                let limits = &self.policy.limits;
                let fact = Fact::WaitsForUserBudget {
                    agent: self.agent_ref(agent),
                    uid,
                    budget: limits.user_budget,
                    window_ns: nanoseconds(limits.user_window),
                };
                self.publish_outcome(agent, fact);
            }
            Some(Next::GaveUp(agent, reason)) => self.give_up(agent, reason),
        }
        true
    }

    /// Orders a step for an agent that is still silent.
    fn order_step(&mut self, action: ladder::Action) {
        let agent = action.agent;
        let still_silent = self.is_silent(agent) && !self.is_paused(agent);
        let ladder = self.policy.ladders.get(action.ladder as usize);
        let step = ladder.and_then(|ladder| ladder.steps.get(action.step as usize));
        let step = step.filter(|_| still_silent).and_then(Action::of);
        let Some(step) = step else {
            let fact = Fact::StepFailed {
                agent: self.agent_ref(agent),
                reason: StartFailure::TargetGone,
            };
            self.publish_outcome(agent, fact);
            return self.end_action(action, ActionEnd::TargetGone);
        };
        let subject = self.subject(agent, STALL, true);
        let signal = match &step {
            Action::Signal(signal) => Some(*signal),
            Action::Run(_) => None,
        };
        let in_flight = InFlight::Ladder {
            action,
            agent: self.agent_ref(agent),
            signal,
        };
        self.order(in_flight, step, subject, true);
    }

    /// Emits the effect that takes a step.
    pub(super) fn order(
        &mut self,
        in_flight: InFlight,
        action: Action,
        subject: Subject,
        refuse_foreign: bool,
    ) {
        self.last_action += 1;
        let id = ActionId(self.last_action);
        self.in_flight.insert(id, in_flight);
        let agent = subject.agent;
        let uid = self.slot_of(agent).map(|slot| slot.uid);
        let order = StepOrder {
            id,
            action,
            is_rehearsal: self.policy.mode == Mode::DryRun,
            refuse_foreign: refuse_foreign && !self.policy.recover_foreign && !agent.is_remote(),
            uid: uid.unwrap_or(crate::agent::UID_UNKNOWN),
            subject,
        };
        self.effects.push_back(Effect::TakeStep(Box::new(order)));
    }

    pub(super) fn end_action(&mut self, action: ladder::Action, end: ActionEnd) {
        let now_ns = self.now.observer_ns;
        if let Some(ladders) = &mut self.ladders {
            ladders.on_end(action, end, now_ns);
        }
    }

    fn give_up(&mut self, agent: Agent, reason: GaveUp) {
        let fact = Fact::GaveUp {
            agent: self.agent_ref(agent),
            reason,
            rehearsed: self.policy.mode == Mode::DryRun,
        };
        self.publish_outcome(agent, fact);
        self.hook(agent, Occasion::GaveUp);
    }

    pub(super) fn subject(&self, agent: Agent, reason: &'static str, is_target: bool) -> Subject {
        let slot = self.slot_of(agent);
        let silence_ns = slot.map_or(0, |slot| slot.silence_ns(self.now.attention_ns));
        let record = self.agents.get(agent);
        let facts = record.and_then(|record| record.facts.as_ref());
        let process = facts.map(|facts| &facts.process);
        Subject {
            agent,
            name: record.map_or_else(String::new, |record| record.info.name.clone()),
            status: slot.map(|slot| slot.status),
            silence_ms: silence_ns / 1_000_000,
            unit: process.and_then(|process| process.unit.clone()),
            user_unit: process.and_then(|process| process.user_unit.clone()),
            reason,
            is_target,
            source: record.and_then(|record| record.info.address),
        }
    }
}

/// The ladder of an agent.
pub(super) fn ladder_of(policy: &Policy, record: &AgentRecord) -> Option<u32> {
    let rule = record.rule.and_then(|rule| policy.rules.get(rule));
    let choice = rule.map_or(LadderChoice::Default, |rule| rule.ladder);
    let ladder = match choice {
        LadderChoice::Default => policy.default_ladder,
        LadderChoice::None => None,
        LadderChoice::Named(ladder) => Some(ladder),
    };
    ladder.and_then(|ladder| u32::try_from(ladder).ok())
}

/// Why the origin of an agent's beats forbids acting on it.
pub(super) fn refusal(record: &AgentRecord) -> Option<UntrustedOrigin> {
    match record.origin? {
        BeatOrigin::NetworkUnverified if record.info.sealed => Some(UntrustedOrigin::SecureUdp),
        BeatOrigin::NetworkUnverified => Some(UntrustedOrigin::PlainUdp),
        BeatOrigin::SocketModeOnly => Some(UntrustedOrigin::SocketModeOnly),
        BeatOrigin::KernelAttested | BeatOrigin::OperatorAttestedTransport => None,
    }
}

/// The rhythm of the ladders, without what they do.
pub(super) fn rhythms(policy: &Policy) -> Vec<ladder::LadderTiming> {
    let step = |step: &Step| match step {
        Step::Run(run) => ladder::StepTiming::Act {
            grace_ns: nanoseconds(run.wait),
            needs_permit: true,
        },
        Step::Signal(signal) => ladder::StepTiming::Act {
            grace_ns: nanoseconds(signal.wait),
            needs_permit: false,
        },
        Step::Wait(wait) => ladder::StepTiming::Wait {
            wait_ns: nanoseconds(*wait),
        },
    };
    let rhythm = |what: &Ladder| ladder::LadderTiming {
        tag: what.fingerprint(),
        steps: what.steps.iter().map(step).collect(),
        debounce_ns: nanoseconds(what.debounce),
        budget: what.budget,
        window_ns: nanoseconds(what.window),
        backoff_ns: nanoseconds(what.backoff),
        backoff_max_ns: nanoseconds(what.backoff_max),
        reset_after_ns: nanoseconds(what.reset_after),
    };
    policy.ladders.iter().map(rhythm).collect()
}

pub(super) fn limits(policy: &Policy, own_uid: u32) -> PermitLimits {
    let limits = &policy.limits;
    PermitLimits {
        max_in_flight: limits.max_in_flight,
        starts_per_second: limits.starts_per_second,
        user_budget: UserBudget {
            starts: limits.user_budget,
            window_ns: nanoseconds(limits.user_window),
            exempt: own_uid,
        },
    }
}
