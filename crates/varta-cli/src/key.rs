//! `varta key`: makes, derives and names keys.
//!
//! A key is written to a new file that only its owner can read. It is printed only with `--print`, and no error
//! reveals any part of one. All other output has its fingerprint, by which keys can be compared without being
//! revealed.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use varta_client::{AgentKey, Key, key_from_file};
use varta_sys::{entropy, secret_file};
use zeroize::Zeroizing;

use crate::Failure;

/// Size of a file of a thousand keys. A longer one is no key file, and must not fill the memory.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// The lowest pid of an agent: 0 is no process, and every observer refuses 1.
const PID_MIN: i64 = 2;

/// The highest pid of any kernel.
const PID_MAX: i64 = i32::MAX as i64;

/// Make, derive and compare the keys of encrypted beats
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct KeyArguments {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    New(NewArguments),
    Derive(DeriveArguments),
    Fingerprint(FingerprintArguments),
}

/// Make a random key
///
/// It serves as the key that agents share (varta-watch --key-file) or as a master key (varta-watch
/// --master-key-file). Prints the fingerprint of the key and the name of its file.
#[derive(Debug, Args)]
struct NewArguments {
    #[command(flatten)]
    destination: Destination,
}

/// Derive the key of one agent from the master key
///
/// For agents that must not know the master key, with which they could speak for each other. A launcher
/// that may read it derives the key for its own pid, then execs the agent, which keeps the pid. Prints the
/// fingerprint of the key and the name of its file.
#[derive(Debug, Args)]
#[command(after_long_help = "A launcher:\n  \
    varta key derive --master-key-file master.key --pid $$ agent.key && exec ./agent agent.key")]
struct DeriveArguments {
    /// File with the master key, the one the observer has
    #[arg(long, value_name = "MASTER")]
    master_key_file: PathBuf,

    /// Whose key: the pid that the agent will have
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(PID_MIN..=PID_MAX))]
    pid: u32,

    #[command(flatten)]
    destination: Destination,
}

/// Print the fingerprint of each key in files, to compare keys without telling them
///
/// A line for each key, in the order of the files and of the keys in them.
#[derive(Debug, Args)]
struct FingerprintArguments {
    /// Files with keys, one per line
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Where a key goes.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Destination {
    /// New file for the key, readable by its owner only; one that exists is never overwritten
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Print the key, and nothing else, instead of writing a file
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(arguments: &KeyArguments) -> Result<(), Failure> {
    match &arguments.command {
        KeyCommand::New(arguments) => arguments.destination.take(&random_key()?),
        KeyCommand::Derive(arguments) => {
            let master = key_from_file(&arguments.master_key_file)
                .map_err(|error| Failure::Run(format!("--master-key-file: {error}")))?;
            let key = AgentKey::derive(&master, arguments.pid);
            arguments.destination.take(key.key())
        }
        KeyCommand::Fingerprint(arguments) => arguments
            .files
            .iter()
            .try_for_each(|path| tell_fingerprints(path)),
    }
}

fn random_key() -> Result<Key, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    entropy::fill(&mut *bytes).map_err(|error| {
        Failure::Run(format!(
            "no random bytes for a key: {error}; does a sandbox forbid getrandom?"
        ))
    })?;
    Ok(Key::from_bytes(*bytes))
}

impl Destination {
    fn take(&self, key: &Key) -> Result<(), Failure> {
        let hex = key.to_hex();
        let mut line = Zeroizing::new([b'\n'; 65]);
        line[..hex.len()].copy_from_slice(&*hex);
        match &self.file {
            Some(path) => {
                secret_file::create(path, &*line).map_err(|error| why_not_created(path, &error))?;
                tell_fingerprint(key, path)
            }
            None => print(&*line),
        }
    }
}

fn why_not_created(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::Run(match error.kind() {
        io::ErrorKind::AlreadyExists => format!(
            "{path}: exists, and no key is ever overwritten; name another file, or remove this one if \
             nobody needs it"
        ),
        _ => {
            format!("{path}: {error}; check that its directory exists and that you may write to it")
        }
    })
}

/// Also includes the keys before the first invalid line.
fn tell_fingerprints(path: &Path) -> Result<(), Failure> {
    let content =
        secret_file::read(path, FILE_BYTES_MAX).map_err(|error| Failure::Run(error.to_string()))?;
    let mut told = Err(Failure::Run(format!(
        "{}: holds no key; 'varta key new' makes one",
        path.display()
    )));
    Key::each_in(&content, |key| told = tell_fingerprint(&key, path))
        .map_err(|error| Failure::Run(format!("{}: {error}", path.display())))?;
    told
}

fn tell_fingerprint(key: &Key, path: &Path) -> Result<(), Failure> {
    print(format!("{}  {}\n", key.fingerprint(), path.display()).as_bytes())
}

fn print(text: &[u8]) -> Result<(), Failure> {
    io::stdout()
        .write_all(text)
        .map_err(|error| Failure::Run(format!("standard output: {error}")))
}
