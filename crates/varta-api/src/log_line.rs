//! One line of the observer's log under `--log-format json`, and one event of `/api/v1/events`.
//!
//! The key `event` determines the other keys. A reader matches on [`LogEvent`]. It ignores unknown keys, and an
//! unknown event, or a known one with other keys, is [`LogEvent::Unknown`]: the line of another version, whose `msg`
//! can still be shown. Keys are written in a fixed order, and those that do not apply are absent.

mod keys;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Number, Value};

pub use keys::{
    Agent, AgentOnly, BeatStatus, Critical, Exit, Gap, GaveUp, Hold, Hook, How, Join, Late,
    Missing, Notice, Outcome, Pause, Recover, Refuse, Return, Session, Stall, Start, Stop,
};
pub use varta_core::fact::Level;

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "AnyKeys")]
pub struct LogLine {
    /// Unix time, nanoseconds.
    pub ts_ns: u64,
    /// Differs between any two runs of the observer; 16 hex digits.
    pub session_id: String,
    /// Severity: `info`, `warn`, `error`.
    pub level: Level,
    /// The same as readable text, in one sentence.
    pub msg: String,
    /// The event, with its keys.
    pub event: LogEvent,
}

/// A line of any version.
#[derive(Deserialize)]
struct AnyKeys {
    ts_ns: u64,
    session_id: String,
    #[serde(with = "LevelKey")]
    level: Level,
    msg: String,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl From<AnyKeys> for LogLine {
    fn from(keys: AnyKeys) -> Self {
        let event = LogEvent::deserialize(Value::Object(keys.others));
        Self {
            ts_ns: keys.ts_ns,
            session_id: keys.session_id,
            level: keys.level,
            msg: keys.msg,
            event: event.unwrap_or(LogEvent::Unknown),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Level", rename_all = "lowercase")]
enum LevelKey {
    Info,
    Warn,
    Error,
}

/// The event of a line, from its key `event`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogEvent {
    /// The observer listens.
    Start(Start),
    /// First beat of an agent.
    Join(Join),
    /// A known process started a new series of beats, or beats over several sessions.
    Session(Session),
    /// An agent reports that it is critical.
    Critical(Critical),
    /// Silence beyond the soft tier.
    Late(Late),
    /// Silence beyond the threshold.
    Stall(Stall),
    /// A stalled agent beats again.
    Return(Return),
    /// A process ended.
    Exit(Exit),
    /// A silent agent lost its slot to another one.
    Evict(AgentOnly),
    /// Datagrams were refused.
    Refuse(Refuse),
    /// The observer itself was not running for a while.
    Gap(Gap),
    /// An agent is paused: its silence does not count for a while.
    Pause(Pause),
    /// A pause is over.
    Resume(AgentOnly),
    /// A recovery action started, ended, or could not be done.
    Recover(Recover),
    /// Recovery has given up on a silent agent.
    GaveUp(GaveUp),
    /// Recovery holds fire because the host is the suspect, or resumes.
    Hold(Hold),
    /// Steps for another occasion than a stall were run.
    Hook(Hook),
    /// Expected agents have not joined, or all of them have joined.
    Missing(Missing),
    /// About the observer itself.
    Notice(Notice),
    /// The observer stops.
    Stop(Stop),
    /// An event that this program does not support.
    #[serde(other)]
    Unknown,
}

impl LogEvent {
    /// The agent that it is about, if it is about one.
    pub fn agent(&self) -> Option<&Agent> {
        match self {
            Self::Join(Join { agent, .. })
            | Self::Session(Session { agent, .. })
            | Self::Critical(Critical { agent, .. })
            | Self::Late(Late { agent, .. })
            | Self::Stall(Stall { agent, .. })
            | Self::Return(Return { agent, .. })
            | Self::Exit(Exit { agent, .. })
            | Self::Evict(AgentOnly { agent, .. })
            | Self::Pause(Pause { agent, .. })
            | Self::Resume(AgentOnly { agent, .. })
            | Self::Recover(Recover { agent, .. })
            | Self::GaveUp(GaveUp { agent, .. })
            | Self::Hook(Hook { agent, .. }) => Some(agent),
            Self::Start(_)
            | Self::Refuse(_)
            | Self::Gap(_)
            | Self::Hold(_)
            | Self::Missing(_)
            | Self::Notice(_)
            | Self::Stop(_)
            | Self::Unknown => None,
        }
    }

    /// Its counters, by series.
    pub fn counters(&self) -> Option<&BTreeMap<String, Number>> {
        match self {
            Self::Notice(notice) => notice.counters.as_ref(),
            Self::Stop(stop) => Some(&stop.counters),
            _ => None,
        }
    }
}

/// The keys of a line in their order.
#[derive(Serialize)]
struct Keys<'a, E> {
    ts_ns: u64,
    session_id: &'a str,
    #[serde(with = "LevelKey")]
    level: Level,
    event: &'static str,
    msg: &'a str,
    #[serde(flatten)]
    others: E,
}

impl Serialize for LogLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.event {
            LogEvent::Start(keys) => self.with("start", keys, serializer),
            LogEvent::Join(keys) => self.with("join", keys, serializer),
            LogEvent::Session(keys) => self.with("session", keys, serializer),
            LogEvent::Critical(keys) => self.with("critical", keys, serializer),
            LogEvent::Late(keys) => self.with("late", keys, serializer),
            LogEvent::Stall(keys) => self.with("stall", keys, serializer),
            LogEvent::Return(keys) => self.with("return", keys, serializer),
            LogEvent::Exit(keys) => self.with("exit", keys, serializer),
            LogEvent::Evict(keys) => self.with("evict", keys, serializer),
            LogEvent::Refuse(keys) => self.with("refuse", keys, serializer),
            LogEvent::Gap(keys) => self.with("gap", keys, serializer),
            LogEvent::Pause(keys) => self.with("pause", keys, serializer),
            LogEvent::Resume(keys) => self.with("resume", keys, serializer),
            LogEvent::Recover(keys) => self.with("recover", keys, serializer),
            LogEvent::GaveUp(keys) => self.with("gave_up", keys, serializer),
            LogEvent::Hold(keys) => self.with("hold", keys, serializer),
            LogEvent::Hook(keys) => self.with("hook", keys, serializer),
            LogEvent::Missing(keys) => self.with("missing", keys, serializer),
            LogEvent::Notice(keys) => self.with("notice", keys, serializer),
            LogEvent::Stop(keys) => self.with("stop", keys, serializer),
            LogEvent::Unknown => self.with("unknown", BTreeMap::<(), ()>::new(), serializer),
        }
    }
}

impl LogLine {
    fn with<S: Serializer, E: Serialize>(
        &self,
        event: &'static str,
        others: E,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let keys = Keys {
            ts_ns: self.ts_ns,
            session_id: &self.session_id,
            level: self.level,
            event,
            msg: &self.msg,
            others,
        };
        keys.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use varta_core::Counter;

    use super::*;

    #[test]
    fn an_event_and_keys_that_are_not_known_leave_the_message() {
        let head = r#""ts_ns":5,"session_id":"a","level":"warn","msg":"hello""#;
        let read = |rest: &str| serde_json::from_str::<LogLine>(&format!("{{{head},{rest}}}"));
        let line = read(r#""event":"replaced","successor":{"pid":9}"#).unwrap();
        assert_eq!(
            (line.msg.as_str(), line.event),
            ("hello", LogEvent::Unknown)
        );
        let line = read(r#""event":"late","pid":7"#).unwrap();
        assert_eq!(
            (line.msg.as_str(), line.event),
            ("hello", LogEvent::Unknown)
        );
        let line = read(r#""event":"late","pid":7,"silence_ms":3,"mood":"bad""#).unwrap();
        let LogEvent::Late(late) = line.event else {
            panic!("another event");
        };
        assert_eq!((late.agent.pid, late.silence_ms), (7, 3.0));
        let line = read(r#""event":"recover","pid":7,"outcome":"bored""#).unwrap();
        let LogEvent::Recover(recover) = line.event else {
            panic!("another event");
        };
        assert_eq!(recover.outcome, Outcome::Unknown("bored".to_owned()));
        assert_eq!(recover.outcome.to_string(), "bored");
        let counted = Outcome::counted_as(Counter::RecoveryReapedZero);
        assert_eq!(counted, Outcome::ReapedZero);
        assert_eq!(Outcome::ReapedZero.to_string(), "reaped_zero");
    }
}
