//! Reading the local socket: one by one after a look at each sender, in batches in a flood, not at all while that
//! fails.
//!
//! Where the kernel cannot refuse descriptors, each datagram is looked at before it is taken, in a flood too, and one that
//! brings some is left to [`super::discards`]. Until it has left the queue nothing is read.
//!
//! A socket that cannot be read is tried again after a pause that grows. While the local one is not read, nobody's silence
//! is proved beyond what was read before.

use std::io;
use std::os::fd::AsFd;

use varta_core::admission::Datagram;
use varta_core::attention::Gap;
use varta_core::{Counter, Credentials, EventKind, Refusal};
use varta_sys::receive::{Head, Peeked, pass_pidfd, peek};
use varta_vlp::FRAME_BYTES;

use super::discards::Discards;
use super::sleep::Fetched;
use super::{BATCH, Ingest, credentials_of};
use crate::beat_path_state::Transport;

/// So many calls in a row that fail are no accident.
const FAILURES_MAX: u32 = 3;

/// The first pause then, 10 ms, and what pauses double up to, 1 s: whoever reads the log has noticed by then.
const PAUSE_MIN_NS: u64 = 10_000_000;
const PAUSE_MAX_NS: u64 = 1_000_000_000;

/// How soon it is looked whether a datagram that brings descriptors has left the queue, if nobody rings: 1 ms, and then
/// an eighth of the time that it takes, up to 100 ms.
const HANDOVER_PAUSE_MIN_NS: u64 = 1_000_000;
const HANDOVER_PAUSE_MAX_NS: u64 = 100_000_000;

/// A datagram that takes longer than this to leave the queue keeps everybody waiting, and so does a socket that cannot be
/// read for that long: 100 ms, lateness that no agent tolerates.
const DEAF_NS: u64 = 100_000_000;

/// One byte more than a frame, so that a longer datagram can be told from one.
pub(super) const DATAGRAM_BYTES: usize = FRAME_BYTES + 1;

/// Whether a socket is read.
#[derive(Debug)]
pub(super) struct Intake {
    transport: Transport,
    /// Calls in a row that have failed.
    failures: u32,
    error: u64,
    /// It is left alone until then.
    rests_until_ns: u64,
    /// The next datagram is being taken by somebody else, since then.
    handed_over_ns: Option<u64>,
    /// Since when it has not been read although it should.
    closed_ns: Option<u64>,
    /// Input on it does not wake the beat path.
    is_unheeded: bool,
}

/// Why a batch has come to its end.
enum Stop {
    /// It is full.
    Full,
    /// Nothing more is queued.
    Empty,
    /// Nothing more can be read now.
    Closed,
}

impl Intake {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            failures: 0,
            error: 0,
            rests_until_ns: 0,
            handed_over_ns: None,
            closed_ns: None,
            is_unheeded: false,
        }
    }

    /// Everything that is queued can be read.
    pub(super) fn is_open(&self) -> bool {
        self.closed_ns.is_none()
    }

    /// It may be tried.
    pub(super) fn may_be_read(&self, now_ns: u64) -> bool {
        self.handed_over_ns.is_none() && self.rests_until_ns <= now_ns
    }

    pub(super) fn has_failed(&mut self, error: &io::Error, now_ns: u64) {
        self.closed_ns.get_or_insert(now_ns);
        self.failures = self.failures.saturating_add(1);
        if let Some(times) = self.failures.checked_sub(FAILURES_MAX) {
            self.error = error
                .raw_os_error()
                .unwrap_or_default()
                .unsigned_abs()
                .into();
            let pause_ns = PAUSE_MIN_NS << times.min(10);
            self.rests_until_ns = now_ns + pause_ns.min(PAUSE_MAX_NS);
        }
    }

    /// It was read. Returns for how long it was not, in nanoseconds.
    pub(super) fn has_succeeded(&mut self, now_ns: u64) -> u64 {
        let Some(closed_ns) = self.closed_ns.take() else {
            return 0;
        };
        (self.failures, self.error, self.rests_until_ns) = (0, 0, 0);
        now_ns.saturating_sub(closed_ns)
    }

    fn hand_over(&mut self, now_ns: u64) {
        self.closed_ns.get_or_insert(now_ns);
        self.handed_over_ns = Some(now_ns);
    }

    /// When it is to be tried again, if nothing else happens.
    pub(super) fn next_try_ns(&self, now_ns: u64) -> Option<u64> {
        let handover_ns = self.handed_over_ns.map(|since_ns| {
            let pause_ns = now_ns.saturating_sub(since_ns) / 8;
            now_ns + pause_ns.clamp(HANDOVER_PAUSE_MIN_NS, HANDOVER_PAUSE_MAX_NS)
        });
        let rests_until_ns = Some(self.rests_until_ns).filter(|until_ns| *until_ns > now_ns);
        handover_ns.or(rests_until_ns)
    }

    /// `Some` if whether its input wakes the beat path is to be changed.
    fn change_heed(&mut self, now_ns: u64) -> Option<bool> {
        let is_unheeded = !self.may_be_read(now_ns);
        let has_changed = std::mem::replace(&mut self.is_unheeded, is_unheeded) != is_unheeded;
        has_changed.then_some(!is_unheeded)
    }
}

impl Ingest {
    /// Reads until the queue is empty, or so many datagrams.
    pub(super) fn drain_socket(&mut self, fetched: &mut Fetched, budget: usize) -> io::Result<()> {
        let mut read = 0;
        if self.may_read_local() {
            let mut is_over = false;
            if self.config.kernel.sender_pidfd && !self.flood.is_here {
                is_over = self.take_one_by_one(&mut read, budget);
            }
            if !is_over {
                self.take_batches(&mut read, budget, fetched)?;
            }
        }
        self.flood.read += read;
        self.turn_read += read;
        Ok(())
    }

    /// Looks at the sender of each datagram before it is taken. True once the queue is empty or cannot be read.
    fn take_one_by_one(&mut self, read: &mut usize, budget: usize) -> bool {
        let looked_ns = self.attention.raw_now_ns();
        while *read < self.one_by_one.min(budget) {
            match self.look_at_next() {
                Ok(Peeked::Empty) => {
                    self.local_was_read();
                    self.saw_empty_queue(looked_ns);
                    return true;
                }
                Ok(Peeked::Datagram(head)) => {
                    if self.leave_to_others(&head) {
                        return true;
                    }
                    if let Err(error) = self.take_one(head.credentials.map(credentials_of)) {
                        self.local_has_failed(&error);
                        return true;
                    }
                }
                Err(error) => {
                    self.local_has_failed(&error);
                    return true;
                }
            }
            self.queue.has_read(1);
            *read += 1;
        }
        false
    }

    /// Takes what is queued in batches, and looks who has ended by then.
    fn take_batches(
        &mut self,
        read: &mut usize,
        budget: usize,
        fetched: &mut Fetched,
    ) -> io::Result<()> {
        while *read < budget {
            let looked_ns = self.look();
            self.batch.clear();
            let stop = match self.discards {
                None => self.receive_batch(),
                Some(_) => self.receive_batch_looking(),
            };
            let known_exits = self.ready.exits.len();
            self.sleeper.look(&mut self.ready, fetched)?;
            for slot in &self.ready.exits[known_exits..] {
                self.held[*slot as usize].has_ended = true;
            }
            let received = self.batch.len();
            // They were sent before now: a silence that began at an earlier look would be over too early.
            self.look();
            (0..received).for_each(|i| self.hear(i));
            *read += received;
            self.queue.has_read(received);
            match stop {
                Stop::Full => self.horizon.has_read(received, looked_ns),
                Stop::Empty => {
                    self.saw_empty_queue(looked_ns);
                    return Ok(());
                }
                Stop::Closed => return Ok(()),
            }
        }
        Ok(())
    }

    /// Fills the batch at once.
    fn receive_batch(&mut self) -> Stop {
        match self.batch.receive(self.socket.as_fd(), BATCH) {
            Err(error) => {
                self.local_has_failed(&error);
                Stop::Closed
            }
            Ok(received) => {
                self.local_was_read();
                match received {
                    BATCH => Stop::Full,
                    _ => Stop::Empty,
                }
            }
        }
    }

    /// Fills the batch one by one, after a look whether the next datagram brings descriptors.
    fn receive_batch_looking(&mut self) -> Stop {
        while self.batch.len() < BATCH {
            let taken = self.look_at_next().and_then(|peeked| match peeked {
                Peeked::Empty => Ok(Some(Stop::Empty)),
                Peeked::Datagram(head) if self.leave_to_others(&head) => Ok(Some(Stop::Closed)),
                Peeked::Datagram(_) => {
                    self.batch.receive_more(self.socket.as_fd(), 1)?;
                    Ok(None)
                }
            });
            match taken {
                Ok(None) => self.local_was_read(),
                Ok(Some(stop)) => {
                    if matches!(stop, Stop::Empty) {
                        self.local_was_read();
                    }
                    return stop;
                }
                Err(error) => {
                    self.local_has_failed(&error);
                    return Stop::Closed;
                }
            }
        }
        Stop::Full
    }

    /// The queue of local agents was empty at some time after `looked_ns`.
    fn saw_empty_queue(&mut self, looked_ns: u64) {
        self.horizon.saw_empty_queue(looked_ns);
        self.queue.saw_empty();
    }

    /// Takes the datagram that was looked at; a stranger's together with its sender.
    fn take_one(&mut self, sender: Option<Credentials>) -> io::Result<()> {
        let with_sender = sender.is_some_and(|sender| self.wants_pidfd_of(sender))
            && pass_pidfd(self.socket.as_fd(), true).is_ok();
        let received = self.batch.receive(self.socket.as_fd(), 1);
        if let Ok(received) = received {
            self.local_was_read();
            // It was sent before now: a silence that began at an earlier look would be over too early.
            self.look();
            (0..received).for_each(|i| self.hear(i));
        }
        if with_sender {
            // Left on it would only cost time.
            let _ = pass_pidfd(self.socket.as_fd(), false);
        }
        received.map(drop)
    }

    fn look_at_next(&self) -> io::Result<Peeked> {
        peek(self.socket.as_fd(), &mut [])
    }

    /// Refuses a datagram that brings descriptors, and has it taken out of the queue. False if it brings none.
    fn leave_to_others(&mut self, head: &Head) -> bool {
        let (Some(discards), true) = (&self.discards, head.has_descriptors) else {
            return false;
        };
        let mut bytes = [0; DATAGRAM_BYTES];
        // What it says tells which flood it belongs to.
        let head = match peek(self.socket.as_fd(), &mut bytes) {
            Ok(Peeked::Datagram(head)) => head,
            Ok(Peeked::Empty) | Err(_) => *head,
        };
        discards.take_next();
        let now_ns = self.attention.raw_now_ns();
        self.intake.hand_over(now_ns);
        self.horizon.has_read(1, now_ns);
        self.queue.has_read(1);
        self.turn_read += 1;
        self.refuse_descriptors(&Datagram {
            bytes: &bytes[..head.len],
            truncated: head.truncated,
            control_truncated: true,
            credentials: head.credentials.map(credentials_of),
        });
        true
    }

    fn refuse_descriptors(&mut self, datagram: &Datagram<'_>) {
        let pid = datagram.credentials.map_or(0, |sender| sender.pid);
        let kind = self.flood_kind(datagram);
        self.refuse(pid, Refusal::ControlTruncated);
        if let Some(kind) = kind {
            let shed = self.shed.note(kind, true);
            self.counters.add(Counter::Shed, shed);
        }
    }

    /// Whether the local socket may be read now.
    fn may_read_local(&mut self) -> bool {
        let now_ns = self.attention.raw_now_ns();
        if self.intake.handed_over_ns.is_some() {
            match self.discards.as_ref().and_then(Discards::outcome) {
                None => return false,
                Some(outcome) => {
                    self.intake.handed_over_ns = None;
                    match outcome {
                        Ok(()) => self.local_was_read(),
                        Err(error) => self.local_has_failed(&error),
                    }
                }
            }
        }
        self.intake.may_be_read(now_ns)
    }

    fn local_has_failed(&mut self, error: &io::Error) {
        self.counters.count(Counter::ReceiveErrors);
        self.intake.has_failed(error, self.attention.raw_now_ns());
    }

    fn local_was_read(&mut self) {
        if self.intake.is_open() {
            return;
        }
        let now_ns = self.look();
        let closed_ns = self.intake.has_succeeded(now_ns);
        if closed_ns > DEAF_NS {
            self.take_note_of_gap(Gap {
                gap_ns: closed_ns,
                is_off_the_clock: false,
            });
        }
    }

    /// What silence up to `heard_ns` is proved by what was read. All of it, unless there is something in the queue that
    /// cannot be read now.
    pub(super) fn provable_ns(&self, heard_ns: u64) -> u64 {
        if self.intake.is_open() {
            return heard_ns;
        }
        // A gap meanwhile makes it less than is proved.
        let raw_ns = self.attention.raw_now_ns();
        let since_ns = raw_ns.saturating_sub(self.horizon.proved_ns);
        heard_ns.min(self.attention.now_ns().saturating_sub(since_ns))
    }

    /// When a socket that is not read is tried again.
    pub(super) fn next_try_ns(&self, now_ns: u64) -> Option<u64> {
        let local_ns = self.intake.next_try_ns(now_ns);
        let network = self.network.as_ref();
        let network_ns = network.and_then(|network| network.intake.next_try_ns(now_ns));
        let discards = self.discards.as_ref();
        let at_work = discards.is_some_and(|discards| discards.at_work() > 0);
        let hang_ns = at_work.then(|| now_ns + DEAF_NS);
        [local_ns, network_ns, hang_ns].into_iter().flatten().min()
    }

    /// Has input wake the beat path if it may be read.
    pub(super) fn heed_sockets(&mut self) -> io::Result<()> {
        let now_ns = self.attention.raw_now_ns();
        if let Some(heed) = self.intake.change_heed(now_ns) {
            self.sleeper.heed_input(&self.socket, heed)?;
        }
        if let Some(network) = &mut self.network
            && let Some(heed) = network.intake.change_heed(now_ns)
        {
            self.sleeper.heed_input(&*network, heed)?;
        }
        Ok(())
    }

    /// Puts up what keeps beats from being received, and tells of it when that changes.
    pub(super) fn tell_receive_trouble(&mut self, now_ns: u64) {
        let state = &self.lines.state;
        let network = self.network.as_ref().map(|network| &network.intake);
        let mut has_changed = false;
        for intake in [Some(&self.intake), network].into_iter().flatten() {
            has_changed |= state.set_receive_errno(intake.transport, intake.error);
        }
        if let Some(discards) = &self.discards {
            let since_ns = self.intake.handed_over_ns.unwrap_or(now_ns);
            let is_blocked = now_ns.saturating_sub(since_ns) > DEAF_NS;
            has_changed |= state.set_blocked(is_blocked);
            has_changed |= state.set_hanging_threads(discards.hanging(now_ns) as u64);
        }
        if has_changed {
            self.send(EventKind::ReceiveTrouble);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn failed(intake: &mut Intake, now_ns: u64) {
        intake.has_failed(&io::Error::from_raw_os_error(1), now_ns);
    }

    #[test]
    fn a_socket_that_fails_once_is_tried_again_at_once_and_one_that_goes_on_failing_rests() {
        let mut intake = Intake::new(Transport::Unix);
        for _ in 1..FAILURES_MAX {
            failed(&mut intake, 5);
            assert!(!intake.is_open() && intake.may_be_read(5));
            assert_eq!((intake.error, intake.next_try_ns(5)), (0, None));
        }
        let mut now_ns = 5;
        for pause_ms in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            failed(&mut intake, now_ns);
            let until_ns = now_ns + pause_ms * MS;
            assert_eq!(intake.next_try_ns(now_ns), Some(until_ns));
            assert!(!intake.may_be_read(until_ns - 1) && intake.may_be_read(until_ns));
            assert_eq!(intake.error, 1);
            now_ns = until_ns;
        }
        assert_eq!(intake.has_succeeded(now_ns), now_ns - 5);
        assert!(intake.is_open() && intake.may_be_read(now_ns));
        assert_eq!((intake.error, intake.next_try_ns(now_ns)), (0, None));
        assert_eq!(intake.has_succeeded(now_ns + 1), 0);
    }

    #[test]
    fn input_is_not_heeded_while_it_may_not_be_read() {
        let mut intake = Intake::new(Transport::Unix);
        assert_eq!(intake.change_heed(5), None);
        intake.hand_over(5);
        assert_eq!(
            (intake.change_heed(5), intake.change_heed(6)),
            (Some(false), None)
        );
        assert_eq!(intake.next_try_ns(5), Some(5 + HANDOVER_PAUSE_MIN_NS));
        intake.handed_over_ns = None;
        assert_eq!(
            (intake.change_heed(7), intake.change_heed(8)),
            (Some(true), None)
        );
    }
}
