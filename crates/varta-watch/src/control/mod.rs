//! The other thread: everything slow. It is a shell around the engine ([`varta_core::engine`]): it receives what has
//! happened, feeds it to the engine, carries out what that answers, and feeds back what became of it. It decides
//! nothing about agents.
//!
//! Nothing here can delay a beat. The table of slots is the truth about who is silent; events only
//! say when to look. So an event that was dropped can cost a log line, never a wrong action.
//!
//! Bounds: a turn takes [`EVENTS_PER_TURN`] events; what else is kept here is bounded where it is kept.

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

/// Events handled before anything else gets a turn.
const EVENTS_PER_TURN: usize = 4096;

/// How often the largest pid of this host is read, in case the operator changes it.
const PID_MAX_PAUSE: Duration = Duration::from_secs(60);

/// How soon updates of the beat path that found no room are sent again.
const UPDATES_PAUSE: Duration = Duration::from_millis(10);

/// How long killed recovery commands may take to be gone when the observer stops.
const REAP_WAIT: Duration = Duration::from_millis(100);

/// What the control thread works with.
pub(crate) struct ControlConfig {
    pub(crate) events: EventReceiver,
    pub(crate) updates: UpdateSender,
    pub(crate) commands: mpsc::Receiver<CommandRequest>,
    pub(crate) report: Report,
    /// What the operator wanted at the start.
    pub(crate) config: Config,
    /// Spreads what must not happen all at once.
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
    given: ControlConfig,
    engine: Engine,
    /// What the engine goes by, for what must be looked up for it.
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
    /// What the operator wants now.
    in_force: Config,
    /// The operator knows that descriptors have run out.
    receive_trouble: ReceiveTrouble,
    told_of_unwatched_exits: bool,
}

/// Why the control thread ended.
#[derive(Debug)]
pub(crate) enum StopReason {
    /// It was asked to stop.
    Told(StopCause),
    /// The beat path gave up.
    IngestFailed(io::Error),
}

/// The signals the observer answers. Installed before anything is left in the file system, so that a
/// stop is clean from the first moment.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user1: Signal,
    /// It is not listened to. But the observer may have been started with this signal ignored, and then the kernel
    /// would not say how a child has ended.
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
    pub(crate) fn new(given: ControlConfig) -> Self {
        let settings = &given.config.settings;
        let policy = Arc::new(settings.policy.clone());
        let mut clock = Clock::default();
        let options = EngineOptions {
            seed: given.seed,
            own_uid: rustix::process::geteuid().as_raw(),
        };
        given.state.set_threshold(nanoseconds(settings.threshold));
        Self {
            engine: Engine::new(
                options,
                Arc::clone(&given.table),
                Arc::clone(&policy),
                clock.now(&given.beat_path),
            ),
            policy,
            clock,
            processes: ProcessRegistry::new(given.kernel, given.beat_path.raw()),
            steps: Steps::new(given.kernel, settings.children.clone()),
            replies: HashMap::new(),
            last_ticket: 0,
            last_update: 0,
            next_pid_max: Instant::now() + PID_MAX_PAUSE,
            in_force: given.config.clone(),
            receive_trouble: ReceiveTrouble::default(),
            told_of_unwatched_exits: false,
            given,
        }
    }

    /// Works until told to stop. `ingest_end` speaks when the beat path has ended by itself.
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
        let bell = AsyncFd::with_interest(self.given.events.bell(), Interest::READABLE)?;
        let end = shutdown_after.and_then(|after| Instant::now().checked_add(after));
        let mut more = false;
        loop {
            let due = self.next_due();
            tokio::select! {
                ready = bell.readable(), if !more => {
                    ready?.clear_ready();
                    self.given.events.quiet();
                    more = self.take_events();
                }
                () = tokio::task::yield_now(), if more => more = self.take_events(),
                Some((action, end)) = self.steps.ended() => {
                    self.feed(Input::Outcome { action, outcome: Outcome::Ended(end) });
                }
                Some(request) = self.given.commands.recv() => self.handle(request),
                () = at(due) => {}
                () = at(end) => return Ok(StopReason::Told(StopCause::TimeIsUp)),
                _ = signals.interrupt.recv() => return Ok(StopReason::Told(StopCause::Interrupt)),
                _ = signals.terminate.recv() => return Ok(StopReason::Told(StopCause::Terminate)),
                _ = signals.hangup.recv() => self.reload(),
                _ = signals.user1.recv() => self.publish_counters(),
                Ok(error) = &mut *ingest_end => return Ok(StopReason::IngestFailed(error)),
            }
            self.feed(Input::Timeout);
            self.look_around(Instant::now());
            self.show_levels();
            self.given.updates.send();
            self.given.report.write_rows();
            self.given.report.tick();
        }
    }

    /// Ends everything that was started. The beat path has stopped: no more events come, and nothing can be
    /// changed. The engine is not fed a timeout any more, so it orders nothing.
    pub(crate) async fn finish(&mut self) {
        self.given.commands.close();
        while self.given.commands.try_recv().is_ok() {}
        while self.take_events() {}
        self.given.report.finish();
        let grace = self.steps.stop(self.given.config.settings.shutdown_grace);
        let _ = tokio::time::timeout(grace + REAP_WAIT, async {
            while let Some((action, end)) = self.steps.ended().await {
                let outcome = Outcome::Ended(end);
                self.feed(Input::Outcome { action, outcome });
            }
        })
        .await;
    }

    /// Writes what is left to be written.
    pub(crate) fn close(&mut self) {
        self.given.report.close();
    }

    /// Takes what has happened, up to a bound; true if there may be more.
    fn take_events(&mut self) -> bool {
        for _ in 0..EVENTS_PER_TURN {
            match self.given.events.pop() {
                None => return false,
                Some(Handed::Event { event, process }) => {
                    self.take_event(completed(event, process.as_ref()));
                }
                Some(Handed::Query(query)) => {
                    let reply = self.processes.answer(query);
                    self.given.updates.add(Update::Identity(reply));
                    // A beat is waiting.
                    self.given.updates.send();
                }
            }
        }
        true
    }

    /// Feeds an event with what can be looked up about its process.
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
                self.given.no_room.note(sender, reason, now);
                None
            }
            EventKind::ReceiveTrouble => {
                let now_ns = event.observer_ns;
                for fact in self.receive_trouble.changes(&self.given.beat_path, now_ns) {
                    self.given.report.publish(&fact, now_ns);
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

    /// Looks at the process of a new agent, for the engine and for the beat path.
    fn joined(&mut self, agent: Agent, from: JoinedFrom) -> Option<ProcessFacts> {
        let JoinedFrom::Local { exit_watched, .. } = from else {
            return None;
        };
        let policy = &self.policy;
        let (info, facts) = self
            .processes
            .join(agent, exit_watched, &|path| policy.names_program(path));
        // Before the join is published and acted on.
        self.given.updates.add(Update::Info(agent, info));
        self.given.updates.send();
        Some(facts)
    }

    fn publish_unwatched_exits(&mut self) {
        if !self.told_of_unwatched_exits && self.given.counters.get(Counter::ExitWatchFailed) > 0 {
            self.told_of_unwatched_exits = true;
            self.publish(&Fact::ExitsUnwatched);
        }
    }

    /// Feeds an operator's command; it is answered by an effect.
    fn handle(&mut self, CommandRequest { command, reply }: CommandRequest) {
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.replies.insert(ticket, reply);
        self.feed(Input::Command { ticket, command });
    }

    fn feed(&mut self, input: Input) {
        let now = self.clock.now(&self.given.beat_path);
        self.engine.handle(input, now);
        while let Some(effect) = self.engine.poll_effect() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish { observer_ns, fact } => {
                self.given.report.publish(&fact, observer_ns);
            }
            Effect::TakeStep(order) => self.take_step(&order),
            Effect::Update(update) => self.last_update = self.given.updates.add(update_of(update)),
            Effect::ReadPressure => {
                let pressure = Input::Pressure(pressure::read());
                let now = self.clock.now(&self.given.beat_path);
                self.engine.handle(pressure, now);
            }
            Effect::Directory {
                agent,
                info: Some(info),
            } => self.given.directory.enter(agent, info),
            Effect::Directory { agent, info: None } => self.given.directory.leave(agent),
            Effect::Answer { ticket, result } => self.answer(ticket, result),
        }
    }

    fn take_step(&mut self, order: &StepOrder) {
        let outcome = self.steps.take(order, &mut self.processes);
        let action = order.id;
        let outcome = Input::Outcome { action, outcome };
        let now = self.clock.now(&self.given.beat_path);
        self.engine.handle(outcome, now);
    }

    fn answer(&mut self, ticket: u64, result: Result<(), AgentGone>) {
        if let Some(reply) = self.replies.remove(&ticket) {
            // The command was carried out, also if its answer is not waited for any more.
            let _ = reply.send(result.map(|()| self.last_update));
        }
    }

    /// Publishes what is about no agent.
    pub(crate) fn publish(&mut self, fact: &Fact) {
        let now_ns = self.given.beat_path.raw().now_ns();
        self.given.report.publish(fact, now_ns);
    }

    fn notice(&mut self, level: Level, text: String) {
        self.publish(&Fact::Notice { level, text });
    }

    fn publish_counters(&mut self) {
        let counters = self.given.counters.nonzero();
        self.publish(&Fact::CountersSoFar { counters });
    }

    fn show_levels(&self) {
        let Levels {
            in_flight,
            is_fire_held,
            agents_missing,
        } = self.engine.levels();
        let counters = &self.given.counters;
        counters.set(Gauge::RecoveryInFlight, in_flight as u64);
        counters.set(Gauge::RecoveryHeld, is_fire_held.into());
        self.given.state.set_agents_missing(agents_missing);
    }

    fn next_due(&self) -> Option<Instant> {
        let updates = self.given.updates.is_backed_up();
        let updates = updates.then(|| Instant::now() + UPDATES_PAUSE);
        let observer_ns = [self.engine.next_timeout(), self.given.report.next_due_ns()];
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
        let ahead_ns = observer_ns.saturating_sub(self.given.beat_path.raw().now_ns());
        Instant::now() + Duration::from_nanos(ahead_ns)
    }

    /// What must be looked at now and then because nothing rings a bell.
    fn look_around(&mut self, now: Instant) {
        for (agent, process) in self.processes.find_ended(now) {
            self.given.updates.add(Update::Ended(agent, process));
        }
        if now >= self.next_pid_max {
            self.next_pid_max = now + PID_MAX_PAUSE;
            self.given
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
    /// The attention clock as other threads see it may be ahead for a moment, until the beat path has noticed a gap; it
    /// stands still then, so that no silence gets shorter.
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

/// An exit with how the process ended; any other event as it is.
fn completed(mut event: Event, process: Option<&OwnedFd>) -> Event {
    if let EventKind::Exit { agent, status, .. } = &mut event.kind
        && *status == ExitStatus::Unknown
        && let Some(process) = process
    {
        *status = process_info::exit_status(agent.pid, process);
    }
    event
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => future::pending().await,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
