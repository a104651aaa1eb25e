//! What the kernel tells about a process that has ended.

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
    fn the_status_of_a_reaped_process_is_told_where_the_kernel_keeps_it() {
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
}
