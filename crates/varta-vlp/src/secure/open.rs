//! The receiver's side: the clear part of an envelope, and its frame.
//!
//! The length alone distinguishes the kinds, and they are never mixed: a 64-byte envelope opens under the key
//! of its clear pid only, a 60-byte one under shared keys only (wire spec 6 and 13).

use super::{
    AgentKey, COUNTER_BYTES, FRAME_PID, Key, MASTER_ENVELOPE_BYTES, NONCE_BYTES, Nonce, PID_BYTES,
    PREFIX_BYTES, SHARED_ENVELOPE_BYTES, TAG_BYTES, open_envelope,
};
use crate::FRAME_BYTES;

/// A datagram of 60 bytes. Its content is unverified until it is opened.
#[derive(Clone, Copy, Debug)]
pub struct SharedEnvelope<'a>(&'a [u8; SHARED_ENVELOPE_BYTES]);

impl<'a> SharedEnvelope<'a> {
    /// `None` for a datagram of another length.
    pub fn from_datagram(bytes: &'a [u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// Names the session.
    pub fn prefix(&self) -> [u8; PREFIX_BYTES] {
        bytes_at(self.0, 0)
    }

    /// Its counter in the session.
    pub fn counter(&self) -> u32 {
        u32::from_le_bytes(bytes_at(self.0, PREFIX_BYTES))
    }

    /// The frame in it; `None` if this key has not sealed it.
    pub fn open(&self, key: &Key) -> Option<[u8; FRAME_BYTES]> {
        let (nonce, sealed, tag) = parts(self.0);
        open_envelope(key, &nonce, &[], &sealed, &tag)
    }
}

/// A datagram of 64 bytes. Its content is unverified until it is opened.
#[derive(Clone, Copy, Debug)]
pub struct MasterEnvelope<'a>(&'a [u8; MASTER_ENVELOPE_BYTES]);

impl<'a> MasterEnvelope<'a> {
    /// `None` for a datagram of another length.
    pub fn from_datagram(bytes: &'a [u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// The pid whose key it claims to be sealed with.
    pub fn pid(&self) -> u32 {
        u32::from_le_bytes(bytes_at(self.0, 0))
    }

    /// Names the session.
    pub fn prefix(&self) -> [u8; PREFIX_BYTES] {
        bytes_at(self.0, PID_BYTES)
    }

    /// Its counter in the session.
    pub fn counter(&self) -> u32 {
        u32::from_le_bytes(bytes_at(self.0, PID_BYTES + PREFIX_BYTES))
    }

    /// The frame in it; `None` if this key has not sealed it, if it is another pid's key, or if the
    /// frame names another pid than the clear one.
    pub fn open(&self, key: &AgentKey) -> Option<[u8; FRAME_BYTES]> {
        let pid: [u8; PID_BYTES] = bytes_at(self.0, 0);
        let (nonce, sealed, tag) = parts(&self.0[PID_BYTES..]);
        let frame = open_envelope(key.key(), &nonce, &pid, &sealed, &tag)?;
        let is_its_own = key.pid() == u32::from_le_bytes(pid) && frame[FRAME_PID] == pid;
        is_its_own.then_some(frame)
    }
}

/// Nonce, sealed frame and tag of an envelope without its pid.
fn parts(bytes: &[u8]) -> (Nonce, [u8; FRAME_BYTES], [u8; TAG_BYTES]) {
    let sealed = bytes_at(bytes, NONCE_BYTES);
    let tag = bytes_at(bytes, NONCE_BYTES + FRAME_BYTES);
    (bytes_at(bytes, 0), sealed, tag)
}

/// The offset is always a constant of this file within an envelope.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut copy = [0; N];
    copy.copy_from_slice(&bytes[offset..offset + N]);
    copy
}

const _: () = assert!(NONCE_BYTES == PREFIX_BYTES + COUNTER_BYTES);
