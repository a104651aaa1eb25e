//! What happens to a datagram from a network: credited, refused, or the first one of an agent.
//!
//! A datagram in clear (plain UDP) proves nothing; in an encrypted one the key authenticates the frame and
//! the replay guard proves that it is new. An agent is `(key, address without port, pid)`, so hosts with
//! equal pids, and a local process with that pid, are different agents. A session keeps the address of its
//! first datagram.
//!
//! Processes that share key, address and pid are one agent: several handles of one process, or processes that
//! cannot be distinguished. Under a key each has a session of its own, and nothing is compared between
//! sessions. A goodbye ends its session, and the agent only if no other session of it beat within its
//! threshold, or if its session carried no beat. That an agent beats over several sessions at once is reported,
//! because one of its senders can hang unnoticed while another one beats.
//!
//! The order of the checks is that of wire spec 10.4, with two changes: what is in an envelope must be a frame
//! before its counter is used up, and a sender that may not open a session, or for which the table has no free
//! slot, is refused before the guard stores anything. Nothing is allocated after construction.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use varta_vlp::Frame;

use super::{Limits, Room, TtlCache};
use crate::agent::{Agent, BeatOrigin, Locality, remote_source};
use crate::beat::{AgentKey, Beat};
use crate::refusal::Refusal;
use crate::replay::{Arrival, Heard, ReplayGuard, ReplayRefusal, SessionKey};
use crate::slot::Slot;

/// The first nonce of every series of beats (client spec 2).
const FIRST_NONCE: u64 = 1;

/// Minimum interval between reports of an agent's number of sessions: 1 s. An agent whose senders come and go
/// constantly would fill the ring.
const SESSIONS_PAUSE_NS: u64 = 1_000_000_000;

/// A decoded datagram and its proof.
#[derive(Clone, Copy, Debug)]
pub struct RemoteFrame {
    /// The decoded frame.
    pub frame: Frame,
    /// The key that authenticates it; [`crate::agent::NO_KEY`] in clear.
    pub key: u64,
    /// Its session, and its number within that; `None` in clear.
    pub session: Option<(SessionKey, u32)>,
}

/// A beat with its agent and its proof.
#[derive(Clone, Copy, Debug)]
pub struct RemoteBeat {
    /// The beat for the tracker.
    pub beat: Beat,
    /// Its source.
    pub address: SocketAddr,
    /// What the replay guard checks.
    arrival: Option<Arrival>,
    /// Its session is not open.
    opens_session: bool,
}

impl RemoteBeat {
    /// Whether a key authenticates it.
    pub fn is_sealed(&self) -> bool {
        self.arrival.is_some()
    }
}

/// The agent that a remote beat belongs to.
#[derive(Clone, Copy, Debug)]
pub struct KnownRemote {
    /// Its slot.
    pub slot: u32,
    /// Its facts.
    pub facts: Slot,
}

/// The time of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Attention time.
    pub attention_ns: u64,
    /// Raw time.
    pub raw_ns: u64,
}

/// What a remote beat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// One of an agent that is known.
    Known,
    /// The first one of an agent.
    First,
}

/// The sessions that an agent beats over, and how many of its datagrams were refused.
#[derive(Clone, Copy, Debug, Default)]
struct SessionUse {
    /// Datagrams refused by a limit since the last beat.
    refused: u32,
    /// Prefix of the session of the last beat.
    latest: Option<[u8; 8]>,
    /// Sessions in use at the last report; 0 for one.
    reported: usize,
    /// The earliest time of the next report, raw time.
    report_from_ns: u64,
}

/// State of the remote agents beside the table.
#[derive(Debug)]
pub struct RemoteSenders<W> {
    origin: BeatOrigin,
    /// Seed of the source numbers.
    seed: u64,
    /// The guard for encrypted datagrams; `None` in clear.
    guard: Option<ReplayGuard<W>>,
    /// Agents that sent a goodbye, with the time on their own clocks.
    departed: TtlCache<(u64, u32), u64>,
    /// By slot.
    sessions: Box<[SessionUse]>,
}

impl<W: AsRef<[AtomicU64]>> RemoteSenders<W> {
    /// Senders in clear. `seed` must be unpredictable; `slots` is how many the table has.
    pub fn in_clear(origin: BeatOrigin, seed: u64, slots: usize) -> Self {
        Self {
            origin,
            seed,
            guard: None,
            departed: TtlCache::default(),
            sessions: vec![SessionUse::default(); slots].into_boxed_slice(),
        }
    }

    /// Senders under keys.
    pub fn sealed(origin: BeatOrigin, guard: ReplayGuard<W>, slots: usize) -> Self {
        let seed = guard.seed();
        Self {
            guard: Some(guard),
            ..Self::in_clear(origin, seed, slots)
        }
    }

    /// The agent that a datagram belongs to. A session belongs to the address of its first datagram, so a
    /// change of address has no effect, and neither does a copy from another address that overtakes its
    /// original.
    pub fn attribute(&self, read: &RemoteFrame, address: SocketAddr) -> RemoteBeat {
        let frame = read.frame;
        let known = self.guard.as_ref().zip(read.session);
        let known = known.map(|(guard, (session, counter))| guard.look_up(&session, counter));
        let opened_at = known.and_then(|known| known.source);
        let source = opened_at.unwrap_or_else(|| remote_source(read.key, &address, self.seed));
        let pid = frame.pid;
        let arrival = read.session.map(|(session, counter)| Arrival {
            session,
            counter,
            source,
            pid,
            is_terminal: frame.is_terminal(),
            continues: false,
        });
        RemoteBeat {
            beat: Beat::new(AgentKey::Remote { source, pid }, frame, self.origin),
            address,
            arrival,
            opens_session: known.is_some_and(|known| known.opens),
        }
    }

    /// Whether a beat may be credited. A beat that opens a session needs a token before the guard stores it; any
    /// other beat only after it proved to be no copy, because any host can send copies. The threshold of a new
    /// agent is `newcomer_threshold_ns`.
    pub fn judge(
        &mut self,
        heard: &mut RemoteBeat,
        known: Option<&KnownRemote>,
        room: Room,
        newcomer_threshold_ns: u64,
        limits: &mut Limits,
        now: Moment,
    ) -> Result<Admitted, Refusal> {
        let judged = self.judge_unnoted(heard, known, room, newcomer_threshold_ns, limits, now);
        if let (Err(reason), Some(known)) = (judged, known) {
            self.note_refusal(heard, known.slot, reason);
        }
        judged
    }

    fn judge_unnoted(
        &mut self,
        heard: &mut RemoteBeat,
        known: Option<&KnownRemote>,
        room: Room,
        newcomer_threshold_ns: u64,
        limits: &mut Limits,
        now: Moment,
    ) -> Result<Admitted, Refusal> {
        match known {
            None if !room.in_table => return Err(Refusal::CapacityExceeded),
            None if !room.for_events => return Err(Refusal::Crowded),
            _ => {}
        }
        if heard.opens_session {
            self.let_session_open(known, heard, limits, now.raw_ns)?;
        }
        let threshold_ns = known.map_or(newcomer_threshold_ns, |known| known.facts.threshold_ns);
        heard.beat.session = self.admit(heard.arrival.as_ref(), threshold_ns, now.attention_ns)?;
        if let Some(known) = known.filter(|_| heard.opens_session) {
            limits.begin_session(known.slot, now.raw_ns);
        }
        let Some(known) = known else {
            if self.is_overtaken_by_goodbye(heard, now.raw_ns) {
                return Err(Refusal::OutOfOrder);
            }
            if !heard.opens_session {
                self.admit_unknown(heard, limits, now.raw_ns)?;
            }
            return Ok(Admitted::First);
        };
        let is_terminal = heard.beat.frame.is_terminal();
        let limit = limits.admit_beat(known.slot, Locality::Remote, is_terminal, now.raw_ns);
        limit.map_err(Refusal::RateLimited)?;
        Ok(Admitted::Known)
    }

    /// A new agent has a slot.
    pub fn note_join(&mut self, agent: Agent) {
        self.sessions[agent.slot as usize] = SessionUse::default();
    }

    /// Records the session of a credited beat. A beat over an earlier session shows that more than one is in use;
    /// from then on the sessions are counted with each beat, until one is left. Returns the number of sessions if it
    /// changed and is to be reported. `facts` are the agent's.
    pub fn note_beat(
        &mut self,
        agent: Agent,
        heard: &RemoteBeat,
        facts: impl FnOnce() -> Option<Slot>,
        now: Moment,
    ) -> Option<usize> {
        let arrival = heard.arrival.filter(|arrival| !arrival.is_terminal)?;
        let sessions = &mut self.sessions[agent.slot as usize];
        sessions.refused = 0;
        let latest = sessions.latest.replace(arrival.session.prefix);
        let is_another = latest.is_some_and(|latest| latest != arrival.session.prefix);
        let is_earlier = is_another && heard.beat.session == Some(Heard::Newest);
        if !is_earlier && sessions.reported <= 1 {
            return None;
        }
        self.changed_sessions(agent, &facts()?, now)
    }

    /// Whether a goodbye ends its agent, or only its session because another one is in use. A goodbye over a session
    /// that never beat ends the agent.
    pub fn ends_agent(&mut self, heard: &RemoteBeat, facts: &Slot, now: Moment) -> bool {
        let Some(arrival) = &heard.arrival else {
            return true;
        };
        let Some(guard) = &mut self.guard else {
            return true;
        };
        if heard.beat.session == Some(Heard::First) {
            return true;
        }
        guard.depart_session(&arrival.session);
        self.live_sessions(facts, now.attention_ns) == 0
    }

    /// The number of sessions of an agent, if it changed since the last report and may be reported again.
    pub fn changed_sessions(&mut self, agent: Agent, facts: &Slot, now: Moment) -> Option<usize> {
        let count = self.live_sessions(facts, now.attention_ns);
        let sessions = &mut self.sessions[agent.slot as usize];
        if count.max(1) == sessions.reported.max(1) || now.raw_ns < sessions.report_from_ns {
            return None;
        }
        sessions.reported = count;
        sessions.report_from_ns = now.raw_ns.saturating_add(SESSIONS_PAUSE_NS);
        Some(count)
    }

    /// Datagrams of an agent that a limit refused since its last beat.
    pub fn refused(&self, agent: Agent) -> u32 {
        self.sessions[agent.slot as usize].refused
    }

    /// Records the goodbye of an agent, at `timestamp_ns` of its own clock.
    pub fn note_goodbye(&mut self, agent: Agent, timestamp_ns: u64, now_ns: u64) {
        let who = (agent.instance, agent.pid);
        self.departed.insert(who, timestamp_ns, now_ns);
        self.note_departure(agent);
    }

    /// An agent lost its slot: its sessions are the first to be evicted.
    pub fn note_departure(&mut self, agent: Agent) {
        if let Some(guard) = &mut self.guard {
            guard.depart(agent.instance, agent.pid);
        }
    }

    /// Whether a beat is new, and its position in its session. In clear both are unknown.
    fn admit(
        &mut self,
        arrival: Option<&Arrival>,
        threshold_ns: u64,
        now_ns: u64,
    ) -> Result<Option<Heard>, Refusal> {
        let (Some(guard), Some(arrival)) = (&mut self.guard, arrival) else {
            return Ok(None);
        };
        let admitted = guard.admit(arrival, threshold_ns, now_ns);
        admitted.map(Some).map_err(|refusal| match refusal {
            ReplayRefusal::Seen => Refusal::Replayed,
            ReplayRefusal::TooMany => Refusal::TooManySessions,
            ReplayRefusal::Full => Refusal::SendersFull,
        })
    }

    /// Counts a genuine datagram of the agent, not a copy, that a limit refused.
    fn note_refusal(&mut self, heard: &RemoteBeat, slot: u32, reason: Refusal) {
        let is_by_limit = matches!(
            reason,
            Refusal::TooManySessions | Refusal::SendersFull | Refusal::RateLimited(_)
        );
        if is_by_limit && heard.is_sealed() {
            let refused = &mut self.sessions[slot as usize].refused;
            *refused = refused.saturating_add(1);
        }
    }

    /// Whether a session may be opened.
    fn let_session_open(
        &self,
        known: Option<&KnownRemote>,
        heard: &mut RemoteBeat,
        limits: &mut Limits,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let Some(known) = known else {
            return self.admit_unknown(heard, limits, now_ns);
        };
        let frame = &heard.beat.frame;
        if !known.facts.may_begin_session(frame) {
            return Err(Refusal::SessionNotNewer);
        }
        if let Some(arrival) = &mut heard.arrival {
            let last_nonce = known.facts.last_nonce;
            let is_newer = last_nonce.is_some_and(|last| frame.nonce > last);
            arrival.continues = is_newer && !frame.is_terminal();
        }
        let limit = limits.may_begin_session(known.slot, now_ns);
        limit.map_err(Refusal::RateLimited)
    }

    /// Whether an agent that is not known may join now.
    fn admit_unknown(
        &self,
        heard: &RemoteBeat,
        limits: &mut Limits,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let mut limit = limits.admit_newcomer(Locality::Remote, now_ns);
        if self.left_at_ns(heard, now_ns).is_some() {
            limit = limit.and_then(|()| limits.admit_comeback(Locality::Remote, now_ns));
        }
        limit.map_err(Refusal::RateLimited)
    }

    /// The time of a recent goodbye of an agent, on its own clock.
    fn left_at_ns(&self, heard: &RemoteBeat, now_ns: u64) -> Option<u64> {
        let AgentKey::Remote { source, pid } = heard.beat.key else {
            return None;
        };
        self.departed.get((source, pid), now_ns)
    }

    /// Whether a beat was sent before a goodbye that arrived before it. Such a beat does not bring the agent
    /// back; a newer beat of its session does, or another session, and in clear another series.
    fn is_overtaken_by_goodbye(&self, heard: &RemoteBeat, now_ns: u64) -> bool {
        let frame = &heard.beat.frame;
        let Some(left_at_ns) = self.left_at_ns(heard, now_ns) else {
            return false;
        };
        match heard.beat.session {
            Some(place) => place == Heard::Overtaken,
            None => frame.nonce != FIRST_NONCE && frame.timestamp <= left_at_ns,
        }
    }

    /// The number of sessions that an agent beats over.
    fn live_sessions(&self, facts: &Slot, now_ns: u64) -> usize {
        let since_ns = now_ns.saturating_sub(facts.threshold_ns);
        // Beats that an earlier observer received are no proof of life.
        let since_ns = since_ns.max(facts.joined_ns);
        self.guard.as_ref().map_or(0, |guard| {
            guard.live_sessions(facts.instance, facts.pid, since_ns)
        })
    }
}

#[cfg(test)]
mod tests;
