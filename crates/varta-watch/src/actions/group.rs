//! Signalling a process group member by member.
//!
//! A process may move itself into any process group of its session, so membership in the agent's group does not prove
//! whose process it is. The kernel, asked to signal a group, signals every member that the observer may signal; this
//! module signals the members that the agent's own user may signal.
//!
//! Members are found by walking `/proc`, which takes about a microsecond for a process of another group. A
//! member that appears during a walk (a fork) is found by the next one; walks end when one finds nothing new,
//! and after [`WALKS_MAX`].

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, getpgrp, pidfd_send_signal};

use varta_core::fact::{Protected, SignalHits, StartFailure};

use super::failure::{not_sent, sent};
use crate::process_info::rights::Owners;
use crate::process_info::{self, INIT};

/// Walks through `/proc` for one signal. A group that still grows after so many walks forks faster than it is killed;
/// the rest of it is left to the next step.
const WALKS_MAX: usize = 8;

/// Signals the process `target`, which has `pid` and is an agent of `user`, and every member of its process
/// group that `user` may signal.
pub(super) fn signal(
    pid: u32,
    target: &OwnedFd,
    user: u32,
    signal: Signal,
) -> Result<SignalHits, StartFailure> {
    let group = group_of(pid).ok_or(StartFailure::Protected(Protected::GroupHidden))?;
    if group == getpgrp() {
        return Err(StartFailure::Protected(Protected::ObserverInGroup));
    }
    if Pid::from_raw(INIT as i32) == Some(group) || Some(group) == group_of(INIT) {
        return Err(StartFailure::Protected(Protected::InitInGroup));
    }
    sent(pidfd_send_signal(target, signal))?;
    let mut hits = SignalHits {
        signalled: 1,
        spared: 0,
    };
    let mut seen = HashSet::from([pid]);
    for _ in 0..WALKS_MAX {
        let before = seen.len();
        for member in processes().map_err(not_sent)? {
            if group_of(member) != Some(group) || !seen.insert(member) {
                continue;
            }
            match signal_member(member, group, user, signal)? {
                Some(true) => hits.signalled += 1,
                Some(false) => hits.spared += 1,
                None => {}
            }
        }
        if seen.len() == before {
            break;
        }
    }
    Ok(hits)
}

/// Signals a process if it is in the group and `user` may signal it; true if it did. `None` if the process has ended,
/// or is not in the group after all.
fn signal_member(
    pid: u32,
    group: Pid,
    user: u32,
    signal: Signal,
) -> Result<Option<bool>, StartFailure> {
    let pidfd = match process_info::open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if process_info::is_gone(&error) => return Ok(None),
        Err(error) => return Err(not_sent(error)),
    };
    // Read by pid after the pidfd was opened: the values are those of the process if it has not ended afterwards.
    let is_member = group_of(pid) == Some(group);
    let owners = Owners::of(pid);
    if !is_member || process_info::has_ended(&pidfd) {
        return Ok(None);
    }
    let may = owners.is_ok_and(|owners| owners.other_than(user).is_none());
    Ok(Some(may && pidfd_send_signal(&pidfd, signal).is_ok()))
}

/// Every process that this user may see.
fn processes() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// The process group of a process; `None` if there is no such process, or if the group has no number in the
/// observer's pid namespace.
fn group_of(pid: u32) -> Option<Pid> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    Pid::from_raw(nix::unistd::getpgid(Some(pid)).ok()?.as_raw())
}
