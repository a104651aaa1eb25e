//! Batched receive of datagrams with the sender's credentials.
//!
//! One `recvmmsg` fills up to a batch of datagrams without waiting. The buffers are made once;
//! receiving allocates nothing. There is room for credentials and for the pidfd that the kernel attaches where
//! [`pass_pidfd`] asked for it, not for descriptors of a sender: the kernel drops those that find no room, and
//! dropping the last reference to a file takes as long as its owner has arranged (a socket that lingers). So a
//! caller that may not sleep asks the kernel for no descriptors ([`refuse_descriptors`]), or looks at each
//! datagram before it takes it ([`peek`]) and leaves those that bring descriptors to [`crate::discard`]. What the
//! datagrams mean is not judged here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::socket_option;

/// Room for what the kernel attaches to one datagram: credentials (32 bytes) and a pidfd (24).
const CONTROL_BYTES: usize = CREDENTIALS_BYTES + PIDFD_BYTES;

/// Room for credentials and nothing else.
const CREDENTIALS_BYTES: usize = (HEADER + 12).next_multiple_of(WORD);

/// Room for a pidfd.
const PIDFD_BYTES: usize = (HEADER + 4).next_multiple_of(WORD);

/// `SCM_PIDFD` of Linux 6.5, which libc does not name yet.
const SCM_PIDFD: i32 = 4;

/// `SO_PASSRIGHTS` of Linux 6.16, which libc does not name yet. The number is that of x86-64, aarch64 and all
/// other architectures with the generic socket options.
const SO_PASSRIGHTS: libc::c_int = 83;

/// The kernel's word about a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderCredentials {
    /// Process id in the receiver's namespace; 0 if it has none there.
    pub pid: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
}

/// What [`peek`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peeked {
    /// Nothing is queued.
    Empty,
    /// A datagram is queued.
    Datagram(Head),
}

/// The datagram that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many of its bytes were copied.
    pub len: usize,
    /// It is longer than that.
    pub truncated: bool,
    /// Its sender; `None` if the socket does not pass credentials.
    pub credentials: Option<SenderCredentials>,
    /// Descriptors are attached to it.
    pub has_descriptors: bool,
}

/// Looks at the datagram that comes next, without waiting and without consuming it. Its bytes are copied as far as
/// there is room for them. `EINTR` is retried.
///
/// On a socket that passes credentials (`SO_PASSCRED`) and no pidfds they take all the room there is, so no
/// descriptor is installed, and the kernel says whether there are any (`MSG_CTRUNC`). The references that it takes
/// and drops meanwhile are not the last ones, since the datagram stays where it is and has its own. Without
/// credentials up to four attached descriptors are installed, and closed again.
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

/// Takes no descriptors from now on: who sends a datagram with descriptors to this socket gets `EPERM`, and nothing
/// arrives. What is queued already stays as it is, and so are sockets that were accepted from this one before.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 6.16.
pub fn refuse_descriptors(socket: BorrowedFd<'_>) -> io::Result<()> {
    socket_option::set(socket, SO_PASSRIGHTS, &0)
}

/// Has the kernel attach a pidfd of its sender to every datagram that is received from now on.
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
    /// Credentials, if the socket passes them and the kernel attached some.
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
    /// The pointers in them are set before each call, and mean nothing after it.
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    data: Box<[u8]>,
    data_bytes: usize,
    control: Box<[Control<CONTROL_BYTES>]>,
    meta: Box<[Meta]>,
    pidfds: Box<[Option<OwnedFd>]>,
    received: usize,
}

// SAFETY: no pointer in the headers and the vectors is followed but by the call that it was set for.
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
    /// Buffers for `batch` datagrams of up to `data_bytes` each. Choose `data_bytes` larger than the
    /// longest datagram worth reading, else a longer one could not be told from it.
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

    /// Forgets the datagrams of the batch. Their pidfds that were not taken are closed.
    pub fn clear(&mut self) {
        self.pidfds[..self.received].fill_with(|| None);
        self.received = 0;
    }

    /// How many datagrams there are.
    pub fn len(&self) -> usize {
        self.received
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// Receives what is queued in place of what the batch held, see [`Self::receive_more`].
    pub fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        self.clear();
        self.receive_more(socket, limit)
    }

    /// Receives what is queued behind what the batch holds, up to `limit` datagrams and until it is full, without
    /// waiting. Returns how many came: 0 means nothing was queued; fewer than there was room for means the queue was
    /// empty for a moment. `EINTR` is retried.
    ///
    /// Descriptors of a sender are dropped by the kernel or closed here, which may take long: the module says how to
    /// keep them away.
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

    /// Has `count` headers from `first` on point to their buffers, with all the room there is.
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

/// What a control message can bring that matters here.
#[derive(Debug, PartialEq, Eq)]
enum ControlMessage {
    Credentials(SenderCredentials),
    Pidfd(RawFd),
    Descriptor(RawFd),
}

/// Takes over what the messages in a control buffer bring: the credentials, the pidfd, and all other
/// descriptors, which go to `unwanted`.
///
/// # Safety
///
/// The kernel wrote these messages for this process, and nobody has taken them over before: the
/// descriptors they name belong to the caller alone.
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
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsFd, IntoRawFd};
    use std::os::unix::net::UnixDatagram;

    const ALL: usize = usize::MAX;

    fn walk(buffer: &[u8]) -> Vec<ControlMessage> {
        let mut found = Vec::new();
        ControlMessages(buffer).for_each(|message| found.push(message));
        found
    }

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        bytes
    }

    fn credentials(pid: i32, uid: u32) -> Vec<u8> {
        let data: Vec<u8> = [pid.to_ne_bytes(), uid.to_ne_bytes(), 7_u32.to_ne_bytes()].concat();
        message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &data)
    }

    fn sender(pid: u32, uid: u32) -> ControlMessage {
        ControlMessage::Credentials(SenderCredentials { pid, uid, gid: 7 })
    }

    #[test]
    fn credentials_are_found_in_any_position() {
        assert_eq!(walk(&credentials(42, 1000)), [sender(42, 1000)]);
        let other = message(libc::SOL_SOCKET, 77, &[1, 2, 3]);
        let both = [other, credentials(42, 1000), vec![0; 16]].concat();
        assert_eq!(walk(&both), [sender(42, 1000)]);
    }

    #[test]
    fn a_malformed_buffer_ends_the_walk() {
        assert_eq!(walk(&[]), []);
        assert_eq!(walk(&[0; 64]), [], "zero length");
        assert_eq!(walk(&credentials(42, 0)[..20]), [], "cut short");
        assert_eq!(
            walk(&message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &[1; 8])),
            []
        );
        assert_eq!(walk(&[0xff; 48]), [], "a length beyond the buffer");
        assert_eq!(
            walk(&message(9, libc::SCM_CREDENTIALS, &[0; 12])),
            [],
            "another level"
        );
    }

    #[test]
    fn a_negative_pid_is_nobody() {
        assert_eq!(walk(&credentials(-1, 5)), [sender(0, 5)]);
    }

    fn descriptors(kind: i32, fds: &[RawFd]) -> Vec<u8> {
        let data: Vec<u8> = fds.iter().flat_map(|fd| fd.to_ne_bytes()).collect();
        message(libc::SOL_SOCKET, kind, &data)
    }

    #[test]
    fn descriptors_of_both_kinds_are_found() {
        let both = [
            descriptors(libc::SCM_RIGHTS, &[3, 4]),
            descriptors(SCM_PIDFD, &[5]),
        ];
        let expected = [
            ControlMessage::Descriptor(3),
            ControlMessage::Descriptor(4),
            ControlMessage::Pidfd(5),
        ];
        assert_eq!(walk(&both.concat()), expected);
    }

    #[test]
    fn an_error_number_is_no_descriptor() {
        assert_eq!(walk(&descriptors(SCM_PIDFD, &[-libc::EMFILE])), []);
        assert_eq!(walk(&descriptors(libc::SCM_RIGHTS, &[-1])), []);
    }

    #[test]
    fn of_two_pidfds_the_last_is_kept_and_the_other_is_unwanted() {
        let fds = [(); 2].map(|()| File::open("/dev/null").unwrap().into_raw_fd());
        let control = fds.map(|fd| descriptors(SCM_PIDFD, &[fd])).concat();
        let mut unwanted = Vec::new();
        // SAFETY: both descriptors were made above and given up for these messages.
        let (_, kept) = unsafe { take_over(&control, |fd| unwanted.push(fd)) };
        assert_eq!(kept.unwrap().as_raw_fd(), fds[1]);
        assert_eq!(unwanted[0].as_raw_fd(), fds[0]);
        assert_eq!(unwanted.len(), 1);
    }

    fn datagrams(batch: &DatagramBatch) -> impl Iterator<Item = Received<'_>> {
        (0..).map_while(|i| batch.datagram(i))
    }

    fn lengths(batch: &DatagramBatch) -> Vec<(usize, bool)> {
        datagrams(batch)
            .map(|d| (d.bytes.len(), d.truncated))
            .collect()
    }

    #[test]
    fn a_batch_holds_what_was_sent_in_order() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut batch = DatagramBatch::new(4, 40);
        assert_eq!(batch.receive(receiver.as_fd(), ALL).unwrap(), 0);
        for len in [32, 0, 41] {
            sender.send(&vec![7; len]).unwrap();
        }
        assert_eq!(batch.receive(receiver.as_fd(), ALL).unwrap(), 3);
        assert_eq!(lengths(&batch), [(32, false), (0, false), (40, true)]);
        assert!(datagrams(&batch).all(|d| d.credentials.is_none()));
        assert_eq!(batch.receive(receiver.as_fd(), ALL).unwrap(), 0);
        assert_eq!(lengths(&batch), [], "the old batch is gone");
    }

    #[test]
    fn more_than_a_batch_is_received_in_turns() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut batch = DatagramBatch::new(2, 40);
        for len in [1, 2, 3] {
            sender.send(&vec![7; len]).unwrap();
        }
        assert_eq!(batch.receive(receiver.as_fd(), ALL).unwrap(), 2);
        assert_eq!(batch.receive(receiver.as_fd(), ALL).unwrap(), 1);
        assert_eq!(lengths(&batch), [(3, false)]);
    }

    #[test]
    fn no_more_is_received_than_asked_for() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut batch = DatagramBatch::new(4, 40);
        for len in [1, 2, 3, 4] {
            sender.send(&vec![7; len]).unwrap();
        }
        assert_eq!(batch.receive(receiver.as_fd(), 1).unwrap(), 1);
        assert_eq!(lengths(&batch), [(1, false)]);
        assert_eq!(batch.receive(receiver.as_fd(), 0).unwrap(), 0);
        assert_eq!(lengths(&batch), []);
        assert_eq!(batch.receive(receiver.as_fd(), 2).unwrap(), 2);
        assert_eq!(lengths(&batch), [(2, false), (3, false)]);
    }

    fn head(receiver: &UnixDatagram, bytes: &mut [u8]) -> Head {
        match peek(receiver.as_fd(), bytes).unwrap() {
            Peeked::Datagram(head) => head,
            Peeked::Empty => panic!("nothing is queued"),
        }
    }

    #[test]
    fn peeking_names_the_sender_and_consumes_nothing() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        assert_eq!(peek(receiver.as_fd(), &mut []).unwrap(), Peeked::Empty);
        sender.send(b"x").unwrap();
        assert_eq!(head(&receiver, &mut []).credentials, None);

        rustix::net::sockopt::set_socket_passcred(&receiver, true).unwrap();
        sender.send(&[]).unwrap();
        let mut batch = DatagramBatch::new(1, 40);
        batch.receive(receiver.as_fd(), 1).unwrap();
        for _ in 0..2 {
            let peeked = head(&receiver, &mut []);
            assert_eq!(peeked.credentials.unwrap().pid, std::process::id());
            assert!(!peeked.has_descriptors);
        }
        assert_eq!(batch.receive(receiver.as_fd(), 1).unwrap(), 1);
        assert_eq!(peek(receiver.as_fd(), &mut []).unwrap(), Peeked::Empty);
    }

    #[test]
    fn peeking_copies_what_there_is_room_for() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        sender.send(b"beat").unwrap();
        for (room, truncated) in [(5, false), (4, false), (3, true), (0, true)] {
            let mut bytes = vec![0; room];
            let head = head(&receiver, &mut bytes);
            assert_eq!((head.len, head.truncated), (room.min(4), truncated));
            assert_eq!(bytes[..head.len], b"beat"[..head.len]);
        }
    }

    #[test]
    fn peeking_at_what_is_no_socket_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        assert!(peek(file.as_fd(), &mut []).is_err());
    }

    #[test]
    fn a_batch_grows_until_it_is_full() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut batch = DatagramBatch::new(3, 40);
        for len in [1, 2, 3, 4] {
            sender.send(&vec![7; len]).unwrap();
        }
        for received in [1, 2] {
            assert_eq!(batch.receive_more(receiver.as_fd(), 1).unwrap(), 1);
            assert_eq!(batch.len(), received);
        }
        assert_eq!(batch.receive_more(receiver.as_fd(), ALL).unwrap(), 1);
        assert_eq!(lengths(&batch), [(1, false), (2, false), (3, false)]);
        assert_eq!(
            batch.receive_more(receiver.as_fd(), ALL).unwrap(),
            0,
            "full"
        );
        assert_eq!(batch.receive(receiver.as_fd(), ALL).unwrap(), 1);
        assert_eq!(lengths(&batch), [(4, false)]);
        batch.clear();
        assert!(batch.is_empty());
    }

    #[test]
    fn a_batch_may_move_to_another_thread_between_two_receives() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut batch = DatagramBatch::new(2, 40);
        sender.send(b"x").unwrap();
        batch.receive(receiver.as_fd(), ALL).unwrap();
        sender.send(b"yy").unwrap();
        let moved = std::thread::spawn(move || {
            batch.receive(receiver.as_fd(), ALL).unwrap();
            lengths(&batch)
        });
        assert_eq!(moved.join().unwrap(), [(2, false)]);
    }

    #[test]
    fn receiving_on_a_closed_kind_of_descriptor_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        assert!(
            DatagramBatch::new(1, 40)
                .receive(file.as_fd(), ALL)
                .is_err()
        );
    }
}
