//! A global allocator that counts, to prove that a path does not allocate.
//!
//! For tests and benchmarks: it serves every request from [`System`] and adds one to a counter of the
//! requesting thread. It does not count bytes and does not count releases.
//!
//! ```
//! use varta_sys::counting_alloc::{CountingAllocator, allocations_on_this_thread};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! let before = allocations_on_this_thread();
//! drop(Box::new(7));
//! assert_eq!(allocations_on_this_thread() - before, 1);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Constant and without a destructor: reading it neither allocates nor fails.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// How often the current thread has allocated or reallocated memory since its start. Stays 0 unless
/// [`CountingAllocator`] is the global allocator.
pub fn allocations_on_this_thread() -> u64 {
    ALLOCATIONS.get()
}

/// Counts, then lets [`System`] do the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

fn count() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every method passes its arguments to `System` unchanged and returns its result, so `System` keeps
// the contract; counting never allocates, unwinds, or touches the memory.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's guarantees are those that `System` requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's guarantees are those that `System` requires.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's guarantees are those that `System` requires, and `memory` came from it.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's guarantees are those that `System` requires, and `memory` came from it.
        unsafe { System.dealloc(memory, layout) }
    }
}
