//! Room: whether there is a slot for a newcomer, and who gives way to it.

use std::sync::atomic::AtomicU64;

use super::reclaim::Victims;
use super::{EvictionPolicy, Tracker};
use crate::counters::Gauge;
use crate::slot::{Slot, SlotState};

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// Whether a newcomer has a chance, in O(1): who has none need not be looked at. `user` is that of a local
    /// agent, and `None` for a network agent.
    pub fn may_have_room_for(&self, user: Option<u32>) -> bool {
        let victims = self.victims_for(user);
        self.has_free_slot_for(user)
            || self.reclaimable.oldest(victims).is_some()
            || matches!(victims, Victims::OfUser(user) if self.users.tally(user).reclaimable > 0)
            || self.policy == EvictionPolicy::Balanced
    }

    pub(super) fn has_free_slot_for(&self, user: Option<u32>) -> bool {
        let is_within_quotas = match user {
            Some(user) => self.has_local_room() && self.users.has_room(user),
            None => self.network_len < self.network_capacity,
        };
        !self.free.is_empty() && is_within_quotas
    }

    /// Whether there may be one more local agent.
    pub(super) fn has_local_room(&self) -> bool {
        self.len - self.network_len < self.local_capacity
    }

    /// The slot a newcomer may have: the one reclaimable for the longest time, in O(1); else, for one whose
    /// user has its share or under Balanced, the first silent enough within a bounded window from the rotating
    /// cursor. A network agent takes nothing from a local one.
    pub(super) fn find_victim(&mut self, now_ns: u64, victims: Victims) -> Option<u32> {
        if let Some(oldest) = self.reclaimable.oldest(victims) {
            return Some(oldest);
        }
        let is_balanced = self.policy == EvictionPolicy::Balanced;
        let has_own = |user| self.users.tally(user).reclaimable > 0;
        let may_search = is_balanced || matches!(victims, Victims::OfUser(user) if has_own(user));
        if !may_search || self.capacity == 0 {
            return None;
        }
        let may_go = |facts: Slot| {
            let is_silent = facts.state == SlotState::Reclaimable
                || is_balanced && facts.is_reclaimable(now_ns);
            is_silent && victims.include(&facts)
        };
        for _ in 0..self.scan_window {
            let slot = self.scan_cursor as u32;
            self.scan_cursor = (self.scan_cursor + 1) % self.capacity;
            if self.table.load(slot).is_some_and(may_go) {
                return Some(slot);
            }
        }
        None
    }

    /// Whose slot a newcomer may have: its own kind's, a local one that is short of slots only because network
    /// agents have them, anybody's, and one whose user has its share, that user's.
    pub(super) fn victims_for(&self, user: Option<u32>) -> Victims {
        match user {
            Some(user) if !self.users.has_room(user) => Victims::OfUser(user),
            Some(_) if self.has_local_room() => Victims::Anybody,
            Some(_) => Victims::Local,
            None => Victims::Network,
        }
    }

    /// For who must not look at every slot to find out whether there is room.
    pub(super) fn publish_len(&self) {
        let local = self.len - self.network_len;
        self.counters.set(Gauge::LocalAgents, local as u64);
    }

    /// A slot gets in line for newcomers.
    pub(super) fn line_up(&mut self, slot: u32, facts: &Slot) {
        self.reclaimable.push(slot, facts.local);
        if facts.local {
            self.users.line_up(facts.uid);
        }
    }

    /// A slot leaves the line, if it is in it.
    pub(super) fn leave_line(&mut self, slot: u32, facts: &Slot) {
        if self.reclaimable.remove(slot) && facts.local {
            self.users.leave_line(facts.uid);
        }
    }
}
