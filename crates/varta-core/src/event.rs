//! The events of the beat path: fixed size, `Copy`, no borrowed data.
//!
//! The beat path makes events; the slow threads (log, event file, recovery) read them. They carry numbers
//! only; the readers add names and texts.

use std::net::IpAddr;

use varta_vlp::Status;

use crate::agent::{Agent, ExitStatus};
use crate::refusal::Refusal;

/// An event and its time.
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
        /// Its origin.
        from: JoinedFrom,
        /// Nonce of the first beat.
        nonce: u64,
        /// Status of the first beat.
        status: Status,
        /// Payload of the first beat.
        payload: u32,
    },
    /// A known process started a new series of beats: another program after `exec`, another handle.
    Session {
        /// Which agent.
        agent: Agent,
        /// Nonce of the beat that started it.
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
    /// An agent reports that it is critical and did not before; at most once per second and agent, so that a
    /// flickering status displaces no other event.
    Critical {
        /// Which agent.
        agent: Agent,
        /// Nonce of the beat that reports it.
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
        /// Datagrams since its last beat that a key authenticates, that are no copies, and that a limit refused:
        /// the agent is alive, or was a moment ago.
        refused: u32,
    },
    /// A stalled agent beats again.
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
    /// The process ended, or sent a goodbye.
    Exit {
        /// Which agent.
        agent: Agent,
        /// Last accepted nonce.
        last_nonce: u64,
        /// How it ended, where the kernel reports it.
        status: ExitStatus,
    },
    /// A silent agent was evicted for a new one because the table was full.
    Evicted {
        /// The agent that lost the slot.
        agent: Agent,
    },
    /// A datagram was refused; nothing else changed.
    Refused {
        /// Its sender, as far as known.
        sender: Sender,
        /// Why.
        reason: Refusal,
    },
    /// A sender floods the socket, so most of its datagrams are dropped before they are queued; or the flood
    /// is over.
    Flood {
        /// The sender; 0 for datagrams that are no frames, of any sender.
        pid: u32,
        /// One in this many is queued; 1 when the flood is over.
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
    /// agents restarts.
    NetworkDrops {
        /// How many.
        count: u64,
    },
    /// Receiving beats fails, or succeeds again; or closing attached descriptors hangs. The status of the beat path
    /// shows which.
    ReceiveTrouble,
    /// The observer itself was stopped, starved or suspended (law 2): this time does not count against agents
    /// that do not tolerate it.
    Gap {
        /// How late it woke up, nanoseconds.
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
        /// Whether a pidfd reports its end at once, instead of a periodic check.
        exit_watched: bool,
    },
    /// Another host, or one behind it.
    Remote {
        /// Where its first beat came from.
        address: IpAddr,
        /// Whether a key authenticates its beats.
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
