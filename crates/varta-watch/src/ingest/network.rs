//! Beats that come over a network: from a datagram to the agent it is credited to, or to nobody.
//!
//! In clear (plain UDP) nobody vouches for anything; sealed, a key vouches for the frame and the replay
//! guard for its being new. An agent is `(key, address without port, pid)`, so hosts with equal pids,
//! and a local process with that pid, are somebody else. A session keeps the address it began at. Nothing
//! is ever sent back.
//!
//! Processes that share key, address and pid are one agent: several handles of one process, or processes that
//! nobody can tell apart. Under a key each has a session of its own, and nothing is compared between sessions. A
//! goodbye ends the session that it came over, and the agent only if no other session of it was heard within its
//! threshold, or if nothing else came over that session. That an agent beats over several sessions at once is reported ([`EventKind::Sessions`]), because one
//! of its senders can hang unnoticed while another one beats.
//!
//! The order of the checks is that of wire spec 10.4, with two changes: what is in an envelope must be a
//! frame before its counter is used up, and who may not open a session, or finds no room in the table, is
//! refused before the guard remembers anything.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, socket_recv_buffer_size,
};
use varta_core::admission::network_frame;
use varta_core::agent::{NO_KEY, remote_source};
use varta_core::overflow::restart_thresholds;
use varta_core::replay::{self, Arrival, ReplayGuard, ReplayRefusal, SessionKey};
use varta_core::tracker::Recorded;
use varta_core::{
    Agent, AgentKey, Beat, BeatOrigin, Counter, EventKind, JoinedFrom, Locality, Refusal, Sender,
    Slot, UID_UNKNOWN,
};
use varta_sys::udp::{self, UdpBatch};
use varta_vlp::Frame;
use varta_vlp::secure::MASTER_ENVELOPE_BYTES;

use super::Ingest;
use super::open::Opener;
use super::receive::Intake;
use super::remembered::Remembered;
use crate::beat_path_state::Transport;
use crate::keys::KeyRing;
use crate::replay_file::ReplayWords;

/// Datagrams per receive call.
const BATCH: usize = 64;

/// Datagrams taken before local agents get their turn: with one key half a millisecond, with sixteen two.
const PER_TURN: usize = 4 * BATCH;

/// The longest datagram that means something, and one byte more, so that a longer one can be told from it.
const DATAGRAM_BYTES: usize = MASTER_ENVELOPE_BYTES + 1;

/// What the kernel may queue, in bytes: it doubles that, so that 2700 beats are queued, of a fleet whose clocks
/// tick together.
const QUEUE_BYTES: usize = 1 << 20;

/// What the kernel counts for a beat in a queue, in bytes.
const QUEUED_BEAT_BYTES: usize = 770;

/// Every series of beats begins with it (client spec 2).
const FIRST_NONCE: u64 = 1;

/// Over how many sessions an agent beats is reported once in this time at most: 1 s. One whose senders come and
/// go all the time would fill the ring.
const SESSIONS_PAUSE_NS: u64 = 1_000_000_000;

/// The UDP socket, and what its datagrams are worth.
pub(crate) struct Network {
    socket: UdpSocket,
    batch: UdpBatch,
    pub(super) intake: Intake,
    origin: BeatOrigin,
    /// Of the numbers that stand for sources.
    seed: u64,
    seal: Option<Seal>,
    /// Datagrams the kernel had dropped when it was asked last.
    drops: u32,
    /// Thresholds by which drops may put off a stall.
    restart_thresholds: u64,
    /// Agents that said goodbye, with the time of their own clocks.
    departed: Remembered<(u64, u32), u64>,
}

/// What it takes to believe an envelope.
struct Seal {
    opener: Opener,
    guard: ReplayGuard<ReplayWords>,
}

/// What a datagram says, and what proves it.
struct Read {
    frame: Frame,
    /// [`NO_KEY`] if it came in clear.
    key: u64,
    session: Option<(SessionKey, u32)>,
}

/// A beat whose sender is known as well as it can be.
struct Heard {
    beat: Beat,
    address: SocketAddr,
    /// To be shown to the replay guard.
    arrival: Option<Arrival>,
    /// Its session is not open.
    opens_session: bool,
}

/// Over which sessions an agent beats, and what of it was refused.
#[derive(Default)]
pub(super) struct Senders {
    /// Datagrams refused since the last beat.
    refused: u32,
    /// Prefix of the session of the last beat.
    latest: Option<[u8; 8]>,
    /// How many sessions were in use when that was reported last; 0 for one.
    reported: usize,
    /// Nothing more is reported before, raw time.
    report_from_ns: u64,
}

impl Senders {
    pub(super) fn refused(&self) -> u32 {
        self.refused
    }
}

impl Network {
    /// Listens without keys. `seed` must be unpredictable.
    pub(crate) fn in_clear(socket: UdpSocket, origin: BeatOrigin, seed: u64) -> Self {
        Self::new(socket, origin, seed, None)
    }

    /// Listens for what these keys have sealed. `agents` is how many there may be.
    pub(crate) fn sealed(
        socket: UdpSocket,
        origin: BeatOrigin,
        ring: KeyRing,
        agents: usize,
        guard: ReplayGuard<ReplayWords>,
    ) -> io::Result<Self> {
        let seed = guard.seed();
        let seal = Seal {
            opener: Opener::new(ring, agents, seed)?,
            guard,
        };
        Ok(Self::new(socket, origin, seed, Some(seal)))
    }

    fn new(socket: UdpSocket, origin: BeatOrigin, seed: u64, seal: Option<Seal>) -> Self {
        // Root gets it, others as much of it as the operator allows (net.core.rmem_max).
        if set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES).is_err() {
            let _ = set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
        }
        let queue_bytes = socket_recv_buffer_size(&socket).unwrap_or(0);
        Self {
            restart_thresholds: restart_thresholds(queue_bytes / QUEUED_BEAT_BYTES),
            socket,
            batch: UdpBatch::new(BATCH, DATAGRAM_BYTES),
            intake: Intake::new(Transport::Udp),
            origin,
            seed,
            seal,
            drops: 0,
            departed: Remembered::new(),
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Believes these keys from now on.
    pub(super) fn replace_keys(&mut self, ring: KeyRing) {
        if let Some(seal) = &mut self.seal {
            seal.opener.replace(ring);
        }
    }

    /// Who is speaking, and what they say or why it is not believed.
    fn read(&mut self, i: usize) -> Option<(Sender, Result<Heard, Refusal>)> {
        let datagram = self.batch.datagram(i)?;
        let address = datagram.source;
        let read = match &mut self.seal {
            _ if datagram.truncated => Err(Refusal::WrongLength),
            None => read_in_clear(datagram.bytes),
            Some(seal) => seal.read(datagram.bytes),
        };
        let sender = Sender {
            pid: read.as_ref().map_or(0, |read| read.frame.pid),
            source: Some((address.ip(), address.port())),
        };
        Some((sender, read.map(|read| self.attribute(&read, &address))))
    }

    /// The agent that what was read speaks for. A session is that of the address it began at, so an address
    /// that changes changes nothing, and neither does a copy from elsewhere that overtakes its original.
    fn attribute(&self, read: &Read, address: &SocketAddr) -> Heard {
        let frame = read.frame;
        let known = self.guard().zip(read.session);
        let known = known.map(|(guard, (session, counter))| guard.look_up(&session, counter));
        let opened_at = known.and_then(|known| known.source);
        let source = opened_at.unwrap_or_else(|| remote_source(read.key, address, self.seed));
        let beat = Beat {
            key: AgentKey::Remote {
                source,
                pid: frame.pid,
            },
            frame,
            origin: self.origin,
            ns_inode: None,
            uid: UID_UNKNOWN,
            session: None,
        };
        let arrival = read.session.map(|(session, counter)| Arrival {
            session,
            counter,
            source,
            pid: frame.pid,
            is_terminal: frame.is_terminal(),
            continues: false,
        });
        Heard {
            beat,
            address: *address,
            arrival,
            opens_session: known.is_some_and(|known| known.opens),
        }
    }

    fn guard(&self) -> Option<&ReplayGuard<ReplayWords>> {
        self.seal.as_ref().map(|seal| &seal.guard)
    }

    fn guard_mut(&mut self) -> Option<&mut ReplayGuard<ReplayWords>> {
        self.seal.as_mut().map(|seal| &mut seal.guard)
    }

    /// Whether a beat is heard for the first time, and its place in its session. In clear nobody can tell.
    fn admit(
        &mut self,
        arrival: Option<&Arrival>,
        threshold_ns: u64,
        now_ns: u64,
    ) -> Result<Option<replay::Heard>, Refusal> {
        let (Some(guard), Some(arrival)) = (self.guard_mut(), arrival) else {
            return Ok(None);
        };
        let admitted = guard.admit(arrival, threshold_ns, now_ns);
        admitted.map(Some).map_err(|refusal| match refusal {
            ReplayRefusal::Seen => Refusal::Replayed,
            ReplayRefusal::TooMany => Refusal::TooManySessions,
            ReplayRefusal::Full => Refusal::SendersFull,
        })
    }

    /// Over how many sessions an agent beats.
    fn live_sessions(&self, facts: &Slot, now_ns: u64) -> usize {
        let since_ns = now_ns.saturating_sub(facts.threshold_ns);
        // What an earlier observer heard is no proof of life.
        let since_ns = since_ns.max(facts.joined_ns);
        self.guard().map_or(0, |guard| {
            guard.live_sessions(facts.instance, facts.pid, since_ns)
        })
    }

    /// Datagrams that the kernel has dropped since the last call.
    fn take_drops(&mut self) -> u64 {
        let Ok(drops) = udp::drops(self.socket.as_fd()) else {
            return 0;
        };
        let since = drops.wrapping_sub(self.drops);
        self.drops = drops;
        u64::from(since)
    }
}

impl Seal {
    fn read(&mut self, bytes: &[u8]) -> Result<Read, Refusal> {
        let opened = self.opener.open(bytes)?;
        Ok(Read {
            frame: network_frame(&opened.frame)?,
            key: opened.session.key,
            session: Some((opened.session, opened.counter)),
        })
    }
}

fn read_in_clear(bytes: &[u8]) -> Result<Read, Refusal> {
    Ok(Read {
        frame: network_frame(bytes)?,
        key: NO_KEY,
        session: None,
    })
}

impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Ingest {
    /// Takes what came over the network, up to a bound; true if there may be more.
    pub(super) fn drain_network(&mut self) -> bool {
        let mut read = 0;
        while read < PER_TURN {
            let Some(network) = &mut self.network else {
                return false;
            };
            let now_ns = self.attention.raw_now_ns();
            if !network.intake.may_be_read(now_ns) {
                return false;
            }
            let received = match network.batch.receive(network.socket.as_fd()) {
                Ok(received) => received,
                Err(error) => {
                    network.intake.has_failed(&error, now_ns);
                    self.counters.count(Counter::ReceiveErrors);
                    return false;
                }
            };
            if network.intake.has_succeeded(now_ns) > 0 {
                // What could not be read is held against nobody.
                let thresholds = network.restart_thresholds;
                let now_ns = self.attention.now_ns();
                self.tracker
                    .restart_silence(Locality::Remote, now_ns, thresholds);
            }
            if received == BATCH {
                let drops = network.take_drops();
                self.take_note_of_drops(drops);
            }
            // They were sent before now: a silence that began at an earlier look would be over too early.
            self.look();
            (0..received).for_each(|i| self.hear_from_network(i));
            read += received;
            self.turn_read += received;
            if received < BATCH {
                return false;
            }
        }
        true
    }

    /// Takes note of datagram `i` of the batch.
    fn hear_from_network(&mut self, i: usize) {
        let Some((sender, read)) = self.network.as_mut().and_then(|network| network.read(i)) else {
            return;
        };
        let mut heard = match read {
            Ok(heard) => heard,
            Err(reason) => return self.refuse_from(sender, reason),
        };
        match self.let_in(&mut heard) {
            Err(reason) => {
                self.note_refusal(&heard, reason);
                self.refuse_from(sender, reason);
            }
            Ok(Some(_)) => {
                let recorded = self.record(&heard.beat);
                self.hear_beat(sender, &heard, &recorded);
            }
            Ok(None) => self.join_from_network(sender, &heard),
        }
    }

    /// Takes note of a datagram that is the agent's and no copy, and was refused by a limit.
    fn note_refusal(&mut self, heard: &Heard, reason: Refusal) {
        let is_by_limit = matches!(
            reason,
            Refusal::TooManySessions | Refusal::SendersFull | Refusal::RateLimited(_)
        );
        if let Some(slot) = self.tracker.slot_of(&heard.beat.key)
            && is_by_limit
            && heard.arrival.is_some()
        {
            let refused = &mut self.held[slot as usize].senders.refused;
            *refused = refused.saturating_add(1);
        }
    }

    /// Takes note of a beat that was recorded.
    fn hear_beat(&mut self, sender: Sender, heard: &Heard, recorded: &Recorded) {
        self.tell(sender, &heard.beat, recorded);
        if let Some(agent) = recorded.agent {
            self.note_session(agent, heard);
            self.take_goodbye(agent, heard, recorded);
        }
    }

    /// Takes note of the session of a beat. That an earlier session is heard again shows that more than one is in
    /// use; from then on they are counted with each beat, until there is one left.
    fn note_session(&mut self, agent: Agent, heard: &Heard) {
        let Some(arrival) = heard.arrival.filter(|arrival| !arrival.is_terminal) else {
            return;
        };
        let senders = &mut self.held[agent.slot as usize].senders;
        senders.refused = 0;
        let latest = senders.latest.replace(arrival.session.prefix);
        let is_another = latest.is_some_and(|latest| latest != arrival.session.prefix);
        let is_earlier = is_another && heard.beat.session == Some(replay::Heard::Newest);
        if is_earlier || senders.reported > 1 {
            self.report_sessions(agent);
        }
    }

    /// Reports over how many sessions an agent beats, if that has changed.
    fn report_sessions(&mut self, agent: Agent) {
        let now_ns = self.attention.now_ns();
        let (Some(network), Some(facts)) = (&self.network, self.tracker.facts_in(agent.slot))
        else {
            return;
        };
        let count = network.live_sessions(&facts, now_ns);
        let senders = &mut self.held[agent.slot as usize].senders;
        let raw_ns = self.attention.raw_now_ns();
        if count.max(1) == senders.reported.max(1) || raw_ns < senders.report_from_ns {
            return;
        }
        senders.reported = count;
        senders.report_from_ns = raw_ns.saturating_add(SESSIONS_PAUSE_NS);
        self.send(EventKind::Sessions { agent, count });
    }

    /// A goodbye ends its session, and the agent if no other session of it lives. One over a session that never beat
    /// has no other meaning than to end the agent.
    fn take_goodbye(&mut self, agent: Agent, heard: &Heard, recorded: &Recorded) {
        let frame = &heard.beat.frame;
        if !frame.is_goodbye() {
            return;
        }
        let now_ns = self.attention.now_ns();
        if let Some(arrival) = &heard.arrival
            && let Some(network) = &mut self.network
            && let Some(guard) = network.guard_mut()
            && let Some(facts) = self.tracker.facts_in(agent.slot)
            && heard.beat.session != Some(replay::Heard::First)
        {
            guard.depart_session(&arrival.session);
            if network.live_sessions(&facts, now_ns) > 0 {
                return self.report_sessions(agent);
            }
        }
        self.take_leave(frame, recorded);
    }

    /// Beats of any agent elsewhere may have been among what the kernel dropped: that silence is not theirs.
    fn take_note_of_drops(&mut self, count: u64) {
        let Some(network) = self.network.as_ref().filter(|_| count > 0) else {
            return;
        };
        let (now_ns, thresholds) = (self.attention.now_ns(), network.restart_thresholds);
        self.tracker
            .restart_silence(Locality::Remote, now_ns, thresholds);
        self.counters.add(Counter::UdpDrops, count);
        self.send(EventKind::NetworkDrops { count });
    }

    /// Whether a beat may be credited, and the slot of its agent if that is known. What opens a session needs
    /// a token before the guard remembers it; anything else only once it is known to be no copy, since
    /// copies are anybody's to send.
    fn let_in(&mut self, heard: &mut Heard) -> Result<Option<u32>, Refusal> {
        let raw_ns = self.attention.raw_now_ns();
        let slot = self.tracker.slot_of(&heard.beat.key);
        let facts = slot.and_then(|slot| self.tracker.facts_in(slot));
        if slot.is_none() {
            self.look_for_room()?;
        }
        if heard.opens_session {
            self.let_session_open(slot, facts.as_ref(), heard, raw_ns)?;
        }
        let threshold_ns = facts.map_or(self.config.threshold_ns, |facts| facts.threshold_ns);
        let now_ns = self.attention.now_ns();
        if let Some(network) = &mut self.network {
            heard.beat.session = network.admit(heard.arrival.as_ref(), threshold_ns, now_ns)?;
        }
        if let Some(slot) = slot.filter(|_| heard.opens_session) {
            self.limits.begin_session(slot, raw_ns);
        }
        match slot {
            None if self.is_overtaken_by_goodbye(heard, raw_ns) => Err(Refusal::OutOfOrder),
            None if heard.opens_session => Ok(None),
            None => self.let_stranger_in(heard, raw_ns).map(|()| None),
            Some(slot) => {
                let is_terminal = heard.beat.frame.is_terminal();
                let limit = self
                    .limits
                    .let_beat_in(slot, Locality::Remote, is_terminal, raw_ns);
                limit.map_err(Refusal::RateLimited)?;
                Ok(Some(slot))
            }
        }
    }

    /// Whether one more agent has a chance.
    fn look_for_room(&self) -> Result<(), Refusal> {
        if !self.tracker.may_have_room_for(None) {
            return Err(Refusal::CapacityExceeded);
        }
        if !self.lines.events.has_room_for_join() {
            return Err(Refusal::Crowded);
        }
        Ok(())
    }

    /// Whether a session may be opened.
    fn let_session_open(
        &mut self,
        slot: Option<u32>,
        facts: Option<&Slot>,
        heard: &mut Heard,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let (Some(slot), Some(facts)) = (slot, facts) else {
            return self.let_stranger_in(heard, now_ns);
        };
        let frame = &heard.beat.frame;
        if !facts.may_begin_session(frame) {
            return Err(Refusal::SessionNotNewer);
        }
        if let Some(arrival) = &mut heard.arrival {
            let is_newer = facts.last_nonce.is_some_and(|last| frame.nonce > last);
            arrival.continues = is_newer && !frame.is_terminal();
        }
        let limit = self.limits.may_begin_session(slot, now_ns);
        limit.map_err(Refusal::RateLimited)
    }

    /// Whether somebody who is not known may join now.
    fn let_stranger_in(&mut self, heard: &Heard, now_ns: u64) -> Result<(), Refusal> {
        let mut limit = self.limits.let_newcomer_in(Locality::Remote, now_ns);
        if self.left_at_ns(heard, now_ns).is_some() {
            limit = limit.and_then(|()| self.limits.let_back_in(Locality::Remote, now_ns));
        }
        limit.map_err(Refusal::RateLimited)
    }

    /// When an agent that has just said goodbye did so, on its own clock.
    fn left_at_ns(&self, heard: &Heard, now_ns: u64) -> Option<u64> {
        let AgentKey::Remote { source, pid } = heard.beat.key else {
            return None;
        };
        self.network.as_ref()?.departed.get((source, pid), now_ns)
    }

    /// A beat from before the goodbye that came first. It brings nobody back; a newer one of its session does,
    /// or another session, and in clear another series.
    fn is_overtaken_by_goodbye(&self, heard: &Heard, now_ns: u64) -> bool {
        let frame = &heard.beat.frame;
        let Some(left_at_ns) = self.left_at_ns(heard, now_ns) else {
            return false;
        };
        match heard.beat.session {
            Some(place) => place == replay::Heard::Overtaken,
            None => frame.nonce != FIRST_NONCE && frame.timestamp <= left_at_ns,
        }
    }

    /// An agent elsewhere has said goodbye, at `timestamp_ns` of its own clock.
    pub(super) fn remember_departed(&mut self, agent: Agent, timestamp_ns: u64, now_ns: u64) {
        if let Some(network) = &mut self.network {
            let who = (agent.instance, agent.pid);
            network.departed.add(who, timestamp_ns, now_ns);
        }
        self.forget_elsewhere(agent);
    }

    /// An agent has lost its slot. If it lives elsewhere its sessions are the first to make room.
    pub(super) fn forget_elsewhere(&mut self, agent: Agent) {
        let guard = self.network.as_mut().and_then(Network::guard_mut);
        if let Some(guard) = guard.filter(|_| agent.is_remote()) {
            guard.depart(agent.instance, agent.pid);
        }
    }

    /// The first beat of a network agent.
    fn join_from_network(&mut self, sender: Sender, heard: &Heard) {
        let beat = &heard.beat;
        let recorded = self.record(beat);
        let Some(agent) = recorded.agent else {
            return self.refuse_recorded(sender, &recorded);
        };
        if let Some(displaced) = recorded.displaced {
            self.see_off(displaced);
        }
        let now_ns = self.attention.raw_now_ns();
        self.limits.welcome(agent.slot, now_ns);
        let from = JoinedFrom::Remote {
            address: heard.address.ip(),
            sealed: heard.arrival.is_some(),
        };
        self.tell_join(agent, &beat.frame, from);
        self.hear_beat(sender, heard, &recorded);
    }
}
