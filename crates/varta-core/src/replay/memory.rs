//! The words a replay guard keeps its facts in, and the order in which they change.
//!
//! A header, one record of eight words per open session, and a ring of three words per closed one. The
//! process may be killed between any two stores, and the words at that moment must not allow a datagram to be
//! accepted twice. Each change documents the order that makes it safe. Every store is a `Release` store, so
//! none overtakes an earlier one.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Agent, ReplayError, SessionKey};

/// First word of the memory: a name of seven bytes, then the version. Bytes of another order (another kind of
/// machine) or another version are another number, and their content is not interpreted.
const MAGIC: u64 = u64::from_be_bytes(*b"varta-r\x00");
const VERSION: u64 = 2;
/// Its ring has only the hashes of closed sessions: no datagram is accepted over one of those again.
const VERSION_OF_HASHES: u64 = 1;
const VERSION_MASK: u64 = 0xff;

/// One cache line, so that records, one line each, begin on a line where the memory does.
const HEADER_WORDS: usize = 8;
const MARK: usize = 0;
const SIZES: usize = 1;
const SEED: usize = 2;
const CLOSINGS: usize = 3;

const RECORD_WORDS: usize = 8;
const STATE: usize = 0;
const KEY: usize = 1;
const PREFIX: usize = 2;
const SOURCE: usize = 3;
const PIDS: usize = 4;
const TOP: usize = 5;
const SEEN: usize = 6;
const HEARD: usize = 7;

/// Low bits of the state word. Version 1 has an unused number above them.
const FREE: u64 = 0;
const CURRENT: u64 = 1;
const FAREWELL: u64 = 2;
const ROLE_MASK: u64 = 3;

const RING_WORDS: usize = 3;
const CLOSED_HASH: usize = 0;
const CLOSED_TOP: usize = 1;
const CLOSED_SOURCE: usize = 2;

/// The time word of a session that has departed. A time is stored plus one, so that time 0 differs from it.
const DEPARTED: u64 = 0;

/// The role of a session for its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A regular datagram of its agent came over it.
    Current,
    /// Only terminal datagrams of its agent did.
    Farewell,
}

/// The owner of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) agent: Agent,
    pub(super) role: Role,
}

/// The accepted counters of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The highest one.
    pub(super) top: u32,
    /// Bit n: `top - n` was accepted.
    pub(super) seen: u64,
}

impl Window {
    /// The window of a session after its first datagram.
    pub(super) const fn starting_with(counter: u32) -> Self {
        Self {
            top: counter,
            seen: 1,
        }
    }

    /// The window of a reopened session: all counters up to the highest one are too old.
    pub(super) const fn closed_at(top: u32) -> Self {
        Self { top, seen: !0 }
    }

    /// The window with `counter` accepted too; `None` if it was accepted before, or is too old to determine
    /// that.
    pub(super) fn with(self, counter: u32) -> Option<Self> {
        if counter > self.top {
            let kept = self.seen.checked_shl(counter - self.top).unwrap_or(0);
            return Some(Self {
                top: counter,
                seen: kept | 1,
            });
        }
        let bit = 1_u64.checked_shl(self.top - counter)?;
        (self.seen & bit == 0).then_some(Self {
            top: self.top,
            seen: self.seen | bit,
        })
    }
}

/// An open session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) session: SessionKey,
    pub(super) owner: Owner,
    pub(super) window: Window,
    /// The time of its last datagram; `None` if it has departed since.
    pub(super) heard_ns: Option<u64>,
}

/// A closed session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) hash: u64,
    /// The highest accepted counter.
    pub(super) top: u32,
    /// The source of its agent.
    pub(super) source: u64,
}

impl Record {
    /// `None` for a free record.
    fn from_words(words: &[u64; RECORD_WORDS]) -> Option<Self> {
        let agent = Agent {
            source: words[SOURCE],
            pid: (words[PIDS] >> 32) as u32,
        };
        let role = match words[STATE] & ROLE_MASK {
            FREE => return None,
            CURRENT => Role::Current,
            // No guard writes another one, but its session must not be accepted again.
            _ => Role::Farewell,
        };
        Some(Self {
            session: SessionKey {
                key: words[KEY],
                pid: words[PIDS] as u32,
                prefix: words[PREFIX].to_le_bytes(),
            },
            owner: Owner { agent, role },
            window: Window {
                top: words[TOP] as u32,
                seen: words[SEEN],
            },
            heard_ns: words[HEARD].checked_sub(1),
        })
    }
}

/// The state word of an open session.
fn state(role: Role) -> u64 {
    match role {
        Role::Current => CURRENT,
        Role::Farewell => FAREWELL,
    }
}

/// The time word of an open session.
fn heard(heard_ns: Option<u64>) -> u64 {
    heard_ns.map_or(DEPARTED, |heard_ns| heard_ns.saturating_add(1))
}

fn pids(session: &SessionKey, agent: Agent) -> u64 {
    u64::from(session.pid) | u64::from(agent.pid) << 32
}

/// How many records and ring entries the words hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) sessions: u32,
    pub(super) closed: u32,
}

impl Layout {
    pub(super) fn words(self) -> usize {
        self.words_with(RING_WORDS)
    }

    fn words_with(self, ring_words: usize) -> usize {
        let ring = (self.closed as usize).saturating_mul(ring_words);
        self.ring().saturating_add(ring)
    }

    fn ring(self) -> usize {
        (self.sessions as usize)
            .saturating_mul(RECORD_WORDS)
            .saturating_add(HEADER_WORDS)
    }

    /// First word of a record.
    fn record(self, number: u32) -> usize {
        HEADER_WORDS + number as usize * RECORD_WORDS
    }

    /// The ring entry of the `closing`-th closing.
    pub(super) fn place(self, closing: u64) -> u32 {
        (closing % u64::from(self.closed)) as u32
    }
}

/// The words of a running guard.
#[derive(Debug)]
pub(super) struct Memory<W> {
    words: W,
    pub(super) layout: Layout,
    /// Every store made, so that a test can stop between any two of them.
    #[cfg(test)]
    pub(super) stores: std::cell::RefCell<Vec<(usize, u64)>>,
}

impl<W: AsRef<[AtomicU64]>> Memory<W> {
    /// Turns zeroed words, as many as the layout needs, into the memory of a guard. The mark is written last,
    /// so that it proves the rest of the header.
    pub(super) fn new(words: W, layout: Layout, seed: u64) -> Self {
        let memory = Self {
            words,
            layout,
            #[cfg(test)]
            stores: Default::default(),
        };
        let sizes = u64::from(layout.sessions) | u64::from(layout.closed) << 32;
        memory.set(SIZES, sizes);
        memory.set(SEED, seed);
        memory.set(MARK, MAGIC | VERSION);
        memory
    }

    /// An open session; `None` for a free record.
    pub(super) fn load(&self, number: u32) -> Option<Record> {
        let words: &[AtomicU64; RECORD_WORDS] = self
            .words
            .as_ref()
            .get(self.layout.record(number)..)?
            .first_chunk()?;
        let copy = std::array::from_fn(|i| words[i].load(Ordering::Relaxed));
        Record::from_words(&copy)
    }

    /// Fills a free record. It stays free until its state, the last word, is written.
    pub(super) fn fill(&self, number: u32, record: &Record) {
        let start = self.layout.record(number);
        let Owner { agent, role } = record.owner;
        self.set(start + KEY, record.session.key);
        self.set(start + PREFIX, u64::from_le_bytes(record.session.prefix));
        self.set(start + SOURCE, agent.source);
        self.set(start + PIDS, pids(&record.session, agent));
        self.set(start + TOP, u64::from(record.window.top));
        self.set(start + SEEN, record.window.seen);
        self.set(start + HEARD, heard(record.heard_ns));
        self.set(start + STATE, state(role));
    }

    /// Marks a counter as accepted. A window counts as full while it moves, so neither the old bits under the
    /// new top nor the new bits under the old top can be misread.
    pub(super) fn set_window(&self, number: u32, known: Window, window: Window) {
        let start = self.layout.record(number);
        if window.top != known.top {
            self.set(start + SEEN, !0);
            self.set(start + TOP, u64::from(window.top));
        }
        self.set(start + SEEN, window.seen);
    }

    /// `None`: it has departed.
    pub(super) fn set_heard(&self, number: u32, heard_ns: Option<u64>) {
        self.set(self.layout.record(number) + HEARD, heard(heard_ns));
    }

    /// Changes the role of an open session, by one store.
    pub(super) fn set_role(&self, number: u32, role: Role) {
        self.set(self.layout.record(number) + STATE, state(role));
    }

    /// Records a closed session as the `closing`-th. Its entry replaces the oldest one, whose hash is cleared
    /// first: no old hash appears beside a foreign counter. A new hash may, but its session is open still,
    /// and so are its windows.
    pub(super) fn remember(&self, closing: u64, closed: &Closed) {
        let start = self.ring_entry(self.layout.place(closing));
        self.set(start + CLOSED_HASH, closed.hash);
        self.set(start + CLOSED_TOP, u64::from(closed.top));
        self.set(start + CLOSED_SOURCE, closed.source);
        self.set(CLOSINGS, closing.wrapping_add(1));
    }

    /// The entry of the ring at a place; `None` beyond its end.
    pub(super) fn closed_at(&self, place: u32) -> Option<Closed> {
        let words = self.words.as_ref().get(self.ring_entry(place)..)?;
        let words: &[AtomicU64; RING_WORDS] = words.first_chunk()?;
        let word = |index: usize| words[index].load(Ordering::Relaxed);
        Some(Closed {
            hash: word(CLOSED_HASH),
            top: word(CLOSED_TOP) as u32,
            source: word(CLOSED_SOURCE),
        })
    }

    fn ring_entry(&self, place: u32) -> usize {
        self.layout.ring() + place as usize * RING_WORDS
    }

    /// Frees a record whose session has been recorded as closed.
    pub(super) fn free(&self, number: u32) {
        self.set(self.layout.record(number) + STATE, FREE);
    }

    #[cfg(test)]
    pub(super) fn copy(&self) -> Vec<u64> {
        let words = self.words.as_ref().iter();
        words.map(|word| word.load(Ordering::Relaxed)).collect()
    }

    #[cfg(test)]
    pub(super) fn scribble(&self, index: usize, value: u64) {
        self.words.as_ref()[index].store(value, Ordering::Relaxed);
    }

    /// The only function that stores.
    fn set(&self, index: usize, value: u64) {
        if let Some(word) = self.words.as_ref().get(index) {
            #[cfg(test)]
            self.stores.borrow_mut().push((index, value));
            word.store(value, Ordering::Release);
        }
    }
}

/// The memory of an earlier guard, read from a copy of its words. Nothing in it is trusted: for any content
/// it yields no more records and entries than there are words.
#[derive(Debug)]
pub(super) struct Heritage<'a> {
    words: &'a [u64],
    layout: Layout,
    /// Words of an entry of the ring.
    ring_words: usize,
    closings: u64,
    pub(super) seed: u64,
}

impl<'a> Heritage<'a> {
    pub(super) fn read(words: &'a [u64]) -> Result<Self, ReplayError> {
        let Some(header) = words.first_chunk::<HEADER_WORDS>() else {
            return Err(ReplayError::TooShort {
                needed: HEADER_WORDS,
                given: words.len(),
            });
        };
        if header[MARK] & !VERSION_MASK != MAGIC {
            return Err(ReplayError::NotAReplayMemory);
        }
        let ring_words = match header[MARK] & VERSION_MASK {
            VERSION => RING_WORDS,
            VERSION_OF_HASHES => 1,
            version => return Err(ReplayError::UnknownVersion(version as u8)),
        };
        let layout = Layout {
            sessions: header[SIZES] as u32,
            closed: (header[SIZES] >> 32) as u32,
        };
        let needed = layout.words_with(ring_words);
        if words.len() < needed {
            let given = words.len();
            return Err(ReplayError::TooShort { needed, given });
        }
        Ok(Self {
            words,
            layout,
            ring_words,
            closings: header[CLOSINGS],
            seed: header[SEED],
        })
    }

    /// The closed sessions, the oldest first.
    pub(super) fn closed(&self) -> impl Iterator<Item = Closed> + '_ {
        let count = self.closings.min(u64::from(self.layout.closed));
        let ring = &self.words[self.layout.ring()..];
        (self.closings - count..self.closings).filter_map(move |closing| {
            let start = self.layout.place(closing) as usize * self.ring_words;
            let words = ring.get(start..start + self.ring_words)?;
            let top = words.get(CLOSED_TOP).map_or(u32::MAX, |top| *top as u32);
            Some(Closed {
                hash: words[CLOSED_HASH],
                top,
                source: words.get(CLOSED_SOURCE).copied().unwrap_or(0),
            })
        })
    }

    /// The open sessions.
    pub(super) fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.words[HEADER_WORDS..self.layout.ring()]
            .chunks_exact(RECORD_WORDS)
            .filter_map(|words| Record::from_words(words.first_chunk()?))
    }
}
