//! The policy wing: one state machine that decides what to do after each event.
//!
//! [`Engine::handle`] takes [`Input`]s, [`Engine::poll_effect`] returns [`Effect`]s, and [`Engine::next_timeout`]
//! returns the latest time of the next [`Input::Timeout`]. The engine makes every decision about agents off the
//! beat path: which rule applies, what is done about a silence and when, whether fire is held, what an operator's
//! pause means, whether a hook still applies.
//!
//! It reads no clock and has no side effects. The [`SlotTable`] determines which agent is silent; events only determine
//! when to read it, so a lost event can cost a report, never a wrong action.
//!
//! How to drive it: feed an input; carry out effects until there are none, feeding the outcome of each at once; when
//! there is no other input and the next timeout has come, feed [`Input::Timeout`] and carry out again.
//!
//! Bounds: a record per slot, a ladder position per slot (made when a ladder is first needed), 1024 hooks per
//! locality, as many orders in flight as [`RecoveryLimits::max_in_flight`](crate::policy::RecoveryLimits) and one
//! more, 1024 budgets carried over, 1024 budgets of users. Effects are bounded by what one input can cause: a few per
//! agent for a policy, a few for anything else.

mod agents;
mod effect;
mod hold_fire;
mod hooks;
mod input;
mod ladders;
mod occurrences;
mod outcomes;
mod pauses;
mod reload;
mod rule_assignments;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::agent::Agent;
use crate::fact::{AgentRef, Fact};
use crate::ladder::{self, Ladders};
use crate::policy::{Policy, SignalStep};
use crate::slot::{Slot, SlotState, SlotTable};
use agents::{AgentRecord, Agents};
use hold_fire::HostWatch;
use hooks::{Hook, Hooks};
use pauses::PauseEnds;
use rule_assignments::Expectations;

pub use effect::{Action, AgentGone, AgentInfo, AgentUpdate, Effect, StepOrder, Subject};
pub use input::{ActionId, Command, Input, Now, Outcome, ProcessFacts, ProgramEnd};

/// What does not change while the engine runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// Spreads the pauses of agents that failed together.
    pub seed: u64,
    /// The observer's own user: no budget of users applies to it.
    pub own_uid: u32,
}

/// Figures for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Running programs.
    pub in_flight: usize,
    /// Whether fire is held for any agent.
    pub is_fire_held: bool,
    /// Agents that were expected in time, did not join and are still missing.
    pub agents_missing: u64,
}

/// An order without its last outcome.
#[derive(Debug)]
enum InFlight {
    Ladder {
        action: ladder::Action,
        /// The agent as named when the step was ordered; it may have left since.
        agent: AgentRef,
        /// The step, if it sends a signal.
        signal: Option<SignalStep>,
    },
    Hook(Box<Hook>),
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    table: Arc<SlotTable>,
    policy: Arc<Policy>,
    agents: Agents,
    expectations: Expectations,
    /// Made when a ladder is first needed: most observers only report.
    ladders: Option<Box<Ladders>>,
    /// Since when ladders are only rehearsed, if they are, on the observer's clock.
    rehearsed_since_ns: u64,
    host: HostWatch,
    hooks: Hooks,
    pause_ends: PauseEnds,
    in_flight: BTreeMap<ActionId, InFlight>,
    last_action: u64,
    effects: VecDeque<Effect>,
    now: Now,
    /// Steps are ordered until there is nothing left to order.
    may_order: bool,
}

impl Engine {
    /// Starts with no agents. Those in `table` become known when their joins are fed.
    pub fn new(
        options: EngineOptions,
        table: Arc<SlotTable>,
        policy: Arc<Policy>,
        now: Now,
    ) -> Self {
        let mut expectations = Expectations::default();
        expectations.replace_rules(&[], &policy, now.observer_ns);
        Self {
            options,
            table,
            host: HostWatch::new(&policy, now.observer_ns),
            policy,
            agents: Agents::default(),
            expectations,
            ladders: None,
            rehearsed_since_ns: 0,
            hooks: Hooks::default(),
            pause_ends: PauseEnds::default(),
            in_flight: BTreeMap::new(),
            last_action: 0,
            effects: VecDeque::new(),
            now,
            may_order: false,
        }
    }

    /// Takes an input. `now` must not be before that of an earlier input.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.now = now;
        match input {
            Input::Event { event, facts } => self.on_event(&event, facts),
            Input::Outcome { action, outcome } => self.on_outcome(action, outcome),
            Input::Command { ticket, command } => self.on_command(ticket, command),
            Input::Pressure(pressure) => self.on_pressure(pressure),
            Input::Policy { policy, programs } => self.on_policy(policy, programs),
            Input::Timeout => self.on_timeout(),
        }
    }

    /// The next thing to do; `None` when there is nothing to do before the next input.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            if !self.may_order || self.host.is_asked() {
                return None;
            }
            // Ladders come first.
            self.may_order = self.order_next_step() || self.order_next_hook_step();
        }
    }

    /// The latest time of the next [`Input::Timeout`], on the observer's clock; in the past if it is due. `None`
    /// if nothing is due before another input.
    pub fn next_timeout(&self) -> Option<u64> {
        let next_order_ns = self.next_order_ns().filter(|_| !self.host.is_asked());
        let times = [
            next_order_ns,
            self.host.next_held_look_ns(),
            self.hooks.next_wait_end_ns(),
            self.pause_ends.next_ns(),
            self.expectations.next_due_ns(),
        ];
        times.into_iter().flatten().min()
    }

    /// Figures for the metrics.
    pub fn levels(&self) -> Levels {
        Levels {
            in_flight: self.ladders.as_ref().map_or(0, |core| core.in_flight()),
            is_fire_held: self.host.is_any_held(),
            agents_missing: self.expectations.count_missing(&self.policy),
        }
    }

    fn on_timeout(&mut self) {
        let now_ns = self.now.observer_ns;
        self.hooks.end_waits(now_ns);
        self.end_pauses();
        for fact in self.expectations.take_missing(&self.policy, now_ns) {
            self.publish(fact);
        }
        self.look_at_host();
        self.may_order = true;
    }

    /// When a step may be due to be ordered.
    fn next_order_ns(&self) -> Option<u64> {
        let ladders = self.ladders.as_ref().and_then(|core| core.next_due_ns());
        let hooks = self.next_hook_step_ns();
        [ladders, hooks].into_iter().flatten().min()
    }

    fn publish(&mut self, fact: Fact) {
        self.publish_at(self.now.observer_ns, fact);
    }

    fn publish_at(&mut self, observer_ns: u64, fact: Fact) {
        let fact = Box::new(fact);
        self.effects
            .push_back(Effect::Publish { observer_ns, fact });
    }

    /// Records the outcome of a recovery with its agent, and publishes it.
    fn publish_outcome(&mut self, agent: Agent, fact: Fact) {
        if let (Some(record), Some(outcome)) = (self.agents.get_mut(agent), fact.outcome()) {
            let info = record.info_mut();
            info.recovery = Some(outcome);
            // Any later fact belongs to another attempt.
            info.gave_up = matches!(fact, Fact::GaveUp { .. });
            self.show(agent);
        }
        self.publish(fact);
    }

    /// Publishes the current state of an agent to readers.
    fn show(&mut self, agent: Agent) {
        let record = self.agents.get(agent);
        let info = record.map(|record| Arc::clone(&record.info));
        self.effects.push_back(Effect::Directory { agent, info });
    }

    fn agent_ref(&self, agent: Agent) -> AgentRef {
        let record = self.agents.get(agent);
        AgentRef {
            agent,
            name: record.map_or_else(String::new, |record| record.info.name.clone()),
            address: record.and_then(|record| record.info.address),
            uid: record.and_then(|record| record.info.uid),
        }
    }

    /// The slot of an agent, as long as the agent owns it.
    fn slot_of(&self, agent: Agent) -> Option<Slot> {
        let slot = self.table.read(agent.slot)?;
        (slot.agent(agent.slot) == agent).then_some(slot)
    }

    /// The threshold that applies to an agent by its rule.
    fn threshold_ns(&self, agent: Agent) -> Option<u64> {
        let deadlines = self.agents.get(agent)?.deadlines?;
        Some(deadlines.threshold_ns)
    }

    /// Whether an agent has stalled, by the threshold that applies now too.
    fn is_silent(&self, agent: Agent) -> bool {
        let slot = self.slot_of(agent).filter(|slot| slot.state.is_latched());
        let silence_ns = slot.map(|slot| slot.silence_ns(self.now.attention_ns));
        silence_ns.is_some_and(|silence_ns| Some(silence_ns) >= self.threshold_ns(agent))
    }

    /// Whether an agent has been silent beyond its soft tier.
    fn is_late(&self, agent: Agent) -> bool {
        let slot = self.slot_of(agent);
        slot.is_some_and(|slot| slot.state == SlotState::Late || slot.state.is_latched())
    }

    /// Whether an operator paused an agent; the beat path may not have applied it yet.
    fn is_paused(&self, agent: Agent) -> bool {
        let record = self.agents.get(agent);
        let until_ns = record.and_then(|record| record.paused_until_ns);
        until_ns.is_some_and(|until_ns| until_ns > self.now.observer_ns)
    }
}
