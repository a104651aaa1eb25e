//! The clock of the panic hook: the clock of the newest handle.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::terminal::elapsed_ns;

/// The time of the hook: that of the newest handle, so that the two series of a process are comparable.
/// [`TERMINAL`](crate::terminal::TERMINAL) makes what goes into a frame increase.
pub(crate) struct TerminalClock {
    /// A fixed point to count from; its first user sets it.
    anchor: OnceLock<Instant>,
    /// The start of the followed timeline, after the anchor.
    origin_ns: AtomicU64,
}

pub(crate) static CLOCK: TerminalClock = TerminalClock::new();

impl TerminalClock {
    const fn new() -> Self {
        Self {
            anchor: OnceLock::new(),
            origin_ns: AtomicU64::new(0),
        }
    }

    /// Sets the anchor, so that [`elapsed_ns`](Self::elapsed_ns) does not have to and takes no lock.
    pub(crate) fn begin(&self) {
        self.anchor.get_or_init(Instant::now);
    }

    /// Makes terminal frames count from `origin`, the start of a handle's timestamps.
    pub(crate) fn follow(&self, origin: Instant) {
        let anchor = *self.anchor.get_or_init(|| origin);
        self.origin_ns
            .store(elapsed_ns(anchor, origin), Ordering::Relaxed);
    }

    pub(crate) fn elapsed_ns(&self, now: Instant) -> u64 {
        let since_anchor_ns = self
            .anchor
            .get()
            .map_or(0, |anchor| elapsed_ns(*anchor, now));
        since_anchor_ns.saturating_sub(self.origin_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::terminal::Increasing;

    #[test]
    fn terminal_timestamps_count_from_where_the_last_handle_began() {
        let clock = TerminalClock::new();
        let start = Instant::now();
        let second = start + Duration::from_secs(10);
        clock.follow(start);
        clock.follow(second);
        assert_eq!(clock.elapsed_ns(second + Duration::from_nanos(77)), 77);
    }

    #[test]
    fn terminal_timestamps_increase_across_a_new_handle() {
        let stamps = Increasing::new();
        let clock = TerminalClock::new();
        let start = Instant::now();
        clock.follow(start);
        let before = stamps.at_least(clock.elapsed_ns(start + Duration::from_secs(10)));
        clock.follow(start + Duration::from_secs(10));
        let after = stamps.at_least(clock.elapsed_ns(start + Duration::from_secs(11)));
        assert_eq!(after, before + 1);
    }

    #[test]
    fn a_clock_without_a_handle_stands_at_the_beginning() {
        assert_eq!(TerminalClock::new().elapsed_ns(Instant::now()), 0);
    }
}
