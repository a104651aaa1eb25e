//! The id of an agent: its pid, its instance and its stream, so that it never names another agent.

use std::fmt;
use std::str::FromStr;

use varta_core::Agent;

/// Names an agent for as long as it is tracked. As text: the pid in decimal, a dash, the instance in hexadecimal; for
/// a stream other than 0 a point and its number in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AgentId {
    /// Process id; for an agent of another host the one on that host.
    pub pid: u32,
    /// Distinguishes the processes that have had this pid.
    pub instance: u64,
    /// The stream of beats of that process; 0 for the one without a name.
    pub stream: u16,
}

/// The text is not the id of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnId;

impl From<Agent> for AgentId {
    fn from(agent: Agent) -> Self {
        Self {
            pid: agent.pid,
            instance: agent.instance,
            stream: agent.stream,
        }
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.pid, self.instance)?;
        match self.stream {
            0 => Ok(()),
            stream => write!(f, ".{stream}"),
        }
    }
}

impl FromStr for AgentId {
    type Err = NotAnId;

    /// Parses an id only in the form in which it is written: one agent has one id.
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let (pid, rest) = text.split_once('-').ok_or(NotAnId)?;
        let (instance, stream) = rest.split_once('.').unwrap_or((rest, "0"));
        let id = Self {
            pid: pid.parse().map_err(|_| NotAnId)?,
            instance: u64::from_str_radix(instance, 16).map_err(|_| NotAnId)?,
            stream: stream.parse().map_err(|_| NotAnId)?,
        };
        match id.to_string() == text {
            true => Ok(id),
            false => Err(NotAnId),
        }
    }
}

impl fmt::Display for NotAnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is not the id of an agent; one looks like 4711-1f3a")
    }
}

impl std::error::Error for NotAnId {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for (stream, text) in [(0, "4711-1f3a"), (7, "4711-1f3a.7")] {
            let id = AgentId {
                pid: 4711,
                instance: 0x1f3a,
                stream,
            };
            assert_eq!(id.to_string(), text);
            assert_eq!(text.parse(), Ok(id));
        }
    }

    #[test]
    fn an_agent_has_one_id_and_no_other_text_names_it() {
        for text in [
            "",
            "4711",
            "4711-",
            "-1",
            "04711-1f3a",
            "4711-1F3A",
            "4711-01f3a",
            "+4711-1f3a",
            "4711-+1f3a",
            "4711-1f3a ",
            "4711-1f3a-2",
            "99999999999-1",
            "4711-1f3a.0",
            "4711-1f3a.",
            "4711-1f3a.07",
            "4711-1f3a.65536",
            "4711.7-1f3a",
        ] {
            assert_eq!(text.parse::<AgentId>(), Err(NotAnId), "{text}");
        }
    }
}
