//! The operator's hand of Varta, behind the program `varta`.
//!
//! `varta demo` shows an observer at work on real processes, `varta beat` sends beats for scripts,
//! `varta key` makes the keys of those that travel encrypted; `varta status` and `varta events` ask an
//! observer how everybody is and what has happened, `varta pause` and `varta resume` have it leave an agent in
//! peace for a while. Of the observer this crate knows what
//! [`varta_api`] tells and nothing else; the demo alone starts one, by running this program again.

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
/// Exit codes: 0 when what was asked for was done, and for `--help` and `--version`; 1 when it could
/// not be done; 2 for an unusable command line. Those of `varta status` are a health check's: 0 if all is
/// well, 1 if it is not, 2 if nobody can tell. `varta pause` and `varta resume` have 1 for nobody who is meant and
/// 2 for whatever else keeps them from it.
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

/// Why a command did not do what it was asked for. The text names the flag or file and says the fix.
#[derive(Debug)]
#[non_exhaustive]
enum Failure {
    /// The command line cannot mean anything.
    Usage(String),
    /// The world did not play along.
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
