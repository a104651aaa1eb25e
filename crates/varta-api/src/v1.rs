//! The answers of `/api/v1`, as types. Shapes only grow: a key is never renamed or given another meaning.
//!
//! Durations are seconds as decimal numbers, times are Unix seconds; a key that does not apply is absent.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::log_line::{BeatStatus, LogLine, Outcome};

/// The common path prefix.
pub const PREFIX: &str = "/api/v1";

/// Most agents in one page; `after` requests the next page.
pub const PAGE_MAX: usize = 1000;

/// The observer and its settings: `GET /api/v1/info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Version of the program.
    pub version: String,
    /// Differs between any two runs; 16 hex digits.
    pub session_id: String,
    /// The observer's own process id.
    pub pid: u32,
    /// Time of its start.
    pub started: f64,
    /// Time since its start.
    pub uptime: f64,
    /// Silence that makes a stall, unless a rule sets another.
    pub threshold: f64,
    /// Slots for agents of this host.
    pub capacity: usize,
    /// The beat socket.
    pub socket: String,
    /// The UDP listener for remote agents.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub udp: Option<String>,
    /// Beats of all agents of this host together that the kernel queues before it refuses one; 0 if absent.
    #[serde(default)]
    pub queue_datagrams: usize,
    /// Why that is less than it should be, with the fix.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue_shallow: Option<String>,
    /// The number of agents, by state.
    pub agents: StateCounts,
    /// Agents of this host use all their slots.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub full: bool,
    /// The tables and shares that were too full for a new agent within the last minute: the refused agents are not
    /// watched.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub no_room: Vec<NoRoom>,
    /// Agents that rules expect by now and that have not joined.
    #[serde(default)]
    pub missing: usize,
    /// Time since its start that counts against no agent because the observer was not running.
    pub attention_lag: f64,
}

/// A new agent was refused for want of space. `Display` gives readable text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoRoom {
    /// The limit: [`TABLE_FULL`] or [`SHARE_FULL`], as in the log.
    pub reason: String,
    /// The user whose share it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// The number of agents that fit.
    pub limit: usize,
    /// It is the table of remote agents.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub elsewhere: bool,
}

/// Agents use every slot of the table, and none can be evicted.
pub const TABLE_FULL: &str = "capacity_exceeded";

/// A user has as many agents as one user may have, and none can be evicted.
pub const SHARE_FULL: &str = "user_share_exceeded";

impl NoRoom {
    /// Whether it is the table of agents of this host.
    pub fn is_table(&self) -> bool {
        self.reason == TABLE_FULL && !self.elsewhere
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit;
        match (self.uid, self.elsewhere) {
            (Some(uid), _) => write!(
                f,
                "newcomers of uid {uid} found its share of {limit} agents full within the last minute and are not watched \
                 (--max-agents-per-user)"
            ),
            (None, true) => write!(
                f,
                "newcomers elsewhere found their table of {limit} agents full within the last minute and are not watched \
                 (--tracker-capacity)"
            ),
            (None, false) => write!(
                f,
                "newcomers found the table of {limit} agents full within the last minute and are not watched \
                 (--tracker-capacity)"
            ),
        }
    }
}

/// The number of agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCounts {
    /// The last beat is within the threshold.
    pub alive: usize,
    /// Beyond their soft tier.
    pub late: usize,
    /// Silent for a threshold or more.
    pub stalled: usize,
    /// Not judged for a while because an operator paused it.
    pub paused: usize,
}

impl StateCounts {
    /// One agent more in this state.
    pub fn count(&mut self, state: State) {
        match state {
            State::Alive => self.alive += 1,
            State::Late => self.late += 1,
            State::Stalled => self.stalled += 1,
            State::Paused => self.paused += 1,
        }
    }

    /// Agents in any state.
    pub fn total(&self) -> usize {
        self.alive + self.late + self.stalled + self.paused
    }
}

/// The state of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Silent for a threshold or more.
    Stalled,
    /// Beyond its soft tier.
    Late,
    /// Not judged for a while because an operator paused it.
    Paused,
    /// The last beat is within the threshold.
    Alive,
}

/// One agent: `GET /api/v1/agents/{id}`, and an element of a page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// Identifies the agent for as long as it is tracked, and never another one: pid and instance.
    pub id: String,
    /// Its state.
    pub state: State,
    /// Its process id; for a remote agent the one on its own host.
    pub pid: u32,
    /// Its command name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Its user id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// Its unit of the system's service manager.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unit: Option<String>,
    /// Its unit of its own user's service manager.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_unit: Option<String>,
    /// The address of a remote agent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// Its transport: `unix`, `udp`, `secure_udp`.
    pub transport: String,
    /// The number of sessions over which it beats at once, if that is more than one: several handles of one process,
    /// or several processes that cannot be distinguished.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sessions: Option<usize>,
    /// Status of its last beat.
    pub status: BeatStatus,
    /// Payload of its last beat.
    pub payload: u32,
    /// Nonce of its last regular beat.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub nonce: Option<u64>,
    /// Silence so far, on the attention clock.
    pub silence: f64,
    /// Silence that makes it stalled.
    pub threshold: f64,
    /// Accepted beats.
    pub beats: u64,
    /// Accepted beats per second since it joined.
    pub beats_per_second: f64,
    /// Stalls so far.
    pub stalls: u32,
    /// Time since its first beat, on the attention clock.
    pub tracked: f64,
    /// The outcome of the last recovery.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recovery: Option<Outcome>,
    /// Recovery has taken every step for the current silence.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub gave_up: bool,
    /// The rest of its pause, on the attention clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paused_for: Option<f64>,
    /// Why it is paused, if the operator gave a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pause_reason: Option<String>,
}

/// The longest pause, in seconds: 30 days. To exempt an agent for longer, use a rule.
pub const PAUSE_SECONDS_MAX: f64 = 30.0 * 86_400.0;

/// Most characters of a reason; it is part of a log line.
pub const REASON_CHARS_MAX: usize = 200;

/// Do not judge an agent for a while: `POST /api/v1/agents/{id}/pause`. Answered with its [`AgentView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// Duration in seconds, more than 0 and at most [`PAUSE_SECONDS_MAX`].
    #[serde(rename = "for", deserialize_with = "number")]
    pub seconds: f64,
    /// The reason: up to [`REASON_CHARS_MAX`] printable characters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// An error about a value that is no number uses the terms of JSON.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let number = number.as_f64();
    number.ok_or_else(|| D::Error::custom("a number is too large"))
}

/// Judge an agent again: `POST /api/v1/agents/{id}/resume`. Answered with its [`AgentView`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {}

/// A page of agents: `GET /api/v1/agents`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentsPage {
    /// The agents that match the request, in the requested order.
    pub agents: Vec<AgentView>,
    /// The number of all agents that match the request.
    pub total: usize,
    /// The value of `after` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// An event: a log line with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Grows by one with each event of a run, from 1.
    pub id: u64,
    /// The log line.
    #[serde(flatten)]
    pub line: LogLine,
}

/// Recent events, oldest first: `GET /api/v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsPage<E = EventView> {
    /// The kept events that are newer than `after`.
    pub events: Vec<E>,
    /// The number of events between `after` and the last one of `events` that are no longer kept.
    pub missed: u64,
    /// The run of these events: another run counts from 1 again.
    #[serde(default)]
    pub session_id: String,
}

/// Whether the observer works: `GET /healthz`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The beat path has turned after a probe, and can receive beats.
    pub healthy: bool,
    /// The reasons why beats cannot be received, now or soon, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub problems: Vec<String>,
    /// The time until it turned, or the time of the vain wait.
    pub turned_after: f64,
    /// Time since the start of the last turn that is over: how long it hangs if it is not healthy.
    #[serde(default)]
    pub last_turn_age: f64,
    /// The observer was requested to end and receives no more beats: not healthy, and nothing to fix.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopping: bool,
}

/// The error of a request (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A short name of the kind of error.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// The error of this request, with the fix.
    pub detail: String,
}
