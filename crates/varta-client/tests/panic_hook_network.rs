//! The panic hooks over UDP and a real receiver. What a fork does is in `fork.rs`.

#![cfg(all(unix, feature = "panic-handler", feature = "secure-udp"))]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::panic::set_hook;
use std::sync::atomic::{AtomicU64, Ordering};

use varta_client::{
    AgentKey, Frame, PanicInstallError, Status, Varta, install_panic_handler,
    install_panic_handler_secure_udp, install_panic_handler_secure_udp_with_agent_key,
    install_panic_handler_secure_udp_with_master, install_panic_handler_udp,
};
use varta_sys::counting_alloc::CountingAllocator;

mod common;
#[path = "common/network.rs"]
mod network;
#[path = "common/panics.rs"]
mod panics;
#[path = "common/sealed.rs"]
mod sealed;
use common::{Observer, TempDir};
use network::Receiver;
use panics::{allocations_of_hook, panic_in_a_thread, take_turn};
use sealed::{Opened, key, open_by_master, open_shared};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

type Install = fn(SocketAddr);
type Open = fn(&[u8]) -> Opened;

/// Each hook that encrypts, and how an observer reads it.
const SECURE: [(Install, Open); 3] = [
    (
        |addr| install_panic_handler_secure_udp(addr, key()).expect("a hook"),
        open_shared,
    ),
    (
        |addr| install_panic_handler_secure_udp_with_master(addr, key()).expect("a hook"),
        open_by_master,
    ),
    (
        |addr| install_panic_handler_secure_udp_with_agent_key(addr, agent_key(0)).expect("a hook"),
        open_by_master,
    ),
];

/// The key of the process with this offset from our pid.
fn agent_key(beyond: u32) -> AgentKey {
    AgentKey::derive(&key(), std::process::id() + beyond)
}

fn in_clear(datagram: &[u8]) -> Frame {
    Frame::decode(datagram.try_into().expect("32 bytes")).expect("a legal frame")
}

#[track_caller]
fn assert_is_terminal_of_this_process(frame: &Frame) {
    assert!(frame.is_terminal());
    assert_eq!((frame.status, frame.payload), (Status::Critical, 0));
    assert_eq!(frame.pid, std::process::id());
    assert!(frame.timestamp >= 1);
}

#[test]
fn a_panic_sends_a_terminal_frame_in_clear() {
    let _turn = take_turn();
    let receiver = Receiver::start();
    install_panic_handler_udp(receiver.addr()).expect("a hook");
    panic_in_a_thread();
    assert_is_terminal_of_this_process(&in_clear(&receiver.datagram()));
}

#[test]
fn panics_send_terminal_frames_encrypted_under_a_nonce_each() {
    let _turn = take_turn();
    for (install, open) in SECURE {
        let receiver = Receiver::start();
        install(receiver.addr());
        let mut nonces = HashSet::new();
        for _ in 0..3 {
            panic_in_a_thread();
            let opened = open(&receiver.datagram());
            assert_is_terminal_of_this_process(&opened.frame);
            assert!(nonces.insert((opened.prefix, opened.counter)));
        }
    }
}

#[test]
fn beats_and_terminal_frames_under_one_key_have_prefixes_of_their_own() {
    let _turn = take_turn();
    let receiver = Receiver::start();
    let mut agent = Varta::connect_secure_udp(receiver.addr(), key()).expect("a session");
    install_panic_handler_secure_udp(receiver.addr(), key()).expect("a hook");
    let _ = agent.beat(Status::Ok, 0);
    panic_in_a_thread();

    let [beat, terminal] = [(); 2].map(|()| open_shared(&receiver.datagram()));
    assert!(terminal.frame.is_terminal());
    assert_ne!(beat.prefix, terminal.prefix);
    assert!(beat.frame.timestamp <= terminal.frame.timestamp);
}

#[test]
fn a_restarted_observer_hears_of_the_panic_after_the_one_that_was_lost() {
    let _turn = take_turn();
    let receiver = Receiver::start();
    let addr = receiver.addr();
    install_panic_handler_secure_udp(addr, key()).expect("a hook");
    drop(receiver);
    panic_in_a_thread();
    let restarted = Receiver::start_at(addr);

    panic_in_a_thread();

    assert_is_terminal_of_this_process(&open_shared(&restarted.datagram()).frame);
}

#[test]
fn the_last_one_installed_sends_whatever_the_transport() {
    let _turn = take_turn();
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let receiver = Receiver::start();
    install_panic_handler_udp(receiver.addr()).expect("a hook");
    install_panic_handler(directory.socket_path()).expect("an observer");
    panic_in_a_thread();
    assert_eq!(observer.frames().count(), 1);

    install_panic_handler_secure_udp(receiver.addr(), key()).expect("a hook");
    panic_in_a_thread();
    // The first datagram that the receiver gets is encrypted.
    assert!(open_shared(&receiver.datagram()).frame.is_terminal());
    assert_eq!(observer.frames().count(), 0);
}

#[test]
fn what_cannot_be_installed_leaves_the_old_hook_and_says_why() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let _turn = take_turn();
    let receiver = Receiver::start();
    set_hook(Box::new(|_| {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }));

    // The broadcast address of every network, which a plain socket must not connect to.
    let forbidden = SocketAddr::from(([255, 255, 255, 255], 9));
    let error = install_panic_handler_secure_udp(forbidden, key()).expect_err("forbidden");
    assert!(matches!(error, PanicInstallError::SocketBind(_)), "{error}");
    install_panic_handler_udp(forbidden).expect_err("forbidden");

    let foreign = agent_key(1);
    let error = install_panic_handler_secure_udp_with_agent_key(receiver.addr(), foreign)
        .expect_err("the key of another process");
    assert!(matches!(error, PanicInstallError::ForeignKey(_)));
    assert!(error.to_string().contains("varta key derive"), "{error}");

    panic_in_a_thread();
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
}

#[test]
fn the_hooks_allocate_nothing_even_when_they_send_once_more() {
    let _turn = take_turn();
    let in_clear: Install = |addr| install_panic_handler_udp(addr).expect("a hook");
    let secure = SECURE.map(|(install, _)| install);
    for install in secure.into_iter().chain([in_clear]) {
        let receiver = Receiver::start();
        let addr = receiver.addr();
        let allocations = allocations_of_hook(|| install(addr));
        drop(receiver);
        // The second send returns the refusal of the first.
        for _ in 0..2 {
            panic_in_a_thread();
            assert_eq!(allocations(), 0);
        }
    }
}
