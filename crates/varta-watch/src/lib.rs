//! The Varta observer.
//!
//! Two threads: [`ingest`](self) receives beats and judges silence, the control thread tells, keeps
//! evidence and recovers. What it says to other programs is in `varta_api`.

#![forbid(unsafe_code)]

mod actions;
mod beat_path_state;
mod beat_queue;
mod clock;
mod config;
mod control;
mod handoff;
mod http;
mod ingest;
mod keys;
mod lifecycle;
mod own_file;
mod process_info;
mod replay_file;
mod report;
mod settings;
mod snapshot;
mod socket_file;
mod token;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use config::{Config, Sources};
use report::log::Log;

/// Exit code of anything that goes wrong after the command line was understood.
const EXIT_FAILURE: u8 = 1;

/// Runs the observer with the given command line, program name first, until it is told to stop.
///
/// Exit codes: 0 after a clean stop, and after printing what was asked for instead, such as `--help`; 1 when the
/// observer cannot start or go on; 2 for an unusable command line or configuration.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let config = match Config::read(Sources::of_process(arguments), http::metrics::list) {
        Ok(config) => config,
        Err(exit) => {
            if exit.exit_code == 0 {
                // A closed standard output is the reader's choice.
                let _ = std::io::stdout().write_all(exit.text.as_bytes());
            } else {
                eprint!("{}", exit.text);
            }
            return ExitCode::from(exit.exit_code);
        }
    };
    let (log, writer) = match Log::start(config.settings.log_format, lifecycle::random_number()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("varta-watch: cannot start the log: {error}");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let result = lifecycle::run(&config, &log);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log.error(problem.to_string());
            ExitCode::from(EXIT_FAILURE)
        }
    };
    drop(log);
    writer.close();
    code
}
