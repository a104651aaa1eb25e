//! Why 32 bytes are not a frame (wire spec 5).

use core::fmt;

use crate::Status;

/// The first check of wire spec 5 that a frame failed.
///
/// Exhaustive on purpose: the list is part of the wire contract, so a new reason is a new protocol. A
/// datagram of the wrong length is no decode error; its transport counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Bytes 0..2 are not [`MAGIC`](crate::MAGIC).
    BadMagic,
    /// Byte 2 is not [`VERSION`](crate::VERSION).
    BadVersion,
    /// The trailer does not match the bytes before it.
    BadCrc {
        /// CRC-32C recomputed over bytes 0..28.
        expected: u32,
        /// The checksum in the trailer.
        actual: u32,
    },
    /// The status byte, carried here, is above 3.
    BadStatus(u8),
    /// [`Status::Stall`] is a conclusion of observers; agents must not send it.
    StallOnWire,
    /// The pid, carried here, is reserved.
    BadPid(u32),
    /// The timestamp, carried here, is the reserved all-ones value.
    BadTimestamp(u64),
    /// The terminal nonce came with a status other than [`Status::Critical`].
    BadNonce {
        /// The nonce, which is [`NONCE_TERMINAL`](crate::NONCE_TERMINAL).
        nonce: u64,
        /// The status it came with.
        status: Status,
    },
}

impl DecodeError {
    /// The name of the variant as a metric label, for example `bad_magic` (wire spec 5).
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::BadMagic => "bad_magic",
            Self::BadVersion => "bad_version",
            Self::BadCrc { .. } => "bad_crc",
            Self::BadStatus(_) => "bad_status",
            Self::StallOnWire => "stall_on_wire",
            Self::BadPid(_) => "bad_pid",
            Self::BadTimestamp(_) => "bad_timestamp",
            Self::BadNonce { .. } => "bad_nonce",
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadMagic => f.write_str("not a varta frame: wrong magic"),
            Self::BadVersion => f.write_str("unsupported protocol version"),
            Self::BadCrc { expected, actual } => write!(
                f,
                "checksum mismatch: computed {expected:#010x}, frame says {actual:#010x}"
            ),
            Self::BadStatus(byte) => write!(f, "unknown status byte {byte:#04x}"),
            Self::StallOnWire => f.write_str("status stall is not for agents to send"),
            Self::BadPid(pid) => write!(f, "reserved pid {pid}"),
            Self::BadTimestamp(timestamp) => write!(f, "reserved timestamp {timestamp:#018x}"),
            Self::BadNonce { nonce, status } => write!(
                f,
                "terminal nonce {nonce:#018x} needs status critical, not {status}"
            ),
        }
    }
}

impl core::error::Error for DecodeError {}
