//! Encrypted envelopes: one frame in one datagram that only holders of a key can make or read (wire
//! spec 6 to 8; feature `secure`).
//!
//! | envelope | bytes | key | in clear |
//! |---|---|---|---|
//! | shared key | 60 | one for all agents | prefix, counter |
//! | master key | 64 | one per pid, derived from a master key | pid, prefix, counter |
//!
//! ChaCha20-Poly1305 with the AEAD nonce `prefix || counter`. A nonce must never be used twice under a key.
//! So there is no function that takes a nonce: a sender has a [`Sealer`], which cannot be copied, uses up a
//! counter before it seals, and draws its prefixes from a [`Salt`] of its own; or a [`CrashSealer`] for the
//! last frames of a process.
//!
//! This module does not detect replays, and does not check whether the frame in an envelope is valid. No
//! allocation, no system call. Keys are wiped from memory when dropped and never printed.

pub mod kdf;
mod key;
#[cfg(feature = "known-answers")]
pub mod known_answers;
mod open;
mod seal;

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};

pub use key::{AgentKey, Fingerprint, Key, KeyError, KeyTextError};
pub use open::{MasterEnvelope, SharedEnvelope};
pub use seal::{CrashSealer, Envelope, Salt, SealError, Sealer};

use crate::FRAME_BYTES;

/// Length of every key, in bytes.
pub const KEY_BYTES: usize = 32;

/// Length of the random salt that the prefixes of a session are derived from, in bytes.
pub const SALT_BYTES: usize = 16;

/// Length of the clear part that names a session, in bytes.
pub const PREFIX_BYTES: usize = 8;

/// Length of the clear counter behind the prefix, in bytes.
pub const COUNTER_BYTES: usize = 4;

/// Length of the tag that proves an envelope, in bytes.
pub const TAG_BYTES: usize = 16;

/// Length of an envelope under a shared key, in bytes.
pub const SHARED_ENVELOPE_BYTES: usize = NONCE_BYTES + FRAME_BYTES + TAG_BYTES;

/// Length of an envelope under a key derived from a master key, in bytes.
pub const MASTER_ENVELOPE_BYTES: usize = PID_BYTES + SHARED_ENVELOPE_BYTES;

const NONCE_BYTES: usize = PREFIX_BYTES + COUNTER_BYTES;
const PID_BYTES: usize = 4;

/// Offset of the pid in a frame.
const FRAME_PID: core::ops::Range<usize> = 4..8;

/// The AEAD nonce; made where it is used up, see [`seal`](self).
type Nonce = [u8; NONCE_BYTES];

/// Encrypts the frame in place and returns the tag.
fn seal_in_place(
    key: &Key,
    nonce: &Nonce,
    associated: &[u8],
    frame: &mut [u8],
) -> Result<[u8; TAG_BYTES], SealError> {
    let cipher = ChaCha20Poly1305::new(key.expose().into());
    // Only a message of gigabytes is too long.
    cipher
        .encrypt_inout_detached(nonce.into(), associated, frame.into())
        .map(Into::into)
        .map_err(|_| SealError::Exhausted)
}

/// Decrypts and proves; `None` if the tag does not fit. The tag is compared in constant time, and nothing
/// is decrypted before it fits.
fn open_envelope(
    key: &Key,
    nonce: &Nonce,
    associated: &[u8],
    sealed: &[u8; FRAME_BYTES],
    tag: &[u8; TAG_BYTES],
) -> Option<[u8; FRAME_BYTES]> {
    let cipher = ChaCha20Poly1305::new(key.expose().into());
    let mut frame = *sealed;
    let tag: &Tag = tag.into();
    cipher
        .decrypt_inout_detached(nonce.into(), associated, frame.as_mut_slice().into(), tag)
        .ok()?;
    Some(frame)
}
