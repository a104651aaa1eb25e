//! Counts of silent agents, before any of them is a stall: they distinguish a host that fell silent from a single
//! process that did.
//!
//! The observer holds its fire while a large part of all agents is silent. At the first stall of a mass stall
//! the other agents are not stalled yet, so counting stalls would be too late: the first child would be started
//! before the mass is recognised. But an agent that beats at least twice per threshold last beat at most half a
//! threshold after the first one, so by then it is silent for half a threshold. An agent that beats less often
//! is usually silent for that long; it counts only when its silence is longer than usual.
//!
//! One pass over the table, no state; 100 000 agents take a few milliseconds. Bounds: one count per user is
//! allocated.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use crate::agent::Locality;
use crate::slot::{Rhythm, SlotTable};

/// Silence, in parts of the threshold, from which on an agent counts as silent: a half, see above.
const SILENT_PARTS: u64 = 2;

/// Silence, in quarters of an agent's mean interval, below which it is usual: five, so that timers that are
/// late by a fifth make no agent silent.
const USUAL_QUARTERS: u64 = 5;

/// Silence, in eighths of the threshold, that is unusual for every agent: seven. The mean interval after a long
/// silence is unreliable, and an agent that near to its threshold counts as silent.
const UNUSUAL_EIGHTHS: u64 = 7;

/// Silence in thresholds up to which it counts as recent.
const FRESH_THRESHOLDS: u64 = 2;

/// Number of agents, by silence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SilenceCounts {
    /// Judged agents: all but the paused ones.
    pub watched: u32,
    /// Agents that are silent for half their threshold and longer than usual, or stalled.
    pub silent: u32,
    /// Silent agents whose silence is shorter than two thresholds.
    pub fresh: u32,
    /// Silent agents whose stall has been reported.
    pub latched: u32,
    /// The longest threshold of a silent agent.
    pub threshold_ns: u64,
}

/// How many agents there are, by locality and user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SilenceByGroup {
    /// Local agents.
    pub local: SilenceCounts,
    /// Remote agents, whose silence is no evidence about this host (law 3).
    pub remote: SilenceCounts,
    /// Local agents, by user.
    pub users: BTreeMap<u32, SilenceCounts>,
}

/// Counts the agents of a table as of `now_ns`, attention time, from any thread.
pub fn count_silent<W: AsRef<[AtomicU64]>>(table: &SlotTable<W>, now_ns: u64) -> SilenceByGroup {
    let mut groups = SilenceByGroup::default();
    for slot in 0..table.capacity() as u32 {
        let Some(rhythm) = table.read_rhythm(slot) else {
            continue;
        };
        match rhythm.locality {
            Locality::Local => {
                groups.local.count(&rhythm, now_ns);
                let users = groups.users.entry(rhythm.uid);
                users.or_default().count(&rhythm, now_ns);
            }
            Locality::Remote => groups.remote.count(&rhythm, now_ns),
        }
    }
    groups
}

impl SilenceCounts {
    fn count(&mut self, rhythm: &Rhythm, now_ns: u64) {
        if now_ns < rhythm.paused_until_ns {
            return;
        }
        self.watched += 1;
        let silence_ns = rhythm.silence_ns(now_ns);
        if !rhythm.is_latched && !rhythm.is_silent_for(silence_ns) {
            return;
        }
        self.silent += 1;
        self.latched += u32::from(rhythm.is_latched);
        self.threshold_ns = self.threshold_ns.max(rhythm.threshold_ns);
        let fresh_ns = rhythm.threshold_ns.saturating_mul(FRESH_THRESHOLDS);
        self.fresh += u32::from(silence_ns < fresh_ns);
    }
}

impl Rhythm {
    fn silence_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.last_ns.max(self.paused_until_ns))
    }

    fn is_silent_for(&self, silence_ns: u64) -> bool {
        silence_ns >= self.threshold_ns / SILENT_PARTS && silence_ns >= self.usual_ns()
    }

    /// The longest usual silence; nearly zero while the agent has sent one beat only.
    fn usual_ns(&self) -> u64 {
        let heard_for_ns = self.last_ns.saturating_sub(self.joined_ns);
        let intervals = self.beats.saturating_sub(1);
        let mean_ns = heard_for_ns.checked_div(intervals).unwrap_or(0);
        let usual_ns = mean_ns.saturating_mul(USUAL_QUARTERS) / 4;
        usual_ns.min(self.threshold_ns.saturating_mul(UNUSUAL_EIGHTHS) / 8)
    }
}

#[cfg(test)]
mod tests;
