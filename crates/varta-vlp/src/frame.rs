//! The 32-byte frame: layout, encoding, and the checks on decoding (wire spec 2, 5).
//!
//! The pid in a frame is a claim; this module does not verify it.

use crate::{DecodeError, Status, crc32c};

/// Length of a frame, and of every datagram that carries one in clear, in bytes.
pub const FRAME_BYTES: usize = 32;

/// The first two bytes of every frame: "VA".
pub const MAGIC: [u8; 2] = *b"VA";

/// The third byte: generation 0.2 of the protocol. Any change of the byte map changes it.
pub const VERSION: u8 = 0x02;

/// The nonce that, together with [`Status::Critical`], marks the last frame of a process.
/// Regular beats never carry it (wire spec 3.4).
pub const NONCE_TERMINAL: u64 = u64::MAX;

/// The payload that makes a terminal frame a goodbye: "BYE" and a zero byte.
///
/// A terminal frame with this payload means that the process leaves in order. Published senders send 0, and
/// an observer of 0.2.0 treats a goodbye as a last Critical beat.
pub const PAYLOAD_GOODBYE: u32 = u32::from_le_bytes(*b"BYE\0");

/// Not a time: the all-ones timestamp is reserved (wire spec 2).
const TIMESTAMP_RESERVED: u64 = u64::MAX;

/// The checksum covers everything before it.
const CRC_OFFSET: usize = 28;

/// One beat: the health of a process (wire spec 2 and 3).
///
/// Build one with [`Frame::new`] or [`Frame::decode`]. The fields are public, so a caller can make a frame
/// that no decoder accepts; `encode` writes it unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(C, align(8))]
pub struct Frame {
    /// Always [`MAGIC`] in a frame that was decoded.
    pub magic: [u8; 2],
    /// Always [`VERSION`] in a frame that was decoded.
    pub version: u8,
    /// The claimed health.
    pub status: Status,
    /// Process id of the sender in the sender's own pid namespace.
    pub pid: u32,
    /// Monotonic nanoseconds since an origin of the sender's choice; never a wall clock, never
    /// comparable between processes.
    pub timestamp: u64,
    /// Counter of the sending handle: 1 first, 0 after `u64::MAX - 1`, or [`NONCE_TERMINAL`].
    pub nonce: u64,
    /// 32 bits for the application; the protocol does not interpret them.
    pub payload: u32,
}

// The published crate guarantees this layout; without the explicit alignment 32-bit x86 would have another.
const _: () = assert!(size_of::<Frame>() == FRAME_BYTES && align_of::<Frame>() == 8);

impl Frame {
    /// A frame of the current protocol generation with these claims, unchecked.
    pub const fn new(status: Status, pid: u32, timestamp: u64, nonce: u64, payload: u32) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            status,
            pid,
            timestamp,
            nonce,
            payload,
        }
    }

    /// Whether this is the last frame of a process, crashing or [leaving](Self::is_goodbye), rather
    /// than a regular beat.
    pub const fn is_terminal(&self) -> bool {
        self.nonce == NONCE_TERMINAL && matches!(self.status, Status::Critical)
    }

    /// Whether this is the last frame of a process that leaves in order: a terminal frame with
    /// [`PAYLOAD_GOODBYE`].
    pub const fn is_goodbye(&self) -> bool {
        self.is_terminal() && self.payload == PAYLOAD_GOODBYE
    }

    /// The condition that the sender reports: the status, but [`Status::Ok`] for a [goodbye](Self::is_goodbye),
    /// whose status byte is critical only because every terminal frame requires that.
    pub const fn condition(&self) -> Status {
        if self.is_goodbye() {
            Status::Ok
        } else {
            self.status
        }
    }

    /// Writes the frame and its checksum, little-endian on every host.
    pub fn encode(&self, out: &mut [u8; FRAME_BYTES]) {
        // The head goes out as one word because the checksum reads words: narrower stores would make
        // it wait for each of them, which triples the cost of encoding.
        let [magic_0, magic_1] = self.magic;
        let mark = u32::from_le_bytes([magic_0, magic_1, self.version, self.status as u8]);
        let head = u64::from(self.pid) << 32 | u64::from(mark);
        out[0..8].copy_from_slice(&head.to_le_bytes());
        out[8..16].copy_from_slice(&self.timestamp.to_le_bytes());
        out[16..24].copy_from_slice(&self.nonce.to_le_bytes());
        out[24..CRC_OFFSET].copy_from_slice(&self.payload.to_le_bytes());
        let crc = crc32c::compute(&out[..CRC_OFFSET]);
        out[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a frame whose pid only the sender claims: pids 0 and 1 are refused.
    ///
    /// # Errors
    ///
    /// The first check of wire spec 5 that fails, in the order of that table.
    pub fn decode(wire: &[u8; FRAME_BYTES]) -> Result<Self, DecodeError> {
        Self::decode_with_lowest_pid(wire, 2)
    }

    /// Reads a frame whose sender the kernel attests, so that the claimed pid is not relied upon.
    ///
    /// Same as [`Frame::decode`], but accepts pid 1: the first process of a container has it in its own
    /// namespace. Pid 0 stays refused, because no process has it in its own namespace.
    ///
    /// # Errors
    ///
    /// As [`Frame::decode`].
    pub fn decode_attested(wire: &[u8; FRAME_BYTES]) -> Result<Self, DecodeError> {
        Self::decode_with_lowest_pid(wire, 1)
    }

    fn decode_with_lowest_pid(
        wire: &[u8; FRAME_BYTES],
        lowest_pid: u32,
    ) -> Result<Self, DecodeError> {
        // Magic and version first so that foreign traffic is reported as foreign; the checksum before the
        // fields so that a flipped bit never turns one valid frame into another.
        if wire[0..2] != MAGIC {
            return Err(DecodeError::BadMagic);
        }
        if wire[2] != VERSION {
            return Err(DecodeError::BadVersion);
        }
        let expected = crc32c::compute(&wire[..CRC_OFFSET]);
        let actual = u32_at(wire, CRC_OFFSET);
        if actual != expected {
            return Err(DecodeError::BadCrc { expected, actual });
        }
        let status = Status::try_from_u8(wire[3])?;
        if status == Status::Stall {
            return Err(DecodeError::StallOnWire);
        }
        let pid = u32_at(wire, 4);
        if pid < lowest_pid {
            return Err(DecodeError::BadPid(pid));
        }
        let timestamp = u64_at(wire, 8);
        if timestamp == TIMESTAMP_RESERVED {
            return Err(DecodeError::BadTimestamp(timestamp));
        }
        let nonce = u64_at(wire, 16);
        if nonce == NONCE_TERMINAL && status != Status::Critical {
            return Err(DecodeError::BadNonce { nonce, status });
        }
        Ok(Self::new(status, pid, timestamp, nonce, u32_at(wire, 24)))
    }
}

/// The offset is always a constant of this file, so the copies compile to plain loads.
fn u32_at(wire: &[u8; FRAME_BYTES], offset: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&wire[offset..offset + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(wire: &[u8; FRAME_BYTES], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&wire[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

impl Status {
    /// The status a wire byte stands for. `Stall` has a byte too, so that a decoder can name it
    /// when it refuses it.
    ///
    /// # Errors
    ///
    /// [`DecodeError::BadStatus`] with the byte when it is above 3.
    pub const fn try_from_u8(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::Ok),
            1 => Ok(Self::Degraded),
            2 => Ok(Self::Critical),
            3 => Ok(Self::Stall),
            _ => Err(DecodeError::BadStatus(byte)),
        }
    }
}
