//! Whether a kernel's receive queue may have refused beats.
//!
//! A queue that is read until it is empty, and gave fewer datagrams than its capacity since it was last empty, was
//! never full in between: no beat was refused. One that gave as many as its capacity may have been full, and the
//! refused beats cannot be known. So every agent's silence restarts ([`crate::Tracker::restart_silence`]), for any
//! reason: agents that beat in phase, a pause, a CPU quota, a flood.
//!
//! Restarting is bounded, because a flood may keep the queue full without end.

/// Thresholds since an agent's last beat by which a full queue puts off its stall: sixteen. A queue of eleven is
/// filled by agents that beat in phase, so many bursts in a row may refuse the same agent.
const RESTART_THRESHOLDS_SHALLOW: u64 = 16;

/// The same for a deep queue: four, because only a flood fills it.
const RESTART_THRESHOLDS_DEEP: u64 = 4;

/// Capacity in datagrams from which a queue is deep.
const DEEP_DATAGRAMS: usize = 1024;

/// Tracks one receive queue by the datagrams read from it.
#[derive(Clone, Debug)]
pub struct ReceiveQueue {
    /// Datagrams it holds, 1 at least.
    holds: usize,
    read_since_empty: usize,
    may_have_been_full: bool,
}

impl ReceiveQueue {
    /// A queue that holds this many datagrams.
    pub fn new(holds: usize) -> Self {
        Self {
            holds: holds.max(1),
            read_since_empty: 0,
            may_have_been_full: false,
        }
    }

    /// Records that this many datagrams were read.
    pub fn has_read(&mut self, datagrams: usize) {
        self.read_since_empty = self.read_since_empty.saturating_add(datagrams);
        self.may_have_been_full |= self.read_since_empty >= self.holds;
    }

    /// Records that the queue is empty.
    pub fn saw_empty(&mut self) {
        self.read_since_empty = 0;
    }

    /// Whether it may have been full since the last call.
    pub fn take_may_have_been_full(&mut self) -> bool {
        std::mem::take(&mut self.may_have_been_full)
    }

    /// See [`restart_thresholds`].
    pub fn restart_thresholds(&self) -> u64 {
        restart_thresholds(self.holds)
    }
}

/// Thresholds since an agent's last beat by which a queue of this capacity may put off its stall.
pub fn restart_thresholds(holds: usize) -> u64 {
    match holds {
        DEEP_DATAGRAMS.. => RESTART_THRESHOLDS_DEEP,
        _ => RESTART_THRESHOLDS_SHALLOW,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_gave_less_than_it_holds_was_never_full() {
        let mut queue = ReceiveQueue::new(11);
        for _ in 0..3 {
            queue.has_read(10);
            queue.saw_empty();
        }
        assert!(!queue.take_may_have_been_full());
    }

    #[test]
    fn a_queue_that_gave_as_many_as_it_holds_may_have_been_full_until_it_was_empty() {
        let mut queue = ReceiveQueue::new(11);
        queue.has_read(10);
        queue.has_read(1);
        assert!(queue.take_may_have_been_full());
        assert!(!queue.take_may_have_been_full(), "nothing was read since");
        queue.has_read(1);
        assert!(queue.take_may_have_been_full(), "it was never empty");
        queue.saw_empty();
        queue.has_read(1);
        assert!(!queue.take_may_have_been_full());
    }

    #[test]
    fn a_deep_queue_puts_stalls_off_for_less_long() {
        assert_eq!(ReceiveQueue::new(11).restart_thresholds(), 16);
        assert_eq!(restart_thresholds(1023), 16);
        assert_eq!(restart_thresholds(1024), 4);
    }
}
