//! Messages: each fact as one sentence for a person and as keys for a program.
//!
//! Two facts have no line: a single beat has a row in the event file instead, and a dropped hook is counted.

mod agents;
mod observer;
mod recovery;
mod refusals;

use std::time::Duration;

use varta_core::fact::{AgentRef, Fact, Level};

use crate::log_line::{Agent, AgentOnly, LogEvent, LogLine};
pub use observer::{hanging_threads, os_error, transport_name};

/// A line before it has its time.
struct Message {
    level: Level,
    msg: String,
    event: LogEvent,
}

impl Message {
    fn info(msg: String, event: LogEvent) -> Self {
        Self {
            level: Level::Info,
            msg,
            event,
        }
    }

    fn warn(msg: String, event: LogEvent) -> Self {
        Self {
            level: Level::Warn,
            msg,
            event,
        }
    }

    fn error(msg: String, event: LogEvent) -> Self {
        Self {
            level: Level::Error,
            msg,
            event,
        }
    }
}

impl LogLine {
    /// The line about a fact of this Unix time; `None` if it has none.
    pub fn of(fact: &Fact, ts_ns: u64, session_id: &str) -> Option<Self> {
        let message = agents::message(fact, ts_ns)
            .or_else(|| recovery::message(fact))
            .or_else(|| observer::message(fact))?;
        Some(Self {
            ts_ns,
            session_id: session_id.to_owned(),
            level: message.level,
            msg: message.msg,
            event: message.event,
        })
    }
}

impl From<&AgentRef> for Agent {
    fn from(agent: &AgentRef) -> Self {
        Self {
            pid: agent.agent.pid,
            name: (!agent.name.is_empty()).then(|| agent.name.clone()),
        }
    }
}

impl From<&AgentRef> for AgentOnly {
    fn from(agent: &AgentRef) -> Self {
        Self {
            source: source(agent),
            agent: agent.into(),
        }
    }
}

fn source(agent: &AgentRef) -> Option<String> {
    agent.address.map(|address| address.to_string())
}

/// Milliseconds with three decimals, so that microseconds survive.
fn ms(ns: u64) -> f64 {
    (ns / 1_000) as f64 / 1_000.0
}

/// Milliseconds, as exact as possible.
fn exact_ms(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e3
}

fn seconds(ns: u64) -> String {
    format!("{:.3} s", ms(ns) / 1_000.0)
}

fn number_of(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A duration in the notation of the settings.
pub fn exact_duration(ns: u64) -> String {
    humantime::format_duration(Duration::from_nanos(ns)).to_string()
}
