//! The identity of an agent: the small types that every other module may use.
//!
//! A local agent is a process, `(pid, instance)`, and one of its streams of beats. A remote agent is
//! `(source, pid)`. No type holds state or decides anything.

use std::net::SocketAddr;
use std::ops::{Index, IndexMut};

use crate::index::IndexKey;

/// Whether an agent is local or remote. Remote agents never share a key, a bucket, a quota or a queue with
/// local ones (law 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Locality {
    /// A process of this host.
    Local = 0,
    /// A process of another host, or behind one.
    Remote = 1,
}

impl Locality {
    /// Both, local first.
    pub const ALL: [Self; 2] = [Self::Local, Self::Remote];
}

/// One value for local agents and one for remote agents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLocality<T> {
    /// Of local agents.
    pub local: T,
    /// Of remote agents.
    pub remote: T,
}

impl<T> Index<Locality> for PerLocality<T> {
    type Output = T;

    fn index(&self, locality: Locality) -> &T {
        match locality {
            Locality::Local => &self.local,
            Locality::Remote => &self.remote,
        }
    }
}

impl<T> IndexMut<Locality> for PerLocality<T> {
    fn index_mut(&mut self, locality: Locality) -> &mut T {
        match locality {
            Locality::Local => &mut self.local,
            Locality::Remote => &mut self.remote,
        }
    }
}

/// One stream of beats under observation. Most processes have one; its number is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Position in the slot table. Reused after the agent has left.
    pub slot: u32,
    /// Process id in the observer's namespace.
    pub pid: u32,
    /// Distinguishes two processes with the same pid: pidfs inode or start time of a local process. For a
    /// remote agent the [`remote_source`].
    pub instance: u64,
    /// Which stream of its process; 0 for beats that come as datagrams.
    pub stream: u16,
}

impl Agent {
    /// Local or remote. The pid of a remote agent has no meaning on this host.
    pub const fn locality(self) -> Locality {
        match self.instance & REMOTE {
            0 => Locality::Local,
            _ => Locality::Remote,
        }
    }

    /// Whether the agent is a remote one.
    pub const fn is_remote(self) -> bool {
        matches!(self.locality(), Locality::Remote)
    }
}

/// Set in every [`remote_source`] and in no instance of a local process: those are counted up from a
/// small number, 2^63 of them do not fit into an uptime.
const REMOTE: u64 = 1 << 63;

/// The source of a remote agent as a number: made from the key that authenticates it ([`NO_KEY`] in clear)
/// and its address without the port. Two that share one would be one host; with 63 bits and an unpredictable
/// `seed` that does not happen to a million hosts. Link-local addresses count with their link.
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

/// The key of a datagram in clear.
pub const NO_KEY: u64 = 0;

/// Instance of a process that could not be identified. No process has it.
pub const UNIDENTIFIED: u64 = 0;

/// User id of an agent that came without kernel credentials.
pub const UID_UNKNOWN: u32 = u32::MAX;

/// The sender of a datagram, as the kernel attests it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id in the observer's namespace; 0 when the sender is not visible from there.
    pub pid: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
}

/// How a beat reached the observer; pinned by an agent's first beat (observer spec 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BeatOrigin {
    /// Unix socket with kernel credentials.
    KernelAttested = 0,
    /// A network listener that the operator declared trusted.
    OperatorAttestedTransport = 1,
    /// Any other network listener.
    NetworkUnverified = 2,
    /// Unix socket on a platform without credentials: file permissions only.
    SocketModeOnly = 3,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    /// It called exit (or returned from main) with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
    /// It sent a goodbye; the process itself may continue.
    Goodbye,
    /// The kernel did not report it.
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
                stream: 0,
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
