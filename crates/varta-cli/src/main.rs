//! `varta`: the operator's command-line tool as a program.

use std::process::ExitCode;

fn main() -> ExitCode {
    varta_cli::run(std::env::args_os())
}
