//! Panics on purpose, one test at a time.

use std::panic::{set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use varta_sys::counting_alloc::allocations_on_this_thread;

/// Waits for the other tests and starts from a hook that does nothing.
pub(crate) fn take_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    set_hook(Box::new(|_| ()));
    turn
}

pub(crate) fn panic_in_a_thread() {
    let panicked = std::thread::spawn(|| panic!("on purpose")).join().is_err();
    assert!(panicked);
}

/// Installs a hook with `install`, and returns how often it allocated when it last fired.
pub(crate) fn allocations_of_hook(install: impl FnOnce()) -> impl Fn() -> u64 {
    static BEFORE: AtomicU64 = AtomicU64::new(0);
    static AFTER: AtomicU64 = AtomicU64::new(u64::MAX);

    // The code that runs directly after the hook, and directly before it.
    set_hook(Box::new(|_| {
        AFTER.store(allocations_on_this_thread(), Ordering::Relaxed);
    }));
    install();
    let installed = take_hook();
    set_hook(Box::new(move |info| {
        BEFORE.store(allocations_on_this_thread(), Ordering::Relaxed);
        installed(info);
    }));
    || AFTER.load(Ordering::Relaxed) - BEFORE.load(Ordering::Relaxed)
}
