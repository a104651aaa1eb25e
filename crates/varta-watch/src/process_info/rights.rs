//! Which users may have a process signalled: user 0, and a user that is the process's real, effective and saved one.
//! A program may have changed its user since it joined (a setuid program).
//!
//! The kernel's own rule (kill(2)) accepts the real or the saved user, and capabilities. So this rule may refuse
//! where the kernel permits, and never the other way round: a process with the rights of another user may not be
//! ended on behalf of the agent's user.

use std::fs;
use std::io;

/// The users of a process, as the observer's user namespace numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owners {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
}

impl Owners {
    /// The users of the process that has `pid` now: hold its pidfd before, and check afterwards that it has not
    /// ended. Fails with `NotFound` if there is none, or none that this user may see.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let status = fs::read(format!("/proc/{pid}/status"))?;
        Self::in_status(&String::from_utf8_lossy(&status))
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Another user whose rights the process has, so that it may not be signalled on behalf of `user`; `None` if it
    /// may be.
    pub(crate) fn other_than(self, user: u32) -> Option<u32> {
        const ROOT: u32 = 0;
        let mut others = [self.effective, self.saved, self.real].into_iter();
        others.find(|other| user != ROOT && *other != user)
    }

    /// The line `Uid` of `/proc/PID/status`: real, effective, saved, file system.
    pub(super) fn in_status(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let mut users = line.split_ascii_whitespace().map(str::parse);
        Some(Self {
            real: users.next()?.ok()?,
            effective: users.next()?.ok()?,
            saved: users.next()?.ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_signalled_for_root_and_for_a_user_whose_rights_are_all_it_has() {
        let users_of = |ids: &str| {
            let status = format!("Name:\tx\nUid:\t{ids}\t9\nGid:\t5\t5\t5\t5\n");
            let owners = Owners::in_status(&status).unwrap();
            let users = (0..=3).filter(|user| owners.other_than(*user).is_none());
            users.collect::<Vec<_>>()
        };
        assert_eq!(users_of("1\t1\t1"), [0, 1]);
        for ids in ["1\t2\t2", "1\t2\t1", "1\t1\t2", "2\t1\t1", "1\t0\t0"] {
            assert_eq!(users_of(ids), [0], "{ids}");
        }
    }

    #[test]
    fn this_process_is_its_users() {
        let owners = Owners::of(std::process::id()).unwrap();
        assert_eq!(owners.real, rustix::process::getuid().as_raw());
        assert_eq!(owners.other_than(owners.real), None);
    }

    #[test]
    fn a_line_that_is_missing_or_cut_short_names_nobody() {
        for status in ["", "Uid:", "Uid:\t1\t1", "Uid:\t1\tx", "Gid:\t1\t1\t1\t1"] {
            assert_eq!(Owners::in_status(status), None, "{status}");
        }
        assert!(Owners::of(u32::MAX).is_err());
    }
}
