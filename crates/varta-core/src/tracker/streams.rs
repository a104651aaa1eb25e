//! The slots of each local process: one in an exact index by pid, further ones linked to it.
//!
//! Most processes have one stream, whose slot is found with one probe. In a process with several, stream 0 comes
//! first if it exists, so that datagrams find it as fast. A process has [`MAX_STREAMS_PER_PROCESS`] at most,
//! which bounds every walk. Nothing is allocated after construction.

use std::iter::successors;

use crate::index::{PID_LIMIT, PidIndex};

/// Streams of one process at most. It bounds the work of finding one and of ending them all.
pub const MAX_STREAMS_PER_PROCESS: usize = 64;

/// End of a list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Streams {
    first: PidIndex,
    /// Of each slot, the next one of the same process.
    next: Box<[u32]>,
}

impl Streams {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            first: PidIndex::new(),
            next: vec![NONE; capacity].into_boxed_slice(),
        }
    }

    /// The first slot of the process with this pid.
    pub(super) fn first(&self, pid: u32) -> Option<u32> {
        self.first.get(pid)
    }

    /// The slot of the same process after this one.
    pub(super) fn after(&self, slot: u32) -> Option<u32> {
        let next = *self.next.get(slot as usize)?;
        (next != NONE).then_some(next)
    }

    /// All slots of the process with this pid.
    pub(super) fn of(&self, pid: u32) -> impl Iterator<Item = u32> + '_ {
        successors(self.first(pid), |slot| self.after(*slot)).take(MAX_STREAMS_PER_PROCESS)
    }

    /// Whether the process with this pid may have one more stream.
    pub(super) fn has_room(&self, pid: u32) -> bool {
        pid < PID_LIMIT && self.of(pid).count() < MAX_STREAMS_PER_PROCESS
    }

    /// Adds a slot that is in no list: in front of the others or behind the first.
    pub(super) fn link(&mut self, pid: u32, slot: u32, in_front: bool) {
        let first = self.first(pid);
        match first {
            Some(first) if !in_front => {
                self.next[slot as usize] = self.next[first as usize];
                self.next[first as usize] = slot;
            }
            _ => {
                self.next[slot as usize] = first.unwrap_or(NONE);
                // The index accepts every pid for which `has_room` was true.
                let _ = self.first.insert(pid, slot);
            }
        }
    }

    /// Removes a slot from the list of its process.
    pub(super) fn unlink(&mut self, pid: u32, slot: u32) {
        let after = self.after(slot);
        if self.first(pid) == Some(slot) {
            match after {
                // It replaces the entry of the pid.
                Some(after) => drop(self.first.insert(pid, after)),
                None => drop(self.first.remove(pid)),
            }
        } else {
            let before = self
                .of(pid)
                .find(|before| self.after(*before) == Some(slot));
            if let Some(before) = before {
                self.next[before as usize] = after.unwrap_or(NONE);
            }
        }
        self.next[slot as usize] = NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_its_slots_in_order_and_loses_any_of_them() {
        let mut streams = Streams::new(4);
        let of = |streams: &Streams| streams.of(7).collect::<Vec<_>>();
        streams.link(7, 2, false);
        streams.link(7, 0, false);
        streams.link(7, 3, true);
        assert_eq!(of(&streams), [3, 2, 0]);
        streams.link(8, 1, true);
        streams.unlink(7, 2);
        assert_eq!(of(&streams), [3, 0]);
        streams.unlink(7, 3);
        streams.unlink(7, 0);
        assert_eq!(of(&streams), []);
        assert_eq!(streams.first(8), Some(1));
    }

    #[test]
    fn a_process_has_room_for_so_many_and_an_impossible_pid_for_none() {
        let mut streams = Streams::new(MAX_STREAMS_PER_PROCESS + 1);
        for slot in 0..MAX_STREAMS_PER_PROCESS as u32 {
            assert!(streams.has_room(7));
            streams.link(7, slot, false);
        }
        assert!(!streams.has_room(7));
        assert!(streams.has_room(8));
        assert!(!streams.has_room(PID_LIMIT));
    }
}
