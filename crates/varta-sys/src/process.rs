//! Operations on a pidfd that no safe wrapper offers.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The wait status of the process behind a pidfd, once the kernel has it: Linux 6.15 keeps it for
/// any holder of the descriptor, parent or not, from the moment the process was reaped. `None`
/// while the process lives, is a zombie, or on older kernels.
pub fn wait_status(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // SAFETY: `pidfd_info` is plain data for which all zeroes is a valid value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = u64::from(libc::PIDFD_INFO_EXIT);
    // SAFETY: the request carries the size of the struct it is given, the struct outlives the call,
    // and the kernel writes no more than that size.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) };
    if result == 0 {
        let known = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
        return Ok(known.then_some(info.exit_code));
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH) => Ok(None),
        _ => Err(error),
    }
}

/// Sends a signal to every member of the process group that the process behind a pidfd leads or has led,
/// never to a later group with the same number: Linux 6.9. Signal 0 only checks.
///
/// # Errors
///
/// - `ESRCH`: there is no member (left).
/// - `EPERM`: this user may signal none of them.
/// - `EINVAL`: the kernel is older, or there is no such signal.
pub fn signal_group(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    /// `PIDFD_SIGNAL_PROCESS_GROUP`, which not every C library defines yet.
    const PROCESS_GROUP: libc::c_uint = 1 << 2;
    // SAFETY: takes integers; the null pointer makes the kernel fill in the sender of the signal.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            PROCESS_GROUP,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};
    use std::process::Command;

    fn pidfd_of(pid: u32) -> OwnedFd {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the call has just made this descriptor for us.
        unsafe { OwnedFd::from_raw_fd(fd as i32) }
    }

    #[test]
    fn the_status_of_a_reaped_process_is_reported_where_the_kernel_keeps_it() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; exit 3"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = pidfd_of(child.id());
        assert_eq!(wait_status(pidfd.as_fd()).unwrap(), None, "still alive");
        drop(child.stdin.take());
        child.wait().unwrap();
        let status = wait_status(pidfd.as_fd()).unwrap();
        assert!(matches!(status, None | Some(0x300)), "{status:?}");
    }

    #[test]
    fn a_descriptor_that_is_no_pidfd_has_no_status() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(wait_status(file.as_fd()).unwrap(), None);
    }

    #[test]
    fn a_group_is_reached_through_its_leader_even_after_the_leader_was_reaped() {
        use std::io::Read;
        use std::os::unix::process::CommandExt;
        let mut leader = Command::new("sh")
            .args(["-c", "sleep 600 & echo; read x"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let pidfd = pidfd_of(leader.id());
        let mut stdout = leader.stdout.take().unwrap();
        stdout.read_exact(&mut [0]).unwrap();
        drop(leader.stdin.take());
        leader.wait().unwrap();
        match signal_group(pidfd.as_fd(), libc::SIGKILL) {
            // The pipe ends when all its holders have ended.
            Ok(()) => assert_eq!(stdout.read(&mut [0]).unwrap(), 0),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
                println!("skipped: needs Linux 6.9");
            }
        }
    }

    #[test]
    fn a_group_without_members_cannot_be_signalled() {
        use std::os::unix::process::CommandExt;
        let mut leader = Command::new("true").process_group(0).spawn().unwrap();
        let pidfd = pidfd_of(leader.id());
        leader.wait().unwrap();
        let error = signal_group(pidfd.as_fd(), 0).unwrap_err().raw_os_error();
        assert!(
            matches!(error, Some(libc::ESRCH | libc::EINVAL)),
            "{error:?}"
        );
    }
}
