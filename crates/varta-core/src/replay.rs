//! The memory of which encrypted datagrams have been heard already: none is heard twice.
//!
//! A sender numbers its datagrams with a *prefix* of its own, random, one per session, and a *counter*
//! that grows within the session. A datagram that a key has authenticated is shown to the guard once,
//! which accepts it or says why not. Accepting and remembering are one step; a refusal changes nothing.
//! The guard neither decrypts nor judges what a datagram says; it reads no clock and never panics.
//!
//! Per open session it remembers the highest counter and which of the 63 below have been heard. A session
//! belongs for good to the agent that the first datagram heard over it spoke for. Those that follow pass
//! the window whomever they speak for, and move no session to another agent: an address is easily forged.
//! An agent has at most one *current* session, and one *farewell* session, over which only terminal
//! datagrams of it came: the last frame of a panicking process has a prefix of its own, and the process
//! may well survive and go on, even over that session, which is its current one then. What a newer session
//! replaces is *closed*: nothing is accepted over it again, heard or unheard. The sessions of an agent that
//! has *departed* stay open, and are the first to be closed when room is needed.
//!
//! Bounds: memory is 64 bytes per session and 8 per closed one, handed in, and of its own at most 200
//! per session and 64 per closed one, reserved at construction. A call costs a few look-ups, and a look
//! at 64 records more if there is no room. The last `closed` closed sessions are remembered, and older
//! ones forgotten: who kept a datagram for so long can replay it once more. A session of which nothing
//! was heard when it was sent, since it was held back or there was no guard yet, passes for a new one
//! whenever it comes, and closes the present one: only what its frames say can tell that they are old.
//! Under a key that agents share, a copy of the first datagram of a session that comes before it, from
//! another agent's address, opens the session for that agent and closes the one it had.
//!
//! The facts live in a row of atomic words. If these are a mapped file, the memory survives the process:
//! a kill between any two stores leaves at most more refusals than needed, never a datagram that can be
//! heard again after its call has returned. Against a crash of the machine the file is only as good as
//! its last synchronisation.

#[cfg(test)]
mod crash;
mod memory;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::error::Error;
use std::fmt;
use std::sync::atomic::AtomicU64;

use crate::index::{BoundedIndex, IndexKey};

use memory::{Heritage, Layout, Memory, Owner, Record, Role, Window};

/// Silence after which a session may be closed to make room for a newcomer: 10 min. Hardly an agent beats
/// that seldom, so who beats is no victim; who does, and finds its session closed since the table was
/// full, is heard again when it reconnects. A shorter time would make victims of agents in a short outage;
/// a longer one would keep the places of those that ended without a word.
pub const LIVE_NS: u64 = 600_000_000_000;

/// Records looked at per attempt to make room. It bounds the work of a newcomer to a full table, at the
/// price that a larger table may need several newcomers until one that may be closed is found.
const SCAN_RECORDS: u32 = 64;

/// The most open sessions (64 MiB) and remembered closed ones (8 MiB); larger requests are clamped.
pub const MAX_SESSIONS: usize = 1 << 20;

/// What a datagram was sealed under. Two sessions are the same only if all of it agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Fingerprint of the key that authenticated the datagram.
    pub key: u64,
    /// The pid the key was derived for; 0 for a key that agents share.
    pub pid: u32,
    /// The sender's prefix.
    pub prefix: [u8; 8],
}

/// What a session is looked up by. It depends on the seed; nobody can choose keys for which it is equal
/// without knowing that, and by chance it is equal for two in 2^64 pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SessionHash(u64);

impl SessionHash {
    /// The parts are hashed side by side, under seeds of their own: a chain takes twice as long.
    fn of(session: &SessionKey, seed: u64) -> Self {
        let key = (session.key, session.pid).hash(!seed);
        Self(u64::from_le_bytes(session.prefix).hash(seed) ^ key)
    }
}

impl IndexKey for SessionHash {
    /// It is a hash already, under the seed of the guard, which is that of the index.
    fn hash(&self, _seed: u64) -> u64 {
        self.0
    }
}

/// Whom a datagram speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Agent {
    source: u64,
    pid: u32,
}

impl IndexKey for Owner {
    fn hash(&self, seed: u64) -> u64 {
        let role = u64::from(self.role == Role::Farewell);
        (u64::from(self.agent.pid) | role << 32).hash(self.agent.source.hash(seed))
    }
}

/// One authenticated datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What it was sealed under.
    pub session: SessionKey,
    /// Its number within the session; any first one is fine.
    pub counter: u32,
    /// Where the agent it speaks for lives; with `pid` the agent's identity.
    pub source: u64,
    /// The pid it speaks for.
    pub pid: u32,
    /// It carries a terminal frame.
    pub is_terminal: bool,
}

impl Arrival {
    fn agent(&self) -> Agent {
        Agent {
            source: self.source,
            pid: self.pid,
        }
    }

    /// What a session that begins with this datagram is.
    fn owner(&self) -> Owner {
        if self.is_terminal {
            Owner::farewell(self.agent())
        } else {
            Owner::current(self.agent())
        }
    }
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplayRefusal {
    /// It was heard before, or is too old to tell.
    Seen,
    /// Its session is older than the sender's present one.
    Closed,
    /// It begins a session, and there is room for none.
    Full,
}

/// Sizes and seed of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Open sessions, 1 to [`MAX_SESSIONS`], else clamped. An agent needs one, and a second one from its
    /// first terminal frame on.
    pub sessions: usize,
    /// Closed sessions remembered, 1 to [`MAX_SESSIONS`], else clamped.
    pub closed: usize,
    /// Of the hashes. It must be unpredictable, and stays with the memory for good, see
    /// [`ReplayGuard::seed_of`].
    pub seed: u64,
}

impl ReplayOptions {
    fn layout(&self) -> Layout {
        Layout {
            sessions: self.sessions.clamp(1, MAX_SESSIONS) as u32,
            closed: self.closed.clamp(1, MAX_SESSIONS) as u32,
        }
    }
}

/// Words that cannot be a guard's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// Fewer words than it takes.
    TooShort {
        /// Words it takes.
        needed: usize,
        /// Words there are.
        given: usize,
    },
    /// They were not written by a guard on a machine of this kind.
    NotAReplayMemory,
    /// A guard of another version wrote them.
    UnknownVersion(u8),
    /// Their seed is not that of the guard which should take over from them.
    OtherSeed,
    /// The guard which should take over from them has heard datagrams of its own.
    InUse,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { needed, given } => write!(
                f,
                "a replay memory of {needed} words was cut short to {given}; move it away to start afresh"
            ),
            Self::NotAReplayMemory => f.write_str(
                "not a replay memory of this kind of machine; move it away to start afresh",
            ),
            Self::UnknownVersion(version) => write!(
                f,
                "replay memory of version {version}, which this program does not know; \
                 run the program that wrote it, or move it away to start afresh"
            ),
            Self::OtherSeed => f.write_str(
                "replay memory with another seed than that of its successor; give both the same",
            ),
            Self::InUse => {
                f.write_str("a replay memory must be restored before the first datagram is heard")
            }
        }
    }
}

impl Error for ReplayError {}

/// The guard. `W` is what holds its words; it must be their only writer.
#[derive(Debug)]
pub struct ReplayGuard<W = Box<[AtomicU64]>> {
    memory: Memory<W>,
    seed: u64,
    /// Session to record. Each record stands in it once or is in `free`.
    open: BoundedIndex<SessionHash>,
    /// Agents' current and farewell sessions to records.
    owners: BoundedIndex<Owner>,
    /// Hash of a closed session to its latest place in the ring.
    closed: BoundedIndex<SessionHash>,
    /// Sessions closed since the words were new.
    closings: u64,
    /// Serial of the newest session.
    serial: u64,
    /// Records of no session.
    free: Vec<u32>,
    /// The record to look at next for making room.
    cursor: u32,
}

impl ReplayGuard {
    /// A guard on the heap, whose memory ends with it.
    pub fn on_heap(options: ReplayOptions) -> Self {
        let words = Self::words_needed(options);
        Self::over(
            (0..words).map(|_| AtomicU64::new(0)).collect(),
            options.layout(),
            options.seed,
        )
    }

    /// Words a guard of these sizes takes: 8, and 8 per session, and 1 per closed session.
    pub fn words_needed(options: ReplayOptions) -> usize {
        options.layout().words()
    }

    /// The seed of the guard that wrote these words: its successor must be given the same, because what
    /// was closed is known by its hash alone.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if these words are not a replay memory that this version can take over.
    pub fn seed_of(words: &[u64]) -> Result<u64, ReplayError> {
        Ok(Heritage::read(words)?.seed)
    }
}

impl<W: AsRef<[AtomicU64]>> ReplayGuard<W> {
    /// A guard that has heard nothing yet. The words must be zero; more than
    /// [`ReplayGuard::words_needed`] do no harm.
    ///
    /// # Errors
    ///
    /// [`ReplayError::TooShort`] if there are fewer.
    pub fn new(words: W, options: ReplayOptions) -> Result<Self, ReplayError> {
        let needed = options.layout().words();
        let given = words.as_ref().len();
        if given < needed {
            return Err(ReplayError::TooShort { needed, given });
        }
        Ok(Self::over(words, options.layout(), options.seed))
    }

    fn over(words: W, layout: Layout, seed: u64) -> Self {
        let sessions = layout.sessions as usize;
        Self {
            memory: Memory::new(words, layout, seed),
            seed,
            open: BoundedIndex::with_capacity(sessions, seed),
            owners: BoundedIndex::with_capacity(sessions, seed),
            closed: BoundedIndex::with_capacity(layout.closed as usize, seed),
            closings: 0,
            serial: 0,
            free: (0..layout.sessions).rev().collect(),
            cursor: 0,
        }
    }

    /// Takes over what an earlier guard remembered, from a copy of its words. The sizes may differ: of
    /// too many open sessions those of departed agents and then those silent for longest are closed, of
    /// too many closed ones the oldest are forgotten. All that is open counts as heard at `now_ns`, but
    /// who has departed stays so. To be called before anything is heard; it allocates. Until it has
    /// returned the earlier words are the only memory: keep them.
    ///
    /// Returns how many sessions were closed for want of room.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if this guard has heard something already, or the words are not a replay memory of
    /// a version known here and of this guard's seed; nothing has changed then.
    pub fn restore(&mut self, old: &[u64], now_ns: u64) -> Result<usize, ReplayError> {
        let heritage = Heritage::read(old)?;
        if heritage.seed != self.seed {
            return Err(ReplayError::OtherSeed);
        }
        if !self.open.is_empty() || self.closings != 0 {
            return Err(ReplayError::InUse);
        }
        for hash in heritage.closed() {
            self.remember(SessionHash(hash));
        }
        let mut records: Vec<Record> = heritage.records().collect();
        records.sort_unstable_by_key(|record| record.serial);
        for record in &mut records {
            self.serial += 1;
            record.serial = self.serial;
        }
        // `None`, the departed, is less than any time.
        records.sort_unstable_by_key(|record| Reverse(record.heard_ns));
        for record in &records {
            self.take_back(&Record {
                heard_ns: record.heard_ns.map(|_| now_ns),
                ..*record
            });
        }
        Ok(records.len() - self.open.len())
    }

    /// Whether a datagram is heard for the first time; if so, it has been heard now. It must have been
    /// authenticated, and is not to be shown again.
    ///
    /// # Errors
    ///
    /// [`ReplayRefusal`] if it is not to be believed; no word has changed then.
    pub fn admit(&mut self, arrival: &Arrival, now_ns: u64) -> Result<(), ReplayRefusal> {
        let hash = self.hash(&arrival.session);
        match self.open.get(&hash) {
            Some(number) => self.go_on(number, arrival, now_ns),
            None => self.begin(hash, arrival, now_ns),
        }
    }

    /// Whether a session is open or remembered as closed. A datagram over any other one would begin it, so
    /// the caller should see first that what it says is newer than what the agent has said (wire spec
    /// 10.6): a session that was recorded while nobody listened is new to the guard as well.
    pub fn knows(&self, session: &SessionKey) -> bool {
        let hash = self.hash(session);
        self.open.get(&hash).is_some() || self.closed.get(&hash).is_some()
    }

    /// Where the agent lives that an open session belongs to; `None` if it is not open. A datagram over it
    /// is that agent's, whatever address it came from: a copy may overtake the original.
    pub fn source_of(&self, session: &SessionKey) -> Option<u64> {
        let number = self.open.get(&self.hash(session))?;
        let known = self.load_as(number, session)?;
        Some(known.owner.agent.source)
    }

    /// An agent has left: it took its leave, or nothing is known of it any more. Its sessions stay open,
    /// for it may come back over them, but are the first to be closed when room is needed, however short
    /// the silence. The next datagram accepted over one of them makes that one live again.
    pub fn depart(&mut self, source: u64, pid: u32) {
        let agent = Agent { source, pid };
        for role in [Role::Current, Role::Farewell] {
            if let Some((number, _)) = self.session_of(&Owner { agent, role }) {
                self.memory.set_heard(number, None);
            }
        }
    }

    /// The seed of the hashes.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Open sessions.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Closed sessions that are remembered.
    pub fn closed(&self) -> usize {
        self.closed.len()
    }

    /// A datagram over an open session.
    fn go_on(&mut self, number: u32, arrival: &Arrival, now_ns: u64) -> Result<(), ReplayRefusal> {
        let known = self
            .load_as(number, &arrival.session)
            .ok_or(ReplayRefusal::Closed)?;
        let window = known
            .window
            .with(arrival.counter)
            .ok_or(ReplayRefusal::Seen)?;
        if !arrival.is_terminal && known.owner == Owner::farewell(arrival.agent()) {
            self.make_current(number, &known)?;
        }
        self.memory.set_window(number, known.window, window);
        let heard_ns = known.heard_ns.max(Some(now_ns));
        self.memory.set_heard(number, heard_ns);
        Ok(())
    }

    /// Makes an agent's farewell session its current one, unless it has a newer one.
    fn make_current(&mut self, number: u32, known: &Record) -> Result<(), ReplayRefusal> {
        let current = Owner::current(known.owner.agent);
        if let Some((older, record)) = self.session_of(&current) {
            if record.serial > known.serial {
                return Err(ReplayRefusal::Closed);
            }
            self.close(older);
        }
        self.owners.remove(&known.owner);
        self.memory.set_role(number, known.serial, Role::Current);
        self.own(number, &current);
        Ok(())
    }

    /// A datagram over a session that is not open. The newest session of its owner closes the one before;
    /// by then it is certain that the newcomer will be accepted.
    fn begin(
        &mut self,
        hash: SessionHash,
        arrival: &Arrival,
        now_ns: u64,
    ) -> Result<(), ReplayRefusal> {
        if self.closed.get(&hash).is_some() {
            return Err(ReplayRefusal::Closed);
        }
        let owner = arrival.owner();
        if let Some((older, _)) = self.session_of(&owner) {
            self.close(older);
        } else if self.free.is_empty() {
            self.make_room(now_ns);
        }
        let number = self.free.pop().ok_or(ReplayRefusal::Full)?;
        self.serial += 1;
        self.place(
            number,
            hash,
            &Record {
                session: arrival.session,
                serial: self.serial,
                owner,
                window: Window::starting_with(arrival.counter),
                heard_ns: Some(now_ns),
            },
        );
        Ok(())
    }

    /// Closes a session of an agent that has departed, or else has been silent for long, if one is found
    /// at once. The next attempt begins behind it.
    fn make_room(&mut self, now_ns: u64) {
        let mut victim = None;
        for _ in 0..SCAN_RECORDS.min(self.memory.layout.sessions) {
            let number = self.cursor;
            self.cursor = self.after(number);
            let Some(record) = self.memory.load(number) else {
                continue;
            };
            let Some(heard_ns) = record.heard_ns else {
                victim = Some(number);
                break;
            };
            if now_ns.saturating_sub(heard_ns) > LIVE_NS {
                victim = victim.or(Some(number));
            }
        }
        if let Some(number) = victim {
            self.cursor = self.after(number);
            self.close(number);
        }
    }

    /// The record to look at after this one.
    fn after(&self, number: u32) -> u32 {
        (number + 1) % self.memory.layout.sessions
    }

    /// A session of an earlier guard stays open if there is room. One that was being closed when that guard
    /// was killed does too: what was to replace it has not been heard.
    fn take_back(&mut self, record: &Record) {
        let hash = self.hash(&record.session);
        // No guard wrote such words, but nothing in them is trusted.
        let is_double = self.open.get(&hash).is_some() || self.owners.get(&record.owner).is_some();
        match self.free.pop_if(|_| !is_double) {
            Some(number) => self.place(number, hash, record),
            None => self.remember(hash),
        }
    }

    /// Opens a session in a free record.
    fn place(&mut self, number: u32, hash: SessionHash, record: &Record) {
        self.memory.fill(number, record);
        // Neither index can refuse: no more records than its capacity are in it.
        let _ = self.open.insert(hash, number);
        self.own(number, &record.owner);
    }

    /// Closes a session for good. It is remembered as closed before its record is free.
    fn close(&mut self, number: u32) {
        let Some(record) = self.memory.load(number) else {
            return;
        };
        let hash = self.hash(&record.session);
        if self.open.get(&hash) != Some(number) {
            return;
        }
        self.remember(hash);
        self.memory.free(number);
        self.open.remove(&hash);
        self.owners.remove(&record.owner);
        self.free.push(number);
    }

    /// Remembers a closed session in place of the one closed longest ago.
    fn remember(&mut self, hash: SessionHash) {
        let place = self.memory.layout.place(self.closings);
        if let Some(oldest) = self.memory.closed_at(place).map(SessionHash)
            && self.closed.get(&oldest) == Some(place)
        {
            self.closed.remove(&oldest);
        }
        self.memory.remember(self.closings, hash.0);
        self.closings += 1;
        let _ = self.closed.insert(hash, place);
    }

    fn hash(&self, session: &SessionKey) -> SessionHash {
        SessionHash::of(session, self.seed)
    }

    /// The record of a session, if it is this one's: of two with one hash the second must do without, for
    /// only one can be looked up.
    fn load_as(&self, number: u32, session: &SessionKey) -> Option<Record> {
        let record = self.memory.load(number)?;
        (record.session == *session).then_some(record)
    }

    /// An agent's session in a role.
    fn session_of(&self, owner: &Owner) -> Option<(u32, Record)> {
        let number = self.owners.get(owner)?;
        let record = self.memory.load(number)?;
        (record.owner == *owner).then_some((number, record))
    }

    fn own(&mut self, number: u32, owner: &Owner) {
        let _ = self.owners.insert(*owner, number);
    }
}
