//! Agents that were recently refused for want of space: they are not watched, so `/readyz` and `varta status` report
//! it while it lasts.
//!
//! The control thread records refusals, requests read. Bounds: the last refusal of each kind.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use varta_core::{Refusal, Sender};

/// How long a refusal is recent: 60 s. A refused agent continues to beat, usually several times per threshold, so
/// refusals that stop for this long are over.
const LATELY: Duration = Duration::from_secs(60);

/// The table or share that was full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The table of agents of this host.
    Table,
    /// The table of remote agents.
    RemoteTable,
    /// The share of this user.
    Share(u32),
}

/// The last refusals.
#[derive(Debug, Default)]
pub(crate) struct NoRoom {
    last: Mutex<[Option<(Full, Instant)>; 3]>,
}

impl NoRoom {
    /// Records a refusal, if it is one for want of space.
    pub(crate) fn note(&self, sender: Sender, reason: Refusal, now: Instant) {
        let (kind, full) = match reason {
            Refusal::CapacityExceeded if sender.source.is_none() => (0, Full::Table),
            Refusal::UserShareExceeded { uid } => (1, Full::Share(uid)),
            Refusal::CapacityExceeded => (2, Full::RemoteTable),
            _ => return,
        };
        // No holder of the lock panics; even then its entries would be complete.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last[kind] = Some((full, now));
    }

    /// The tables and shares that were recently full, the tables first.
    pub(crate) fn lately(&self, now: Instant) -> Vec<Full> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = |at: Instant| now.saturating_duration_since(at) < LATELY;
        let lately = last.iter().flatten().filter(|(_, at)| is_late(*at));
        lately.map(|(full, _)| *full).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Sender = Sender {
        pid: 7,
        source: None,
    };

    #[test]
    fn what_there_is_no_room_in_is_said_for_a_minute_after_the_last_refusal() {
        let no_room = NoRoom::default();
        let start = Instant::now();
        assert_eq!(no_room.lately(start), []);
        no_room.note(LOCAL, Refusal::UserShareExceeded { uid: 5 }, start);
        no_room.note(LOCAL, Refusal::CapacityExceeded, start + LATELY / 2);
        no_room.note(LOCAL, Refusal::OutOfOrder, start + LATELY);
        let just_before = start + LATELY - Duration::from_millis(1);
        assert_eq!(no_room.lately(just_before), [Full::Table, Full::Share(5)]);
        assert_eq!(no_room.lately(start + LATELY), [Full::Table]);
        assert_eq!(no_room.lately(start + 2 * LATELY), []);
    }

    #[test]
    fn a_full_table_of_agents_elsewhere_is_not_that_of_this_host() {
        let no_room = NoRoom::default();
        let now = Instant::now();
        let remote = Sender {
            source: Some(("10.0.0.1".parse().unwrap(), 1)),
            ..LOCAL
        };
        no_room.note(remote, Refusal::CapacityExceeded, now);
        assert_eq!(no_room.lately(now), [Full::RemoteTable]);
    }
}
