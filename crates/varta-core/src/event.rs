//! What the beat path saw: fixed size, `Copy`, no borrowed data.
//!
//! Events are made by the beat path and read by everything slow (log, event file, recovery). They
//! carry numbers only; names and texts are added where they are shown.

use std::net::IpAddr;

use varta_vlp::Status;

use crate::agent::{Agent, ExitStatus};
use crate::refusal::Refusal;

/// What happened, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds since the observer's clock was created; every real second counts.
    pub observer_ns: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// First beat of an agent.
    Join {
        /// Which agent.
        agent: Agent,
        /// Where from.
        from: JoinedFrom,
        /// Nonce of the first beat.
        nonce: u64,
        /// Status of the first beat.
        status: Status,
        /// Payload of the first beat.
        payload: u32,
    },
    /// A known process began a new series of beats: another program after `exec`, another handle.
    Session {
        /// Which agent.
        agent: Agent,
        /// Nonce of the beat that began it.
        nonce: u64,
        /// Status of that beat.
        status: Status,
        /// Its payload.
        payload: u32,
    },
    /// A remote agent beats over several sessions at once: it has several handles, or several processes share its
    /// key, address and pid. Or that is over.
    Sessions {
        /// Which agent.
        agent: Agent,
        /// How many; fewer than two when it is over.
        count: usize,
    },
    /// An accepted beat. Only made when every beat is exported.
    Beat {
        /// Which agent.
        agent: Agent,
        /// Frame nonce.
        nonce: u64,
        /// Reported status.
        status: Status,
        /// Opaque to the observer.
        payload: u32,
    },
    /// An agent says that it is critical and did not before; once a second and agent at most, so that one
    /// whose status flickers crowds out no other event.
    Critical {
        /// Which agent.
        agent: Agent,
        /// Nonce of the beat that says so.
        nonce: u64,
        /// Its payload.
        payload: u32,
    },
    /// Silence has reached the soft tier of this agent; once per silence.
    Late {
        /// Which agent.
        agent: Agent,
        /// Last accepted nonce.
        last_nonce: u64,
        /// Silence so far, attention time, nanoseconds.
        silence_ns: u64,
    },
    /// Silence has reached the threshold; once per silence.
    Stall {
        /// Which agent.
        agent: Agent,
        /// Last accepted nonce.
        last_nonce: u64,
        /// Silence so far, attention time, nanoseconds; at least `threshold_ns`.
        silence_ns: u64,
        /// The agent's threshold, nanoseconds.
        threshold_ns: u64,
        /// Datagrams that a key proves to be the agent's, that were never heard before, and that a limit refused
        /// since its last beat: it is alive, or was a moment ago.
        refused: u32,
    },
    /// A stalled agent spoke again.
    Return {
        /// Which agent.
        agent: Agent,
        /// Nonce of the beat that ended the silence.
        nonce: u64,
        /// Status of that beat.
        status: Status,
        /// Its payload.
        payload: u32,
        /// How long the agent was silent, attention time, nanoseconds.
        silence_ns: u64,
    },
    /// The process is gone, or took its leave.
    Exit {
        /// Which agent.
        agent: Agent,
        /// Last accepted nonce.
        last_nonce: u64,
        /// How it went, where the kernel tells.
        status: ExitStatus,
    },
    /// A silent agent gave its slot to a newcomer because the table was full.
    Evicted {
        /// The agent that lost the slot.
        agent: Agent,
    },
    /// A datagram was refused; nothing else changed.
    Refused {
        /// Its sender, as far as that is known.
        sender: Sender,
        /// Why.
        reason: Refusal,
    },
    /// A sender sends without pause, so most of it is dropped before it is queued; or that is over.
    Flood {
        /// The sender; 0 for datagrams that are no frames, of any sender.
        pid: u32,
        /// One in this many is let through; 1 when it is over.
        one_in: u32,
    },
    /// An agent is silent for its threshold, but a full queue may have refused its beats, so its stall is put
    /// off.
    PutOff {
        /// Which agent.
        agent: Agent,
        /// Attention time since its last accepted beat, nanoseconds.
        silence_ns: u64,
    },
    /// The kernel dropped datagrams from the network because their queue was full: the silence of remote
    /// agents starts again.
    NetworkDrops {
        /// How many.
        count: u64,
    },
    /// Receiving beats fails, or succeeds again; or descriptors that came attached are being let go of, which may hang.
    /// The beat path shows which.
    ReceiveTrouble,
    /// The observer itself was stopped, starved or suspended (law 2): this time counts against no agent that
    /// does not tolerate it.
    Gap {
        /// By how much it came later than it had promised, nanoseconds.
        gap_ns: u64,
    },
}

/// Where a new agent beats from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinedFrom {
    /// This host.
    Local {
        /// User id by kernel credentials; [`crate::agent::UID_UNKNOWN`] without them.
        uid: u32,
        /// Its end is watched, not only looked for now and then.
        exit_watched: bool,
    },
    /// Another host, or one behind it.
    Remote {
        /// Where its first beat came from.
        address: IpAddr,
        /// A key vouches for its beats.
        sealed: bool,
    },
}

/// The sender of a datagram that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Kernel pid where known, else the pid the frame claims, else 0.
    pub pid: u32,
    /// Address and port if it came over a network.
    pub source: Option<(IpAddr, u16)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_nine_words_at_most() {
        assert!(size_of::<Event>() <= 72, "{}", size_of::<Event>());
    }
}
