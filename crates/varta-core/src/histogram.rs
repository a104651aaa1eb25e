//! Distributions of durations, as counts per bucket: one writer, any readers, no lock.
//!
//! Each histogram has a sequence counter, so that a reader gets sum and buckets of the same moment. Bounds
//! are fixed; which histograms there are is declared in [`crate::counters`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::seqlock;

/// Bounds of a histogram at most; one bucket more holds what is beyond the last.
pub const BOUNDS_MAX: usize = 14;

/// A distribution that is being written.
#[derive(Debug)]
pub struct Histogram {
    bounds_ns: &'static [u64],
    sequence: AtomicU64,
    sum_ns: AtomicU64,
    buckets: [AtomicU64; BOUNDS_MAX + 1],
}

/// What a histogram held at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// Upper bounds of the buckets, nanoseconds, inclusive, ascending.
    pub bounds_ns: &'static [u64],
    /// How many durations fell into each bucket; the last counted one holds those beyond the last bound.
    counts: [u64; BOUNDS_MAX + 1],
    /// Of all durations, nanoseconds, saturating.
    pub sum_ns: u64,
}

impl Histogram {
    /// Empty, with these bounds, ascending; of more than [`BOUNDS_MAX`] the rest is left out.
    pub fn new(bounds_ns: &'static [u64]) -> Self {
        Self {
            bounds_ns: &bounds_ns[..bounds_ns.len().min(BOUNDS_MAX)],
            sequence: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Records a duration. Only the one writing thread may call this.
    pub fn observe(&self, duration_ns: u64) {
        let bucket = self.bounds_ns.partition_point(|bound| *bound < duration_ns);
        seqlock::write(&self.sequence, || {
            add(&self.buckets[bucket], 1);
            add(&self.sum_ns, duration_ns);
        });
    }

    /// All of it, as of one moment.
    pub fn read(&self) -> Distribution {
        let read = seqlock::read(&self.sequence, || Distribution {
            bounds_ns: self.bounds_ns,
            counts: std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        });
        // The writer is a thread of this process. If it hangs inside, one duration more or less does no harm.
        read.unwrap_or_else(|inconsistent| inconsistent)
    }
}

impl Distribution {
    /// Durations per bucket; one bucket more than there are bounds.
    pub fn counts(&self) -> &[u64] {
        &self.counts[..=self.bounds_ns.len()]
    }

    /// All durations.
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }
}

fn add(word: &AtomicU64, amount: u64) {
    let sum = word.load(Ordering::Relaxed).saturating_add(amount);
    word.store(sum, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    static BOUNDS: [u64; 3] = [10, 20, 40];

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_is_beyond_all_is_counted_too() {
        let histogram = Histogram::new(&BOUNDS);
        for duration_ns in [0, 10, 11, 20, 40, 41, u64::MAX] {
            histogram.observe(duration_ns);
        }
        let read = histogram.read();
        assert_eq!(read.counts(), [2, 2, 1, 2]);
        assert_eq!(read.count(), 7);
        assert_eq!(read.sum_ns, u64::MAX, "saturated");
    }

    #[test]
    fn an_empty_histogram_has_all_its_buckets() {
        let read = Histogram::new(&BOUNDS).read();
        assert_eq!((read.counts(), read.sum_ns), (&[0; 4][..], 0));
    }

    #[test]
    fn a_reader_sees_sum_and_buckets_of_one_moment() {
        const WRITES: u64 = 20_000;
        let histogram = Histogram::new(&BOUNDS);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while histogram.read().count() < WRITES {
                    let read = histogram.read();
                    assert_eq!(read.sum_ns, 15 * read.count());
                }
            });
            for _ in 0..WRITES {
                histogram.observe(15);
                // No writer writes without pause: it receives a beat in between.
                (0..200).for_each(|_| std::hint::spin_loop());
            }
            reader.join().unwrap();
        });
    }
}
