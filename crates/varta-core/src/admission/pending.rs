//! Beats that wait for the reply to a query about their sender.
//!
//! Most beats never wait. A beat waits if its sender claims another pid than the observer's kernel reports (a
//! container), if foreign namespaces are refused, or if the kernel did not pass the sender's process with the
//! datagram. There is one query per process; later beats of the process wait with the first. The number of waiting
//! beats is bounded; a beat beyond it is refused. Nothing is allocated after construction.

use super::AttestedFrame;

/// Beats that may wait at the same time. A reply takes less than a millisecond as a rule.
const BEATS_MAX: usize = 1024;

/// Beats of one process that may wait, so that one flood does not fill the queue.
const BEATS_PER_PROCESS_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct PendingBeat {
    beat: AttestedFrame,
    /// The instance of its sender, where known.
    instance: Option<u64>,
    ticket: u64,
}

/// The waiting beats.
#[derive(Debug)]
pub(super) struct PendingBeats {
    beats: Vec<PendingBeat>,
    tickets: u64,
}

/// The result of queueing a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queued {
    /// The beat is the first of its process: the caller makes a query with this ticket.
    First(u64),
    /// The beat waits for the reply to an earlier query.
    Behind,
    /// The queue is full.
    Full,
}

impl PendingBeats {
    pub(super) fn new() -> Self {
        Self {
            beats: Vec::with_capacity(BEATS_MAX),
            tickets: 0,
        }
    }

    /// Queues a beat.
    pub(super) fn push(&mut self, beat: AttestedFrame, instance: Option<u64>) -> Queued {
        if self.beats.len() == BEATS_MAX {
            return Queued::Full;
        }
        let is_same = |pending: &&PendingBeat| {
            pending.beat.sender.pid == beat.sender.pid && pending.instance == instance
        };
        let before = self.beats.iter().find(is_same).map(|first| first.ticket);
        if before.is_some() && self.beats.iter().filter(is_same).count() >= BEATS_PER_PROCESS_MAX {
            return Queued::Full;
        }
        let ticket = before.unwrap_or_else(|| {
            self.tickets += 1;
            self.tickets
        });
        self.beats.push(PendingBeat {
            beat,
            instance,
            ticket,
        });
        match before {
            Some(_) => Queued::Behind,
            None => Queued::First(ticket),
        }
    }

    /// The next beat that waits for this reply, oldest first.
    pub(super) fn pop(&mut self, ticket: u64) -> Option<AttestedFrame> {
        let position = self.beats.iter().position(|beat| beat.ticket == ticket)?;
        Some(self.beats.remove(position).beat)
    }
}

#[cfg(test)]
mod tests {
    use varta_vlp::{Frame, Status};

    use super::*;
    use crate::agent::Credentials;

    fn beat(pid: u32, nonce: u64) -> AttestedFrame {
        let (uid, gid) = (0, 0);
        AttestedFrame {
            frame: Frame::new(Status::Ok, 1, 0, nonce, 0),
            sender: Credentials { pid, uid, gid },
        }
    }

    #[test]
    fn a_process_is_asked_about_once_and_its_beats_come_out_in_order() {
        let mut pending = PendingBeats::new();
        let Queued::First(ticket) = pending.push(beat(7, 1), Some(70)) else {
            panic!("the first asks");
        };
        assert_eq!(pending.push(beat(7, 2), Some(70)), Queued::Behind);
        let other = pending.push(beat(8, 9), Some(80));
        assert!(matches!(other, Queued::First(number) if number != ticket));
        let popped = std::iter::from_fn(|| pending.pop(ticket));
        assert_eq!(
            popped.map(|beat| beat.frame.nonce).collect::<Vec<_>>(),
            [1, 2]
        );
    }

    #[test]
    fn another_process_with_the_same_pid_does_not_wait_behind_the_first() {
        let mut pending = PendingBeats::new();
        pending.push(beat(7, 1), Some(70));
        let other = pending.push(beat(7, 1), Some(71));
        assert!(matches!(other, Queued::First(_)));
    }

    #[test]
    fn the_beats_that_wait_are_bounded() {
        let mut pending = PendingBeats::new();
        for pid in 0..BEATS_MAX as u32 {
            let queued = pending.push(beat(pid, 1), None);
            assert!(matches!(queued, Queued::First(_)));
        }
        assert_eq!(pending.push(beat(1, 1), None), Queued::Full);
        pending.pop(1).unwrap();
        assert_eq!(pending.push(beat(1, 2), None), Queued::Behind);
    }

    #[test]
    fn one_process_leaves_room_for_others() {
        let mut pending = PendingBeats::new();
        for _ in 0..BEATS_PER_PROCESS_MAX {
            assert_ne!(pending.push(beat(7, 1), None), Queued::Full);
        }
        assert_eq!(pending.push(beat(7, 1), None), Queued::Full);
        assert!(matches!(pending.push(beat(8, 1), None), Queued::First(_)));
    }
}
