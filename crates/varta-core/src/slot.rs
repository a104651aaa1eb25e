//! The facts of one stream of beats, and its state machine.
//!
//! The state machine decides how a beat or the passing of time changes the facts; the tracker acts on it.
//! `layout` encodes the facts in words, and [`SlotTable`] shares them with readers on other threads.

mod layout;
mod table;

use varta_vlp::{Frame, Status};

use crate::agent::{Agent, BeatOrigin, Locality};
use crate::beat::Beat;
use crate::replay::Heard;

pub use layout::{LAYOUT_VERSION, WORDS_PER_SLOT};
pub(crate) use table::Rhythm;
pub use table::{Leftover, SlotTable};

/// An agent silent for more than this many thresholds may be evicted for a new one. Ten, so that a slow but
/// regular agent is never a victim.
const RECLAIM_THRESHOLDS: u64 = 10;

/// A nonce this close to the end of the range may be followed by one this close to its start. Far
/// larger than any reordering.
const NONCE_WRAP_DISTANCE: u64 = 1 << 20;

/// Silence, in parts of the threshold, after which any lower nonce of a process counts as a new session: a
/// quarter, so that even an agent that beats as rarely as allowed is accepted in time.
const SESSION_QUIET_PARTS: u64 = 4;

/// The state of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotState {
    /// The slot is free.
    Free = 0,
    /// Its last beat is within its threshold.
    Alive = 1,
    /// Silent beyond its soft tier; not yet a stall.
    Late = 2,
    /// Silent for a threshold; reported once.
    Stalled = 3,
    /// Silent for more than ten thresholds: a new agent may evict it.
    Reclaimable = 4,
}

impl SlotState {
    /// The stall of the current silence has been reported.
    pub const fn is_latched(self) -> bool {
        matches!(self, Self::Stalled | Self::Reclaimable)
    }
}

/// One agent's facts. All times are attention time in nanoseconds unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The state of the agent.
    pub state: SlotState,
    /// Process id.
    pub pid: u32,
    /// A local agent is keyed by `(pid, instance)`, a remote one by `(source, pid)`.
    pub locality: Locality,
    /// Process instance of a local agent, source of a remote agent.
    pub instance: u64,
    /// Which stream of its process; 0 for beats that come as datagrams.
    pub stream: u16,
    /// Pinned by the first beat.
    pub origin: BeatOrigin,
    /// User id by kernel credentials, or [`crate::agent::UID_UNKNOWN`].
    pub uid: u32,
    /// Pid namespace, pinned by the first beat that knew it.
    pub ns_inode: Option<u64>,
    /// Status of the last accepted beat.
    pub status: Status,
    /// Payload of the last accepted beat.
    pub payload: u32,
    /// Nonce of the last regular beat; `None` while only a terminal frame was accepted.
    pub last_nonce: Option<u64>,
    /// The agent's own timestamp in its last regular beat, nanoseconds on its own clock.
    pub last_timestamp: u64,
    /// The agent's own timestamp in its last terminal frame; 0 before the first.
    pub terminal_timestamp: u64,
    /// When the last beat was accepted.
    pub last_ns: u64,
    /// When the first beat was accepted.
    pub joined_ns: u64,
    /// Silence is not counted before this time; 0 when the agent was never paused.
    pub paused_until_ns: u64,
    /// Silence that makes a stall.
    pub threshold_ns: u64,
    /// Silence that makes the agent late; 0 for no soft tier.
    pub late_ns: u64,
    /// Accepted beats.
    pub beats: u64,
    /// Stalls reported.
    pub stalls: u32,
    /// Sessions after the first.
    pub session_restarts: u32,
}

impl Slot {
    /// Silence so far: time since the last beat or the end of the last pause.
    pub fn silence_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.heard_ns())
    }

    /// Where silence starts: the last beat, or the end of a pause that is later.
    pub fn heard_ns(&self) -> u64 {
        self.last_ns.max(self.paused_until_ns)
    }

    /// The same facts by a clock that shows `offset_ns` more. A time that would be negative becomes 0.
    pub(crate) fn rebased(self, offset_ns: i64) -> Self {
        let rebase = |time_ns: u64| time_ns.saturating_add_signed(offset_ns);
        let paused_until_ns = match self.paused_until_ns {
            0 => 0,
            until_ns => rebase(until_ns),
        };
        Self {
            last_ns: rebase(self.last_ns),
            joined_ns: rebase(self.joined_ns),
            paused_until_ns,
            ..self
        }
    }

    /// This agent's identity, given its slot.
    pub fn agent(&self, slot: u32) -> Agent {
        Agent {
            slot,
            pid: self.pid,
            instance: self.instance,
            stream: self.stream,
        }
    }
}

/// How silent an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Beyond its soft tier.
    Late,
    /// Beyond its threshold.
    Stalled,
    /// Beyond its threshold, but a full queue may have refused its beats: its stall is put off.
    PutOff,
}

/// How an accepted beat continues the series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Continuation {
    Next,
    Wrap,
    NewSession,
    /// A newer one arrived before it.
    Overtaken,
    Terminal,
}

/// The state machine: how a beat or the passing of time changes the facts.
impl Slot {
    /// How a beat continues the series; `None` for an old one.
    ///
    /// The nonce of terminal frames has no order, so they neither read nor move the nonce mark; their own
    /// timestamps order them.
    ///
    /// A beat over an authenticated session is never a copy, and the session determines its order. Its nonce is
    /// compared with that of another session only to distinguish a new series from a continued one, which
    /// affects nothing but a counter.
    ///
    /// Where the kernel attests the sender no other process can replay its beats, so a nonce that does not
    /// grow is a new session of the same process: at once if the timestamp restarts too (a new handle, another
    /// program after `exec`), else as soon as the process has been quiet for a while (the older of two handles
    /// continues after the newer one was closed). It is never locked out. Only the identical frame is never a
    /// new session. A sender without attestation must be quiet first in any case, because a network reorders.
    pub(crate) fn continuation(&self, beat: &Beat, now_ns: u64) -> Option<Continuation> {
        let frame = &beat.frame;
        if frame.is_terminal() {
            let stale = self.terminal_timestamp != 0 && frame.timestamp <= self.terminal_timestamp;
            return (!stale || beat.session.is_some()).then_some(Continuation::Terminal);
        }
        let Some(last_nonce) = self.last_nonce else {
            return Some(Continuation::Next);
        };
        let is_newer = frame.nonce > last_nonce;
        let wraps =
            last_nonce >= u64::MAX - NONCE_WRAP_DISTANCE && frame.nonce < NONCE_WRAP_DISTANCE;
        match beat.session {
            Some(Heard::Overtaken) => return Some(Continuation::Overtaken),
            _ if is_newer => return Some(Continuation::Next),
            _ if wraps => return Some(Continuation::Wrap),
            Some(Heard::Newest) => return Some(Continuation::Next),
            Some(Heard::First) => return Some(Continuation::NewSession),
            None => {}
        }
        let is_ordered = beat.origin == BeatOrigin::KernelAttested;
        let restarts = is_ordered && frame.timestamp < self.last_timestamp;
        let is_repeated = frame.nonce == last_nonce && frame.timestamp == self.last_timestamp;
        (!is_repeated && (restarts || self.was_quiet(SESSION_QUIET_PARTS, now_ns)))
            .then_some(Continuation::NewSession)
    }

    /// Whether a frame of this agent may open a new session. A terminal frame must be newer than the last
    /// one: it may have been recorded while no observer listened (wire spec 10.6).
    pub fn may_begin_session(&self, frame: &Frame) -> bool {
        !frame.is_terminal()
            || self.terminal_timestamp == 0
            || frame.timestamp > self.terminal_timestamp
    }

    fn was_quiet(&self, parts: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.last_ns) >= self.threshold_ns / parts
    }

    /// The tier that silence has reached and that was not reported yet.
    pub(crate) fn due_tier(&self, now_ns: u64) -> Option<Tier> {
        let silence_ns = self.silence_ns(now_ns);
        let paused = now_ns < self.paused_until_ns;
        match self.state {
            SlotState::Alive | SlotState::Late if paused => None,
            SlotState::Alive | SlotState::Late if silence_ns >= self.threshold_ns => {
                Some(Tier::Stalled)
            }
            SlotState::Alive if self.late_ns != 0 && silence_ns >= self.late_ns => Some(Tier::Late),
            _ => None,
        }
    }

    /// Strictly more than ten thresholds of silence (observer spec 1.6).
    pub(crate) fn is_reclaimable(&self, now_ns: u64) -> bool {
        self.silence_ns(now_ns) > self.threshold_ns.saturating_mul(RECLAIM_THRESHOLDS)
    }

    /// When the slot is due again, given its state.
    pub(crate) fn next_look_ns(&self) -> u64 {
        let after_ns = match self.state {
            SlotState::Alive if self.late_ns != 0 => self.late_ns.min(self.threshold_ns),
            SlotState::Stalled | SlotState::Reclaimable => self
                .threshold_ns
                .saturating_mul(RECLAIM_THRESHOLDS)
                .saturating_add(1),
            SlotState::Alive | SlotState::Late | SlotState::Free => self.threshold_ns,
        };
        self.heard_ns().saturating_add(after_ns)
    }
}
