//! Tests with access to the internals of a session: simulated forks, unreachable targets.

use std::net::UdpSocket;

use varta_vlp::secure::SharedEnvelope;
use varta_vlp::{Frame, Status};

use super::*;

fn receiver() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let addr = socket.local_addr().expect("a bound socket");
    (socket, addr)
}

fn key() -> Key {
    Key::from_bytes([7; 32])
}

fn frame_of(pid: u32) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    Frame::new(Status::Ok, pid, 1, 1, 0).encode(&mut bytes);
    bytes
}

fn own_frame() -> [u8; FRAME_BYTES] {
    frame_of(process::id())
}

/// Prefix and counter of the next envelope.
fn nonce_at(receiver: &UdpSocket) -> ([u8; 8], u32) {
    let mut bytes = [0; 128];
    let length = receiver.recv(&mut bytes).expect("a datagram");
    let envelope = SharedEnvelope::from_datagram(&bytes[..length]).expect("60 bytes");
    envelope.open(&key()).expect("sealed under the key");
    (envelope.prefix(), envelope.counter())
}

/// The broadcast address of every network, which a plain socket must not connect to.
fn forbidden() -> SocketAddr {
    SocketAddr::from(([255, 255, 255, 255], 9))
}

#[test]
fn what_send_returns_is_the_length_of_the_envelope() {
    let (_receiver, addr) = receiver();
    let mut shared = SecureUdpTransport::connect(addr, key()).expect("a session");
    let mut own = SecureUdpTransport::connect_with_master(addr, key()).expect("a session");
    assert_eq!(shared.send(&own_frame()).expect("sent"), 60);
    assert_eq!(own.send(&own_frame()).expect("sent"), 64);
}

#[test]
fn a_reconnect_that_fails_leaves_the_session_as_it_was() {
    let (receiver, addr) = receiver();
    let mut transport = SecureUdpTransport::connect(addr, key()).expect("a session");
    transport.send(&own_frame()).expect("sent");
    transport.target = forbidden();
    transport.reconnect().expect_err("a forbidden address");
    transport.send(&own_frame()).expect("sent");

    let (before, after) = (nonce_at(&receiver), nonce_at(&receiver));
    assert_eq!(after, (before.0, 2));
}

#[test]
fn another_process_gets_another_session_without_asking() {
    let (receiver, addr) = receiver();
    let mut transport = SecureUdpTransport::connect(addr, key()).expect("a session");
    transport.send(&own_frame()).expect("sent");
    transport.generation += 1;
    transport.send(&own_frame()).expect("sent");
    transport.send(&own_frame()).expect("sent");

    let [before, first, second] = [(); 3].map(|()| nonce_at(&receiver));
    assert_ne!(before.0, first.0);
    assert_eq!((first.1, second), (1, (first.0, 2)));
}

#[test]
fn another_process_that_gets_no_session_sends_nothing() {
    let (receiver, addr) = receiver();
    let mut transport = SecureUdpTransport::connect(addr, key()).expect("a session");
    transport.generation += 1;
    transport.target = forbidden();
    for _ in 0..2 {
        transport.send(&own_frame()).expect_err("no session");
    }
    transport.target = addr;
    transport.send(&own_frame()).expect("sent");
    assert_eq!(nonce_at(&receiver).1, 1);
    receiver.set_nonblocking(true).expect("a live socket");
    receiver.recv(&mut [0]).expect_err("one datagram was sent");
}

#[test]
fn a_process_without_an_own_key_sends_nothing_and_says_why() {
    let (receiver, addr) = receiver();
    let own = AgentKey::derive(&key(), process::id());
    let mut transport = SecureUdpTransport::connect_with_agent_key(addr, own).expect("a session");
    transport.generation += 1;
    transport.key = SessionKey::Agent {
        pid: process::id() + 1,
    };
    let error = transport.send(&own_frame()).expect_err("no key");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("varta key derive"), "{error}");
    receiver.set_nonblocking(true).expect("a live socket");
    receiver.recv(&mut [0]).expect_err("nothing was sent");
}

#[test]
fn a_frame_of_another_process_is_refused_under_an_own_key() {
    let (_receiver, addr) = receiver();
    let mut transport = SecureUdpTransport::connect_with_master(addr, key()).expect("a session");
    let error = transport
        .send(&frame_of(process::id() + 1))
        .expect_err("another pid");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}
