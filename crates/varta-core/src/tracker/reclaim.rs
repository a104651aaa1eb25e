//! Who has been silent long enough to give way, oldest first: local agents and network agents in lines
//! of their own, because not everybody may take from everybody (law 3).

use crate::fifo::Fifo;

/// Whose slot a newcomer may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victims {
    Local,
    Network,
    Anybody,
}

impl Victims {
    pub(super) fn include(self, is_local: bool) -> bool {
        match self {
            Self::Local => is_local,
            Self::Network => !is_local,
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

    pub(super) fn remove(&mut self, slot: u32) {
        self.local.remove(slot);
        self.network.remove(slot);
    }

    /// Who has waited longest among them.
    pub(super) fn oldest(&self, victims: Victims) -> Option<u32> {
        let local = self.local.front().filter(|_| victims.include(true));
        let network = self.network.front().filter(|_| victims.include(false));
        let heads = local.into_iter().chain(network);
        heads.min_by_key(|slot| self.tickets[*slot as usize])
    }
}
