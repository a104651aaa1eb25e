//! The ledger: the known agents, the last beat of each, and the agents that have been silent too long.
//!
//! One call credits a beat ([`Tracker::record`]). Silent agents are found in three steps: a slot is due
//! ([`Tracker::pop_due`]), a source with a later beat than the table records it, and the remaining silence is
//! judged ([`Tracker::judge`]). The caller passes `now` and every fact; the tracker reads no clock, never panics
//! on input, allocates nothing after construction, and does a bounded amount of work per call. The decision table
//! is that of the observer specification, section 1.4, without its defects; each decision documents how it avoids
//! the known defect.
//!
//! Beats do not touch the timer wheel: a slot stays armed at the deadline it had when it was last
//! judged. When that comes, its true deadline is computed from its last beat, and the slot is
//! either judged or armed again. An armed deadline is therefore never later than the true one.

mod amend;
mod excuses;
mod judge;
mod reclaim;
mod record;
mod room;
mod streams;
mod thresholds;
mod types;
mod users;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::agent::{Agent, Locality, PerLocality};
use crate::beat::AgentKey;
use crate::counters::Counters;
use crate::index::BoundedIndex;
use crate::slot::{Slot, SlotTable};
use crate::wheel::Wheel;
use excuses::{RecentGaps, Restart};
use reclaim::Reclaimable;
use streams::Streams;
use thresholds::Thresholds;
use users::Users;

pub use judge::Due;
pub use streams::MAX_STREAMS_PER_PROCESS;
pub use types::{
    BeatOutcome, Deadlines, Displaced, EvictionPolicy, Recorded, Silence, TrackerOptions,
};

/// Default capacity in agents.
pub const DEFAULT_CAPACITY: usize = 256;

/// The most local agents, and the most remote ones: 1 048 576, 128 MiB of slots.
pub const MAX_CAPACITY: usize = 1 << 20;

/// The largest table; larger requests are clamped.
const MAX_SLOTS: usize = 2 * MAX_CAPACITY;

/// Default number of slots examined per attempt to evict under [`EvictionPolicy::Balanced`].
pub const DEFAULT_EVICTION_SCAN_WINDOW: usize = 256;

/// The smallest scan window; smaller requests are clamped.
pub const MIN_EVICTION_SCAN_WINDOW: usize = 1;

/// The largest scan window; larger requests are clamped, as are those beyond the table.
pub const MAX_EVICTION_SCAN_WINDOW: usize = MAX_CAPACITY;

/// The ledger. `W` holds the words of the slot table.
#[derive(Debug)]
pub struct Tracker<W = Box<[AtomicU64]>> {
    table: Arc<SlotTable<W>>,
    counters: Arc<Counters>,
    capacity: usize,
    policy: EvictionPolicy,
    scan_window: usize,
    scan_cursor: usize,
    streams: Streams,
    remote: BoundedIndex<(u64, u32)>,
    users: Users,
    wheel: Wheel,
    reclaimable: Reclaimable,
    /// Free slots; the last one is used next.
    free: Vec<u32>,
    len: PerLocality<usize>,
    quota: PerLocality<usize>,
    latched: usize,
    thresholds: Thresholds,
    gaps: RecentGaps,
    restarts: PerLocality<Restart>,
    /// Streams that left because their pid has passed to another process, beside the one that was returned.
    displaced: Vec<Displaced>,
}

impl Default for Tracker {
    fn default() -> Self {
        Self::with_capacity(DEFAULT_CAPACITY, TrackerOptions::default())
    }
}

impl Tracker {
    /// A tracker with its own table on the heap and its own counters.
    pub fn with_capacity(capacity: usize, options: TrackerOptions) -> Self {
        let table = Arc::new(SlotTable::on_heap(capacity.min(MAX_SLOTS)));
        Self::new(table, Arc::default(), options)
    }
}

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// A tracker over an empty table. The tracker must be the table's only writer. Capacity 0 is
    /// legal: no agent is ever admitted.
    pub fn new(table: Arc<SlotTable<W>>, counters: Arc<Counters>, options: TrackerOptions) -> Self {
        let capacity = table.capacity().min(MAX_SLOTS);
        Self {
            capacity,
            policy: options.policy,
            scan_window: options.scan_window.clamp(
                MIN_EVICTION_SCAN_WINDOW,
                capacity.clamp(MIN_EVICTION_SCAN_WINDOW, MAX_EVICTION_SCAN_WINDOW),
            ),
            scan_cursor: 0,
            streams: Streams::new(capacity),
            // One more than the table holds: a new agent is indexed before its victim is removed.
            remote: BoundedIndex::with_capacity(capacity + 1, options.seed),
            users: Users::new(
                capacity.min(options.local_capacity),
                options.user_capacity,
                options.seed,
            ),
            wheel: Wheel::new(capacity),
            reclaimable: Reclaimable::new(capacity),
            free: (0..capacity as u32).rev().collect(),
            len: PerLocality::default(),
            quota: PerLocality {
                local: options.local_capacity,
                remote: options.remote_capacity,
            },
            latched: 0,
            thresholds: Thresholds::new(),
            gaps: RecentGaps::new(),
            restarts: PerLocality::default(),
            displaced: Vec::with_capacity(MAX_STREAMS_PER_PROCESS),
            table,
            counters,
        }
    }

    /// Removes one stream. `None` if the slot belongs to another agent now.
    pub fn retire(&mut self, agent: Agent) -> Option<Slot> {
        let facts = self.facts_of(agent)?;
        self.remove(agent.slot, &facts);
        Some(facts)
    }

    /// Removes one stream of a local process that has ended, and returns it. Call it until it returns `None`.
    pub fn retire_next(&mut self, pid: u32, instance: u64) -> Option<(Agent, Slot)> {
        let slot = self.first_stream(pid, instance)?;
        let facts = self.table.load(slot)?;
        self.remove(slot, &facts);
        Some((facts.agent(slot), facts))
    }

    /// Sets the pid namespace of an agent's process once it is known. A known namespace stays.
    pub fn learn_namespace(&mut self, agent: Agent, ns_inode: u64) {
        self.for_each_stream(agent, |tracker, slot, mut facts| {
            if facts.ns_inode.is_none() {
                facts.ns_inode = Some(ns_inode);
                tracker.table.store(slot, &facts);
            }
        });
    }

    /// The next time to judge silence; `None` while nothing is armed. Early wake-ups are harmless.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.wheel.next_deadline_ns()
    }

    /// The shortest threshold of the current agents, to within an eighth: none is shorter. `None` while no
    /// agent is tracked.
    pub fn shortest_threshold_ns(&self) -> Option<u64> {
        self.thresholds.shortest_ns()
    }

    /// Stream 0 of the process known under a local pid.
    pub fn local_agent(&self, pid: u32) -> Option<Agent> {
        self.agent_in(self.slot_of(&AgentKey::local(pid))?)
    }

    /// The slot of the agent with this key: one probe of an index, and for a further stream of a process at most
    /// [`MAX_STREAMS_PER_PROCESS`] steps.
    pub fn slot_of(&self, key: &AgentKey) -> Option<u32> {
        match *key {
            AgentKey::Local { pid, stream, .. } => {
                let is_it = |slot: &u32| self.table.stream_in(*slot) == Some(stream);
                let first = self.streams.first(pid)?;
                // The links of other streams are not read where one look-up is enough.
                match is_it(&first) {
                    true => Some(first),
                    false => self.streams.of(pid).find(is_it),
                }
            }
            AgentKey::Remote { source, pid } => self.remote.get(&(source, pid)),
        }
    }

    /// The facts in a slot.
    pub fn facts_in(&self, slot: u32) -> Option<Slot> {
        self.table.load(slot)
    }

    /// The agent in a slot.
    pub fn agent_in(&self, slot: u32) -> Option<Agent> {
        Some(self.table.load(slot)?.agent(slot))
    }

    /// Agents in the table.
    pub fn len(&self) -> usize {
        self.len.local + self.len.remote
    }

    /// Slots of local agents.
    pub fn local_len(&self) -> usize {
        self.len.local
    }

    /// True while no agent is tracked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Capacity in agents.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Agents whose current silence has been reported.
    pub fn latched(&self) -> usize {
        self.latched
    }

    /// An agent's facts by key.
    pub fn get(&self, key: &AgentKey) -> Option<Slot> {
        self.slot_of(key).and_then(|slot| self.table.load(slot))
    }

    /// Removes a stream from every structure and frees its slot.
    fn remove(&mut self, slot: u32, facts: &Slot) {
        self.unindex(&key_of(facts), slot);
        self.wheel.cancel(slot);
        self.dequeue_reclaimable(slot, facts);
        if facts.state.is_latched() {
            self.latched -= 1;
        }
        self.thresholds.remove(facts.threshold_ns);
        self.table.clear(slot);
        self.free.push(slot);
        self.len[facts.locality] -= 1;
        if facts.locality == Locality::Local {
            self.users.remove(facts.uid);
        }
    }

    fn facts_of(&self, agent: Agent) -> Option<Slot> {
        let facts = self.table.load(agent.slot)?;
        (facts.agent(agent.slot) == agent).then_some(facts)
    }

    /// The first slot of a local process.
    fn first_stream(&self, pid: u32, instance: u64) -> Option<u32> {
        let slot = self.streams.first(pid)?;
        let facts = self.table.load(slot)?;
        (facts.instance == instance).then_some(slot)
    }

    /// Calls a function for each stream of an agent's process; a remote agent has one. False if there is none.
    fn for_each_stream(
        &mut self,
        agent: Agent,
        mut change: impl FnMut(&mut Self, u32, Slot),
    ) -> bool {
        let first = match agent.locality() {
            Locality::Local => self.first_stream(agent.pid, agent.instance),
            Locality::Remote => self.facts_of(agent).map(|_| agent.slot),
        };
        let mut next = first;
        while let Some(slot) = next {
            next = self.streams.after(slot);
            if let Some(facts) = self.table.load(slot) {
                change(self, slot, facts);
            }
        }
        first.is_some()
    }

    /// Removes a slot from the index, unless another slot has its key now.
    fn unindex(&mut self, key: &AgentKey, slot: u32) {
        match *key {
            AgentKey::Local { pid, .. } => self.streams.unlink(pid, slot),
            AgentKey::Remote { source, pid } => {
                if self.remote.get(&(source, pid)) == Some(slot) {
                    self.remote.remove(&(source, pid));
                }
            }
        }
    }
}

fn key_of(facts: &Slot) -> AgentKey {
    match facts.locality {
        Locality::Local => AgentKey::local(facts.pid).with_stream(facts.stream),
        Locality::Remote => AgentKey::Remote {
            source: facts.instance,
            pid: facts.pid,
        },
    }
}

#[cfg(test)]
mod amend_tests;
#[cfg(test)]
mod behaviour_tests;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod users_tests;
