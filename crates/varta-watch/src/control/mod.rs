//! The other thread: everything slow. It takes events from the beat path, tells them to the log and
//! the event file, and starts what the core decides about recovery.
//!
//! Nothing here can delay a beat. The table of slots is the truth about who is silent; events only
//! say when to look. So an event that was dropped can cost a log line, never a wrong action.

mod acquaintances;
mod hooks;
mod pressure;
mod receive_trouble;
mod recoveries;
mod recovery_messages;
mod reload;
mod rulebook;
mod wishes;

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
use varta_api::LogEvent;
use varta_core::slot::Slot;
use varta_core::{
    Agent, BeatLimit, Counter, Counters, Deadlines, Event, EventKind, ExitStatus, JoinedFrom, Rate,
    SlotTable, UID_UNKNOWN,
};

use crate::actions::Runner;
use crate::beat_path_state::BeatPathState;
use crate::config::Config;
use crate::handoff::command::Command;
use crate::handoff::{EventReceiver, Handed, Update, UpdateSender};
use crate::process_info::{self, KernelFeatures};
use crate::report::event_file::{EventFile, append_row};
use crate::report::line_limit::{LineKind, LineLimit, Owner};
use crate::report::log::Log;
use crate::report::log_throttle::LogThrottle;
use crate::report::messages;
use crate::settings::network::KeyFiles;
use crate::settings::policy::Occasion;
use crate::snapshot::control_state::ControlState;
use crate::snapshot::directory::{AgentInfo, Directory};
use crate::snapshot::no_room::NoRoom;
use crate::token::TokenFile;
use acquaintances::Acquaintances;
use receive_trouble::ReceiveTrouble;
use recoveries::Recoveries;
use rulebook::Newcomer;
use wishes::Pauses;

/// Events handled before anything else gets a turn.
const EVENTS_PER_TURN: usize = 4096;

/// How often the largest pid of this host is read, in case the operator changes it.
const PID_MAX_PAUSE: Duration = Duration::from_secs(60);

/// Seconds' worth of beats that an agent with a limit of its own may send at once.
const BURST_SECONDS: u32 = 10;

/// How soon updates that found no room are sent again.
const UPDATES_PAUSE: Duration = Duration::from_millis(10);

/// How long killed recovery commands may take to be gone when the observer stops.
const REAP_WAIT: Duration = Duration::from_millis(100);

/// What the control thread works with.
pub(crate) struct ControlConfig {
    pub(crate) events: EventReceiver,
    pub(crate) updates: UpdateSender,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) log: Log,
    pub(crate) event_file: Option<EventFile>,
    /// What the operator wanted at the start.
    pub(crate) config: Config,
    /// Slots of the table.
    pub(crate) slots: usize,
    /// Spreads what must not happen all at once.
    pub(crate) seed: u64,
    /// Read again on SIGHUP; `None` without encrypted UDP.
    pub(crate) keys: Option<KeyFiles>,
    /// Read again on SIGHUP; `None` if nobody needs one.
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
    acquaintances: Acquaintances,
    next_pid_max: Instant,
    recoveries: Recoveries,
    /// What the operator wants now.
    in_force: Config,
    throttle: LogThrottle,
    line_limit: LineLimit,
    pauses: Pauses,
    /// The operator knows that descriptors have run out.
    receive_trouble: ReceiveTrouble,
    told_of_unwatched_exits: bool,
}

/// Why the control thread ended.
#[derive(Debug)]
pub(crate) enum StopReason {
    /// SIGINT or SIGTERM.
    Signal(&'static str),
    /// `--shutdown-after-secs` has passed.
    TimeIsUp,
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
    /// Nobody listens to it. But whoever started the observer may have it ignore this signal, and then the
    /// kernel would tell nobody how a child has ended.
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
        let policy = Arc::new(given.config.settings.policy.clone());
        let runner = Runner::new(given.kernel);
        given
            .state
            .set_threshold(nanoseconds(given.config.settings.threshold));
        Self {
            acquaintances: Acquaintances::new(given.kernel, given.beat_path.raw()),
            recoveries: Recoveries::new(policy, runner, given.slots, given.seed),
            in_force: given.config.clone(),
            given,
            next_pid_max: Instant::now() + PID_MAX_PAUSE,
            throttle: LogThrottle::default(),
            line_limit: LineLimit::new(Instant::now()),
            pauses: Pauses::default(),
            receive_trouble: ReceiveTrouble::default(),
            told_of_unwatched_exits: false,
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
                Some(work) = self.recoveries.work_ended() => self.take_note(work),
                Some(command) = self.given.commands.recv() => self.handle(command),
                () = at(due) => {}
                () = at(end) => return Ok(StopReason::TimeIsUp),
                _ = signals.interrupt.recv() => return Ok(StopReason::Signal("SIGINT")),
                _ = signals.terminate.recv() => return Ok(StopReason::Signal("SIGTERM")),
                _ = signals.hangup.recv() => self.reload(),
                _ = signals.user1.recv() => self.tell_counters(),
                Ok(error) = &mut *ingest_end => return Ok(StopReason::IngestFailed(error)),
            }
            self.act();
            self.look_around(Instant::now());
            self.given.updates.send();
            self.throttle.tell_due(&self.given.log, Instant::now());
            let left_out = self.line_limit.take_due(Instant::now());
            messages::left_out(&self.given.log, left_out);
            self.count_lost_lines();
        }
    }

    /// Ends everything that was started. The beat path has stopped: no more events come, and nothing can be
    /// changed.
    pub(crate) async fn finish(&mut self) {
        self.given.commands.close();
        while self.given.commands.try_recv().is_ok() {}
        while self.take_events() {}
        self.throttle.tell_all(&self.given.log);
        messages::left_out(&self.given.log, self.line_limit.take_all());
        let longest = self.given.config.settings.shutdown_grace;
        let grace = self.recoveries.policy.children.grace.min(longest);
        self.recoveries.runner.stop(grace);
        let _ = tokio::time::timeout(grace + REAP_WAIT, async {
            while let Some(work) = self.recoveries.work_ended().await {
                self.take_note(work);
            }
        })
        .await;
    }

    /// Writes what is left to be written.
    pub(crate) fn close(&mut self) {
        if let Some(event_file) = self.given.event_file.take() {
            self.given
                .counters
                .add(Counter::RowsDropped, event_file.take_dropped());
            event_file.close();
        }
        self.count_lost_lines();
    }

    fn count_lost_lines(&self) {
        let lost = self.given.log.take_suppressed();
        self.given.counters.add(Counter::LogLinesSuppressed, lost);
    }

    /// Takes what has happened, up to a bound; true if there may be more.
    fn take_events(&mut self) -> bool {
        let mut rows = String::new();
        for _ in 0..EVENTS_PER_TURN {
            let Some(handed) = self.given.events.pop() else {
                self.write_rows(rows);
                return false;
            };
            let (event, process) = match handed {
                Handed::Event { event, process } => (event, process),
                Handed::Query(query) => {
                    let reply = self.acquaintances.answer(query);
                    self.given.updates.add(Update::Identity(reply));
                    // A beat is waiting.
                    self.given.updates.send();
                    continue;
                }
            };
            let event = completed(event, process.as_ref());
            if self.given.event_file.is_some() {
                append_row(&mut rows, &event);
            }
            self.tell(&event);
        }
        self.write_rows(rows);
        true
    }

    fn write_rows(&self, rows: String) {
        if let Some(event_file) = &self.given.event_file {
            self.given
                .counters
                .add(Counter::RowsDropped, event_file.take_dropped());
            if !rows.is_empty() {
                event_file.write(rows.into_bytes());
            }
        }
    }

    /// Logs an event and tells recovery what it needs to know.
    fn tell(&mut self, event: &Event) {
        match event.kind {
            EventKind::Beat { .. } => {}
            EventKind::Join {
                agent,
                from,
                status,
                payload,
                nonce,
            } => {
                match from {
                    JoinedFrom::Local { exit_watched, .. } => {
                        let info = self.acquaintances.join(agent, exit_watched);
                        // Before anybody reads of the join and acts on it.
                        self.given.updates.add(Update::Info(agent, info));
                        self.given.updates.send();
                    }
                    JoinedFrom::Remote { address, .. } => {
                        self.acquaintances.join_from(agent, address);
                    }
                }
                let who = self.name_of(agent);
                let facts = self.acquaintances.facts_of(agent);
                let uid = match from {
                    JoinedFrom::Local { uid, .. } => Some(uid).filter(|uid| *uid != UID_UNKNOWN),
                    JoinedFrom::Remote { .. } => None,
                };
                let info = AgentInfo {
                    uid,
                    name: who.name.clone(),
                    joined_as: who.name.clone(),
                    unit: facts.and_then(|facts| facts.units.system.clone()),
                    user_unit: facts.and_then(|facts| facts.units.user.clone()),
                    address: who.address,
                    sealed: matches!(from, JoinedFrom::Remote { sealed: true, .. }),
                    ..AgentInfo::default()
                };
                self.given.directory.enter(agent, info);
                self.hold_to_rule(agent);
                self.joined(agent);
                if self.may_tell(agent, LineKind::Join) {
                    let who = self.name_of(agent);
                    let facts = self.acquaintances.facts_of(agent);
                    messages::join(&self.given.log, &who, facts, from, status, payload, nonce);
                }
                self.tell_of_unwatched_exits();
            }
            EventKind::Session { agent, .. } => {
                self.acquaintances.review(agent);
                self.hold_to_rule(agent);
                self.throttle
                    .add_session(Instant::now(), self.name_of(agent));
            }
            EventKind::Sessions { agent, count } => {
                self.given
                    .directory
                    .update(agent, |info| info.sessions = count);
                messages::several_sessions(&self.given.log, &self.name_of(agent), count);
            }
            EventKind::Critical {
                agent,
                nonce,
                payload,
            } => {
                if self.may_tell(agent, LineKind::Critical) {
                    messages::critical(&self.given.log, &self.name_of(agent), nonce, payload);
                }
                self.hook(agent, Occasion::Critical);
            }
            EventKind::Late {
                agent, silence_ns, ..
            } => {
                if self.may_tell(agent, LineKind::Late) {
                    messages::late(&self.given.log, &self.name_of(agent), silence_ns);
                }
                self.hook(agent, Occasion::Late);
            }
            EventKind::Stall {
                agent,
                last_nonce,
                silence_ns,
                threshold_ns,
                refused,
            } => {
                let who = self.name_of(agent);
                messages::stall(
                    &self.given.log,
                    &who,
                    last_nonce,
                    silence_ns,
                    threshold_ns,
                    refused,
                );
                self.recover(agent, &who, event.observer_ns);
            }
            EventKind::Return {
                agent,
                silence_ns,
                status,
                payload,
                nonce,
            } => {
                let who = self.name_of(agent);
                messages::returned(&self.given.log, &who, silence_ns, status, payload, nonce);
                self.returned(agent, &who);
            }
            EventKind::Exit { agent, status, .. } => {
                self.given.counters.count(match status {
                    ExitStatus::Code(0) | ExitStatus::Goodbye => Counter::ExitsLeft,
                    ExitStatus::Code(_) | ExitStatus::Signal(_) => Counter::ExitsDied,
                    ExitStatus::Unknown => Counter::ExitsUnknown,
                });
                if self.may_tell(agent, LineKind::Exit) {
                    messages::exit(&self.given.log, &self.name_of(agent), status);
                }
                if !status.is_clean() {
                    self.hook(agent, Occasion::Exit);
                }
                self.forget(agent);
            }
            EventKind::Evicted { agent } => {
                messages::evicted(&self.given.log, &self.name_of(agent));
                self.forget(agent);
            }
            EventKind::Refused { sender, reason } => {
                let now = Instant::now();
                self.given.no_room.note(sender, reason, now.into_std());
                self.throttle.add_refusal(now, sender, reason);
            }
            EventKind::Flood { pid, one_in } => messages::flood(&self.given.log, pid, one_in),
            EventKind::PutOff { agent, silence_ns } => {
                let who = self.name_of(agent);
                self.throttle.add_put_off(Instant::now(), who, silence_ns);
            }
            EventKind::NetworkDrops { count } => self.throttle.add_drops(Instant::now(), count),
            EventKind::ReceiveTrouble => {
                let (log, beat_path) = (&self.given.log, &self.given.beat_path);
                self.receive_trouble.tell(log, beat_path, Instant::now());
            }
            EventKind::Gap { gap_ns } => self.throttle.add_gap(Instant::now(), gap_ns),
        }
    }

    fn tell_of_unwatched_exits(&mut self) {
        if !self.told_of_unwatched_exits && self.given.counters.get(Counter::ExitWatchFailed) > 0 {
            self.told_of_unwatched_exits = true;
            messages::unwatched_exits(&self.given.log);
        }
    }

    /// Whose agent this is, as far as the log is concerned.
    fn owner_of(&self, agent: Agent) -> Owner {
        match self.given.directory.get(agent) {
            Some(AgentInfo {
                address: Some(address),
                ..
            }) => Owner::Address(address),
            Some(AgentInfo { uid: Some(uid), .. }) => Owner::User(uid),
            _ => Owner::Others,
        }
    }

    /// Whether a line about an agent goes into the log, or is counted with those that its user causes too many of.
    fn may_tell(&mut self, agent: Agent, kind: LineKind) -> bool {
        self.may_tell_of(self.owner_of(agent), kind)
    }

    fn may_tell_of(&mut self, owner: Owner, kind: LineKind) -> bool {
        let may = self.line_limit.admit(owner, kind, Instant::now());
        if !may {
            self.given.counters.count(Counter::LogLinesOverRate);
        }
        may
    }

    /// How an agent is called: as its rule says, else as it calls itself.
    fn name_of(&self, agent: Agent) -> messages::Who {
        let who = self.acquaintances.name_of(agent);
        let rule = self.recoveries.book.rule_of(&self.recoveries.policy, agent);
        match rule.and_then(|rule| rule.label.clone()) {
            Some(name) => messages::Who { name, ..who },
            None => who,
        }
    }

    fn forget(&mut self, agent: Agent) {
        self.gone(agent);
        self.acquaintances.forget(agent);
        self.pauses.forget(agent);
        self.given.directory.leave(agent);
    }

    /// Finds the rule of an agent, tells the beat path, and calls the agent as the rule says. True if it was
    /// stalled and is not by that rule.
    fn hold_to_rule(&mut self, agent: Agent) -> bool {
        let Some(slot) = self.slot_of(agent) else {
            return false;
        };
        let sealed = self
            .given
            .directory
            .get(agent)
            .is_some_and(|info| info.sealed);
        let policy = Arc::clone(&self.recoveries.policy);
        self.acquaintances
            .check_program(agent, |path| policy.names_program(path));
        let newcomer = Newcomer {
            agent,
            facts: self.acquaintances.facts_of(agent),
            uid: Some(slot.uid).filter(|uid| *uid != UID_UNKNOWN),
            origin: slot.origin,
            sealed,
            address: self.acquaintances.address_of(agent),
        };
        if let Some(complete) = self.recoveries.book.enter(&policy, &newcomer) {
            messages::complete(&self.given.log, &complete);
        }
        let patience = self.patience_of(agent);
        let known = Deadlines {
            threshold_ns: slot.threshold_ns,
            late_ns: slot.late_ns,
        };
        let now_ns = self.given.beat_path.attention_now_ns();
        let silence_ns = slot.silence_ns(now_ns);
        let mut is_excused = false;
        if self.recoveries.book.note_patience(agent, patience, known) {
            self.given.updates.add(Update::Deadlines(agent, patience));
            // A pause that the beat path has not heard of yet ends the stall by itself, and must not be cut short.
            is_excused = slot.state.is_latched()
                && silence_ns < patience.threshold_ns
                && !self.is_paused(agent);
        }
        let rule = self.recoveries.book.rule_of(&policy, agent);
        let limit = match rule.and_then(|rule| rule.max_beat_rate) {
            None => BeatLimit::Common,
            Some(0) => BeatLimit::Unlimited,
            Some(per_second) => BeatLimit::Own(Rate {
                per_second,
                burst: per_second.saturating_mul(BURST_SECONDS),
            }),
        };
        if self.recoveries.book.note_limit(agent, limit) {
            self.given.updates.add(Update::BeatLimit(agent, limit));
        }
        let label = rule.and_then(|rule| rule.label.clone());
        let name = self.name_of(agent).name;
        self.given.directory.update(agent, |info| {
            info.name = name;
            info.label = label;
        });
        self.tell_missing();
        if is_excused {
            self.excuse(agent, silence_ns, patience.threshold_ns);
        }
        is_excused
    }

    /// A stall that is none by the rule in force now: nothing more is done about it. From now on the agent has
    /// its full threshold.
    fn excuse(&mut self, agent: Agent, silence_ns: u64, threshold_ns: u64) {
        // A pause of no length: what was reported is over, and silence from now on is reported anew.
        self.given.updates.add(Update::Pause(agent, Duration::ZERO));
        self.settled(agent);
        messages::excused(
            &self.given.log,
            &self.name_of(agent),
            silence_ns,
            threshold_ns,
        );
    }

    /// What is in the slot of an agent, as long as that is its.
    fn slot_of(&self, agent: Agent) -> Option<Slot> {
        let slot = self.given.table.read(agent.slot)?;
        (slot.agent(agent.slot) == agent).then_some(slot)
    }

    /// How long an agent may be silent.
    fn patience_of(&self, agent: Agent) -> Deadlines {
        let rule = self.recoveries.book.rule_of(&self.recoveries.policy, agent);
        let threshold = rule.and_then(|rule| rule.threshold);
        let threshold = threshold.unwrap_or(self.in_force.settings.threshold);
        let grace = rule.filter(|_| agent.is_remote());
        let grace = grace.map_or(Duration::ZERO, |rule| rule.network_grace);
        let late = rule
            .and_then(|rule| rule.late)
            .or(self.in_force.settings.late);
        // One that is no shorter than the threshold would never be seen.
        let late = late.filter(|late| *late < threshold);
        Deadlines {
            threshold_ns: nanoseconds(threshold.saturating_add(grace)),
            late_ns: late.map_or(0, |late| nanoseconds(late.saturating_add(grace))),
        }
    }

    /// Says how many agents are missing.
    fn tell_missing(&self) {
        let missing = self.recoveries.book.count_missing(&self.recoveries.policy);
        self.given.state.set_agents_missing(missing);
    }

    fn next_due(&self) -> Option<Instant> {
        let updates = self.given.updates.is_backed_up();
        let updates = updates.then(|| Instant::now() + UPDATES_PAUSE);
        let search = self.acquaintances.next_search();
        let pid_max = Some(self.next_pid_max);
        let (throttled, pauses) = (self.throttle.next_due(), self.pauses.next_due());
        let left_out = self.line_limit.next_due();
        let (act, missing) = (self.next_act(), self.recoveries.book.next_due());
        [
            act, missing, throttled, left_out, pauses, updates, search, pid_max,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What must be looked at now and then because nothing rings a bell.
    fn look_around(&mut self, now: Instant) {
        self.end_pauses(now);
        for missing in self.recoveries.take_missing(now) {
            messages::missing(&self.given.log, &missing);
            self.tell_missing();
        }
        for (agent, process) in self.acquaintances.find_ended(now) {
            self.given.updates.add(Update::Ended(agent, process));
        }
        if now >= self.next_pid_max {
            self.next_pid_max = now + PID_MAX_PAUSE;
            self.given
                .updates
                .add(Update::PidMax(process_info::pid_max()));
        }
    }

    fn tell_counters(&self) {
        messages::counters(
            &self.given.log,
            LogEvent::Notice,
            "so far",
            &self.given.counters,
        );
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
