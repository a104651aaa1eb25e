//! Batched receive of datagrams with the sender's credentials.
//!
//! One `recvmmsg` fills up to a batch of datagrams without waiting. The buffers are made once; receiving
//! allocates nothing. The control buffers hold credentials and the pidfd that the kernel attaches after
//! [`pass_pidfd`], but no descriptors of a sender: the kernel drops those that do not fit, and dropping the last
//! reference to a file takes as long as its owner has arranged (a socket that lingers). So a caller that must not
//! sleep refuses descriptors ([`refuse_descriptors`]), or peeks at each datagram before it takes it ([`peek`])
//! and leaves those with descriptors to [`crate::discard`]. This module does not interpret the datagrams.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::socket_option;

/// Control data of one datagram, bytes: credentials (32) and a pidfd (24).
const CONTROL_BYTES: usize = CREDENTIALS_BYTES + PIDFD_BYTES;

/// Control data with credentials only, bytes.
const CREDENTIALS_BYTES: usize = (HEADER + 12).next_multiple_of(WORD);

/// Control data of a pidfd, bytes.
const PIDFD_BYTES: usize = (HEADER + 4).next_multiple_of(WORD);

/// `SCM_PIDFD` of Linux 6.5, which libc does not define yet.
const SCM_PIDFD: i32 = 4;

/// `SO_PASSRIGHTS` of Linux 6.16, which libc does not define yet. The number is that of x86-64, aarch64 and
/// all other architectures with the generic socket options.
const SO_PASSRIGHTS: libc::c_int = 83;

/// The credentials of a sender, as the kernel attests them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderCredentials {
    /// Process id in the receiver's namespace; 0 if it has none there.
    pub pid: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
}

/// The result of [`peek`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// Nothing is queued.
    Empty,
    /// A datagram is queued.
    Datagram(Head),
}

/// The next datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of its bytes that were copied.
    pub len: usize,
    /// Whether it is longer than that.
    pub truncated: bool,
    /// Its sender; `None` if the socket does not pass credentials.
    pub credentials: Option<SenderCredentials>,
    /// Whether descriptors are attached to it.
    pub has_descriptors: bool,
}

/// Reads the next datagram without waiting and without consuming it. Copies as many of its bytes as fit. `EINTR`
/// is retried.
///
/// On a socket that passes credentials (`SO_PASSCRED`) and no pidfds, credentials fill the control buffer, so no
/// descriptor is installed, and the kernel reports whether there are any (`MSG_CTRUNC`). The references that it
/// takes and drops meanwhile are not the last ones, because the queued datagram keeps its own. Without credentials
/// up to four attached descriptors are installed, and closed again.
pub fn peek(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Peeked> {
    let mut control = Control([0; CREDENTIALS_BYTES]);
    let mut iovec = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: `msghdr` is plain data for which all zeroes is a valid value; it is not built field by
    // field because musl has private padding in it.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    let len = loop {
        header.msg_iov = &raw mut iovec;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CREDENTIALS_BYTES as _;
        // SAFETY: the header points to one data buffer and to one control buffer of the stated lengths, which
        // are borrowed mutably and outlive the call.
        let result = unsafe {
            libc::recvmsg(
                socket.as_raw_fd(),
                &raw mut header,
                libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
            )
        };
        if let Ok(len) = usize::try_from(result) {
            break len;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok(Peeked::Empty),
            _ => return Err(error),
        }
    };
    #[allow(clippy::unnecessary_cast, reason = "32 bits wide on musl")]
    let control_len = (header.msg_controllen as usize).min(CREDENTIALS_BYTES);
    let mut installed = 0;
    // SAFETY: the kernel has just written these messages for us.
    let (credentials, _) = unsafe { take_over(&control.0[..control_len], |_| installed += 1) };
    Ok(Peeked::Datagram(Head {
        len,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        credentials,
        has_descriptors: installed > 0 || header.msg_flags & libc::MSG_CTRUNC != 0,
    }))
}

/// Refuses descriptors from now on: sending a datagram with descriptors to this socket fails with `EPERM`, and
/// nothing arrives. Queued datagrams stay unchanged, and so do sockets accepted from this one before.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 6.16.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> io::Result<()> {
    socket_option::set(socket, SO_PASSRIGHTS, &0)
}

/// Makes the kernel attach a pidfd of its sender to every datagram that is received from now on.
///
/// The process is the one in the credentials. Each received datagram then costs a descriptor until
/// it is closed.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 6.5.
pub fn pass_pidfd(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    socket_option::set(socket, libc::SO_PASSPIDFD, &libc::c_int::from(on))
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The bytes, cut to the buffer.
    pub bytes: &'a [u8],
    /// The datagram was longer than the buffer (`MSG_TRUNC`).
    pub truncated: bool,
    /// Control data was lost (`MSG_CTRUNC`).
    pub control_truncated: bool,
    /// Credentials, if the socket passes them and the kernel attached any.
    pub credentials: Option<SenderCredentials>,
}

#[derive(Clone, Copy)]
struct Meta {
    len: usize,
    flags: i32,
    credentials: Option<SenderCredentials>,
}

#[repr(C, align(8))]
#[derive(Clone)]
struct Control<const BYTES: usize>([u8; BYTES]);

/// Reusable buffers for a batch of datagrams.
pub struct DatagramBatch {
    /// The pointers in them are set before each call, and are invalid after it.
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    data: Box<[u8]>,
    data_bytes: usize,
    control: Box<[Control<CONTROL_BYTES>]>,
    meta: Box<[Meta]>,
    pidfds: Box<[Option<OwnedFd>]>,
    received: usize,
}

// SAFETY: pointers in the headers and the vectors are followed only by the call that they were set for.
unsafe impl Send for DatagramBatch {}

impl std::fmt::Debug for DatagramBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatagramBatch")
            .field("batch", &self.headers.len())
            .field("data_bytes", &self.data_bytes)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl DatagramBatch {
    /// Buffers for `batch` datagrams of up to `data_bytes` each. Choose `data_bytes` larger than the longest
    /// valid datagram, so that a longer one can be detected.
    pub fn new(batch: usize, data_bytes: usize) -> Self {
        let nothing = Meta {
            len: 0,
            flags: 0,
            credentials: None,
        };
        // SAFETY: both are plain data for which all zeroes is a valid value; `mmsghdr` is not built field by field
        // because musl has private padding in it.
        let (header, iovec) = unsafe { std::mem::zeroed::<(libc::mmsghdr, libc::iovec)>() };
        Self {
            headers: vec![header; batch].into_boxed_slice(),
            iovecs: vec![iovec; batch].into_boxed_slice(),
            data: vec![0; batch * data_bytes].into_boxed_slice(),
            data_bytes,
            control: vec![Control([0; CONTROL_BYTES]); batch].into_boxed_slice(),
            meta: vec![nothing; batch].into_boxed_slice(),
            pidfds: (0..batch).map(|_| None).collect(),
            received: 0,
        }
    }

    /// Clears the batch. Pidfds that were not taken are closed.
    pub fn clear(&mut self) {
        self.pidfds[..self.received].fill_with(|| None);
        self.received = 0;
    }

    /// Number of datagrams.
    pub fn len(&self) -> usize {
        self.received
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// Clears the batch and receives queued datagrams, see [`Self::receive_more`].
    pub fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        self.clear();
        self.receive_more(socket, limit)
    }

    /// Appends queued datagrams to the batch, up to `limit` and until it is full, without waiting. Returns how many
    /// were received: 0 means that nothing was queued; fewer than fit means that the queue was empty for a moment.
    /// `EINTR` is retried.
    ///
    /// Descriptors of a sender are dropped by the kernel or closed here, which may take long: the module describes
    /// how to refuse them.
    pub fn receive_more(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let first = self.received;
        let limit = limit.min(self.headers.len() - first);
        self.aim(first, limit);
        let count = loop {
            // SAFETY: there are `limit` headers; each points to one vector of one data buffer and to one control
            // buffer of the stated length, all owned by `self` and borrowed mutably for the call; the timeout may
            // be null.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers[first..].as_mut_ptr(),
                    limit as _,
                    (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as _,
                    std::ptr::null_mut(),
                )
            };
            if count >= 0 {
                break count as usize;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(0),
                _ => return Err(error),
            }
        };
        for i in first..first + count {
            let header = &self.headers[i];
            #[allow(clippy::unnecessary_cast, reason = "32 bits wide on musl")]
            let control_len = (header.msg_hdr.msg_controllen as usize).min(CONTROL_BYTES);
            let control = &self.control[i].0[..control_len];
            // SAFETY: the kernel has just written these messages for us.
            let (credentials, pidfd) = unsafe { take_over(control, drop) };
            self.pidfds[i] = pidfd;
            self.meta[i] = Meta {
                len: (header.msg_len as usize).min(self.data_bytes),
                flags: header.msg_hdr.msg_flags,
                credentials,
            };
        }
        self.received = first + count;
        Ok(count)
    }

    /// Points `count` headers from `first` on to their buffers, with their full size.
    fn aim(&mut self, first: usize, count: usize) {
        let range = first..first + count;
        let data = self.data.chunks_exact_mut(self.data_bytes);
        let buffers = data.zip(&mut self.control).skip(first);
        let headers = self.headers[range.clone()].iter_mut();
        let headers = headers.zip(&mut self.iovecs[range]);
        for ((header, iovec), (data, control)) in headers.zip(buffers) {
            iovec.iov_base = data.as_mut_ptr().cast();
            iovec.iov_len = data.len();
            let header = &mut header.msg_hdr;
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
            header.msg_flags = 0;
        }
    }

    /// The pidfd that came with datagram `i` of the last [`Self::receive`], once. `None` also if the
    /// kernel could not make one: the descriptor table was full, or, with older kernels, the sender
    /// had ended and was reaped. Newer ones give the pidfd of the ended process.
    pub fn take_pidfd(&mut self, i: usize) -> Option<OwnedFd> {
        self.pidfds[..self.received].get_mut(i)?.take()
    }

    /// Datagram `i` of the last [`Self::receive`], counted from 0, oldest first.
    pub fn datagram(&self, i: usize) -> Option<Received<'_>> {
        let meta = self.meta[..self.received].get(i)?;
        let start = i * self.data_bytes;
        Some(Received {
            bytes: &self.data[start..start + meta.len],
            truncated: meta.flags & libc::MSG_TRUNC != 0,
            control_truncated: meta.flags & libc::MSG_CTRUNC != 0,
            credentials: meta.credentials,
        })
    }
}

/// The relevant content of a control message.
#[derive(Debug, PartialEq, Eq)]
enum ControlMessage {
    Credentials(SenderCredentials),
    Pidfd(RawFd),
    Descriptor(RawFd),
}

/// Takes over the content of the messages in a control buffer: the credentials, the pidfd, and all other
/// descriptors, which go to `unwanted`.
///
/// # Safety
///
/// The kernel wrote these messages for this process, and they have not been taken over before: the
/// descriptors in them belong to the caller alone.
unsafe fn take_over(
    control: &[u8],
    mut unwanted: impl FnMut(OwnedFd),
) -> (Option<SenderCredentials>, Option<OwnedFd>) {
    let mut credentials = None;
    let mut pidfd = None;
    ControlMessages(control).for_each(|message| match message {
        ControlMessage::Credentials(sender) => credentials = Some(sender),
        ControlMessage::Pidfd(fd) => {
            // SAFETY: by contract this descriptor is the caller's alone.
            let earlier = pidfd.replace(unsafe { OwnedFd::from_raw_fd(fd) });
            earlier.into_iter().for_each(&mut unwanted);
        }
        ControlMessage::Descriptor(fd) => {
            // SAFETY: by contract this descriptor is the caller's alone.
            unwanted(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    });
    (credentials, pidfd)
}

/// Walks a control buffer: messages of a header (`usize` length, `i32` level, `i32` type) and data,
/// padded to the word size. Anything that does not fit ends the walk.
struct ControlMessages<'a>(&'a [u8]);

const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 8;

impl<'a> ControlMessages<'a> {
    /// `(level, type, data)` of the next message.
    fn next_raw(&mut self) -> Option<(i32, i32, &'a [u8])> {
        let rest = self.0;
        let len = usize::from_ne_bytes(rest.get(..WORD)?.try_into().ok()?);
        let level = read_i32(rest, WORD)?;
        let kind = read_i32(rest, WORD + 4)?;
        let data = rest.get(HEADER..len)?;
        self.0 = rest.get(len.next_multiple_of(WORD)..).unwrap_or(&[]);
        Some((level, kind, data))
    }

    fn for_each(mut self, mut take: impl FnMut(ControlMessage)) {
        while let Some((level, kind, data)) = self.next_raw() {
            if level != libc::SOL_SOCKET {
                continue;
            }
            match kind {
                libc::SCM_CREDENTIALS => {
                    if let (Some(pid), Some(uid), Some(gid)) =
                        (read_i32(data, 0), read_i32(data, 4), read_i32(data, 8))
                    {
                        take(ControlMessage::Credentials(SenderCredentials {
                            pid: u32::try_from(pid).unwrap_or(0),
                            uid: uid.cast_unsigned(),
                            gid: gid.cast_unsigned(),
                        }));
                    }
                }
                // Where the kernel could not make a descriptor it puts a negative error number.
                SCM_PIDFD => {
                    if let Some(fd) = read_i32(data, 0).filter(|&fd| fd >= 0) {
                        take(ControlMessage::Pidfd(fd));
                    }
                }
                libc::SCM_RIGHTS => {
                    for fd in data.chunks_exact(4).filter_map(|fd| read_i32(fd, 0)) {
                        if fd >= 0 {
                            take(ControlMessage::Descriptor(fd));
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests;
