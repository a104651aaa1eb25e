//! The Unix socket: read one by one after a peek at each sender, in batches in a flood, and not at all while reading
//! fails.
//!
//! In each turn as many datagrams as the kernel queues are taken one by one, after a peek at the sender of each: the
//! datagram of an unknown sender is received together with its sender's pidfd, which costs too much to request with
//! every beat. Datagrams beyond these, and datagrams that arrive while there is no time to sleep and no unknown
//! sender among them, are a flood and are taken in batches. [`super::local`] identifies the sender.
//!
//! No descriptor of a sender is received or closed in this module, since closing one may hang. The kernel refuses
//! them. Where it cannot, each datagram is peeked at before it is taken, in a flood too, and one that brings
//! descriptors is left to [`super::discards`]. Until it has left the queue nothing is read. While the socket is not
//! read, no silence is proved beyond what was read before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use varta_core::admission::{Datagram, SendTimeBound};
use varta_core::attention::Gap;
use varta_core::fact::Transport;
use varta_core::{AgentKey, Counter, Credentials, EventKind, Locality, ReceiveQueue, Refusal};
use varta_sys::filter;
use varta_sys::receive::{
    DatagramBatch, Head, Peeked, Received, SenderCredentials, pass_pidfd, peek,
};
use varta_vlp::{FRAME_BYTES, MAGIC, NONCE_TERMINAL, VERSION};

use super::discards::Discards;
use super::flood::FloodDetector;
use super::intake::{Intake, UNREAD_MAX_NS};
use super::local::local;
use super::recorder::Recorder;
use super::shed::{FloodKind, Shed};
use super::sleep::{Fetched, Ready};
use crate::clock::RawClock;
use crate::handoff::IdentityReply;
use crate::socket_file::BoundSocket;

/// Datagrams per receive call: enough to make the cost of the call itself negligible in a flood.
const BATCH: usize = 64;

/// Datagrams per turn whose sender is peeked at before they are taken: the depth of the kernel's queue, within these
/// bounds. More datagrams arrive while these are taken, many of them when many agents join at once; only a flood
/// exceeds the bound.
const ONE_BY_ONE_MIN: usize = 256;
const ONE_BY_ONE_MAX: usize = 8192;

/// Fewest datagrams that one turn may read. The real budget is no smaller than the kernel's queue, so that everything
/// that was queued when the turn started is read before any agent is judged.
pub(super) const RECEIVE_BUDGET_MIN: usize = 1024;

/// One byte more than a frame, so that a longer datagram is detected.
const DATAGRAM_BYTES: usize = FRAME_BYTES + 1;

/// The settings of the start.
pub(super) struct UnixOptions {
    /// Datagrams the kernel queues on this socket before it refuses one.
    pub(super) queue_datagrams: usize,
    /// A datagram can bring its sender's pidfd.
    pub(super) sender_pidfd: bool,
    /// Beats per second that an agent may send.
    pub(super) beat_rate: u32,
}

pub(super) struct UnixSource {
    socket: BoundSocket,
    batch: DatagramBatch,
    /// Present where the kernel cannot refuse descriptors.
    discards: Option<Discards>,
    intake: Intake,
    options: UnixOptions,
    sent: SendTimeBound,
    /// Whether beats may have been refused.
    queue: ReceiveQueue,
    flood: FloodDetector,
    pub(super) shed: Shed,
    /// Datagrams of this turn.
    turn_read: usize,
}

/// Why a batch ended.
enum Stop {
    /// It is full.
    Full,
    /// Nothing more is queued.
    Empty,
    /// Nothing more can be read now.
    Closed,
}

impl UnixSource {
    /// `bell` wakes the beat path.
    pub(super) fn new(
        socket: BoundSocket,
        options: UnixOptions,
        bell: Arc<OwnedFd>,
        clock: RawClock,
    ) -> io::Result<Self> {
        let discards = match socket.refuses_descriptors() {
            true => None,
            false => Some(Discards::start(&socket, bell, clock)?),
        };
        Ok(Self {
            socket,
            batch: DatagramBatch::new(BATCH, DATAGRAM_BYTES),
            discards,
            intake: Intake::new(Transport::Unix),
            sent: SendTimeBound::new(options.queue_datagrams),
            queue: ReceiveQueue::new(options.queue_datagrams),
            flood: FloodDetector::default(),
            shed: Shed::new(options.beat_rate),
            options,
            turn_read: 0,
        })
    }

    /// Another turn starts; `is_calm` after a sleep.
    pub(super) fn begin_turn(&mut self, now_ns: u64, is_calm: bool) {
        self.turn_read = 0;
        self.flood.tick(now_ns, is_calm);
    }

    /// Datagrams of this turn.
    pub(super) fn turn_read(&self) -> usize {
        self.turn_read
    }

    /// Everything that is queued can be read.
    pub(super) fn is_open(&self) -> bool {
        self.intake.is_open()
    }

    /// Reads what was queued when the turn started, and a little more.
    pub(super) fn drain_queue(
        &mut self,
        recorder: &mut Recorder,
        ready: &mut Ready,
        fetched: &mut Fetched,
    ) -> io::Result<()> {
        let budget = self.options.queue_datagrams.max(RECEIVE_BUDGET_MIN);
        self.drain(recorder, ready, fetched, budget)
    }

    /// Reads until the queue is empty, or until this many datagrams were read. If the queue may have been full, beats
    /// may have been refused: that silence does not count.
    pub(super) fn drain(
        &mut self,
        recorder: &mut Recorder,
        ready: &mut Ready,
        fetched: &mut Fetched,
        budget: usize,
    ) -> io::Result<()> {
        let mut read = 0;
        if self.may_be_read(recorder) {
            let mut is_over = false;
            if self.options.sender_pidfd && !self.flood.is_here {
                is_over = self.take_one_by_one(recorder, &mut read, budget);
            }
            if !is_over {
                self.take_batches(recorder, ready, fetched, &mut read, budget)?;
            }
        }
        self.flood.read += read;
        self.turn_read += read;
        if self.queue.take_may_have_been_full() {
            recorder.read_clock();
            recorder.counters.count(Counter::QueueFull);
            recorder.restart_silence(Locality::Local, self.queue.restart_thresholds());
        }
        Ok(())
    }

    /// The control thread has examined a process: beats that waited for that can be judged.
    pub(super) fn settle(&mut self, recorder: &mut Recorder, reply: IdentityReply) {
        let shed = &mut self.shed;
        recorder.settle(reply, |claimed| shed.spare(claimed));
    }

    /// Updates the kernel's filter if what it must drop has changed.
    pub(super) fn shed_floods(&mut self, recorder: &mut Recorder) {
        let Some(program) = self.shed.review(recorder.clock.raw_ns()) else {
            return;
        };
        // If the kernel does not filter, the flood reaches the observer.
        let _ = match program {
            [] => filter::detach(self.socket.as_fd()),
            program => filter::attach(self.socket.as_fd(), program),
        };
        while let Some(news) = self.shed.take_news() {
            let pid = match news.kind {
                FloodKind::Of(pid) | FloodKind::LastOf(pid) => pid,
                FloodKind::Shapeless => 0,
            };
            let one_in = news.one_in;
            recorder.send(EventKind::Flood { pid, one_in });
        }
    }

    /// The time up to which silence is proved by what was read: `heard_ns`, unless the queue holds a datagram that
    /// cannot be read now.
    pub(super) fn provable_ns(&self, recorder: &Recorder, heard_ns: u64) -> u64 {
        if self.intake.is_open() {
            return heard_ns;
        }
        // A gap meanwhile shortens the time that is proved.
        let raw_ns = recorder.clock.raw_ns();
        let since_ns = raw_ns.saturating_sub(self.sent.proved_ns());
        heard_ns.min(recorder.clock.now_ns().saturating_sub(since_ns))
    }

    /// When there is work even without input.
    pub(super) fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        let discards = self.discards.as_ref();
        let at_work = discards.is_some_and(|discards| discards.at_work() > 0);
        let hang_ns = at_work.then(|| now_ns + UNREAD_MAX_NS);
        let due = [
            self.shed.next_review_ns(),
            self.intake.next_try_ns(now_ns),
            hang_ns,
        ];
        due.into_iter().flatten().min()
    }

    /// Lets input wake the beat path if the socket may be read.
    pub(super) fn update_wakes(&mut self, recorder: &Recorder) -> io::Result<()> {
        match self.intake.change_wakes(recorder.clock.raw_ns()) {
            Some(wakes) => recorder.sleeper.set_input_wakes(&self.socket, wakes),
            None => Ok(()),
        }
    }

    /// Publishes the reason why beats cannot be received. True if that has changed.
    pub(super) fn publish_trouble(&self, recorder: &Recorder, now_ns: u64) -> bool {
        let state = &recorder.state;
        let mut has_changed = self.intake.publish(state);
        if let Some(discards) = &self.discards {
            let is_blocked = self.intake.handed_over_for_ns(now_ns) > UNREAD_MAX_NS;
            has_changed |= state.set_blocked(is_blocked);
            has_changed |= state.set_hanging_threads(discards.hanging(now_ns) as u64);
        }
        has_changed
    }

    /// Peeks at the sender of each datagram before it is taken. True once the queue is empty or cannot be read.
    fn take_one_by_one(
        &mut self,
        recorder: &mut Recorder,
        read: &mut usize,
        budget: usize,
    ) -> bool {
        let queued = self.options.queue_datagrams;
        let one_by_one = queued.clamp(ONE_BY_ONE_MIN, ONE_BY_ONE_MAX);
        let looked_ns = recorder.clock.raw_ns();
        while *read < one_by_one.min(budget) {
            match self.peek_next() {
                Ok(Peeked::Empty) => {
                    self.was_read(recorder);
                    self.saw_empty_queue(looked_ns);
                    return true;
                }
                Ok(Peeked::Datagram(head)) => {
                    if self.leave_to_others(recorder, &head) {
                        return true;
                    }
                    let sender = head.credentials.map(credentials_of);
                    if let Err(error) = self.take_one(recorder, sender) {
                        self.has_failed(recorder, &error);
                        return true;
                    }
                }
                Err(error) => {
                    self.has_failed(recorder, &error);
                    return true;
                }
            }
            self.queue.has_read(1);
            *read += 1;
        }
        false
    }

    /// Takes what is queued in batches, and checks afterwards which processes have ended by then.
    fn take_batches(
        &mut self,
        recorder: &mut Recorder,
        ready: &mut Ready,
        fetched: &mut Fetched,
        read: &mut usize,
        budget: usize,
    ) -> io::Result<()> {
        while *read < budget {
            let looked_ns = recorder.read_clock();
            self.batch.clear();
            let stop = match self.discards {
                None => self.receive_batch(recorder),
                Some(_) => self.receive_batch_looking(recorder),
            };
            let known_exits = ready.exits.len();
            recorder.sleeper.poll(ready, fetched)?;
            for slot in &ready.exits[known_exits..] {
                recorder.processes.note_end(*slot);
            }
            let received = self.batch.len();
            // The datagrams were sent before now: a silence that started at an earlier reading of the clock would end
            // too early.
            recorder.read_clock();
            (0..received).for_each(|i| self.judge(recorder, i));
            *read += received;
            self.queue.has_read(received);
            match stop {
                Stop::Full => self.sent.has_read(received, looked_ns),
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
    fn receive_batch(&mut self, recorder: &mut Recorder) -> Stop {
        match self.batch.receive(self.socket.as_fd(), BATCH) {
            Err(error) => {
                self.has_failed(recorder, &error);
                Stop::Closed
            }
            Ok(received) => {
                self.was_read(recorder);
                match received {
                    BATCH => Stop::Full,
                    _ => Stop::Empty,
                }
            }
        }
    }

    /// Fills the batch one by one, after a check whether the next datagram brings descriptors.
    fn receive_batch_looking(&mut self, recorder: &mut Recorder) -> Stop {
        while self.batch.len() < BATCH {
            let taken = self.peek_next().and_then(|peeked| match peeked {
                Peeked::Empty => Ok(Some(Stop::Empty)),
                Peeked::Datagram(head) if self.leave_to_others(recorder, &head) => {
                    Ok(Some(Stop::Closed))
                }
                Peeked::Datagram(_) => {
                    self.batch.receive_more(self.socket.as_fd(), 1)?;
                    Ok(None)
                }
            });
            match taken {
                Ok(None) => self.was_read(recorder),
                Ok(Some(stop)) => {
                    if matches!(stop, Stop::Empty) {
                        self.was_read(recorder);
                    }
                    return stop;
                }
                Err(error) => {
                    self.has_failed(recorder, &error);
                    return Stop::Closed;
                }
            }
        }
        Stop::Full
    }

    /// Takes the datagram that was peeked at, with its sender's pidfd if the sender is unknown.
    fn take_one(&mut self, recorder: &mut Recorder, sender: Option<Credentials>) -> io::Result<()> {
        let with_sender = sender.is_some_and(|sender| recorder.wants_process_of(sender))
            && pass_pidfd(self.socket.as_fd(), true).is_ok();
        let received = self.batch.receive(self.socket.as_fd(), 1);
        if let Ok(received) = received {
            self.was_read(recorder);
            // The datagram was sent before now: a silence that started at an earlier reading of the clock would end
            // too early.
            recorder.read_clock();
            (0..received).for_each(|i| self.judge(recorder, i));
        }
        if with_sender {
            // Leaving it on would only cost time.
            let _ = pass_pidfd(self.socket.as_fd(), false);
        }
        received.map(drop)
    }

    /// Judges datagram `i` of the batch.
    fn judge(&mut self, recorder: &mut Recorder, i: usize) {
        let process = self.batch.take_pidfd(i);
        let Some(received) = self.batch.datagram(i) else {
            return;
        };
        let datagram = datagram_of(&received);
        let kind = flood_kind(recorder, &datagram);
        let refusals = recorder.refusals;
        let outcome = recorder.hear_local(&datagram, process, self.sent.proved_ns());
        if outcome.was_unknown {
            self.flood.note_unknown();
        }
        if let Some(claimed) = outcome.joined_as {
            self.shed.spare(claimed);
        }
        if let Some(kind) = kind {
            let shed = self.shed.note(kind, recorder.refusals != refusals);
            recorder.counters.add(Counter::Shed, shed);
        }
    }

    fn peek_next(&self) -> io::Result<Peeked> {
        peek(self.socket.as_fd(), &mut [])
    }

    /// Refuses a datagram that brings descriptors, and requests that it is taken out of the queue. False if it brings
    /// none.
    fn leave_to_others(&mut self, recorder: &mut Recorder, head: &Head) -> bool {
        let (Some(discards), true) = (&self.discards, head.has_descriptors) else {
            return false;
        };
        let mut bytes = [0; DATAGRAM_BYTES];
        // Its content shows which flood it belongs to.
        let head = match peek(self.socket.as_fd(), &mut bytes) {
            Ok(Peeked::Datagram(head)) => head,
            Ok(Peeked::Empty) | Err(_) => *head,
        };
        discards.take_next();
        let now_ns = recorder.clock.raw_ns();
        self.intake.hand_over(now_ns);
        self.sent.has_read(1, now_ns);
        self.queue.has_read(1);
        self.turn_read += 1;
        let datagram = Datagram {
            bytes: &bytes[..head.len],
            truncated: head.truncated,
            control_truncated: true,
            credentials: head.credentials.map(credentials_of),
        };
        let pid = datagram.credentials.map_or(0, |sender| sender.pid);
        recorder.refuse(local(pid), Refusal::ControlTruncated);
        if let Some(kind) = flood_kind(recorder, &datagram) {
            let shed = self.shed.note(kind, true);
            recorder.counters.add(Counter::Shed, shed);
        }
        true
    }

    /// Whether the socket may be read now.
    fn may_be_read(&mut self, recorder: &mut Recorder) -> bool {
        let now_ns = recorder.clock.raw_ns();
        if self.intake.is_handed_over() {
            match self.discards.as_ref().and_then(Discards::outcome) {
                None => return false,
                Some(outcome) => {
                    self.intake.take_back();
                    match outcome {
                        Ok(()) => self.was_read(recorder),
                        Err(error) => self.has_failed(recorder, &error),
                    }
                }
            }
        }
        self.intake.may_be_read(now_ns)
    }

    /// The queue was empty at some time after `looked_ns`.
    fn saw_empty_queue(&mut self, looked_ns: u64) {
        self.sent.saw_empty(looked_ns);
        self.queue.saw_empty();
    }

    fn has_failed(&mut self, recorder: &Recorder, error: &io::Error) {
        recorder.counters.count(Counter::ReceiveErrors);
        self.intake.has_failed(error, recorder.clock.raw_ns());
    }

    fn was_read(&mut self, recorder: &mut Recorder) {
        if self.intake.is_open() {
            return;
        }
        let now_ns = recorder.read_clock();
        let closed_ns = self.intake.has_succeeded(now_ns);
        if closed_ns > UNREAD_MAX_NS {
            recorder.note_gap(Gap {
                gap_ns: closed_ns,
                is_off_the_clock: false,
            });
        }
    }
}

/// The flood that a datagram belongs to if it is one of many. Only datagrams that cannot be another agent's: a frame
/// about its own sender or about no known agent, or a datagram that is no frame.
fn flood_kind(recorder: &Recorder, datagram: &Datagram<'_>) -> Option<FloodKind> {
    let Ok(bytes) = <&[u8; FRAME_BYTES]>::try_from(datagram.bytes) else {
        return Some(FloodKind::Shapeless);
    };
    if bytes[..2] != MAGIC || bytes[2] != VERSION {
        return Some(FloodKind::Shapeless);
    }
    let claimed = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let sender = datagram.credentials.map_or(0, |sender| sender.pid);
    let is_known = || {
        recorder
            .tracker
            .slot_of(&AgentKey::local(claimed))
            .is_some()
    };
    let is_anothers = sender != claimed && is_known();
    if claimed == 0 || is_anothers || recorder.processes.may_be_inner_pid(claimed) {
        return None;
    }
    let has_last_nonce = bytes[16..24] == NONCE_TERMINAL.to_le_bytes();
    Some(match has_last_nonce {
        true => FloodKind::LastOf(claimed),
        false => FloodKind::Of(claimed),
    })
}

fn credentials_of(sender: SenderCredentials) -> Credentials {
    Credentials {
        pid: sender.pid,
        uid: sender.uid,
        gid: sender.gid,
    }
}

fn datagram_of<'a>(received: &Received<'a>) -> Datagram<'a> {
    Datagram {
        bytes: received.bytes,
        truncated: received.truncated,
        control_truncated: received.control_truncated,
        credentials: received.credentials.map(credentials_of),
    }
}
