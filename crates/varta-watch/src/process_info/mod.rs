//! Which process has a pid now, and the facts that the system has about it.
//!
//! The kernel reuses pids. A pidfd refers to one process forever. The instance number distinguishes two processes
//! with the same pid and can be compared long after: the pidfd's inode on Linux 6.9 and newer, the start time before.

pub(crate) mod facts;
pub(crate) mod program;
pub(crate) mod rights;
pub(crate) mod units;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use varta_core::ExitStatus;

/// `PIDFS_MAGIC`: the file system of pidfds whose inodes are unique until the next boot.
const PIDFS_MAGIC: u64 = 0x5049_4446;

/// The kernel never assigns a larger pid on 64-bit machines.
const PID_MAX_LIMIT: u32 = 1 << 22;

/// The first process of a pid namespace, whose end is the end of all others in it.
pub(crate) const INIT: u32 = 1;

/// The features of this system for identifying processes. Determined once, at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelFeatures {
    /// A pidfd's inode is the instance number (Linux 6.9).
    pub(crate) pidfs: bool,
    /// A datagram can bring its sender's pidfd (Linux 6.5).
    pub(crate) sender_pidfd: bool,
    /// `/proc` shows this process's own pid namespace, so its pids are those that the observer uses.
    pub(crate) proc: bool,
}

impl KernelFeatures {
    /// Queries the kernel. `socket` is the beat socket; it is left unchanged.
    pub(crate) fn find(socket: impl AsFd) -> Self {
        let own = open(std::process::id());
        let pass = |on| varta_sys::receive::pass_pidfd(socket.as_fd(), on).is_ok();
        Self {
            pidfs: own.is_ok_and(|pidfd| {
                rustix::fs::fstatfs(&pidfd).is_ok_and(|fs| fs.f_type as u64 == PIDFS_MAGIC)
            }),
            sender_pidfd: pass(true) && pass(false),
            proc: std::fs::read_link("/proc/self")
                .is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str()),
        }
    }

    /// The instance number of a process, where its pidfd provides it.
    pub(crate) fn instance_of(self, pidfd: &OwnedFd) -> Option<u64> {
        let stat = self.pidfs.then(|| rustix::fs::fstat(pidfd).ok()).flatten();
        stat.map(|stat| stat.st_ino)
    }

    /// Holds the process that has `pid` now. Fails with `ESRCH` if there is none. Where pidfds have no inodes this
    /// reads `/proc`.
    pub(crate) fn hold(self, pid: u32) -> io::Result<Process> {
        let pidfd = open(pid)?;
        let instance = match self.instance_of(&pidfd) {
            Some(instance) => instance,
            None if self.proc => start_time(pid)?,
            None => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(Process { pidfd, instance })
    }
}

/// A process, held by a pidfd so that it cannot be confused with another.
pub(crate) struct Process {
    pub(crate) pidfd: OwnedFd,
    pub(crate) instance: u64,
}

/// A descriptor of the process that has `pid` now. Fails with `ESRCH` if there is none.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or(rustix::io::Errno::SRCH)?;
    Ok(pidfd_open(raw, PidfdFlags::empty())?)
}

/// Whether [`open`] failed because no process has the pid, rather than for want of descriptors or memory.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    let is_missing = error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
    is_missing || error.kind() == io::ErrorKind::NotFound
}

/// True once the process behind a pidfd has ended, reaped or not.
pub(crate) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = rustix::time::Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// How an ended process ended, where the kernel reports it: for a zombie in its `stat` line, for a reaped process
/// through its pidfd (Linux 6.15). Queried in this order and then once more, because the process may be reaped in
/// between.
pub(crate) fn exit_status(pid: u32, pidfd: &OwnedFd) -> ExitStatus {
    let reaped = || {
        varta_sys::process::wait_status(pidfd.as_fd())
            .ok()
            .flatten()
    };
    let status = reaped().or_else(|| zombie_wait_status(pid)).or_else(reaped);
    status.map_or(ExitStatus::Unknown, ExitStatus::from_wait_status)
}

/// The largest pid that this host assigns; the kernel's own upper bound if that cannot be read.
pub(crate) fn pid_max() -> u32 {
    const FILE: &str = "/proc/sys/kernel/pid_max";
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    text.trim().parse().unwrap_or(PID_MAX_LIMIT)
}

/// Start time in clock ticks since boot; allocates nothing.
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    let mut path = [0; 32];
    let mut rest = &mut path[..];
    write!(rest, "/proc/{pid}/stat")?;
    let unused = rest.len();
    let path = &path[..path.len() - unused];
    let path = std::str::from_utf8(path).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut stat = [0; 1024];
    let len = File::open(path)?.read(&mut stat)?;
    stat_field(&stat[..len], 22).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field `number` of `/proc/PID/stat`, counted from 1 as in its manual page; 3 is the state. The command name before
/// it may contain anything, so fields are counted from its closing parenthesis.
fn stat_field(stat: &[u8], number: usize) -> Option<u64> {
    let text = fields_after_name(stat)?;
    text.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

fn fields_after_name(stat: &[u8]) -> Option<&str> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&stat[name_end + 1..]).ok()
}

/// Wait status of a zombie, which the kernel keeps in its `stat` line until it is reaped. The caller knows that the
/// process has ended; until it is reaped its pid cannot be reused.
fn zombie_wait_status(pid: u32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let status = ended_with(&stat)?;
    // The kernel writes 0 for a reader that may not inspect the process.
    (status != 0 || may_look_into(pid)).then_some(status)
}

/// Wait status from the `stat` line of a process that has ended: of a zombie, or of one that is being reaped (`X`)
/// and whose pidfd may not report it yet.
fn ended_with(stat: &[u8]) -> Option<i32> {
    let has_ended = fields_after_name(stat)?
        .trim_start()
        .starts_with(['Z', 'X']);
    let status = i32::try_from(stat_field(stat, 52)?).ok()?;
    has_ended.then_some(status)
}

/// Whether the kernel shows this user everything about a process: it is of the same user and group, or the observer
/// is root. A process that hides from its own user belongs to root in `/proc`.
fn may_look_into(pid: u32) -> bool {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let owner = std::fs::metadata(format!("/proc/{pid}"));
    uid.is_root() || owner.is_ok_and(|m| (m.uid(), m.gid()) == (uid.as_raw(), gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(pid: u32) -> io::Result<Process> {
        let socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        KernelFeatures::find(&socket).hold(pid)
    }

    #[test]
    fn fields_are_counted_behind_a_name_that_looks_like_fields() {
        let stat = b"7 (a) Z 1 (b)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(stat_field(stat, 22), Some(4711));
        assert_eq!(stat_field(stat, 52), None);
        assert_eq!(stat_field(b"", 22), None);
        assert_eq!(stat_field(b"7 (a)", 22), None);
    }

    #[test]
    fn who_is_being_reaped_has_a_wait_status_as_a_zombie_has() {
        let stat = |state: char| format!("7 (a) {state} {}1280", "0 ".repeat(48));
        assert_eq!(ended_with(stat('Z').as_bytes()), Some(5 << 8));
        assert_eq!(ended_with(stat('X').as_bytes()), Some(5 << 8));
        assert_eq!(ended_with(stat('R').as_bytes()), None);
    }

    #[test]
    fn a_process_keeps_its_instance_and_another_one_has_another() {
        let me = hold(std::process::id()).unwrap();
        assert_eq!(hold(std::process::id()).unwrap().instance, me.instance);
        assert_ne!(me.instance, varta_core::agent::UNIDENTIFIED);
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let held = hold(other.id()).unwrap();
        assert_ne!(held.instance, me.instance);
        assert!(!has_ended(&held.pidfd));
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(has_ended(&held.pidfd));
    }

    #[test]
    fn a_kernel_without_inodes_for_processes_tells_them_apart_by_start_time() {
        let old = KernelFeatures {
            pidfs: false,
            sender_pidfd: false,
            proc: true,
        };
        let me = old.hold(std::process::id()).unwrap();
        assert_eq!(me.instance, start_time(std::process::id()).unwrap());
        assert_eq!(old.instance_of(&me.pidfd), None);
        let blind = KernelFeatures { proc: false, ..old };
        assert!(blind.hold(std::process::id()).is_err());
    }

    #[test]
    fn the_start_time_of_a_process_does_not_change() {
        let pid = std::process::id();
        assert_eq!(start_time(pid).unwrap(), start_time(pid).unwrap());
    }

    #[test]
    fn nobody_has_pid_zero_or_a_pid_beyond_the_kernels_range() {
        assert!(hold(0).is_err());
        assert!(hold(u32::MAX).is_err());
    }

    #[test]
    fn an_exit_status_is_told_before_and_after_the_process_is_reaped() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "exit 5"])
            .spawn()
            .unwrap();
        let held = hold(child.id()).unwrap();
        let mut fds = [PollFd::new(&held.pidfd, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert_eq!(exit_status(child.id(), &held.pidfd), ExitStatus::Code(5));
        child.wait().unwrap();
        let after = exit_status(child.id(), &held.pidfd);
        assert!(
            matches!(after, ExitStatus::Code(5) | ExitStatus::Unknown),
            "{after:?}"
        );
    }

    #[test]
    fn a_living_process_has_no_exit_status() {
        let me = hold(std::process::id()).unwrap();
        assert_eq!(
            exit_status(std::process::id(), &me.pidfd),
            ExitStatus::Unknown
        );
    }
}
