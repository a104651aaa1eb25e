//! Sequence counters: one writer and any number of readers share some atomic words without a lock.
//!
//! The counter is odd while the writer is inside, so a reader that saw the same even number before and after
//! its copy has a consistent one. A writer that died inside leaves an odd number: readers give up after a
//! bounded wait, and the next write repairs it.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Tries of a reader between two yields of its core.
const SPINS: u32 = 100;

/// Tries of a reader in all. A write takes about 10 ns, unless the writer loses its core inside: a writer that is
/// inside for longer than this must have died.
const TRIES_MAX: u32 = 200_000;

/// A consistent copy. `Err` holds an inconsistent one, if the writer does not finish.
pub(crate) fn read<T>(sequence: &AtomicU64, mut copy: impl FnMut() -> T) -> Result<T, T> {
    let mut tries = 0;
    loop {
        let before = sequence.load(Ordering::Acquire);
        let copied = copy();
        fence(Ordering::Acquire);
        if !is_inside(before) && sequence.load(Ordering::Relaxed) == before {
            return Ok(copied);
        }
        tries += 1;
        if tries == TRIES_MAX {
            return Err(copied);
        }
        match tries % SPINS {
            0 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

/// Runs the stores of the one writer.
pub(crate) fn write(sequence: &AtomicU64, stores: impl FnOnce()) {
    // Odd already if a writer died inside.
    let inside = sequence.load(Ordering::Relaxed) | 1;
    sequence.store(inside, Ordering::Relaxed);
    fence(Ordering::Release);
    stores();
    sequence.store(inside.wrapping_add(1), Ordering::Release);
}

/// Whether a writer is inside, or died there.
pub(crate) const fn is_inside(sequence: u64) -> bool {
    sequence % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_died_inside_hangs_no_reader_and_the_next_write_mends_it() {
        let (sequence, word) = (AtomicU64::new(7), AtomicU64::new(1));
        let read = || read(&sequence, || word.load(Ordering::Relaxed));
        assert_eq!(read(), Err(1));
        write(&sequence, || word.store(2, Ordering::Relaxed));
        assert_eq!(read(), Ok(2));
        assert_eq!(sequence.load(Ordering::Relaxed), 8);
    }
}
