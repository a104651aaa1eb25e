//! Socket options that the standard library does not offer.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets an option of the level `SOL_SOCKET` to `value`.
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

/// Reads the numbers of an option of the level `SOL_SOCKET`. Missing ones are 0.
pub(crate) fn get<const COUNT: usize>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
) -> io::Result<[u32; COUNT]> {
    let mut numbers = [0; COUNT];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    // SAFETY: the kernel writes no more than the stated length, which is that of `numbers`, and any
    // bytes make valid numbers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            numbers.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(numbers)
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

    #[test]
    fn an_option_is_read_back_and_a_wrong_one_is_an_error() {
        let (socket, _peer) = UnixDatagram::pair().unwrap();
        assert_eq!(get(socket.as_fd(), libc::SO_PASSCRED).unwrap(), [0]);
        rustix::net::sockopt::set_socket_passcred(&socket, true).unwrap();
        assert_eq!(get(socket.as_fd(), libc::SO_PASSCRED).unwrap(), [1, 0]);
        let error = get::<1>(socket.as_fd(), -1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
    }
}
