//! Processes whose end was reported, so that none is reported twice.
//!
//! Beats can arrive in the name of a zombie: root of a pid namespace may put its pid into the credentials of a datagram
//! at any rate. Beats of a process may also still be queued when its end is reported. Neither is a new agent. A table
//! of fixed size holds pids and instances. Each pid maps to one place; a process that ends later overwrites another pid
//! in the same place.

use crate::agent::UNIDENTIFIED;

/// Places: 16 384, 384 KiB that stay untouched until they are used. The kernel assigns pids in sequence, so that
/// many consecutive ends do not overwrite each other.
const PLACES: usize = 1 << 14;

/// A process that can no longer be examined counts as the one that had its pid and ended within this time: 1 s,
/// in which no pid is reused.
const SAME_NS: u64 = 1_000_000_000;

/// The table; all zero while no process has ended.
#[derive(Debug)]
pub(super) struct EndedProcesses {
    /// Pid, instance, and when the end was reported.
    places: Box<[[u64; 3]]>,
}

impl Default for EndedProcesses {
    fn default() -> Self {
        Self {
            places: vec![[0; 3]; PLACES].into_boxed_slice(),
        }
    }
}

impl EndedProcesses {
    /// Records that the end of a process was reported.
    pub(super) fn insert(&mut self, pid: u32, instance: u64, now_ns: u64) {
        self.places[place(pid)] = [pid.into(), instance, now_ns];
    }

    /// Whether the end of this process was reported. A process that no longer exists has no instance.
    pub(super) fn contains(&self, pid: u32, instance: Option<u64>, now_ns: u64) -> bool {
        let [known, known_instance, ended_ns] = self.places[place(pid)];
        if known != u64::from(pid) {
            return false;
        }
        match instance {
            Some(instance) if instance != UNIDENTIFIED => instance == known_instance,
            _ => now_ns.saturating_sub(ended_ns) < SAME_NS,
        }
    }
}

fn place(pid: u32) -> usize {
    pid as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_ends_once_and_its_successor_is_another() {
        let mut ended = EndedProcesses::default();
        assert!(!ended.contains(7, Some(70), 0));
        ended.insert(7, 70, 0);
        assert!(ended.contains(7, Some(70), u64::MAX), "for ever");
        assert!(!ended.contains(7, Some(71), 0));
        assert!(!ended.contains(7 + PLACES as u32, Some(70), 0));
        ended.insert(7 + PLACES as u32, 72, 0);
        assert!(!ended.contains(7, Some(70), 0), "its place was taken");
    }

    #[test]
    fn a_process_that_is_not_there_any_more_is_the_one_that_has_just_ended() {
        let mut ended = EndedProcesses::default();
        for instance in [70, UNIDENTIFIED] {
            ended.insert(7, instance, 5);
            assert!(ended.contains(7, None, SAME_NS + 4));
            assert!(ended.contains(7, Some(UNIDENTIFIED), SAME_NS + 4));
            assert!(!ended.contains(7, None, SAME_NS + 5));
        }
    }
}
