//! The timestamps of terminal frames, which strictly increase for the whole process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The timestamps of all terminal frames of this process.
pub(crate) static TERMINAL: Increasing = Increasing::new();

/// Timestamps that start at 1 or more and strictly increase, for all callers (wire spec 3.3).
pub(crate) struct Increasing {
    last_ns: AtomicU64,
}

impl Increasing {
    pub(crate) const fn new() -> Self {
        Self {
            last_ns: AtomicU64::new(0),
        }
    }

    /// `own_ns`, or the smallest value later than all returned before.
    pub(crate) fn at_least(&self, own_ns: u64) -> u64 {
        let after = |last_ns: u64| own_ns.max(last_ns.saturating_add(1));
        let update = self
            .last_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last_ns| {
                Some(after(last_ns))
            });
        let (Ok(last_ns) | Err(last_ns)) = update;
        after(last_ns)
    }
}

/// Nanoseconds from `origin` to `now`: 0 if `now` is earlier, all ones after 584 years.
pub(crate) fn elapsed_ns(origin: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_timestamps_start_at_one_and_always_increase() {
        let stamps = Increasing::new();
        let given = [0, 0, 5, 5, 3].map(|own_ns| stamps.at_least(own_ns));
        assert_eq!(given, [1, 2, 5, 6, 7]);
    }
}
