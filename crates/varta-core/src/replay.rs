//! The replay guard: it accepts each encrypted datagram once.
//!
//! A sender numbers its datagrams with a *prefix* of its own, random, one per session, and a *counter* that
//! grows within the session. The caller passes each authenticated datagram to the guard once; the guard
//! accepts it or returns the reason for its refusal. Accepting and recording are one step; a refusal changes
//! nothing. The guard neither decrypts a datagram nor judges its content; it reads no clock and never panics.
//!
//! *Sessions.* An agent has up to [`SESSIONS_PER_AGENT`] *current* sessions at a time, because a process may hold
//! several handles, and one *farewell* session, over which only terminal datagrams came: the last frame of a
//! panicking process has a prefix of its own. If the process survives and continues over that session, it becomes
//! a current one. A session belongs to the agent of its first datagram, and no later datagram moves it to another
//! agent: an address is easily forged. Per open session the guard keeps the highest counter and which of the 63
//! below were accepted. Counters order the datagrams of one session; nothing is compared between sessions.
//!
//! *Closing.* An open session that is silent for half its agent's threshold, or has *departed* (its agent left, or
//! continued over another session), may be closed when the agent opens one session too many. When the table is
//! full, so may sessions of other agents that have departed or are silent for [`LIVE_NS`]. For a closed session the
//! guard keeps the highest counter. A datagram beyond that was not accepted before, so it reopens the session; any
//! other one is refused. So a replay is refused at any age of its session, and an agent that beats is never locked
//! out: at worst it waits until one of its other sessions is silent for half a threshold.
//!
//! *What a replay can do.* Datagrams that were accepted are refused. Datagrams that an attacker recorded and the
//! guard never received (no observer was listening, or the attacker held them back) are accepted once, as genuine
//! beats of their agent. They move no other session's window. If their nonces continue where the agent's last beat
//! ended, the session of that beat counts as departed until its next datagram: a place may have to become quiet
//! first, which is sooner than the agent can stall, because the places are in use. So they can make a dead agent
//! look alive for as many datagrams as were recorded, and no longer.
//!
//! *Bounds.* Memory is 64 bytes per open session and 24 per closed one, handed in, and of its own at most 200 per
//! open session and 64 per closed one, reserved at construction. A call costs a few look-ups; one that opens a
//! session also examines the agent's other sessions, and up to 64 more records if the table is full. The last
//! `closed` closed sessions are kept and older ones dropped: a capture that is older than that can be replayed
//! once more. Under a key that agents share, a copy of the first datagram of a session that comes before it, from
//! another agent's address, opens the session for that agent.
//!
//! The facts are stored in a row of atomic words. If these are a mapped file, the memory survives the
//! process: a kill between any two stores causes at most more refusals than needed, never a datagram that is
//! accepted again after its call has returned. Against a crash of the machine the file is only as good as its
//! last synchronisation.

#[cfg(test)]
mod crash;
mod error;
mod memory;
mod places;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::sync::atomic::AtomicU64;

use crate::index::{BoundedIndex, IndexKey};

pub use error::ReplayError;
use memory::{Closed, Heritage, Layout, Memory, Owner, Record, Role, Window};
use places::{Place, Quiet};

/// Current sessions of an agent: 4. Two handles are common and four are not; each costs a record, and a
/// look-up when the agent opens another one.
pub const SESSIONS_PER_AGENT: usize = 4;

/// Silence after which a session may be closed to make room for another agent: 10 min. A shorter time would
/// close the sessions of agents in a short outage; a longer one would keep the records of agents that ended
/// without a goodbye.
pub const LIVE_NS: u64 = 600_000_000_000;

/// Records examined per attempt to free one. It bounds the work of a new session in a full table; in a larger
/// table several attempts may be needed until a closable one is found.
const SCAN_RECORDS: u32 = 64;

/// The most open sessions (64 MiB) and closed ones kept (8 MiB); larger requests are clamped.
pub const MAX_SESSIONS: usize = 1 << 20;

/// The identity of a session. Two sessions are the same only if all fields are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Fingerprint of the key that authenticated the datagram.
    pub key: u64,
    /// The pid the key was derived for; 0 for a key that agents share.
    pub pid: u32,
    /// The sender's prefix.
    pub prefix: [u8; 8],
}

/// The hash by which a session is looked up. It depends on the seed; without the seed an attacker cannot
/// choose keys with equal hashes, and by chance they are equal for two in 2^64 pairs.
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

/// The agent of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Agent {
    source: u64,
    pid: u32,
}

/// One authenticated datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its session.
    pub session: SessionKey,
    /// Its number within the session; any first one is fine.
    pub counter: u32,
    /// The source of its agent; with `pid` the agent's identity.
    pub source: u64,
    /// The pid of its agent.
    pub pid: u32,
    /// Whether it carries a terminal frame.
    pub is_terminal: bool,
    /// Whether a datagram that opens a session continues where the agent's last beat ended, as when a handle
    /// reconnects. Then the session of that beat has departed, until its next datagram.
    pub continues: bool,
}

impl Arrival {
    fn agent(&self) -> Agent {
        Agent {
            source: self.source,
            pid: self.pid,
        }
    }

    /// The role of a session that this datagram opens.
    fn role(&self) -> Role {
        match self.is_terminal {
            true => Role::Farewell,
            false => Role::Current,
        }
    }
}

/// The position of an accepted datagram in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It opens the session.
    First,
    /// It is newer than all accepted before.
    Newest,
    /// A newer one arrived before it.
    Overtaken,
}

/// The state of a datagram's session before the datagram is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The source of the agent that owns the session; `None` for a new session. A datagram over it belongs to that
    /// agent, from any address: a copy may overtake the original.
    pub source: Option<u64>,
    /// Whether the datagram would open the session: a new one, or a closed one. The caller may have conditions
    /// for that.
    pub opens: bool,
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplayRefusal {
    /// It was accepted before, or is too old to determine that.
    Seen,
    /// It opens a session, and its agent has reached its limit, with all sessions in use.
    TooMany,
    /// It opens a session, and the table is full.
    Full,
}

/// Sizes and seed of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Open sessions, 1 to [`MAX_SESSIONS`], else clamped. An agent needs one per handle, up to
    /// [`SESSIONS_PER_AGENT`], and one more from its first terminal frame on.
    pub sessions: usize,
    /// Closed sessions kept, 1 to [`MAX_SESSIONS`], else clamped.
    pub closed: usize,
    /// Seed of the hashes. It must be unpredictable, and must stay the same as long as the memory exists, see
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

/// The guard. `W` holds its words; the guard must be their only writer.
#[derive(Debug)]
pub struct ReplayGuard<W = Box<[AtomicU64]>> {
    memory: Memory<W>,
    seed: u64,
    /// Session to record. Each record is in it once or is in `free`.
    open: BoundedIndex<SessionHash>,
    /// Agents' places to the records of the sessions in them.
    places: BoundedIndex<Place>,
    /// Hash of a closed session to its latest entry in the ring.
    closed: BoundedIndex<SessionHash>,
    /// Sessions closed since the words were new.
    closings: u64,
    /// Free records.
    free: Vec<u32>,
    /// The record that the next eviction examines first.
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

    /// Words that a guard of these sizes needs: 8, and 8 per open session, and 3 per closed one.
    pub fn words_needed(options: ReplayOptions) -> usize {
        options.layout().words()
    }

    /// The seed of the guard that wrote these words: its successor needs the same, because closed sessions
    /// are stored by their hash alone.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if the words are not a replay memory that this version can take over.
    pub fn seed_of(words: &[u64]) -> Result<u64, ReplayError> {
        Ok(Heritage::read(words)?.seed)
    }
}

impl<W: AsRef<[AtomicU64]>> ReplayGuard<W> {
    /// An empty guard. The words must be zero; more than [`ReplayGuard::words_needed`] do no harm.
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
            places: BoundedIndex::with_capacity(sessions, seed),
            closed: BoundedIndex::with_capacity(layout.closed as usize, seed),
            closings: 0,
            free: (0..layout.sessions).rev().collect(),
            cursor: 0,
        }
    }

    /// Takes over the memory of an earlier guard, from a copy of its words. The sizes may differ: of too many
    /// open sessions those that have departed and then those silent for longest are closed, of too many
    /// closed ones the oldest are dropped. All open sessions count as active at `now_ns`, but departed ones
    /// stay departed. Call it before the first datagram; it allocates. Until it has returned the earlier
    /// words are the only memory: keep them.
    ///
    /// # Errors
    ///
    /// [`ReplayError`] if this guard has accepted a datagram already, or the words are not a replay memory of
    /// a known version and of this guard's seed; nothing has changed then.
    pub fn restore(&mut self, old: &[u64], now_ns: u64) -> Result<(), ReplayError> {
        let heritage = Heritage::read(old)?;
        if heritage.seed != self.seed {
            return Err(ReplayError::OtherSeed);
        }
        if !self.open.is_empty() || self.closings != 0 {
            return Err(ReplayError::InUse);
        }
        for closed in heritage.closed() {
            self.remember(&closed);
        }
        let mut records: Vec<Record> = heritage.records().collect();
        // `None`, the departed, is less than any time.
        records.sort_by_key(|record| Reverse(record.heard_ns));
        for record in &records {
            self.take_back(&Record {
                heard_ns: record.heard_ns.map(|_| now_ns),
                ..*record
            });
        }
        Ok(())
    }

    /// Accepts a datagram that arrives for the first time and records it. It must have been authenticated,
    /// and must not be passed again. `threshold_ns` is that of its agent.
    ///
    /// # Errors
    ///
    /// [`ReplayRefusal`] if it is refused; no word has changed then.
    pub fn admit(
        &mut self,
        arrival: &Arrival,
        threshold_ns: u64,
        now_ns: u64,
    ) -> Result<Heard, ReplayRefusal> {
        let hash = self.hash(&arrival.session);
        let quiet = Quiet::of(threshold_ns, now_ns);
        match self.open.get(&hash) {
            Some(number) => self.go_on(number, arrival, quiet),
            None => self.begin(hash, arrival, quiet),
        }
    }

    /// The state of a datagram's session.
    pub fn look_up(&self, session: &SessionKey, counter: u32) -> Known {
        let hash = self.hash(session);
        if let Some(number) = self.open.get(&hash) {
            let known = self.load_as(number, session);
            return Known {
                source: known.map(|known| known.owner.agent.source),
                opens: false,
            };
        }
        let closed = self.closed_session(hash);
        Known {
            source: closed.map(|closed| closed.source),
            opens: closed.is_none_or(|closed| counter > closed.top),
        }
    }

    /// Marks a session as departed after the goodbye of its sender. It stays open, because the sender may continue
    /// over it, but is the first to be closed when the table is full. Its next new datagram makes it live again.
    pub fn depart_session(&mut self, session: &SessionKey) {
        if let Some(number) = self.open.get(&self.hash(session))
            && self.load_as(number, session).is_some()
        {
            self.memory.set_heard(number, None);
        }
    }

    /// Marks all sessions of an agent as departed: it left, or was evicted.
    pub fn depart(&mut self, source: u64, pid: u32) {
        for place in (Agent { source, pid }).places() {
            if let Some((number, _)) = self.session_in(&place) {
                self.memory.set_heard(number, None);
            }
        }
    }

    /// Current sessions of an agent with a datagram at `since_ns` or later that have not departed.
    pub fn live_sessions(&self, source: u64, pid: u32, since_ns: u64) -> usize {
        let places = Agent { source, pid }.places_for(Role::Current);
        let records = places.filter_map(|place| self.session_in(&place));
        let live = records.filter(|(_, record)| record.heard_ns >= Some(since_ns));
        live.count()
    }

    /// The seed of the hashes.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Open sessions.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Closed sessions kept.
    pub fn closed(&self) -> usize {
        self.closed.len()
    }

    /// A datagram over an open session.
    fn go_on(
        &mut self,
        number: u32,
        arrival: &Arrival,
        quiet: Quiet,
    ) -> Result<Heard, ReplayRefusal> {
        let known = self
            .load_as(number, &arrival.session)
            .ok_or(ReplayRefusal::Seen)?;
        let window = known
            .window
            .with(arrival.counter)
            .ok_or(ReplayRefusal::Seen)?;
        let Owner { agent, role } = known.owner;
        if !arrival.is_terminal && role == Role::Farewell && agent == arrival.agent() {
            self.make_current(number, agent, quiet)?;
        }
        self.memory.set_window(number, known.window, window);
        if window.top == known.window.top {
            return Ok(Heard::Overtaken);
        }
        let heard_ns = known.heard_ns.max(Some(quiet.now_ns));
        self.memory.set_heard(number, heard_ns);
        Ok(Heard::Newest)
    }

    /// Makes an agent's farewell session a current one.
    fn make_current(
        &mut self,
        number: u32,
        agent: Agent,
        quiet: Quiet,
    ) -> Result<(), ReplayRefusal> {
        let place = match self.free_place(agent, Role::Current) {
            Some(place) => place,
            None => {
                let victim = self.quiet_session(agent, Role::Current, None, quiet);
                let (place, victim) = victim.ok_or(ReplayRefusal::TooMany)?;
                self.close(victim);
                place
            }
        };
        self.leave_place(number, agent);
        self.memory.set_role(number, Role::Current);
        self.take_place(number, &place);
        Ok(())
    }

    /// A datagram over a session that is not open.
    fn begin(
        &mut self,
        hash: SessionHash,
        arrival: &Arrival,
        quiet: Quiet,
    ) -> Result<Heard, ReplayRefusal> {
        let (heard, window) = match self.closed_session(hash) {
            None => (Heard::First, Window::starting_with(arrival.counter)),
            Some(closed) => {
                let window = Window::closed_at(closed.top).with(arrival.counter);
                (Heard::Newest, window.ok_or(ReplayRefusal::Seen)?)
            }
        };
        let (agent, role) = (arrival.agent(), arrival.role());
        let continued = match heard {
            Heard::First if arrival.continues => self.latest_session(agent),
            _ => None,
        };
        let victim = self.quiet_session(agent, role, continued, quiet);
        let place = match (self.free_place(agent, role), victim) {
            (Some(place), _) => place,
            (None, Some((place, victim))) => {
                self.close(victim);
                place
            }
            (None, None) => return Err(ReplayRefusal::TooMany),
        };
        if self.free.is_empty() {
            self.make_room(quiet.now_ns);
        }
        if self.free.is_empty()
            && let Some((_, victim)) = victim
        {
            self.close(victim);
        }
        let number = self.free.pop().ok_or(ReplayRefusal::Full)?;
        if let Some(continued) = continued.filter(|continued| *continued != number) {
            self.memory.set_heard(continued, None);
        }
        let record = Record {
            session: arrival.session,
            owner: Owner { agent, role },
            window,
            heard_ns: Some(quiet.now_ns),
        };
        self.open_in(&place, number, hash, &record);
        Ok(heard)
    }

    /// Closes a session that has departed, or else is silent for [`LIVE_NS`], if a bounded search finds one.
    /// The next search starts behind it.
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

    /// The record after this one.
    fn after(&self, number: u32) -> u32 {
        (number + 1) % self.memory.layout.sessions
    }

    /// A session of an earlier guard stays open if there is room. One that was being closed when that guard
    /// was killed does too: its replacement was not accepted.
    fn take_back(&mut self, record: &Record) {
        let hash = self.hash(&record.session);
        let Owner { agent, role } = record.owner;
        // No guard writes a session twice, but the words are not trusted.
        let is_double = self.open.get(&hash).is_some();
        let place = self.free_place(agent, role).filter(|_| !is_double);
        match place.zip(self.free.last().copied()) {
            Some((place, number)) => {
                self.free.pop();
                self.open_in(&place, number, hash, record);
            }
            None => self.remember(&closed(hash, record)),
        }
    }

    /// Opens a session in a free place and a free record.
    fn open_in(&mut self, place: &Place, number: u32, hash: SessionHash, record: &Record) {
        self.memory.fill(number, record);
        // Neither index can refuse: no more records than its capacity are in it.
        let _ = self.open.insert(hash, number);
        self.take_place(number, place);
    }

    /// Closes a session. It is recorded as closed before its record is freed.
    fn close(&mut self, number: u32) {
        let Some(record) = self.memory.load(number) else {
            return;
        };
        let hash = self.hash(&record.session);
        if self.open.get(&hash) != Some(number) {
            return;
        }
        self.remember(&closed(hash, &record));
        self.memory.free(number);
        self.open.remove(&hash);
        self.leave_place(number, record.owner.agent);
        self.free.push(number);
    }

    /// Records a closed session in place of the one closed longest ago.
    fn remember(&mut self, closed: &Closed) {
        let place = self.memory.layout.place(self.closings);
        if let Some(oldest) = self.memory.closed_at(place)
            && self.closed.get(&SessionHash(oldest.hash)) == Some(place)
        {
            self.closed.remove(&SessionHash(oldest.hash));
        }
        self.memory.remember(self.closings, closed);
        self.closings += 1;
        let _ = self.closed.insert(SessionHash(closed.hash), place);
    }

    fn closed_session(&self, hash: SessionHash) -> Option<Closed> {
        self.memory.closed_at(self.closed.get(&hash)?)
    }

    fn hash(&self, session: &SessionKey) -> SessionHash {
        SessionHash::of(session, self.seed)
    }

    /// The record of a session, if it is the right one: of two sessions with one hash the second gets none,
    /// because only one can be looked up.
    fn load_as(&self, number: u32, session: &SessionKey) -> Option<Record> {
        let record = self.memory.load(number)?;
        (record.session == *session).then_some(record)
    }
}

/// The entry that is kept of an open session when it is closed.
fn closed(hash: SessionHash, record: &Record) -> Closed {
    Closed {
        hash: hash.0,
        top: record.window.top,
        source: record.owner.agent.source,
    }
}
