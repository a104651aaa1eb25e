//! What happened, as the observer tells it: fixed size, `Copy`, no borrowed data.
//!
//! Events are made by the beat path and read by everything slow (log, event file, recovery). They
//! carry numbers only; names and texts are looked up by whoever shows them.

use std::net::{IpAddr, SocketAddr};

use varta_vlp::Status;

use crate::admission::Refusal;
use crate::index::IndexKey;

/// One process instance under observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Position in the slot table. Reused after the agent has left.
    pub slot: u32,
    /// Process id as the kernel of the observer's namespace names it.
    pub pid: u32,
    /// What tells two processes with the same pid apart: pidfs inode or start time of a local process. For
    /// an agent heard over a network the [`remote_source`].
    pub instance: u64,
}

impl Agent {
    /// The agent lives on another host, as far as anybody can tell: its pid means nothing here.
    pub const fn is_remote(self) -> bool {
        self.instance & REMOTE != 0
    }
}

/// Set in every [`remote_source`] and in no instance of a local process: those are counted up from a
/// small number, 2^63 of them do not fit into an uptime.
const REMOTE: u64 = 1 << 63;

/// A number for where an agent elsewhere speaks from: the key that vouches for it ([`NO_KEY`] in clear), and
/// its address without the port. Two that share one would be one host; with 63 bits and a `seed` that nobody
/// outside knows that does not happen to a million hosts. Addresses that mean something on one link only
/// count with their link.
pub fn remote_source(key: u64, address: &SocketAddr, seed: u64) -> u64 {
    let seed = key.hash(seed);
    let hash = match address {
        SocketAddr::V4(address) => address.ip().hash(seed),
        SocketAddr::V6(address) => match address.ip().to_ipv4_mapped() {
            Some(mapped) => mapped.hash(seed),
            None => (u64::from(address.scope_id())).hash(address.ip().hash(!seed)),
        },
    };
    hash | REMOTE
}

/// In place of a key: it came in clear.
pub const NO_KEY: u64 = 0;

/// An entry of the observer's story.
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
        /// Who.
        agent: Agent,
        /// Where from.
        home: Home,
        /// Nonce of the first beat.
        nonce: u64,
        /// Status of the first beat.
        status: Status,
        /// Payload of the first beat.
        payload: u32,
    },
    /// A known process began a new series of beats: another program after `exec`, another handle.
    Session {
        /// Who.
        agent: Agent,
        /// Nonce of the beat that began it.
        nonce: u64,
        /// Status of that beat.
        status: Status,
        /// Its payload.
        payload: u32,
    },
    /// An agent elsewhere beats over several sessions at once: it has several handles, or several processes share its
    /// key, address and pid. Or that is over.
    Sessions {
        /// Who.
        agent: Agent,
        /// How many; fewer than two when it is over.
        count: usize,
    },
    /// An accepted beat. Only made when somebody asked for every beat.
    Beat {
        /// Who.
        agent: Agent,
        /// Frame nonce.
        nonce: u64,
        /// Reported status.
        status: Status,
        /// Opaque to the observer.
        payload: u32,
    },
    /// An agent says that it is critical and did not before; once a second and agent at most, so that one
    /// whose status flickers crowds out nobody.
    Critical {
        /// Who.
        agent: Agent,
        /// Nonce of the beat that says so.
        nonce: u64,
        /// Its payload.
        payload: u32,
    },
    /// Silence has reached the soft tier of this agent; once per silence.
    Late {
        /// Who.
        agent: Agent,
        /// Last accepted nonce.
        last_nonce: u64,
        /// Silence so far, attention time, nanoseconds.
        silence_ns: u64,
    },
    /// Silence has reached the threshold; once per silence.
    Stall {
        /// Who.
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
        /// Who.
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
        /// Who.
        agent: Agent,
        /// Last accepted nonce.
        last_nonce: u64,
        /// How it went, where the kernel tells.
        status: ExitStatus,
    },
    /// A silent agent gave its slot to a newcomer because the table was full.
    Evicted {
        /// Who lost the slot.
        agent: Agent,
    },
    /// A datagram was refused; nothing else changed.
    Refused {
        /// Who sent it, as far as that is known.
        sender: Sender,
        /// Why.
        reason: Refusal,
    },
    /// Somebody sends without pause, so most of it is dropped before it is queued; or that is over.
    Flood {
        /// Who; 0 for datagrams that are no frames, whoever sends them.
        pid: u32,
        /// One in this many is let through; 1 when it is over.
        one_in: u32,
    },
    /// An agent is silent for its threshold, but a full queue may have refused its beats, so its stall is put
    /// off.
    PutOff {
        /// Who.
        agent: Agent,
        /// Attention time since its last accepted beat, nanoseconds.
        silence_ns: u64,
    },
    /// The kernel dropped datagrams from the network because their queue was full: the silence of agents
    /// elsewhere starts anew.
    NetworkDrops {
        /// How many.
        count: u64,
    },
    /// Receiving beats fails, or succeeds again; or descriptors that came attached are being let go of, which may hang.
    /// The gauges say which.
    ReceiveTrouble,
    /// The observer itself was stopped, starved or suspended (law 2): this time counts against no agent that
    /// does not tolerate it.
    Gap {
        /// By how much it came later than it had promised, nanoseconds.
        gap_ns: u64,
    },
}

/// Where an agent lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// On this host.
    Here {
        /// User id by kernel credentials; [`UID_UNKNOWN`] without them.
        uid: u32,
        /// Its end is watched, not only looked for now and then.
        exit_watched: bool,
    },
    /// On another one, or behind one.
    Network {
        /// Where its first beat came from.
        address: IpAddr,
        /// A key vouches for its beats.
        sealed: bool,
    },
}

/// Who sent a datagram that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Kernel pid where known, else the pid the frame claims, else 0.
    pub pid: u32,
    /// Address and port if it came over a network.
    pub source: Option<(IpAddr, u16)>,
}

/// User id of an agent that came without kernel credentials.
pub const UID_UNKNOWN: u32 = u32::MAX;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    /// It called exit (or returned from main) with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
    /// It said goodbye; the process itself may go on.
    Goodbye,
    /// The kernel did not tell.
    Unknown,
}

impl ExitStatus {
    /// Reads a wait status as the kernel encodes it: exit code in bits 8..16, signal in bits 0..7.
    pub const fn from_wait_status(status: i32) -> Self {
        match (status & 0x7f, (status >> 8) & 0xff) {
            (0, code) => Self::Code(code as u8),
            (signal, _) => Self::Signal(signal as u8),
        }
    }

    /// True for exit code 0 and a goodbye: the agent left, nothing is wrong.
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::Code(0) | Self::Goodbye)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_fits_one_cache_line() {
        assert!(size_of::<Event>() <= 64, "{}", size_of::<Event>());
    }

    #[test]
    fn sources_are_told_apart_by_key_and_address_and_marked_as_remote() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let v4 = address("10.0.0.1:1");
        let of = |key, text| remote_source(key, &address(text), 7);
        let sources = [
            of(NO_KEY, "10.0.0.1:1"),
            of(1, "10.0.0.1:1"),
            of(2, "10.0.0.1:1"),
            of(NO_KEY, "10.0.0.2:1"),
            of(NO_KEY, "[::a00:1]:1"),
            of(NO_KEY, "[fe80::1%1]:1"),
            of(NO_KEY, "[fe80::1%2]:1"),
            remote_source(NO_KEY, &v4, 8),
        ];
        for (i, source) in sources.iter().enumerate() {
            let instance = *source;
            let agent = Agent {
                slot: 0,
                pid: 1,
                instance,
            };
            assert!(agent.is_remote());
            assert!(!sources[i + 1..].contains(source));
        }
        let mapped = of(NO_KEY, "[::ffff:10.0.0.1]:9");
        assert_eq!(mapped, sources[0], "the same host over another family");
    }

    #[test]
    fn wait_statuses_are_read_as_the_kernel_writes_them() {
        assert_eq!(ExitStatus::from_wait_status(0), ExitStatus::Code(0));
        assert_eq!(ExitStatus::from_wait_status(3 << 8), ExitStatus::Code(3));
        assert_eq!(ExitStatus::from_wait_status(9), ExitStatus::Signal(9));
        assert_eq!(
            ExitStatus::from_wait_status(6 | 0x80),
            ExitStatus::Signal(6),
            "core dump bit"
        );
        assert!(ExitStatus::Code(0).is_clean());
        assert!(ExitStatus::Goodbye.is_clean());
        assert!(!ExitStatus::Unknown.is_clean());
    }
}
