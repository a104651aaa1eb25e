//! Agents of users for which fire is held: they leave the queue when their turn comes, so that the agents behind them
//! continue, and return when fire is free.

use super::{Ladders, Phase};
use crate::agent::Locality;

impl Ladders {
    /// While fire is held for the local agents of one user no step is taken for them and none is given up; both
    /// follow afterwards.
    pub fn hold_user(&mut self, user: u32, held: bool) {
        match self.held_users.iter().position(|known| *known == user) {
            None if held => self.held_users.push(user),
            Some(place) if !held => {
                self.held_users.swap_remove(place);
                self.unpark(user);
            }
            _ => {}
        }
    }

    /// The action that has waited longest; those of users for which fire is held leave the queue.
    pub(super) fn first_ready(&mut self, locality: Locality, needs_permit: bool) -> Option<u32> {
        loop {
            let ready = &mut self.lanes[locality].ready;
            let slot = ready.queue(needs_permit).front()?;
            if !self.is_parked(slot) {
                return Some(slot);
            }
        }
    }

    /// Whether fire is held for the user of an agent whose turn has come. Then the agent leaves the queue until fire is
    /// free.
    pub(super) fn is_parked(&mut self, slot: u32) -> bool {
        let user = self.entries.get(slot as usize).and_then(|entry| entry.user);
        let is_held = user.is_some_and(|user| self.held_users.contains(&user));
        if is_held {
            self.leave_queue(slot);
            self.parked.push(slot);
        }
        is_held
    }

    /// Fire is free for a user: its agents return in the order in which they left.
    pub(super) fn unpark(&mut self, user: u32) {
        let mut parked = Vec::new();
        while let Some(slot) = self.parked.front() {
            self.parked.remove(slot);
            parked.push(slot);
        }
        for slot in parked {
            let entry = &mut self.entries[slot as usize];
            if entry.user != Some(user) {
                self.parked.push(slot);
                continue;
            }
            if entry.phase == Phase::Ready {
                // The step is the same when its timer fires again.
                entry.phase = Phase::Due;
            }
            let agent = entry.agent;
            self.arm(agent, 0);
        }
    }
}
