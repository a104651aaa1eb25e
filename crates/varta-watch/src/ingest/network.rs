//! Beats that come over a network: from a datagram to the agent it is credited to, or to nobody.
//!
//! In clear (plain UDP) nobody vouches for anything; sealed, a key vouches for the frame and the replay
//! guard for its being new. An agent is `(key, address without port, pid)`, so hosts with equal pids, and
//! a local process with that pid, are somebody else. Nothing is ever sent back.
//!
//! The order of the checks is that of wire spec 10.4, with one addition: a newcomer that finds no room in
//! the table is refused before the guard remembers its session.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use varta_core::admission::network_frame;
use varta_core::event::{UID_UNKNOWN, remote_source};
use varta_core::replay::{Arrival, ReplayGuard, ReplayRefusal, SessionKey};
use varta_core::tracker::{AgentKey, Beat};
use varta_core::{BeatOrigin, Counter, Home, Refusal, Sender};
use varta_sys::udp::{self, UdpBatch};
use varta_vlp::Frame;
use varta_vlp::secure::MASTER_ENVELOPE_BYTES;

use super::Ingest;
use super::open::Opener;
use crate::keys::KeyRing;
use crate::replay_file::ReplayWords;

/// Datagrams per receive call.
const BATCH: usize = 64;

/// Datagrams taken before local agents get their turn: about half a millisecond.
const PER_TURN: usize = 4 * BATCH;

/// The longest datagram that means something, and one byte more, so that a longer one can be told from it.
const DATAGRAM_BYTES: usize = MASTER_ENVELOPE_BYTES + 1;

/// What the kernel may queue, in bytes: it doubles that and counts about 770 for a beat, so that 2700 are
/// queued, of a fleet whose clocks tick together.
const QUEUE_BYTES: usize = 1 << 20;

/// Key number of agents that no key vouches for.
const NO_KEY: u64 = 0;

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
    address: IpAddr,
    /// To be shown to the replay guard.
    arrival: Option<Arrival>,
}

impl Network {
    /// Listens without keys. `seed` must be unpredictable.
    pub(crate) fn plain(address: SocketAddr, origin: BeatOrigin, seed: u64) -> io::Result<Self> {
        Self::bind(address, origin, seed, None)
    }

    /// Listens for what these keys have sealed. `agents` is how many there may be.
    pub(crate) fn sealed(
        address: SocketAddr,
        origin: BeatOrigin,
        ring: KeyRing,
        agents: usize,
        guard: ReplayGuard<ReplayWords>,
    ) -> io::Result<Self> {
        let seed = guard.seed();
        let seal = Seal {
            opener: Opener::new(ring, agents, seed),
            guard,
        };
        Self::bind(address, origin, seed, Some(seal))
    }

    fn bind(
        address: SocketAddr,
        origin: BeatOrigin,
        seed: u64,
        seal: Option<Seal>,
    ) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        // Root gets it, others as much of it as the operator allows (net.core.rmem_max).
        if set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES).is_err() {
            let _ = set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
        }
        Ok(Self {
            socket,
            batch: UdpBatch::new(BATCH, DATAGRAM_BYTES),
            origin,
            seed,
            seal,
            drops: 0,
        })
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
        let address = datagram.source.ip();
        let read = match &mut self.seal {
            _ if datagram.truncated => Err(Refusal::WrongLength),
            None => read_in_clear(datagram.bytes),
            Some(seal) => seal.read(datagram.bytes),
        };
        let sender = Sender {
            pid: read.as_ref().map_or(0, |read| read.frame.pid),
            source: Some((address, datagram.source.port())),
        };
        Some((sender, read.map(|read| self.attribute(&read, address))))
    }

    /// The agent that what was read speaks for.
    fn attribute(&self, read: &Read, address: IpAddr) -> Heard {
        let frame = read.frame;
        let source = remote_source(read.key, address, self.seed);
        let prefix = read.session.map(|(session, _)| session.prefix);
        let beat = Beat {
            key: AgentKey::Network {
                source,
                pid: frame.pid,
            },
            frame,
            origin: self.origin,
            ns_inode: None,
            uid: UID_UNKNOWN,
            session: prefix.map(u64::from_le_bytes),
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
            address,
            arrival,
        }
    }

    /// Whether a beat is heard for the first time. In clear nobody can tell. `may_begin`: a session that
    /// nobody knows may begin with it.
    fn admit(
        &mut self,
        heard: &Heard,
        may_begin: impl FnOnce() -> bool,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let (Some(seal), Some(arrival)) = (&mut self.seal, &heard.arrival) else {
            return Ok(());
        };
        if !may_begin() && !seal.guard.knows(&arrival.session) {
            return Err(Refusal::SessionNotNewer);
        }
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
                self.counters.add(Counter::UdpDrops, drops);
            }
            (0..received).for_each(|i| self.hear_from_network(i));
            read += received;
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

    /// Whether a beat may be credited, and the slot of its agent if that is known.
    fn let_in(&mut self, heard: &Heard) -> Result<Option<u32>, Refusal> {
        let now_ns = self.attention.raw_now_ns();
        let slot = self.tracker.slot_of(&heard.beat.key);
        if slot.is_none() {
            if !self.tracker.may_have_room_for(&heard.beat.key) {
                return Err(Refusal::CapacityExceeded);
            }
            if !self.lines.events.has_room_for_join() {
                return Err(Refusal::Crowded);
            }
        }
        if let Some(network) = &mut self.network {
            let may_begin = || {
                let attention_ns = self.attention.now_ns();
                slot.is_none_or(|slot| {
                    let frame = &heard.beat.frame;
                    self.tracker.may_begin_session(slot, frame, attention_ns)
                })
            };
            network.admit(heard, may_begin, now_ns)?;
        }
        let is_terminal = heard.beat.frame.is_terminal();
        let limit = match slot {
            Some(slot) => self.limits.let_beat_in(slot, is_terminal, now_ns),
            None => self.limits.let_remote_newcomer_in(now_ns),
        };
        limit.map_err(Refusal::RateLimited)?;
        Ok(slot)
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
            address: heard.address,
            sealed: heard.arrival.is_some(),
        };
        self.tell_join(agent, &beat.frame, home);
        self.tell(sender, beat, &recorded);
        self.take_leave(&beat.frame, &recorded);
    }
}
