//! Encrypted frames over UDP (client spec 6, wire spec 6 to 8; feature `secure-udp`).
//!
//! One transport is one session: a socket, a salt from the system's entropy, and a counter that every attempt
//! to send uses up, so that nothing is ever encrypted twice under one nonce. A session belongs to one
//! process; a forked child opens its own before it sends anything. A restored snapshot of a process or of a
//! machine is not detected: call `reconnect` after one.
//!
//! The sending path takes no lock, allocates nothing and draws no entropy. All of that, including the wait
//! for entropy early at boot, happens on connecting. There is no fallback for a system without entropy, which
//! the published client had as `accept-degraded-entropy`: a salt that is not random breaks the key.

use std::net::{SocketAddr, UdpSocket};
use std::{error, fmt, io, process};

use varta_sys::{entropy, fork};
use varta_vlp::FRAME_BYTES;
use varta_vlp::secure::{AgentKey, Key, Salt, SealError, Sealer};

use crate::BeatTransport;
use crate::transport::udp::{self, Refusals};

#[cfg(test)]
mod tests;

/// Seals frames and sends them over one connected, non-blocking UDP socket.
///
/// A frame must carry the pid of this process, as those of [`Varta`](crate::Varta) do: under a key that
/// belongs to a pid, any other is refused as invalid input.
#[derive(Debug)]
pub struct SecureUdpTransport {
    target: SocketAddr,
    key: SessionKey,
    /// The generation of the process that owns the session.
    generation: u64,
    socket: UdpSocket,
    refusals: Refusals,
    sealer: Sealer,
}

/// The source of a new session's key. The sealer has the key itself.
#[derive(Debug)]
enum SessionKey {
    Shared,
    Agent { pid: u32 },
    Master(Key),
}

impl SecureUdpTransport {
    /// A session with the observer at `target`, under a key that all agents share.
    ///
    /// # Errors
    ///
    /// The first system call that failed, for the socket or for entropy.
    pub fn connect(target: SocketAddr, key: Key) -> io::Result<Self> {
        let sealer = Sealer::shared(key, draw_salt()?);
        Self::begin(target, SessionKey::Shared, sealer)
    }

    /// A session under this process's own key. The master key, which it is derived from, is kept for
    /// forked children.
    ///
    /// A process that can read the master key can send beats in the name of every agent. Where that matters,
    /// derive the key outside of the agent and use [`connect_with_agent_key`](Self::connect_with_agent_key).
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_with_master(target: SocketAddr, master: Key) -> io::Result<Self> {
        let sealer = derive_sealer(&master, draw_salt()?);
        Self::begin(target, SessionKey::Master(master), sealer)
    }

    /// A session under a key that was derived for the pid of this process. Forked children have no key:
    /// their sends and reconnects fail, and nothing leaves them.
    ///
    /// # Errors
    ///
    /// [`ForeignKey`] as invalid input if the key is for another pid; else as
    /// [`connect`](Self::connect).
    pub fn connect_with_agent_key(target: SocketAddr, key: AgentKey) -> io::Result<Self> {
        let pid = key.pid();
        ForeignKey::check(pid)?;
        let sealer = Sealer::agent(key, draw_salt()?);
        Self::begin(target, SessionKey::Agent { pid }, sealer)
    }

    fn begin(target: SocketAddr, key: SessionKey, sealer: Sealer) -> io::Result<Self> {
        Ok(Self {
            target,
            key,
            generation: fork::generation(),
            socket: udp::connect(target)?,
            refusals: Refusals::default(),
            sealer,
        })
    }

    /// Encrypts and sends. The nonce is used up even on failure.
    fn attempt(&mut self, frame: &[u8; FRAME_BYTES]) -> io::Result<usize> {
        let sealed = match self.sealer.seal(frame) {
            Err(SealError::Exhausted) => {
                self.reconnect()?;
                self.sealer.seal(frame)
            }
            sealed => sealed,
        };
        // The bare kind: an error with a text would allocate.
        let envelope = sealed.map_err(|_| io::ErrorKind::InvalidInput)?;
        self.socket.send(envelope.as_bytes())
    }
}

impl BeatTransport for SecureUdpTransport {
    /// The length returned is that of the envelope: 60 bytes under a shared key, else 64.
    fn send(&mut self, frame: &[u8; FRAME_BYTES]) -> io::Result<usize> {
        if fork::generation() != self.generation {
            self.reconnect()?;
        }
        let first = self.attempt(frame);
        if self.refusals.ask_for_another(&first) {
            self.attempt(frame)
        } else {
            first
        }
    }

    fn reconnect(&mut self) -> io::Result<()> {
        let generation = fork::generation();
        if let SessionKey::Agent { pid } = self.key {
            ForeignKey::check(pid)?;
        }
        let socket = udp::connect(self.target)?;
        let salt = draw_salt()?;
        // Nothing fails from here on, so the session is replaced completely or not at all.
        match &self.key {
            SessionKey::Master(master) => self.sealer = derive_sealer(master, salt),
            SessionKey::Shared | SessionKey::Agent { .. } => self.sealer.renew(salt),
        }
        self.socket = socket;
        self.refusals = Refusals::default();
        self.generation = generation;
        Ok(())
    }
}

/// Sixteen bytes of the system's entropy. May wait early at boot.
pub(crate) fn draw_salt() -> io::Result<Salt> {
    Salt::draw(|salt| entropy::fill(salt))
}

/// Reads the pid at each call, because a fork may have changed it.
fn derive_sealer(master: &Key, salt: Salt) -> Sealer {
    Sealer::agent(AgentKey::derive(master, process::id()), salt)
}

/// An agent key is for another process than its holder; no observer would open its envelopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    /// The pid that the key was derived for.
    pub key_pid: u32,
    /// The pid of this process.
    pub process_pid: u32,
}

impl ForeignKey {
    /// Whether a key for `key_pid` belongs to this process.
    pub(crate) fn check(key_pid: u32) -> Result<(), Self> {
        let process_pid = process::id();
        if key_pid == process_pid {
            return Ok(());
        }
        Err(Self {
            key_pid,
            process_pid,
        })
    }
}

impl fmt::Display for ForeignKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key_pid,
            process_pid,
        } = self;
        write!(
            f,
            "the agent key is for pid {key_pid}, but this process is pid {process_pid}; its own is \
             made by 'varta key derive --pid {process_pid}'"
        )
    }
}

impl error::Error for ForeignKey {}

impl From<ForeignKey> for io::Error {
    fn from(error: ForeignKey) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}
