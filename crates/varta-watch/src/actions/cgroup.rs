//! Control groups of the unified hierarchy: finds them, signals every process in one, and makes one for each child
//! where this part of the hierarchy was delegated to the observer.
//!
//! Paths are as `/proc/PID/cgroup` gives them, from the root that the observer can see.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, pidfd_send_signal};
use varta_core::fact::{Protected, SignalHits};

use crate::process_info;

/// Name of a child's control group, before a number.
const CHILD_PREFIX: &str = "varta-recovery-";

/// Directory levels that are visited; only KILL reaches deeper ones.
const DEPTH_MAX: usize = 64;

/// In place of the pid of a process that this pid namespace has no number for.
pub(super) const UNSEEN: u32 = 0;

/// Path of a process's control group. Fails with `NotFound` where there is no unified hierarchy.
pub(super) fn path_of(pid: u32) -> io::Result<String> {
    let text = fs::read(format!("/proc/{pid}/cgroup"))?;
    let text = String::from_utf8_lossy(&text);
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(str::to_owned)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Whether `path` is `ancestor` or below it.
pub(super) fn is_within(path: &str, ancestor: &str) -> bool {
    let ancestor = ancestor.trim_end_matches('/');
    let rest = path.strip_prefix(ancestor);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Why a control group must not be signalled for one process in it: it holds a whole login, all processes of a user,
/// or many services. A group below one of these has a purpose of its own and may be signalled.
pub(super) fn shared_by_many(path: &str) -> Option<Protected> {
    let name = path.trim_end_matches('/').rsplit('/').next()?;
    if name.is_empty() {
        Some(Protected::RootCgroup)
    } else if name.ends_with(".slice") {
        Some(Protected::Slice)
    } else if name.starts_with("session-") && name.ends_with(".scope") {
        Some(Protected::LoginSession)
    } else if name.starts_with("user@") && name.ends_with(".service") {
        Some(Protected::UserManager)
    } else if name == "init.scope" {
        Some(Protected::ServiceManager)
    } else {
        None
    }
}

/// The directory of a control group.
pub(super) fn directory_of(path: &str) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| locate(line, path));
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Path of `path` in the file system, if this line of `mountinfo` describes a mount that shows it.
pub(super) fn locate(line: &str, path: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let is_shown = kind.starts_with("cgroup2 ") && is_within(path, root) && !path.contains("/..");
    let below = path.get(root.trim_end_matches('/').len()..)?;
    is_shown.then(|| Path::new(point).join(below.trim_start_matches('/')))
}

/// Kills everything in a control group and below it, at once: Linux 5.14.
pub(super) fn kill(directory: &Path) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .open(directory.join("cgroup.kill"))?;
    file.write_all(b"1")
}

/// Sends a signal to every process in a control group and below it, one after the other, each through its pidfd. A
/// process that starts meanwhile may be missed. Fails if the signal reached no process.
pub(super) fn signal_members(
    directory: &Path,
    path: &str,
    signal: Signal,
) -> io::Result<SignalHits> {
    let mut hits = SignalHits::default();
    let mut refusal = rustix::io::Errno::SRCH.into();
    for pid in members(directory)? {
        let Ok(pidfd) = process_info::open(pid) else {
            continue;
        };
        // Between these two calls the pid could have passed to another process, the descriptor could not.
        let is_member = path_of(pid).is_ok_and(|own| is_within(&own, path));
        if is_member && !process_info::has_ended(&pidfd) {
            match pidfd_send_signal(&pidfd, signal) {
                Ok(()) => hits.signalled += 1,
                Err(error) => {
                    hits.spared += 1;
                    refusal = error.into();
                }
            }
        }
    }
    match hits.signalled {
        0 => Err(refusal),
        _ => Ok(hits),
    }
}

/// Pids in a control group and below it, [`UNSEEN`] for a process that this pid namespace has no number for.
pub(super) fn members(directory: &Path) -> io::Result<Vec<u32>> {
    members_to(directory, DEPTH_MAX)
}

fn members_to(directory: &Path, depth: usize) -> io::Result<Vec<u32>> {
    let procs = fs::read_to_string(directory.join("cgroup.procs"))?;
    let mut pids: Vec<u32> = procs.lines().filter_map(|pid| pid.parse().ok()).collect();
    for entry in fs::read_dir(directory)?.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(members_to(&entry.path(), depth - 1).unwrap_or_default());
        }
    }
    Ok(pids)
}

/// A control group in which the observer may make others.
#[derive(Debug)]
pub(super) struct Delegated {
    directory: PathBuf,
    next: AtomicU64,
}

impl Delegated {
    /// The observer's own control group, if it was delegated to the observer.
    pub(super) fn find() -> Option<Self> {
        let path = path_of(std::process::id()).ok()?;
        let directory = directory_of(&path).ok()?;
        (path != "/" && is_delegated(&directory)).then(|| Self::at(directory))
    }

    pub(super) fn at(directory: PathBuf) -> Self {
        Self {
            directory,
            next: AtomicU64::new(0),
        }
    }

    /// Makes a control group for one child, and removes the empty ones of earlier children. `None` where that fails;
    /// the child then has its process group only.
    pub(super) fn make(&self) -> Option<(ChildCgroup, File)> {
        self.sweep();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("{CHILD_PREFIX}{}-{number}", std::process::id());
        let directory = self.directory.join(name);
        fs::create_dir(&directory).ok()?;
        let cgroup = ChildCgroup { directory };
        let procs = File::options()
            .write(true)
            .open(cgroup.directory.join("cgroup.procs"));
        Some((cgroup, procs.ok()?))
    }

    /// Removes the empty control groups of earlier children. The kernel keeps the others.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        for entry in entries {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(CHILD_PREFIX)
            {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// The service manager marks a delegated group of a root service by an attribute, and that of any other user by its
/// owner.
fn is_delegated(directory: &Path) -> bool {
    let is_marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        let len = rustix::fs::getxattr(directory, *name, &mut value[..]);
        len == Ok(1) && value == *b"1"
    });
    let user = rustix::process::geteuid();
    let is_owned = fs::metadata(directory).is_ok_and(|m| m.uid() == user.as_raw());
    is_marked || (!user.is_root() && is_owned)
}

/// A child's own control group. Removed once it is empty: when this is dropped, else before the next child.
#[derive(Debug)]
pub(super) struct ChildCgroup {
    directory: PathBuf,
}

impl ChildCgroup {
    /// Whether the child has been moved in.
    pub(super) fn is_populated(&self) -> bool {
        members_to(&self.directory, 0).is_ok_and(|pids| !pids.is_empty())
    }

    pub(super) fn kill(&self) {
        let _ = kill(&self.directory);
    }
}

impl Drop for ChildCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.directory);
    }
}
