//! One agent's facts, their state machine, and the table that holds the facts of all agents.
//!
//! The table is a row of atomic words with one writer (the tracker) and any number of readers; each
//! slot carries a sequence counter, so that readers get consistent copies. The words are handed in at
//! construction, a heap table here, a mapped file in an observer that outlives its process; nothing else
//! of the tracker needs to survive, because index, wheel and queues can be rebuilt from the table.
//!
//! The state machine of a slot says what a beat or the passing of time means for what is known; the
//! tracker acts on it.

use std::sync::atomic::{AtomicU64, Ordering};

use varta_vlp::{Frame, Status};

use crate::agent::{Agent, BeatOrigin, Locality};
use crate::beat::Beat;
use crate::replay::Heard;
use crate::seqlock;

/// Words of one slot: 128 bytes, two cache lines, so that slots never share one.
pub const WORDS_PER_SLOT: usize = 16;

/// An agent silent for more than this many thresholds may lose its slot to a newcomer. Ten, so that
/// a slow but regular agent is never a victim.
const RECLAIM_THRESHOLDS: u64 = 10;

/// A nonce this close to the end of the range may be followed by one this close to its start. Far
/// larger than any reordering.
const NONCE_WRAP_DISTANCE: u64 = 1 << 20;

/// Silence, in parts of the threshold, after which any lower nonce of a process is taken for a
/// new session: a quarter, so that an agent that beats as seldom as it may still gets through in time.
const SESSION_QUIET_PARTS: u64 = 4;

/// What the observer thinks of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotState {
    /// Nobody is here.
    Free = 0,
    /// Heard within its threshold.
    Alive = 1,
    /// Silent beyond its soft tier; not yet a stall.
    Late = 2,
    /// Silent for a threshold; reported once.
    Stalled = 3,
    /// Silent for more than ten thresholds: a newcomer may have the slot.
    Reclaimable = 4,
}

impl SlotState {
    /// The stall of the current silence has been reported.
    pub const fn is_latched(self) -> bool {
        matches!(self, Self::Stalled | Self::Reclaimable)
    }
}

/// One agent's facts. All times are attention time in nanoseconds unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What the observer thinks of the agent.
    pub state: SlotState,
    /// Process id.
    pub pid: u32,
    /// A local agent is keyed by `(pid, instance)`, a remote one by `(source, pid)`.
    pub locality: Locality,
    /// Process instance of a local agent, source of a remote agent.
    pub instance: u64,
    /// Pinned by the first beat.
    pub origin: BeatOrigin,
    /// User id by kernel credentials, or [`crate::agent::UID_UNKNOWN`].
    pub uid: u32,
    /// Pid namespace, pinned by the first beat that knew it.
    pub ns_inode: Option<u64>,
    /// Status of the last accepted beat.
    pub status: Status,
    /// Payload of the last accepted beat.
    pub payload: u32,
    /// Nonce of the last regular beat; `None` while only a terminal frame was heard.
    pub last_nonce: Option<u64>,
    /// The agent's own timestamp in its last regular beat, nanoseconds on its own clock.
    pub last_timestamp: u64,
    /// The agent's own timestamp in its last terminal frame; 0 before the first.
    pub terminal_timestamp: u64,
    /// When the last beat was accepted.
    pub last_ns: u64,
    /// When the first beat was accepted.
    pub joined_ns: u64,
    /// Silence is not counted before this time; 0 when the agent was never paused.
    pub paused_until_ns: u64,
    /// Silence that makes a stall.
    pub threshold_ns: u64,
    /// Silence that makes the agent late; 0 for no soft tier.
    pub late_ns: u64,
    /// Accepted beats.
    pub beats: u64,
    /// Stalls reported.
    pub stalls: u32,
    /// Sessions after the first.
    pub session_restarts: u32,
}

const HAS_NONCE: u64 = 1;
const HAS_NAMESPACE: u64 = 2;
const LOCAL: u64 = 4;

impl Slot {
    /// Silence so far: time since the last beat or the end of the last pause.
    pub fn silence_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.heard_ns())
    }

    /// Where silence starts: the last beat, or the end of a pause that is later.
    pub fn heard_ns(&self) -> u64 {
        self.last_ns.max(self.paused_until_ns)
    }

    /// This agent's identity, given the slot it stands in.
    pub fn agent(&self, slot: u32) -> Agent {
        Agent {
            slot,
            pid: self.pid,
            instance: self.instance,
            stream: 0,
        }
    }

    /// Word 0 is the sequence counter and belongs to the table.
    fn to_words(self) -> [u64; WORDS_PER_SLOT] {
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
            0,
        ]
    }

    /// `None` for words no writer of this version has written.
    fn from_words(words: &[u64; WORDS_PER_SLOT]) -> Option<Self> {
        let head = words[1];
        let flags = head >> 56;
        Some(Self {
            state: state_in(head)?,
            pid: head as u32,
            locality: locality_in(head),
            instance: words[2],
            origin: match head >> 48 & 0xff {
                0 => BeatOrigin::KernelAttested,
                1 => BeatOrigin::OperatorAttestedTransport,
                2 => BeatOrigin::NetworkUnverified,
                3 => BeatOrigin::SocketModeOnly,
                _ => return None,
            },
            uid: (words[6] >> 32) as u32,
            ns_inode: (flags & HAS_NAMESPACE != 0).then_some(words[10]),
            status: match head >> 40 & 0xff {
                0 => Status::Ok,
                1 => Status::Degraded,
                2 => Status::Critical,
                _ => return None,
            },
            payload: words[6] as u32,
            last_nonce: (flags & HAS_NONCE != 0).then_some(words[3]),
            last_timestamp: words[5],
            terminal_timestamp: words[12],
            last_ns: words[4],
            joined_ns: words[11],
            paused_until_ns: words[13],
            threshold_ns: words[8],
            late_ns: words[9],
            beats: words[7],
            stalls: words[14] as u32,
            session_restarts: (words[14] >> 32) as u32,
        })
    }
}

/// `None` for a state no writer of this version has written.
fn state_in(head: u64) -> Option<SlotState> {
    Some(match head >> 32 & 0xff {
        0 => SlotState::Free,
        1 => SlotState::Alive,
        2 => SlotState::Late,
        3 => SlotState::Stalled,
        4 => SlotState::Reclaimable,
        _ => return None,
    })
}

fn locality_in(head: u64) -> Locality {
    match head >> 56 & LOCAL {
        0 => Locality::Remote,
        _ => Locality::Local,
    }
}

/// How an agent beats, and what it is held to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    pub(crate) is_latched: bool,
    pub(crate) locality: Locality,
    pub(crate) uid: u32,
    pub(crate) last_ns: u64,
    pub(crate) joined_ns: u64,
    pub(crate) beats: u64,
    pub(crate) threshold_ns: u64,
    pub(crate) paused_until_ns: u64,
}

/// How silent an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Beyond its soft tier.
    Late,
    /// Beyond its threshold.
    Stalled,
    /// Beyond its threshold, but a full queue may have refused its beats: its stall is put off.
    PutOff,
}

/// How an accepted beat continues what is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Next,
    Wrap,
    NewSession,
    /// A newer one came before it.
    Overtaken,
    Terminal,
}

/// The state machine: what a beat or the passing of time means for what is known.
impl Slot {
    /// How a beat continues what is known; `None` for an old one.
    ///
    /// Terminal frames carry a nonce that says nothing about order, so they neither read nor move the
    /// nonce mark; their own timestamps order them.
    ///
    /// A beat over a session that a key vouches for was never heard before, and the session tells its order. Its
    /// nonce is compared with that of another session only to tell a new series from one that goes on, which
    /// decides nothing but what is counted.
    ///
    /// Where the kernel vouches for the sender nobody else can replay its beats, so a nonce that does not
    /// grow is a new session of the same process: at once if the timestamp restarts too (a new handle,
    /// another program after `exec`), else as soon as the process has been quiet for a while (the older
    /// of two handles goes on after the newer one was closed). It is never locked out. Only the very same
    /// frame again is never one. A sender that nobody vouches for must be quiet first in any case, since a
    /// network reorders.
    pub(crate) fn step_to(&self, beat: &Beat, now_ns: u64) -> Option<Step> {
        let frame = &beat.frame;
        if frame.is_terminal() {
            let stale = self.terminal_timestamp != 0 && frame.timestamp <= self.terminal_timestamp;
            return (!stale || beat.session.is_some()).then_some(Step::Terminal);
        }
        let Some(last_nonce) = self.last_nonce else {
            return Some(Step::Next);
        };
        let is_newer = frame.nonce > last_nonce;
        let wraps =
            last_nonce >= u64::MAX - NONCE_WRAP_DISTANCE && frame.nonce < NONCE_WRAP_DISTANCE;
        match beat.session {
            Some(Heard::Overtaken) => return Some(Step::Overtaken),
            _ if is_newer => return Some(Step::Next),
            _ if wraps => return Some(Step::Wrap),
            Some(Heard::Newest) => return Some(Step::Next),
            Some(Heard::First) => return Some(Step::NewSession),
            None => {}
        }
        let is_ordered = beat.origin == BeatOrigin::KernelAttested;
        let restarts = is_ordered && frame.timestamp < self.last_timestamp;
        let is_repeated = frame.nonce == last_nonce && frame.timestamp == self.last_timestamp;
        (!is_repeated && (restarts || self.was_quiet(SESSION_QUIET_PARTS, now_ns)))
            .then_some(Step::NewSession)
    }

    /// Whether a frame of this agent may begin a session that nobody has heard of. A terminal frame must be newer
    /// than the last one: it may have been recorded while no observer listened (wire spec 10.6).
    pub fn may_begin_session(&self, frame: &Frame) -> bool {
        !frame.is_terminal()
            || self.terminal_timestamp == 0
            || frame.timestamp > self.terminal_timestamp
    }

    fn was_quiet(&self, parts: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.last_ns) >= self.threshold_ns / parts
    }

    /// The tier that silence has reached and that was not handed over yet.
    pub(crate) fn due_tier(&self, now_ns: u64) -> Option<Tier> {
        let silence_ns = self.silence_ns(now_ns);
        let paused = now_ns < self.paused_until_ns;
        match self.state {
            SlotState::Alive | SlotState::Late if paused => None,
            SlotState::Alive | SlotState::Late if silence_ns >= self.threshold_ns => {
                Some(Tier::Stalled)
            }
            SlotState::Alive if self.late_ns != 0 && silence_ns >= self.late_ns => Some(Tier::Late),
            _ => None,
        }
    }

    /// Strictly more than ten thresholds of silence (observer spec 1.6).
    pub(crate) fn is_reclaimable(&self, now_ns: u64) -> bool {
        self.silence_ns(now_ns) > self.threshold_ns.saturating_mul(RECLAIM_THRESHOLDS)
    }

    /// When the wheel must look at the slot again, given its state.
    pub(crate) fn next_look_ns(&self) -> u64 {
        let after_ns = match self.state {
            SlotState::Alive if self.late_ns != 0 => self.late_ns.min(self.threshold_ns),
            SlotState::Stalled | SlotState::Reclaimable => self
                .threshold_ns
                .saturating_mul(RECLAIM_THRESHOLDS)
                .saturating_add(1),
            SlotState::Alive | SlotState::Late | SlotState::Free => self.threshold_ns,
        };
        self.heard_ns().saturating_add(after_ns)
    }
}

/// Some words of a slot as they were at one moment. `None` if its writer does not come out of it.
fn consistent<const N: usize>(words: &[AtomicU64], wanted: [usize; N]) -> Option<[u64; N]> {
    seqlock::read(&words[0], || {
        wanted.map(|i| words[i].load(Ordering::Relaxed))
    })
    .ok()
}

/// The facts of all agents: `capacity` slots in a row of atomic words.
#[derive(Debug)]
pub struct SlotTable<W = Box<[AtomicU64]>> {
    words: W,
}

impl SlotTable {
    /// An empty table on the heap.
    pub fn on_heap(capacity: usize) -> Self {
        let words = capacity.saturating_mul(WORDS_PER_SLOT);
        Self::from_words((0..words).map(|_| AtomicU64::new(0)).collect())
    }
}

impl<W: AsRef<[AtomicU64]>> SlotTable<W> {
    /// A table in the given words, as many slots as fit. All-zero words are free slots.
    pub fn from_words(words: W) -> Self {
        Self { words }
    }

    /// Number of slots.
    pub fn capacity(&self) -> usize {
        self.words.as_ref().len() / WORDS_PER_SLOT
    }

    /// A consistent copy of an occupied slot, from any thread. `None` for a free slot, a number out
    /// of range, or words that make no sense.
    pub fn read(&self, slot: u32) -> Option<Slot> {
        let copy = consistent(self.slot_words(slot)?, std::array::from_fn(|i| i))?;
        Slot::from_words(&copy).filter(|slot| slot.state != SlotState::Free)
    }

    /// What a census needs of an occupied slot and nothing else, so that all of them can be looked at in a
    /// moment.
    pub(crate) fn read_rhythm(&self, slot: u32) -> Option<Rhythm> {
        let words = self.slot_words(slot)?;
        // A free slot is not worth the wait; one that is filled just now is in the next census.
        if words[1].load(Ordering::Relaxed) == 0 {
            return None;
        }
        let [
            head,
            last_ns,
            payload_and_uid,
            beats,
            threshold_ns,
            joined_ns,
            paused_until_ns,
        ] = consistent(words, [1, 4, 6, 7, 8, 11, 13])?;
        let state = state_in(head)?;
        (state != SlotState::Free).then_some(Rhythm {
            is_latched: state.is_latched(),
            locality: locality_in(head),
            uid: (payload_and_uid >> 32) as u32,
            last_ns,
            joined_ns,
            beats,
            threshold_ns,
            paused_until_ns,
        })
    }

    /// The writer's own view; it never collides with itself.
    pub(crate) fn load(&self, slot: u32) -> Option<Slot> {
        let words = self.slot_words(slot)?;
        let copy = std::array::from_fn(|i| words[i].load(Ordering::Relaxed));
        Slot::from_words(&copy).filter(|slot| slot.state != SlotState::Free)
    }

    /// Replaces a slot's facts. Only the tracker writes.
    pub(crate) fn store(&self, slot: u32, facts: &Slot) {
        self.publish(slot, &facts.to_words());
    }

    /// Empties a slot.
    pub(crate) fn clear(&self, slot: u32) {
        self.publish(slot, &[0; WORDS_PER_SLOT]);
    }

    fn publish(&self, slot: u32, facts: &[u64; WORDS_PER_SLOT]) {
        let Some(words) = self.slot_words(slot) else {
            return;
        };
        seqlock::write(&words[0], || {
            for (word, fact) in words.iter().zip(facts).skip(1) {
                word.store(*fact, Ordering::Relaxed);
            }
        });
    }

    fn slot_words(&self, slot: u32) -> Option<&[AtomicU64]> {
        let start = (slot as usize).checked_mul(WORDS_PER_SLOT)?;
        self.words.as_ref().get(start..start + WORDS_PER_SLOT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        Slot {
            state: SlotState::Stalled,
            pid: 4_194_303,
            locality: Locality::Local,
            instance: u64::MAX,
            origin: BeatOrigin::SocketModeOnly,
            uid: u32::MAX,
            ns_inode: Some(0),
            status: Status::Critical,
            payload: u32::MAX,
            last_nonce: Some(0),
            last_timestamp: 1,
            terminal_timestamp: 2,
            last_ns: 3,
            joined_ns: 4,
            paused_until_ns: 5,
            threshold_ns: 6,
            late_ns: 7,
            beats: 8,
            stalls: 9,
            session_restarts: u32::MAX,
        }
    }

    #[test]
    fn facts_survive_the_way_through_the_table() {
        let table = SlotTable::on_heap(2);
        let variants = [
            slot(),
            Slot {
                last_nonce: None,
                ns_inode: None,
                locality: Locality::Remote,
                state: SlotState::Alive,
                ..slot()
            },
        ];
        for facts in variants {
            table.store(1, &facts);
            assert_eq!(table.read(1), Some(facts));
            assert_eq!(table.load(1), Some(facts));
        }
        assert_eq!(table.read(0), None, "the neighbour is still free");
    }

    #[test]
    fn a_cleared_slot_is_free_and_a_number_out_of_range_is_nobody() {
        let table = SlotTable::on_heap(1);
        table.store(0, &slot());
        table.clear(0);
        assert_eq!(table.read(0), None);
        table.store(1, &slot());
        assert_eq!(table.read(1), None);
        assert_eq!(table.read(u32::MAX), None);
    }

    #[test]
    fn words_that_make_no_sense_are_nobody() {
        let words: Box<[AtomicU64]> = (0..WORDS_PER_SLOT)
            .map(|_| AtomicU64::new(u64::MAX - 1))
            .collect();
        assert_eq!(SlotTable::from_words(words).read(0), None);
    }

    #[test]
    fn a_writer_that_died_inside_a_write_does_not_hang_readers() {
        let table = SlotTable::on_heap(1);
        table.store(0, &slot());
        table.words[0].store(7, Ordering::Relaxed);
        assert_eq!(table.read(0), None);
    }

    #[test]
    fn readers_on_other_threads_never_see_half_a_write() {
        let table = SlotTable::on_heap(1);
        let write = |n: u64| Slot {
            beats: n,
            last_ns: n,
            joined_ns: n,
            threshold_ns: n,
            ..slot()
        };
        table.store(0, &write(0));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                loop {
                    let Some(seen) = table.read(0) else { continue };
                    assert_eq!(seen, write(seen.beats));
                    if seen.beats == 200_000 {
                        return;
                    }
                }
            });
            for n in 1..=200_000 {
                table.store(0, &write(n));
            }
            reader.join().unwrap();
        });
    }
}
