//! The control thread: everything slow. It is a shell around the engine ([`varta_core::engine`]): it receives events,
//! feeds them to the engine, executes the engine's effects, and feeds back their outcomes. It decides nothing about
//! agents.
//!
//! Nothing in this module can delay a beat. The table of slots decides which agent is silent; an event only triggers
//! a check. A dropped event can therefore cost a log line, never a wrong action.
//!
//! Bounds: a turn takes [`EVENTS_PER_TURN`] events; every other collection states its bound at its own definition.

mod pressure;
mod process_registry;
mod receive_trouble;
mod reload;
mod steps;

use std::collections::HashMap;
use std::future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use varta_core::engine::{
    AgentGone, AgentUpdate, Effect, Engine, EngineOptions, Input, Levels, Now, Outcome,
    ProcessFacts, StepOrder,
};
use varta_core::fact::{Level, StopCause};
use varta_core::policy::Policy;
use varta_core::{
    Agent, Counter, Counters, Event, EventKind, ExitStatus, Fact, Gauge, JoinedFrom, SlotTable,
};

use crate::beat_path_state::BeatPathState;
use crate::config::Config;
use crate::handoff::command::{CommandRequest, Reply};
use crate::handoff::{EventReceiver, Handed, Update, UpdateSender};
use crate::process_info::{self, KernelFeatures};
use crate::report::Report;
use crate::settings::network::KeyFiles;
use crate::snapshot::control_state::ControlState;
use crate::snapshot::directory::Directory;
use crate::snapshot::no_room::NoRoom;
use crate::token::TokenFile;
use process_registry::ProcessRegistry;
use receive_trouble::ReceiveTrouble;
use steps::Steps;

/// Events handled before the other inputs are polled.
const EVENTS_PER_TURN: usize = 4096;

/// How often the largest pid of this host is read, in case the operator changes it.
const PID_MAX_PAUSE: Duration = Duration::from_secs(60);

/// Time until an update is sent again that the full ring to the beat path refused.
const UPDATES_PAUSE: Duration = Duration::from_millis(10);

/// Longest wait for killed recovery commands when the observer stops.
const REAP_WAIT: Duration = Duration::from_millis(100);

/// The parts that the control thread works with.
pub(crate) struct ControlConfig {
    pub(crate) events: EventReceiver,
    pub(crate) updates: UpdateSender,
    pub(crate) commands: mpsc::Receiver<CommandRequest>,
    pub(crate) report: Report,
    /// The settings of the start.
    pub(crate) config: Config,
    /// Spreads work that must not happen all at once.
    pub(crate) seed: u64,
    /// Read again on SIGHUP; `None` without encrypted UDP.
    pub(crate) keys: Option<KeyFiles>,
    /// Read again on SIGHUP; `None` if none is needed.
    pub(crate) token: Option<Arc<TokenFile>>,
    pub(crate) table: Arc<SlotTable>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) no_room: Arc<NoRoom>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) beat_path: Arc<BeatPathState>,
    pub(crate) state: Arc<ControlState>,
    pub(crate) kernel: KernelFeatures,
}

/// The control thread's state.
pub(crate) struct Control {
    parts: ControlConfig,
    engine: Engine,
    /// The policy of the engine, for the lookups on its behalf.
    policy: Arc<Policy>,
    clock: Clock,
    processes: ProcessRegistry,
    steps: Steps,
    /// Where the answers to commands go, by ticket.
    replies: HashMap<u64, Reply>,
    last_ticket: u64,
    /// The number of the last update of the beat path.
    last_update: u64,
    next_pid_max: Instant,
    /// The settings in force now.
    in_force: Config,
    receive_trouble: ReceiveTrouble,
    /// The operator was informed that descriptors have run out.
    unwatched_exits_reported: bool,
}

/// Why the control thread ended.
#[derive(Debug)]
pub(crate) enum StopReason {
    /// A stop was requested.
    Requested(StopCause),
    /// The beat path ended by itself.
    IngestFailed(io::Error),
}

/// The signals the observer handles. Installed before any file is created, so that a stop cleans up from the first
/// moment.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
    /// Not read. The parent of the observer may have it ignore this signal, and the kernel would then report no exit
    /// status of a child.
    _child: Signal,
}

impl Signals {
    /// Must be called within the runtime.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            _child: signal(SignalKind::child())?,
        })
    }
}

impl Control {
    pub(crate) fn new(parts: ControlConfig) -> Self {
        let settings = &parts.config.settings;
        let policy = Arc::new(settings.policy.clone());
        let mut clock = Clock::default();
        let options = EngineOptions {
            seed: parts.seed,
            own_uid: rustix::process::geteuid().as_raw(),
        };
        parts.state.set_threshold(nanoseconds(settings.threshold));
        Self {
            engine: Engine::new(
                options,
                Arc::clone(&parts.table),
                Arc::clone(&policy),
                clock.now(&parts.beat_path),
            ),
            policy,
            clock,
            processes: ProcessRegistry::new(parts.kernel, parts.beat_path.raw()),
            steps: Steps::new(parts.kernel, settings.children.clone()),
            replies: HashMap::new(),
            last_ticket: 0,
            last_update: 0,
            next_pid_max: Instant::now() + PID_MAX_PAUSE,
            in_force: parts.config.clone(),
            receive_trouble: ReceiveTrouble::default(),
            unwatched_exits_reported: false,
            parts,
        }
    }

    /// Works until a stop is requested. `ingest_end` resolves when the beat path has ended by itself.
    pub(crate) async fn run(
        &mut self,
        mut signals: Signals,
        shutdown_after: Option<Duration>,
        ingest_end: &mut oneshot::Receiver<io::Error>,
    ) -> io::Result<StopReason> {
        #[allow(
            deprecated,
            reason = "its successor is unsafe because a type may lie about its descriptor; an \
                      OwnedFd does not"
        )]
        let bell = AsyncFd::with_interest(self.parts.events.bell(), Interest::READABLE)?;
        let end = shutdown_after.and_then(|after| Instant::now().checked_add(after));
        let mut more = false;
        loop {
            let due = self.next_due();
            tokio::select! {
                ready = bell.readable(), if !more => {
                    ready?.clear_ready();
                    self.parts.events.quiet();
                    more = self.take_events();
                }
                () = tokio::task::yield_now(), if more => more = self.take_events(),
                Some((action, end)) = self.steps.ended() => {
                    self.feed(Input::Outcome { action, outcome: Outcome::Ended(end) });
                }
                Some(request) = self.parts.commands.recv() => self.handle(request),
                () = sleep_until(due) => {}
                () = sleep_until(end) => return Ok(StopReason::Requested(StopCause::TimeIsUp)),
                _ = signals.interrupt.recv() => return Ok(StopReason::Requested(StopCause::Interrupt)),
                _ = signals.terminate.recv() => return Ok(StopReason::Requested(StopCause::Terminate)),
                _ = signals.hangup.recv() => self.reload(),
                _ = signals.user1.recv() => self.publish_counters(),
                Ok(error) = &mut *ingest_end => return Ok(StopReason::IngestFailed(error)),
            }
            self.feed(Input::Timeout);
            self.poll_periodic(Instant::now());
            self.show_levels();
            self.parts.updates.send();
            self.parts.report.write_rows();
            self.parts.report.tick();
        }
    }

    /// Ends everything that was started. The beat path has stopped: no more events come, and nothing can be
    /// changed. The engine is not fed a timeout any more, so it orders nothing.
    pub(crate) async fn finish(&mut self) {
        self.parts.commands.close();
        while self.parts.commands.try_recv().is_ok() {}
        while self.take_events() {}
        self.parts.report.finish();
        let grace = self.steps.stop(self.parts.config.settings.shutdown_grace);
        let _ = tokio::time::timeout(grace + REAP_WAIT, async {
            while let Some((action, end)) = self.steps.ended().await {
                let outcome = Outcome::Ended(end);
                self.feed(Input::Outcome { action, outcome });
            }
        })
        .await;
    }

    /// Writes everything that is pending.
    pub(crate) fn close(&mut self) {
        self.parts.report.close();
    }

    /// Takes the pending events, up to a bound; true if there may be more.
    fn take_events(&mut self) -> bool {
        for _ in 0..EVENTS_PER_TURN {
            match self.parts.events.pop() {
                None => return false,
                Some(Handed::Event { event, process }) => {
                    self.take_event(completed(event, process.as_ref()));
                }
                Some(Handed::Query(query)) => {
                    let reply = self.processes.answer(query);
                    self.parts.updates.add(Update::Identity(reply));
                    // A beat is waiting.
                    self.parts.updates.send();
                }
            }
        }
        true
    }

    /// Feeds an event together with the facts that can be looked up about its process.
    fn take_event(&mut self, event: Event) {
        let facts = match event.kind {
            EventKind::Join { agent, from, .. } => self.joined(agent, from),
            EventKind::Session { agent, .. } => {
                let policy = &self.policy;
                self.processes
                    .review(agent, &|path| policy.names_program(path))
            }
            EventKind::Refused { sender, reason } => {
                let now = Instant::now().into_std();
                self.parts.no_room.note(sender, reason, now);
                None
            }
            EventKind::ReceiveTrouble => {
                let now_ns = event.observer_ns;
                for fact in self.receive_trouble.changes(&self.parts.beat_path, now_ns) {
                    self.parts.report.publish(&fact, now_ns);
                }
                None
            }
            _ => None,
        };
        self.feed(Input::Event {
            event,
            facts: facts.map(Box::new),
        });
        match event.kind {
            EventKind::Join { .. } => self.publish_unwatched_exits(),
            EventKind::Exit { agent, .. } | EventKind::Evicted { agent } => {
                self.processes.forget(agent);
            }
            _ => {}
        }
    }

    /// Examines the process of a new agent, for the engine and for the beat path.
    fn joined(&mut self, agent: Agent, from: JoinedFrom) -> Option<ProcessFacts> {
        let JoinedFrom::Local { exit_watched, .. } = from else {
            return None;
        };
        let policy = &self.policy;
        let (info, facts) = self
            .processes
            .join(agent, exit_watched, &|path| policy.names_program(path));
        // Before the join is published and acted on.
        self.parts.updates.add(Update::Info(agent, info));
        self.parts.updates.send();
        Some(facts)
    }

    fn publish_unwatched_exits(&mut self) {
        if !self.unwatched_exits_reported && self.parts.counters.get(Counter::ExitWatchFailed) > 0 {
            self.unwatched_exits_reported = true;
            self.publish(&Fact::ExitsUnwatched);
        }
    }

    /// Feeds an operator's command; an effect answers it.
    fn handle(&mut self, CommandRequest { command, reply }: CommandRequest) {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.replies.insert(ticket, reply);
        self.feed(Input::Command { ticket, command });
    }

    fn feed(&mut self, input: Input) {
        let now = self.clock.now(&self.parts.beat_path);
        self.engine.handle(input, now);
        while let Some(effect) = self.engine.poll_effect() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish { observer_ns, fact } => {
                self.parts.report.publish(&fact, observer_ns);
            }
            Effect::TakeStep(order) => self.take_step(&order),
            Effect::Update(update) => self.last_update = self.parts.updates.add(update_of(update)),
            Effect::ReadPressure => {
                let pressure = Input::Pressure(pressure::read());
                let now = self.clock.now(&self.parts.beat_path);
                self.engine.handle(pressure, now);
            }
            Effect::Directory {
                agent,
                info: Some(info),
            } => self.parts.directory.enter(agent, info),
            Effect::Directory { agent, info: None } => self.parts.directory.leave(agent),
            Effect::Answer { ticket, result } => self.answer(ticket, result),
        }
    }

    fn take_step(&mut self, order: &StepOrder) {
        let outcome = self.steps.take(order, &mut self.processes);
        let action = order.id;
        let outcome = Input::Outcome { action, outcome };
        let now = self.clock.now(&self.parts.beat_path);
        self.engine.handle(outcome, now);
    }

    fn answer(&mut self, ticket: u64, result: Result<(), AgentGone>) {
        if let Some(reply) = self.replies.remove(&ticket) {
            // The command was carried out, also if its answer is not waited for any more.
            let _ = reply.send(result.map(|()| self.last_update));
        }
    }

    /// Publishes what concerns the observer and no single agent.
    pub(crate) fn publish(&mut self, fact: &Fact) {
        let now_ns = self.parts.beat_path.raw().now_ns();
        self.parts.report.publish(fact, now_ns);
    }

    fn notice(&mut self, level: Level, text: String) {
        self.publish(&Fact::Notice { level, text });
    }

    fn publish_counters(&mut self) {
        let counters = self.parts.counters.nonzero();
        self.publish(&Fact::CountersSoFar { counters });
    }

    fn show_levels(&self) {
        let Levels {
            in_flight,
            is_fire_held,
            agents_missing,
        } = self.engine.levels();
        let counters = &self.parts.counters;
        counters.set(Gauge::RecoveryInFlight, in_flight as u64);
        counters.set(Gauge::RecoveryHeld, is_fire_held.into());
        self.parts.state.set_agents_missing(agents_missing);
    }

    fn next_due(&self) -> Option<Instant> {
        let updates = self.parts.updates.is_backed_up();
        let updates = updates.then(|| Instant::now() + UPDATES_PAUSE);
        let observer_ns = [self.engine.next_timeout(), self.parts.report.next_due_ns()];
        let observer_ns = observer_ns.into_iter().flatten().min();
        let due = observer_ns.map(|ns| self.instant_at(ns));
        let search = self.processes.next_search();
        [due, updates, search, Some(self.next_pid_max)]
            .into_iter()
            .flatten()
            .min()
    }

    /// A time of the observer's clock, or now if that has passed.
    fn instant_at(&self, observer_ns: u64) -> Instant {
        let ahead_ns = observer_ns.saturating_sub(self.parts.beat_path.raw().now_ns());
        Instant::now() + Duration::from_nanos(ahead_ns)
    }

    /// Periodic checks of what sends no notification.
    fn poll_periodic(&mut self, now: Instant) {
        for (agent, process) in self.processes.find_ended(now) {
            self.parts.updates.add(Update::Ended(agent, process));
        }
        if now >= self.next_pid_max {
            self.next_pid_max = now + PID_MAX_PAUSE;
            self.parts
                .updates
                .add(Update::PidMax(process_info::pid_max()));
        }
    }
}

/// The time of the engine's inputs.
#[derive(Default)]
struct Clock {
    last_attention_ns: u64,
}

impl Clock {
    /// The attention clock as other threads see it may be ahead for a moment, until the beat path has detected a gap;
    /// the value returned then stands still, so that no silence gets shorter.
    fn now(&mut self, beat_path: &BeatPathState) -> Now {
        let attention_ns = beat_path.attention_now_ns().max(self.last_attention_ns);
        self.last_attention_ns = attention_ns;
        Now {
            observer_ns: beat_path.raw().now_ns(),
            attention_ns,
        }
    }
}

/// What the beat path has to know, as an update of the ring.
fn update_of(update: AgentUpdate) -> Update {
    match update {
        AgentUpdate::Deadlines(agent, deadlines) => Update::Deadlines(agent, deadlines),
        AgentUpdate::BeatLimit(agent, limit) => Update::BeatLimit(agent, limit),
        AgentUpdate::Pause(agent, time) => Update::Pause(agent, time),
        AgentUpdate::Resume(agent) => Update::Resume(agent),
    }
}

/// An exit completed with the exit status of the process; any other event unchanged.
fn completed(mut event: Event, process: Option<&OwnedFd>) -> Event {
    if let EventKind::Exit { agent, status, .. } = &mut event.kind
        && *status == ExitStatus::Unknown
        && let Some(process) = process
    {
        *status = process_info::exit_status(agent.pid, process);
    }
    event
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => future::pending().await,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
