//! The keys of each event besides those of every line, in the order in which they are written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};
use serde::{Deserialize, Serialize};
use serde_json::Number;
use varta_core::Counter;
use varta_vlp::Status;

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its process id; for an agent of another host the one on that host.
    pub pid: u32,
    /// The name from its rule, else its command name; absent if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The outcome of a recovery: the label values of `varta_recovery_outcomes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "they are the documented label values")]
pub enum Outcome {
    Spawned,
    Debounced,
    Waiting,
    UserBudgetSpent,
    SpawnFailed,
    Postponed,
    ReapedZero,
    ReapedNonzero,
    Killed,
    TargetGone,
    RefusedCrossNamespace,
    RefusedUnauthenticatedTransport,
    RefusedSocketModeOnly,
    Signalled,
    SignalFailed,
    DryRun,
    Recovered,
    GaveUp,
    /// An outcome that this program does not support.
    #[serde(untagged)]
    Unknown(String),
}

impl Outcome {
    /// The outcome of a counter of `varta_recovery_outcomes_total`.
    pub fn counted_as(counter: Counter) -> Self {
        let label = counter.info().label.map_or("", |(_, label)| label);
        let label: StrDeserializer<'_, Error> = label.into_deserializer();
        // Every text deserializes to an outcome.
        Self::deserialize(label).unwrap_or_else(|error| Self::Unknown(error.to_string()))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The status that an agent reports in a beat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeatStatus {
    /// All is well.
    Ok,
    /// It works, but not as it should.
    Degraded,
    /// It does not work.
    Critical,
    /// A status that this program does not support.
    #[serde(untagged)]
    Unknown(String),
}

impl From<Status> for BeatStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Ok => Self::Ok,
            Status::Degraded => Self::Degraded,
            Status::Critical => Self::Critical,
            Status::Stall => Self::Unknown(status.to_string()),
        }
    }
}

impl fmt::Display for BeatStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Keys of `start`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The observer's process id.
    pub pid: u32,
    /// The threshold of agents without one in their rule, milliseconds.
    pub threshold_ms: f64,
    /// Its beat socket.
    pub socket: PathBuf,
    /// Its UDP listener for agents of other hosts: address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// Its HTTP listener: address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Its control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
}

/// Keys of `join`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// The agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Its user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its program file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<PathBuf>,
    /// Its path in the control group hierarchy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Its unit of the system's service manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its unit of its own user's service manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_unit: Option<String>,
    /// When it started, clock ticks since boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ticks: Option<u64>,
    /// Inode of its pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u64>,
    /// Its pid inside its pid namespace, if that is not the observer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_pid: Option<u32>,
    /// Status of the beat.
    pub status: BeatStatus,
    /// Payload of the beat.
    pub payload: u32,
    /// Nonce of the beat.
    pub nonce: u64,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The transport of an agent of another host: `udp` or `secure_udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
}

/// Keys of `session`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The agent; the last one if there were several.
    #[serde(flatten)]
    pub agent: Agent,
    /// `several_sessions`: it beats over more than one session, or does not any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The number of new series, or of sessions over which it beats.
    pub count: u64,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `critical`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Critical {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Status of the beat: critical.
    pub status: BeatStatus,
    /// Payload of the beat.
    pub payload: u32,
    /// Nonce of the beat.
    pub nonce: u64,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `late`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Late {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Its silence, milliseconds.
    pub silence_ms: f64,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `stall`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Last accepted nonce.
    pub nonce: u64,
    /// Its silence, milliseconds.
    pub silence_ms: f64,
    /// Its threshold, milliseconds.
    pub threshold_ms: f64,
    /// Time between the deadline and its detection, milliseconds.
    pub lateness_ms: f64,
    /// `beats_refused`: it may be alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The number of its datagrams that were refused meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `return`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Return {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Status of the beat.
    pub status: BeatStatus,
    /// Payload of the beat.
    pub payload: u32,
    /// Nonce of the beat.
    pub nonce: u64,
    /// Its silence before this beat, milliseconds.
    pub silence_ms: f64,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// With exit code 0.
    Left,
    /// With another exit code than 0, or by a signal.
    Died,
    /// The kernel does not report it.
    Unknown,
}

/// Keys of `exit`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exit {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// How it ended.
    pub how: How,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// The signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `evict` and `resume`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentOnly {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `refuse`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refuse {
    /// The sender of the last one; absent if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The reason.
    pub reason: String,
    /// The number of datagrams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The sender's address on another host: address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `gap`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Lateness of the observer, milliseconds.
    pub duration_ms: f64,
    /// The number of gaps.
    pub count: u64,
}

/// Keys of `pause`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// The operator's reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it ends unless the observer is stopped or asleep meanwhile: Unix time, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<u64>,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `recover`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recover {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// Exit code of a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// The signal that ended a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// The outcome.
    pub outcome: Outcome,
    /// Process id of a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_pid: Option<u32>,
    /// The running time of a program, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// The output of a program: its first and its last part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// The number of bytes in the whole output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Why recovery would have given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The number of postponed steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `gave_up`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GaveUp {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// The outcome: `gave_up`.
    pub outcome: Outcome,
    /// The reason: `steps_exhausted`, `budget_spent`.
    pub reason: String,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `hold`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The user whose agents are concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The reason: `mass_stall`, `memory_pressure`, `io_pressure`, or `resumed`, `expired`.
    pub reason: String,
}

/// Keys of `hook`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// Which agent.
    #[serde(flatten)]
    pub agent: Agent,
    /// The running time, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// The occasion: `late`, `critical`, `exit`, `recovered`, `gave-up`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Keys of `missing`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// The expected agents.
    pub name: String,
    /// `missing` or `complete`.
    pub reason: String,
    /// The number of missing agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// Keys of `notice`. Only a notice about agents or lines has any but `reason`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The process id of an agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user whose agents caused too many lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The silence of an agent, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_ms: Option<f64>,
    /// Its threshold, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_ms: Option<f64>,
    /// A duration, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// The subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The number of occurrences.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The number of dropped lines, by their `event`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<BTreeMap<String, u64>>,
    /// Text of the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The address of an agent of another host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// All counters that are not zero, by series, as the metrics report them: times in seconds, the others whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<BTreeMap<String, Number>>,
}

/// Keys of `stop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    /// All counters that are not zero, by series, as the metrics report them: times in seconds, the others whole.
    pub counters: BTreeMap<String, Number>,
}
