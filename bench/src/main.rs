//! `varta-bench`: the cost of the observer and the client, and the lateness of a reported stall or exit, compared to
//! the bare system calls on the same machine in the same run.
//!
//! It starts real observers and real agent processes on private sockets, prints one table on standard output and its
//! progress on standard error. It is a measuring tool and not a test: no figure makes it fail. The other processes
//! that it needs besides the observer are this program again, under the hidden subcommands of [`Role`].

#![forbid(unsafe_code)]

mod agents;
mod measure;
mod observer;
mod plan;
mod procfs;
mod receiver;
mod report;
mod stats;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use plan::{Plan, Section};
use report::Report;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures the observer and the client against bare system calls.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// A smoke run: everything once and short, in about 40 s; its figures mean little
    #[arg(long)]
    quick: bool,

    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,

    /// Measure only these sections; repeatable
    #[arg(long, value_name = "SECTION", value_enum)]
    only: Vec<Section>,

    /// Observer to measure [default: `varta-watch` next to this program, built anew under cargo]
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,

    /// A published 0.2.0 observer to measure as well
    #[arg(long, value_name = "PATH")]
    peer: Option<PathBuf>,

    #[command(subcommand)]
    role: Option<Role>,
}

/// The processes around an observer.
#[derive(Debug, Subcommand)]
enum Role {
    /// Beats at an interval until asked to leave; notes each beat in the file that is its standard
    /// input.
    #[command(name = "__agent", hide = true)]
    Agent {
        socket: PathBuf,
        index: u64,
        interval_ns: u64,
    },
    /// Beats as fast as the receiver takes it, prints how many beats that were, and stays.
    #[command(name = "__flood", hide = true)]
    Flood { socket: PathBuf, duration_ms: u64 },
    /// Receives and does nothing else.
    #[command(name = "__drain", hide = true)]
    Drain { socket: PathBuf },
    /// Receives from a UDP socket and does nothing else; prints where it listens.
    #[command(name = "__drain-udp", hide = true)]
    DrainUdp,
}

/// What all sections share.
struct Bench {
    plan: Plan,
    observer: PathBuf,
    peer: Option<PathBuf>,
    started: Instant,
}

impl Bench {
    /// Prints the progress.
    fn say(&self, text: &str) {
        eprintln!("[{:4.0} s] {text}", self.started.elapsed().as_secs_f64());
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.role {
        None => run(options),
        Some(Role::Agent {
            socket,
            index,
            interval_ns,
        }) => agents::beat_until_asked(&socket, index, interval_ns),
        Some(Role::Flood {
            socket,
            duration_ms,
        }) => agents::flood(&socket, duration_ms),
        Some(Role::Drain { socket }) => receiver::drain_forever(&socket),
        Some(Role::DrainUdp) => receiver::drain_udp_forever(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("varta-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    let started = Instant::now();
    let observer = match options.observer {
        Some(path) => path,
        None => observer::locate()?,
    };
    let bench = Bench {
        plan: if options.quick {
            Plan::quick()
        } else {
            Plan::full()
        },
        observer,
        peer: options.peer,
        started,
    };
    let mut report = Report::new(procfs::machine());
    if cfg!(debug_assertions) {
        report.note("debug build: the figures of the client mean nothing, run with --release");
    }
    if options.quick {
        report.note("quick run: too short to compare figures");
    }
    let wanted = |section| options.only.is_empty() || options.only.contains(&section);
    if wanted(Section::Client) {
        measure::client::measure(&bench, &mut report)?;
    }
    if wanted(Section::Cpu) {
        measure::cpu::measure(&bench, &mut report)?;
    }
    if wanted(Section::Network) {
        measure::network::measure(&bench, &mut report)?;
    }
    if wanted(Section::Lateness) {
        measure::lateness::measure(&bench, &mut report)?;
    }
    if wanted(Section::Scrape) {
        measure::scrape::measure(&bench, &mut report)?;
    }
    if wanted(Section::Restraint) {
        measure::restraint::measure(&bench, &mut report)?;
    }
    if wanted(Section::Idle) {
        measure::idle::measure(&bench, &mut report)?;
    }
    if wanted(Section::Exits) {
        measure::exits::measure(&bench, &mut report)?;
    }
    if wanted(Section::Neighbour) {
        measure::neighbour::measure(&bench, &mut report)?;
    }
    bench.say("done");
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
