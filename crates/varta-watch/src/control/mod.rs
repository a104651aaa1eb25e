//! The other thread: everything slow. It takes events from the beat path, tells them to the log and
//! the event file, and starts what the core decides about recovery.
//!
//! Nothing here can delay a beat. The table of slots is the truth about who is silent; events only
//! say when to look. So an event that was dropped can cost a log line, never a wrong action.

mod acquaintances;
pub(crate) mod history;
pub(crate) mod log;
mod recoveries;
mod repeats;
pub(crate) mod roster;
pub(crate) mod story;

use std::collections::HashSet;
use std::future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use varta_core::recovery::{ActionEnd, Plan};
use varta_core::{
    Agent, BeatOrigin, Counter, Counters, Event, EventKind, ExitStatus, Home, SlotTable, Timing,
};

use crate::api::{Fields, LogEvent};
use crate::clock::RawClock;
use crate::handoff::{EventReceiver, Handed, Order, OrderSender};
use crate::http::token::{Token, TokenFile};
use crate::identity::{self, Means};
use crate::journal::{Journal, append_row};
use crate::keys::{KeyFiles, KeyRing};
use crate::recovery::{Ended, Running, StartError, kill_group};
use acquaintances::Acquaintances;
use log::Log;
pub(crate) use recoveries::Recoveries;
use repeats::Repeats;
use roster::{Person, Roster};

/// Events handled before anything else gets a turn.
const EVENTS_PER_TURN: usize = 4096;

/// How often the largest pid of this host is read, in case the operator changes it.
const PID_MAX_PAUSE: Duration = Duration::from_secs(60);

/// How soon orders that found no room are sent again.
const ORDERS_PAUSE: Duration = Duration::from_millis(10);

/// How long killed recovery commands may take to be gone when the observer stops.
const REAP_WAIT: Duration = Duration::from_millis(50);

/// What the control thread works with.
pub(crate) struct ControlConfig {
    pub(crate) events: EventReceiver,
    pub(crate) orders: OrderSender,
    pub(crate) log: Log,
    pub(crate) journal: Option<Journal>,
    pub(crate) recovery: Option<Recoveries>,
    /// Recovery may touch agents of other pid namespaces.
    pub(crate) recover_foreign: bool,
    /// Read again on SIGHUP; `None` without encrypted UDP.
    pub(crate) keys: Option<KeyFiles>,
    /// Read again on SIGHUP; `None` if nobody needs one.
    pub(crate) token: Option<Arc<TokenFile>>,
    pub(crate) table: Arc<SlotTable>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) raw: RawClock,
    pub(crate) means: Means,
}

/// The control thread's state.
pub(crate) struct Control {
    given: ControlConfig,
    acquaintances: Acquaintances,
    next_pid_max: Instant,
    /// Recovery commands at work, with the pid of each.
    children: JoinSet<CommandEnd>,
    child_pids: HashSet<u32>,
    repeats: Repeats,
    /// The operator knows that descriptors have run out.
    told_of_unwatched_exits: bool,
}

/// A recovery command that has ended.
struct CommandEnd {
    agent: Agent,
    who: story::Who,
    child_pid: u32,
    ended: Ended,
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
}

impl Signals {
    /// Must be called within the runtime.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
        })
    }
}

impl Control {
    pub(crate) fn new(given: ControlConfig) -> Self {
        Self {
            acquaintances: Acquaintances::new(given.means, given.raw),
            given,
            next_pid_max: Instant::now() + PID_MAX_PAUSE,
            children: JoinSet::new(),
            child_pids: HashSet::new(),
            repeats: Repeats::default(),
            told_of_unwatched_exits: false,
        }
    }

    /// Works until told to stop. `ingest_end` speaks when the beat path has ended by itself.
    pub(crate) async fn run(
        &mut self,
        mut signals: Signals,
        shutdown_after: Option<Duration>,
        mut ingest_end: oneshot::Receiver<io::Error>,
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
                Some(Ok(end)) = self.children.join_next() => self.child_ended(&end),
                () = at(due) => {}
                () = at(end) => return Ok(StopReason::TimeIsUp),
                _ = signals.interrupt.recv() => return Ok(StopReason::Signal("SIGINT")),
                _ = signals.terminate.recv() => return Ok(StopReason::Signal("SIGTERM")),
                _ = signals.hangup.recv() => self.reload(),
                _ = signals.user1.recv() => self.tell_counters(),
                Ok(error) = &mut ingest_end => return Ok(StopReason::IngestFailed(error)),
            }
            self.act();
            self.look_around(Instant::now());
            self.given.orders.send();
            self.repeats.tell_due(&self.given.log, Instant::now());
            self.count_lost_lines();
        }
    }

    /// Ends everything that was started. The beat path has stopped: no more events come.
    pub(crate) async fn finish(&mut self) {
        while self.take_events() {}
        self.repeats.tell_all(&self.given.log);
        // Commands that were reaped go first: their pids may be somebody else's by now.
        while let Some(end) = self.children.try_join_next() {
            if let Ok(end) = end {
                self.child_ended(&end);
            }
        }
        for pid in &self.child_pids {
            kill_group(*pid);
        }
        let _ = tokio::time::timeout(REAP_WAIT, async {
            while let Some(end) = self.children.join_next().await {
                if let Ok(end) = end {
                    self.child_ended(&end);
                }
            }
        })
        .await;
        if let Some(journal) = self.given.journal.take() {
            self.given
                .counters
                .add(Counter::RowsDropped, journal.take_dropped());
            journal.close();
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
                Handed::Question(question) => {
                    let introduction = self.acquaintances.answer(question);
                    self.given.orders.add(Order::Introduce(introduction));
                    // A beat is waiting.
                    self.given.orders.send();
                    continue;
                }
            };
            let event = completed(event, process.as_ref());
            if self.given.journal.is_some() {
                append_row(&mut rows, &event);
            }
            self.tell(&event);
        }
        self.write_rows(rows);
        true
    }

    fn write_rows(&self, rows: String) {
        if let Some(journal) = &self.given.journal {
            self.given
                .counters
                .add(Counter::RowsDropped, journal.take_dropped());
            if !rows.is_empty() {
                journal.write(rows.into_bytes());
            }
        }
    }

    /// Logs an event and tells recovery what it needs to know.
    fn tell(&mut self, event: &Event) {
        match event.kind {
            EventKind::Beat { .. } => {}
            EventKind::Join {
                agent,
                home,
                status,
                payload,
                nonce,
            } => {
                match home {
                    Home::Here { exit_watched, .. } => {
                        let acquaintance = self.acquaintances.join(agent, exit_watched);
                        // Before anybody reads of the join and acts on it.
                        self.given.orders.add(Order::Know(agent, acquaintance));
                        self.given.orders.send();
                    }
                    Home::Network { address, .. } => self.acquaintances.join_from(agent, address),
                }
                let who = self.name_of(agent);
                let facts = self.acquaintances.facts_of(agent);
                let person = Person {
                    name: who.name.clone(),
                    joined_as: who.name.clone(),
                    unit: facts.and_then(|facts| facts.unit.clone()),
                    address: who.address,
                    sealed: matches!(home, Home::Network { sealed: true, .. }),
                    recovery: None,
                };
                self.given.roster.enter(agent, person);
                story::join(&self.given.log, &who, facts, home, status, payload, nonce);
                self.tell_of_unwatched_exits();
            }
            EventKind::Session { agent, .. } => {
                self.acquaintances.review(agent);
                let who = self.name_of(agent);
                let name = who.name.clone();
                self.given.roster.amend(agent, |person| person.name = name);
                self.repeats.add_session(Instant::now(), who);
            }
            EventKind::Late {
                agent, silence_ns, ..
            } => story::late(&self.given.log, &self.name_of(agent), silence_ns),
            EventKind::Stall {
                agent,
                last_nonce,
                silence_ns,
                threshold_ns,
            } => {
                let who = self.name_of(agent);
                story::stall(&self.given.log, &who, last_nonce, silence_ns, threshold_ns);
                let may_act = self.may_act_on(agent, &who);
                if let Some(recoveries) = &mut self.given.recovery
                    && may_act
                    && recoveries.of(agent).on_stall(agent, event.observer_ns) == Plan::Deferred
                {
                    self.count_outcome(agent, Counter::RecoveryDebounced);
                    story::deferred(&self.given.log, &who);
                }
            }
            EventKind::Return {
                agent,
                silence_ns,
                status,
                payload,
                nonce,
            } => {
                let who = self.name_of(agent);
                story::returned(&self.given.log, &who, silence_ns, status, payload, nonce);
                self.settle(agent);
            }
            EventKind::Exit { agent, status, .. } => {
                self.given.counters.count(match status {
                    ExitStatus::Code(0) | ExitStatus::Goodbye => Counter::ExitsLeft,
                    ExitStatus::Code(_) | ExitStatus::Signal(_) => Counter::ExitsDied,
                    ExitStatus::Unknown => Counter::ExitsUnknown,
                });
                story::exit(&self.given.log, &self.name_of(agent), status);
                self.settle(agent);
                self.forget(agent);
            }
            EventKind::Evicted { agent } => {
                story::evicted(&self.given.log, &self.name_of(agent));
                self.settle(agent);
                self.forget(agent);
            }
            EventKind::Refused { sender, reason } => {
                self.repeats.add_refusal(Instant::now(), sender, reason);
            }
            EventKind::Flood { pid, one_in } => story::flood(&self.given.log, pid, one_in),
            EventKind::Doubt { doubt_ns } => self.repeats.add_doubt(Instant::now(), doubt_ns),
            EventKind::NetworkDrops { count } => self.repeats.add_drops(Instant::now(), count),
            EventKind::Gap { gap_ns } => self.repeats.add_gap(Instant::now(), gap_ns),
        }
    }

    /// Whether the way an agent was heard lets recovery act on it (observer spec 4.2).
    fn may_act_on(&self, agent: Agent, who: &story::Who) -> bool {
        let facts = self.given.table.read(agent.slot);
        let facts = facts.filter(|facts| facts.agent(agent.slot) == agent);
        let (origin, outcome, reason) = match facts.map(|facts| facts.origin) {
            Some(origin @ BeatOrigin::NetworkUnverified) => (
                origin,
                Counter::RecoveryUnauthenticated,
                Counter::RefusedUnauthenticated,
            ),
            Some(origin @ BeatOrigin::SocketModeOnly) => (
                origin,
                Counter::RecoverySocketModeOnly,
                Counter::RefusedSocketModeOnly,
            ),
            // Who has left the table by now is looked for again before anything starts.
            Some(BeatOrigin::KernelAttested | BeatOrigin::OperatorAttestedTransport) | None => {
                return true;
            }
        };
        if self.given.recovery.is_some() {
            self.count_outcome(agent, outcome);
            self.given.counters.count(reason);
            let sealed = self.given.keys.is_some();
            story::refused_by_origin(&self.given.log, who, origin, sealed);
        }
        false
    }

    fn tell_of_unwatched_exits(&mut self) {
        if !self.told_of_unwatched_exits && self.given.counters.get(Counter::ExitWatchFailed) > 0 {
            self.told_of_unwatched_exits = true;
            story::unwatched_exits(&self.given.log);
        }
    }

    fn name_of(&self, agent: Agent) -> story::Who {
        self.acquaintances.name_of(agent)
    }

    fn forget(&mut self, agent: Agent) {
        self.acquaintances.forget(agent);
        self.given.roster.leave(agent);
    }

    fn settle(&mut self, agent: Agent) {
        if let Some(recoveries) = &mut self.given.recovery {
            recoveries.of(agent).on_settled(agent);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let recovery = self.given.recovery.as_ref();
        let recovery = recovery.and_then(Recoveries::next_due_ns);
        let recovery = recovery.map(|due_ns| {
            let ahead_ns = due_ns.saturating_sub(self.given.raw.now_ns());
            Instant::now() + Duration::from_nanos(ahead_ns)
        });
        let orders = self.given.orders.is_backed_up();
        let orders = orders.then(|| Instant::now() + ORDERS_PAUSE);
        let search = self.acquaintances.next_search();
        let pid_max = Some(self.next_pid_max);
        [recovery, self.repeats.next_due(), orders, search, pid_max]
            .into_iter()
            .flatten()
            .min()
    }

    /// What must be looked at now and then because nothing rings a bell.
    fn look_around(&mut self, now: Instant) {
        for (agent, process) in self.acquaintances.find_ended(now) {
            self.given.orders.add(Order::Ended(agent, process));
        }
        if now >= self.next_pid_max {
            self.next_pid_max = now + PID_MAX_PAUSE;
            self.given.orders.add(Order::PidMax(identity::pid_max()));
        }
    }

    /// Starts every action that is due.
    fn act(&mut self) {
        let now_ns = self.given.raw.now_ns();
        while let Some(agent) = self.next_action(now_ns) {
            let who = self.name_of(agent);
            match self.start_command(agent) {
                Ok((running, shown)) => {
                    let child_pid = running.pid;
                    self.count_outcome(agent, Counter::RecoverySpawned);
                    story::spawned(&self.given.log, &who, child_pid, &shown);
                    self.child_pids.insert(child_pid);
                    self.children.spawn(async move {
                        CommandEnd {
                            agent,
                            who,
                            child_pid,
                            ended: running.wait().await,
                        }
                    });
                }
                Err(error) => {
                    let (counter, end) = match error {
                        StartError::Spawn(_) => (Counter::RecoverySpawnFailed, ActionEnd::Failed),
                        StartError::TargetGone | StartError::Unidentified => {
                            (Counter::RecoveryTargetGone, ActionEnd::TargetGone)
                        }
                        StartError::CrossNamespace => {
                            self.given.counters.count(Counter::RefusedCrossNamespace);
                            (Counter::RecoveryCrossNamespace, ActionEnd::TargetGone)
                        }
                    };
                    self.count_outcome(agent, counter);
                    story::not_started(&self.given.log, &who, &error);
                    if let Some(recoveries) = &mut self.given.recovery {
                        recoveries.of(agent).on_end(agent, end, now_ns);
                    }
                }
            }
        }
    }

    fn next_action(&mut self, now_ns: u64) -> Option<Agent> {
        self.given.recovery.as_mut()?.next_action(now_ns)
    }

    /// Starts the command for an agent that is silent still.
    fn start_command(&mut self, agent: Agent) -> Result<(Running, String), StartError> {
        let facts = self.given.table.read(agent.slot);
        let still_silent =
            facts.is_some_and(|facts| facts.agent(agent.slot) == agent && facts.state.is_latched());
        let is_local = !agent.is_remote();
        if is_local && !self.given.recover_foreign && self.acquaintances.may_be_foreign(agent) {
            return Err(StartError::CrossNamespace);
        }
        match &self.given.recovery {
            Some(Recoveries { command, .. }) if still_silent => {
                let source = self.acquaintances.address_of(agent);
                let running = command.start(agent, source, self.given.means)?;
                Ok((running, command.shown_for(agent.pid, source)))
            }
            _ => Err(StartError::TargetGone),
        }
    }

    /// Counts what became of a recovery, and remembers it with the agent.
    fn count_outcome(&self, agent: Agent, outcome: Counter) {
        self.given.counters.count(outcome);
        let label = outcome.info().label.map(|(_, value)| value);
        self.given
            .roster
            .amend(agent, |person| person.recovery = label);
    }

    fn child_ended(&mut self, end: &CommandEnd) {
        let CommandEnd { agent, who, .. } = end;
        let (ended, child_pid) = (&end.ended, end.child_pid);
        self.child_pids.remove(&child_pid);
        let success = ended
            .status
            .as_ref()
            .is_ok_and(std::process::ExitStatus::success);
        let outcome = if ended.killed {
            Counter::RecoveryKilled
        } else if success {
            Counter::RecoveryReapedZero
        } else {
            Counter::RecoveryReapedNonzero
        };
        self.count_outcome(*agent, outcome);
        let duration_ns = u64::try_from(ended.duration.as_nanos()).unwrap_or(u64::MAX);
        self.given
            .counters
            .observe(Timing::RecoveryDuration, duration_ns);
        story::ended(&self.given.log, who, child_pid, ended);
        let now_ns = self.given.raw.now_ns();
        if let Some(recoveries) = &mut self.given.recovery {
            let end = if success && !ended.killed {
                ActionEnd::Handled
            } else {
                ActionEnd::Failed
            };
            recoveries.of(*agent).on_end(*agent, end, now_ns);
        }
    }

    /// SIGHUP: opens the event file anew and reads keys and token again.
    fn reload(&mut self) {
        let mut done = Vec::new();
        if let Some(journal) = &self.given.journal {
            journal.reopen();
            done.push("the event file is opened anew".to_owned());
        }
        match self.read_secrets() {
            Ok((ring, token)) => {
                if let Some(ring) = ring {
                    done.push(format!("read {ring}"));
                    self.given.orders.add(Order::Keys(ring));
                    self.given.orders.send();
                }
                if let (Some(file), Some(token)) = (&self.given.token, token) {
                    done.push("read the token".to_owned());
                    file.replace(token);
                }
                if done.is_empty() {
                    done.push("there is no event file to open anew".to_owned());
                }
            }
            Err(error) => {
                let msg = format!("SIGHUP: keys and token stay as they are: {error}");
                self.given
                    .log
                    .error(LogEvent::Notice, msg, Fields::default());
            }
        }
        if !done.is_empty() {
            let msg = format!("SIGHUP: {}", done.join("; "));
            self.given
                .log
                .info(LogEvent::Notice, msg, Fields::default());
        }
    }

    /// All of them, before any of them counts.
    fn read_secrets(&self) -> Result<(Option<KeyRing>, Option<Token>), String> {
        let keys = self.given.keys.as_ref().map(KeyFiles::read).transpose();
        let keys = keys.map_err(|error| error.to_string())?;
        let token = self.given.token.as_deref().map(TokenFile::read).transpose();
        let token = token.map_err(|error| error.to_string())?;
        Ok((keys, token))
    }

    fn tell_counters(&self) {
        story::counters(
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
        *status = identity::exit_status(agent.pid, process);
    }
    event
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => future::pending().await,
    }
}
