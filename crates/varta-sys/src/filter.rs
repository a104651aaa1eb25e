//! Socket filters: programs in classic BPF that the kernel runs on each datagram before queueing it.
//!
//! On a Unix datagram socket the filter of the receiver runs in the sender's system call, before anything is
//! queued. A datagram for which the program returns 0 is dropped and takes no place in the queue, and the
//! send succeeds for its sender. Any other result is how many bytes are kept; a longer datagram is cut. A
//! load beyond the end of the datagram ends the program with 0.
//!
//! No privilege is needed. The kernel checks a program when it is attached and copies it.

use std::io;
use std::os::fd::BorrowedFd;

use crate::socket_option;

/// Longest program the kernel takes (`BPF_MAXINSNS`).
const LONGEST_PROGRAM: usize = 4096;

/// One instruction, as in `linux/filter.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation, operand size and addressing.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jump_true: u8,
    /// Instructions to skip if it does not.
    pub jump_false: u8,
    /// Constant, offset or index, by operation.
    pub operand: u32,
}

const _: () = assert!(
    size_of::<Instruction>() == size_of::<libc::sock_filter>()
        && align_of::<Instruction>() == align_of::<libc::sock_filter>()
);

/// Attaches a program to the receiving socket, in place of the one that was there. Datagrams that
/// are queued already stay.
///
/// # Errors
///
/// Invalid input: the program is empty, longer than 4096 instructions, or not one the kernel accepts.
pub fn attach(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    if program.is_empty() || program.len() > LONGEST_PROGRAM {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let program = libc::sock_fprog {
        len: program.len() as _,
        filter: program.as_ptr().cast_mut().cast(),
    };
    socket_option::set(socket, libc::SO_ATTACH_FILTER, &program)
}

/// Removes the program, if there is one.
///
/// # Errors
///
/// The error of the kernel, for example that the descriptor is no socket.
pub fn detach(socket: BorrowedFd<'_>) -> io::Result<()> {
    // The kernel requires a value and ignores it.
    let unused: libc::c_int = 0;
    match socket_option::set(socket, libc::SO_DETACH_FILTER, &unused) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    const fn instruction(code: u32, operand: u32) -> Instruction {
        Instruction {
            code: code as u16,
            jump_true: 0,
            jump_false: 0,
            operand,
        }
    }

    const fn keep(bytes: u32) -> Instruction {
        instruction(libc::BPF_RET | libc::BPF_K, bytes)
    }

    /// Keeps the datagrams whose first byte is `first`.
    fn only(first: u8) -> [Instruction; 4] {
        [
            instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0),
            Instruction {
                jump_false: 1,
                ..instruction(
                    libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                    u32::from(first),
                )
            },
            keep(u32::MAX),
            keep(0),
        ]
    }

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        (sender, receiver)
    }

    fn queued(receiver: &UnixDatagram) -> Vec<Vec<u8>> {
        let mut buffer = [0; 64];
        std::iter::from_fn(|| {
            let length = receiver.recv(&mut buffer).ok()?;
            Some(buffer[..length].to_vec())
        })
        .collect()
    }

    #[test]
    fn a_rejected_datagram_vanishes_and_counts_as_sent() {
        let (sender, receiver) = pair();
        sender.send(b"before").unwrap();
        attach(receiver.as_fd(), &[keep(0)]).unwrap();
        // Far more than a queue holds: a rejected datagram takes no place.
        for _ in 0..5000 {
            assert_eq!(sender.send(b"rejected").unwrap(), 8);
        }
        detach(receiver.as_fd()).unwrap();
        sender.send(b"after").unwrap();
        assert_eq!(queued(&receiver), [b"before".to_vec(), b"after".to_vec()]);
    }

    #[test]
    fn a_program_reads_the_datagram_from_its_first_byte() {
        let (sender, receiver) = pair();
        attach(receiver.as_fd(), &only(b'a')).unwrap();
        for datagram in ["ab", "ba", "", "a"] {
            sender.send(datagram.as_bytes()).unwrap();
        }
        assert_eq!(queued(&receiver), [b"ab".to_vec(), b"a".to_vec()]);
    }

    #[test]
    fn a_second_program_takes_the_place_of_the_first() {
        let (sender, receiver) = pair();
        attach(receiver.as_fd(), &only(b'a')).unwrap();
        attach(receiver.as_fd(), &only(b'b')).unwrap();
        sender.send(b"a").unwrap();
        sender.send(b"b").unwrap();
        assert_eq!(queued(&receiver), [b"b"]);
    }

    #[test]
    fn a_datagram_longer_than_the_program_keeps_is_cut() {
        let (sender, receiver) = pair();
        attach(receiver.as_fd(), &[keep(3)]).unwrap();
        sender.send(b"abcd").unwrap();
        sender.send(b"ab").unwrap();
        assert_eq!(queued(&receiver), [b"abc".to_vec(), b"ab".to_vec()]);
    }

    #[test]
    fn a_program_the_kernel_cannot_run_is_an_error_and_changes_nothing() {
        let (sender, receiver) = pair();
        attach(receiver.as_fd(), &only(b'a')).unwrap();
        let endless = [instruction(libc::BPF_LD | libc::BPF_IMM, 0)];
        let too_long = vec![keep(0); LONGEST_PROGRAM + 1];
        for program in [&[], &endless[..], &too_long] {
            let error = attach(receiver.as_fd(), program).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        sender.send(b"b").unwrap();
        sender.send(b"a").unwrap();
        assert_eq!(queued(&receiver), [b"a"]);
        attach(receiver.as_fd(), &too_long[1..]).unwrap();
    }

    #[test]
    fn detaching_what_is_not_there_is_fine() {
        let (_sender, receiver) = pair();
        detach(receiver.as_fd()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(detach(file.as_fd()).is_err());
    }
}
