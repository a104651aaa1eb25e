//! Processes that have ended, so that none of them is told of twice.
//!
//! A zombie can be made to speak: whoever rules a pid namespace may put its pid into the credentials of a datagram,
//! as often as it likes. Beats of a process may also be in the queue still when its end has been told. Neither is a
//! new agent. Remembered are pids and instances in a table of fixed size, where a pid has one place and the last one
//! to end takes it from another pid that has the same.

use crate::process_info::UNIDENTIFIED;

/// Places: 16 384, 384 KiB that stay untouched until they are used. Pids are given out in a row, so as many that
/// end one after the other do not take each other's.
const PLACES: usize = 1 << 14;

/// A process that nobody can look at any more is taken for the one that had its pid and ended within this time:
/// 1 s, in which no pid comes round.
const SAME_NS: u64 = 1_000_000_000;

/// The table; all zero where nobody has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Pid, instance, and when its end was told.
    places: Box<[[u64; 3]]>,
}

impl Ended {
    pub(super) fn new() -> Self {
        Self {
            places: vec![[0; 3]; PLACES].into_boxed_slice(),
        }
    }

    /// The end of a process is told.
    pub(super) fn add(&mut self, pid: u32, instance: u64, now_ns: u64) {
        self.places[place(pid)] = [pid.into(), instance, now_ns];
    }

    /// Whether the end of this process was told. One that is not there any more has no instance.
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
        let mut ended = Ended::new();
        assert!(!ended.contains(7, Some(70), 0));
        ended.add(7, 70, 0);
        assert!(ended.contains(7, Some(70), u64::MAX), "for ever");
        assert!(!ended.contains(7, Some(71), 0));
        assert!(!ended.contains(7 + PLACES as u32, Some(70), 0));
        ended.add(7 + PLACES as u32, 72, 0);
        assert!(!ended.contains(7, Some(70), 0), "its place was taken");
    }

    #[test]
    fn who_is_not_there_any_more_is_the_one_that_has_just_ended() {
        let mut ended = Ended::new();
        for instance in [70, UNIDENTIFIED] {
            ended.add(7, instance, 5);
            assert!(ended.contains(7, None, SAME_NS + 4));
            assert!(ended.contains(7, Some(UNIDENTIFIED), SAME_NS + 4));
            assert!(!ended.contains(7, None, SAME_NS + 5));
        }
    }
}
