//! Sealing under a nonce of the caller's choice (feature `known-answers`).
//!
//! Published vectors fix prefix and counter, so comparing with them needs what [`super::Sealer`] prevents. Do
//! not use it otherwise: a nonce that is used twice reveals the key.

use super::{AgentKey, Envelope, Key, PREFIX_BYTES, SealError, seal};
use crate::FRAME_BYTES;

/// A 60-byte envelope with this prefix and counter.
///
/// # Errors
///
/// None for any frame.
pub fn seal_shared(
    key: &Key,
    prefix: [u8; PREFIX_BYTES],
    counter: u32,
    frame: &[u8; FRAME_BYTES],
) -> Result<Envelope, SealError> {
    seal::seal_shared(key, &seal::nonce_of(prefix, counter), frame)
}

/// A 64-byte envelope with this prefix and counter.
///
/// # Errors
///
/// [`SealError::WrongPid`] if the frame is not of the key's pid.
pub fn seal_agent(
    key: &AgentKey,
    prefix: [u8; PREFIX_BYTES],
    counter: u32,
    frame: &[u8; FRAME_BYTES],
) -> Result<Envelope, SealError> {
    seal::seal_agent(key, &seal::nonce_of(prefix, counter), frame)
}
