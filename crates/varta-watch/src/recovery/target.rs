//! Aiming: at the process instance that fell silent and nobody else.
//!
//! Every signal goes through a pidfd, or to a group whose number is the target's for as long as the target
//! is in it. What must never be hit is refused: pid 1, the observer, and any group with one of them in it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{Pid, Signal, getpgrp, kill_process_group, pidfd_send_signal};
use varta_core::Agent;

use super::cgroup;
use crate::identity::{self, Means};
use crate::policy::{SignalStep, Target};

/// The first process of a pid namespace, whose end is the end of all others in it.
const INIT: u32 = 1;

/// Why an action did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The process it is meant for has ended, or its pid belongs to another one now.
    TargetGone,
    /// It lives in another pid namespace, and the operator has not allowed that.
    CrossNamespace,
    /// Nothing proves which process the pid belongs to.
    Unidentified,
    /// It lives on another host, where no signal reaches.
    NotHere,
    /// The signal would hit what must not be hit.
    Forbidden(&'static str),
    /// The system could not start the program.
    Spawn(SpawnError),
    /// The system could not send the signal.
    Signal(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TargetGone => write!(f, "gone or back before anything was started"),
            Self::CrossNamespace => write!(
                f,
                "nothing started, it lives in another pid namespace (--allow-cross-namespace-agents)"
            ),
            Self::Unidentified => write!(
                f,
                "nothing started, it cannot be proved which process it is"
            ),
            Self::NotHere => write!(
                f,
                "not signalled, it lives on another host; run a program that knows how to reach it"
            ),
            Self::Forbidden(why) => write!(f, "not signalled, {why}"),
            Self::Spawn(error) => error.fmt(f),
            Self::Signal(error) => write!(f, "cannot send the signal: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Which program could not be started, and why.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(super) program: PathBuf,
    pub(super) error: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start {}: {}", self.program.display(), self.error)
    }
}

/// Takes hold of the process that is meant. Keep the descriptor until the action has started: it shows at any
/// time whether the process has ended. What the system refuses is made an error by `failed`.
pub(super) fn hold(
    agent: Agent,
    means: Means,
    failed: impl FnOnce(io::Error) -> StartError,
) -> Result<OwnedFd, StartError> {
    if agent.instance == identity::UNIDENTIFIED {
        return Err(StartError::Unidentified);
    }
    // The latest moment at which the number can be checked. It does not reserve the pid for as long as a
    // program takes to use it.
    let target = means.hold(agent.pid).map_err(|error| {
        if identity::is_gone(&error) {
            StartError::TargetGone
        } else {
            failed(error)
        }
    })?;
    if target.instance != agent.instance || identity::has_ended(&target.pidfd) {
        return Err(StartError::TargetGone);
    }
    Ok(target.pidfd)
}

/// Sends a step's signal to this very process, or to its group, or says why not.
pub(super) fn signal(step: &SignalStep, agent: Agent, means: Means) -> Result<(), StartError> {
    if agent.is_remote() {
        return Err(StartError::NotHere);
    }
    if agent.pid == INIT {
        return Err(StartError::Forbidden(
            "it is the first process of the system",
        ));
    }
    if agent.pid == std::process::id() {
        return Err(StartError::Forbidden("it is the observer itself"));
    }
    let target = hold(agent, means, StartError::Signal)?;
    match step.to {
        Target::Process => sent(pidfd_send_signal(&target, step.signal)),
        Target::Group => signal_group(agent.pid, &target, step.signal),
        Target::Cgroup => signal_cgroup(agent.pid, &target, step.signal),
    }
}

fn sent<E: Into<io::Error>>(result: Result<(), E>) -> Result<(), StartError> {
    result.map_err(|error| {
        let error = error.into();
        if identity::is_gone(&error) {
            StartError::TargetGone
        } else {
            StartError::Signal(error)
        }
    })
}

/// A check that was made by number holds if the process has been there all the time.
fn still_there(target: &OwnedFd) -> Result<(), StartError> {
    match identity::has_ended(target) {
        true => Err(StartError::TargetGone),
        false => Ok(()),
    }
}

fn signal_group(pid: u32, target: &OwnedFd, signal: Signal) -> Result<(), StartError> {
    let process = number(pid).ok_or(StartError::TargetGone)?;
    let group = group_of(pid).ok_or(StartError::Forbidden(
        "its process group is not for the observer to see",
    ))?;
    if group == getpgrp() {
        return Err(StartError::Forbidden(
            "the observer is in its process group",
        ));
    }
    if Some(group) == number(INIT) || Some(group) == group_of(INIT) {
        return Err(StartError::Forbidden(
            "the first process of the system is in its process group",
        ));
    }
    if group == process {
        let by_leader = varta_sys::process::signal_group(target.as_fd(), signal.as_raw());
        let is_unknown = |error: &io::Error| error.kind() == io::ErrorKind::InvalidInput;
        if !by_leader.as_ref().is_err_and(is_unknown) {
            return sent(by_leader);
        }
    }
    // The number stays the group's for as long as the target is in it, dead or alive, until it is reaped.
    still_there(target)?;
    sent(kill_process_group(group, signal))
}

fn number(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The process group of a process; `None` if there is no such process, or if the group has no number in the
/// observer's pid namespace.
fn group_of(pid: u32) -> Option<Pid> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    Pid::from_raw(nix::unistd::getpgid(Some(pid)).ok()?.as_raw())
}

fn signal_cgroup(pid: u32, target: &OwnedFd, signal: Signal) -> Result<(), StartError> {
    let failed = |error| match identity::has_ended(target) {
        true => StartError::TargetGone,
        false => StartError::Signal(error),
    };
    let path = cgroup::path_of(pid).map_err(failed)?;
    let directory = cgroup::directory_of(&path).map_err(failed)?;
    still_there(target)?;
    if path == "/" {
        return Err(StartError::Forbidden(
            "it is in the root control group, with everything else",
        ));
    }
    // Where the first process is, is not for everybody to know; whoever may not know may not signal it.
    let holds = |pid| cgroup::path_of(pid).map(|of_pid| cgroup::is_within(&of_pid, &path));
    if holds(std::process::id()).map_err(StartError::Signal)? {
        return Err(StartError::Forbidden(
            "the observer is in its control group",
        ));
    }
    if holds(INIT).unwrap_or(false) {
        return Err(StartError::Forbidden(
            "the first process of the system is in its control group",
        ));
    }
    let killed = (signal == Signal::KILL).then(|| cgroup::kill(&directory));
    match killed {
        Some(Ok(())) => Ok(()),
        // Before Linux 5.14, or not ours to write.
        Some(Err(_)) | None => sent(cgroup::signal_members(&directory, &path, signal)),
    }
}
