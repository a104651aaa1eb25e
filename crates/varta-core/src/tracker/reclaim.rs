//! Who has been silent long enough to give way, oldest first: local agents and network agents in lines
//! of their own, because not everybody may take from everybody (law 3).

use crate::fifo::Fifo;
use crate::slot::Slot;

/// Whose slot a newcomer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victims {
    Local,
    /// Local agents of this user.
    OfUser(u32),
    Network,
    Anybody,
}

impl Victims {
    pub(super) fn include(self, facts: &Slot) -> bool {
        match self {
            Self::Local => facts.local,
            Self::OfUser(user) => facts.local && facts.uid == user,
            Self::Network => !facts.local,
            Self::Anybody => true,
        }
    }
}

#[derive(Debug)]
pub(super) struct Reclaimable {
    local: Fifo,
    network: Fifo,
    /// Grows with every agent that gets in line, so that the lines can be compared.
    next_ticket: u64,
    tickets: Box<[u64]>,
}

impl Reclaimable {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            local: Fifo::new(capacity),
            network: Fifo::new(capacity),
            next_ticket: 0,
            tickets: vec![0; capacity].into_boxed_slice(),
        }
    }

    pub(super) fn push(&mut self, slot: u32, is_local: bool) {
        self.tickets[slot as usize] = self.next_ticket;
        self.next_ticket += 1;
        let line = if is_local {
            &mut self.local
        } else {
            &mut self.network
        };
        line.push(slot);
    }

    /// False if it was in no line.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        self.local.remove(slot) || self.network.remove(slot)
    }

    /// Who has waited longest among them. A single user has no line of its own.
    pub(super) fn oldest(&self, victims: Victims) -> Option<u32> {
        let (takes_local, takes_network) = match victims {
            Victims::Local => (true, false),
            Victims::Network => (false, true),
            Victims::Anybody => (true, true),
            Victims::OfUser(_) => (false, false),
        };
        let local = self.local.front().filter(|_| takes_local);
        let network = self.network.front().filter(|_| takes_network);
        let heads = local.into_iter().chain(network);
        heads.min_by_key(|slot| self.tickets[*slot as usize])
    }
}
