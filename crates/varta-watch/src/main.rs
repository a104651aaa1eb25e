//! `varta-watch`: the observer as a program.

use std::process::ExitCode;

fn main() -> ExitCode {
    varta_watch::run(std::env::args_os())
}
