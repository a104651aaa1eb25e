//! Aiming: at the process instance that fell silent and nobody else.
//!
//! Every signal goes through a pidfd, to a process that the user of the agent could signal itself; only a
//! whole control group, where membership takes rights, is hit whoever is in it. What must never be hit is
//! refused: pid 1, the observer, and any group with one of them in it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use varta_core::Agent;

use super::{cgroup, group};
use crate::process_info::rights::Owners;
use crate::process_info::{self, KernelFeatures};
use crate::settings::policy::{SignalStep, Target};

/// The first process of a pid namespace, whose end is the end of all others in it.
pub(super) const INIT: u32 = 1;

/// Whom a signal was sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hits {
    /// Processes that got it, the agent's own among them.
    pub(crate) signalled: usize,
    /// Processes of the group that the agent or the observer may not signal.
    pub(crate) spared: usize,
}

/// Why an action did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The process it is meant for has ended, or its pid belongs to another one now.
    TargetGone,
    /// It lives in another pid namespace, and the operator has not allowed that.
    CrossNamespace,
    /// Nobody can tell where it lives, because `/proc` does not show it to the observer's user.
    Hidden,
    /// Nothing proves which process the pid belongs to.
    Unidentified,
    /// It is another user's by now, whom the user that it joined as may not signal.
    OthersNow {
        /// Whose rights it has now.
        user: u32,
        /// As which it joined.
        joined_as: u32,
    },
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
            Self::Hidden => write!(
                f,
                "nothing started, /proc does not show it to the observer's user (mount option hidepid), so it may live \
                 in another pid namespace; run the observer as root, or mount /proc without hidepid"
            ),
            Self::Unidentified => write!(
                f,
                "nothing started, it cannot be proved which process it is"
            ),
            Self::OthersNow { user, joined_as } => write!(
                f,
                "not signalled, it joined as uid {joined_as} and has the rights of uid {user} by now"
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

impl StartError {
    /// The observer itself lacks what it takes, descriptors, memory or processes: nothing was done, and it may be
    /// possible later.
    pub(crate) fn is_shortage(&self) -> bool {
        let (Self::Spawn(SpawnError { error, .. }) | Self::Signal(error)) = self else {
            return false;
        };
        let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
        let errno = error.raw_os_error();
        shortages
            .iter()
            .any(|shortage| errno == Some(shortage.raw_os_error()))
    }
}

/// Which program could not be started, and why.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(super) program: String,
    pub(super) error: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot start {}: {}", self.program, self.error)
    }
}

/// Takes hold of the process that is meant. Keep the descriptor until the action has started: it shows at any
/// time whether the process has ended. What the system refuses is made an error by `failed`.
pub(super) fn hold(
    agent: Agent,
    kernel: KernelFeatures,
    failed: impl FnOnce(io::Error) -> StartError,
) -> Result<OwnedFd, StartError> {
    if agent.instance == varta_core::agent::UNIDENTIFIED {
        return Err(StartError::Unidentified);
    }
    // The latest moment at which the number can be checked. It does not reserve the pid for as long as a
    // program takes to use it.
    let target = kernel.hold(agent.pid).map_err(|error| {
        if process_info::is_gone(&error) {
            StartError::TargetGone
        } else {
            failed(error)
        }
    })?;
    if target.instance != agent.instance || process_info::has_ended(&target.pidfd) {
        return Err(StartError::TargetGone);
    }
    Ok(target.pidfd)
}

/// Sends a step's signal to this very process, or to its group, or says why not. The agent joined as `user`.
pub(super) fn signal(
    step: &SignalStep,
    agent: Agent,
    user: u32,
    kernel: KernelFeatures,
) -> Result<Hits, StartError> {
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
    let target = hold(agent, kernel, StartError::Signal)?;
    if !kernel.proc {
        return Err(StartError::Forbidden(
            "/proc does not show whose process it is",
        ));
    }
    let owners = Owners::of(agent.pid);
    still_there(&target)?;
    let owners = owners.map_err(|_| {
        StartError::Forbidden("whose process it is, is not for the observer to see")
    })?;
    if let Some(other) = owners.other_than(user) {
        return Err(StartError::OthersNow {
            user: other,
            joined_as: user,
        });
    }
    match step.to {
        Target::Process => {
            sent(pidfd_send_signal(&target, step.signal))?;
            Ok(Hits {
                signalled: 1,
                spared: 0,
            })
        }
        Target::Group => group::signal(agent.pid, &target, user, step.signal),
        Target::Cgroup => signal_cgroup(agent.pid, &target, step.signal),
    }
}

pub(super) fn sent<E: Into<io::Error>>(result: Result<(), E>) -> Result<(), StartError> {
    result.map_err(|error| {
        let error = error.into();
        if process_info::is_gone(&error) {
            StartError::TargetGone
        } else {
            StartError::Signal(error)
        }
    })
}

/// A check that was made by number holds if the process has been there all the time.
fn still_there(target: &OwnedFd) -> Result<(), StartError> {
    match process_info::has_ended(target) {
        true => Err(StartError::TargetGone),
        false => Ok(()),
    }
}

fn signal_cgroup(pid: u32, target: &OwnedFd, signal: Signal) -> Result<Hits, StartError> {
    let failed = |error| match process_info::has_ended(target) {
        true => StartError::TargetGone,
        false => StartError::Signal(error),
    };
    let path = cgroup::path_of(pid).map_err(failed)?;
    let directory = cgroup::directory_of(&path).map_err(failed)?;
    still_there(target)?;
    if let Some(why) = cgroup::shared_by_many(&path) {
        return Err(StartError::Forbidden(why));
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
    let members = cgroup::members(&directory).map_err(failed)?;
    if members.contains(&cgroup::UNSEEN) {
        return Err(StartError::Forbidden(
            "a process outside of the observer's pid namespace, perhaps the first of the host, is in its control group",
        ));
    }
    let is_other_init = |member: &u32| *member != pid && process_info::facts::is_init(*member);
    if members.iter().any(is_other_init) {
        return Err(StartError::Forbidden(
            "the first process of a container is in its control group, whose end is the end of everything in it",
        ));
    }
    if signal == Signal::KILL && cgroup::kill(&directory).is_ok() {
        return Ok(Hits {
            signalled: members.len(),
            spared: 0,
        });
    }
    // Before Linux 5.14, or not ours to write.
    cgroup::signal_members(&directory, &path, signal).map_err(failed)
}
