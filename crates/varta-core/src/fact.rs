//! The facts that the observer publishes: one variant per kind with exactly its fields.
//!
//! A fact is plain data: numbers, names, times in nanoseconds. Log line, row of the event file, counters and live
//! events all follow from it; each output decides the wording. A text in it comes from outside: an error of the
//! operating system, a command as shown, the output of a program.
//!
//! An [`Event`](crate::Event) of the beat path has a fixed size; a fact adds the name of the agent, and covers
//! decisions and actions. Facts that repeat carry a count; the publisher adds the counts up.

mod count;
mod reasons;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use varta_vlp::Status;

use crate::agent::{Agent, ExitStatus};
use crate::counters::Counter;
use crate::event::{JoinedFrom, Sender};
use crate::hold::{HoldChange, Scope};
use crate::ladder::GaveUp;
use crate::refusal::Refusal;

pub use reasons::{
    DeferReason, ExitCause, Force, HookOutcome, Level, LineKind, LineOwner, Occasion, OsError,
    ProgramExit, Protected, ResumeCause, Signal, SignalHits, SignalTarget, StartFailure, StopCause,
    Transport, UntrustedOrigin, WithdrawReason,
};

/// An agent and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRef {
    /// Which one.
    pub agent: Agent,
    /// The label of its rule, else its command name; empty if unknown.
    pub name: String,
    /// Its address, if it is remote.
    pub address: Option<IpAddr>,
    /// Its user by kernel credentials, if it came with them.
    pub uid: Option<u32>,
}

impl fmt::Display for AgentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.agent.pid;
        match (self.name.as_str(), self.address) {
            ("", Some(address)) => write!(f, "pid {pid} of {address}"),
            (name, Some(address)) => write!(f, "{name} ({pid} of {address})"),
            ("", None) => write!(f, "pid {pid}"),
            (name, None) => write!(f, "{name} ({pid})"),
        }
    }
}

/// The facts of a process from the system. Any may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessDescription {
    /// Its program file.
    pub exe: Option<PathBuf>,
    /// Its path in the control group hierarchy.
    pub cgroup: Option<String>,
    /// Its unit of the system's service manager.
    pub unit: Option<String>,
    /// Its unit of its own user's service manager.
    pub user_unit: Option<String>,
    /// When it started, clock ticks since boot.
    pub start_ticks: Option<u64>,
    /// Inode of its pid namespace.
    pub pid_ns: Option<u64>,
    /// Its pid inside its pid namespace, if that is not the observer's.
    pub inner_pid: Option<u32>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// An accepted beat. Made only when every beat is exported.
    Beat {
        /// Which agent; its name is not looked up for each beat.
        agent: Agent,
        /// Reported status.
        status: Status,
        /// Opaque to the observer.
        payload: u32,
        /// Frame nonce.
        nonce: u64,
    },
    /// First beat of an agent.
    Joined {
        /// Which agent.
        agent: AgentRef,
        /// Local, or its address.
        from: JoinedFrom,
        /// The facts of its process; `None` for a remote agent.
        process: Option<ProcessDescription>,
        /// Status of its first beat.
        status: Status,
        /// Payload of its first beat.
        payload: u32,
        /// Nonce of its first beat.
        nonce: u64,
    },
    /// A known process started a new series of beats: another program after `exec`, another handle.
    SessionBegan {
        /// Which agent; the last one if there were several.
        agent: AgentRef,
        /// Status of the beat that started it.
        status: Status,
        /// Its payload.
        payload: u32,
        /// Its nonce.
        nonce: u64,
        /// How many series started.
        count: u64,
    },
    /// A remote agent beats over several sessions at once, or no longer does.
    SessionsChanged {
        /// Which agent.
        agent: AgentRef,
        /// How many; fewer than two when it is over.
        sessions: u64,
    },
    /// An agent reports that it is critical and did not before.
    Critical {
        /// Which agent.
        agent: AgentRef,
        /// Nonce of the beat that reports it.
        nonce: u64,
        /// Its payload.
        payload: u32,
    },
    /// Silence has reached the soft tier.
    Late {
        /// Which agent.
        agent: AgentRef,
        /// Last accepted nonce.
        last_nonce: u64,
        /// Silence so far, attention time.
        silence_ns: u64,
    },
    /// Silence has reached the threshold.
    Stalled {
        /// Which agent.
        agent: AgentRef,
        /// Last accepted nonce.
        last_nonce: u64,
        /// Silence so far, attention time; at least the threshold.
        silence_ns: u64,
        /// The agent's threshold.
        threshold_ns: u64,
        /// Datagrams of it that were refused since its last beat, see [`EventKind::Stall`](crate::EventKind::Stall).
        refused: u32,
    },
    /// A stall was put off because a full queue may have refused the agent's beats.
    StallPutOff {
        /// Which agent; the last one if there were several.
        agent: AgentRef,
        /// Its silence so far, attention time.
        silence_ns: u64,
        /// How many stalls were put off.
        count: u64,
    },
    /// A stalled agent is not stalled by the threshold in force now.
    StallExcused {
        /// Which agent.
        agent: AgentRef,
        /// Silence so far, attention time.
        silence_ns: u64,
        /// The threshold in force now.
        threshold_ns: u64,
    },
    /// A stalled agent beats again.
    Returned {
        /// Which agent.
        agent: AgentRef,
        /// How long it was silent, attention time.
        silence_ns: u64,
        /// Status of the beat that ended the silence.
        status: Status,
        /// Its payload.
        payload: u32,
        /// Its nonce.
        nonce: u64,
    },
    /// The process ended, or sent a goodbye.
    Exited {
        /// Which agent.
        agent: AgentRef,
        /// Last accepted nonce.
        last_nonce: u64,
        /// How it ended.
        status: ExitStatus,
    },
    /// A silent agent was evicted for a new one because the table was full.
    Evicted {
        /// The agent that lost its slot.
        agent: AgentRef,
    },
    /// An operator paused an agent.
    Paused {
        /// Which agent.
        agent: AgentRef,
        /// For how long.
        duration_ns: u64,
        /// The operator's reason.
        reason: Option<String>,
    },
    /// A pause is over.
    Resumed {
        /// Which agent.
        agent: AgentRef,
        /// What ended it.
        cause: ResumeCause,
    },
    /// A datagram was refused; nothing else changed.
    Refused {
        /// Its sender, as far as known; the last one if there were several.
        sender: Sender,
        /// Why.
        reason: Refusal,
        /// How many datagrams.
        count: u64,
    },
    /// A sender floods the socket, so most of its datagrams are dropped before they are queued; or the flood
    /// is over.
    Flood {
        /// The sender; 0 for datagrams that are no frames.
        pid: u32,
        /// One in this many is queued; 1 when the flood is over.
        one_in: u32,
    },
    /// The observer itself was stopped, starved or suspended.
    Gap {
        /// How late it woke up.
        late_ns: u64,
        /// Number of gaps.
        count: u64,
    },
    /// The kernel dropped datagrams from the network because their queue was full.
    NetworkDrops {
        /// How many datagrams.
        count: u64,
    },
    /// Receiving beats fails.
    ReceiveFailed {
        /// Over which transport.
        transport: Transport,
        /// Error number of the operating system.
        errno: i32,
    },
    /// A datagram with attached descriptors delays local beats.
    ReceiveBlocked,
    /// Beats are received again.
    ReceiveRestored {
        /// Over which transport.
        transport: Transport,
        /// How long they were not received.
        after_ns: u64,
    },
    /// Threads hang while closing descriptors attached to datagrams, or no longer do.
    DescriptorsHang {
        /// How many threads; 0 when none does.
        threads: u64,
        /// How many may.
        threads_max: u64,
    },
    /// The observer lacks descriptors to watch the end of every agent.
    ExitsUnwatched,
    /// Expected agents did not join in time.
    AgentsMissing {
        /// The selected agents, in the operator's words.
        selection: String,
        /// How many were expected.
        expected: u32,
        /// How many joined.
        present: u32,
        /// Within this time.
        within_ns: u64,
    },
    /// All missing agents have joined.
    AgentsComplete {
        /// The selected agents, in the operator's words.
        selection: String,
    },
    /// The next step for an agent is deferred.
    RecoveryDeferred {
        /// Which agent.
        agent: AgentRef,
        /// Why.
        reason: DeferReason,
    },
    /// The next step for an agent waits until fewer actions run.
    WaitsForPermit {
        /// Which agent.
        agent: AgentRef,
        /// Actions that may run at the same time.
        max_in_flight: u64,
        /// Actions that may be started per second; 0 for no limit.
        starts_per_second: u32,
    },
    /// The next step for an agent waits because the budget of its user is spent.
    WaitsForUserBudget {
        /// Which agent.
        agent: AgentRef,
        /// Its user.
        uid: u32,
        /// Actions that may be started for agents of one user within the window.
        budget: u32,
        /// The window.
        window_ns: u64,
    },
    /// Recovery may not act on an agent with this origin.
    RecoveryRefused {
        /// Which agent.
        agent: AgentRef,
        /// Why.
        reason: UntrustedOrigin,
    },
    /// A step was only rehearsed.
    StepRehearsed {
        /// Which agent.
        agent: AgentRef,
        /// The step as shown.
        step: String,
    },
    /// A program was started for an agent.
    ProgramStarted {
        /// Which agent.
        agent: AgentRef,
        /// The program's process.
        child_pid: u32,
        /// Its command line as shown.
        command: String,
    },
    /// A program that was started for an agent has ended.
    ProgramEnded {
        /// Which agent.
        agent: AgentRef,
        /// The program's process.
        child_pid: u32,
        /// How it ended.
        exit: ProgramExit,
        /// How long it ran.
        duration_ns: u64,
        /// Its output, as far as it was kept.
        output: String,
        /// Total bytes of its output.
        output_bytes: u64,
        /// Bytes of these that were not kept.
        dropped_bytes: u64,
    },
    /// A signal was sent to an agent.
    Signalled {
        /// Which agent.
        agent: AgentRef,
        /// Which signal.
        signal: Signal,
        /// The target.
        target: SignalTarget,
        /// The processes that received it.
        hits: SignalHits,
    },
    /// A step could not be taken.
    StepFailed {
        /// Which agent.
        agent: AgentRef,
        /// Why.
        reason: StartFailure,
    },
    /// A step is tried again later because the observer lacks descriptors or memory.
    StepPostponed {
        /// Which agent; the last one if there were several.
        agent: AgentRef,
        /// The hook that the step belongs to; `None` for a step of a ladder.
        hook: Option<Occasion>,
        /// What failed.
        reason: StartFailure,
        /// How many steps.
        count: u64,
    },
    /// An agent beats again after an action.
    Recovered {
        /// Which agent.
        agent: AgentRef,
    },
    /// Recovery gave up on a silent agent.
    GaveUp {
        /// Which agent.
        agent: AgentRef,
        /// Why.
        reason: GaveUp,
        /// Whether its ladder was only rehearsed.
        rehearsed: bool,
    },
    /// Recovery holds fire, or continues.
    Hold {
        /// For which agents.
        scope: Scope,
        /// What has changed.
        change: HoldChange,
    },
    /// A hook was only rehearsed.
    HookRehearsed {
        /// Which agent.
        agent: AgentRef,
        /// On which occasion.
        occasion: Occasion,
    },
    /// A hook was not started because the same one, or too many, are under way.
    HookDropped {
        /// Which agent.
        agent: AgentRef,
        /// On which occasion.
        occasion: Occasion,
    },
    /// The rest of a hook was skipped.
    HookWithdrawn {
        /// Which agent.
        agent: AgentRef,
        /// On which occasion.
        occasion: Occasion,
        /// Why.
        reason: WithdrawReason,
    },
    /// A hook has ended.
    HookEnded {
        /// Which agent.
        agent: AgentRef,
        /// On which occasion.
        occasion: Occasion,
        /// How.
        outcome: HookOutcome,
        /// From its start to its end.
        duration_ns: u64,
    },
    /// Log lines were suppressed because the agents of one user caused too many.
    LinesOverRate {
        /// The user.
        owner: LineOwner,
        /// How many lines, by kind.
        counts: Vec<(LineKind, u64)>,
        /// Within this time.
        within_ns: u64,
        /// Lines per second that the agents of one user may cause.
        per_second: u32,
    },
    /// Log lines were lost because the reader of the log is too slow.
    LinesUnread {
        /// How many.
        count: u64,
    },
    /// The observer listens.
    Started {
        /// The observer's own process id.
        pid: u32,
        /// Its socket for local beats.
        socket: PathBuf,
        /// Its address for beats from the network.
        udp: Option<SocketAddr>,
        /// Its HTTP address.
        http: Option<SocketAddr>,
        /// Its control socket.
        control: Option<PathBuf>,
        /// Default stall threshold.
        threshold_ns: u64,
        /// Its settings, for display.
        banner: String,
    },
    /// The counters so far.
    CountersSoFar {
        /// All counters that are not zero.
        counters: Vec<(Counter, u64)>,
    },
    /// The observer stops.
    Stopped {
        /// Why.
        cause: StopCause,
        /// All counters that are not zero.
        counters: Vec<(Counter, u64)>,
    },
    /// About the observer, its host or its settings.
    Notice {
        /// How serious it is.
        level: Level,
        /// The text, for display.
        text: String,
    },
}

impl Fact {
    /// The agent of the fact, if it has one with a name.
    pub const fn agent(&self) -> Option<&AgentRef> {
        match self {
            Self::Joined { agent, .. }
            | Self::SessionBegan { agent, .. }
            | Self::SessionsChanged { agent, .. }
            | Self::Critical { agent, .. }
            | Self::Late { agent, .. }
            | Self::Stalled { agent, .. }
            | Self::StallPutOff { agent, .. }
            | Self::StallExcused { agent, .. }
            | Self::Returned { agent, .. }
            | Self::Exited { agent, .. }
            | Self::Evicted { agent }
            | Self::Paused { agent, .. }
            | Self::Resumed { agent, .. }
            | Self::RecoveryDeferred { agent, .. }
            | Self::WaitsForPermit { agent, .. }
            | Self::WaitsForUserBudget { agent, .. }
            | Self::RecoveryRefused { agent, .. }
            | Self::StepRehearsed { agent, .. }
            | Self::ProgramStarted { agent, .. }
            | Self::ProgramEnded { agent, .. }
            | Self::Signalled { agent, .. }
            | Self::StepFailed { agent, .. }
            | Self::StepPostponed { agent, .. }
            | Self::Recovered { agent }
            | Self::GaveUp { agent, .. }
            | Self::HookRehearsed { agent, .. }
            | Self::HookDropped { agent, .. }
            | Self::HookWithdrawn { agent, .. }
            | Self::HookEnded { agent, .. } => Some(agent),
            Self::Beat { .. }
            | Self::Refused { .. }
            | Self::Flood { .. }
            | Self::Gap { .. }
            | Self::NetworkDrops { .. }
            | Self::ReceiveFailed { .. }
            | Self::ReceiveBlocked
            | Self::ReceiveRestored { .. }
            | Self::DescriptorsHang { .. }
            | Self::ExitsUnwatched
            | Self::AgentsMissing { .. }
            | Self::AgentsComplete { .. }
            | Self::Hold { .. }
            | Self::LinesOverRate { .. }
            | Self::LinesUnread { .. }
            | Self::Started { .. }
            | Self::CountersSoFar { .. }
            | Self::Stopped { .. }
            | Self::Notice { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str, address: Option<&str>) -> AgentRef {
        AgentRef {
            agent: Agent {
                slot: 0,
                pid: 7,
                instance: 1,
                stream: 0,
            },
            name: name.to_owned(),
            address: address.map(|address| address.parse().unwrap()),
            uid: None,
        }
    }

    #[test]
    fn an_agent_is_called_by_its_name_its_pid_and_its_host() {
        let shown = |name, address| agent(name, address).to_string();
        assert_eq!(shown("web", None), "web (7)");
        assert_eq!(shown("", None), "pid 7");
        assert_eq!(shown("web", Some("10.0.0.1")), "web (7 of 10.0.0.1)");
        assert_eq!(shown("", Some("::1")), "pid 7 of ::1");
    }
}
