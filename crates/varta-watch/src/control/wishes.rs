//! Commands of an operator are carried out here: an agent is paused, or resumed.
//!
//! The beat path does the pausing; here is remembered when each pause ends, so that it can be told.
//! Memory: one entry per paused agent.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use varta_core::fact::ResumeCause;
use varta_core::{Agent, Fact};

use super::{Control, nanoseconds};
use crate::handoff::Update;
use crate::handoff::command::{Command, Gone};

/// How soon is looked again whether a pause is over that should be, at the least.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// Who is paused, and when that is expected to end.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    ends: HashMap<u32, (Agent, Instant)>,
    /// The same by time.
    queue: BTreeSet<(Instant, u32)>,
}

impl Pauses {
    fn add(&mut self, agent: Agent, end: Instant) {
        if let Some((_, old)) = self.ends.insert(agent.slot, (agent, end)) {
            self.queue.remove(&(old, agent.slot));
        }
        self.queue.insert((end, agent.slot));
    }

    pub(crate) fn has(&self, agent: Agent, now: Instant) -> bool {
        let entry = self.ends.get(&agent.slot);
        entry.is_some_and(|(known, end)| *known == agent && *end > now)
    }

    /// True if the agent was paused.
    pub(crate) fn forget(&mut self, agent: Agent) -> bool {
        match self.ends.get(&agent.slot) {
            Some((known, end)) if *known == agent => {
                self.queue.remove(&(*end, agent.slot));
                self.ends.remove(&agent.slot);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(end, _)| *end)
    }

    fn take_due(&mut self, now: Instant) -> Option<Agent> {
        let (_, slot) = self.queue.first().copied().filter(|(end, _)| *end <= now)?;
        self.queue.pop_first();
        self.ends.remove(&slot).map(|(agent, _)| agent)
    }
}

impl Control {
    /// Does what an operator wants, and says so.
    pub(super) fn handle(&mut self, command: Command) {
        // It is done for an operator who does not wait for the answer any more, too.
        let _ = match command {
            Command::Pause {
                agent,
                time,
                reason,
                reply,
            } => reply.send(self.pause(agent, time, reason)),
            Command::Resume { agent, reply } => reply.send(self.resume(agent)),
        };
    }

    fn pause(&mut self, agent: Agent, time: Duration, reason: Option<String>) -> Result<u64, Gone> {
        self.look_for(agent)?;
        let update = self.given.updates.add(Update::Pause(agent, time));
        self.pauses.add(agent, Instant::now() + time);
        // Whatever was to be done about its silence is not any more.
        self.settled(agent);
        let paused = Fact::Paused {
            agent: self.agent_ref(agent),
            duration_ns: nanoseconds(time),
            reason: reason.clone(),
        };
        self.publish(&paused);
        let directory = &self.given.directory;
        directory.update(agent, |info| info.pause_reason = reason);
        Ok(update)
    }

    fn resume(&mut self, agent: Agent) -> Result<u64, Gone> {
        self.look_for(agent)?;
        let update = self.given.updates.add(Update::Resume(agent));
        if self.pauses.forget(agent) {
            self.end_pause(agent, ResumeCause::Operator);
        }
        Ok(update)
    }

    fn look_for(&self, agent: Agent) -> Result<(), Gone> {
        self.slot_of(agent).map(|_| ()).ok_or(Gone)
    }

    /// Tells of the pauses that are over. They end by the attention clock, which may be behind.
    pub(super) fn end_pauses(&mut self, now: Instant) {
        while let Some(agent) = self.pauses.take_due(now) {
            match self.left_of_pause(agent) {
                Some(left) => self.pauses.add(agent, now + left.max(LOOK_PAUSE)),
                None => self.end_pause(agent, ResumeCause::Expired),
            }
        }
    }

    /// How much longer the beat path counts none of an agent's silence.
    fn left_of_pause(&self, agent: Agent) -> Option<Duration> {
        let facts = self.slot_of(agent)?;
        let now_ns = self.given.beat_path.attention_now_ns();
        let left_ns = facts.paused_until_ns.saturating_sub(now_ns);
        (left_ns > 0).then(|| Duration::from_nanos(left_ns))
    }

    fn end_pause(&mut self, agent: Agent, cause: ResumeCause) {
        let resumed = Fact::Resumed {
            agent: self.agent_ref(agent),
            cause,
        };
        self.publish(&resumed);
        let directory = &self.given.directory;
        directory.update(agent, |info| info.pause_reason = None);
        // It may have stalled before this thread knew that the pause was over.
        self.recover_forgotten(agent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(slot: u32, instance: u64) -> Agent {
        Agent {
            slot,
            pid: 7,
            instance,
            stream: 0,
        }
    }

    #[test]
    fn pauses_end_in_their_order_and_the_last_word_about_an_agent_counts() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut pauses = Pauses::default();
        pauses.add(agent(1, 1), at(5));
        pauses.add(agent(2, 1), at(3));
        pauses.add(agent(1, 1), at(2));
        assert_eq!(pauses.next_due(), Some(at(2)));
        assert_eq!(pauses.take_due(at(1)), None);
        assert_eq!(pauses.take_due(at(9)), Some(agent(1, 1)));
        assert_eq!(pauses.take_due(at(9)), Some(agent(2, 1)));
        assert_eq!(pauses.take_due(at(9)), None);
        assert_eq!(pauses.next_due(), None);
    }

    #[test]
    fn the_next_agent_in_a_slot_has_nothing_to_do_with_the_pause_of_the_one_before() {
        let now = Instant::now();
        let mut pauses = Pauses::default();
        pauses.add(agent(1, 1), now);
        assert!(!pauses.forget(agent(1, 2)));
        pauses.add(agent(1, 2), now);
        assert!(!pauses.forget(agent(1, 1)));
        assert!(pauses.forget(agent(1, 2)));
        assert_eq!(pauses.next_due(), None);
    }
}
