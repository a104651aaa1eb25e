//! The ledger: which agents there are, when each was last heard, and who has been silent too long.
//!
//! One call credits a beat ([`Tracker::record`]), one finds the silent
//! ([`Tracker::drain_stalled_slots`]). The caller passes `now` and every fact; the tracker reads no
//! clock, never panics on input, allocates nothing after construction, and does a bounded amount of
//! work per call. The decision table is that of the observer specification, section 1.4, without
//! its defects; how each known defect is avoided is said where the decision is taken.
//!
//! Beats do not touch the timer wheel: a slot stays armed at the deadline it had when it was last
//! looked at. When that comes, its true deadline is computed from its last beat, and the slot is
//! either judged or armed again. An armed deadline is therefore never later than the true one.

mod amend;
mod excuses;
mod reclaim;
mod room;
mod taken;
mod thresholds;
mod types;
mod users;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use varta_vlp::Status;

use crate::agent::{Agent, BeatOrigin, Locality, PerLocality};
use crate::beat::{AgentKey, Beat};
use crate::counters::{Counter, Counters, Timing};
use crate::index::{BoundedIndex, PidIndex};
use crate::replay::Heard;
use crate::slot::{Slot, SlotState, SlotTable, Step, Tier};
use crate::wheel::Wheel;
use excuses::{RecentGaps, Restart};
use reclaim::{Reclaimable, VictimScope};
use thresholds::Thresholds;
#[cfg(test)]
use users::Tally;
use users::Users;

pub use types::{Deadlines, Displaced, EvictionPolicy, Recorded, Silence, TrackerOptions, Update};

/// Agents a tracker holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 256;

/// The most local agents, and the most remote ones: 1 048 576, 128 MiB of slots.
pub const MAX_CAPACITY: usize = 1 << 20;

/// The largest table; larger requests are clamped.
const MAX_SLOTS: usize = 2 * MAX_CAPACITY;

/// Slots looked at per attempt to evict under [`EvictionPolicy::Balanced`].
pub const DEFAULT_EVICTION_SCAN_WINDOW: usize = 256;

/// The ledger. `W` is what holds the words of the slot table.
#[derive(Debug)]
pub struct Tracker<W = Box<[AtomicU64]>> {
    table: Arc<SlotTable<W>>,
    counters: Arc<Counters>,
    /// Counter values at the last `take_*`.
    taken: [u64; Counter::ALL.len()],
    capacity: usize,
    policy: EvictionPolicy,
    scan_window: usize,
    scan_cursor: usize,
    local: PidIndex,
    remote: BoundedIndex<(u64, u32)>,
    users: Users,
    wheel: Wheel,
    reclaimable: Reclaimable,
    /// Slots nobody has; the last one is given out next.
    free: Vec<u32>,
    len: PerLocality<usize>,
    quota: PerLocality<usize>,
    latched: usize,
    thresholds: Thresholds,
    gaps: RecentGaps,
    restarts: PerLocality<Restart>,
    evicted_pid: Option<u32>,
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
    /// legal: nobody is ever admitted.
    pub fn new(table: Arc<SlotTable<W>>, counters: Arc<Counters>, options: TrackerOptions) -> Self {
        let capacity = table.capacity().min(MAX_SLOTS);
        Self {
            taken: [0; Counter::ALL.len()],
            capacity,
            policy: options.policy,
            scan_window: options.scan_window.clamp(1, capacity.max(1)),
            scan_cursor: 0,
            local: PidIndex::new(),
            // One more than the table holds: a newcomer is indexed before its victim leaves.
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
            evicted_pid: None,
            table,
            counters,
        }
    }

    /// Credits a beat or refuses it. `threshold_ns` is given to a new agent; a known one keeps its
    /// own. A refused beat changes nothing but its counter (law 3).
    ///
    /// Precedence: origin, namespace, nonce (a wrap or a new session being the exceptions),
    /// refresh; for unknown agents capacity, eviction, index.
    pub fn record(&mut self, beat: &Beat, now_ns: u64, threshold_ns: u64) -> Recorded {
        let Some(slot) = self.find(&beat.key) else {
            return self.insert(beat, now_ns, threshold_ns);
        };
        let Some(known) = self
            .table
            .load(slot)
            .filter(|known| is_keyed_by(known, &beat.key))
        else {
            self.counters.count(Counter::InvariantViolations);
            self.unindex(&beat.key);
            return self.refuse(Update::CapacityExceeded);
        };
        if let AgentKey::Local {
            instance: Some(instance),
            ..
        } = beat.key
            && instance != known.instance
        {
            // The pid was recycled: whoever had it has exited, and nothing of it carries over.
            let agent = known.agent(slot);
            self.remove(slot, &known);
            // That has made room for it, unless its user has its share: then it takes the place of another of
            // its user's with its next beat, for one beat displaces one agent.
            let mut recorded = match self.has_free_slot_for(Some(beat.uid)) {
                true => self.insert(beat, now_ns, threshold_ns),
                false => self.refuse(Update::UserShareExceeded { uid: beat.uid }),
            };
            recorded.displaced = Some(Displaced {
                agent,
                last_nonce: known.last_nonce.unwrap_or(0),
                evicted: false,
            });
            return recorded;
        }
        self.refresh(slot, known, beat, now_ns)
    }

    /// Finds every silence that is due at `now_ns` and offers it to `hand_over`. `Break` means "not
    /// taken": the silence stays unreported, will be offered again by the next call, and this call
    /// ends. A silence that was taken is reported once, until a beat is accepted again.
    ///
    /// Stalls use `silence >= threshold`. At most `budget` timers are looked at; what is left over
    /// is due at the next call.
    ///
    /// A stall that is put off because a full queue may have refused the agent's beats is offered as
    /// [`Tier::PutOff`], for information: each time that it would be due otherwise.
    pub fn drain_stalled_slots(
        &mut self,
        now_ns: u64,
        mut budget: u32,
        mut hand_over: impl FnMut(&Silence) -> ControlFlow<()>,
    ) {
        while let Some(slot) = self.wheel.pop_due(now_ns, &mut budget) {
            let Some(mut facts) = self.table.load(slot) else {
                self.counters.count(Counter::InvariantViolations);
                continue;
            };
            let unbelieved = facts.due_tier(self.judged_ns(&facts, now_ns));
            let is_put_off = self.restart(&mut facts);
            let judged_ns = self.judged_ns(&facts, now_ns);
            let due = facts.due_tier(judged_ns);
            let is_put_off =
                is_put_off && unbelieved == Some(Tier::Stalled) && due != Some(Tier::Stalled);
            if is_put_off {
                self.counters.count(Counter::StallsPutOff);
            }
            if let Some(tier) = due.or(is_put_off.then_some(Tier::PutOff)) {
                let silence = Silence {
                    agent: facts.agent(slot),
                    tier,
                    silence_ns: match tier {
                        Tier::PutOff => now_ns.saturating_sub(facts.last_ns),
                        Tier::Late | Tier::Stalled => facts.silence_ns(judged_ns),
                    },
                    slot: facts,
                };
                if hand_over(&silence).is_break() {
                    self.wheel.arm(slot, now_ns);
                    return;
                }
                match tier {
                    Tier::PutOff => {}
                    Tier::Late => {
                        facts.state = SlotState::Late;
                        self.table.store(slot, &facts);
                    }
                    Tier::Stalled => {
                        facts.state = SlotState::Stalled;
                        facts.stalls = facts.stalls.saturating_add(1);
                        self.table.store(slot, &facts);
                        self.latched += 1;
                        self.counters.count(Counter::Stalls);
                        let lateness_ns = silence.silence_ns.saturating_sub(facts.threshold_ns);
                        self.counters.observe(Timing::Lateness, lateness_ns);
                    }
                }
            } else if facts.state == SlotState::Stalled && facts.is_reclaimable(now_ns) {
                facts.state = SlotState::Reclaimable;
                self.table.store(slot, &facts);
                self.line_up(slot, &facts);
                continue;
            }
            let excused_ns = now_ns - self.judged_ns(&facts, now_ns);
            let look_ns = facts.next_look_ns().saturating_add(excused_ns);
            self.wheel.arm(slot, look_ns);
        }
    }

    /// Forgets an agent whose process is gone. `None` if the slot belongs to somebody else by now.
    pub fn retire(&mut self, agent: Agent) -> Option<Slot> {
        let facts = self.facts_of(agent)?;
        self.remove(agent.slot, &facts);
        Some(facts)
    }

    /// Says which pid namespace an agent lives in, once that is known. What is known already stays.
    pub fn learn_namespace(&mut self, agent: Agent, ns_inode: u64) {
        if let Some(mut facts) = self.facts_of(agent)
            && facts.ns_inode.is_none()
        {
            facts.ns_inode = Some(ns_inode);
            self.table.store(agent.slot, &facts);
        }
    }

    /// The observer came later by `gap_ns` than it had promised, until `now_ns`. Agents that do not tolerate so much
    /// ([`crate::attention::tolerance_ns`]) are given it back. For gaps that are on the attention clock.
    pub fn excuse(&mut self, now_ns: u64, gap_ns: u64) {
        self.gaps.push(now_ns, gap_ns);
    }

    /// Beats of these agents may have been refused before `now_ns` by a queue that was full, so their silence
    /// restarts there: until the given number of thresholds after an agent's last beat at most, since a flood may
    /// keep a queue full without end. Stalls that were reported stay reported.
    pub fn restart_silence(&mut self, locality: Locality, now_ns: u64, thresholds: u64) {
        let restart = &mut self.restarts[locality];
        restart.at_ns = restart.at_ns.max(now_ns);
        restart.thresholds = thresholds;
    }

    /// Has the silence of an agent begin where a full queue makes it begin. True if that is later than before.
    fn restart(&self, facts: &mut Slot) -> bool {
        let from_ns = self.restarts[facts.locality].for_agent(facts);
        let is_later = from_ns > facts.heard_ns() && !facts.state.is_latched();
        if is_later {
            facts.paused_until_ns = from_ns;
        }
        is_later
    }

    /// The time by which an agent's silence is judged: now, less what is excused of it.
    fn judged_ns(&self, facts: &Slot, now_ns: u64) -> u64 {
        let excused_ns = match facts.state.is_latched() {
            true => 0,
            false => self.gaps.excused_ns(facts.heard_ns(), facts.threshold_ns),
        };
        now_ns.saturating_sub(excused_ns)
    }

    /// When [`Self::drain_stalled_slots`] should be called next; `None` while nothing is armed.
    /// Early wake-ups are harmless.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.wheel.next_deadline_ns()
    }

    /// The shortest threshold of the agents that are there now, to within an eighth: none is shorter.
    /// `None` while nobody is tracked.
    pub fn shortest_threshold_ns(&self) -> Option<u64> {
        self.thresholds.shortest_ns()
    }

    /// The agent known under a local pid.
    pub fn local_agent(&self, pid: u32) -> Option<Agent> {
        let slot = self.local.get(pid)?;
        Some(self.table.load(slot)?.agent(slot))
    }

    /// The slot of the agent with this key; one look into an index.
    pub fn slot_of(&self, key: &AgentKey) -> Option<u32> {
        self.find(key)
    }

    /// The slot of whoever is known under a local pid; one look into an index.
    pub fn local_slot(&self, pid: u32) -> Option<u32> {
        self.local.get(pid)
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

    /// True while nobody is tracked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Agents the table has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Agents whose present silence has been reported.
    pub fn latched(&self) -> usize {
        self.latched
    }

    /// An agent's facts by key.
    pub fn get(&self, key: &AgentKey) -> Option<Slot> {
        self.find(key).and_then(|slot| self.table.load(slot))
    }

    /// Time of the last accepted beat.
    pub fn last_ns_of(&self, key: &AgentKey) -> Option<u64> {
        Some(self.get(key)?.last_ns)
    }

    /// Pinned origin.
    pub fn origin_of(&self, key: &AgentKey) -> Option<BeatOrigin> {
        Some(self.get(key)?.origin)
    }

    /// Pinned namespace: outer `None` = not tracked, inner `None` = unknown.
    pub fn pid_ns_inode_of(&self, key: &AgentKey) -> Option<Option<u64>> {
        Some(self.get(key)?.ns_inode)
    }

    fn refuse(&self, update: Update) -> Recorded {
        let counter = match update {
            Update::OutOfOrder => Counter::OutOfOrder,
            Update::CapacityExceeded => Counter::CapacityExceeded,
            Update::UserShareExceeded { .. } => Counter::UserShareExceeded,
            Update::OriginConflict => Counter::OriginConflicts,
            Update::NamespaceConflict => Counter::NamespaceConflicts,
            Update::Inserted | Update::Refreshed | Update::Reordered => {
                Counter::InvariantViolations
            }
        };
        self.counters.count(counter);
        Recorded::refused(update)
    }

    /// Table rows 2 to 9: a beat of a known agent.
    fn refresh(&mut self, slot: u32, known: Slot, beat: &Beat, now_ns: u64) -> Recorded {
        if known.origin != beat.origin {
            return self.refuse(Update::OriginConflict);
        }
        if known.ns_inode.is_some() && known.ns_inode != beat.ns_inode {
            return self.refuse(Update::NamespaceConflict);
        }
        let Some(step) = known.step_to(beat, now_ns) else {
            return self.refuse(Update::OutOfOrder);
        };

        let mut facts = known;
        facts.beats = facts.beats.saturating_add(1);
        if step == Step::Overtaken {
            self.table.store(slot, &facts);
            self.counters.count(Counter::BeatsAccepted);
            return Recorded::accepted(Update::Reordered, facts.agent(slot));
        }
        facts.ns_inode = beat.ns_inode;
        match step {
            Step::Terminal => {
                facts.terminal_timestamp = facts.terminal_timestamp.max(beat.frame.timestamp);
            }
            Step::Next | Step::Overtaken => {}
            Step::Wrap => self.counters.count(Counter::NonceWraps),
            Step::NewSession => {
                facts.session_restarts = facts.session_restarts.saturating_add(1);
                facts.terminal_timestamp = 0;
                self.counters.count(Counter::SessionRestarts);
            }
        }
        if step != Step::Terminal {
            facts.last_nonce = Some(beat.frame.nonce);
            facts.last_timestamp = beat.frame.timestamp;
            if beat.session == Some(Heard::First) {
                // Perhaps another process: its last frames have a time of their own.
                facts.terminal_timestamp = 0;
            }
        }
        let interval_ns = now_ns.saturating_sub(known.last_ns);
        self.counters.observe(Timing::BeatInterval, interval_ns);
        facts.status = beat.frame.condition();
        facts.payload = beat.frame.payload;
        facts.last_ns = now_ns.max(known.last_ns);
        facts.state = SlotState::Alive;
        self.table.store(slot, &facts);
        self.counters.count(Counter::BeatsAccepted);

        let mut recorded = Recorded::accepted(Update::Refreshed, facts.agent(slot));
        recorded.new_session = step == Step::NewSession;
        recorded.turned_critical =
            facts.status == Status::Critical && known.status != Status::Critical;
        if known.state.is_latched() {
            self.latched -= 1;
            self.leave_line(slot, &known);
            self.counters.count(Counter::Returns);
            recorded.returned_after_ns = Some(known.silence_ns(now_ns));
        }
        if known.state != SlotState::Alive {
            self.wheel.arm(slot, facts.next_look_ns());
        }
        recorded
    }

    /// Table rows 10 to 15: a beat of an unknown agent. Nothing changes before the newcomer stands
    /// in the index, so a refusal leaves the table exactly as it was.
    fn insert(&mut self, beat: &Beat, now_ns: u64, threshold_ns: u64) -> Recorded {
        let user = match beat.key {
            AgentKey::Local { .. } => Some(beat.uid),
            AgentKey::Remote { .. } => None,
        };
        let victim = if self.has_free_slot_for(user) {
            None
        } else {
            let victims = self.victims_for(user);
            let Some(victim) = self.find_victim(now_ns, victims) else {
                if let VictimScope::OfUser(uid) = victims {
                    return self.refuse(Update::UserShareExceeded { uid });
                }
                self.counters.count(Counter::EvictionScanTruncated);
                return self.refuse(Update::CapacityExceeded);
            };
            Some(victim)
        };
        let Some(slot) = victim.or_else(|| self.free.last().copied()) else {
            return self.refuse(Update::CapacityExceeded);
        };
        if !self.index(&beat.key, slot) {
            self.counters.count(Counter::ProbeExhausted);
            return self.refuse(Update::CapacityExceeded);
        }

        let displaced = victim.and_then(|victim| {
            let facts = self.table.load(victim)?;
            self.remove(victim, &facts);
            self.counters.count(Counter::Evictions);
            self.evicted_pid = Some(facts.pid);
            Some(Displaced {
                agent: facts.agent(victim),
                last_nonce: facts.last_nonce.unwrap_or(0),
                evicted: true,
            })
        });
        self.free.pop();

        let terminal = beat.frame.is_terminal();
        let (locality, pid, instance) = match beat.key {
            AgentKey::Local { pid, instance } => (Locality::Local, pid, instance.unwrap_or(0)),
            AgentKey::Remote { source, pid } => (Locality::Remote, pid, source),
        };
        let facts = Slot {
            state: SlotState::Alive,
            pid,
            locality,
            instance,
            origin: beat.origin,
            uid: beat.uid,
            ns_inode: beat.ns_inode,
            status: beat.frame.condition(),
            payload: beat.frame.payload,
            last_nonce: (!terminal).then_some(beat.frame.nonce),
            last_timestamp: if terminal { 0 } else { beat.frame.timestamp },
            terminal_timestamp: if terminal { beat.frame.timestamp } else { 0 },
            last_ns: now_ns,
            joined_ns: now_ns,
            paused_until_ns: 0,
            threshold_ns,
            late_ns: 0,
            beats: 1,
            stalls: 0,
            session_restarts: 0,
        };
        self.table.store(slot, &facts);
        self.wheel.arm(slot, facts.next_look_ns());
        self.thresholds.add(threshold_ns);
        self.len[locality] += 1;
        if let Some(uid) = user {
            self.users.join(uid);
        }
        self.publish_len();
        self.counters.count(Counter::BeatsAccepted);
        self.counters.count(Counter::Joins);
        let mut recorded = Recorded::accepted(Update::Inserted, facts.agent(slot));
        recorded.displaced = displaced;
        recorded.turned_critical = facts.status == Status::Critical;
        recorded
    }

    /// Takes an agent out of every structure and frees its slot.
    fn remove(&mut self, slot: u32, facts: &Slot) {
        let key = key_of(facts);
        if self.find(&key) == Some(slot) {
            self.unindex(&key);
        }
        self.wheel.cancel(slot);
        self.leave_line(slot, facts);
        if facts.state.is_latched() {
            self.latched -= 1;
        }
        self.thresholds.remove(facts.threshold_ns);
        self.table.clear(slot);
        self.free.push(slot);
        self.len[facts.locality] -= 1;
        if facts.locality == Locality::Local {
            self.users.leave(facts.uid);
        }
        self.publish_len();
    }

    fn facts_of(&self, agent: Agent) -> Option<Slot> {
        let facts = self.table.load(agent.slot)?;
        (facts.agent(agent.slot) == agent).then_some(facts)
    }

    fn find(&self, key: &AgentKey) -> Option<u32> {
        match *key {
            AgentKey::Local { pid, .. } => self.local.get(pid),
            AgentKey::Remote { source, pid } => self.remote.get(&(source, pid)),
        }
    }

    fn index(&mut self, key: &AgentKey, slot: u32) -> bool {
        match *key {
            AgentKey::Local { pid, .. } => self.local.insert(pid, slot).is_ok(),
            AgentKey::Remote { source, pid } => self.remote.insert((source, pid), slot).is_ok(),
        }
    }

    fn unindex(&mut self, key: &AgentKey) {
        match *key {
            AgentKey::Local { pid, .. } => self.local.remove(pid),
            AgentKey::Remote { source, pid } => self.remote.remove(&(source, pid)),
        };
    }

    /// Recounts everything that is kept as a running total, for tests.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        let mut used = 0;
        let mut latched = 0;
        let mut remote = 0;
        let mut users = std::collections::HashMap::<u32, Tally>::new();
        for slot in 0..self.capacity as u32 {
            let Some(facts) = self.table.load(slot) else {
                assert!(!self.wheel.is_armed(slot), "a free slot is armed");
                continue;
            };
            used += 1;
            latched += usize::from(facts.state.is_latched());
            let is_local = facts.locality == Locality::Local;
            remote += usize::from(!is_local);
            if is_local && facts.uid != 0 && self.users.counts() {
                let tally = users.entry(facts.uid).or_default();
                tally.agents += 1;
                tally.reclaimable += u32::from(facts.state == SlotState::Reclaimable);
            }
            assert_eq!(self.find(&key_of(&facts)), Some(slot), "unreachable slot");
            assert_eq!(
                self.wheel.is_armed(slot),
                facts.state != SlotState::Reclaimable,
                "{:?}",
                facts.state
            );
        }
        assert_eq!(used, self.len());
        assert_eq!(remote, self.len.remote);
        let local = self.counters.level(crate::counters::Gauge::LocalAgents) as usize;
        assert_eq!(used - remote, local);
        assert_eq!(users.len(), self.users.len());
        for (user, tally) in users {
            assert_eq!(self.users.tally(user), tally, "user {user}");
        }
        assert_eq!(self.free.len(), self.capacity - used);
        assert_eq!(
            latched, self.latched,
            "latched count differs from a recount"
        );
    }
}

fn key_of(facts: &Slot) -> AgentKey {
    match facts.locality {
        Locality::Local => AgentKey::Local {
            pid: facts.pid,
            instance: None,
        },
        Locality::Remote => AgentKey::Remote {
            source: facts.instance,
            pid: facts.pid,
        },
    }
}

fn is_keyed_by(facts: &Slot, key: &AgentKey) -> bool {
    match *key {
        AgentKey::Local { pid, .. } => facts.locality == Locality::Local && facts.pid == pid,
        AgentKey::Remote { source, pid } => {
            facts.locality == Locality::Remote && facts.pid == pid && facts.instance == source
        }
    }
}

#[cfg(test)]
mod amend_tests;
#[cfg(test)]
mod remote_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod users_tests;
