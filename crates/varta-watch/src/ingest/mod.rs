//! The beat path: one thread that receives, credits, watches for exits and judges silence.
//!
//! Each turn drains the socket first and judges afterwards (law 1), by the attention clock (law 2).
//! After start-up the thread takes no lock, writes no log, and does a bounded amount of work per
//! turn; system calls beyond the receive happen only when an agent is heard for the first time, when
//! one ends, and when the next deadline moves (law 4).

mod bind;
mod closer;
mod sleep;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use varta_core::admission::Datagram;
use varta_core::event::Agent;
use varta_core::slot::Tier;
use varta_core::tracker::{AgentKey, Beat, Displaced, Recorded, Silence};
use varta_core::{
    AttentionClock, BeatOrigin, Counter, Counters, Credentials, Event, EventKind, ExitStatus,
    LocalGate, Refusal, Tracker, Update,
};
use varta_sys::receive::{DatagramBatch, Received};
use varta_vlp::{FRAME_BYTES, Frame};

use crate::clock::RawClock;
use crate::handoff::{EventSender, StopSignal};
use crate::identity;

pub(crate) use bind::BoundSocket;
use closer::Closer;
use sleep::{Fetched, Ready, Sleeper};

/// Datagrams per receive call: large enough that the call's own cost vanishes in a flood.
const BATCH: usize = 64;

/// Fewest datagrams one turn is ready to read. The real budget is also larger than the kernel's
/// queue, so that all that was queued when the turn began is read before anybody is judged.
const RECEIVE_BUDGET_MIN: usize = 1024;

/// Timers looked at per turn: 4096 take less than a millisecond, so that beats never wait longer
/// than that for a mass stall.
const TIMER_BUDGET: u32 = 4096;

/// How long a stall that found the ring full waits before it is offered again: 1 ms, so that a slow
/// reader costs no busy loop.
const RING_FULL_PAUSE_NS: u64 = 1_000_000;

/// What the beat path needs to know.
pub(crate) struct IngestConfig {
    pub(crate) gate: LocalGate,
    pub(crate) threshold_ns: u64,
    /// Somebody wants every beat as an event.
    pub(crate) every_beat: bool,
    /// Datagrams the kernel queues on one socket.
    pub(crate) queue_datagrams: usize,
}

/// The ingest thread's state.
pub(crate) struct Ingest {
    socket: BoundSocket,
    batch: DatagramBatch,
    closer: Closer,
    config: IngestConfig,
    receive_budget: usize,
    tracker: Tracker,
    counters: Arc<Counters>,
    raw: RawClock,
    attention: AttentionClock,
    sleeper: Sleeper,
    ready: Ready,
    /// The process in each slot, held so that its pid cannot mean another one unnoticed.
    pidfds: Box<[Option<OwnedFd>]>,
    events: EventSender,
    /// A stall or an exit could not be handed over in the last turn.
    ring_was_full: bool,
}

impl Ingest {
    pub(crate) fn new(
        socket: BoundSocket,
        config: IngestConfig,
        tracker: Tracker,
        counters: Arc<Counters>,
        raw: RawClock,
        stop: &StopSignal,
        events: EventSender,
    ) -> io::Result<Self> {
        let capacity = tracker.capacity();
        let (sleeper, ready) = Sleeper::new(&socket, stop.as_fd(), raw, capacity)?;
        Ok(Self {
            socket,
            // One byte more than a frame, so that a longer datagram can be told from one.
            batch: DatagramBatch::new(BATCH, FRAME_BYTES + 1),
            closer: Closer::start()?,
            receive_budget: (config.queue_datagrams + 1).max(RECEIVE_BUDGET_MIN),
            attention: AttentionClock::new(raw.now_ns(), config.threshold_ns),
            config,
            tracker,
            counters,
            raw,
            sleeper,
            ready,
            pidfds: (0..capacity).map(|_| None).collect(),
            events,
            ring_was_full: false,
        })
    }

    /// Turns until told to stop. An error here means the kernel refuses to let us wait.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut fetched = Fetched::new();
        while !self.ready.stop {
            self.turn(&mut fetched)?;
        }
        Ok(())
    }

    fn turn(&mut self, fetched: &mut Fetched) -> io::Result<()> {
        self.promise_next_look()?;
        self.events.ring_bell();
        self.sleeper.wait(&mut self.ready, fetched)?;
        self.look();
        // Everything sent before this moment is in the queue by now, so silence up to it is proved
        // once the queue has been read.
        let judged_ns = self.attention.now_ns();
        self.drain_socket();
        self.drain_exits();
        self.judge(judged_ns);
        Ok(())
    }

    fn promise_next_look(&mut self) -> io::Result<()> {
        let now_ns = self.look();
        let deadline_ns = match self.tracker.next_deadline_ns() {
            Some(deadline_ns) => deadline_ns,
            None if self.ring_was_full => self.attention.now_ns(),
            None => {
                self.attention.promise(u64::MAX);
                return self.sleeper.wake_on_input_only();
            }
        };
        let mut wake_ns = self.attention.raw_at(deadline_ns);
        if self.ring_was_full {
            wake_ns = wake_ns.max(now_ns + RING_FULL_PAUSE_NS);
        }
        let wake_ns = wake_ns.min(now_ns + self.attention.longest_sleep_ns());
        let wake_ns = self.sleeper.wake_at(now_ns, wake_ns)?;
        self.attention.promise(wake_ns);
        Ok(())
    }

    /// Moves the attention clock on, reports a gap, and returns the raw time.
    fn look(&mut self) -> u64 {
        let raw_ns = self.raw.now_ns();
        if let Some(gap) = self.attention.look(raw_ns) {
            self.counters.count(Counter::Gaps);
            self.counters.add(Counter::GapNanoseconds, gap.gap_ns);
            // The kernel's queue may have been full meanwhile.
            self.tracker.restart_silence(self.attention.now_ns());
            self.send(EventKind::Gap { gap_ns: gap.gap_ns });
        }
        let regressions = self.attention.take_regressions();
        self.counters.add(Counter::ClockRegressions, regressions);
        let jumps = self.attention.take_jumps();
        self.counters.add(Counter::ClockJumps, jumps);
        raw_ns
    }

    fn drain_socket(&mut self) {
        let mut budget = self.receive_budget;
        while budget > 0 {
            let mut closed = 0;
            let unwanted = |descriptor| {
                closed += 1;
                self.closer.close(descriptor);
            };
            let received = match self.batch.receive(self.socket.as_fd(), BATCH, unwanted) {
                Ok(received) => received,
                Err(_) => {
                    self.counters.count(Counter::ReceiveErrors);
                    return;
                }
            };
            self.counters.add(Counter::DescriptorsClosed, closed);
            for i in 0..received {
                match self.admit(i) {
                    Ok((frame, sender)) => self.credit(frame, sender),
                    Err((pid, reason)) => self.refuse(pid, reason),
                }
            }
            if received < BATCH {
                return;
            }
            budget = budget.saturating_sub(received);
            self.look();
        }
    }

    fn admit(&self, i: usize) -> Result<(Frame, Credentials), (u32, Refusal)> {
        let Some(received) = self.batch.datagram(i) else {
            return Err((0, Refusal::WrongLength));
        };
        let datagram = datagram_of(&received);
        let pid = datagram.credentials.map_or(0, |sender| sender.pid);
        let admitted = self.config.gate.admit(&datagram);
        admitted.map_err(|reason| (pid, reason))
    }

    fn credit(&mut self, frame: Frame, sender: Credentials) {
        let now_ns = self.attention.now_ns();
        let known = self.tracker.knows_local(sender.pid);
        let contact = (!known).then(|| first_contact(sender.pid));
        let beat = Beat {
            key: AgentKey::Local {
                pid: sender.pid,
                instance: contact.as_ref().map(Contact::instance),
            },
            frame,
            origin: BeatOrigin::KernelAttested,
            ns_inode: None,
            uid: sender.uid,
        };
        let recorded = self.tracker.record(&beat, now_ns, self.config.threshold_ns);
        self.report(&beat, &recorded);
        if let (Some(agent), Some(contact)) = (recorded.agent, contact) {
            self.keep(agent, contact);
        }
    }

    fn report(&mut self, beat: &Beat, recorded: &Recorded) {
        if let Some(displaced) = recorded.displaced {
            let Displaced {
                agent, last_nonce, ..
            } = displaced;
            if displaced.evicted {
                drop(self.release(agent));
                self.send(EventKind::Evicted { agent });
            } else {
                self.tell_exit(agent, last_nonce);
            }
        }
        let Some(agent) = recorded.agent else {
            let pid = beat.frame.pid;
            let reason = match recorded.update {
                Update::OriginConflict => Refusal::OriginConflict,
                Update::NamespaceConflict => Refusal::NamespaceConflict,
                Update::CapacityExceeded => Refusal::CapacityExceeded,
                Update::OutOfOrder | Update::Inserted | Update::Refreshed => Refusal::OutOfOrder,
            };
            return self.send(EventKind::Refused { pid, reason });
        };
        let Frame {
            status,
            payload,
            nonce,
            ..
        } = beat.frame;
        if recorded.update == Update::Inserted {
            self.send(EventKind::Join {
                agent,
                uid: beat.uid,
                nonce,
                status,
                payload,
            });
        }
        if let Some(silence_ns) = recorded.returned_after_ns {
            self.send(EventKind::Return {
                agent,
                nonce,
                status,
                payload,
                silence_ns,
            });
        }
        if self.config.every_beat {
            self.send(EventKind::Beat {
                agent,
                nonce,
                status,
                payload,
            });
        }
    }

    /// Keeps hold of a new agent's process, so that its end is noticed.
    fn keep(&mut self, agent: Agent, contact: Contact) {
        match contact {
            Contact::Held(process) => {
                if self.sleeper.watch_exit(agent.slot, &process.pidfd).is_err() {
                    self.counters.count(Counter::ExitWatchFailed);
                }
                self.pidfds[agent.slot as usize] = Some(process.pidfd);
            }
            // It has ended before its first beat was read: it came, spoke and went.
            Contact::Gone => self.retire(agent),
            Contact::Unidentified => self.counters.count(Counter::ExitWatchFailed),
        }
    }

    /// Lets go of a process; while somebody else holds it, epoll must be told not to watch it.
    fn release(&mut self, agent: Agent) -> Option<OwnedFd> {
        let pidfd = self.pidfds[agent.slot as usize].take()?;
        self.sleeper.forget(&pidfd);
        Some(pidfd)
    }

    /// Exits that find no room in the ring wait for the next turn, as stalls do.
    fn drain_exits(&mut self) {
        let mut done = 0;
        while let Some(slot) = self.ready.exits.get(done).copied() {
            if !self.events.has_room() {
                break;
            }
            done += 1;
            // The slot may have changed hands since the kernel reported it, so ask again.
            let held = self.pidfds.get(slot as usize).and_then(Option::as_ref);
            if held.is_some_and(identity::has_ended)
                && let Some(agent) = self.tracker.agent_in(slot)
            {
                self.retire(agent);
            }
        }
        self.ready.exits.drain(..done);
    }

    fn retire(&mut self, agent: Agent) {
        if let Some(facts) = self.tracker.retire(agent) {
            self.tell_exit(agent, facts.last_nonce.unwrap_or(0));
        }
    }

    /// How it ended is found out by the control thread, which gets the process along.
    fn tell_exit(&mut self, agent: Agent, last_nonce: u64) {
        let process = self.release(agent);
        let event = Event {
            observer_ns: self.raw.now_ns(),
            kind: EventKind::Exit {
                agent,
                last_nonce,
                status: ExitStatus::Unknown,
            },
        };
        self.events.send(event, process);
    }

    fn judge(&mut self, judged_ns: u64) {
        let events = &mut self.events;
        let observer_ns = self.raw.now_ns();
        let mut ring_was_full = false;
        self.tracker
            .drain_stalled_slots(judged_ns, TIMER_BUDGET, |silence| {
                let taken = events.offer(Event {
                    observer_ns,
                    kind: kind_of(silence),
                });
                ring_was_full = taken.is_break();
                taken
            });
        self.ring_was_full = ring_was_full || !self.ready.exits.is_empty();
    }

    fn refuse(&mut self, pid: u32, reason: Refusal) {
        // What the tracker refuses it counts itself; this is the gate's.
        self.counters.count(reason.counter());
        self.send(EventKind::Refused { pid, reason });
    }

    fn send(&mut self, kind: EventKind) {
        let observer_ns = self.raw.now_ns();
        self.events.send(Event { observer_ns, kind }, None);
    }
}

/// What was found behind a pid at its first beat.
enum Contact {
    Held(identity::Process),
    Gone,
    Unidentified,
}

impl Contact {
    fn instance(&self) -> u64 {
        match self {
            Self::Held(process) => process.instance,
            Self::Gone | Self::Unidentified => identity::UNIDENTIFIED,
        }
    }
}

fn first_contact(pid: u32) -> Contact {
    match identity::hold(pid) {
        Ok(process) => Contact::Held(process),
        Err(error) if identity::is_gone(&error) => Contact::Gone,
        Err(_) => Contact::Unidentified,
    }
}

fn datagram_of<'a>(received: &Received<'a>) -> Datagram<'a> {
    Datagram {
        bytes: received.bytes,
        truncated: received.truncated,
        control_truncated: received.control_truncated,
        credentials: received.credentials.map(|sender| Credentials {
            pid: sender.pid,
            uid: sender.uid,
            gid: sender.gid,
        }),
    }
}

fn kind_of(silence: &Silence) -> EventKind {
    let agent = silence.agent;
    let last_nonce = silence.slot.last_nonce.unwrap_or(0);
    let silence_ns = silence.silence_ns;
    match silence.tier {
        Tier::Late => EventKind::Late {
            agent,
            last_nonce,
            silence_ns,
        },
        Tier::Stalled => EventKind::Stall {
            agent,
            last_nonce,
            silence_ns,
            threshold_ns: silence.slot.threshold_ns,
        },
    }
}
