//! Beats from a network: taken in batches, a bounded number of them before the local socket is read again.
//!
//! This module opens envelopes; [`varta_core::admission::RemoteSenders`] identifies the sender and decides whether to
//! accept it. Nothing is ever sent back.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, socket_recv_buffer_size,
};
use varta_core::admission::{
    Admitted, KnownRemote, Moment, RemoteBeat, RemoteFrame, RemoteSenders, Room, network_frame,
};
use varta_core::agent::NO_KEY;
use varta_core::fact::Transport;
use varta_core::overflow::restart_thresholds;
use varta_core::replay::ReplayGuard;
use varta_core::tracker::Recorded;
use varta_core::{Agent, BeatOrigin, Counter, EventKind, JoinedFrom, Locality, Refusal, Sender};
use varta_sys::udp::{self, UdpBatch};
use varta_vlp::secure::MASTER_ENVELOPE_BYTES;

use super::intake::Intake;
use super::open::Opener;
use super::recorder::Recorder;
use crate::keys::KeyRing;
use crate::replay_file::ReplayWords;

/// Datagrams per receive call.
const BATCH: usize = 64;

/// Datagrams taken before the local socket is read again: half a millisecond with one key, two with sixteen.
const PER_TURN: usize = 4 * BATCH;

/// The longest valid datagram and one byte more, so that a longer one is detected.
const DATAGRAM_BYTES: usize = MASTER_ENVELOPE_BYTES + 1;

/// Requested size of the kernel's queue, in bytes. The kernel doubles it, which makes 2700 beats: enough for a fleet
/// whose clocks tick together.
const QUEUE_BYTES: usize = 1 << 20;

/// Bytes that the kernel accounts for a queued beat.
const QUEUED_BEAT_BYTES: usize = 770;

/// The UDP socket, with its keys and limits.
pub(crate) struct UdpSource {
    socket: UdpSocket,
    batch: UdpBatch,
    intake: Intake,
    senders: RemoteSenders<ReplayWords>,
    /// Opens envelopes; `None` without encryption.
    opener: Option<Opener>,
    /// Datagrams that the kernel had dropped at the last query.
    drops: u32,
    /// Most thresholds by which drops may postpone a stall.
    restart_thresholds: u64,
    /// Datagrams of this turn.
    turn_read: usize,
}

impl UdpSource {
    /// Listens without keys. `seed` must be unpredictable; `slots` is the size of the table.
    pub(crate) fn in_clear(socket: UdpSocket, origin: BeatOrigin, seed: u64, slots: usize) -> Self {
        Self::new(socket, None, RemoteSenders::in_clear(origin, seed, slots))
    }

    /// Listens for datagrams sealed with these keys. `agents` is the largest number of agents, `slots` the size of
    /// the table.
    pub(crate) fn sealed(
        socket: UdpSocket,
        origin: BeatOrigin,
        ring: KeyRing,
        agents: usize,
        slots: usize,
        guard: ReplayGuard<ReplayWords>,
    ) -> io::Result<Self> {
        let opener = Opener::new(ring, agents, guard.seed())?;
        let senders = RemoteSenders::sealed(origin, guard, slots);
        Ok(Self::new(socket, Some(opener), senders))
    }

    fn new(socket: UdpSocket, opener: Option<Opener>, senders: RemoteSenders<ReplayWords>) -> Self {
        // Root gets all of it, other users as much as the operator allows (net.core.rmem_max).
        if set_socket_recv_buffer_size_force(&socket, QUEUE_BYTES).is_err() {
            let _ = set_socket_recv_buffer_size(&socket, QUEUE_BYTES);
        }
        let queue_bytes = socket_recv_buffer_size(&socket).unwrap_or(0);
        Self {
            restart_thresholds: restart_thresholds(queue_bytes / QUEUED_BEAT_BYTES),
            socket,
            batch: UdpBatch::new(BATCH, DATAGRAM_BYTES),
            intake: Intake::new(Transport::Udp),
            senders,
            opener,
            drops: 0,
            turn_read: 0,
        }
    }

    /// The address it listens on.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts exactly these keys from now on.
    pub(super) fn replace_keys(&mut self, ring: KeyRing) {
        if let Some(opener) = &mut self.opener {
            opener.replace(ring);
        }
    }

    /// Datagrams since the last call.
    pub(super) fn take_turn_read(&mut self) -> usize {
        std::mem::take(&mut self.turn_read)
    }

    /// Datagrams of an agent that a limit refused since its last beat.
    pub(super) fn refused(&self, agent: Agent) -> u32 {
        match agent.locality() {
            Locality::Local => 0,
            Locality::Remote => self.senders.refused(agent),
        }
    }

    /// When a socket that cannot be read is tried again.
    pub(super) fn next_due_ns(&self, now_ns: u64) -> Option<u64> {
        self.intake.next_try_ns(now_ns)
    }

    /// Lets input wake the beat path if the socket may be read.
    pub(super) fn update_wakes(&mut self, recorder: &Recorder) -> io::Result<()> {
        match self.intake.change_wakes(recorder.clock.raw_ns()) {
            Some(wakes) => recorder.sleeper.set_input_wakes(&*self, wakes),
            None => Ok(()),
        }
    }

    /// Publishes the reason why beats cannot be received. True if that has changed.
    pub(super) fn publish_trouble(&self, recorder: &Recorder) -> bool {
        self.intake.publish(&recorder.state)
    }

    /// Takes datagrams from the network, up to a bound; true if there may be more.
    pub(super) fn drain(&mut self, recorder: &mut Recorder) -> bool {
        let mut read = 0;
        while read < PER_TURN {
            let now_ns = recorder.clock.raw_ns();
            if !self.intake.may_be_read(now_ns) {
                return false;
            }
            let received = match self.batch.receive(self.socket.as_fd()) {
                Ok(received) => received,
                Err(error) => {
                    self.intake.has_failed(&error, now_ns);
                    recorder.counters.count(Counter::ReceiveErrors);
                    return false;
                }
            };
            if self.intake.has_succeeded(now_ns) > 0 {
                // Time in which the socket could not be read counts against no agent.
                recorder.restart_silence(Locality::Remote, self.restart_thresholds);
            }
            if received == BATCH {
                self.note_drops(recorder);
            }
            // The datagrams were sent before now: a silence that started at an earlier reading of the clock would end
            // too early.
            recorder.read_clock();
            (0..received).for_each(|i| self.judge(recorder, i));
            read += received;
            self.turn_read += received;
            if received < BATCH {
                return false;
            }
        }
        true
    }

    /// Judges datagram `i` of the batch.
    fn judge(&mut self, recorder: &mut Recorder, i: usize) {
        let Some((sender, read)) = self.read(i) else {
            return;
        };
        let mut heard = match read {
            Ok(heard) => heard,
            Err(reason) => return recorder.refuse(sender, reason),
        };
        let known = recorder.tracker.slot_of(&heard.beat.key).and_then(|slot| {
            let facts = recorder.tracker.facts_in(slot)?;
            Some(KnownRemote { slot, facts })
        });
        let room = Room {
            in_table: known.is_some() || recorder.tracker.may_have_room_for(None),
            for_events: known.is_some() || recorder.events.has_room_for_join(),
        };
        let threshold_ns = recorder.options.threshold_ns;
        let now = moment(recorder);
        let limits = &mut recorder.limits;
        let admitted =
            self.senders
                .judge(&mut heard, known.as_ref(), room, threshold_ns, limits, now);
        match admitted {
            Err(reason) => recorder.refuse(sender, reason),
            Ok(Admitted::Known) => {
                let recorded = recorder.record(&heard.beat);
                self.credit(recorder, sender, &heard, &recorded);
            }
            Ok(Admitted::First) => self.join(recorder, sender, &heard),
        }
    }

    /// The sender with its frame, or the reason of the refusal.
    fn read(&mut self, i: usize) -> Option<(Sender, Result<RemoteBeat, Refusal>)> {
        let datagram = self.batch.datagram(i)?;
        let address = datagram.source;
        let read = match &mut self.opener {
            _ if datagram.truncated => Err(Refusal::WrongLength),
            None => network_frame(datagram.bytes).map(in_clear),
            Some(opener) => open(opener, datagram.bytes),
        };
        let sender = Sender {
            pid: read.as_ref().map_or(0, |read| read.frame.pid),
            source: Some((address.ip(), address.port())),
        };
        Some((
            sender,
            read.map(|read| self.senders.attribute(&read, address)),
        ))
    }

    /// The first beat of an agent.
    fn join(&mut self, recorder: &mut Recorder, sender: Sender, heard: &RemoteBeat) {
        let recorded = recorder.record(&heard.beat);
        if let Some(displaced) = recorded.displaced {
            self.senders.note_departure(displaced.agent);
        }
        recorder.report_displaced(&recorded);
        let Some(agent) = recorded.agent else {
            return recorder.report_refused(sender, &recorded);
        };
        self.senders.note_join(agent);
        let now_ns = recorder.clock.raw_ns();
        recorder.limits.note_join(agent.slot, now_ns);
        let from = JoinedFrom::Remote {
            address: heard.address.ip(),
            sealed: heard.is_sealed(),
        };
        recorder.report_join(agent, &heard.beat.frame, from);
        self.credit(recorder, sender, heard, &recorded);
    }

    /// Updates the state of an agent whose beat was recorded.
    fn credit(
        &mut self,
        recorder: &mut Recorder,
        sender: Sender,
        heard: &RemoteBeat,
        recorded: &Recorded,
    ) {
        recorder.report(sender, &heard.beat, recorded);
        let Some(agent) = recorded.agent else {
            return;
        };
        let now = moment(recorder);
        let facts = || recorder.tracker.facts_in(agent.slot);
        let mut changed = self.senders.note_beat(agent, heard, facts, now);
        if let Some(count) = changed.take() {
            recorder.send(EventKind::Sessions { agent, count });
        }
        if !heard.beat.frame.is_goodbye() {
            return;
        }
        let Some(facts) = recorder.tracker.facts_in(agent.slot) else {
            return;
        };
        if !self.senders.ends_agent(heard, &facts, now) {
            if let Some(count) = self.senders.changed_sessions(agent, &facts, now) {
                recorder.send(EventKind::Sessions { agent, count });
            }
        } else if recorder.retire_after_goodbye(agent) {
            let timestamp_ns = heard.beat.frame.timestamp;
            self.senders.note_goodbye(agent, timestamp_ns, now.raw_ns);
        }
    }

    /// The datagrams that the kernel dropped may include beats of any remote agent: that silence does not count
    /// against it.
    fn note_drops(&mut self, recorder: &mut Recorder) {
        let Ok(drops) = udp::drops(self.socket.as_fd()) else {
            return;
        };
        let count = u64::from(drops.wrapping_sub(self.drops));
        self.drops = drops;
        if count > 0 {
            recorder.restart_silence(Locality::Remote, self.restart_thresholds);
            recorder.counters.add(Counter::UdpDrops, count);
            recorder.send(EventKind::NetworkDrops { count });
        }
    }
}

impl AsFd for UdpSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn in_clear(frame: varta_vlp::Frame) -> RemoteFrame {
    RemoteFrame {
        frame,
        key: NO_KEY,
        session: None,
    }
}

fn open(opener: &mut Opener, bytes: &[u8]) -> Result<RemoteFrame, Refusal> {
    let opened = opener.open(bytes)?;
    Ok(RemoteFrame {
        frame: network_frame(&opened.frame)?,
        key: opened.session.key,
        session: Some((opened.session, opened.counter)),
    })
}

fn moment(recorder: &Recorder) -> Moment {
    Moment {
        attention_ns: recorder.clock.now_ns(),
        raw_ns: recorder.clock.raw_ns(),
    }
}
