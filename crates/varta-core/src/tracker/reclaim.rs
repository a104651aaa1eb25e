//! The agents that have been silent long enough to be evicted, oldest first: local and remote agents in queues of
//! their own, because a new remote agent never evicts a local one (law 3).

use crate::agent::{Locality, PerLocality};
use crate::fifo::Fifo;
use crate::slot::Slot;

/// The agents that a new agent may evict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VictimScope {
    /// Any agent.
    All,
    /// Agents of that locality.
    Only(Locality),
    /// Local agents of this user.
    OfUser(u32),
}

impl VictimScope {
    pub(super) fn includes(self, facts: &Slot) -> bool {
        match self {
            Self::All => true,
            Self::Only(locality) => facts.locality == locality,
            Self::OfUser(user) => facts.locality == Locality::Local && facts.uid == user,
        }
    }
}

#[derive(Debug)]
pub(super) struct Reclaimable {
    queues: PerLocality<Fifo>,
    /// Grows with every agent that is queued, so that the two queues can be compared.
    next_ticket: u64,
    tickets: Box<[u64]>,
}

impl Reclaimable {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            queues: PerLocality {
                local: Fifo::new(capacity),
                remote: Fifo::new(capacity),
            },
            next_ticket: 0,
            tickets: vec![0; capacity].into_boxed_slice(),
        }
    }

    pub(super) fn push(&mut self, slot: u32, locality: Locality) {
        self.tickets[slot as usize] = self.next_ticket;
        self.next_ticket += 1;
        self.queues[locality].push(slot);
    }

    /// False if it was in no queue.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        self.queues.local.remove(slot) || self.queues.remote.remove(slot)
    }

    /// The oldest slot in the queue. There is no queue per user.
    pub(super) fn oldest(&self, scope: VictimScope) -> Option<u32> {
        let front = |locality: Locality| self.queues[locality].front();
        match scope {
            VictimScope::OfUser(_) => None,
            VictimScope::Only(locality) => front(locality),
            VictimScope::All => {
                let fronts = Locality::ALL.into_iter().filter_map(front);
                fronts.min_by_key(|slot| self.tickets[*slot as usize])
            }
        }
    }
}
