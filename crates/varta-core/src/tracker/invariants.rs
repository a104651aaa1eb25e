//! A recount of everything that the tracker keeps as a running total.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

use super::users::Tally;
use super::{Tracker, key_of};
use crate::agent::Locality;
use crate::slot::SlotState;

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// Recounts everything that is kept as a running total, for tests.
    pub(crate) fn check_invariants(&self) {
        let mut used = 0;
        let mut latched = 0;
        let mut remote = 0;
        let mut processes = HashMap::<u32, usize>::new();
        let mut users = HashMap::<u32, Tally>::new();
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
            if is_local {
                *processes.entry(facts.pid).or_default() += 1;
                let first = self
                    .streams
                    .first(facts.pid)
                    .and_then(|slot| self.table.load(slot));
                assert_eq!(
                    first.unwrap().instance,
                    facts.instance,
                    "two processes with one pid"
                );
            }
            assert_eq!(
                self.slot_of(&key_of(&facts)),
                Some(slot),
                "unreachable slot"
            );
            assert_eq!(
                self.wheel.is_armed(slot),
                facts.state != SlotState::Reclaimable,
                "{:?}",
                facts.state
            );
        }
        for (pid, streams) in processes {
            assert_eq!(self.streams.of(pid).count(), streams, "streams of {pid}");
        }
        assert_eq!(used, self.len());
        assert_eq!(remote, self.len.remote);
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
