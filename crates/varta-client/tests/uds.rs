//! A handle and a real observer on a Unix datagram socket.

#![cfg(unix)]

use std::io;
use std::time::{Duration, Instant};

use varta_client::{BeatOutcome, DropReason, Status, Varta};

mod common;
use common::{Observer, TempDir};

const NO_OBSERVER: BeatOutcome = BeatOutcome::Dropped(DropReason::NoObserver);
const QUEUE_FULL: BeatOutcome = BeatOutcome::Dropped(DropReason::KernelQueueFull);

fn beat(agent: &mut Varta) -> BeatOutcome {
    agent.beat(Status::Ok, 0)
}

#[test]
fn the_observer_receives_what_was_beaten() {
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");

    assert_eq!(agent.beat(Status::Degraded, 0x0001_0002), BeatOutcome::Sent);

    let frame = observer.frames().next().expect("a frame");
    assert_eq!(
        (frame.status, frame.payload),
        (Status::Degraded, 0x0001_0002)
    );
    assert_eq!((frame.pid, frame.nonce), (std::process::id(), 1));
}

#[test]
fn nonces_count_up_from_one_and_time_never_runs_back() {
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");

    let mut last_timestamp = 0;
    for nonce in 1..=200 {
        assert_eq!(beat(&mut agent), BeatOutcome::Sent);
        let frame = observer.frames().next().expect("a frame");
        assert_eq!(frame.nonce, nonce);
        assert!(frame.timestamp >= last_timestamp);
        last_timestamp = frame.timestamp;
    }
    assert_eq!(agent.clock_regressions(), 0);
}

#[test]
fn connecting_needs_an_observer() {
    let directory = TempDir::new();
    let error = Varta::connect(directory.socket_path()).expect_err("nobody is there");
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_stale_socket_file_is_no_observer() {
    let directory = TempDir::new();
    drop(Observer::start(&directory.socket_path()));
    let error = Varta::connect(directory.socket_path()).expect_err("nobody is there");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_agent_that_starts_first_is_heard_once_the_observer_is_up() {
    let directory = TempDir::new();
    let mut agent = Varta::open(directory.socket_path());
    assert_eq!(beat(&mut agent), NO_OBSERVER);

    let observer = Observer::start(&directory.socket_path());
    let give_up = Instant::now() + Duration::from_secs(10);
    while beat(&mut agent) != BeatOutcome::Sent {
        assert!(Instant::now() < give_up, "never reconnected");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(observer.frames().next().expect("a frame").nonce > 1);
}

#[test]
fn the_first_beat_of_an_open_handle_looks_for_the_observer_again() {
    let directory = TempDir::new();
    let mut agent = Varta::open(directory.socket_path());
    let observer = Observer::start(&directory.socket_path());
    assert_eq!(beat(&mut agent), BeatOutcome::Sent);
    assert_eq!(observer.frames().next().expect("a frame").nonce, 1);
}

#[test]
fn an_impossible_path_drops_beats_and_tells_why_when_asked() {
    let mut agent = Varta::open("x".repeat(1000));
    assert_eq!(beat(&mut agent), NO_OBSERVER);
    let error = agent.reconnect().expect_err("no such address");
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn no_beat_is_lost_over_a_restart_of_the_observer() {
    let directory = TempDir::new();
    let before = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    assert_eq!(beat(&mut agent), BeatOutcome::Sent);
    drop(before);

    let after = Observer::start(&directory.socket_path());
    assert_eq!(beat(&mut agent), BeatOutcome::Sent);
    assert_eq!(beat(&mut agent), BeatOutcome::Sent);
    let nonces: Vec<u64> = after.frames().map(|frame| frame.nonce).collect();
    assert_eq!(nonces, [2, 3]);
}

#[test]
fn without_reconnecting_a_lost_observer_stays_lost() {
    let directory = TempDir::new();
    let before = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    agent.set_reconnect_after(0);
    drop(before);

    assert_eq!(beat(&mut agent), NO_OBSERVER);
    let _after = Observer::start(&directory.socket_path());
    for _ in 0..100 {
        assert!(matches!(beat(&mut agent), BeatOutcome::Dropped(_)));
    }

    agent.reconnect().expect("an observer");
    assert_eq!(beat(&mut agent), BeatOutcome::Sent);
}

#[test]
fn an_observer_that_does_not_read_costs_beats_but_no_time_and_leaves_a_gap() {
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");

    let mut sent = 0;
    while beat(&mut agent) == BeatOutcome::Sent {
        sent += 1;
        assert!(sent < 1_000_000, "the queue has no end");
    }
    assert_eq!(beat(&mut agent), QUEUE_FULL);
    let before: Vec<u64> = observer.frames().map(|frame| frame.nonce).collect();
    assert_eq!(before, (1..=sent).collect::<Vec<u64>>());

    assert_eq!(beat(&mut agent), BeatOutcome::Sent);
    assert_eq!(observer.frames().next().expect("a frame").nonce, sent + 3);
}

#[test]
fn a_handle_may_move_to_another_thread() {
    fn assert_send<T: Send + 'static>() {}
    assert_send::<Varta>();
}
