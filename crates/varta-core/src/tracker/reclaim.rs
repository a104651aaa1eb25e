//! Who has been silent long enough to give way, oldest first: local agents and network agents in lines
//! of their own, because a network agent may take nothing from a local one (law 3).

use crate::fifo::Fifo;

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

    /// Who has waited longest among those that may give way to a newcomer of that kind.
    pub(super) fn oldest_for(&self, is_local: bool) -> Option<u32> {
        let local = self.local.front().filter(|_| is_local);
        let heads = local.into_iter().chain(self.network.front());
        heads.min_by_key(|slot| self.tickets[*slot as usize])
    }
}
