//! Capacity: whether there is a slot for a new agent, and which agent is evicted for it.

use std::sync::atomic::AtomicU64;

use super::reclaim::VictimScope;
use super::{EvictionPolicy, Tracker};
use crate::agent::Locality;
use crate::slot::{Slot, SlotState};

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// Whether a new agent may get a slot, in O(1): otherwise it need not be examined. `user` is that of a local
    /// agent, and `None` for a remote agent.
    pub fn may_have_room_for(&self, user: Option<u32>) -> bool {
        let scope = self.victims_for(user);
        self.has_free_slot_for(user)
            || self.reclaimable.oldest(scope).is_some()
            || matches!(scope, VictimScope::OfUser(user) if self.users.tally(user).reclaimable > 0)
            || self.policy == EvictionPolicy::Balanced
    }

    pub(super) fn has_free_slot_for(&self, user: Option<u32>) -> bool {
        let is_within_quotas = match user {
            Some(user) => self.has_local_room() && self.users.has_room(user),
            None => self.len.remote < self.quota.remote,
        };
        !self.free.is_empty() && is_within_quotas
    }

    /// Whether there may be one more local agent.
    pub(super) fn has_local_room(&self) -> bool {
        self.len.local < self.quota.local
    }

    /// The slot that a new agent takes over: the one reclaimable for the longest time, in O(1); else, if its
    /// user has reached its share or under Balanced, the first silent enough within a bounded window from the
    /// rotating cursor. A remote agent never evicts a local one.
    pub(super) fn find_victim(&mut self, now_ns: u64, scope: VictimScope) -> Option<u32> {
        if let Some(oldest) = self.reclaimable.oldest(scope) {
            return Some(oldest);
        }
        let is_balanced = self.policy == EvictionPolicy::Balanced;
        let has_own = |user| self.users.tally(user).reclaimable > 0;
        let may_search = is_balanced || matches!(scope, VictimScope::OfUser(user) if has_own(user));
        if !may_search || self.capacity == 0 {
            return None;
        }
        let may_go = |facts: Slot| {
            let is_silent = facts.state == SlotState::Reclaimable
                || is_balanced && facts.is_reclaimable(now_ns);
            is_silent && scope.includes(&facts)
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

    /// The agents that a new agent may evict. A remote one, remote agents; one whose user has reached its share,
    /// agents of its user; a local one that lacks a slot only because remote agents have them, any agent.
    pub(super) fn victims_for(&self, user: Option<u32>) -> VictimScope {
        match user {
            Some(user) if !self.users.has_room(user) => VictimScope::OfUser(user),
            Some(_) if self.has_local_room() => VictimScope::All,
            Some(_) => VictimScope::Only(Locality::Local),
            None => VictimScope::Only(Locality::Remote),
        }
    }

    /// Queues a slot as reclaimable.
    pub(super) fn enqueue_reclaimable(&mut self, slot: u32, facts: &Slot) {
        self.reclaimable.push(slot, facts.locality);
        if facts.locality == Locality::Local {
            self.users.add_reclaimable(facts.uid);
        }
    }

    /// Removes a slot from its queue, if it is in one.
    pub(super) fn dequeue_reclaimable(&mut self, slot: u32, facts: &Slot) {
        if self.reclaimable.remove(slot) && facts.locality == Locality::Local {
            self.users.remove_reclaimable(facts.uid);
        }
    }
}
