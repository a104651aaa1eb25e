//! No beat allocates, with any outcome.

#![cfg(unix)]

use std::io;

use varta_client::{BeatOutcome, BeatTransport, DropReason, Status, Varta};
use varta_sys::counting_alloc::{CountingAllocator, allocations_on_this_thread};

mod common;
#[cfg(feature = "udp")]
#[path = "common/network.rs"]
mod network;
use common::{Observer, TempDir};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BEATS: usize = 10_000;

/// Beats many times, calling `after_each`, and asserts the same outcome each time and no allocation.
#[track_caller]
fn assert_beats_without_allocating<T: BeatTransport>(
    agent: &mut Varta<T>,
    status: Status,
    expected: fn(BeatOutcome) -> bool,
    mut after_each: impl FnMut(),
) {
    let before = allocations_on_this_thread();
    for _ in 0..BEATS {
        let outcome = agent.beat(status, 1);
        assert!(expected(outcome), "{outcome}");
        after_each();
    }
    assert_eq!(allocations_on_this_thread() - before, 0);
}

fn is_sent(outcome: BeatOutcome) -> bool {
    outcome == BeatOutcome::Sent
}

fn is_dropped(outcome: BeatOutcome) -> bool {
    matches!(
        outcome,
        BeatOutcome::Dropped(DropReason::NoObserver | DropReason::PeerGone)
    )
}

fn is_full(outcome: BeatOutcome) -> bool {
    outcome == BeatOutcome::Dropped(DropReason::KernelQueueFull)
}

fn is_failed(outcome: BeatOutcome) -> bool {
    matches!(outcome, BeatOutcome::Failed(_))
}

/// A handle whose observer has gone.
fn orphan(directory: &TempDir) -> Varta {
    let observer = Observer::start(&directory.socket_path());
    let agent = Varta::connect(directory.socket_path()).expect("an observer");
    drop(observer);
    agent
}

#[test]
fn sent_beats_do_not_allocate() {
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    assert_beats_without_allocating(&mut agent, Status::Ok, is_sent, || {
        observer.frames().next().expect("a frame");
    });
}

#[test]
fn goodbyes_do_not_allocate() {
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    let mut leave = |expected: fn(BeatOutcome) -> bool| {
        let before = allocations_on_this_thread();
        let outcome = agent.leave();
        assert_eq!(allocations_on_this_thread() - before, 0);
        assert!(expected(outcome), "{outcome}");
    };
    leave(is_sent);
    assert!(observer.frames().all(|frame| frame.is_goodbye()));
    drop(observer);
    leave(is_dropped);
}

#[test]
fn beats_dropped_for_a_full_queue_do_not_allocate() {
    let directory = TempDir::new();
    let _observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    while is_sent(agent.beat(Status::Ok, 0)) {}
    assert_beats_without_allocating(&mut agent, Status::Ok, is_full, || ());
}

#[test]
fn beats_dropped_for_want_of_an_observer_do_not_allocate() {
    let directory = TempDir::new();
    let mut agent = orphan(&directory);
    agent.set_reconnect_after(0);
    assert_beats_without_allocating(&mut agent, Status::Ok, is_dropped, || ());
}

#[test]
fn backing_off_does_not_allocate() {
    let directory = TempDir::new();
    let mut agent = orphan(&directory);
    assert_beats_without_allocating(&mut agent, Status::Ok, is_dropped, || ());
}

#[test]
fn reconnects_that_fail_do_not_allocate() {
    let directory = TempDir::new();
    let mut agent = orphan(&directory);
    agent.set_reconnect_after(1);
    assert_beats_without_allocating(&mut agent, Status::Ok, is_dropped, || ());
}

#[test]
fn reconnects_that_succeed_do_not_allocate() {
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    let before = allocations_on_this_thread();
    for _ in 0..BEATS {
        agent.reconnect().expect("an observer");
    }
    assert_eq!(allocations_on_this_thread() - before, 0);
    drop(observer);
}

#[test]
fn failed_beats_do_not_allocate() {
    struct Forbidden;
    impl BeatTransport for Forbidden {
        fn send(&mut self, _frame: &[u8; 32]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(1))
        }
        fn reconnect(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut agent = Varta::from_transport(Forbidden);
    assert_beats_without_allocating(&mut agent, Status::Critical, is_failed, || ());
}

#[test]
fn refused_beats_do_not_allocate() {
    let mut agent = Varta::open("/nonexistent/varta.sock");
    assert_beats_without_allocating(&mut agent, Status::Stall, is_failed, || ());
}

#[cfg(feature = "udp")]
#[test]
fn beats_over_udp_do_not_allocate() {
    let receiver = network::Receiver::start();
    let mut agent = Varta::connect_udp(receiver.addr()).expect("a socket");
    assert_beats_without_allocating(&mut agent, Status::Ok, is_sent, || {
        assert_eq!(receiver.datagram().len(), 32);
    });
}

#[cfg(feature = "secure-udp")]
#[test]
fn encrypted_beats_do_not_allocate() {
    use varta_client::{AgentKey, Key};

    let key = || Key::from_bytes([7; 32]);
    let receiver = network::Receiver::start();
    let addr = receiver.addr();
    let own = AgentKey::derive(&key(), std::process::id());
    for (agent, length) in [
        (Varta::connect_secure_udp(addr, key()), 60),
        (Varta::connect_secure_udp_with_master(addr, key()), 64),
        (Varta::connect_secure_udp_with_agent_key(addr, own), 64),
    ] {
        let mut agent = agent.expect("a session");
        assert_beats_without_allocating(&mut agent, Status::Ok, is_sent, || {
            assert_eq!(receiver.datagram().len(), length);
        });
    }
}

#[cfg(feature = "secure-udp")]
#[test]
fn encrypted_beats_that_are_refused_and_sent_again_do_not_allocate() {
    let receiver = network::Receiver::start();
    let key = varta_client::Key::from_bytes([7; 32]);
    let mut agent = Varta::connect_secure_udp(receiver.addr(), key).expect("a session");
    drop(receiver);
    let sent_or_dropped = |outcome| is_sent(outcome) || is_dropped(outcome);
    assert_beats_without_allocating(&mut agent, Status::Ok, sent_or_dropped, || ());
}
