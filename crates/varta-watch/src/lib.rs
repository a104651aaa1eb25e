//! The Varta observer.
//!
//! Two threads: [`ingest`](self) receives beats and judges silence; the control thread reports, keeps evidence and
//! recovers. `varta_api` defines the output for other programs.

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

/// Exit code for any failure after the command line was parsed.
const EXIT_FAILURE: u8 = 1;

/// Runs the observer with the given command line, program name first, until it is requested to stop.
///
/// Exit codes: 0 after a clean stop, and after printing requested output such as `--help`; 1 when the observer cannot
/// start or continue; 2 for an unusable command line or configuration.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let config = match Config::read(Sources::of_process(arguments), http::metrics::list) {
        Ok(config) => config,
        Err(exit) => {
            if exit.exit_code == 0 {
                // A closed standard output means that the reader needs no more.
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
