//! A handle and a real receiver on a UDP socket, encrypted. What a fork does is in `fork.rs`.

#![cfg(all(unix, feature = "secure-udp"))]

use std::io;
use std::net::{SocketAddr, UdpSocket};

use varta_client::{AgentKey, BeatOutcome, SecureUdpTransport, Status, Varta};

#[path = "common/network.rs"]
mod network;
#[path = "common/sealed.rs"]
mod sealed;
use network::Receiver;
use sealed::{Opened, key, open_by_master, open_shared};

fn shared(addr: SocketAddr) -> Varta<SecureUdpTransport> {
    Varta::connect_secure_udp(addr, key()).expect("a session")
}

fn own_agent_key() -> AgentKey {
    AgentKey::derive(&key(), std::process::id())
}

#[test]
fn beats_of_every_constructor_open_at_the_other_end() {
    type Connect = fn(SocketAddr) -> io::Result<Varta<SecureUdpTransport>>;
    type Open = fn(&[u8]) -> Opened;
    let kinds: [(Connect, Open); 3] = [
        (|addr| Varta::connect_secure_udp(addr, key()), open_shared),
        (
            |addr| Varta::connect_secure_udp_with_master(addr, key()),
            open_by_master,
        ),
        (
            |addr| Varta::connect_secure_udp_with_agent_key(addr, own_agent_key()),
            open_by_master,
        ),
    ];
    for (connect, open) in kinds {
        let receiver = Receiver::start();
        let mut agent = connect(receiver.addr()).expect("a session");
        assert_eq!(agent.beat(Status::Degraded, 77), BeatOutcome::Sent);
        assert_eq!(agent.leave(), BeatOutcome::Sent);

        let beat = open(&receiver.datagram()).frame;
        assert_eq!((beat.status, beat.payload), (Status::Degraded, 77));
        assert_eq!((beat.pid, beat.nonce), (std::process::id(), 1));
        assert!(open(&receiver.datagram()).frame.is_goodbye());
    }
}

#[test]
fn counters_start_at_one_and_grow_by_one() {
    let receiver = Receiver::start();
    let mut agent = shared(receiver.addr());
    for counter in 1..=100 {
        assert_eq!(agent.beat(Status::Ok, 0), BeatOutcome::Sent);
        assert_eq!(open_shared(&receiver.datagram()).counter, counter);
    }
}

#[test]
fn attempts_that_failed_use_up_their_counters() {
    let receiver = Receiver::start();
    let addr = receiver.addr();
    let mut agent = shared(addr);
    drop(receiver);
    // One in three returns a refusal and is sent again: 12 attempts, none of which is received.
    let lost = [(); 9].map(|()| agent.beat(Status::Ok, 0));
    assert!(lost.iter().any(|outcome| *outcome != BeatOutcome::Sent));
    let receiver = Receiver::start_at(addr);

    for counter in 13..16 {
        assert_eq!(agent.beat(Status::Ok, 0), BeatOutcome::Sent);
        assert_eq!(open_shared(&receiver.datagram()).counter, counter);
    }
}

#[test]
fn a_reconnected_handle_has_another_prefix_and_goes_on_with_its_series() {
    let receiver = Receiver::start();
    let mut agent = shared(receiver.addr());
    let _ = agent.beat(Status::Ok, 0);
    agent.reconnect().expect("a session");
    let _ = agent.beat(Status::Ok, 0);

    let [before, after] = [(); 2].map(|()| open_shared(&receiver.datagram()));
    assert_ne!(before.prefix, after.prefix);
    assert_eq!((before.counter, after.counter), (1, 1));
    assert_eq!((before.frame.nonce, after.frame.nonce), (1, 2));
}

#[test]
fn two_handles_have_two_prefixes() {
    let receiver = Receiver::start();
    for mut agent in [shared(receiver.addr()), shared(receiver.addr())] {
        let _ = agent.beat(Status::Ok, 0);
    }
    let [first, second] = [(); 2].map(|()| open_shared(&receiver.datagram()));
    assert_ne!(first.prefix, second.prefix);
}

#[test]
fn an_ipv6_receiver_is_reached_as_well() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return; // No IPv6 on this machine.
    }
    let receiver = Receiver::start_at("[::1]:0".parse().expect("an address"));
    let mut agent = shared(receiver.addr());
    assert_eq!(agent.beat(Status::Ok, 6), BeatOutcome::Sent);
    assert_eq!(open_shared(&receiver.datagram()).frame.payload, 6);
}

#[test]
fn the_key_of_another_process_is_refused_with_the_way_to_the_right_one() {
    let receiver = Receiver::start();
    let foreign = AgentKey::derive(&key(), std::process::id() + 1);
    let error = Varta::connect_secure_udp_with_agent_key(receiver.addr(), foreign)
        .expect_err("it is for another pid");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    let text = error.to_string();
    for part in [
        format!("pid {},", std::process::id() + 1),
        format!("varta key derive --pid {}", std::process::id()),
    ] {
        assert!(text.contains(&part), "{text}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let receiver = Receiver::start();
    let agent = Varta::connect_secure_udp_with_master(receiver.addr(), key()).expect("a session");
    let text = format!("{agent:?}");
    assert!(text.contains("Key(hidden)"), "{text}");
    // The bytes of the key in decimal and in hexadecimal.
    assert!(
        !text.contains("66, 66, 66") && !text.contains("4242424242"),
        "{text}"
    );
}
