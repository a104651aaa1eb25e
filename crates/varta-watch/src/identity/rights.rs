//! Which users may signal a process, by the kernel's own rule (kill(2)): user 0, and the user that is the
//! process's real or saved one. A program may have become another user's since it joined (a setuid program).
//!
//! Capabilities other than root's count for nothing here, so the answer may be no where the kernel says yes,
//! and never the other way round.

use std::fs;
use std::io;

/// The users of a process that the kernel's rule asks for, as the observer's user namespace numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owners {
    pub(crate) real: u32,
    pub(crate) saved: u32,
}

impl Owners {
    /// Those of the process that has `pid` now: hold it by pidfd before, and see afterwards that it has not
    /// ended. Fails with `NotFound` if there is none, or none that this user may see.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read(format!("/proc/{pid}/status"))?;
        Self::in_status(&String::from_utf8_lossy(&status))
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Whether processes of `user` may signal it.
    pub(crate) fn let_signal(self, user: u32) -> bool {
        const ROOT: u32 = 0;
        user == ROOT || user == self.real || user == self.saved
    }

    /// The line `Uid` of `/proc/PID/status`: real, effective, saved, file system.
    pub(super) fn in_status(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let mut users = line.split_ascii_whitespace().map(str::parse);
        Some(Self {
            real: users.next()?.ok()?,
            saved: users.nth(1)?.ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_signalled_by_root_and_by_its_real_and_saved_user() {
        let owners = Owners::in_status("Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t5\t5\t5\n").unwrap();
        let users = (0..=5).filter(|user| owners.let_signal(*user));
        assert_eq!(users.collect::<Vec<_>>(), [0, 1, 3]);
    }

    #[test]
    fn this_process_is_its_users() {
        let owners = Owners::of(std::process::id()).unwrap();
        assert_eq!(owners.real, rustix::process::getuid().as_raw());
        assert!(owners.let_signal(owners.real));
    }

    #[test]
    fn a_line_that_is_missing_or_cut_short_names_nobody() {
        for status in ["", "Uid:", "Uid:\t1\t1", "Uid:\t1\tx", "Gid:\t1\t1\t1\t1"] {
            assert_eq!(Owners::in_status(status), None, "{status}");
        }
        assert!(Owners::of(u32::MAX).is_err());
    }
}
