//! Checks the wire format against a file of conformance vectors.
//!
//! `cargo run -p varta-vlp --example conformance -- FILE.json`
//!
//! Prints each failure, then `N passed, M failed, K skipped`. Exits with 0 when nothing failed, 1 when
//! something did, 2 when the file cannot be used.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

#[path = "../tests/support/conformance.rs"]
mod conformance;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(path), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: conformance FILE.json");
        return ExitCode::from(2);
    };
    match run(Path::new(&path)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("{}: {why}", Path::new(&path).display());
            ExitCode::from(2)
        }
    }
}

/// Whether every entry of the file holds.
fn run(path: &Path) -> Result<bool, String> {
    let json = std::fs::read(path).map_err(|error| error.to_string())?;
    let report = conformance::check_file(&json)?;
    writeln!(std::io::stdout(), "{report}").map_err(|error| format!("cannot report: {error}"))?;
    Ok(report.failures.is_empty())
}
