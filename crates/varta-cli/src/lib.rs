//! The operator's command-line tool of Varta, behind the program `varta`.
//!
//! `varta demo` shows an observer at work on real processes, `varta beat` sends beats for scripts, `varta key` makes
//! the keys of encrypted beats; `varta status` and `varta events` request the state of the agents and the events from
//! an observer, `varta pause` and `varta resume` have it leave an agent unjudged for a while. This crate depends on
//! [`varta_api`] and on nothing else of the observer; only the demo starts one, by running this program again.

#![forbid(unsafe_code)]

mod ask;
mod beat;
mod command_line;
mod demo;
mod events;
#[cfg(test)]
mod fixtures;
mod key;
mod pattern;
mod pause;
mod signals;
mod status;
mod terminal;
mod units;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use command_line::Command;

/// Runs the given command line, program name first.
///
/// Exit codes: 0 when the command succeeded, and for `--help` and `--version`; 1 when it failed; 2 for an unusable
/// command line. Those of `varta status` are a health check's: 0 if all is well, 1 if it is not, 2 if that is
/// unknown. `varta pause` and `varta resume` have 1 for no matching agent and 2 for any other failure.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match command_line::parse(arguments) {
        Ok(command) => command,
        Err(exit) => return exit.print(),
    };
    let result = match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Beat(arguments) => beat::run(&arguments),
        Command::Key(arguments) => key::run(&arguments),
        Command::Events(arguments) => events::run(&arguments),
        Command::Status(arguments) => return status::run(&arguments),
        Command::Pause(arguments) => return pause::pause(&arguments),
        Command::Resume(arguments) => return pause::resume(&arguments),
        Command::Observer { arguments } => return demo::observer::run(arguments),
        Command::Agent(arguments) => return demo::agent::run(&arguments),
        Command::Heal { pid } => return demo::heal(pid),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("varta: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Why a command failed. The text names the flag or file and the fix.
#[derive(Debug)]
#[non_exhaustive]
enum Failure {
    /// The command line is unusable.
    Usage(String),
    /// The command could not be carried out.
    Run(String),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Usage(text) | Self::Run(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Failure {}
