//! Command lines: finding the program, filling in whom it is about.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use varta_core::Agent;

use super::environment::CHILD_PATH;
use crate::policy::{RunStep, SignalStep, Step, Target};

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
    /// The service manager's unit.
    pub(crate) unit: Option<String>,
    /// What has happened: `stall`, `late` and so on.
    pub(crate) reason: &'static str,
    /// Where an agent elsewhere is.
    pub(crate) source: Option<IpAddr>,
}

/// A step's program that cannot be used. The text does not say which setting names it.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum CommandError {
    Empty,
    NotFound(String),
    Unreachable(PathBuf, io::Error),
    NotExecutable(PathBuf),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the command is empty; name a program or leave it out"),
            Self::NotFound(program) => write!(
                f,
                "program {program} not found in the command's PATH; give its full path"
            ),
            Self::Unreachable(path, error) => write!(
                f,
                "cannot use {}: {error}; name a program this user may run",
                path.display()
            ),
            Self::NotExecutable(path) => write!(
                f,
                "{} is not an executable file for this user",
                path.display()
            ),
        }
    }
}

impl std::error::Error for CommandError {}

/// Program and arguments of a command line split at white space, as the 0.2.0 generation did: no
/// quoting, no expansion. The program must exist and be executable now. `path` is the `PATH` that its
/// children will have, if the operator gives them another than [`CHILD_PATH`].
pub(crate) fn split_command(
    text: &str,
    path: Option<&str>,
) -> Result<(PathBuf, Vec<String>), CommandError> {
    let mut words = text.split_whitespace();
    let program = words.next().ok_or(CommandError::Empty)?;
    let program = find_program(program, path)?;
    Ok((program, words.map(str::to_owned).collect()))
}

/// The file behind the name of a program: looked up in `path` unless it says where it is.
pub(crate) fn find_program(program: &str, path: Option<&str>) -> Result<PathBuf, CommandError> {
    if program.is_empty() {
        return Err(CommandError::Empty);
    }
    if program.contains('/') {
        let path = PathBuf::from(program);
        return match path.metadata() {
            Err(error) => Err(CommandError::Unreachable(path, error)),
            Ok(_) if !is_executable(&path) => Err(CommandError::NotExecutable(path)),
            Ok(_) => Ok(path),
        };
    }
    std::env::split_paths(path.unwrap_or(CHILD_PATH))
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| CommandError::NotFound(program.to_owned()))
}

fn is_executable(path: &Path) -> bool {
    let is_program = path
        .metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    is_program && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

impl RunStep {
    /// The command line for people to read: with its placeholders, or filled in for somebody. Words are
    /// not quoted.
    pub(crate) fn shown(&self, subject: Option<&Subject>) -> String {
        let mut shown = self.program.display().to_string();
        for argument in &self.arguments {
            shown.push(' ');
            match subject {
                Some(subject) => shown.push_str(&subject.fill(argument)),
                None => shown.push_str(argument),
            }
        }
        shown
    }
}

impl Step {
    /// The step for people to read: with placeholders, or filled in for somebody.
    pub(crate) fn shown(&self, subject: Option<&Subject>) -> String {
        match self {
            Self::Run(run) => run.shown(subject),
            Self::Signal(SignalStep { signal, to, .. }) => {
                let name = crate::policy::signal_name(*signal);
                let whom = match to {
                    Target::Process => "it",
                    Target::Group => "its process group",
                    Target::Cgroup => "its control group",
                };
                format!("signal {name} to {whom}")
            }
            Self::Wait(wait) => format!("wait for {}", humantime::format_duration(*wait)),
        }
    }
}

impl Subject {
    /// Each fact with what it is called in an argument and in the environment.
    fn facts(&self) -> [(&'static str, &'static str, String); 7] {
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
