//! Which agents are meant: a pid, an identifier or a name, with `*` for any number of characters.

use varta_watch::api::v1::AgentView;

/// What an agent has to be called to be meant.
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

/// The part before the first `*` must begin the text, the one after the last must end it, and those between
/// are looked for from left to right: the first place is as good as any other.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.split_once(part) {
            Some((_, after)) => text = after,
            None => return false,
        }
    }
    text.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::agent;

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

    #[test]
    fn a_star_stands_for_anything_and_nothing() {
        for (pattern, text) in [
            ("*", ""),
            ("a*", "a"),
            ("*a", "a"),
            ("a*c", "abc"),
            ("a*b*c", "axbxbxc"),
            ("**a**", "xax"),
            ("*ab*ab", "abab"),
            ("ä*ü", "äöü"),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a*a", "a"),
            ("*ab*ab", "ab"),
            ("a*b*c", "acb"),
            ("a*", "ba"),
            ("*a", "ab"),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
