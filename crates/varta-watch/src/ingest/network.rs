//! Beats that come over a network: from a datagram to the agent it is credited to, or to nobody.
//!
//! In clear (plain UDP) nobody vouches for anything; sealed, a key vouches for the frame and the replay
//! guard for its being new. An agent is `(key, address without port, pid)`, so hosts with equal pids,
//! and a local process with that pid, are somebody else. A session keeps the address it began at. Nothing
//! is ever sent back.
//!
//! The order of the checks is that of wire spec 10.4, with two changes: what is in an envelope must be a
//! frame before its counter is used up, and who may not begin a session, or finds no room in the table, is
//! refused before the guard remembers anything.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, socket_recv_buffer_size,
};
use varta_core::admission::network_frame;
use varta_core::event::{Agent, NO_KEY, UID_UNKNOWN, remote_source};
use varta_core::overflow::restart_thresholds;
use varta_core::replay::{Arrival, ReplayGuard, ReplayRefusal, SessionKey};
use varta_core::tracker::{AgentKey, Beat};
use varta_core::{BeatOrigin, Counter, EventKind, Home, Reach, Refusal, Sender};
use varta_sys::udp::{self, UdpBatch};
use varta_vlp::Frame;
use varta_vlp::secure::MASTER_ENVELOPE_BYTES;

use super::Ingest;
use super::open::Opener;
use super::remembered::Remembered;
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

/// The UDP socket, and what its datagrams are worth.
pub(crate) struct Network {
    socket: UdpSocket,
    batch: UdpBatch,
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
    /// Nobody has heard of its session.
    begins_session: bool,
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
    ) -> Self {
        let seed = guard.seed();
        let seal = Seal {
            opener: Opener::new(ring, agents, seed),
            guard,
        };
        Self::new(socket, origin, seed, Some(seal))
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
        let guard = self.seal.as_ref().map(|seal| &seal.guard);
        let session = read.session.map(|(session, _)| session);
        let known = guard.zip(session);
        let opened_at = known.and_then(|(guard, session)| guard.source_of(&session));
        let begins_session =
            opened_at.is_none() && known.is_some_and(|(guard, session)| !guard.knows(&session));
        let source = opened_at.unwrap_or_else(|| remote_source(read.key, address, self.seed));
        let beat = Beat {
            key: AgentKey::Network {
                source,
                pid: frame.pid,
            },
            frame,
            origin: self.origin,
            ns_inode: None,
            uid: UID_UNKNOWN,
            session: session.map(|session| u64::from_le_bytes(session.prefix)),
        };
        let arrival = read.session.map(|(session, counter)| Arrival {
            session,
            counter,
            source,
            pid: frame.pid,
            is_terminal: frame.is_terminal(),
        });
        Heard {
            beat,
            address: *address,
            arrival,
            begins_session,
        }
    }

    /// Whether a beat is heard for the first time. In clear nobody can tell.
    fn admit(&mut self, heard: &Heard, now_ns: u64) -> Result<(), Refusal> {
        let (Some(seal), Some(arrival)) = (&mut self.seal, &heard.arrival) else {
            return Ok(());
        };
        let admitted = seal.guard.admit(arrival, now_ns);
        admitted.map_err(|refusal| match refusal {
            ReplayRefusal::Seen => Refusal::Replayed,
            ReplayRefusal::Closed => Refusal::SessionClosed,
            ReplayRefusal::Full => Refusal::SendersFull,
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
            let Ok(received) = network.batch.receive(network.socket.as_fd()) else {
                self.counters.count(Counter::ReceiveErrors);
                return false;
            };
            if received == BATCH {
                let drops = network.take_drops();
                self.take_note_of_drops(drops);
            }
            (0..received).for_each(|i| self.hear_from_network(i));
            read += received;
            self.turn_read += received;
            if received < BATCH {
                return false;
            }
            self.look();
        }
        true
    }

    /// Takes note of datagram `i` of the batch.
    fn hear_from_network(&mut self, i: usize) {
        let Some((sender, read)) = self.network.as_mut().and_then(|network| network.read(i)) else {
            return;
        };
        match read.and_then(|heard| Ok((self.let_in(&heard)?, heard))) {
            Err(reason) => self.refuse_from(sender, reason),
            Ok((Some(_), heard)) => {
                let recorded = self.record(&heard.beat);
                self.tell(sender, &heard.beat, &recorded);
                self.take_leave(&heard.beat.frame, &recorded);
            }
            Ok((None, heard)) => self.join_from_network(sender, &heard),
        }
    }

    /// Beats of any agent elsewhere may have been among what the kernel dropped: that silence is not theirs.
    fn take_note_of_drops(&mut self, count: u64) {
        let Some(network) = self.network.as_ref().filter(|_| count > 0) else {
            return;
        };
        let (now_ns, thresholds) = (self.attention.now_ns(), network.restart_thresholds);
        self.tracker
            .restart_silence(Reach::Remote, now_ns, thresholds);
        self.counters.add(Counter::UdpDrops, count);
        self.send(EventKind::NetworkDrops { count });
    }

    /// Whether a beat may be credited, and the slot of its agent if that is known. What begins a session costs
    /// a token before the guard remembers it; anything else only once it is known to be no copy, since
    /// copies are anybody's to send.
    fn let_in(&mut self, heard: &Heard) -> Result<Option<u32>, Refusal> {
        let now_ns = self.attention.raw_now_ns();
        let slot = self.tracker.slot_of(&heard.beat.key);
        if slot.is_none() {
            self.look_for_room(heard)?;
        }
        if heard.begins_session {
            self.let_session_begin(slot, heard, now_ns)?;
        }
        if let Some(network) = &mut self.network {
            network.admit(heard, now_ns)?;
        }
        match slot {
            None if self.is_overtaken_by_goodbye(heard, now_ns) => Err(Refusal::OutOfOrder),
            None if heard.begins_session => Ok(None),
            None => self.let_stranger_in(heard, now_ns).map(|()| None),
            Some(slot) => {
                let is_terminal = heard.beat.frame.is_terminal();
                let limit = self
                    .limits
                    .let_beat_in(slot, Reach::Remote, is_terminal, now_ns);
                limit.map_err(Refusal::RateLimited)?;
                Ok(Some(slot))
            }
        }
    }

    /// Whether one more agent has a chance.
    fn look_for_room(&self, heard: &Heard) -> Result<(), Refusal> {
        if !self.tracker.may_have_room_for(&heard.beat.key) {
            return Err(Refusal::CapacityExceeded);
        }
        if !self.lines.events.has_room_for_join() {
            return Err(Refusal::Crowded);
        }
        Ok(())
    }

    /// Whether a session that nobody has heard of may begin.
    fn let_session_begin(
        &mut self,
        slot: Option<u32>,
        heard: &Heard,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let Some(slot) = slot else {
            return self.let_stranger_in(heard, now_ns);
        };
        let attention_ns = self.attention.now_ns();
        let frame = &heard.beat.frame;
        if !self.tracker.may_begin_session(slot, frame, attention_ns) {
            return Err(Refusal::SessionNotNewer);
        }
        let limit = self.limits.let_session_begin(slot, now_ns);
        limit.map_err(Refusal::RateLimited)
    }

    /// Whether somebody who is not known may join now.
    fn let_stranger_in(&mut self, heard: &Heard, now_ns: u64) -> Result<(), Refusal> {
        let mut limit = self.limits.let_newcomer_in(Reach::Remote, now_ns);
        if self.left_at_ns(heard, now_ns).is_some() {
            limit = limit.and_then(|()| self.limits.let_back_in(Reach::Remote, now_ns));
        }
        limit.map_err(Refusal::RateLimited)
    }

    /// When an agent that has just said goodbye did so, on its own clock.
    fn left_at_ns(&self, heard: &Heard, now_ns: u64) -> Option<u64> {
        let AgentKey::Network { source, pid } = heard.beat.key else {
            return None;
        };
        self.network.as_ref()?.departed.get((source, pid), now_ns)
    }

    /// A beat from before the goodbye that came first. It brings nobody back; another session does, and in
    /// clear another series.
    fn is_overtaken_by_goodbye(&self, heard: &Heard, now_ns: u64) -> bool {
        let frame = &heard.beat.frame;
        let begins = heard.begins_session || frame.nonce == FIRST_NONCE;
        let left_at_ns = self.left_at_ns(heard, now_ns);
        !begins && left_at_ns.is_some_and(|left_at_ns| frame.timestamp <= left_at_ns)
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
        let seal = self
            .network
            .as_mut()
            .and_then(|network| network.seal.as_mut());
        if let Some(seal) = seal.filter(|_| agent.is_remote()) {
            seal.guard.depart(agent.instance, agent.pid);
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
        let home = Home::Network {
            address: heard.address.ip(),
            sealed: heard.arrival.is_some(),
        };
        self.tell_join(agent, &beat.frame, home);
        self.tell(sender, beat, &recorded);
        self.take_leave(&beat.frame, &recorded);
    }
}
