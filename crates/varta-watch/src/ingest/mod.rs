//! The beat path: one thread that receives, credits, watches for exits and judges silence.
//!
//! Each turn drains the sockets first and judges afterwards (law 1), by the attention clock (law 2).
//! After start-up the thread takes no lock, reads no file, writes no log, and does a bounded amount of
//! work per turn (law 4). A beat of a known agent costs a look at its sender, a look whether that still
//! lives, and a receive; further system calls are made when an agent is heard for the first time or begins
//! a new series, when one ends, when a flood begins or ends, when the next deadline moves, and when the thread's
//! precedence is used up or renewed.
//!
//! No descriptor of a sender is received or closed here, since closing one may hang: the kernel refuses them, or they are
//! left to others, see [`receive`].
//!
//! As many datagrams as the kernel queues are taken one by one in each turn, after a look at who sent each:
//! the datagram of a stranger is taken together with its sender's pidfd, which costs too much to ask for
//! with every beat. What is left after them, and what comes when there is no time to sleep and no stranger
//! among them, is a flood and taken in batches. Who is speaking is decided in [`contact`]. What comes over a
//! network is taken in batches always, a bounded number of them before local agents get their turn again,
//! see [`network`].

mod contact;
mod discards;
mod ended;
mod introductions;
mod network;
mod open;
mod precedence;
mod queue;
mod receive;
mod remembered;
mod shed;
mod sleep;
mod updates;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use varta_core::attention::{AttentionClock, Gap, longest_sleep_ns, tolerance_ns};
use varta_core::slot::Tier;
use varta_core::tracker::Silence;
use varta_core::{
    Agent, Claims, Counter, Counters, Credentials, Event, EventKind, ExitStatus, Gauge, Limits,
    LocalGate, Locality, ReceiveQueue, Timing, Tracker,
};
use varta_sys::filter;
use varta_sys::receive::{DatagramBatch, SenderCredentials};

use crate::beat_path_state::{BeatPathState, Transport};
use crate::clock::RawClock;
use crate::handoff::{EventSender, StopSignal, UpdateReceiver};
use crate::process_info::{self, KernelFeatures};
use crate::socket_file::BoundSocket;

use discards::Discards;
use ended::Ended;
use introductions::Introductions;
pub(crate) use network::Network;
use network::Senders;
use precedence::Precedence;
use queue::{Flood, Horizon};
use receive::{DATAGRAM_BYTES, Intake};
use shed::{InnerPids, Kind, Shed};
use sleep::{Fetched, Ready, Sleeper};

/// Datagrams per receive call: large enough that the call's own cost vanishes in a flood.
const BATCH: usize = 64;

/// Who sleeps for so long is not flooded: 1 ms.
const CALM_NS: u64 = 1_000_000;

/// Datagrams per turn whose sender is looked at before they are taken: what the kernel queues, within
/// these bounds. While they are taken others come, in a crowd of newcomers many; only a flood goes beyond.
const ONE_BY_ONE_MIN: usize = 256;
const ONE_BY_ONE_MAX: usize = 8192;

/// Fewest datagrams one turn is ready to read. The real budget is no smaller than the kernel's
/// queue, so that all that was queued when the turn began is read before anybody is judged.
const RECEIVE_BUDGET_MIN: usize = 1024;

/// How often per turn the network may have more to say: twelve times 256 datagrams are more than the kernel
/// queues.
const NETWORK_ROUNDS: usize = 12;

/// Timers looked at per turn: 4096 take less than a millisecond, so that beats never wait longer
/// than that for a mass stall.
const TIMER_BUDGET: u32 = 4096;

/// How long a stall that found the ring full waits before it is offered again: 1 ms, so that a slow
/// reader costs no busy loop.
const RING_FULL_PAUSE_NS: u64 = 1_000_000;

/// What the beat path needs to know.
pub(crate) struct IngestConfig {
    pub(crate) gate: LocalGate,
    pub(crate) kernel: KernelFeatures,
    pub(crate) threshold_ns: u64,
    /// Somebody wants every beat as an event.
    pub(crate) every_beat: bool,
    /// Agents of other pid namespaces are refused.
    pub(crate) refuse_foreign: bool,
    /// Run in real time if this user may.
    pub(crate) real_time: bool,
    /// Datagrams the kernel queues on this socket before it refuses one.
    pub(crate) queue_datagrams: usize,
    /// Agents that may be held by a descriptor.
    pub(crate) descriptor_budget: usize,
}

/// Where beats come from.
pub(crate) struct Sockets {
    pub(crate) local: BoundSocket,
    pub(crate) network: Option<Network>,
}

/// The ends of the rings, and what other threads read.
pub(crate) struct Lines {
    pub(crate) state: Arc<BeatPathState>,
    pub(crate) events: EventSender,
    pub(crate) updates: UpdateReceiver,
    pub(crate) stop: StopSignal,
}

/// What the beat path keeps of the agent in a slot.
#[derive(Default)]
struct Held {
    /// Held so that its pid cannot mean another process unnoticed; `None` for want of descriptors.
    pidfd: Option<OwnedFd>,
    /// The kernel has reported its end while a batch was taken.
    has_ended: bool,
    /// What it may call itself; `None` while that is unknown.
    claims: Option<Claims>,
    pid_ns: Option<u64>,
    /// That it is critical is not told before, raw time.
    critical_from_ns: u64,
    /// Of an agent elsewhere.
    senders: Senders,
}

/// The ingest thread's state.
pub(crate) struct Ingest {
    socket: BoundSocket,
    network: Option<Network>,
    batch: DatagramBatch,
    /// Where the kernel cannot refuse descriptors.
    discards: Option<Discards>,
    /// Of the local socket.
    intake: Intake,
    config: IngestConfig,
    receive_budget: usize,
    one_by_one: usize,
    tracker: Tracker,
    limits: Limits,
    introductions: Introductions,
    ended: Ended,
    shed: Shed,
    inner_pids: InnerPids,
    flood: Flood,
    /// Datagrams refused so far.
    refusals: u64,
    /// When this turn began, on the raw clock.
    woken_ns: u64,
    /// Datagrams of this turn.
    turn_read: usize,
    counters: Arc<Counters>,
    raw: RawClock,
    attention: AttentionClock,
    sleeper: Sleeper,
    ready: Ready,
    held: Box<[Held]>,
    /// How many of them have a descriptor.
    held_descriptors: usize,
    horizon: Horizon,
    /// Whether local beats may have been refused.
    queue: ReceiveQueue,
    lines: Lines,
    /// A stall or an exit could not be handed over in the last turn.
    ring_was_full: bool,
}

impl Ingest {
    pub(crate) fn new(
        sockets: Sockets,
        config: IngestConfig,
        tracker: Tracker,
        limits: Limits,
        counters: Arc<Counters>,
        lines: Lines,
    ) -> io::Result<Self> {
        let raw = lines.state.raw();
        let capacity = tracker.capacity();
        let shed = Shed::new(limits.agent_rate().map_or(0, |rate| rate.per_second));
        let (sleeper, ready) = Sleeper::new(
            &sockets.local,
            lines.stop.as_fd(),
            &lines.updates,
            raw,
            capacity,
        )?;
        if let Some(network) = &sockets.network {
            sleeper.watch_input(network)?;
        }
        let discards = match sockets.local.refuses_descriptors() {
            true => None,
            false => Some(Discards::start(&sockets.local, lines.updates.bell(), raw)?),
        };
        Ok(Self {
            socket: sockets.local,
            network: sockets.network,
            batch: DatagramBatch::new(BATCH, DATAGRAM_BYTES),
            discards,
            intake: Intake::new(Transport::Unix),
            receive_budget: config.queue_datagrams.max(RECEIVE_BUDGET_MIN),
            one_by_one: config.queue_datagrams.clamp(ONE_BY_ONE_MIN, ONE_BY_ONE_MAX),
            attention: AttentionClock::new(raw.now_ns()),
            horizon: Horizon::new(config.queue_datagrams),
            queue: ReceiveQueue::new(config.queue_datagrams),
            config,
            tracker,
            limits,
            introductions: Introductions::new(),
            ended: Ended::new(),
            shed,
            inner_pids: InnerPids::new(),
            flood: Flood::default(),
            refusals: 0,
            woken_ns: raw.now_ns(),
            turn_read: 0,
            counters,
            raw,
            sleeper,
            ready,
            held: (0..capacity).map(|_| Held::default()).collect(),
            held_descriptors: 0,
            lines,
            ring_was_full: false,
        })
    }

    /// Turns until told to stop. An error here means the kernel refuses to let us wait.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut fetched = Fetched::new();
        let mut precedence = Precedence::take(self.config.real_time, self.raw.now_ns());
        while !self.ready.stop {
            self.turn(&mut fetched, &mut precedence)?;
        }
        Ok(())
    }

    fn turn(&mut self, fetched: &mut Fetched, precedence: &mut Precedence) -> io::Result<()> {
        let slept_ns = self.promise_next_look()?;
        precedence.has_worked(self.woken_ns, slept_ns);
        let is_real_time = precedence.is_real_time();
        self.counters.set(Gauge::RealTime, is_real_time.into());
        self.lines.events.ring_bell();
        self.sleeper.wait(&mut self.ready, fetched)?;
        let woken_ns = self.look();
        self.begin_turn(woken_ns);
        let is_calm = woken_ns.saturating_sub(slept_ns) >= CALM_NS;
        self.flood.turn(woken_ns, is_calm);
        let heard_ns = self.attention.now_ns();
        // Beats that waited for an answer are older than those in the queue.
        self.apply_updates();
        // Everything sent before this moment is in the queue by now, so silence up to it is proved
        // once the queue has been read; unless the queue was full and something was refused.
        self.drain_local(fetched, self.receive_budget)?;
        for _ in 0..NETWORK_ROUNDS {
            if !self.drain_network() {
                break;
            }
            self.look();
            // What has come since. A whole queue in each round would make a turn of two floods long.
            self.drain_local(fetched, RECEIVE_BUDGET_MIN)?;
        }
        self.shed_floods();
        self.drain_exits();
        self.judge(self.provable_ns(heard_ns));
        Ok(())
    }

    /// Sets the timer and promises to look again by then. Returns the time.
    fn promise_next_look(&mut self) -> io::Result<u64> {
        let now_ns = self.look();
        self.end_turn(now_ns);
        self.tell_receive_trouble(now_ns);
        self.heed_sockets()?;
        let review_ns = [self.shed.next_review_ns(), self.next_try_ns(now_ns)];
        let review_ns = review_ns.into_iter().flatten().min();
        let deadline_ns = self.tracker.next_deadline_ns();
        // Nobody is judged while nobody can be heard.
        let mut wake_ns = match deadline_ns.filter(|_| self.intake.is_open()) {
            Some(deadline_ns) => self.attention.raw_at(deadline_ns),
            None if self.ring_was_full => now_ns,
            None if review_ns.is_some() => u64::MAX,
            None => {
                self.promise(u64::MAX);
                self.sleeper.wake_on_input_only()?;
                return Ok(now_ns);
            }
        };
        wake_ns = wake_ns.min(review_ns.unwrap_or(u64::MAX));
        if self.ring_was_full {
            wake_ns = wake_ns.max(now_ns + RING_FULL_PAUSE_NS);
        }
        let wake_ns = wake_ns.min(now_ns + longest_sleep_ns(self.shortest_threshold_ns()));
        let wake_ns = self.sleeper.wake_at(now_ns, wake_ns)?;
        self.promise(wake_ns);
        Ok(now_ns)
    }

    /// Promises to look again by then. Whoever reads it can tell a beat path that sleeps from one that hangs.
    fn promise(&mut self, raw_ns: u64) {
        self.attention.promise(raw_ns);
        self.lines.state.set_next_turn(raw_ns);
    }

    fn begin_turn(&mut self, woken_ns: u64) {
        // What was promised is done, the next promise is due at the end of this turn. A gap is put up before.
        self.put_up_lag(woken_ns);
        self.lines.state.set_next_turn(woken_ns);
        self.woken_ns = woken_ns;
        self.turn_read = 0;
    }

    /// Puts up what can be read from outside about the turn that ends.
    fn end_turn(&mut self, now_ns: u64) {
        let work_ns = now_ns.saturating_sub(self.woken_ns);
        self.counters.observe(Timing::Work, work_ns);
        self.put_up_lag(now_ns);
        self.counters
            .raise(Gauge::ReceiveHighWater, self.turn_read as u64);
        self.counters
            .raise(Gauge::RingHighWater, self.lines.events.waiting() as u64);
        let regressions = self.attention.take_regressions();
        self.counters.add(Counter::ClockRegressions, regressions);
        let jumps = self.attention.take_jumps();
        self.counters.add(Counter::ClockJumps, jumps);
        let local_agents = self.tracker.local_len() as u64;
        self.lines.state.set_local_agents(local_agents);
        // Last: who sees it sees what the turn has done.
        self.lines.state.set_last_turn(self.woken_ns);
    }

    fn put_up_lag(&self, now_ns: u64) {
        let lag_ns = now_ns.saturating_sub(self.attention.now_ns());
        self.lines.state.set_attention_lag(lag_ns);
    }

    /// Moves the attention clock on, reports a gap, and returns the raw time.
    fn look(&mut self) -> u64 {
        let raw_ns = self.raw.now_ns();
        if let Some(gap) = self.attention.look(raw_ns) {
            self.take_note_of_gap(gap);
        }
        raw_ns
    }

    fn take_note_of_gap(&mut self, gap: Gap) {
        let gap_ns = gap.gap_ns;
        if !gap.is_off_the_clock {
            self.tracker.excuse(self.attention.now_ns(), gap_ns);
        }
        if gap_ns > tolerance_ns(self.shortest_threshold_ns()) {
            self.counters.count(Counter::Gaps);
            self.counters.add(Counter::GapNanoseconds, gap_ns);
            self.send(EventKind::Gap { gap_ns });
        }
    }

    /// That of the most impatient agent, or of a newcomer.
    fn shortest_threshold_ns(&self) -> u64 {
        let shortest_ns = self.tracker.shortest_threshold_ns();
        shortest_ns.unwrap_or(self.config.threshold_ns)
    }

    /// Reads what local agents have sent. If their queue may have been full, beats may have been refused: that
    /// silence does not count.
    fn drain_local(&mut self, fetched: &mut Fetched, budget: usize) -> io::Result<()> {
        self.drain_socket(fetched, budget)?;
        if self.queue.take_may_have_been_full() {
            self.look();
            self.counters.count(Counter::QueueFull);
            let now_ns = self.attention.now_ns();
            let thresholds = self.queue.restart_thresholds();
            self.tracker
                .restart_silence(Locality::Local, now_ns, thresholds);
        }
        Ok(())
    }

    /// Tells the kernel what to drop from now on, if that has changed.
    fn shed_floods(&mut self) {
        let Some(program) = self.shed.review(self.attention.raw_now_ns()) else {
            return;
        };
        // A kernel that does not filter leaves us with the flood.
        let _ = match program {
            [] => filter::detach(self.socket.as_fd()),
            program => filter::attach(self.socket.as_fd(), program),
        };
        while let Some(news) = self.shed.take_news() {
            let pid = match news.kind {
                Kind::Of(pid) | Kind::LastOf(pid) => pid,
                Kind::Shapeless => 0,
            };
            self.send(EventKind::Flood {
                pid,
                one_in: news.one_in,
            });
        }
    }

    /// Lets go of a process; while somebody else holds it, epoll must be told not to watch it.
    fn release(&mut self, agent: Agent) -> Option<OwnedFd> {
        let held = std::mem::take(&mut self.held[agent.slot as usize]);
        if let Some(claims) = held.claims {
            self.inner_pids.remove(claims);
        }
        let pidfd = held.pidfd?;
        self.held_descriptors -= 1;
        self.sleeper.forget(&pidfd);
        Some(pidfd)
    }

    /// Exits that find no room in the ring wait for the next turn, as stalls do.
    fn drain_exits(&mut self) {
        let mut done = 0;
        while let Some(slot) = self.ready.exits.get(done).copied() {
            if !self.lines.events.has_room() {
                break;
            }
            done += 1;
            // The slot may have changed hands since the kernel reported it, so ask again.
            let process = self.held[slot as usize].pidfd.as_ref();
            if process.is_some_and(process_info::has_ended)
                && let Some(agent) = self.tracker.agent_in(slot)
            {
                self.retire(agent, None);
            }
        }
        self.ready.exits.drain(..done);
    }

    /// An agent's process has ended. `process` is it, if it was not held.
    fn retire(&mut self, agent: Agent, process: Option<OwnedFd>) {
        if let Some(facts) = self.tracker.retire(agent) {
            let last_nonce = facts.last_nonce.unwrap_or(0);
            self.tell_exit(agent, last_nonce, ExitStatus::Unknown, process);
        }
    }

    /// How it ended is found out by the control thread, which gets the process along.
    fn tell_exit(
        &mut self,
        agent: Agent,
        last_nonce: u64,
        status: ExitStatus,
        process: Option<OwnedFd>,
    ) {
        let process = self.release(agent).or(process);
        let observer_ns = self.raw.now_ns();
        if status == ExitStatus::Unknown && !agent.is_remote() {
            self.ended.add(agent.pid, agent.instance, observer_ns);
        }
        let event = Event {
            observer_ns,
            kind: EventKind::Exit {
                agent,
                last_nonce,
                status,
            },
        };
        self.lines.events.send(event, process);
    }

    fn judge(&mut self, heard_ns: u64) {
        let events = &mut self.lines.events;
        let observer_ns = self.raw.now_ns();
        let mut ring_was_full = false;
        let held = &self.held;
        self.tracker
            .drain_stalled_slots(heard_ns, TIMER_BUDGET, |silence| {
                let event = Event {
                    observer_ns,
                    kind: kind_of(silence, &held[silence.agent.slot as usize]),
                };
                if silence.tier == Tier::PutOff {
                    // It will be put off again, or be a stall.
                    events.send(event, None);
                    return ControlFlow::Continue(());
                }
                let taken = events.offer(event);
                ring_was_full = taken.is_break();
                taken
            });
        self.ring_was_full = ring_was_full || !self.ready.exits.is_empty();
    }

    fn send(&mut self, kind: EventKind) {
        let observer_ns = self.raw.now_ns();
        self.lines.events.send(Event { observer_ns, kind }, None);
    }
}

fn credentials_of(sender: SenderCredentials) -> Credentials {
    Credentials {
        pid: sender.pid,
        uid: sender.uid,
        gid: sender.gid,
    }
}

fn kind_of(silence: &Silence, held: &Held) -> EventKind {
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
            refused: held.senders.refused(),
        },
        Tier::PutOff => EventKind::PutOff { agent, silence_ns },
    }
}
