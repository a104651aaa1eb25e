//! An operator's pauses. The beat path does not judge a paused agent; this module keeps the end of each pause, so
//! that the end is reported and no step is taken for the agent meanwhile.
//!
//! Bounds: one entry per paused agent.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Engine;
use super::effect::{AgentGone, AgentUpdate, Effect};
use super::input::Command;
use super::rule_assignments::nanoseconds;
use crate::agent::Agent;
use crate::fact::{Fact, ResumeCause};

/// Minimum delay before an overdue pause is checked again.
const LOOK_PAUSE_MIN_NS: u64 = 1_000_000;

/// Maximum of that delay, 100 ms: the slot may still hold the end of an earlier pause, which the beat path has not
/// replaced yet.
const LOOK_PAUSE_MAX_NS: u64 = 100_000_000;

/// When pauses are expected to end, on the observer's clock, with the slot of the agent.
#[derive(Debug, Default)]
pub(super) struct PauseEnds {
    ends: BTreeSet<(u64, u32)>,
}

impl PauseEnds {
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.ends.first().map(|(until_ns, _)| *until_ns)
    }

    fn take_due(&mut self, now_ns: u64) -> Option<u32> {
        let due = self
            .ends
            .first()
            .filter(|(until_ns, _)| *until_ns <= now_ns);
        due.copied()?;
        self.ends.pop_first().map(|(_, slot)| slot)
    }
}

impl Engine {
    pub(super) fn on_command(&mut self, ticket: u64, command: Command) {
        let (Command::Pause { agent, .. } | Command::Resume { agent }) = command;
        let is_there = self.slot_of(agent).is_some() && self.agents.get(agent).is_some();
        if is_there {
            match command {
                Command::Pause {
                    agent,
                    time,
                    reason,
                } => self.pause(agent, time, reason),
                Command::Resume { agent } => self.resume(agent),
            }
        }
        let result = if is_there { Ok(()) } else { Err(AgentGone) };
        self.effects.push_back(Effect::Answer { ticket, result });
    }

    fn pause(&mut self, agent: Agent, time: Duration, reason: Option<String>) {
        let update = AgentUpdate::Pause(agent, time);
        self.effects.push_back(Effect::Update(update));
        let duration_ns = nanoseconds(time);
        let until_ns = self.now.observer_ns.saturating_add(duration_ns);
        self.set_pause(agent, Some(until_ns));
        self.set_pause_reason(agent, reason.clone());
        // No further step is taken about its silence.
        self.end_silence(agent);
        self.show(agent);
        self.publish(Fact::Paused {
            agent: self.agent_ref(agent),
            duration_ns,
            reason,
        });
    }

    fn resume(&mut self, agent: Agent) {
        self.effects
            .push_back(Effect::Update(AgentUpdate::Resume(agent)));
        if self.set_pause(agent, None) {
            self.resumed(agent, ResumeCause::Operator);
        }
    }

    /// Changes the end of an agent's pause; true if it was paused.
    pub(super) fn set_pause(&mut self, agent: Agent, until_ns: Option<u64>) -> bool {
        let Some(record) = self.agents.get_mut(agent) else {
            return false;
        };
        let ends = &mut self.pause_ends.ends;
        let before_ns = std::mem::replace(&mut record.paused_until_ns, until_ns);
        if let Some(before_ns) = before_ns {
            ends.remove(&(before_ns, agent.slot));
        }
        if let Some(until_ns) = until_ns {
            ends.insert((until_ns, agent.slot));
        }
        before_ns.is_some()
    }

    fn set_pause_reason(&mut self, agent: Agent, reason: Option<String>) {
        if let Some(record) = self.agents.get_mut(agent) {
            record.info_mut().pause_reason = reason;
        }
    }

    /// Reports the pauses that are over. They end on the attention clock, which may be behind.
    pub(super) fn end_pauses(&mut self) {
        while let Some(slot) = self.pause_ends.take_due(self.now.observer_ns) {
            let Some(agent) = self.agents.in_slot(slot) else {
                continue;
            };
            self.set_pause(agent, None);
            match self.left_of_pause_ns(agent) {
                Some(left_ns) => {
                    let look_ns = left_ns.clamp(LOOK_PAUSE_MIN_NS, LOOK_PAUSE_MAX_NS);
                    let until_ns = self.now.observer_ns.saturating_add(look_ns);
                    self.set_pause(agent, Some(until_ns));
                }
                None => self.resumed(agent, ResumeCause::Expired),
            }
        }
    }

    /// How much longer the beat path does not count an agent's silence.
    fn left_of_pause_ns(&self, agent: Agent) -> Option<u64> {
        let slot = self.slot_of(agent)?;
        let left_ns = slot.paused_until_ns.saturating_sub(self.now.attention_ns);
        (left_ns > 0).then_some(left_ns)
    }

    fn resumed(&mut self, agent: Agent, cause: ResumeCause) {
        self.set_pause_reason(agent, None);
        self.show(agent);
        self.publish(Fact::Resumed {
            agent: self.agent_ref(agent),
            cause,
        });
        // It may have stalled before the pause was known to be over.
        self.recover_forgotten(agent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_end_in_their_order() {
        let mut ends = PauseEnds::default();
        ends.ends.extend([(5, 1), (3, 2)]);
        assert_eq!(ends.next_ns(), Some(3));
        assert_eq!(ends.take_due(2), None);
        assert_eq!(ends.take_due(9), Some(2));
        assert_eq!(ends.take_due(9), Some(1));
        assert_eq!(ends.take_due(9), None);
        assert_eq!(ends.next_ns(), None);
    }
}
