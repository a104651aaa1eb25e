//! The published state of the control thread besides its agents: the threshold in force, and the number of missing
//! agents.
//!
//! Only the control thread writes, requests read.

use std::sync::atomic::{AtomicU64, Ordering};

use varta_core::Gauge;

/// Figures of the control thread.
#[derive(Debug, Default)]
pub(crate) struct ControlState {
    threshold_ns: AtomicU64,
    agents_missing: AtomicU64,
}

impl ControlState {
    /// Silence that makes a stall unless a rule sets another.
    pub(crate) fn set_threshold(&self, ns: u64) {
        self.threshold_ns.store(ns, Ordering::Relaxed);
    }

    /// Agents that rules expect by now and that have not joined.
    pub(crate) fn set_agents_missing(&self, count: u64) {
        self.agents_missing.store(count, Ordering::Relaxed);
    }

    pub(crate) fn threshold_ns(&self) -> u64 {
        self.threshold_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn agents_missing(&self) -> u64 {
        self.agents_missing.load(Ordering::Relaxed)
    }

    /// The value of a gauge of this state; `None` for any other gauge.
    pub(crate) fn level(&self, gauge: Gauge) -> Option<u64> {
        match gauge {
            Gauge::Threshold => Some(self.threshold_ns()),
            Gauge::AgentsMissing => Some(self.agents_missing()),
            _ => None,
        }
    }
}
