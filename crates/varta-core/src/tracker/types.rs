//! The arguments and results of the tracker.

use super::DEFAULT_EVICTION_SCAN_WINDOW;
use crate::agent::Agent;
use crate::slot::{Slot, Tier};

/// Which agents a full table may evict. Victims are always silent for more than ten thresholds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// Only agents whose stall has been reported; the longest reclaimable first. An agent becomes reclaimable when it
    /// is judged after more than ten thresholds of silence, not when a new agent is recorded, so a new agent that
    /// comes between the two is refused where the 0.2.0 generation would have evicted.
    #[default]
    Strict,
    /// If there is none, also agents whose stall could not be reported yet, found by a bounded,
    /// rotating scan.
    Balanced,
}

/// The outcome of a beat (observer spec 1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeatOutcome {
    /// A new agent.
    Inserted,
    /// A known agent, alive.
    Refreshed,
    /// A known agent, but a newer beat of it arrived before this one: it counts as a beat and changes nothing
    /// else.
    Reordered,
    /// Refused: an old or repeated nonce.
    OutOfOrder,
    /// Refused: the table is full.
    CapacityExceeded,
    /// Refused: the user has as many agents as one user may have.
    UserShareExceeded {
        /// The user.
        uid: u32,
    },
    /// Refused: a known agent over another kind of transport.
    OriginConflict,
    /// Refused: a known agent from another pid namespace.
    NamespaceConflict,
}

/// When the silence of an agent is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Stall threshold, nanoseconds.
    pub threshold_ns: u64,
    /// Soft tier, nanoseconds; 0 for none.
    pub late_ns: u64,
}

/// The tracker's answer to a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The outcome.
    pub outcome: BeatOutcome,
    /// The agent it was credited to; `None` exactly when it was refused.
    pub agent: Option<Agent>,
    /// The length of the silence that the beat ended, if it was reported as a stall.
    pub returned_after_ns: Option<u64>,
    /// Whether the beat started a new session of a known process.
    pub new_session: bool,
    /// Whether the agent reports that it is critical, and its previous beat did not, or there was none.
    pub turned_critical: bool,
    /// The agent that left for this one: evicted, or an earlier process with the same pid.
    pub displaced: Option<Displaced>,
}

/// An agent that left the table because of a beat of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Displaced {
    /// The agent.
    pub agent: Agent,
    /// Its last nonce.
    pub last_nonce: u64,
    /// True: the table was full. False: its pid belongs to a new process now, so it has exited.
    pub evicted: bool,
}

impl Recorded {
    pub(super) fn refused(outcome: BeatOutcome) -> Self {
        Self {
            outcome,
            agent: None,
            returned_after_ns: None,
            new_session: false,
            turned_critical: false,
            displaced: None,
        }
    }

    pub(super) fn accepted(outcome: BeatOutcome, agent: Agent) -> Self {
        Self {
            agent: Some(agent),
            ..Self::refused(outcome)
        }
    }
}

/// A silence to be reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// The silent agent.
    pub agent: Agent,
    /// The tier of the silence.
    pub tier: Tier,
    /// Silence so far, nanoseconds.
    pub silence_ns: u64,
    /// The facts as of now.
    pub slot: Slot,
}

/// Construction parameters beyond the table.
#[derive(Clone, Copy, Debug)]
pub struct TrackerOptions {
    /// Which agents a full table may evict.
    pub policy: EvictionPolicy,
    /// Slots examined per scan, 1 to capacity; clamped.
    pub scan_window: usize,
    /// Seed of the index of remote agents. Random in an observer, so that unknown senders cannot choose
    /// colliding keys; fixed in tests.
    pub seed: u64,
    /// Slots that local agents may take at most.
    pub local_capacity: usize,
    /// Slots that local agents of one user may take at most, except root: beyond that a new agent of the user
    /// evicts another agent of the user, or is refused.
    pub user_capacity: usize,
    /// Slots that remote agents may take at most. If both fit into the table together, neither can lock out the
    /// other (law 3).
    pub remote_capacity: usize,
}

impl Default for TrackerOptions {
    fn default() -> Self {
        Self {
            policy: EvictionPolicy::Strict,
            scan_window: DEFAULT_EVICTION_SCAN_WINDOW,
            seed: 0,
            local_capacity: usize::MAX,
            user_capacity: usize::MAX,
            remote_capacity: usize::MAX,
        }
    }
}
