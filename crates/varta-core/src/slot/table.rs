//! The table that holds the facts of all streams: a row of atomic words with one writer (the tracker) and any
//! number of readers.
//!
//! Each slot carries a sequence counter, so that readers get consistent copies without a lock. The words are an
//! argument of the constructor: a heap table in tests and in the simulator, a mapped file in an observer whose
//! facts outlive its process. Index, wheel and queues of the tracker can be rebuilt from the table.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{
    BEATS, HEAD, JOINED_NS, LAST_NS, PAUSED_UNTIL_NS, PAYLOAD_AND_UID, SEQUENCE, TAIL,
    THRESHOLD_NS, locality_in, state_in, stream_in, uid_in, version_in,
};
use super::{LAYOUT_VERSION, Slot, SlotState, WORDS_PER_SLOT};
use crate::agent::Locality;
use crate::seqlock;

/// The rhythm of an agent, and its deadlines.
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

/// The content of a slot that an earlier writer left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing.
    Free,
    /// Complete facts.
    Whole(Slot),
    /// The earlier writer ended within a write: the content of the slot is unreliable.
    Torn,
    /// Facts in a layout of another version than [`LAYOUT_VERSION`].
    OtherVersion(u8),
    /// Words that no writer has written.
    Invalid,
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

    /// A consistent copy of an occupied slot, from any thread. `None` for a free slot, a number out of range,
    /// or invalid words.
    pub fn read(&self, slot: u32) -> Option<Slot> {
        let copy = consistent(self.slot_words(slot)?, std::array::from_fn(|i| i))?;
        Slot::from_words(&copy)
    }

    /// The content that an earlier writer left in a slot; `None` for a number out of range. That writer must have
    /// ended.
    pub fn leftover(&self, slot: u32) -> Option<Leftover> {
        let words = self.slot_words(slot)?;
        let words = std::array::from_fn(|i| words[i].load(Ordering::Relaxed));
        Some(if seqlock::is_inside(words[SEQUENCE]) {
            Leftover::Torn
        } else if words[HEAD] == 0 {
            Leftover::Free
        } else if version_in(words[TAIL]) != LAYOUT_VERSION {
            Leftover::OtherVersion(version_in(words[TAIL]))
        } else {
            Slot::from_words(&words).map_or(Leftover::Invalid, Leftover::Whole)
        })
    }

    /// Moves the times of all occupied slots by `offset_ns`, for a writer whose clock started at another moment than
    /// that of the earlier writer. Times that would be negative become 0: silence is then shorter than it was.
    pub fn rebase(&self, offset_ns: i64) {
        for slot in 0..self.capacity() as u32 {
            if let Some(facts) = self.load(slot) {
                self.store(slot, &facts.rebased(offset_ns));
            }
        }
    }

    /// Only the fields of an occupied slot that a count of silent agents needs, so that counting all slots is fast.
    pub(crate) fn read_rhythm(&self, slot: u32) -> Option<Rhythm> {
        let words = self.slot_words(slot)?;
        // A free slot is skipped without waiting; one that is being filled appears in the next count.
        if words[HEAD].load(Ordering::Relaxed) == 0 {
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
        ] = consistent(
            words,
            [
                HEAD,
                LAST_NS,
                PAYLOAD_AND_UID,
                BEATS,
                THRESHOLD_NS,
                JOINED_NS,
                PAUSED_UNTIL_NS,
            ],
        )?;
        let state = state_in(head)?;
        (state != SlotState::Free).then_some(Rhythm {
            is_latched: state.is_latched(),
            locality: locality_in(head),
            uid: uid_in(payload_and_uid),
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
        Slot::from_words(&copy)
    }

    /// Which stream of its process is in a slot, from the writer's view; 0 in a free one.
    pub(crate) fn stream_in(&self, slot: u32) -> Option<u16> {
        let words = self.slot_words(slot)?;
        Some(stream_in(words[TAIL].load(Ordering::Relaxed)))
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
        seqlock::write(&words[SEQUENCE], || {
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

/// A consistent copy of some words of a slot. `None` if its writer does not finish.
fn consistent<const N: usize>(words: &[AtomicU64], wanted: [usize; N]) -> Option<[u64; N]> {
    let copy = || wanted.map(|i| words[i].load(Ordering::Relaxed));
    seqlock::read(&words[SEQUENCE], copy).ok()
}

#[cfg(test)]
mod tests {
    use varta_vlp::Status;

    use super::*;
    use crate::agent::BeatOrigin;

    fn slot() -> Slot {
        Slot {
            state: SlotState::Stalled,
            pid: 4_194_303,
            locality: Locality::Local,
            instance: u64::MAX,
            stream: u16::MAX,
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
    fn a_cleared_slot_is_free_and_a_number_out_of_range_is_no_slot() {
        let table = SlotTable::on_heap(1);
        table.store(0, &slot());
        table.clear(0);
        assert_eq!(table.read(0), None);
        table.store(1, &slot());
        assert_eq!(table.read(1), None);
        assert_eq!(table.read(u32::MAX), None);
    }

    #[test]
    fn invalid_words_are_no_agent() {
        let words: Box<[AtomicU64]> = (0..WORDS_PER_SLOT)
            .map(|_| AtomicU64::new(u64::MAX - 1))
            .collect();
        assert_eq!(SlotTable::from_words(words).read(0), None);
    }

    #[test]
    fn a_writer_that_died_inside_a_write_does_not_hang_readers_and_the_next_writer_sees_it() {
        let table = SlotTable::on_heap(2);
        table.store(0, &slot());
        table.words[SEQUENCE].store(7, Ordering::Relaxed);
        assert_eq!(table.read(0), None);
        assert_eq!(table.leftover(0), Some(Leftover::Torn));
        table.store(0, &slot());
        assert_eq!(table.leftover(0), Some(Leftover::Whole(slot())));
        table.words[SEQUENCE].store(7, Ordering::Relaxed);
        table.clear(0);
        assert_eq!(table.leftover(0), Some(Leftover::Free));
    }

    #[test]
    fn a_slot_of_another_layout_is_told_from_one_of_this_and_from_none() {
        let table = SlotTable::on_heap(1);
        assert_eq!(table.leftover(0), Some(Leftover::Free));
        assert_eq!(table.leftover(1), None);
        table.store(0, &slot());
        let tail = &table.words[TAIL];
        for version in [0, LAYOUT_VERSION + 1] {
            tail.store(u64::from(version) << 16, Ordering::Relaxed);
            assert_eq!(table.leftover(0), Some(Leftover::OtherVersion(version)));
            assert_eq!(table.read(0), None);
        }
        tail.store(u64::from(LAYOUT_VERSION) << 16, Ordering::Relaxed);
        table.words[HEAD].fetch_or(0xff << 40, Ordering::Relaxed);
        assert_eq!(table.leftover(0), Some(Leftover::Invalid));
    }

    #[test]
    fn rebasing_moves_times_and_leaves_durations_and_the_agents_own_times_alone() {
        let table = SlotTable::on_heap(3);
        let paused = Slot {
            last_ns: 100,
            joined_ns: 40,
            paused_until_ns: 150,
            ..slot()
        };
        let never_paused = Slot {
            paused_until_ns: 0,
            ..paused
        };
        table.store(0, &paused);
        table.store(2, &never_paused);
        table.rebase(-60);
        let moved = |facts: Slot, paused_until_ns| Slot {
            last_ns: 40,
            joined_ns: 0,
            paused_until_ns,
            ..facts
        };
        assert_eq!(table.read(0), Some(moved(paused, 90)));
        assert_eq!(table.read(1), None);
        assert_eq!(table.read(2), Some(moved(never_paused, 0)));
        table.rebase(i64::MAX);
        table.rebase(i64::MAX);
        table.rebase(i64::MAX);
        let latest = table.read(2).unwrap();
        assert_eq!((latest.last_ns, latest.paused_until_ns), (u64::MAX, 0));
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
