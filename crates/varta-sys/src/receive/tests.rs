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
fn a_negative_pid_is_no_process() {
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
