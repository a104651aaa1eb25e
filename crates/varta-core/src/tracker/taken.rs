//! The tracker's counters as differences: what has happened since the last call (observer spec
//! 1.8). The totals are in [`crate::Counters`].

use std::sync::atomic::AtomicU64;

use super::Tracker;
use crate::counters::Counter;

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// The pid evicted last since the last call.
    pub fn take_evicted_pid(&mut self) -> Option<u32> {
        self.evicted_pid.take()
    }

    /// Evictions since the last call.
    pub fn take_evictions(&mut self) -> u64 {
        self.take(Counter::Evictions)
    }

    /// Nonce wraps since the last call.
    pub fn take_nonce_wraps(&mut self) -> u64 {
        self.take(Counter::NonceWraps)
    }

    /// Beats refused for want of room since the last call.
    pub fn take_capacity_exceeded(&mut self) -> u64 {
        self.take(Counter::CapacityExceeded)
    }

    /// Origin conflicts since the last call.
    pub fn take_origin_conflicts(&mut self) -> u64 {
        self.take(Counter::OriginConflicts)
    }

    /// Namespace conflicts since the last call.
    pub fn take_namespace_conflicts(&mut self) -> u64 {
        self.take(Counter::NamespaceConflicts)
    }

    /// Fruitless searches for a victim since the last call.
    pub fn take_eviction_scan_truncated(&mut self) -> u64 {
        self.take(Counter::EvictionScanTruncated)
    }

    /// Failed self-checks since the last call.
    pub fn take_invariant_violations(&mut self) -> u64 {
        self.take(Counter::InvariantViolations)
    }

    /// Index insertions that found no place since the last call.
    pub fn take_probe_exhausted(&mut self) -> u64 {
        self.take(Counter::ProbeExhausted)
    }

    /// Old or repeated nonces since the last call.
    pub fn take_out_of_order(&mut self) -> u64 {
        self.take(Counter::OutOfOrder)
    }

    /// New sessions of known processes since the last call.
    pub fn take_session_restarts(&mut self) -> u64 {
        self.take(Counter::SessionRestarts)
    }

    fn take(&mut self, counter: Counter) -> u64 {
        let total = self.counters.get(counter);
        let since = total - self.taken[counter as usize];
        self.taken[counter as usize] = total;
        since
    }
}
