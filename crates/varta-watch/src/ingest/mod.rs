//! The beat path: one thread that receives and credits beats, watches for exits and judges silence.
//!
//! Each turn drains the sources first and judges afterwards (law 1), by the attention clock (law 2). After start-up
//! the thread takes no lock, reads no file, writes no log, and does a bounded amount of work per turn (law 4). A beat
//! of a known agent costs a peek at its sender, a check that its process still runs, and a receive. Further system
//! calls are made when an agent sends its first beat or starts a new series, when an agent ends, when a flood starts
//! or ends, when the next deadline moves, and when the thread's priority is used up or renewed.
//!
//! Each transport of beats is a source of its own, [`unix`] and [`udp`]. They share the [`recorder`], which credits
//! beats, judges silence and reports; its part [`local`] identifies local senders. A source decides nothing about an
//! agent. A source with a later beat than the table has (a page, for example) is queried when a slot is due, see
//! [`Recorder::judge`].

mod discards;
mod flood;
mod intake;
mod local;
mod open;
mod priority;
mod processes;
mod recorder;
mod shed;
mod sleep;
mod udp;
mod unix;
mod updates;

use std::io;
use std::sync::Arc;

use varta_core::admission::LocalSenders;
use varta_core::attention::longest_sleep_ns;
use varta_core::beat_events::BeatEvents;
use varta_core::{Counter, Counters, EventKind, Gauge, Limits, LocalGate, Timing, Tracker};

use crate::beat_path_state::BeatPathState;
use crate::handoff::{EventSender, StopSignal, UpdateReceiver};
use crate::process_info::KernelFeatures;
use crate::socket_file::BoundSocket;

use priority::SchedPriority;
use processes::HeldProcesses;
use recorder::{Clock, Recorder, RecorderOptions};
use sleep::{Fetched, Ready, Sleeper};
pub(crate) use udp::UdpSource;
use unix::{RECEIVE_BUDGET_MIN, UnixOptions, UnixSource};

/// A beat path that sleeps for at least this long is not flooded: 1 ms.
const CALM_NS: u64 = 1_000_000;

/// Batches per turn that are read from the network: twelve times 256 datagrams are more than the kernel queues.
const UDP_ROUNDS: usize = 12;

/// Timers examined per turn: 4096 take less than a millisecond, so that a mass stall never delays beats for longer
/// than that.
const TIMER_BUDGET: u32 = 4096;

/// How long a stall that found the ring full waits before it is offered again: 1 ms, so that a slow reader causes no
/// busy loop.
const RING_FULL_PAUSE_NS: u64 = 1_000_000;

/// The configuration of the beat path.
pub(crate) struct IngestConfig {
    pub(crate) gate: LocalGate,
    pub(crate) kernel: KernelFeatures,
    pub(crate) threshold_ns: u64,
    /// Every beat is reported as an event.
    pub(crate) every_beat: bool,
    /// Agents of other pid namespaces are refused.
    pub(crate) refuse_foreign: bool,
    /// Run in real time if this user may.
    pub(crate) real_time: bool,
    /// Datagrams the kernel queues on this socket before it refuses one.
    pub(crate) queue_datagrams: usize,
    /// Most agents whose process is held by a descriptor.
    pub(crate) descriptor_budget: usize,
}

/// The sources of beats.
pub(crate) struct Sockets {
    pub(crate) local: BoundSocket,
    pub(crate) udp: Option<UdpSource>,
}

/// The ends of the rings, and the state that other threads read.
pub(crate) struct Channels {
    pub(crate) events: EventSender,
    pub(crate) updates: UpdateReceiver,
    pub(crate) stop: StopSignal,
    pub(crate) state: Arc<BeatPathState>,
}

/// The ingest thread's state.
pub(crate) struct Ingest {
    unix: UnixSource,
    udp: Option<UdpSource>,
    recorder: Recorder,
    updates: UpdateReceiver,
    ready: Ready,
    /// Run in real time if this user may.
    real_time: bool,
    /// Start of this turn, on the raw clock.
    woken_ns: u64,
    /// A stall or an exit found the ring full in the last turn.
    ring_was_full: bool,
    /// Watched for as long as the thread runs.
    _stop: StopSignal,
}

impl Ingest {
    pub(crate) fn new(
        sockets: Sockets,
        config: IngestConfig,
        tracker: Tracker,
        limits: Limits,
        counters: Arc<Counters>,
        channels: Channels,
    ) -> io::Result<Self> {
        let Channels {
            events,
            updates,
            stop,
            state,
        } = channels;
        let raw = state.raw();
        let slots = tracker.capacity();
        let (sleeper, ready) = Sleeper::new(&sockets.local, stop.as_fd(), &updates, raw, slots)?;
        if let Some(udp) = &sockets.udp {
            sleeper.watch_input(udp)?;
        }
        let unix = UnixOptions {
            queue_datagrams: config.queue_datagrams,
            sender_pidfd: config.kernel.sender_pidfd,
            beat_rate: limits.agent_rate().map_or(0, |rate| rate.per_second),
        };
        let options = RecorderOptions {
            kernel: config.kernel,
            threshold_ns: config.threshold_ns,
        };
        Ok(Self {
            unix: UnixSource::new(sockets.local, unix, updates.bell(), raw)?,
            udp: sockets.udp,
            recorder: Recorder {
                options,
                tracker,
                limits,
                senders: LocalSenders::new(config.gate, config.refuse_foreign),
                processes: HeldProcesses::new(slots, config.descriptor_budget),
                clock: Clock::start(raw),
                sleeper,
                beat_events: BeatEvents::new(slots, config.every_beat),
                events,
                state,
                counters,
                refusals: 0,
            },
            updates,
            ready,
            real_time: config.real_time,
            woken_ns: raw.now_ns(),
            ring_was_full: false,
            _stop: stop,
        })
    }

    /// Turns until a stop is requested. An error means that the kernel refuses to wait.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut fetched = Fetched::new();
        let now_ns = self.recorder.clock.raw.now_ns();
        let mut priority = SchedPriority::take(self.real_time, now_ns);
        while !self.ready.stop {
            self.tick(&mut fetched, &mut priority)?;
        }
        Ok(())
    }

    fn tick(&mut self, fetched: &mut Fetched, priority: &mut SchedPriority) -> io::Result<()> {
        let slept_ns = self.promise_next_turn()?;
        priority.has_worked(self.woken_ns, slept_ns);
        let is_real_time = priority.is_real_time();
        let recorder = &mut self.recorder;
        recorder.counters.set(Gauge::RealTime, is_real_time.into());
        recorder.events.ring_bell();
        recorder.sleeper.wait(&mut self.ready, fetched)?;
        let woken_ns = recorder.read_clock();
        let is_calm = woken_ns.saturating_sub(slept_ns) >= CALM_NS;
        self.begin_turn(woken_ns, is_calm);
        let heard_ns = self.recorder.clock.now_ns();
        // Beats that waited for a reply are older than those in the queue.
        self.drain_updates();
        self.drain_sources(fetched)?;
        self.unix.shed_floods(&mut self.recorder);
        self.drain_exits();
        self.judge(heard_ns);
        Ok(())
    }

    /// Everything sent before this moment is in a queue by now, so silence up to this moment is proved once the queue
    /// has been read, unless the queue was full and refused a datagram.
    fn drain_sources(&mut self, fetched: &mut Fetched) -> io::Result<()> {
        let Self {
            unix,
            udp,
            recorder,
            ready,
            ..
        } = self;
        unix.drain_queue(recorder, ready, fetched)?;
        let Some(udp) = udp else {
            return Ok(());
        };
        for _ in 0..UDP_ROUNDS {
            if !udp.drain(recorder) {
                break;
            }
            recorder.read_clock();
            // Datagrams that arrived since. A whole queue in each round would make a turn of two floods long.
            unix.drain(recorder, ready, fetched, RECEIVE_BUDGET_MIN)?;
        }
        Ok(())
    }

    /// Sets the timer and announces the next turn. Returns its time.
    fn promise_next_turn(&mut self) -> io::Result<u64> {
        let now_ns = self.recorder.read_clock();
        self.end_turn(now_ns);
        self.publish_trouble(now_ns);
        self.unix.update_wakes(&self.recorder)?;
        let mut due_ns = self.unix.next_due_ns(now_ns);
        if let Some(udp) = &mut self.udp {
            udp.update_wakes(&self.recorder)?;
            due_ns = due_ns.into_iter().chain(udp.next_due_ns(now_ns)).min();
        }
        let recorder = &mut self.recorder;
        let deadline_ns = recorder.tracker.next_deadline_ns();
        // No agent is judged while no beat can be received.
        let mut wake_ns = match deadline_ns.filter(|_| self.unix.is_open()) {
            Some(deadline_ns) => recorder.clock.attention.raw_at(deadline_ns),
            None if self.ring_was_full => now_ns,
            None if due_ns.is_some() => u64::MAX,
            None => {
                recorder.promise(u64::MAX);
                recorder.sleeper.wake_on_input_only()?;
                return Ok(now_ns);
            }
        };
        wake_ns = wake_ns.min(due_ns.unwrap_or(u64::MAX));
        if self.ring_was_full {
            wake_ns = wake_ns.max(now_ns + RING_FULL_PAUSE_NS);
        }
        let wake_ns = wake_ns.min(now_ns + longest_sleep_ns(recorder.shortest_threshold_ns()));
        let wake_ns = recorder.sleeper.wake_at(now_ns, wake_ns)?;
        recorder.promise(wake_ns);
        Ok(now_ns)
    }

    fn begin_turn(&mut self, woken_ns: u64, is_calm: bool) {
        // The last announced turn is over, the next one is announced at the end of this turn. A gap is published
        // before.
        self.recorder.publish_lag(woken_ns);
        self.recorder.state.set_next_turn(woken_ns);
        self.woken_ns = woken_ns;
        self.unix.begin_turn(woken_ns, is_calm);
    }

    /// Publishes what other threads can read about the turn that ends.
    fn end_turn(&mut self, now_ns: u64) {
        let udp_read = self.udp.as_mut().map_or(0, UdpSource::take_turn_read);
        let read = self.unix.turn_read() + udp_read;
        let recorder = &mut self.recorder;
        let work_ns = now_ns.saturating_sub(self.woken_ns);
        recorder.publish_lag(now_ns);
        let waiting = recorder.events.waiting() as u64;
        let regressions = recorder.clock.attention.take_regressions();
        let jumps = recorder.clock.attention.take_jumps();
        let counters = &recorder.counters;
        counters.observe(Timing::Work, work_ns);
        counters.raise(Gauge::ReceiveHighWater, read as u64);
        counters.raise(Gauge::RingHighWater, waiting);
        counters.add(Counter::ClockRegressions, regressions);
        counters.add(Counter::ClockJumps, jumps);
        let local_agents = recorder.tracker.local_len() as u64;
        recorder.state.set_local_agents(local_agents);
        // Last: a reader that sees this value sees all effects of the turn.
        recorder.state.set_last_turn(self.woken_ns);
    }

    /// Publishes the reason why beats cannot be received, and reports it when that changes.
    fn publish_trouble(&mut self, now_ns: u64) {
        let mut has_changed = self.unix.publish_trouble(&self.recorder, now_ns);
        if let Some(udp) = &self.udp {
            has_changed |= udp.publish_trouble(&self.recorder);
        }
        if has_changed {
            self.recorder.send(EventKind::ReceiveTrouble);
        }
    }

    /// Exits that find the ring full wait for the next turn, as stalls do.
    fn drain_exits(&mut self) {
        let recorder = &mut self.recorder;
        let mut done = 0;
        while let Some(slot) = self.ready.exits.get(done).copied() {
            if !recorder.events.has_room() {
                break;
            }
            done += 1;
            // The slot may have a new agent since the kernel reported the exit, so the process is checked again.
            if recorder.processes.has_ended(slot)
                && let Some(agent) = recorder.tracker.agent_in(slot)
            {
                recorder.retire_process(agent, None);
            }
        }
        self.ready.exits.drain(..done);
    }

    fn judge(&mut self, heard_ns: u64) {
        let provable_ns = self.unix.provable_ns(&self.recorder, heard_ns);
        let udp = self.udp.as_ref();
        let refused = |agent| udp.map_or(0, |udp| udp.refused(agent));
        let all_taken = self.recorder.judge(provable_ns, TIMER_BUDGET, refused);
        self.ring_was_full = !all_taken || !self.ready.exits.is_empty();
    }
}
