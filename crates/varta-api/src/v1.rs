//! The answers of `/api/v1`, as types. Shapes only grow: a key is never renamed or given another meaning.
//!
//! Durations are seconds as decimal numbers, times are Unix seconds; what does not apply is absent.

use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::log_line::{BeatStatus, LogLine, Outcome};

/// The path below which everything here is found.
pub const PREFIX: &str = "/api/v1";

/// Most agents in one page; more are asked for with `after`.
pub const PAGE_MAX: usize = 1000;

/// What the observer is and how it is set up: `GET /api/v1/info`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// Of the program.
    pub version: String,
    /// Differs between any two runs; 16 hex digits.
    pub session_id: String,
    /// The observer's own process id.
    pub pid: u32,
    /// When it started.
    pub started: f64,
    /// Since then.
    pub uptime: f64,
    /// Silence that makes a stall, unless an agent has its own.
    pub threshold: f64,
    /// Agents of this host there is room for.
    pub capacity: usize,
    /// Where beats are taken.
    pub socket: String,
    /// Where beats from elsewhere are taken.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub udp: Option<String>,
    /// Beats of all agents of this host together that the kernel queues before it refuses one; 0 if that is
    /// not said.
    #[serde(default)]
    pub queue_datagrams: usize,
    /// Why that is less than it should be, and what helps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue_shallow: Option<String>,
    /// How many agents there are, by state.
    pub agents: StateCounts,
    /// Agents of this host have all slots there are for them.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub full: bool,
    /// What there was no room in for a newcomer within the last minute: nobody watches those.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub no_room: Vec<NoRoom>,
    /// Agents that rules expect by now and that are not there.
    #[serde(default)]
    pub missing: usize,
    /// Time that counts against nobody because the observer was not watching, since its start.
    pub attention_lag: f64,
}

/// There was no room for a newcomer. Displayed as a person would say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoRoom {
    /// In what: [`TABLE_FULL`] or [`SHARE_FULL`], as in the log.
    pub reason: String,
    /// The user whose share it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub uid: Option<u32>,
    /// How many agents fit.
    pub limit: usize,
    /// It is the table of agents elsewhere.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub elsewhere: bool,
}

/// Agents have every slot of the table, and none gives way.
pub const TABLE_FULL: &str = "capacity_exceeded";

/// A user has as many agents as one user may have, and none gives way.
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

/// How many agents there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCounts {
    /// Heard within their threshold.
    pub alive: usize,
    /// Beyond their soft tier.
    pub late: usize,
    /// Silent for a threshold or more.
    pub stalled: usize,
    /// Not judged for a while because an operator said so.
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

/// What the observer thinks of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Silent for a threshold or more.
    Stalled,
    /// Beyond its soft tier.
    Late,
    /// Not judged for a while because an operator said so.
    Paused,
    /// Heard within its threshold.
    Alive,
}

/// One agent: `GET /api/v1/agents/{id}`, and an element of a page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentView {
    /// Names the agent for as long as it is tracked, and no other one ever: pid and instance.
    pub id: String,
    /// What the observer thinks of it.
    pub state: State,
    /// Its process id; of an agent elsewhere on its own host.
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
    /// The address of an agent elsewhere.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source: Option<String>,
    /// How it is heard: `unix`, `udp`, `secure_udp`.
    pub transport: String,
    /// Over how many sessions it beats at once, if that is more than one: several handles of one process, or several
    /// processes that cannot be told apart.
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
    /// What became of the last recovery.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub recovery: Option<Outcome>,
    /// Recovery has tried everything for the present silence.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub gave_up: bool,
    /// How much longer it is paused, on the attention clock.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paused_for: Option<f64>,
    /// Why it is paused, if somebody has said so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pause_reason: Option<String>,
}

/// The longest pause, in seconds: 30 days. Who wants an agent never judged wants a rule.
pub const PAUSE_SECONDS_MAX: f64 = 30.0 * 86_400.0;

/// Characters of a reason; it is to be read in a log line.
pub const REASON_CHARS_MAX: usize = 200;

/// Do not judge an agent for a while: `POST /api/v1/agents/{id}/pause`. Answered with its [`AgentView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// For so many seconds, more than 0 and at most [`PAUSE_SECONDS_MAX`].
    #[serde(rename = "for", deserialize_with = "number")]
    pub seconds: f64,
    /// Why: up to [`REASON_CHARS_MAX`] printable characters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// What is no number is told in the words of JSON.
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
    /// Those that fit the question, in the order asked for.
    pub agents: Vec<AgentView>,
    /// How many fit the question altogether.
    pub total: usize,
    /// To be given as `after` for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
}

/// What has happened: a log line with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Grows by one with each event of a run, from 1.
    pub id: u64,
    /// What is in the log.
    #[serde(flatten)]
    pub line: LogLine,
}

/// Recent events, oldest first: `GET /api/v1/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsPage<E = EventView> {
    /// Those that are remembered and newer than `after`.
    pub events: Vec<E>,
    /// Events between `after` and the last one of `events` that are not remembered any more.
    pub missed: u64,
    /// The run whose events these are: numbers of another one mean others.
    #[serde(default)]
    pub session_id: String,
}

/// Whether the observer does its work: `GET /healthz`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The beat path has turned when it was asked to, and can receive beats.
    pub healthy: bool,
    /// What keeps beats from being received, or may soon, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub problems: Vec<String>,
    /// How long it took to, or how long was waited in vain.
    pub turned_after: f64,
    /// Since when the beat path has not begun a turn that it has ended: how long it hangs if it is not healthy.
    #[serde(default)]
    pub last_turn_age: f64,
    /// It has been told to end and takes no more beats: not healthy, and no reason to mend anything.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stopping: bool,
}

/// What went wrong with a request (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A short name for the kind of problem.
    pub title: String,
    /// The HTTP status code.
    pub status: u16,
    /// What was wrong with this request, and what to do about it.
    pub detail: String,
}
