//! The selection of agents: a pid, an identifier or a name, with `*` for any number of characters.

use varta_api::v1::AgentView;
use varta_core::rules::glob;

/// The pattern that selects agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "" => Err("say a pid, an id or a name, such as 4711 or 'web*'"),
            text => Ok(Self(text.to_owned())),
        }
    }

    pub(crate) fn matches(&self, agent: &AgentView) -> bool {
        let name = agent.name.as_deref();
        glob(&self.0, &agent.pid.to_string())
            || glob(&self.0, &agent.id)
            || name.is_some_and(|name| glob(&self.0, name))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::agent;

    #[test]
    fn an_agent_is_meant_by_its_pid_its_id_or_its_name() {
        let agent = agent("web-7", 4711);
        for pattern in ["4711", "4711-0", "web-7", "web*", "4711-*", "*"] {
            assert!(
                Pattern::parse(pattern).unwrap().matches(&agent),
                "{pattern}"
            );
        }
        for pattern in ["471", "711", "web", "WEB-7", "4711-1", "we*x"] {
            assert!(
                !Pattern::parse(pattern).unwrap().matches(&agent),
                "{pattern}"
            );
        }
        assert!(Pattern::parse("").is_err());
    }
}
