//! What to do about a stalled agent, and when; never how.
//!
//! One action per silence. What cannot be done now (debounce, too many at once) and what failed is
//! deferred and tried again while the agent stays silent; it is never forgotten. At most one action
//! is in flight per agent and a fixed number altogether, so that a mass stall cannot become a fork
//! bomb. The caller runs the actions and says how they ended.

use crate::event::Agent;
use crate::wheel::Wheel;

/// Actions in flight at the same time unless told otherwise.
pub const DEFAULT_MAX_IN_FLIGHT: usize = 8;

/// The pause after a first failure, if the debounce is shorter: 1 s.
const BACKOFF_MIN_NS: u64 = 1_000_000_000;

/// The longest pause between two attempts: 60 s, or the debounce if that is longer.
const BACKOFF_MAX_NS: u64 = 60_000_000_000;

/// Limits on what may be done.
#[derive(Clone, Copy, Debug)]
pub struct RecoveryPolicy {
    /// Least time between two actions on the same agent.
    pub debounce_ns: u64,
    /// Most actions in flight together; at least 1.
    pub max_in_flight: usize,
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionEnd {
    /// The command succeeded: wait for the agent to come back.
    Handled,
    /// It could not be started, or failed: try again later.
    Failed,
    /// The process it was meant for is gone: nothing to do.
    TargetGone,
}

/// The answer to a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// To be acted on as soon as there is room.
    Now,
    /// The last action on this agent is too recent, or still running: to be acted on later.
    Deferred,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    agent: Agent,
    /// The agent is silent and nothing has handled that yet.
    wanted: bool,
    running: bool,
    /// It came back and fell silent again while the action ran.
    again: bool,
    started_ns: Option<u64>,
    failures: u32,
}

impl Entry {
    /// When the debounce allows the next action.
    fn due_ns(&self, debounce_ns: u64) -> u64 {
        self.started_ns
            .map_or(0, |started_ns| started_ns.saturating_add(debounce_ns))
    }
}

/// The state of all recoveries, by slot.
#[derive(Debug)]
pub struct Recovery {
    policy: RecoveryPolicy,
    entries: Box<[Entry]>,
    wheel: Wheel,
    in_flight: usize,
}

impl Recovery {
    /// For a tracker with `capacity` slots.
    pub fn new(capacity: usize, policy: RecoveryPolicy) -> Self {
        let nobody = Entry {
            agent: Agent {
                slot: 0,
                pid: 0,
                instance: 0,
            },
            wanted: false,
            running: false,
            again: false,
            started_ns: None,
            failures: 0,
        };
        Self {
            policy: RecoveryPolicy {
                max_in_flight: policy.max_in_flight.max(1),
                ..policy
            },
            entries: vec![nobody; capacity].into_boxed_slice(),
            wheel: Wheel::new(capacity),
            in_flight: 0,
        }
    }

    /// An agent has stalled.
    pub fn on_stall(&mut self, agent: Agent, now_ns: u64) -> Plan {
        let debounce_ns = self.policy.debounce_ns;
        let Some(entry) = self.entries.get_mut(agent.slot as usize) else {
            return Plan::Deferred;
        };
        if entry.agent != agent {
            // The slot has a new owner. A command still running for the old one stays counted in
            // flight, but says nothing about this agent.
            *entry = Entry {
                agent,
                wanted: true,
                running: false,
                again: false,
                started_ns: None,
                failures: 0,
            };
        }
        entry.wanted = true;
        if entry.running {
            entry.again = true;
            return Plan::Deferred;
        }
        let due_ns = entry.due_ns(debounce_ns).max(now_ns);
        self.wheel.arm(agent.slot, due_ns);
        if due_ns > now_ns {
            Plan::Deferred
        } else {
            Plan::Now
        }
    }

    /// The agent speaks again, or is gone: nothing more is wanted for this silence.
    pub fn on_settled(&mut self, agent: Agent) {
        if let Some(entry) = self.entry_of(agent) {
            entry.wanted = false;
            entry.again = false;
            entry.failures = 0;
            self.wheel.cancel(agent.slot);
        }
    }

    /// The next agent to act on now. The action counts as in flight until [`Self::on_end`].
    pub fn next_action(&mut self, now_ns: u64) -> Option<Agent> {
        if self.in_flight >= self.policy.max_in_flight {
            return None;
        }
        let mut budget = u32::MAX;
        let slot = self.wheel.pop_due(now_ns, &mut budget)?;
        let entry = self.entries.get_mut(slot as usize)?;
        entry.running = true;
        entry.started_ns = Some(now_ns);
        self.in_flight += 1;
        Some(entry.agent)
    }

    /// An action has ended.
    pub fn on_end(&mut self, agent: Agent, end: ActionEnd, now_ns: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let debounce_ns = self.policy.debounce_ns;
        let Some(entry) = self.entry_of(agent) else {
            return;
        };
        if !std::mem::take(&mut entry.running) || !entry.wanted {
            return;
        }
        if std::mem::take(&mut entry.again) {
            let due_ns = entry.due_ns(debounce_ns).max(now_ns);
            self.wheel.arm(agent.slot, due_ns);
        } else if end == ActionEnd::Failed {
            entry.failures = entry.failures.saturating_add(1);
            let pause_ns = backoff_ns(entry.failures, debounce_ns);
            self.wheel.arm(agent.slot, now_ns.saturating_add(pause_ns));
        } else {
            entry.wanted = false;
        }
    }

    /// When [`Self::next_action`] may have something to do; `None` while it has not, or while
    /// everything waits for an action to end.
    pub fn next_due_ns(&self) -> Option<u64> {
        if self.in_flight >= self.policy.max_in_flight {
            return None;
        }
        self.wheel.next_deadline_ns()
    }

    /// Actions in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn entry_of(&mut self, agent: Agent) -> Option<&mut Entry> {
        self.entries
            .get_mut(agent.slot as usize)
            .filter(|entry| entry.agent == agent)
    }
}

/// Doubles from the debounce (at least 1 s) up to 60 s.
fn backoff_ns(failures: u32, debounce_ns: u64) -> u64 {
    let first_ns = debounce_ns.max(BACKOFF_MIN_NS);
    let doublings = failures.saturating_sub(1).min(16);
    first_ns
        .saturating_mul(1 << doublings)
        .min(BACKOFF_MAX_NS.max(debounce_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    /// The wheel rounds up to its tick.
    const SLACK: u64 = 1 << crate::wheel::TICK_SHIFT;

    fn agent(slot: u32) -> Agent {
        Agent {
            slot,
            pid: 100 + slot,
            instance: 1,
        }
    }

    fn recovery(max_in_flight: usize) -> Recovery {
        let policy = RecoveryPolicy {
            debounce_ns: 5 * S,
            max_in_flight,
        };
        Recovery::new(16, policy)
    }

    #[test]
    fn a_stall_is_acted_on_once() {
        let mut recovery = recovery(8);
        assert_eq!(recovery.on_stall(agent(0), S), Plan::Now);
        assert_eq!(recovery.next_action(S + SLACK), Some(agent(0)));
        assert_eq!(recovery.next_action(S + SLACK), None, "single flight");
        recovery.on_end(agent(0), ActionEnd::Handled, 2 * S);
        assert_eq!(recovery.next_action(1000 * S), None, "handled");
    }

    #[test]
    fn a_second_stall_within_the_debounce_is_deferred_not_dropped() {
        let mut recovery = recovery(8);
        recovery.on_stall(agent(0), S);
        recovery.next_action(S + SLACK);
        recovery.on_end(agent(0), ActionEnd::Handled, S + SLACK);
        recovery.on_settled(agent(0));
        assert_eq!(recovery.on_stall(agent(0), 3 * S), Plan::Deferred);
        assert_eq!(recovery.next_action(5 * S), None);
        assert!(recovery.next_due_ns().unwrap() >= 6 * S);
        assert_eq!(recovery.next_action(6 * S + 3 * SLACK), Some(agent(0)));
    }

    #[test]
    fn a_stall_while_the_command_of_the_last_one_runs_is_deferred() {
        let mut recovery = recovery(8);
        recovery.on_stall(agent(0), S);
        recovery.next_action(S + SLACK);
        recovery.on_settled(agent(0));
        assert_eq!(recovery.on_stall(agent(0), 20 * S), Plan::Deferred);
        assert_eq!(recovery.next_action(20 * S + SLACK), None);
        recovery.on_end(agent(0), ActionEnd::Handled, 30 * S);
        assert_eq!(recovery.next_action(30 * S + SLACK), Some(agent(0)));
    }

    #[test]
    fn failure_is_tried_again_with_growing_pauses_while_the_silence_lasts() {
        let mut recovery = recovery(8);
        recovery.on_stall(agent(0), 0);
        let mut now_ns = SLACK;
        for pause in [5, 10, 20, 40, 60, 60] {
            assert_eq!(recovery.next_action(now_ns), Some(agent(0)));
            recovery.on_end(agent(0), ActionEnd::Failed, now_ns);
            assert_eq!(recovery.next_action(now_ns + pause * S - SLACK), None);
            now_ns += pause * S + SLACK;
        }
        recovery.on_settled(agent(0));
        assert_eq!(recovery.next_action(now_ns + 100 * S), None);
    }

    #[test]
    fn no_more_than_the_limit_are_in_flight_and_nobody_is_forgotten() {
        let mut recovery = recovery(3);
        for slot in 0..10 {
            recovery.on_stall(agent(slot), 0);
        }
        let mut acted = Vec::new();
        let mut running = Vec::new();
        for step in 1..20 {
            while let Some(agent) = recovery.next_action(step * S) {
                running.push(agent);
            }
            assert!(recovery.in_flight() <= 3);
            if recovery.in_flight() == 3 {
                assert_eq!(recovery.next_due_ns(), None, "waits for an end");
            }
            if let Some(agent) = running.pop() {
                recovery.on_end(agent, ActionEnd::Handled, step * S);
                acted.push(agent.slot);
            }
        }
        acted.sort_unstable();
        assert_eq!(acted, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn an_agent_that_came_back_is_not_acted_on() {
        let mut recovery = recovery(8);
        recovery.on_stall(agent(0), 0);
        recovery.on_settled(agent(0));
        assert_eq!(recovery.next_action(S), None);
        assert_eq!(recovery.next_due_ns(), None);
    }

    #[test]
    fn a_new_owner_of_a_slot_inherits_neither_debounce_nor_command() {
        let mut recovery = recovery(8);
        recovery.on_stall(agent(0), 0);
        recovery.next_action(SLACK);
        let successor = Agent {
            instance: 2,
            ..agent(0)
        };
        assert_eq!(recovery.on_stall(successor, S), Plan::Now);
        recovery.on_end(agent(0), ActionEnd::Failed, S);
        assert_eq!(recovery.next_action(S + SLACK), Some(successor));
        recovery.on_end(successor, ActionEnd::Handled, 2 * S);
        assert_eq!(recovery.in_flight(), 0);
    }

    #[test]
    fn a_target_that_is_gone_is_not_tried_again() {
        let mut recovery = recovery(8);
        recovery.on_stall(agent(0), 0);
        recovery.next_action(SLACK);
        recovery.on_end(agent(0), ActionEnd::TargetGone, SLACK);
        assert_eq!(recovery.next_due_ns(), None);
    }
}
