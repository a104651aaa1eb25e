//! Aiming: at the process instance that fell silent and at no other.
//!
//! Every signal goes through a pidfd, to a process that the user of the agent could signal itself. The exception is a
//! whole control group, where membership takes rights: every member is signalled. A forbidden target is refused: pid
//! 1, the observer, and any group with one of them in it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Signal, pidfd_send_signal};
use varta_core::Agent;
use varta_core::fact::{Protected, SignalHits, SignalTarget, StartFailure};
use varta_core::policy::SignalStep;

use super::failure::{not_sent, sent};
use super::{cgroup, group};
use crate::process_info::rights::Owners;
use crate::process_info::{self, INIT, KernelFeatures};

/// Opens the intended process. Keep the descriptor until the action has started: it shows at any time whether the
/// process has ended. `failed` turns an error of the system into the caller's error.
pub(super) fn hold(
    agent: Agent,
    kernel: KernelFeatures,
    failed: impl FnOnce(io::Error) -> StartFailure,
) -> Result<OwnedFd, StartFailure> {
    if agent.instance == varta_core::agent::UNIDENTIFIED {
        return Err(StartFailure::Unidentified);
    }
    // The latest moment at which the pid can be checked. The check does not reserve the pid for the time a program
    // takes to use it.
    let target = kernel.hold(agent.pid).map_err(|error| {
        if process_info::is_gone(&error) {
            StartFailure::TargetGone
        } else {
            failed(error)
        }
    })?;
    if target.instance != agent.instance || process_info::has_ended(&target.pidfd) {
        return Err(StartFailure::TargetGone);
    }
    Ok(target.pidfd)
}

/// Sends a step's signal to this process, or to its group, or returns the reason why not. The agent joined as `user`.
pub(super) fn signal(
    step: &SignalStep,
    agent: Agent,
    user: u32,
    kernel: KernelFeatures,
) -> Result<SignalHits, StartFailure> {
    if agent.is_remote() {
        return Err(StartFailure::Remote);
    }
    if agent.pid == INIT {
        return Err(StartFailure::Protected(Protected::Init));
    }
    if agent.pid == std::process::id() {
        return Err(StartFailure::Protected(Protected::Observer));
    }
    let signal = signal_of(step);
    let target = hold(agent, kernel, not_sent)?;
    if !kernel.proc {
        return Err(StartFailure::Protected(Protected::OwnerUnknown));
    }
    let owners = Owners::of(agent.pid);
    still_there(&target)?;
    let owners = owners.map_err(|_| StartFailure::Protected(Protected::OwnerHidden))?;
    if let Some(other) = owners.other_than(user) {
        return Err(StartFailure::OtherUser {
            uid: other,
            joined_as: user,
        });
    }
    match step.to {
        SignalTarget::Process => {
            sent(pidfd_send_signal(&target, signal))?;
            Ok(SignalHits {
                signalled: 1,
                spared: 0,
            })
        }
        SignalTarget::Group => group::signal(agent.pid, &target, user, signal),
        SignalTarget::Cgroup => signal_cgroup(agent.pid, &target, signal),
    }
}

/// The signal of a step as the system calls take it.
fn signal_of(step: &SignalStep) -> Signal {
    Signal::from_named_raw(step.signal.number().into()).unwrap_or(Signal::TERM)
}

/// A check by pid holds if the process existed all the time.
fn still_there(target: &OwnedFd) -> Result<(), StartFailure> {
    match process_info::has_ended(target) {
        true => Err(StartFailure::TargetGone),
        false => Ok(()),
    }
}

fn signal_cgroup(pid: u32, target: &OwnedFd, signal: Signal) -> Result<SignalHits, StartFailure> {
    let failed = |error| match process_info::has_ended(target) {
        true => StartFailure::TargetGone,
        false => not_sent(error),
    };
    let path = cgroup::path_of(pid).map_err(failed)?;
    let directory = cgroup::directory_of(&path).map_err(failed)?;
    still_there(target)?;
    if let Some(what) = cgroup::shared_by_many(&path) {
        return Err(StartFailure::Protected(what));
    }
    // The kernel hides the pid namespace's first process from some users; a user that cannot see it may not signal
    // it.
    let holds = |pid| cgroup::path_of(pid).map(|of_pid| cgroup::is_within(&of_pid, &path));
    if holds(std::process::id()).map_err(not_sent)? {
        return Err(StartFailure::Protected(Protected::ObserverInCgroup));
    }
    if holds(INIT).unwrap_or(false) {
        return Err(StartFailure::Protected(Protected::InitInCgroup));
    }
    let members = cgroup::members(&directory).map_err(failed)?;
    if members.contains(&cgroup::UNSEEN) {
        return Err(StartFailure::Protected(Protected::UnseenInCgroup));
    }
    let is_other_init = |member: &u32| *member != pid && process_info::facts::is_init(*member);
    if members.iter().any(is_other_init) {
        return Err(StartFailure::Protected(Protected::ContainerInitInCgroup));
    }
    if signal == Signal::KILL && cgroup::kill(&directory).is_ok() {
        return Ok(SignalHits {
            signalled: members.len() as u64,
            spared: 0,
        });
    }
    // Before Linux 5.14, or the observer may not write it.
    cgroup::signal_members(&directory, &path, signal).map_err(failed)
}
