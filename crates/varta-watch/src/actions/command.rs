//! Command lines: filling in whom they are about.

use std::net::IpAddr;

use varta_core::Agent;
use varta_core::fact::SignalTarget;

use crate::settings::policy::{RunStep, SignalStep, Step};

/// What stands for the address of an agent elsewhere; empty for a local one.
pub(crate) const SOURCE_PLACEHOLDER: &str = "{source}";

/// What an action is about: what placeholders and variables stand for.
///
/// Names come from the agent itself, so a value may look like anything, an option for instance. It is
/// never split, expanded again or given to a shell, and control characters become `?`.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) agent: Agent,
    /// Empty if unknown.
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) silence_ms: u64,
    /// The unit of the system's service manager.
    pub(crate) unit: Option<String>,
    /// The unit of the user's own service manager.
    pub(crate) user_unit: Option<String>,
    /// What has happened: `stall`, `late` and so on.
    pub(crate) reason: &'static str,
    /// What is done is aimed at its process, which must be there. Else it is told of, dead or alive.
    pub(crate) is_target: bool,
    /// Where an agent elsewhere is.
    pub(crate) source: Option<IpAddr>,
}

impl RunStep {
    /// The command line for people to read: with its placeholders, or filled in for somebody. Words are
    /// not quoted, and those of a private file are left out.
    pub(crate) fn shown(&self, subject: Option<&Subject>) -> String {
        let mut shown = self.called();
        if self.private_file.is_some() {
            return shown;
        }
        for argument in &self.arguments {
            shown.push(' ');
            match subject {
                Some(subject) => shown.push_str(&subject.fill(argument)),
                None => shown.push_str(argument),
            }
        }
        shown
    }

    /// The program for people to read.
    pub(crate) fn called(&self) -> String {
        match &self.private_file {
            Some(file) => format!("the command in {}", file.display()),
            None => self.program.display().to_string(),
        }
    }
}

impl Step {
    /// The step for people to read: with placeholders, or filled in for somebody.
    pub(crate) fn shown(&self, subject: Option<&Subject>) -> String {
        match self {
            Self::Run(run) => run.shown(subject),
            Self::Signal(SignalStep { signal, to, .. }) => {
                let name = signal.name();
                let whom = match to {
                    SignalTarget::Process => "it",
                    SignalTarget::Group => "its process group",
                    SignalTarget::Cgroup => "its control group",
                };
                format!("signal {name} to {whom}")
            }
            Self::Wait(wait) => format!("wait for {}", humantime::format_duration(*wait)),
        }
    }
}

impl Subject {
    /// Each fact with what it is called in an argument and in the environment.
    fn facts(&self) -> [(&'static str, &'static str, String); 8] {
        let source = self.source.map(|source| source.to_string());
        [
            ("{pid}", "VARTA_PID", self.agent.pid.to_string()),
            ("{name}", "VARTA_NAME", harmless(&self.name)),
            ("{status}", "VARTA_STATUS", harmless(&self.status)),
            (
                "{silence-ms}",
                "VARTA_SILENCE_MS",
                self.silence_ms.to_string(),
            ),
            (
                "{unit}",
                "VARTA_UNIT",
                harmless(self.unit.as_deref().unwrap_or_default()),
            ),
            (
                "{user-unit}",
                "VARTA_USER_UNIT",
                harmless(self.user_unit.as_deref().unwrap_or_default()),
            ),
            ("{reason}", "VARTA_REASON", self.reason.to_owned()),
            (
                SOURCE_PLACEHOLDER,
                "VARTA_SOURCE",
                source.unwrap_or_default(),
            ),
        ]
    }

    /// `argument` with its placeholders filled in. What is filled in is not looked at again: an agent may
    /// call itself `{unit}`.
    pub(super) fn fill(&self, argument: &str) -> String {
        let facts = self.facts();
        let mut filled = String::with_capacity(argument.len());
        let mut rest = argument;
        while let Some(start) = rest.find('{') {
            filled.push_str(&rest[..start]);
            rest = &rest[start..];
            let fact = facts
                .iter()
                .find(|(placeholder, ..)| rest.starts_with(placeholder));
            let (taken, value) = fact.map_or((1, "{"), |(placeholder, _, value)| {
                (placeholder.len(), value.as_str())
            });
            filled.push_str(value);
            rest = &rest[taken..];
        }
        filled.push_str(rest);
        filled
    }

    pub(super) fn variables(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.facts()
            .into_iter()
            .map(|(_, variable, value)| (variable, value))
    }
}

/// NUL cannot be in an argument, and the others fool logs and terminals.
fn harmless(text: &str) -> String {
    text.replace(char::is_control, "?")
}
