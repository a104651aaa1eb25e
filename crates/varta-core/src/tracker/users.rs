//! The number of local agents per user, so that no user takes every slot.
//!
//! Root is not counted: it can take every slot anyway. No user is counted where one user may have as many
//! agents as there are slots. Bounds: one tally per slot, one index look-up per call, nothing allocated after
//! construction.

use crate::index::BoundedIndex;

/// The user without a share.
const ROOT: u32 = 0;

/// The agents of one user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) agents: u32,
    /// The ones that may be evicted.
    pub(super) reclaimable: u32,
}

#[derive(Debug)]
pub(super) struct Users {
    /// Most agents of one user.
    share: usize,
    /// Number of the tally of each user that has agents.
    numbers: BoundedIndex<u32>,
    tallies: Box<[Tally]>,
    /// Free tallies.
    free: Vec<u32>,
}

impl Users {
    /// For a table of `slots` local agents, of which one user may have `share`.
    pub(super) fn new(slots: usize, share: usize, seed: u64) -> Self {
        let users = if share < slots { slots } else { 0 };
        Self {
            share,
            numbers: BoundedIndex::with_capacity(users, seed),
            tallies: vec![Tally::default(); users].into_boxed_slice(),
            free: (0..users as u32).rev().collect(),
        }
    }

    /// Whether the user may have one more agent.
    pub(super) fn has_room(&self, user: u32) -> bool {
        (self.tally(user).agents as usize) < self.share
    }

    /// The agents of a user; none of one that is not counted.
    pub(super) fn tally(&self, user: u32) -> Tally {
        let number = self.numbers.get(&user);
        number.map_or_else(Tally::default, |number| self.tallies[number as usize])
    }

    pub(super) fn add(&mut self, user: u32) {
        if user == ROOT {
            return;
        }
        let number = self.numbers.get(&user).or_else(|| {
            let number = self.free.pop()?;
            self.numbers.insert(user, number).ok()?;
            Some(number)
        });
        if let Some(number) = number {
            self.tallies[number as usize].agents += 1;
        }
    }

    pub(super) fn remove(&mut self, user: u32) {
        let Some(number) = self.numbers.get(&user) else {
            return;
        };
        let tally = &mut self.tallies[number as usize];
        tally.agents -= 1;
        if tally.agents == 0 {
            self.numbers.remove(&user);
            self.free.push(number);
        }
    }

    /// Counts one more agent of the user that may be evicted.
    pub(super) fn add_reclaimable(&mut self, user: u32) {
        if let Some(number) = self.numbers.get(&user) {
            self.tallies[number as usize].reclaimable += 1;
        }
    }

    /// Counts one agent of the user that may not be evicted any more.
    pub(super) fn remove_reclaimable(&mut self, user: u32) {
        if let Some(number) = self.numbers.get(&user) {
            self.tallies[number as usize].reclaimable -= 1;
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> bool {
        !self.tallies.is_empty()
    }

    /// How many users have agents.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }
}
