//! A handle and a real receiver on a UDP socket, in clear.

#![cfg(feature = "udp")]

use std::net::UdpSocket;

use varta_client::{BeatOutcome, DropReason, Frame, Status, Varta};

#[path = "common/network.rs"]
mod network;
use network::Receiver;

fn frame(datagram: &[u8]) -> Frame {
    Frame::decode(datagram.try_into().expect("32 bytes")).expect("a legal frame")
}

#[test]
fn the_receiver_gets_what_was_beaten() {
    let receiver = Receiver::start();
    let mut agent = Varta::connect_udp(receiver.addr()).expect("a socket");

    assert_eq!(agent.beat(Status::Degraded, 0x0001_0002), BeatOutcome::Sent);
    assert_eq!(agent.leave(), BeatOutcome::Sent);

    let beat = frame(&receiver.datagram());
    assert_eq!((beat.status, beat.payload), (Status::Degraded, 0x0001_0002));
    assert_eq!((beat.pid, beat.nonce), (std::process::id(), 1));
    assert!(frame(&receiver.datagram()).is_goodbye());
}

#[test]
fn an_ipv6_receiver_is_reached_as_well() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return; // No IPv6 on this machine.
    }
    let receiver = Receiver::start_at("[::1]:0".parse().expect("an address"));
    let mut agent = Varta::connect_udp(receiver.addr()).expect("a socket");
    assert_eq!(agent.beat(Status::Ok, 6), BeatOutcome::Sent);
    assert_eq!(frame(&receiver.datagram()).payload, 6);
}

#[test]
fn every_refusal_of_a_port_without_a_listener_but_the_first_is_returned() {
    let receiver = Receiver::start();
    let mut agent = Varta::connect_udp(receiver.addr()).expect("a socket");
    drop(receiver);

    let outcomes: Vec<BeatOutcome> = (0..6).map(|_| agent.beat(Status::Ok, 0)).collect();

    // A beat is sent; the next one returns its refusal and is sent again; the one after that returns the
    // second refusal.
    let (sent, dropped) = (
        BeatOutcome::Sent,
        BeatOutcome::Dropped(DropReason::NoObserver),
    );
    assert_eq!(outcomes, [sent, sent, dropped, sent, sent, dropped]);
}

#[test]
fn after_a_restart_of_the_observer_no_beat_is_lost_to_the_refusal_before_it() {
    let receiver = Receiver::start();
    let addr = receiver.addr();
    let mut agent = Varta::connect_udp(addr).expect("a socket");
    drop(receiver);
    assert_eq!(agent.beat(Status::Ok, 1), BeatOutcome::Sent);
    let restarted = Receiver::start_at(addr);

    assert_eq!(agent.beat(Status::Ok, 2), BeatOutcome::Sent);

    assert_eq!(frame(&restarted.datagram()).payload, 2);
}

#[test]
fn a_reconnected_handle_goes_on_with_its_series() {
    let receiver = Receiver::start();
    let mut agent = Varta::connect_udp(receiver.addr()).expect("a socket");
    let _ = agent.beat(Status::Ok, 0);
    agent.reconnect().expect("a socket");
    let _ = agent.beat(Status::Ok, 0);
    assert_eq!(frame(&receiver.datagram()).nonce, 1);
    assert_eq!(frame(&receiver.datagram()).nonce, 2);
}
