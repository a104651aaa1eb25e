//! Command lines: fills in the agent they are about.

use varta_core::engine::{Action, Subject};
use varta_core::fact::SignalTarget;

use varta_core::policy::{RunStep, SignalStep, Step};

/// Placeholder for the address of a remote agent; empty for a local one.
pub(crate) const SOURCE_PLACEHOLDER: &str = "{source}";

/// A step as readable text, with its placeholders.
pub(crate) fn shown_step(step: &Step) -> String {
    match (Action::of(step), step) {
        (None, Step::Wait(wait)) => format!("wait for {}", humantime::format_duration(*wait)),
        (action, _) => action.map_or_else(String::new, |action| shown(&action, None)),
    }
}

/// An action as readable text: with its placeholders, or filled in for an agent. Words are not quoted, and those of a
/// private file are left out.
pub(crate) fn shown(action: &Action, subject: Option<&Subject>) -> String {
    match action {
        Action::Run(run) => shown_command(run, subject),
        Action::Signal(SignalStep { signal, to, .. }) => {
            let name = signal.name();
            let whom = match to {
                SignalTarget::Process => "it",
                SignalTarget::Group => "its process group",
                SignalTarget::Cgroup => "its control group",
            };
            format!("signal {name} to {whom}")
        }
    }
}

fn shown_command(run: &RunStep, subject: Option<&Subject>) -> String {
    let mut shown = run.called();
    if run.private_file.is_some() {
        return shown;
    }
    for argument in &run.arguments {
        shown.push(' ');
        match subject {
            Some(subject) => shown.push_str(&fill(subject, argument)),
            None => shown.push_str(argument),
        }
    }
    shown
}

/// Each fact with its name in an argument and in the environment.
fn facts(subject: &Subject) -> [(&'static str, &'static str, String); 8] {
    let status = subject
        .status
        .map_or_else(String::new, |status| status.to_string());
    let source = subject.source.map(|source| source.to_string());
    [
        ("{pid}", "VARTA_PID", subject.agent.pid.to_string()),
        ("{name}", "VARTA_NAME", harmless(&subject.name)),
        ("{status}", "VARTA_STATUS", harmless(&status)),
        (
            "{silence-ms}",
            "VARTA_SILENCE_MS",
            subject.silence_ms.to_string(),
        ),
        (
            "{unit}",
            "VARTA_UNIT",
            harmless(subject.unit.as_deref().unwrap_or_default()),
        ),
        (
            "{user-unit}",
            "VARTA_USER_UNIT",
            harmless(subject.user_unit.as_deref().unwrap_or_default()),
        ),
        ("{reason}", "VARTA_REASON", subject.reason.to_owned()),
        (
            SOURCE_PLACEHOLDER,
            "VARTA_SOURCE",
            source.unwrap_or_default(),
        ),
    ]
}

/// `argument` with its placeholders filled in. Filled-in text is not expanded again: an agent may have the name
/// `{unit}`.
pub(super) fn fill(subject: &Subject, argument: &str) -> String {
    let facts = facts(subject);
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

pub(super) fn variables(subject: &Subject) -> impl Iterator<Item = (&'static str, String)> + use<> {
    facts(subject)
        .into_iter()
        .map(|(_, variable, value)| (variable, value))
}

/// NUL cannot be part of an argument, and the other characters can forge logs and terminal output.
fn harmless(text: &str) -> String {
    text.replace(char::is_control, "?")
}
