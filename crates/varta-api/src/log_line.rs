//! One line of the observer's log: when, how serious, about what, and the fields that belong to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Number;

/// How serious a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Needs attention.
    Warn,
    /// Something the operator asked for does not work.
    Error,
}

/// What a log line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogEvent {
    /// The observer listens.
    Start,
    /// First beat of an agent.
    Join,
    /// A known process began a new series of beats.
    Session,
    /// An agent says that it is critical.
    Critical,
    /// Silence beyond the soft tier.
    Late,
    /// Silence beyond the threshold.
    Stall,
    /// A stalled agent spoke again.
    Return,
    /// A process ended.
    Exit,
    /// A silent agent gave its slot to a newcomer.
    Evict,
    /// Datagrams were refused.
    Refuse,
    /// The observer itself was not watching for a while.
    Gap,
    /// An agent is paused: its silence does not count for a while.
    Pause,
    /// A pause is over, or was ended.
    Resume,
    /// A recovery action began, ended, or could not be done.
    Recover,
    /// Nothing more is done about a silent agent.
    GaveUp,
    /// Recovery holds its fire because the host is the suspect, or goes on.
    Hold,
    /// Steps for another occasion than a stall were run.
    Hook,
    /// Agents that were expected did not come, or are there after all.
    Missing,
    /// About the observer itself.
    Notice,
    /// The observer stops.
    Stop,
}

/// One line of the observer's log under `--log-format json`. Keys that do not apply are absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// Unix time, nanoseconds.
    pub ts_ns: u64,
    /// Differs between any two runs of the observer; 16 hex digits.
    pub session_id: String,
    /// How serious it is.
    pub level: Level,
    /// What it is about.
    pub event: LogEvent,
    /// The same for a person, in one sentence.
    pub msg: String,
    /// The rest, by event.
    #[serde(flatten)]
    pub fields: Fields,
}

/// The parts of a log line that only some events have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fields {
    /// The agent's process id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The agent's name: its command name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The agent's user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The agent's program file.
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
    /// Status of the beat: `ok`, `degraded`, `critical`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Payload of the beat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<u32>,
    /// Last accepted nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<u64>,
    /// How long the agent was silent, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence_ms: Option<f64>,
    /// The threshold it was held to, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_ms: Option<f64>,
    /// How long after the deadline the observer noticed, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lateness_ms: Option<f64>,
    /// How a process ended: `left`, `died`, `unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub how: Option<String>,
    /// Its exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// The signal that killed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// What became of a recovery: the label values of `varta_recovery_outcomes_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Process id of a recovery command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub child_pid: Option<u32>,
    /// How long a recovery command ran, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// What a recovery command wrote: its beginning and its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// How many bytes it wrote altogether.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Why: datagrams were refused, an agent is paused, fire is held, recovery gave up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When a pause ends unless the observer is stopped or asleep meanwhile: Unix time, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<u64>,
    /// How many times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// How many lines were left out, by their `event`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<BTreeMap<String, u64>>,
    /// Text of the operating system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Where the observer listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Where it listens for agents elsewhere: address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp: Option<String>,
    /// Where it answers questions over TCP: address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Its control socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Where an agent elsewhere sends from: its address; for refused datagrams with the port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// How an agent elsewhere was first heard: `udp` or `secure_udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// All counters that are not zero, by series, as the metrics tell them: times in seconds, the others whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<BTreeMap<String, Number>>,
}
