//! The ways in which a step can fail, each under its own name.

mod aiming;
mod cgroups;
mod endings;
mod output;
mod programs;
mod words;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use varta_core::Agent;
use varta_core::engine::{Action, Subject};
use varta_core::fact::{ExitCause, Force};
use varta_core::policy::RunStep;
use varta_vlp::Status;

use super::child::Running;
use super::*;
use crate::settings::children::Children;

fn kernel() -> KernelFeatures {
    KernelFeatures::find(std::os::unix::net::UnixDatagram::unbound().unwrap())
}

fn agent(pid: u32) -> Agent {
    Agent {
        slot: 0,
        pid,
        instance: kernel().hold(pid).unwrap().instance,
        stream: 0,
    }
}

fn this_process() -> Agent {
    agent(std::process::id())
}

fn another_instance_of(agent: Agent) -> Agent {
    Agent {
        instance: agent.instance + 1,
        ..agent
    }
}

fn remote_agent() -> Agent {
    let address = "10.0.0.7:1".parse().unwrap();
    Agent {
        slot: 0,
        pid: 4242,
        instance: varta_core::agent::remote_source(varta_core::agent::NO_KEY, &address, 0),
        stream: 0,
    }
}

fn subject(agent: Agent) -> Subject {
    Subject {
        agent,
        name: "web".to_owned(),
        status: Some(Status::Degraded),
        silence_ms: 1500,
        unit: None,
        user_unit: None,
        reason: "stall",
        is_target: true,
        source: None,
    }
}

fn step(program: &str, arguments: &[&str]) -> RunStep {
    RunStep {
        program: program.into(),
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        private_file: None,
        timeout: None,
        wait: Duration::ZERO,
    }
}

fn shell(script: &str) -> RunStep {
    step("/bin/sh", &["-c", script])
}

/// The grace is long: a test that waits for its end sets its own.
fn children() -> Children {
    Children {
        inherit_environment: false,
        environment: Vec::new(),
        capture_bytes: 4096,
        grace: Duration::from_secs(600),
    }
}

fn start(runner: &Runner, step: &RunStep) -> Running {
    runner
        .start(step, &children(), &subject(this_process()))
        .unwrap()
}

/// Starts a script; returns once the script has written to `ready`.
fn start_ready(runner: &Runner, step: &RunStep, ready: &Path) -> (Running, String) {
    let running = start(runner, step);
    (running, std::fs::read_to_string(ready).unwrap())
}

fn run(step: &RunStep) -> Ended {
    block_on(async { start(&Runner::new(kernel()), step).wait().await })
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// A file through which a script reports progress.
fn fifo(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

/// A process that runs until it is killed.
fn bystander(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).spawn().unwrap()
}

fn sleeper() -> Command {
    let mut command = Command::new("sleep");
    command.arg("600");
    command
}

/// Waits until a process has ended, or long enough to conclude that it will not.
fn ends(pidfd: &OwnedFd) -> bool {
    let limit = rustix::time::Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    // The runtime's handler of SIGCHLD interrupts the wait.
    let wait = || poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit));
    rustix::io::retry_on_intr(wait).unwrap() > 0
}

fn pid_ends(pid: &str) -> bool {
    let held: io::Result<OwnedFd> = crate::process_info::open(pid.trim().parse().unwrap());
    held.map_or(true, |pidfd| ends(&pidfd))
}
