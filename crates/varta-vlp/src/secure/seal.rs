//! The sender's side: prevents sealing twice under one nonce.
//!
//! A nonce is prefix and counter. Prefixes are derived from a salt that was drawn for this sealer only; the
//! counter is used up before sealing, whether or not the datagram is sent. Types cannot prevent a copy of the
//! memory: after a fork, and after a snapshot of the machine, the copy needs a sealer of its own (wire spec
//! 8).

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use super::{
    AgentKey, COUNTER_BYTES, FRAME_PID, Key, MASTER_ENVELOPE_BYTES, NONCE_BYTES, Nonce, PID_BYTES,
    PREFIX_BYTES, SALT_BYTES, SHARED_ENVELOPE_BYTES, kdf, seal_in_place,
};
use crate::FRAME_BYTES;

/// The counter of a session's first envelope. Published senders start at 0 or 1.
const FIRST_COUNTER: u32 = 1;

/// Sixteen bytes of entropy for one sealer. Cannot be copied, so no two sealers share one.
pub struct Salt([u8; SALT_BYTES]);

impl Salt {
    /// Draws the salt with `fill`. It must come from the system's entropy source: bytes that were used before
    /// break the key.
    ///
    /// # Errors
    ///
    /// The error of `fill`.
    pub fn draw<E>(fill: impl FnOnce(&mut [u8; SALT_BYTES]) -> Result<(), E>) -> Result<Self, E> {
        let mut salt = [0; SALT_BYTES];
        fill(&mut salt)?;
        Ok(Self(salt))
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(hidden)")
    }
}

/// One sealed frame, ready to be sent as one datagram.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    bytes: [u8; MASTER_ENVELOPE_BYTES],
    len: usize,
}

impl Envelope {
    /// The datagram: 60 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// Every nonce of the salt has been used: the session needs a new one.
    Exhausted,
    /// The frame names another pid than the key was derived for; no receiver would open it.
    WrongPid {
        /// The pid of the key.
        key: u32,
        /// The pid in the frame.
        frame: u32,
    },
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exhausted => f.write_str("the session has used up its nonces; reconnect"),
            Self::WrongPid { key, frame } => {
                write!(
                    f,
                    "the key was derived for pid {key}, the frame is of pid {frame}"
                )
            }
        }
    }
}

impl core::error::Error for SealError {}

/// Seals the frames of one session.
#[derive(Debug)]
pub struct Sealer {
    key: SealingKey,
    nonces: Nonces,
}

impl Sealer {
    /// Seals 60-byte envelopes.
    pub fn shared(key: Key, salt: Salt) -> Self {
        Self::new(SealingKey::Shared(key), salt)
    }

    /// Seals 64-byte envelopes for the pid of the key.
    pub fn agent(key: AgentKey, salt: Salt) -> Self {
        Self::new(SealingKey::Agent(key), salt)
    }

    fn new(key: SealingKey, salt: Salt) -> Self {
        Self {
            key,
            nonces: Nonces::from(salt),
        }
    }

    /// Starts another session under the same key.
    pub fn renew(&mut self, salt: Salt) {
        self.nonces = Nonces::from(salt);
    }

    /// Seals a frame. Its nonce is used up even if the envelope is never sent.
    ///
    /// # Errors
    ///
    /// [`SealError`]; nothing was sealed then.
    pub fn seal(&mut self, frame: &[u8; FRAME_BYTES]) -> Result<Envelope, SealError> {
        let nonce = self.nonces.next()?;
        self.key.seal(&nonce, frame)
    }
}

/// Seals the last frames of a process from within a crash: needs no entropy and no exclusive access.
///
/// Every firing of the hook has a prefix of its own, derived from a salt that was drawn when the hook was
/// installed, from pid and timestamp of the frame and from a count (wire spec 8.1). So a forked child,
/// another process with its pid and any number of panicking threads stay apart, as long as the timestamps of
/// the last frames of a process increase.
#[derive(Debug)]
pub struct CrashSealer {
    salt: Salt,
    firings: AtomicU32,
}

impl CrashSealer {
    /// The salt must not be that of a [`Sealer`], which its type ensures.
    pub const fn new(salt: Salt) -> Self {
        Self {
            salt,
            firings: AtomicU32::new(0),
        }
    }

    /// Seals a last frame as a 60-byte envelope.
    ///
    /// # Errors
    ///
    /// As [`Sealer::seal`].
    pub fn seal_shared(&self, key: &Key, frame: &[u8; FRAME_BYTES]) -> Result<Envelope, SealError> {
        seal_shared(key, &self.nonce_for(frame), frame)
    }

    /// Seals a last frame as a 64-byte envelope.
    ///
    /// # Errors
    ///
    /// As [`Sealer::seal`].
    pub fn seal_agent(
        &self,
        key: &AgentKey,
        frame: &[u8; FRAME_BYTES],
    ) -> Result<Envelope, SealError> {
        seal_agent(key, &self.nonce_for(frame), frame)
    }

    fn nonce_for(&self, frame: &[u8; FRAME_BYTES]) -> Nonce {
        let firing = self.firings.fetch_add(1, Ordering::Relaxed);
        let timestamp_ns = u64::from_le_bytes(core::array::from_fn(|i| frame[8 + i]));
        let prefix = kdf::derive_panic_prefix(&self.salt.0, pid_of(frame), timestamp_ns, firing);
        nonce_of(prefix, FIRST_COUNTER)
    }
}

#[derive(Debug)]
enum SealingKey {
    Shared(Key),
    Agent(AgentKey),
}

impl SealingKey {
    fn seal(&self, nonce: &Nonce, frame: &[u8; FRAME_BYTES]) -> Result<Envelope, SealError> {
        match self {
            Self::Shared(key) => seal_shared(key, nonce, frame),
            Self::Agent(key) => seal_agent(key, nonce, frame),
        }
    }
}

/// The nonces of one salt, each returned once.
#[derive(Debug)]
struct Nonces {
    salt: Salt,
    index: u32,
    prefix: [u8; PREFIX_BYTES],
    /// `None`: those of the prefix are used up.
    next_counter: Option<u32>,
}

impl From<Salt> for Nonces {
    fn from(salt: Salt) -> Self {
        Self {
            prefix: kdf::derive_iv_prefix(&salt.0, 0),
            salt,
            index: 0,
            next_counter: Some(FIRST_COUNTER),
        }
    }
}

impl Nonces {
    fn next(&mut self) -> Result<Nonce, SealError> {
        let counter = match self.next_counter {
            Some(counter) => counter,
            None => self.rotate()?,
        };
        self.next_counter = counter.checked_add(1);
        Ok(nonce_of(self.prefix, counter))
    }

    /// The next prefix of the same salt.
    #[cold]
    fn rotate(&mut self) -> Result<u32, SealError> {
        self.index = self.index.checked_add(1).ok_or(SealError::Exhausted)?;
        self.prefix = kdf::derive_iv_prefix(&self.salt.0, self.index);
        Ok(FIRST_COUNTER)
    }
}

pub(super) fn nonce_of(prefix: [u8; PREFIX_BYTES], counter: u32) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[..PREFIX_BYTES].copy_from_slice(&prefix);
    nonce[PREFIX_BYTES..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

pub(super) fn seal_shared(
    key: &Key,
    nonce: &Nonce,
    frame: &[u8; FRAME_BYTES],
) -> Result<Envelope, SealError> {
    seal_at(key, nonce, &[], frame)
}

pub(super) fn seal_agent(
    key: &AgentKey,
    nonce: &Nonce,
    frame: &[u8; FRAME_BYTES],
) -> Result<Envelope, SealError> {
    let frame_pid = pid_of(frame);
    if frame_pid != key.pid() {
        return Err(SealError::WrongPid {
            key: key.pid(),
            frame: frame_pid,
        });
    }
    seal_at(key.key(), nonce, &key.pid().to_le_bytes(), frame)
}

/// `clear` precedes the nonce and is authenticated with the frame.
fn seal_at(
    key: &Key,
    nonce: &Nonce,
    clear: &[u8],
    frame: &[u8; FRAME_BYTES],
) -> Result<Envelope, SealError> {
    let mut bytes = [0; MASTER_ENVELOPE_BYTES];
    let (head, rest) = bytes.split_at_mut(clear.len());
    head.copy_from_slice(clear);
    rest[..NONCE_BYTES].copy_from_slice(nonce);
    let (sealed, rest) = rest[NONCE_BYTES..].split_at_mut(FRAME_BYTES);
    sealed.copy_from_slice(frame);
    let tag = seal_in_place(key, nonce, clear, sealed)?;
    rest[..tag.len()].copy_from_slice(&tag);
    Ok(Envelope {
        bytes,
        len: clear.len() + SHARED_ENVELOPE_BYTES,
    })
}

fn pid_of(frame: &[u8; FRAME_BYTES]) -> u32 {
    let mut pid = [0; PID_BYTES];
    pid.copy_from_slice(&frame[FRAME_PID]);
    u32::from_le_bytes(pid)
}

const _: () = assert!(NONCE_BYTES == PREFIX_BYTES + COUNTER_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: [u8; SALT_BYTES] = [7; SALT_BYTES];

    fn nonces() -> Nonces {
        Nonces::from(Salt(SALT))
    }

    #[test]
    fn the_last_counter_of_a_prefix_is_followed_by_the_first_of_the_next() {
        let mut nonces = nonces();
        nonces.next_counter = Some(u32::MAX);
        let first = kdf::derive_iv_prefix(&SALT, 0);
        let second = kdf::derive_iv_prefix(&SALT, 1);
        assert_eq!(nonces.next(), Ok(nonce_of(first, u32::MAX)));
        assert_eq!(nonces.next(), Ok(nonce_of(second, 1)));
        assert_eq!(nonces.next(), Ok(nonce_of(second, 2)));
    }

    #[test]
    fn the_last_nonce_of_a_salt_is_followed_by_an_error_for_ever() {
        let mut nonces = nonces();
        nonces.index = u32::MAX;
        nonces.next_counter = Some(u32::MAX);
        assert!(nonces.next().is_ok());
        assert_eq!(nonces.next(), Err(SealError::Exhausted));
        assert_eq!(nonces.next(), Err(SealError::Exhausted));
    }

    #[test]
    fn a_session_starts_with_counter_one() {
        let prefix = kdf::derive_iv_prefix(&SALT, 0);
        assert_eq!(nonces().next(), Ok(nonce_of(prefix, 1)));
    }
}
