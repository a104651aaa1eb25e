//! The other thread: everything slow. It takes events from the beat path, publishes what has happened, and starts
//! what the core decides about recovery.
//!
//! Nothing here can delay a beat. The table of slots is the truth about who is silent; events only
//! say when to look. So an event that was dropped can cost a log line, never a wrong action.

mod acquaintances;
mod events;
mod hooks;
mod pressure;
mod receive_trouble;
mod recoveries;
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
use varta_core::fact::{Level, StopCause};
use varta_core::slot::Slot;
use varta_core::{
    Agent, AgentRef, BeatLimit, Counter, Counters, Deadlines, Event, EventKind, ExitStatus, Fact,
    Rate, SlotTable, UID_UNKNOWN,
};

use crate::actions::Runner;
use crate::beat_path_state::BeatPathState;
use crate::config::Config;
use crate::handoff::command::Command;
use crate::handoff::{EventReceiver, Handed, Update, UpdateSender};
use crate::process_info::{self, KernelFeatures};
use crate::report::Report;
use crate::settings::network::KeyFiles;
use crate::snapshot::control_state::ControlState;
use crate::snapshot::directory::Directory;
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
    pub(crate) report: Report,
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
    pauses: Pauses,
    /// The operator knows that descriptors have run out.
    receive_trouble: ReceiveTrouble,
    told_of_unwatched_exits: bool,
}

/// Why the control thread ended.
#[derive(Debug)]
pub(crate) enum StopReason {
    /// It was told to stop.
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
                () = at(end) => return Ok(StopReason::Told(StopCause::TimeIsUp)),
                _ = signals.interrupt.recv() => return Ok(StopReason::Told(StopCause::Interrupt)),
                _ = signals.terminate.recv() => return Ok(StopReason::Told(StopCause::Terminate)),
                _ = signals.hangup.recv() => self.reload(),
                _ = signals.user1.recv() => self.publish_counters(),
                Ok(error) = &mut *ingest_end => return Ok(StopReason::IngestFailed(error)),
            }
            self.act();
            self.look_around(Instant::now());
            self.given.updates.send();
            self.given.report.tick();
        }
    }

    /// Ends everything that was started. The beat path has stopped: no more events come, and nothing can be
    /// changed.
    pub(crate) async fn finish(&mut self) {
        self.given.commands.close();
        while self.given.commands.try_recv().is_ok() {}
        while self.take_events() {}
        self.given.report.finish();
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
        self.given.report.close();
    }

    /// Takes what has happened, up to a bound; true if there may be more.
    fn take_events(&mut self) -> bool {
        let mut more = true;
        for _ in 0..EVENTS_PER_TURN {
            let Some(handed) = self.given.events.pop() else {
                more = false;
                break;
            };
            match handed {
                Handed::Event { event, process } => {
                    self.take_event(completed(event, process.as_ref()));
                }
                Handed::Query(query) => {
                    let reply = self.acquaintances.answer(query);
                    self.given.updates.add(Update::Identity(reply));
                    // A beat is waiting.
                    self.given.updates.send();
                }
            }
        }
        self.given.report.write_rows();
        more
    }

    /// Tells everybody what has happened now.
    pub(crate) fn publish(&mut self, fact: &Fact) {
        let now_ns = self.given.beat_path.raw().now_ns();
        self.publish_at(fact, now_ns);
    }

    /// Tells everybody what has happened at a time of the observer's clock, and remembers with the agent what became of
    /// its recovery.
    fn publish_at(&mut self, fact: &Fact, observer_ns: u64) {
        if let (Some(agent), Some(outcome)) = (fact.agent(), fact.outcome()) {
            let label = outcome.info().label.map(|(_, value)| value);
            self.given.directory.update(agent.agent, |info| {
                info.recovery = label;
                // Whatever else comes is another attempt.
                info.gave_up = outcome == Counter::RecoveryGaveUp;
            });
        }
        self.given.report.publish(fact, observer_ns);
    }

    fn notice(&mut self, level: Level, text: String) {
        self.publish(&Fact::Notice { level, text });
    }

    /// An agent as facts name it: as its rule says, else as it calls itself.
    fn agent_ref(&self, agent: Agent) -> AgentRef {
        let rule = self.recoveries.book.rule_of(&self.recoveries.policy, agent);
        let label = rule.and_then(|rule| rule.label.clone());
        AgentRef {
            agent,
            name: label.unwrap_or_else(|| self.acquaintances.name_of(agent)),
            address: self.acquaintances.address_of(agent),
            uid: self.given.directory.uid_of(agent),
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
            let selection = complete;
            self.publish(&Fact::AgentsComplete { selection });
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
        let name = self.agent_ref(agent).name;
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
        let excused = Fact::StallExcused {
            agent: self.agent_ref(agent),
            silence_ns,
            threshold_ns,
        };
        self.publish(&excused);
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
        let lines = self
            .given
            .report
            .next_due_ns()
            .map(|ns| self.instant_at(ns));
        let (act, missing) = (self.next_act(), self.recoveries.book.next_due());
        let pauses = self.pauses.next_due();
        [act, missing, lines, pauses, updates, search, pid_max]
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
        self.end_pauses(now);
        for missing in self.recoveries.take_missing(now) {
            self.publish(&missing);
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

    fn publish_counters(&mut self) {
        let counters = self.given.counters.nonzero();
        self.publish(&Fact::CountersSoFar { counters });
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
