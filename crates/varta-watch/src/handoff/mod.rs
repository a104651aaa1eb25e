//! The queues between the beat path and the control thread: a bounded ring of events and queries one way, a bounded
//! ring of updates the other way, and an eventfd (the bell) at the end of each.
//!
//! [`command`] is the queue from the HTTP server to the control thread.
//!
//! The beat path never waits. If the ring is full, a stall is offered again in the next turn, and any other event is
//! dropped and counted. Beats and refusals, of which any process can cause many, may only fill the ring to three
//! quarters, so that they cannot displace important events (a critical status is important, and is reported once per
//! second and agent). No agent joins while less than an eighth is free, so that events of the present agents always
//! fit.

pub(crate) mod command;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use varta_core::admission::ProcessInfo;
use varta_core::{Agent, BeatLimit, Counter, Counters, Deadlines, Event, EventKind, LimitOptions};

use crate::beat_path_state::BeatPathState;
use crate::keys::KeyRing;

/// Events the ring holds: 640 KiB, enough for a burst of thousands while the reader is writing.
const RING_EVENTS: usize = 8192;
const _: () = assert!(RING_EVENTS * size_of::<Handed>() <= 640 << 10);

/// Entries reserved for events that are not beats or refusals.
const RESERVED_EVENTS: usize = RING_EVENTS / 4;

/// Entries reserved for stalls, returns and exits.
const RESERVED_FOR_AGENTS: usize = RING_EVENTS / 8;

/// Updates that the other ring holds. The control thread keeps those that do not fit.
const RING_UPDATES: usize = 8192;

/// The entries of the ring.
pub(crate) enum Handed {
    /// An event.
    Event {
        event: Event,
        /// With an exit: the process that ended, to determine how it ended.
        process: Option<OwnedFd>,
    },
    /// The beat path needs a fact before it can credit a beat.
    Query(IdentityQuery),
}

/// Which process has this pid?
pub(crate) struct IdentityQuery {
    /// The reply contains it too.
    pub(crate) ticket: u64,
    pub(crate) pid: u32,
    /// The sender, or the process that has its pid now; `None` if there was no descriptor for it.
    pub(crate) process: Option<OwnedFd>,
    /// The instance number, if the descriptor provides it.
    pub(crate) instance: Option<u64>,
    /// If the descriptor did not come with the datagram: a time on the observer's clock before which the datagram was
    /// certainly not sent. A process that existed then is the sender.
    pub(crate) sent_after_ns: Option<u64>,
}

/// The facts about a process that the beat path has queried.
pub(crate) struct IdentityReply {
    pub(crate) ticket: u64,
    pub(crate) process: Option<OwnedFd>,
    /// [`UNIDENTIFIED`](varta_core::agent::UNIDENTIFIED) if it cannot be determined.
    pub(crate) instance: u64,
    /// It is certain that this is the process that sent the datagram.
    pub(crate) proved: bool,
    pub(crate) info: ProcessInfo,
}

/// An update from the control thread to the beat path.
pub(crate) enum Update {
    /// The reply to a query.
    Identity(IdentityReply),
    /// An agent that was credited at once has been examined since.
    Info(Agent, ProcessInfo),
    /// An agent without an exit watch has ended.
    Ended(Agent, Option<OwnedFd>),
    /// The largest pid of this host.
    PidMax(u32),
    /// The keys in force from now on.
    Keys(KeyRing),
    /// The deadlines of an agent from now on.
    Deadlines(Agent, Deadlines),
    /// Count none of an agent's silence for this long, measured on the attention clock from the moment the update is
    /// applied: a gap lengthens the pause in real time, and the wait in the ring is added.
    Pause(Agent, Duration),
    /// Count an agent's silence again.
    Resume(Agent),
    /// The rate limit of one agent, until it leaves.
    BeatLimit(Agent, BeatLimit),
    /// The rate limit of all agents without a limit of their own, from now on.
    Limits(LimitOptions),
    /// The threshold of new agents from now on, nanoseconds.
    Threshold(u64),
}

/// The beat path's end.
pub(crate) struct EventSender {
    ring: rtrb::Producer<Handed>,
    bell: Arc<OwnedFd>,
    counters: Arc<Counters>,
    pushed: bool,
}

/// The control thread's end.
pub(crate) struct EventReceiver {
    ring: rtrb::Consumer<Handed>,
    bell: Arc<OwnedFd>,
}

pub(crate) fn channel(counters: Arc<Counters>) -> rustix::io::Result<(EventSender, EventReceiver)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (producer, consumer) = rtrb::RingBuffer::new(RING_EVENTS);
    let sender = EventSender {
        ring: producer,
        bell: Arc::clone(&bell),
        counters,
        pushed: false,
    };
    let receiver = EventReceiver {
        ring: consumer,
        bell,
    };
    Ok((sender, receiver))
}

impl EventSender {
    /// Whether the next important event will fit.
    pub(crate) fn has_room(&self) -> bool {
        self.ring.slots() > 0
    }

    /// Events in the ring.
    pub(crate) fn waiting(&self) -> usize {
        RING_EVENTS - self.ring.slots()
    }

    /// Whether an agent may join: its join and the events after it can be reported.
    pub(crate) fn has_room_for_join(&self) -> bool {
        self.ring.slots() > RESERVED_FOR_AGENTS
    }

    /// Hands an event over, or counts it as dropped.
    pub(crate) fn send(&mut self, event: Event, process: Option<OwnedFd>) {
        if self.push(event, process).is_break() {
            self.counters.count(Counter::EventsDropped);
        }
    }

    /// Hands an event over; `Break` if it does not fit.
    pub(crate) fn offer(&mut self, event: Event) -> ControlFlow<()> {
        self.push(event, None)
    }

    /// Sends a query; returns it if it does not fit.
    pub(crate) fn query(&mut self, query: IdentityQuery) -> Result<(), IdentityQuery> {
        if self.ring.slots() <= RESERVED_EVENTS {
            return Err(query);
        }
        match self.ring.push(Handed::Query(query)) {
            Ok(()) => {
                self.pushed = true;
                Ok(())
            }
            Err(rtrb::PushError::Full(Handed::Query(query))) => Err(query),
            Err(rtrb::PushError::Full(Handed::Event { .. })) => Ok(()),
        }
    }

    fn push(&mut self, event: Event, process: Option<OwnedFd>) -> ControlFlow<()> {
        let expendable = matches!(
            event.kind,
            EventKind::Beat { .. } | EventKind::Refused { .. } | EventKind::Session { .. }
        );
        if expendable && self.ring.slots() <= RESERVED_EVENTS {
            return ControlFlow::Break(());
        }
        if self.ring.push(Handed::Event { event, process }).is_err() {
            return ControlFlow::Break(());
        }
        self.pushed = true;
        ControlFlow::Continue(())
    }

    /// Wakes the reader if anything was handed over since the last call.
    pub(crate) fn ring_bell(&mut self) {
        if std::mem::take(&mut self.pushed) {
            // Fails only after 2^64 unread notifications.
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }
}

impl EventReceiver {
    /// The next event, if there is one.
    pub(crate) fn pop(&mut self) -> Option<Handed> {
        self.ring.pop().ok()
    }

    /// Clears the bell. Call before emptying the ring, so that no notification in between is lost.
    pub(crate) fn quiet(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }

    /// Readable when there are events.
    pub(crate) fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell)
    }
}

/// The control thread's end of the updates.
pub(crate) struct UpdateSender {
    ring: rtrb::Producer<Update>,
    bell: Arc<OwnedFd>,
    /// Updates that did not fit, oldest first.
    waiting: std::collections::VecDeque<Update>,
    /// How many updates there have been.
    added: u64,
    done: Arc<AtomicU64>,
}

/// Determines whether the beat path turns: wakes it and checks whether a turn follows.
#[derive(Clone, Debug)]
pub(crate) struct LivenessProbe {
    bell: Arc<OwnedFd>,
    beat_path: Arc<BeatPathState>,
    /// Time of the last probe; 0 before the first one.
    probed_ns: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
}

/// Callers within this time of each other share a probe: 1 ms. However many there are, the beat path is woken at most
/// a thousand times per second.
const PROBE_SHARED_NS: u64 = 1_000_000;

impl LivenessProbe {
    /// Wakes the beat path; returns the time to compare with.
    pub(crate) fn start(&self) -> u64 {
        self.start_at(self.beat_path.raw().now_ns())
    }

    fn start_at(&self, probed_ns: u64) -> u64 {
        let last_ns = self.probed_ns.load(Ordering::Relaxed);
        if last_ns > 0 && probed_ns.saturating_sub(last_ns) < PROBE_SHARED_NS {
            return last_ns;
        }
        self.probed_ns.store(probed_ns, Ordering::Relaxed);
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        probed_ns
    }

    /// Whether the beat path has applied the update with this number, see [`UpdateSender::add`]. Its changes to the
    /// table are visible then.
    pub(crate) fn has_done(&self, update: u64) -> bool {
        self.done.load(Ordering::Acquire) >= update
    }

    /// Whether a turn that started after the probe is over.
    pub(crate) fn has_turned_since(&self, probed_ns: u64) -> bool {
        self.beat_path.last_turn_ns() >= probed_ns
    }
}

/// The beat path's end of the updates.
pub(crate) struct UpdateReceiver {
    ring: rtrb::Consumer<Update>,
    bell: Arc<OwnedFd>,
    /// How many updates have been applied. They are applied in the order of their numbers.
    done: Arc<AtomicU64>,
}

pub(crate) fn updates() -> rustix::io::Result<(UpdateSender, UpdateReceiver)> {
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (producer, consumer) = rtrb::RingBuffer::new(RING_UPDATES);
    let done = Arc::<AtomicU64>::default();
    let sender = UpdateSender {
        ring: producer,
        bell: Arc::clone(&bell),
        waiting: std::collections::VecDeque::new(),
        added: 0,
        done: Arc::clone(&done),
    };
    let receiver = UpdateReceiver {
        ring: consumer,
        bell,
        done,
    };
    Ok((sender, receiver))
}

impl UpdateSender {
    /// Probes whether the other end turns.
    pub(crate) fn liveness_probe(&self, beat_path: Arc<BeatPathState>) -> LivenessProbe {
        LivenessProbe {
            bell: Arc::clone(&self.bell),
            beat_path,
            probed_ns: Arc::default(),
            done: Arc::clone(&self.done),
        }
    }

    /// Queues an update; the next [`Self::send`] sends it. Returns its number, counted from 1: a caller that needs to
    /// know when it was applied calls [`LivenessProbe::has_done`].
    pub(crate) fn add(&mut self, update: Update) -> u64 {
        self.waiting.push_back(update);
        self.added += 1;
        self.added
    }

    /// Sends the queued updates, as far as they fit, and rings the bell.
    pub(crate) fn send(&mut self) {
        let room = self.ring.slots().min(self.waiting.len());
        for update in self.waiting.drain(..room) {
            let _ = self.ring.push(update);
        }
        if room > 0 {
            let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// An update waits because the ring is full.
    pub(crate) fn is_backed_up(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl UpdateReceiver {
    /// The next update, if there is one.
    pub(crate) fn pop(&mut self) -> Option<Update> {
        self.ring.pop().ok()
    }

    /// The update that was popped last has been applied.
    pub(crate) fn done(&self) {
        // Only this thread writes it.
        let done = self.done.load(Ordering::Relaxed) + 1;
        self.done.store(done, Ordering::Release);
    }

    /// Wakes the beat path.
    pub(crate) fn bell(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.bell)
    }

    /// Rings the bell for updates that were left over.
    pub(crate) fn ring_again(&self) {
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }

    /// Clears the bell. Call before emptying the ring, so that no notification in between is lost.
    pub(crate) fn quiet(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }
}

impl AsFd for UpdateReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Requests the beat path to stop.
#[derive(Clone)]
pub(crate) struct StopSignal(Arc<OwnedFd>);

impl StopSignal {
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(Arc::new(eventfd(0, flags)?)))
    }

    pub(crate) fn stop(&self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::RawClock;
    use varta_core::{Agent, Refusal, Sender};

    fn beat_path() -> Arc<BeatPathState> {
        Arc::new(BeatPathState::new(RawClock::start()))
    }

    fn event(kind: EventKind) -> Event {
        Event {
            observer_ns: 0,
            kind,
        }
    }

    #[test]
    fn questions_of_the_same_moment_wake_the_beat_path_once() {
        let (sender, receiver) = updates().unwrap();
        let probe = sender.liveness_probe(beat_path());
        let rings = || {
            let mut count = [0; 8];
            rustix::io::read(&*receiver.bell, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
        };
        assert_eq!(
            (probe.start_at(5_000), probe.clone().start_at(6_000)),
            (5_000, 5_000)
        );
        assert_eq!(rings(), 1);
        let later_ns = 5_000 + PROBE_SHARED_NS;
        assert_eq!(probe.start_at(later_ns), later_ns);
        assert_eq!(rings(), 1);
    }

    #[test]
    fn each_update_is_done_when_it_was_applied_and_not_before() {
        let (mut sender, mut receiver) = updates().unwrap();
        let probe = sender.liveness_probe(beat_path());
        let numbers = [1, 2].map(|pid_max| sender.add(Update::PidMax(pid_max)));
        sender.send();
        let done = || numbers.map(|number| probe.has_done(number));
        assert_eq!(done(), [false, false]);
        for expected in [[true, false], [true, true]] {
            receiver.pop().unwrap();
            receiver.done();
            assert_eq!(done(), expected);
        }
    }

    #[test]
    fn refusals_cannot_crowd_out_stalls_and_every_drop_is_counted() {
        let counters = Arc::new(Counters::default());
        let (mut sender, mut receiver) = channel(Arc::clone(&counters)).unwrap();
        let refused = event(EventKind::Refused {
            sender: Sender {
                pid: 1,
                source: None,
            },
            reason: Refusal::NoCredentials,
        });
        for _ in 0..RING_EVENTS {
            sender.send(refused, None);
        }
        assert_eq!(counters.get(Counter::EventsDropped), RESERVED_EVENTS as u64);
        let stall = event(EventKind::Stall {
            agent: Agent {
                slot: 0,
                pid: 2,
                instance: 3,
                stream: 0,
            },
            last_nonce: 4,
            silence_ns: 5,
            threshold_ns: 5,
            refused: 0,
        });
        for _ in 0..RESERVED_EVENTS {
            assert!(sender.offer(stall).is_continue());
        }
        assert!(sender.offer(stall).is_break(), "full");
        receiver.pop().unwrap();
        assert!(sender.offer(stall).is_continue());
    }
}
