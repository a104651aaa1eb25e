//! Discards datagrams whose descriptors make the closing thread sleep. In a program of its own: timers and signals
//! belong to the process.

#![cfg(all(feature = "observer", target_os = "linux"))]

use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use varta_sys::discard::{Discarder, Interrupter, Progress};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Far longer than that.
const LINGER: Duration = Duration::from_secs(3600);

/// A socket that sleeps when it is closed, and the one that it waits for.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    set_socket_recv_buffer_size(&listener, 1024).unwrap();
    let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.write(&[0; 65_536]).is_ok() {}
    set_socket_linger(&socket, Some(LINGER)).unwrap();
    (socket, peer)
}

fn send_with(sender: &UnixDatagram, attached: BorrowedFd<'_>) {
    let mut room = [const { std::mem::MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    let attached = [attached];
    assert!(control.push(SendAncillaryMessage::ScmRights(&attached)));
    let data = [IoSlice::new(b"x")];
    sendmsg(sender, &data, &mut control, SendFlags::empty()).unwrap();
}

/// A thread that discards the next datagram, its progress, and its result.
fn discard(socket: OwnedFd, hurry: bool) -> (Progress, Receiver<std::io::Result<()>>) {
    let mut discarder = Discarder::new();
    discarder.begin();
    let progress = discarder.progress();
    let (ended, end) = channel();
    std::thread::spawn(move || {
        let hurry = hurry.then(|| Interrupter::new().unwrap());
        let _ = ended.send(discarder.discard(socket.as_fd(), hurry.as_ref()));
    });
    (progress, end)
}

fn wait_until_taken(progress: &Progress) {
    let until = Instant::now() + PATIENCE;
    while progress.outcome().is_none() {
        assert!(Instant::now() < until, "it is still in the queue");
        std::thread::yield_now();
    }
    progress.outcome().unwrap().unwrap();
}

#[test]
fn a_datagram_has_left_the_queue_although_letting_go_of_it_hangs() {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    let (socket, _peer) = lingering();
    send_with(&sender, socket.as_fd());
    drop(socket);
    sender.send(b"next").unwrap();
    let (progress, end) = discard(receiver.try_clone().unwrap().into(), false);
    wait_until_taken(&progress);
    let mut bytes = [0; 8];
    assert_eq!(receiver.recv(&mut bytes).unwrap(), 4, "the next one");
    assert!(end.try_recv().is_err(), "it sleeps");
    // It ends with this process.
}

#[test]
fn a_sleep_is_cut_short_however_deep_what_sleeps_was_hidden() {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    let mut peers = Vec::new();
    for depth in 0..3 {
        let (socket, peer) = lingering();
        peers.push(peer);
        let mut attached = OwnedFd::from(socket);
        for _ in 0..depth {
            let (inner, outer) = UnixDatagram::pair().unwrap();
            send_with(&inner, attached.as_fd());
            // Another socket that sleeps on the way there.
            let (socket, peer) = lingering();
            peers.push(peer);
            send_with(&inner, socket.as_fd());
            attached = outer.into();
        }
        send_with(&sender, attached.as_fd());
        drop(attached);
        let (progress, end) = discard(receiver.try_clone().unwrap().into(), true);
        wait_until_taken(&progress);
        end.recv_timeout(PATIENCE).expect("it was let go").unwrap();
    }
}

#[test]
fn what_cannot_be_taken_is_an_error_for_both() {
    let (_sender, receiver) = UnixDatagram::pair().unwrap();
    let (progress, end) = discard(receiver.into(), true);
    let error = end.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    let seen = progress.outcome().unwrap().unwrap_err();
    assert_eq!(seen.raw_os_error(), error.raw_os_error());
}

#[test]
fn progress_is_about_the_datagram_that_was_begun_last() {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    let mut discarder = Discarder::new();
    let progress = discarder.progress();
    for _ in 0..2 {
        sender.send(b"x").unwrap();
        discarder.begin();
        assert!(progress.outcome().is_none());
        discarder.discard(receiver.as_fd(), None).unwrap();
        assert!(matches!(progress.outcome(), Some(Ok(()))));
    }
}
