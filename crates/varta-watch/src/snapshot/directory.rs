//! The directory of agents: what the control thread knows of each besides what is in its slot.
//!
//! The control thread writes when an agent joins, leaves or is acted on; questions read. Neither is on the
//! beat path, so a lock is good enough, held for one entry or one copy at a time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use varta_core::Agent;

/// What is known of an agent besides what is in its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgentInfo {
    /// As its rule calls it, else its command name; empty if unknown.
    pub(crate) name: String,
    /// As its rule calls it.
    pub(crate) label: Option<String>,
    /// Its command name when it joined: that of its series unless its rule has another, for it must not make
    /// more of them by changing its name.
    pub(crate) joined_as: String,
    /// Its unit of the system's service manager.
    pub(crate) unit: Option<String>,
    /// Its unit of its own user's service manager.
    pub(crate) user_unit: Option<String>,
    /// By kernel credentials, if it came with them.
    pub(crate) uid: Option<u32>,
    /// Its address, if it runs on another host.
    pub(crate) address: Option<IpAddr>,
    /// A key vouches for its beats.
    pub(crate) sealed: bool,
    /// Over how many sessions it beats at once, if that is more than one.
    pub(crate) sessions: usize,
    /// What became of the last recovery.
    pub(crate) recovery: Option<&'static str>,
    /// Recovery has tried everything for this silence.
    pub(crate) gave_up: bool,
    /// Why it is paused, if it is and somebody has said why. Until when is in its slot.
    pub(crate) pause_reason: Option<String>,
}

/// All agents, by slot.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    agents: Mutex<HashMap<u32, (Agent, AgentInfo)>>,
}

impl Directory {
    pub(crate) fn enter(&self, agent: Agent, info: AgentInfo) {
        self.locked().insert(agent.slot, (agent, info));
    }

    /// Changes what is known of an agent, if it is still there.
    pub(crate) fn update(&self, agent: Agent, change: impl FnOnce(&mut AgentInfo)) {
        if let Some((known, info)) = self.locked().get_mut(&agent.slot)
            && *known == agent
        {
            change(info);
        }
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

    /// What is known of the agent in a slot. Nothing if it has not been told of yet.
    pub(crate) fn get(&self, agent: Agent) -> Option<AgentInfo> {
        let agents = self.locked();
        let (known, info) = agents.get(&agent.slot)?;
        (*known == agent).then(|| info.clone())
    }

    /// The user of an agent, by kernel credentials.
    pub(crate) fn uid_of(&self, agent: Agent) -> Option<u32> {
        let agents = self.locked();
        let (known, info) = agents.get(&agent.slot)?;
        info.uid.filter(|_| *known == agent)
    }

    /// Nobody panics while holding it, and if so its entries are whole.
    fn locked(&self) -> MutexGuard<'_, HashMap<u32, (Agent, AgentInfo)>> {
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
        directory.enter(agent(1), AgentInfo::default());
        directory.update(agent(2), |info| info.recovery = Some("spawned"));
        assert_eq!(directory.get(agent(1)), Some(AgentInfo::default()));
        assert_eq!(directory.get(agent(2)), None);
        directory.leave(agent(2));
        assert!(directory.get(agent(1)).is_some());
        directory.leave(agent(1));
        assert_eq!(directory.get(agent(1)), None);
    }
}
