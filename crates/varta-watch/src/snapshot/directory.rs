//! The directory of agents: the facts that the control thread has about each agent besides its slot.
//!
//! The control thread writes when an agent joins, leaves or is acted on; requests read. Neither is on the beat path,
//! so a lock is good enough, held for one entry at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use varta_core::Agent;
use varta_core::engine::AgentInfo;

/// All agents, by slot.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    agents: Mutex<HashMap<u32, (Agent, Arc<AgentInfo>)>>,
}

impl Directory {
    /// Replaces the entry of the agent in a slot.
    pub(crate) fn enter(&self, agent: Agent, info: Arc<AgentInfo>) {
        self.locked().insert(agent.slot, (agent, info));
    }

    pub(crate) fn leave(&self, agent: Agent) {
        let mut agents = self.locked();
        if agents
            .get(&agent.slot)
            .is_some_and(|(known, _)| *known == agent)
        {
            agents.remove(&agent.slot);
        }
    }

    /// The entry of the agent in a slot; empty if the agent has none yet.
    pub(crate) fn get(&self, agent: Agent) -> Option<Arc<AgentInfo>> {
        let agents = self.locked();
        let (known, info) = agents.get(&agent.slot)?;
        (*known == agent).then(|| Arc::clone(info))
    }

    /// No holder of the lock panics; even then its entries would be complete.
    fn locked(&self) -> MutexGuard<'_, HashMap<u32, (Agent, Arc<AgentInfo>)>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(instance: u64) -> Agent {
        Agent {
            slot: 3,
            pid: 7,
            instance,
            stream: 0,
        }
    }

    #[test]
    fn an_entry_is_of_one_agent_and_not_of_the_next_one_in_its_slot() {
        let directory = Directory::default();
        directory.enter(agent(1), Arc::default());
        assert!(directory.get(agent(1)).is_some());
        assert_eq!(directory.get(agent(2)), None);
        directory.leave(agent(2));
        assert!(directory.get(agent(1)).is_some());
        directory.leave(agent(1));
        assert_eq!(directory.get(agent(1)), None);
    }
}
