//! Crediting a beat: to the agent that has its key, to a new agent, or to none.

use std::sync::atomic::AtomicU64;

use varta_vlp::Status;

use super::reclaim::VictimScope;
use super::{BeatOutcome, Displaced, Recorded, Tracker};
use crate::agent::Locality;
use crate::beat::{AgentKey, Beat};
use crate::counters::{Counter, Timing};
use crate::replay::Heard;
use crate::slot::{Continuation, Slot, SlotState};

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// Credits a beat or refuses it. A new agent gets `threshold_ns`; a known one keeps its own. A refused
    /// beat changes nothing but its counter (law 3).
    ///
    /// Precedence: origin, namespace, nonce (a wrap or a new session being the exceptions),
    /// refresh; for unknown agents capacity, eviction, index.
    pub fn record(&mut self, beat: &Beat, now_ns: u64, threshold_ns: u64) -> Recorded {
        if let Some(predecessor) = self.remove_predecessor(&beat.key) {
            // This freed a slot for it, unless its user has reached its share: then its next beat evicts another
            // agent of its user, because one beat displaces one agent.
            let mut recorded = match self.has_free_slot_for(Some(beat.uid)) {
                true => self.insert(beat, now_ns, threshold_ns),
                false => self.refuse(BeatOutcome::UserShareExceeded { uid: beat.uid }),
            };
            recorded.displaced = Some(predecessor);
            return recorded;
        }
        let Some(slot) = self.slot_of(&beat.key) else {
            return self.insert(beat, now_ns, threshold_ns);
        };
        let Some(known) = self
            .table
            .load(slot)
            .filter(|known| has_key(known, &beat.key))
        else {
            self.counters.count(Counter::InvariantViolations);
            self.unindex(&beat.key, slot);
            return self.refuse(BeatOutcome::CapacityExceeded);
        };
        self.refresh(slot, known, beat, now_ns)
    }

    /// Streams of an earlier process that left with the last beat because their pid has passed to another process:
    /// those beside the one that [`Recorded::displaced`] names. Call it until it returns `None`.
    pub fn take_displaced(&mut self) -> Option<Displaced> {
        self.displaced.pop()
    }

    /// Removes the earlier process if the pid has passed to another one: the earlier one has exited, and its state
    /// does not carry over. Returns its first stream.
    fn remove_predecessor(&mut self, key: &AgentKey) -> Option<Displaced> {
        let AgentKey::Local {
            pid,
            instance: Some(instance),
            ..
        } = *key
        else {
            return None;
        };
        let first = self.streams.first(pid)?;
        let known = self.table.load(first)?;
        if known.instance == instance {
            return None;
        }
        self.displaced.clear();
        while let Some((agent, facts)) = self.retire_next(pid, known.instance) {
            self.displaced.push(Displaced {
                agent,
                last_nonce: facts.last_nonce.unwrap_or(0),
                evicted: false,
            });
        }
        // The first stream left first; the order of the rest has no meaning.
        self.displaced.reverse();
        self.displaced.pop()
    }

    fn refuse(&self, outcome: BeatOutcome) -> Recorded {
        let counter = match outcome {
            BeatOutcome::OutOfOrder => Counter::OutOfOrder,
            BeatOutcome::CapacityExceeded => Counter::CapacityExceeded,
            BeatOutcome::UserShareExceeded { .. } => Counter::UserShareExceeded,
            BeatOutcome::OriginConflict => Counter::OriginConflicts,
            BeatOutcome::NamespaceConflict => Counter::NamespaceConflicts,
            BeatOutcome::Inserted | BeatOutcome::Refreshed | BeatOutcome::Reordered => {
                Counter::InvariantViolations
            }
        };
        self.counters.count(counter);
        Recorded::refused(outcome)
    }

    /// Table rows 2 to 9: a beat of a known agent.
    fn refresh(&mut self, slot: u32, known: Slot, beat: &Beat, now_ns: u64) -> Recorded {
        if known.origin != beat.origin {
            return self.refuse(BeatOutcome::OriginConflict);
        }
        if known.ns_inode.is_some() && known.ns_inode != beat.ns_inode {
            return self.refuse(BeatOutcome::NamespaceConflict);
        }
        let Some(continuation) = known.continuation(beat, now_ns) else {
            return self.refuse(BeatOutcome::OutOfOrder);
        };

        let mut facts = known;
        facts.beats = facts.beats.saturating_add(1);
        if continuation == Continuation::Overtaken {
            self.table.store(slot, &facts);
            self.counters.count(Counter::BeatsAccepted);
            return Recorded::accepted(BeatOutcome::Reordered, facts.agent(slot));
        }
        facts.ns_inode = beat.ns_inode;
        match continuation {
            Continuation::Terminal => {
                facts.terminal_timestamp = facts.terminal_timestamp.max(beat.frame.timestamp);
            }
            Continuation::Next | Continuation::Overtaken => {}
            Continuation::Wrap => self.counters.count(Counter::NonceWraps),
            Continuation::NewSession => {
                facts.session_restarts = facts.session_restarts.saturating_add(1);
                facts.terminal_timestamp = 0;
                self.counters.count(Counter::SessionRestarts);
            }
        }
        if continuation != Continuation::Terminal {
            facts.last_nonce = Some(beat.frame.nonce);
            facts.last_timestamp = beat.frame.timestamp;
            if beat.session == Some(Heard::First) {
                // It may be another process, whose last frames have their own clock.
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

        let mut recorded = Recorded::accepted(BeatOutcome::Refreshed, facts.agent(slot));
        recorded.new_session = continuation == Continuation::NewSession;
        recorded.turned_critical =
            facts.status == Status::Critical && known.status != Status::Critical;
        if known.state.is_latched() {
            self.latched -= 1;
            self.dequeue_reclaimable(slot, &known);
            self.counters.count(Counter::Returns);
            recorded.returned_after_ns = Some(known.silence_ns(now_ns));
        }
        if known.state != SlotState::Alive {
            self.wheel.arm(slot, facts.next_look_ns());
        }
        recorded
    }

    /// Table rows 10 to 15: a beat of an unknown agent. Nothing changes before the new agent is certain to get an
    /// index entry, so a refusal leaves the table unchanged.
    fn insert(&mut self, beat: &Beat, now_ns: u64, threshold_ns: u64) -> Recorded {
        let user = match beat.key {
            AgentKey::Local { .. } => Some(beat.uid),
            AgentKey::Remote { .. } => None,
        };
        let (slot, victim) = match self.slot_for(user, now_ns) {
            Ok(found) => found,
            Err(refused) => return refused,
        };
        if !self.reserve_key(&beat.key, slot) {
            return self.refuse(BeatOutcome::CapacityExceeded);
        }
        let facts = self.first_facts(beat, now_ns, threshold_ns);
        let displaced = victim.map(|victim| self.evict(slot, &victim));
        self.free.pop();
        if let AgentKey::Local { pid, stream, .. } = beat.key {
            self.streams.link(pid, slot, stream == 0);
        }
        self.table.store(slot, &facts);
        self.wheel.arm(slot, facts.next_look_ns());
        self.thresholds.add(threshold_ns);
        self.len[facts.locality] += 1;
        if let Some(uid) = user {
            self.users.add(uid);
        }
        self.counters.count(Counter::BeatsAccepted);
        self.counters.count(Counter::Joins);
        let mut recorded = Recorded::accepted(BeatOutcome::Inserted, facts.agent(slot));
        recorded.displaced = displaced;
        recorded.turned_critical = facts.status == Status::Critical;
        recorded
    }

    /// A slot for a new agent, and the agent that is evicted for it if none is free.
    fn slot_for(
        &mut self,
        user: Option<u32>,
        now_ns: u64,
    ) -> Result<(u32, Option<Slot>), Recorded> {
        if self.has_free_slot_for(user) {
            let free = self.free.last().map(|slot| (*slot, None));
            return free.ok_or_else(|| self.refuse(BeatOutcome::CapacityExceeded));
        }
        let scope = self.victims_for(user);
        let victim = self.find_victim(now_ns, scope);
        victim
            .and_then(|slot| Some((slot, Some(self.table.load(slot)?))))
            .ok_or_else(|| match scope {
                VictimScope::OfUser(uid) => self.refuse(BeatOutcome::UserShareExceeded { uid }),
                VictimScope::All | VictimScope::Only(_) => {
                    self.counters.count(Counter::EvictionScanTruncated);
                    self.refuse(BeatOutcome::CapacityExceeded)
                }
            })
    }

    fn evict(&mut self, slot: u32, victim: &Slot) -> Displaced {
        self.remove(slot, victim);
        self.counters.count(Counter::Evictions);
        Displaced {
            agent: victim.agent(slot),
            last_nonce: victim.last_nonce.unwrap_or(0),
            evicted: true,
        }
    }

    /// The facts of an agent after its first beat. A further stream inherits the pause of its process.
    fn first_facts(&self, beat: &Beat, now_ns: u64, threshold_ns: u64) -> Slot {
        let (locality, pid, stream) = match beat.key {
            AgentKey::Local { pid, stream, .. } => (Locality::Local, pid, stream),
            AgentKey::Remote { pid, .. } => (Locality::Remote, pid, 0),
        };
        let process = match locality {
            Locality::Local => self.streams.first(pid),
            Locality::Remote => None,
        };
        let process = process.and_then(|first| self.table.load(first));
        let instance = match beat.key {
            AgentKey::Local { instance, .. } => instance.or(process.map(|known| known.instance)),
            AgentKey::Remote { source, .. } => Some(source),
        };
        let terminal = beat.frame.is_terminal();
        Slot {
            state: SlotState::Alive,
            pid,
            locality,
            instance: instance.unwrap_or(0),
            stream,
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
            paused_until_ns: process.map_or(0, |known| known.paused_until_ns),
            threshold_ns,
            late_ns: 0,
            beats: 1,
            stalls: 0,
            session_restarts: 0,
        }
    }

    /// Ensures that a slot can be found by this key once it has it. A remote agent is indexed here, a slot of a
    /// local process is linked once it is free.
    fn reserve_key(&mut self, key: &AgentKey, slot: u32) -> bool {
        match *key {
            AgentKey::Local { pid, .. } => self.streams.has_room(pid),
            AgentKey::Remote { source, pid } => {
                let is_indexed = self.remote.insert((source, pid), slot).is_ok();
                if !is_indexed {
                    self.counters.count(Counter::ProbeExhausted);
                }
                is_indexed
            }
        }
    }
}

fn has_key(facts: &Slot, key: &AgentKey) -> bool {
    match *key {
        AgentKey::Local { pid, stream, .. } => {
            facts.locality == Locality::Local && facts.pid == pid && facts.stream == stream
        }
        AgentKey::Remote { source, pid } => {
            facts.locality == Locality::Remote && facts.pid == pid && facts.instance == source
        }
    }
}
