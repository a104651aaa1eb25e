//! The facts of each agent: one record per occupied slot.
//!
//! The record ends with its agent. The ladders keep what a successor takes over. Bounds: one record per slot of
//! the table.

use std::sync::Arc;

use super::effect::AgentInfo;
use super::input::ProcessFacts;
use crate::admission::BeatLimit;
use crate::agent::{Agent, BeatOrigin};
use crate::ladder::Lineage;
use crate::tracker::Deadlines;

/// One agent.
#[derive(Debug)]
pub(super) struct AgentRecord {
    pub(super) agent: Agent,
    /// What readers see of it, shared with the readers' directory. Changed through [`Self::info_mut`].
    pub(super) info: Arc<AgentInfo>,
    pub(super) facts: Option<ProcessFacts>,
    /// Its transport; `None` if it left before its slot was read.
    pub(super) origin: Option<BeatOrigin>,
    /// The rule that applies, by number.
    pub(super) rule: Option<usize>,
    pub(super) lineage: Lineage,
    /// Its rate limit in the beat path.
    pub(super) limit: BeatLimit,
    /// Its deadlines in the beat path, if they were set.
    pub(super) deadlines: Option<Deadlines>,
    /// When its pause is expected to end, on the observer's clock, if it is paused.
    pub(super) paused_until_ns: Option<u64>,
}

impl AgentRecord {
    pub(super) fn new(agent: Agent, info: AgentInfo, facts: Option<ProcessFacts>) -> Self {
        Self {
            agent,
            info: Arc::new(info),
            facts,
            origin: None,
            rule: None,
            lineage: Lineage::default(),
            limit: BeatLimit::default(),
            deadlines: None,
            paused_until_ns: None,
        }
    }

    /// The effect that publishes its current state to readers.
    pub(super) fn info_mut(&mut self) -> &mut AgentInfo {
        Arc::make_mut(&mut self.info)
    }

    /// Brings what readers see up to date with its process and its label.
    pub(super) fn rename(&mut self, label: Option<String>) {
        let facts = self.facts.as_ref();
        let own = facts.map_or("", |facts| &facts.name);
        let name = label.clone().unwrap_or_else(|| own.to_owned());
        let process = facts.map(|facts| &facts.process);
        let unit = process.and_then(|process| process.unit.clone());
        let user_unit = process.and_then(|process| process.user_unit.clone());
        let info = self.info_mut();
        info.name = name;
        info.label = label;
        info.unit = unit;
        info.user_unit = user_unit;
    }
}

/// Every agent, by slot, in the order of the slots.
#[derive(Debug, Default)]
pub(super) struct Agents {
    slots: Vec<Option<Box<AgentRecord>>>,
}

impl Agents {
    pub(super) fn get(&self, agent: Agent) -> Option<&AgentRecord> {
        let record = self.slots.get(agent.slot as usize)?.as_deref();
        record.filter(|record| record.agent == agent)
    }

    pub(super) fn get_mut(&mut self, agent: Agent) -> Option<&mut AgentRecord> {
        let record = self.slots.get_mut(agent.slot as usize)?.as_deref_mut();
        record.filter(|record| record.agent == agent)
    }

    /// The agent whose record is in a slot.
    pub(super) fn in_slot(&self, slot: u32) -> Option<Agent> {
        let record = self.slots.get(slot as usize)?.as_deref();
        record.map(|record| record.agent)
    }

    /// Puts a record in its slot.
    pub(super) fn insert(&mut self, record: AgentRecord) {
        let slot = record.agent.slot as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some(Box::new(record));
    }

    pub(super) fn remove(&mut self, agent: Agent) -> Option<AgentRecord> {
        self.get(agent)?;
        self.slots[agent.slot as usize].take().map(|record| *record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &AgentRecord> {
        self.slots.iter().filter_map(Option::as_deref)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut AgentRecord> {
        self.slots.iter_mut().filter_map(Option::as_deref_mut)
    }
}
