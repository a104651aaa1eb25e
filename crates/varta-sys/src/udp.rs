//! Batched receive of UDP datagrams with the address they came from.
//!
//! One `recvmmsg` fills up to a batch of datagrams without waiting. The buffers are made once; receiving
//! allocates nothing. The address is unverified: any sender of packets can write any other. This module does
//! not interpret the datagrams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::socket_option;

/// Size of the longer of the two kinds of address. The kernel truncates longer ones.
const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();

/// Linux 4.12. libc does not define it yet.
const SO_MEMINFO: libc::c_int = 55;

/// How many datagrams the kernel has dropped since the socket was made because its receive queue was full.
/// Those with a wrong checksum, and those a socket filter refused, count too. Wraps around.
///
/// # Errors
///
/// The error of the kernel: `ENOPROTOOPT` before Linux 4.12, `ENOTSOCK` if the descriptor is no socket.
pub fn drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
    let numbers: [u32; DROPS + 1] = socket_option::get(socket, SO_MEMINFO)?;
    Ok(numbers[DROPS])
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct FromNetwork<'a> {
    /// The bytes, cut to the buffer.
    pub bytes: &'a [u8],
    /// The datagram was longer than the buffer (`MSG_TRUNC`).
    pub truncated: bool,
    /// The source address in the packet. An IPv4 sender has an IPv4 address on a dual-stack socket too; flow
    /// labels are left out. `0.0.0.0:0` if the socket is of another family than these two.
    pub source: SocketAddr,
}

#[repr(C, align(8))]
#[derive(Clone)]
struct Name([u8; NAME_BYTES]);

/// Reusable buffers for a batch of datagrams.
pub struct UdpBatch {
    /// The pointers in them are set before each call, and are invalid after it.
    headers: Box<[libc::mmsghdr]>,
    iovecs: Box<[libc::iovec]>,
    data: Box<[u8]>,
    data_bytes: usize,
    names: Box<[Name]>,
    received: usize,
}

// SAFETY: pointers in the headers and the vectors are followed only by the call that they were set for.
unsafe impl Send for UdpBatch {}

impl std::fmt::Debug for UdpBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpBatch")
            .field("batch", &self.headers.len())
            .field("data_bytes", &self.data_bytes)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl UdpBatch {
    /// Buffers for `batch` datagrams of up to `data_bytes` each. Choose `data_bytes` larger than the longest
    /// valid datagram, so that a longer one can be detected.
    ///
    /// # Panics
    ///
    /// If `data_bytes` is 0.
    pub fn new(batch: usize, data_bytes: usize) -> Self {
        assert!(data_bytes > 0, "no room for any byte");
        // SAFETY: both are plain data for which all zeroes is a valid value; `mmsghdr` is not built field by field
        // because musl has private padding in it.
        let (header, iovec) = unsafe { std::mem::zeroed::<(libc::mmsghdr, libc::iovec)>() };
        Self {
            headers: vec![header; batch].into_boxed_slice(),
            iovecs: vec![iovec; batch].into_boxed_slice(),
            data: vec![0; batch * data_bytes].into_boxed_slice(),
            data_bytes,
            names: vec![Name([0; NAME_BYTES]); batch].into_boxed_slice(),
            received: 0,
        }
    }

    /// Receives what is queued, up to a batch, without waiting. 0 means nothing was queued; fewer than
    /// a batch means the queue was empty for a moment. `EINTR` is retried.
    ///
    /// # Errors
    ///
    /// The error of the kernel. On a connected socket it may concern a datagram sent earlier, and the next
    /// call continues.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.aim();
        self.received = 0;
        self.received = loop {
            // SAFETY: there are as many headers as stated; each points to one vector of one data buffer and to one
            // name buffer of the stated length, all owned by `self` and borrowed mutably for the call; the timeout
            // may be null.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as _,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if count >= 0 {
                break count as usize;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => break 0,
                _ => return Err(error),
            }
        };
        Ok(self.received)
    }

    /// Points each header to its buffers, with their full size.
    fn aim(&mut self) {
        let data = self.data.chunks_exact_mut(self.data_bytes);
        let buffers = data.zip(&mut self.names);
        let headers = self.headers.iter_mut().zip(&mut self.iovecs);
        for ((header, iovec), (data, name)) in headers.zip(buffers) {
            iovec.iov_base = data.as_mut_ptr().cast();
            iovec.iov_len = data.len();
            let header = &mut header.msg_hdr;
            header.msg_iov = iovec;
            header.msg_iovlen = 1;
            header.msg_name = name.0.as_mut_ptr().cast();
            header.msg_namelen = NAME_BYTES as _;
        }
    }

    /// Datagram `i` of the last [`Self::receive`], counted from 0, oldest first.
    pub fn datagram(&self, i: usize) -> Option<FromNetwork<'_>> {
        const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

        let header = self.headers[..self.received].get(i)?;
        let start = i * self.data_bytes;
        let len = (header.msg_len as usize).min(self.data_bytes);
        let name_len = (header.msg_hdr.msg_namelen as usize).min(NAME_BYTES);
        Some(FromNetwork {
            bytes: &self.data[start..start + len],
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            source: address(&self.names[i].0[..name_len]).unwrap_or(NOWHERE),
        })
    }
}

/// The address in a `sockaddr_in` (family, port, 4 bytes of address) or a `sockaddr_in6` (family,
/// port, 4 bytes of flow label, 16 of address, 4 of scope). Ports and addresses are big-endian, family
/// and scope as the machine has them. `None` if it is neither, or cut short.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes_at(name, 0)?);
    let port = u16::from_be_bytes(bytes_at(name, 2)?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = bytes_at(name, 4)?;
            Some(SocketAddr::from((ip, port)))
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(bytes_at::<16>(name, 8)?);
            let scope = u32::from_ne_bytes(bytes_at(name, 24)?);
            Some(match ip.to_canonical() {
                IpAddr::V4(ip) => SocketAddr::from((ip, port)),
                IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)),
            })
        }
        _ => None,
    }
}

fn bytes_at<const COUNT: usize>(bytes: &[u8], at: usize) -> Option<[u8; COUNT]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    const V4: &str = "127.0.0.1:0";
    const V6: &str = "[::1]:0";

    /// A received datagram with its address.
    type Seen = (Vec<u8>, bool, SocketAddr);

    fn seen(batch: &UdpBatch) -> Vec<Seen> {
        (0..)
            .map_while(|i| batch.datagram(i))
            .map(|datagram| (datagram.bytes.to_vec(), datagram.truncated, datagram.source))
            .collect()
    }

    /// Receives `count` datagrams, in as many batches as needed.
    fn batches(batch: &mut UdpBatch, socket: &UdpSocket, count: usize) -> Vec<Vec<Seen>> {
        let mut batches = Vec::new();
        let mut received = 0;
        while received < count {
            poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap();
            received += batch.receive(socket.as_fd()).unwrap();
            batches.push(seen(batch));
        }
        batches
    }

    fn receive(batch: &mut UdpBatch, socket: &UdpSocket, count: usize) -> Vec<Seen> {
        batches(batch, socket, count).concat()
    }

    fn assert_sources_are_told_apart(loopback: &str) {
        let receiver = UdpSocket::bind(loopback).unwrap();
        let to = receiver.local_addr().unwrap();
        let senders = [(); 3].map(|()| UdpSocket::bind(loopback).unwrap());
        for (i, sender) in (0..).zip(&senders) {
            sender.send_to(&[i; 4], to).unwrap();
        }
        let expected: Vec<Seen> = (0..)
            .zip(&senders)
            .map(|(i, sender)| (vec![i; 4], false, sender.local_addr().unwrap()))
            .collect();
        assert_eq!(receive(&mut UdpBatch::new(8, 40), &receiver, 3), expected);
    }

    fn has_ipv6() -> bool {
        let has = UdpSocket::bind(V6).is_ok();
        if !has {
            println!("skipped: this machine has no IPv6");
        }
        has
    }

    #[test]
    fn every_datagram_comes_with_its_source() {
        assert_sources_are_told_apart(V4);
    }

    #[test]
    fn every_ipv6_datagram_comes_with_its_source() {
        if has_ipv6() {
            assert_sources_are_told_apart(V6);
        }
    }

    #[test]
    fn a_long_address_after_a_short_one_is_whole() {
        if !has_ipv6() {
            return;
        }
        let mut batch = UdpBatch::new(2, 40);
        for loopback in [V4, V6] {
            let receiver = UdpSocket::bind(loopback).unwrap();
            let sender = UdpSocket::bind(loopback).unwrap();
            sender
                .send_to(b"x", receiver.local_addr().unwrap())
                .unwrap();
            let source = sender.local_addr().unwrap();
            assert_eq!(
                receive(&mut batch, &receiver, 1),
                [(b"x".to_vec(), false, source)]
            );
        }
    }

    #[test]
    fn an_ipv4_sender_has_an_ipv4_address_on_a_dual_stack_socket() {
        if !has_ipv6() {
            return;
        }
        let receiver = UdpSocket::bind("[::]:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let sender = UdpSocket::bind(V4).unwrap();
        if sender.send_to(b"x", ("127.0.0.1", port)).is_err()
            || rustix::net::sockopt::ipv6_v6only(&receiver).unwrap()
        {
            println!("skipped: IPv6 sockets of this machine take no IPv4");
            return;
        }
        let source = sender.local_addr().unwrap();
        assert!(source.is_ipv4());
        assert_eq!(
            receive(&mut UdpBatch::new(1, 40), &receiver, 1),
            [(b"x".to_vec(), false, source)]
        );
    }

    #[test]
    fn an_over_long_datagram_is_cut_and_said_to_be() {
        let receiver = UdpSocket::bind(V4).unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind(V4).unwrap();
        for len in [41, 40, 0, 3000] {
            sender.send_to(&vec![7; len], to).unwrap();
        }
        let lengths: Vec<_> = receive(&mut UdpBatch::new(4, 40), &receiver, 4)
            .into_iter()
            .map(|(bytes, truncated, _)| (bytes.len(), truncated))
            .collect();
        assert_eq!(lengths, [(40, true), (40, false), (0, false), (40, true)]);
    }

    #[test]
    fn no_more_than_a_batch_is_received_at_once() {
        let receiver = UdpSocket::bind(V4).unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind(V4).unwrap();
        for i in 0..5 {
            sender.send_to(&[i], to).unwrap();
        }
        let batches = batches(&mut UdpBatch::new(2, 40), &receiver, 5);
        assert!(batches.iter().all(|batch| batch.len() <= 2), "{batches:?}");
        let bytes: Vec<u8> = batches.concat().iter().map(|seen| seen.0[0]).collect();
        assert_eq!(bytes, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn an_empty_queue_ends_at_once_and_the_last_batch_is_gone() {
        let receiver = UdpSocket::bind(V4).unwrap();
        let to = receiver.local_addr().unwrap();
        let mut batch = UdpBatch::new(2, 40);
        UdpSocket::bind(V4).unwrap().send_to(b"x", to).unwrap();
        assert_eq!(receive(&mut batch, &receiver, 1).len(), 1);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 0);
        assert!(batch.datagram(0).is_none());
    }

    #[test]
    fn a_batch_may_move_to_another_thread() {
        let receiver = UdpSocket::bind(V4).unwrap();
        let to = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind(V4).unwrap();
        let mut batch = UdpBatch::new(2, 40);
        sender.send_to(b"x", to).unwrap();
        receive(&mut batch, &receiver, 1);
        sender.send_to(b"y", to).unwrap();
        let received = std::thread::spawn(move || receive(&mut batch, &receiver, 1));
        assert_eq!(received.join().unwrap()[0].0, b"y");
    }

    #[test]
    fn a_sender_of_another_family_comes_from_nowhere() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        sender.send(b"x").unwrap();
        let mut batch = UdpBatch::new(1, 40);
        assert_eq!(batch.receive(receiver.as_fd()).unwrap(), 1);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        assert_eq!(seen(&batch), [(b"x".to_vec(), false, nowhere)]);
    }

    #[test]
    fn an_address_cut_short_is_none() {
        let v6 = [
            &(libc::AF_INET6 as u16).to_ne_bytes()[..],
            &[0x12, 0x34],
            &[0; 4],
            &Ipv6Addr::LOCALHOST.octets(),
            &9_u32.to_ne_bytes(),
        ]
        .concat();
        let whole = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0x1234, 0, 9);
        assert_eq!(address(&v6), Some(whole.into()));
        assert!((0..v6.len()).all(|len| address(&v6[..len]).is_none()));
    }

    #[test]
    fn receiving_on_what_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(UdpBatch::new(1, 40).receive(file.as_fd()).is_err());
        assert!(drops(file.as_fd()).is_err());
    }

    #[test]
    fn what_a_full_queue_drops_is_counted() {
        const SENT: usize = 200;
        let receiver = UdpSocket::bind(V4).unwrap();
        let to = receiver.local_addr().unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&receiver, 4096).unwrap();
        assert_eq!(drops(receiver.as_fd()).unwrap(), 0);
        let sender = UdpSocket::bind(V4).unwrap();
        for _ in 0..SENT {
            sender.send_to(&[7; 1000], to).unwrap();
        }
        let mut batch = UdpBatch::new(8, 40);
        let mut received = 0;
        let dropped = loop {
            received += batch.receive(receiver.as_fd()).unwrap();
            let dropped = drops(receiver.as_fd()).unwrap() as usize;
            if received + dropped >= SENT {
                break dropped;
            }
            std::thread::yield_now();
        };
        assert!(dropped > 0);
        assert_eq!(received + dropped, SENT);
    }
}
