//! The encoding of a slot's facts in words. No other module depends on it.
//!
//! | word | bits | content |
//! |---|---|---|
//! | 0 | 0–63 | sequence counter: odd while a write is under way ([`crate::seqlock`]) |
//! | 1 | 0–31 | pid |
//! |   | 32–39 | state; 0 is free |
//! |   | 40–47 | status of the last beat |
//! |   | 48–55 | origin |
//! |   | 56–63 | flags: 1 a nonce is known, 2 the namespace is known, 4 local |
//! | 2 | 0–63 | instance of a local process, source of a remote one |
//! | 3 | 0–63 | nonce of the last regular beat |
//! | 4 | 0–63 | time of the last beat |
//! | 5 | 0–63 | the agent's own timestamp in that beat |
//! | 6 | 0–31 | payload |
//! |   | 32–63 | user id |
//! | 7 | 0–63 | beats |
//! | 8 | 0–63 | threshold |
//! | 9 | 0–63 | soft tier; 0 for none |
//! | 10 | 0–63 | pid namespace |
//! | 11 | 0–63 | time of the first beat |
//! | 12 | 0–63 | the agent's own timestamp in its last terminal frame |
//! | 13 | 0–63 | time at which its pause ends |
//! | 14 | 0–31 | stalls |
//! |   | 32–63 | sessions after the first |
//! | 15 | 0–15 | stream |
//! |   | 16–23 | version of this layout; 0 in a free slot |
//! |   | 24–63 | 0 |
//!
//! Times and durations are nanoseconds; times are attention time unless they are the agent's own. All-zero words
//! are a free slot. A change of the meaning of a word increments [`LAYOUT_VERSION`].

use varta_vlp::Status;

use super::{Slot, SlotState};
use crate::agent::{BeatOrigin, Locality};

/// Words of one slot: 128 bytes, two cache lines, so that slots never share one.
pub const WORDS_PER_SLOT: usize = 16;

/// Version of the layout, in every slot that is taken.
pub const LAYOUT_VERSION: u8 = 1;

pub(super) const SEQUENCE: usize = 0;
pub(super) const HEAD: usize = 1;
pub(super) const LAST_NS: usize = 4;
pub(super) const PAYLOAD_AND_UID: usize = 6;
pub(super) const BEATS: usize = 7;
pub(super) const THRESHOLD_NS: usize = 8;
pub(super) const JOINED_NS: usize = 11;
pub(super) const PAUSED_UNTIL_NS: usize = 13;
pub(super) const TAIL: usize = 15;

const HAS_NONCE: u64 = 1;
const HAS_NAMESPACE: u64 = 2;
const LOCAL: u64 = 4;

impl Slot {
    /// All words; the sequence counter is left to the table.
    pub(super) fn to_words(self) -> [u64; WORDS_PER_SLOT] {
        let mut flags = 0;
        if self.last_nonce.is_some() {
            flags |= HAS_NONCE;
        }
        if self.ns_inode.is_some() {
            flags |= HAS_NAMESPACE;
        }
        if self.locality == Locality::Local {
            flags |= LOCAL;
        }
        let head = u64::from(self.pid)
            | (self.state as u64) << 32
            | (self.status as u64) << 40
            | (self.origin as u64) << 48
            | flags << 56;
        [
            0,
            head,
            self.instance,
            self.last_nonce.unwrap_or(0),
            self.last_ns,
            self.last_timestamp,
            u64::from(self.payload) | u64::from(self.uid) << 32,
            self.beats,
            self.threshold_ns,
            self.late_ns,
            self.ns_inode.unwrap_or(0),
            self.joined_ns,
            self.terminal_timestamp,
            self.paused_until_ns,
            u64::from(self.stalls) | u64::from(self.session_restarts) << 32,
            u64::from(self.stream) | u64::from(LAYOUT_VERSION) << 16,
        ]
    }

    /// `None` for a free slot, and for words that no writer of this version has written.
    pub(super) fn from_words(words: &[u64; WORDS_PER_SLOT]) -> Option<Self> {
        let head = words[HEAD];
        let flags = head >> 56;
        if version_in(words[TAIL]) != LAYOUT_VERSION {
            return None;
        }
        Some(Self {
            state: state_in(head).filter(|state| *state != SlotState::Free)?,
            pid: head as u32,
            locality: locality_in(head),
            instance: words[2],
            stream: stream_in(words[TAIL]),
            origin: match head >> 48 & 0xff {
                0 => BeatOrigin::KernelAttested,
                1 => BeatOrigin::OperatorAttestedTransport,
                2 => BeatOrigin::NetworkUnverified,
                3 => BeatOrigin::SocketModeOnly,
                _ => return None,
            },
            uid: uid_in(words[PAYLOAD_AND_UID]),
            ns_inode: (flags & HAS_NAMESPACE != 0).then_some(words[10]),
            status: match head >> 40 & 0xff {
                0 => Status::Ok,
                1 => Status::Degraded,
                2 => Status::Critical,
                _ => return None,
            },
            payload: words[PAYLOAD_AND_UID] as u32,
            last_nonce: (flags & HAS_NONCE != 0).then_some(words[3]),
            last_timestamp: words[5],
            terminal_timestamp: words[12],
            last_ns: words[LAST_NS],
            joined_ns: words[JOINED_NS],
            paused_until_ns: words[PAUSED_UNTIL_NS],
            threshold_ns: words[THRESHOLD_NS],
            late_ns: words[9],
            beats: words[BEATS],
            stalls: words[14] as u32,
            session_restarts: (words[14] >> 32) as u32,
        })
    }
}

/// `None` for a state that no writer of this version has written.
pub(super) fn state_in(head: u64) -> Option<SlotState> {
    Some(match head >> 32 & 0xff {
        0 => SlotState::Free,
        1 => SlotState::Alive,
        2 => SlotState::Late,
        3 => SlotState::Stalled,
        4 => SlotState::Reclaimable,
        _ => return None,
    })
}

pub(super) fn locality_in(head: u64) -> Locality {
    match head >> 56 & LOCAL {
        0 => Locality::Remote,
        _ => Locality::Local,
    }
}

pub(super) fn uid_in(payload_and_uid: u64) -> u32 {
    (payload_and_uid >> 32) as u32
}

pub(super) fn stream_in(tail: u64) -> u16 {
    tail as u16
}

pub(super) fn version_in(tail: u64) -> u8 {
    (tail >> 16) as u8
}
