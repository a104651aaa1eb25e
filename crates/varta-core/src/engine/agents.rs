//! All that is known of each agent: one record per slot that is taken.
//!
//! The record ends with its agent. What a successor takes over from it is in the ladders' room. Bounds: one record
//! per slot of the table.

use std::net::IpAddr;

use super::effect::AgentInfo;
use super::input::ProcessFacts;
use crate::admission::BeatLimit;
use crate::agent::Agent;
use crate::agent::BeatOrigin;
use crate::counters::Counter;
use crate::ladder::Lineage;
use crate::tracker::Deadlines;

/// One agent.
#[derive(Debug)]
pub(super) struct AgentRecord {
    pub(super) agent: Agent,
    pub(super) facts: Option<ProcessFacts>,
    /// Its command name when it joined.
    pub(super) joined_as: String,
    /// By kernel credentials, if it came with them.
    pub(super) uid: Option<u32>,
    /// Where a remote agent lives.
    pub(super) address: Option<IpAddr>,
    /// A key vouches for its beats.
    pub(super) sealed: bool,
    /// Over how many sessions it beats at once.
    pub(super) sessions: usize,
    /// How it is heard; `None` if it had left again before it was looked at.
    pub(super) origin: Option<BeatOrigin>,
    /// The rule that applies, by number.
    pub(super) rule: Option<usize>,
    /// What the rule calls it.
    pub(super) label: Option<String>,
    pub(super) lineage: Lineage,
    /// What it may send, as the beat path was told.
    pub(super) limit: BeatLimit,
    /// How long it may be silent, if the beat path was told.
    pub(super) deadlines: Option<Deadlines>,
    pub(super) pause: Option<Pause>,
    /// What became of the last recovery.
    pub(super) recovery: Option<Counter>,
    /// Recovery has tried everything for this silence.
    pub(super) gave_up: bool,
}

/// An operator wants the agent left alone.
#[derive(Clone, Debug)]
pub(super) struct Pause {
    /// When it is expected to end, on the observer's clock.
    pub(super) until_ns: u64,
    pub(super) reason: Option<String>,
}

impl AgentRecord {
    pub(super) fn new(agent: Agent) -> Self {
        Self {
            agent,
            facts: None,
            joined_as: String::new(),
            uid: None,
            address: None,
            sealed: false,
            sessions: 0,
            origin: None,
            rule: None,
            label: None,
            lineage: Lineage::default(),
            limit: BeatLimit::default(),
            deadlines: None,
            pause: None,
            recovery: None,
            gave_up: false,
        }
    }

    /// Its label, else its command name; empty if unknown.
    pub(super) fn name(&self) -> &str {
        let own = self.facts.as_ref().map_or("", |facts| &facts.name);
        self.label.as_deref().unwrap_or(own)
    }

    pub(super) fn info(&self) -> AgentInfo {
        let process = self.facts.as_ref().map(|facts| &facts.process);
        AgentInfo {
            name: self.name().to_owned(),
            label: self.label.clone(),
            joined_as: self.joined_as.clone(),
            unit: process.and_then(|process| process.unit.clone()),
            user_unit: process.and_then(|process| process.user_unit.clone()),
            uid: self.uid,
            address: self.address,
            sealed: self.sealed,
            sessions: self.sessions,
            recovery: self.recovery,
            gave_up: self.gave_up,
            pause_reason: self.pause.as_ref().and_then(|pause| pause.reason.clone()),
        }
    }
}

/// Every agent, by slot. Goes through them in the order of their slots.
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
