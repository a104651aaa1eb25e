//! The waiting room: beats that cannot be credited before it is known more of their sender.
//!
//! Most beats never come here. Those do whose sender calls itself by another pid than the kernel of the
//! observer does (a container), whose sender must not be foreign, or whose sender the kernel has not
//! handed over together with the datagram. The control thread is asked once per process; the beats that
//! come meanwhile wait with the first. The room is small and bounded: what finds no place is refused.

use varta_core::{Claims, Credentials, Refusal};
use varta_vlp::Frame;

use super::remembered::Remembered;

/// Beats that may wait at the same time. An answer takes less than a millisecond as a rule.
const BEATS_MAX: usize = 1024;

/// Beats of one process that may wait: a flood of one does not fill the room.
const BEATS_PER_PROCESS_MAX: usize = 64;

/// Datagrams of an unknown process that are refused, each within that time of the one before, and make it
/// noisy.
const NOISY_DATAGRAMS: u32 = 16;

/// A beat that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) frame: Frame,
    pub(super) sender: Credentials,
    /// The instance of its sender, where known.
    instance: Option<u64>,
    ticket: u64,
}

/// The waiting room.
#[derive(Debug)]
pub(super) struct Introductions {
    beats: Vec<Waiting>,
    tickets: u64,
    /// Unknown processes that were refused after a look at them: another look costs reading `/proc`.
    rejected: Remembered<u32, Rejected>,
    /// Unknown processes that send what is refused at once, and how often: each time costs a descriptor.
    noisy: Remembered<u32, u32>,
    /// Processes that said goodbye.
    departed: Remembered<u32, ()>,
}

/// Why a process was refused after a look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) reason: Refusal,
    /// What it may call itself, where known.
    pub(super) claims: Option<Claims>,
}

/// What came of letting a beat wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admitted {
    /// It is the first of its process: somebody must ask, with this ticket.
    First(u64),
    /// It waits for an answer that is on its way.
    Behind,
    /// There is no room.
    Full,
}

impl Introductions {
    pub(super) fn new() -> Self {
        Self {
            beats: Vec::with_capacity(BEATS_MAX),
            tickets: 0,
            rejected: Remembered::new(),
            noisy: Remembered::new(),
            departed: Remembered::new(),
        }
    }

    /// Lets a beat wait.
    pub(super) fn admit(
        &mut self,
        frame: Frame,
        sender: Credentials,
        instance: Option<u64>,
    ) -> Admitted {
        if self.beats.len() == BEATS_MAX {
            return Admitted::Full;
        }
        let is_same =
            |waiting: &&Waiting| waiting.sender.pid == sender.pid && waiting.instance == instance;
        let before = self.beats.iter().find(is_same).map(|first| first.ticket);
        if before.is_some() && self.beats.iter().filter(is_same).count() >= BEATS_PER_PROCESS_MAX {
            return Admitted::Full;
        }
        let ticket = before.unwrap_or_else(|| {
            self.tickets += 1;
            self.tickets
        });
        self.beats.push(Waiting {
            frame,
            sender,
            instance,
            ticket,
        });
        match before {
            Some(_) => Admitted::Behind,
            None => Admitted::First(ticket),
        }
    }

    /// The next beat that waits for this answer, oldest first.
    pub(super) fn next(&mut self, ticket: u64) -> Option<Waiting> {
        let position = self.beats.iter().position(|beat| beat.ticket == ticket)?;
        Some(self.beats.remove(position))
    }

    /// Remembers why an unknown process was refused after a look at it.
    pub(super) fn remember_rejected(&mut self, pid: u32, rejected: Rejected, now_ns: u64) {
        self.rejected.add(pid, rejected, now_ns);
    }

    /// Why an unknown process was refused after a look at it a moment ago.
    pub(super) fn rejected(&self, pid: u32, now_ns: u64) -> Option<Rejected> {
        self.rejected.get(pid, now_ns)
    }

    /// Remembers that an unknown process sent what is refused at once.
    pub(super) fn remember_noisy(&mut self, pid: u32, now_ns: u64) {
        let before = self.noisy.get(pid, now_ns).unwrap_or(0);
        self.noisy.add(pid, before.saturating_add(1), now_ns);
    }

    /// Whether an unknown process has sent much of that a moment ago.
    pub(super) fn is_noisy(&self, pid: u32, now_ns: u64) -> bool {
        self.noisy.get(pid, now_ns).unwrap_or(0) >= NOISY_DATAGRAMS
    }

    /// Remembers a process that said goodbye.
    pub(super) fn remember_departed(&mut self, pid: u32, now_ns: u64) {
        self.departed.add(pid, (), now_ns);
    }

    /// Whether a process said goodbye a moment ago.
    pub(super) fn has_departed(&self, pid: u32, now_ns: u64) -> bool {
        self.departed.get(pid, now_ns).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_vlp::Status;

    fn frame(nonce: u64) -> Frame {
        Frame::new(Status::Ok, 1, 0, nonce, 0)
    }

    fn sender(pid: u32) -> Credentials {
        Credentials {
            pid,
            uid: 0,
            gid: 0,
        }
    }

    #[test]
    fn a_process_is_asked_about_once_and_its_beats_come_out_in_order() {
        let mut room = Introductions::new();
        let Admitted::First(ticket) = room.admit(frame(1), sender(7), Some(70)) else {
            panic!("the first asks");
        };
        assert_eq!(room.admit(frame(2), sender(7), Some(70)), Admitted::Behind);
        let other = room.admit(frame(9), sender(8), Some(80));
        assert!(matches!(other, Admitted::First(number) if number != ticket));
        let mut nonces = Vec::new();
        while let Some(waiting) = room.next(ticket) {
            nonces.push(waiting.frame.nonce);
        }
        assert_eq!(nonces, [1, 2]);
    }

    #[test]
    fn another_process_with_the_same_pid_does_not_wait_behind_the_first() {
        let mut room = Introductions::new();
        room.admit(frame(1), sender(7), Some(70));
        let other = room.admit(frame(1), sender(7), Some(71));
        assert!(matches!(other, Admitted::First(_)));
    }

    #[test]
    fn the_room_is_bounded() {
        let mut room = Introductions::new();
        for pid in 0..BEATS_MAX as u32 {
            assert!(matches!(
                room.admit(frame(1), sender(pid), None),
                Admitted::First(_)
            ));
        }
        assert_eq!(room.admit(frame(1), sender(1), None), Admitted::Full);
        room.next(1).unwrap();
        assert_eq!(room.admit(frame(2), sender(1), None), Admitted::Behind);
    }

    #[test]
    fn one_process_cannot_fill_the_room() {
        let mut room = Introductions::new();
        for _ in 0..BEATS_PER_PROCESS_MAX {
            assert_ne!(room.admit(frame(1), sender(7), None), Admitted::Full);
        }
        assert_eq!(room.admit(frame(1), sender(7), None), Admitted::Full);
        assert!(matches!(
            room.admit(frame(1), sender(8), None),
            Admitted::First(_)
        ));
    }

    #[test]
    fn what_is_refused_now_and_then_is_no_noise() {
        let mut room = Introductions::new();
        for _ in 1..NOISY_DATAGRAMS {
            room.remember_noisy(7, 0);
        }
        assert!(!room.is_noisy(7, 0));
        room.remember_noisy(7, 0);
        assert!(room.is_noisy(7, 0));
    }
}
