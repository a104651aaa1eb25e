//! Setting an option of a socket that the standard library has no name for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Gives the kernel `value` for an option of the level `SOL_SOCKET`.
pub(crate) fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel only reads, and of `value` no more than the length stated, which is its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as _,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn an_option_takes_effect_and_a_wrong_one_is_an_error() {
        let (socket, _peer) = UnixDatagram::pair().unwrap();
        let on: libc::c_int = 1;
        set(socket.as_fd(), libc::SO_PASSCRED, &on).unwrap();
        assert!(rustix::net::sockopt::socket_passcred(&socket).unwrap());
        let error = set(socket.as_fd(), -1, &on).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
    }
}
