//! The panic hook and a real observer. Hooks belong to the process, so these tests take turns.

#![cfg(all(unix, feature = "panic-handler"))]

use std::panic::set_hook;
use std::sync::atomic::{AtomicU64, Ordering};

use varta_client::{
    BeatOutcome, NONCE_TERMINAL, Status, Varta, install_panic_handler, install_panic_handler_lazy,
};
use varta_sys::counting_alloc::CountingAllocator;

mod common;
#[path = "common/panics.rs"]
mod panics;
use common::{Observer, TempDir};
use panics::{allocations_of_hook, panic_in_a_thread, take_turn};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn a_panic_sends_one_terminal_frame() {
    let _turn = take_turn();
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    install_panic_handler(directory.socket_path()).expect("an observer");

    panic_in_a_thread();

    let frames: Vec<_> = observer.frames().collect();
    assert_eq!(frames.len(), 1);
    let frame = frames[0];
    assert!(frame.is_terminal());
    assert_eq!(
        (frame.status, frame.nonce),
        (Status::Critical, NONCE_TERMINAL)
    );
    assert_eq!((frame.pid, frame.payload), (std::process::id(), 0));
    assert!(frame.timestamp >= 1);
}

#[test]
fn the_frame_reaches_an_observer_that_was_restarted_after_installation() {
    let _turn = take_turn();
    let directory = TempDir::new();
    let before = Observer::start(&directory.socket_path());
    install_panic_handler(directory.socket_path()).expect("an observer");
    drop(before);
    let after = Observer::start(&directory.socket_path());

    panic_in_a_thread();

    assert!(after.frames().any(|frame| frame.is_terminal()));
}

#[test]
fn the_lazy_hook_reaches_an_observer_that_started_later() {
    let _turn = take_turn();
    let directory = TempDir::new();
    install_panic_handler_lazy(directory.socket_path());
    let observer = Observer::start(&directory.socket_path());

    panic_in_a_thread();

    assert!(observer.frames().any(|frame| frame.is_terminal()));
}

#[test]
fn without_an_observer_the_strict_hook_is_refused_and_the_old_one_stays() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let _turn = take_turn();
    let directory = TempDir::new();
    set_hook(Box::new(|_| {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }));

    let error = install_panic_handler(directory.socket_path()).expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);

    panic_in_a_thread();
    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
}

#[test]
fn the_hook_that_was_there_before_is_called_too() {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let _turn = take_turn();
    let directory = TempDir::new();
    set_hook(Box::new(|_| {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }));
    install_panic_handler_lazy(directory.socket_path());

    panic_in_a_thread();

    assert_eq!(CALLS.load(Ordering::Relaxed), 1);
}

#[test]
fn of_two_installed_hooks_only_the_last_sends() {
    let _turn = take_turn();
    let (first, second) = (TempDir::new(), TempDir::new());
    let first_observer = Observer::start(&first.socket_path());
    let second_observer = Observer::start(&second.socket_path());
    install_panic_handler(first.socket_path()).expect("an observer");
    install_panic_handler(second.socket_path()).expect("an observer");

    panic_in_a_thread();

    assert_eq!(first_observer.frames().count(), 0);
    assert_eq!(second_observer.frames().count(), 1);
}

#[test]
fn terminal_timestamps_increase_across_panics_and_hooks() {
    let _turn = take_turn();
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    for _ in 0..2 {
        install_panic_handler(directory.socket_path()).expect("an observer");
        panic_in_a_thread();
        panic_in_a_thread();
    }
    let stamps: Vec<u64> = observer.frames().map(|frame| frame.timestamp).collect();
    assert_eq!(stamps.len(), 4);
    assert!(
        stamps.windows(2).all(|pair| pair[0] < pair[1]),
        "{stamps:?}"
    );
}

#[test]
fn a_terminal_frame_is_not_older_than_the_beats_before_it() {
    let _turn = take_turn();
    let directory = TempDir::new();
    let observer = Observer::start(&directory.socket_path());
    let mut agent = Varta::connect(directory.socket_path()).expect("an observer");
    install_panic_handler(directory.socket_path()).expect("an observer");
    assert_eq!(agent.beat(Status::Ok, 0), BeatOutcome::Sent);

    panic_in_a_thread();

    let frames: Vec<_> = observer.frames().collect();
    assert!(frames[0].timestamp <= frames[1].timestamp, "{frames:?}");
}

#[test]
fn the_hook_allocates_nothing_even_when_it_needs_a_fresh_socket() {
    let _turn = take_turn();
    let directory = TempDir::new();
    let stale = Observer::start(&directory.socket_path());
    let allocations = allocations_of_hook(|| {
        install_panic_handler(directory.socket_path()).expect("an observer");
    });
    drop(stale);
    let observer = Observer::start(&directory.socket_path());

    panic_in_a_thread();

    assert!(observer.frames().any(|frame| frame.is_terminal()));
    assert_eq!(allocations(), 0);
}
