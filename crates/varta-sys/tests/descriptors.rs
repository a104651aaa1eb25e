//! The descriptors that a receive installs, keeps and closes. The table belongs to the process, so these
//! tests take turns.

#![cfg(all(feature = "observer", target_os = "linux"))]

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use varta_sys::receive::{DatagramBatch, Head, Peeked, pass_pidfd, peek, refuse_descriptors};

/// The most descriptors that a sender can attach.
const MOST_ATTACHED: usize = 253;

fn take_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A socket that passes credentials, and one that sends to it.
fn pair() -> (UnixDatagram, UnixDatagram) {
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    set_socket_passcred(&receiver, true).unwrap();
    (sender, receiver)
}

/// As [`pair`], with pidfds; `None` where the kernel does not pass them.
fn pair_with_pidfds() -> Option<(UnixDatagram, UnixDatagram)> {
    let (sender, receiver) = pair();
    match pass_pidfd(receiver.as_fd(), true) {
        Ok(()) => Some((sender, receiver)),
        Err(error) => {
            println!("skipped: this kernel passes no pidfds: {error}");
            None
        }
    }
}

fn send_with(sender: &UnixDatagram, attached: &[BorrowedFd<'_>]) {
    try_send_with(sender, attached).unwrap();
}

fn try_send_with(sender: &UnixDatagram, attached: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
    let mut room =
        [const { std::mem::MaybeUninit::uninit() }; rustix::cmsg_space!(ScmRights(MOST_ATTACHED))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    assert!(control.push(SendAncillaryMessage::ScmRights(attached)));
    let data = [IoSlice::new(b"x")];
    sendmsg(sender, &data, &mut control, SendFlags::empty())
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec::default())).unwrap() == 1
}

/// The pid behind a pidfd; -1 once its process was reaped.
fn pid_of(pidfd: &OwnedFd) -> i64 {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap();
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.expect("a pidfd").trim().parse().unwrap()
}

fn head(receiver: &UnixDatagram) -> Head {
    match peek(receiver.as_fd(), &mut []).unwrap() {
        Peeked::Datagram(head) => head,
        Peeked::Empty => panic!("nothing is queued"),
    }
}

#[test]
fn peeking_installs_none_of_the_descriptors_that_are_attached_and_says_that_there_are_some() {
    let _turn = take_turn();
    let (sender, receiver) = pair();
    for attached in [1, 3, MOST_ATTACHED] {
        send_with(&sender, &vec![sender.as_fd(); attached]);
        let before = open_descriptors();
        for _ in 0..2 {
            let head = head(&receiver);
            assert!(head.credentials.is_some() && head.has_descriptors);
            assert_eq!(open_descriptors(), before);
        }
        receiver.recv(&mut []).unwrap();
    }
}

#[test]
fn peeking_without_credentials_closes_what_it_was_given() {
    let _turn = take_turn();
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    for attached in [1, 8] {
        send_with(&sender, &vec![sender.as_fd(); attached]);
        let before = open_descriptors();
        let head = head(&receiver);
        assert!(head.credentials.is_none() && head.has_descriptors);
        assert_eq!(open_descriptors(), before);
        receiver.recv(&mut []).unwrap();
    }
}

#[test]
fn sending_descriptors_to_a_socket_that_refuses_them_fails_and_nothing_arrives() {
    let _turn = take_turn();
    let (sender, receiver) = pair();
    if let Err(error) = refuse_descriptors(receiver.as_fd()) {
        println!("skipped: this kernel cannot refuse descriptors: {error}");
        return;
    }
    let sent = try_send_with(&sender, &[sender.as_fd()]);
    assert_eq!(sent, Err(rustix::io::Errno::PERM));
    assert_eq!(peek(receiver.as_fd(), &mut []).unwrap(), Peeked::Empty);
    sender.send(b"x").unwrap();
    assert!(!head(&receiver).has_descriptors);
}

#[test]
fn what_is_received_in_spite_of_its_descriptors_leaves_none_open() {
    let _turn = take_turn();
    let (sender, receiver) = pair();
    send_with(&sender, &[sender.as_fd(); MOST_ATTACHED]);
    let before = open_descriptors();
    let mut batch = DatagramBatch::new(1, 8);
    assert_eq!(batch.receive(receiver.as_fd(), 1).unwrap(), 1);
    let datagram = batch.datagram(0).unwrap();
    assert!(datagram.control_truncated && datagram.credentials.is_some());
    assert_eq!(open_descriptors(), before);
}

#[test]
fn the_pidfd_of_the_sender_comes_along() {
    let _turn = take_turn();
    let Some((sender, receiver)) = pair_with_pidfds() else {
        return;
    };
    for _ in 0..2 {
        sender.send(b"y").unwrap();
    }
    let mut batch = DatagramBatch::new(2, 8);
    assert_eq!(batch.receive(receiver.as_fd(), 2).unwrap(), 2);
    for i in 0..2 {
        let pidfd = batch.take_pidfd(i).expect("a pidfd");
        assert_eq!(pid_of(&pidfd), i64::from(std::process::id()));
        assert!(!has_ended(&pidfd));
        assert!(batch.take_pidfd(i).is_none(), "taken already");
        assert!(!batch.datagram(i).unwrap().control_truncated);
    }
    assert!(batch.take_pidfd(2).is_none());
}

#[test]
fn pidfds_come_only_while_asked_for() {
    let _turn = take_turn();
    let Some((sender, receiver)) = pair_with_pidfds() else {
        return;
    };
    pass_pidfd(receiver.as_fd(), false).unwrap();
    let mut batch = DatagramBatch::new(1, 8);
    sender.send(b"x").unwrap();
    batch.receive(receiver.as_fd(), 1).unwrap();
    assert!(batch.take_pidfd(0).is_none());
    // The moment of the receive decides.
    sender.send(b"x").unwrap();
    pass_pidfd(receiver.as_fd(), true).unwrap();
    batch.receive(receiver.as_fd(), 1).unwrap();
    assert!(batch.take_pidfd(0).is_some());
}

#[test]
fn pidfds_that_were_not_taken_are_closed_with_the_next_receive_or_the_batch() {
    let _turn = take_turn();
    let Some((sender, receiver)) = pair_with_pidfds() else {
        return;
    };
    let mut batch = DatagramBatch::new(4, 8);
    let before = open_descriptors();
    for _ in 0..3 {
        sender.send(b"x").unwrap();
    }
    batch.receive(receiver.as_fd(), 4).unwrap();
    assert_eq!(open_descriptors(), before + 3);
    let taken = batch.take_pidfd(1);
    batch.receive(receiver.as_fd(), 4).unwrap();
    assert_eq!(open_descriptors(), before + 1);
    drop(taken);
    sender.send(b"x").unwrap();
    batch.receive(receiver.as_fd(), 4).unwrap();
    drop(batch);
    assert_eq!(open_descriptors(), before);
}

#[test]
fn a_full_descriptor_table_means_no_pidfd_and_the_datagram_all_the_same() {
    let _turn = take_turn();
    let Some((sender, receiver)) = pair_with_pidfds() else {
        return;
    };
    sender.send(b"x").unwrap();
    let mut batch = DatagramBatch::new(1, 8);
    let limits = getrlimit(Resource::Nofile);
    let full = Rlimit {
        current: Some(0),
        ..limits
    };
    setrlimit(Resource::Nofile, full).unwrap();
    let received = batch.receive(receiver.as_fd(), 1);
    setrlimit(Resource::Nofile, limits).unwrap();
    assert_eq!(received.unwrap(), 1);
    assert_eq!(batch.datagram(0).unwrap().bytes, b"x");
    assert!(batch.datagram(0).unwrap().credentials.is_some());
    assert!(batch.take_pidfd(0).is_none());
}

/// A process whose standard output is `socket`: it sends one datagram, then waits for its input to
/// end.
fn sender_process(socket: UnixDatagram) -> std::process::Child {
    Command::new("sh")
        .args(["-c", "echo x; read line"])
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(socket))
        .spawn()
        .unwrap()
}

#[test]
fn the_pidfd_of_a_sender_that_was_reaped_is_ended_or_missing_and_never_leaks() {
    let _turn = take_turn();
    let Some((sender, receiver)) = pair_with_pidfds() else {
        return;
    };
    let before = open_descriptors() - 1;
    let mut child = sender_process(sender);
    let pid = child.id();
    drop(child.stdin.take());
    child.wait().unwrap();

    let mut batch = DatagramBatch::new(1, 8);
    assert_eq!(batch.receive(receiver.as_fd(), 1).unwrap(), 1);
    assert_eq!(batch.datagram(0).unwrap().credentials.unwrap().pid, pid);
    match batch.take_pidfd(0) {
        Some(pidfd) => {
            assert!(has_ended(&pidfd));
            assert_eq!(pid_of(&pidfd), -1);
        }
        None => println!("this kernel gives no pidfd of a reaped process"),
    }
    assert_eq!(open_descriptors(), before);
}
