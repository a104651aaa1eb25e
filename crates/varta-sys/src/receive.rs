//! Batched receive of datagrams with the sender's credentials.
//!
//! One `recvmmsg` fills up to a batch of datagrams without waiting. The buffers are made once;
//! receiving allocates nothing. Descriptors that arrive with a datagram are handed to whoever closes
//! them: nobody asked for them, an open one would let any sender exhaust the table, and closing one
//! can take as long as its sender has arranged (a lingering socket). What the datagrams mean is not
//! judged here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Room for what the kernel may attach to one datagram: credentials (32 bytes), a pidfd (24), and
/// the 253 descriptors a sender may pass at most (1032). With less room the kernel would report
/// truncation for a sender's whim.
const CONTROL_BYTES: usize = 1152;

/// `SCM_PIDFD` of Linux 6.5, which libc does not name yet.
const SCM_PIDFD: i32 = 4;

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
struct Control([u8; CONTROL_BYTES]);

/// Reusable buffers for a batch of datagrams.
///
/// The headers point into the other boxes, which are never resized or replaced.
pub struct DatagramBatch {
    headers: Box<[libc::mmsghdr]>,
    data: Box<[u8]>,
    data_bytes: usize,
    control: Box<[Control]>,
    meta: Box<[Meta]>,
    _iovecs: Box<[libc::iovec]>,
    received: usize,
}

// SAFETY: the pointers in the headers lead into boxes that move with the struct and that nothing else
// refers to, so another thread may take all of them over at once.
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
        let mut data = vec![0; batch * data_bytes].into_boxed_slice();
        let mut control = vec![Control([0; CONTROL_BYTES]); batch].into_boxed_slice();
        let mut iovecs: Box<[libc::iovec]> = data
            .chunks_exact_mut(data_bytes)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: chunk.len(),
            })
            .collect();
        let headers = iovecs
            .iter_mut()
            .zip(control.iter_mut())
            .map(|(iovec, control)| {
                // SAFETY: `mmsghdr` is plain data for which all zeroes is a valid value; it is not
                // built field by field because musl has private padding in it.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = iovec;
                header.msg_hdr.msg_iovlen = 1;
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = CONTROL_BYTES as _;
                header
            })
            .collect();
        let nothing = Meta {
            len: 0,
            flags: 0,
            credentials: None,
        };
        Self {
            headers,
            data,
            data_bytes,
            control,
            meta: vec![nothing; batch].into_boxed_slice(),
            _iovecs: iovecs,
            received: 0,
        }
    }

    /// Receives what is queued, up to a batch, without waiting. 0 means nothing was queued; fewer
    /// than a batch means the queue was empty for a moment. `EINTR` is retried. Every descriptor that
    /// came along is given to `unwanted`.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        mut unwanted: impl FnMut(OwnedFd),
    ) -> io::Result<usize> {
        for header in self.headers.iter_mut().take(self.received + 1) {
            // The kernel shortened these to what it delivered last time; without a reset the next
            // datagram would find less room and be reported as truncated.
            header.msg_hdr.msg_controllen = CONTROL_BYTES as _;
            header.msg_hdr.msg_flags = 0;
        }
        self.received = 0;
        let count = loop {
            // SAFETY: each header points to one iovec and one control buffer of the stated length,
            // all owned by `self`, at fixed addresses, and borrowed mutably for the call; the
            // timeout may be null.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as _,
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
        for i in 0..count {
            let header = &self.headers[i];
            #[allow(clippy::unnecessary_cast, reason = "32 bits wide on musl")]
            let control_len = (header.msg_hdr.msg_controllen as usize).min(CONTROL_BYTES);
            let mut credentials = None;
            let messages = ControlMessages(&self.control[i].0[..control_len]);
            messages.for_each(|message| match message {
                ControlMessage::Credentials(sender) => credentials = Some(sender),
                ControlMessage::Descriptor(fd) => {
                    // SAFETY: the kernel has just installed this descriptor for us and nothing else
                    // knows its number, so we own it.
                    unwanted(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            });
            self.meta[i] = Meta {
                len: (header.msg_len as usize).min(self.data_bytes),
                flags: header.msg_hdr.msg_flags,
                credentials,
            };
        }
        self.received = count;
        Ok(count)
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
    Descriptor(RawFd),
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
                libc::SCM_RIGHTS | SCM_PIDFD => {
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
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

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

    #[test]
    fn descriptors_of_both_kinds_are_found() {
        let rights = message(
            libc::SOL_SOCKET,
            libc::SCM_RIGHTS,
            &[3, 0, 0, 0, 4, 0, 0, 0],
        );
        let pidfd = message(libc::SOL_SOCKET, SCM_PIDFD, &5_i32.to_ne_bytes());
        let found = walk(&[rights, pidfd].concat());
        assert_eq!(found, [3, 4, 5].map(ControlMessage::Descriptor));
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
        assert_eq!(batch.receive(receiver.as_fd(), drop).unwrap(), 0);
        for len in [32, 0, 41] {
            sender.send(&vec![7; len]).unwrap();
        }
        assert_eq!(batch.receive(receiver.as_fd(), drop).unwrap(), 3);
        assert_eq!(lengths(&batch), [(32, false), (0, false), (40, true)]);
        assert!(datagrams(&batch).all(|d| d.credentials.is_none()));
        assert_eq!(batch.receive(receiver.as_fd(), drop).unwrap(), 0);
        assert_eq!(lengths(&batch), [], "the old batch is gone");
    }

    #[test]
    fn more_than_a_batch_is_received_in_turns() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        let mut batch = DatagramBatch::new(2, 40);
        for len in [1, 2, 3] {
            sender.send(&vec![7; len]).unwrap();
        }
        assert_eq!(batch.receive(receiver.as_fd(), drop).unwrap(), 2);
        assert_eq!(batch.receive(receiver.as_fd(), drop).unwrap(), 1);
        assert_eq!(lengths(&batch), [(3, false)]);
    }

    #[test]
    fn receiving_on_a_closed_kind_of_descriptor_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(
            DatagramBatch::new(1, 40)
                .receive(file.as_fd(), drop)
                .is_err()
        );
    }
}
