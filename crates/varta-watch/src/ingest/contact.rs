//! Who is speaking: from a datagram to the agent it is credited to, or to nobody.
//!
//! An agent that is known costs one look into an index. A stranger is credited at once if the kernel has
//! handed over its pidfd with the datagram and it calls itself what the kernel calls it; otherwise its
//! beats wait until the control thread has looked at the process ([`super::introductions`]).
//!
//! A known pid may have passed to another process. While the agent's own process is alive, or a zombie,
//! that cannot be, so it is asked for its end after each of its datagrams was seen and before that is
//! taken. From its end on datagrams under its pid are taken together with their sender, so that the last
//! beats of the old process and the first of the new one are told apart; so are those of an agent without a
//! descriptor.
//!
//! In a flood, which is taken in batches, it is asked afterwards who has ended by then. A beat of one that
//! has is its own unless its pid has a new owner; then nobody can tell, and nobody is credited.

use std::os::fd::OwnedFd;

use varta_core::admission::{AttestedFrame, Datagram, wrong_claim};
use varta_core::tracker::{Displaced, Recorded};
use varta_core::{
    Agent, AgentKey, Beat, BeatOrigin, BeatOutcome, Counter, Credentials, EventKind, ExitStatus,
    JoinedFrom, LocalGate, Locality, Refusal, Sender, Slot,
};
use varta_sys::receive::Received;
use varta_vlp::{FRAME_BYTES, Frame, MAGIC, NONCE_TERMINAL, VERSION};

use super::introductions::{Admitted, Rejected};
use super::network::Senders;
use super::shed::Kind;
use super::{Held, Ingest, credentials_of};
use crate::handoff::{Acquaintance, Introduction, Question};
use crate::process_info::{self, UNIDENTIFIED};

/// That an agent has become critical is told once in this time: 1 s.
const CRITICAL_PAUSE_NS: u64 = 1_000_000_000;

/// Somebody the tracker does not know yet.
struct Newcomer {
    instance: u64,
    process: Option<OwnedFd>,
    acquaintance: Acquaintance,
}

impl Ingest {
    /// Whether the next datagram, which comes from `sender`, is to be taken together with its sender.
    pub(super) fn wants_pidfd_of(&self, sender: Credentials) -> bool {
        match self.tracker.slot_of(&AgentKey::local(sender.pid)) {
            Some(slot) => {
                // The datagram was in the queue before this is asked: an agent that has not ended by now
                // had its pid when it was sent.
                let process = self.held[slot as usize].pidfd.as_ref();
                process.is_none_or(process_info::has_ended)
            }
            None => {
                let now_ns = self.attention.raw_now_ns();
                self.config.gate.lets_in(sender)
                    && self.tracker.may_have_room_for(Some(sender.uid))
                    && !self.introductions.is_noisy(sender.pid, now_ns)
            }
        }
    }

    /// Takes note of datagram `i` of the batch.
    pub(super) fn hear(&mut self, i: usize) {
        let process = self.batch.take_pidfd(i);
        let Some(received) = self.batch.datagram(i) else {
            return;
        };
        let datagram = datagram_of(&received);
        let pid = datagram.credentials.map_or(0, |sender| sender.pid);
        let kind = self.flood_kind(&datagram);
        let refusals = self.refusals;
        match self.config.gate.admit(&datagram) {
            Ok(AttestedFrame { frame, sender }) => match self.speaker(sender.pid, process.as_ref())
            {
                Some(facts) => self.credit(&facts, frame, sender, process.is_some()),
                None => {
                    self.flood.meet_stranger();
                    self.meet(frame, sender, process);
                }
            },
            Err(reason) => {
                if process.is_some() {
                    let now_ns = self.attention.raw_now_ns();
                    self.introductions.remember_noisy(pid, now_ns);
                }
                self.refuse(pid, reason);
            }
        }
        if let Some(kind) = kind {
            let shed = self.shed.note(kind, self.refusals != refusals);
            self.counters.add(Counter::Shed, shed);
        }
    }

    /// What flood a datagram belongs to if it is one of many. Only what cannot be another agent's: a frame
    /// about its own sender or about nobody who is known, or what is no frame.
    pub(super) fn flood_kind(&self, datagram: &Datagram<'_>) -> Option<Kind> {
        let Ok(bytes) = <&[u8; FRAME_BYTES]>::try_from(datagram.bytes) else {
            return Some(Kind::Shapeless);
        };
        if bytes[..2] != MAGIC || bytes[2] != VERSION {
            return Some(Kind::Shapeless);
        }
        let claimed = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let sender = datagram.credentials.map_or(0, |sender| sender.pid);
        let is_anothers =
            sender != claimed && self.tracker.slot_of(&AgentKey::local(claimed)).is_some();
        if claimed == 0 || is_anothers || self.inner_pids.may_contain(claimed) {
            return None;
        }
        let has_last_nonce = bytes[16..24] == NONCE_TERMINAL.to_le_bytes();
        Some(match has_last_nonce {
            true => Kind::LastOf(claimed),
            false => Kind::Of(claimed),
        })
    }

    /// The agent that has sent a datagram from `pid`, with its facts. An agent whose pid has passed to
    /// another process is retired on the way.
    fn speaker(&mut self, pid: u32, process: Option<&OwnedFd>) -> Option<(Agent, Slot)> {
        let slot = self.tracker.slot_of(&AgentKey::local(pid))?;
        let facts = self.tracker.facts_in(slot)?;
        let agent = facts.agent(slot);
        let Some(process) = process else {
            return Some((agent, facts));
        };
        let is_other = match self.config.kernel.instance_of(process) {
            Some(instance) => instance != agent.instance,
            None => {
                let old = self.held[slot as usize].pidfd.as_ref();
                old.is_some_and(process_info::has_ended) && !process_info::has_ended(process)
            }
        };
        if is_other {
            self.retire(agent, None);
            return None;
        }
        Some((agent, facts))
    }

    /// A beat of a known agent; `proved` if its process came along.
    fn credit(
        &mut self,
        (agent, facts): &(Agent, Slot),
        frame: Frame,
        sender: Credentials,
        proved: bool,
    ) {
        let (agent, slot) = (*agent, agent.slot);
        let held = &self.held[slot as usize];
        match LocalGate::judge_claim(sender.pid, frame.pid, held.claims.as_ref()) {
            Err(reason) => return self.refuse(sender.pid, reason),
            Ok(is_right) => {
                let now_ns = self.attention.raw_now_ns();
                let is_terminal = frame.is_terminal();
                if let Err(limit) =
                    self.limits
                        .let_beat_in(slot, Locality::Local, is_terminal, now_ns)
                {
                    return self.refuse(sender.pid, Refusal::RateLimited(limit));
                }
                if !is_right {
                    return self.let_wait(frame, sender, Some(agent.instance), None, None);
                }
            }
        }
        let begins_anew = facts.last_nonce.is_some_and(|last| frame.nonce <= last);
        let held = &self.held[slot as usize];
        let is_doubtful = held.has_ended || (held.pidfd.is_none() && begins_anew);
        if is_doubtful && !proved && !self.still_has_its_pid(agent) {
            // Nobody can tell which of the two has sent it.
            self.retire(agent, None);
            return self.refuse(sender.pid, Refusal::UnprovedSender);
        }
        let beat = Beat {
            key: AgentKey::local(sender.pid),
            frame,
            origin: BeatOrigin::KernelAttested,
            ns_inode: self.held[slot as usize].pid_ns,
            uid: sender.uid,
            session: None,
        };
        let recorded = self.record(&beat);
        self.tell(local(sender.pid), &beat, &recorded);
        self.take_leave(&frame, &recorded);
    }

    /// Whether an agent's pid is still its own.
    fn still_has_its_pid(&self, agent: Agent) -> bool {
        match &self.held[agent.slot as usize].pidfd {
            Some(pidfd) if !process_info::has_ended(pidfd) => true,
            None if agent.instance == UNIDENTIFIED => true,
            // A zombie keeps its pid, and so does one that nobody came after.
            _ => match process_info::open(agent.pid) {
                Ok(process) => {
                    let instance = self.config.kernel.instance_of(&process);
                    instance.is_none_or(|instance| instance == agent.instance)
                }
                Err(_) => true,
            },
        }
    }

    /// A beat of a process that nobody knows yet.
    fn meet(&mut self, frame: Frame, sender: Credentials, process: Option<OwnedFd>) {
        let pid = sender.pid;
        if !self.tracker.may_have_room_for(Some(sender.uid)) {
            // Refused without a look at the sender: it costs what an accepted beat costs.
            let refused = self.record(&first_beat(frame, sender, UNIDENTIFIED, None));
            return self.refuse_recorded(local(pid), &refused);
        }
        let now_ns = self.attention.raw_now_ns();
        if !self.lines.events.has_room_for_join() {
            return self.refuse(pid, Refusal::Crowded);
        }
        if let Some(Rejected { reason, claims }) = self.introductions.rejected(pid, now_ns) {
            let may_be_right =
                frame.pid == pid || claims.is_some_and(|claims| claims.contain(frame.pid));
            let again = match reason {
                Refusal::ForeignNamespace => Some(reason),
                _ if may_be_right => None,
                _ => Some(wrong_claim(frame.pid)),
            };
            if let Some(reason) = again {
                self.introductions.remember_noisy(pid, now_ns);
                return self.refuse(pid, reason);
            }
        }
        let mut limit = self.limits.let_newcomer_in(Locality::Local, now_ns);
        if self.introductions.has_departed(pid, now_ns) {
            limit = limit.and_then(|()| self.limits.let_back_in(Locality::Local, now_ns));
        }
        if let Err(limit) = limit {
            return self.refuse(pid, Refusal::RateLimited(limit));
        }
        let came_along = process.is_some();
        let process = match process {
            Some(process) => Some(process),
            None => match process_info::open(pid) {
                Ok(process) => Some(process),
                Err(error) if process_info::is_gone(&error) => {
                    return match self.has_ended(pid, None) {
                        true => self.refuse(pid, Refusal::SenderEnded),
                        false => self.bid_farewell(frame, sender),
                    };
                }
                Err(_) => None,
            },
        };
        let instance = process
            .as_ref()
            .and_then(|process| self.config.kernel.instance_of(process));
        if instance.is_some() && self.has_ended(pid, instance) {
            self.introductions.remember_noisy(pid, now_ns);
            return self.refuse(pid, Refusal::SenderEnded);
        }
        match instance {
            Some(instance) if came_along && frame.pid == pid && !self.config.refuse_foreign => {
                let newcomer = Newcomer {
                    instance,
                    process,
                    acquaintance: Acquaintance::default(),
                };
                self.join(frame, sender, newcomer);
            }
            _ => {
                let sent_after_ns = (!came_along).then_some(self.horizon.proved_ns);
                self.let_wait(frame, sender, instance, process, sent_after_ns);
            }
        }
    }

    /// Whether the end of this process was told; see [`Ended::contains`](super::ended::Ended::contains).
    fn has_ended(&self, pid: u32, instance: Option<u64>) -> bool {
        self.ended.contains(pid, instance, self.raw.now_ns())
    }

    /// A beat of a process that has ended and left its pid to nobody: it came, spoke and went.
    fn bid_farewell(&mut self, frame: Frame, sender: Credentials) {
        if frame.pid != sender.pid {
            let claimed = frame.pid;
            return self.refuse(sender.pid, Refusal::UnverifiedClaim { claimed });
        }
        let newcomer = Newcomer {
            instance: UNIDENTIFIED,
            process: None,
            acquaintance: Acquaintance::default(),
        };
        if let Some(agent) = self.join(frame, sender, newcomer) {
            self.retire(agent, None);
        }
    }

    /// Lets a beat wait until it is known more of its sender.
    fn let_wait(
        &mut self,
        frame: Frame,
        sender: Credentials,
        instance: Option<u64>,
        process: Option<OwnedFd>,
        sent_after_ns: Option<u64>,
    ) {
        let ticket = match self.introductions.admit(frame, sender, instance) {
            Admitted::Behind => return,
            Admitted::Full => return self.refuse(sender.pid, Refusal::Crowded),
            Admitted::First(ticket) => ticket,
        };
        let question = Question {
            ticket,
            pid: sender.pid,
            process,
            instance,
            sent_after_ns,
        };
        if self.lines.events.ask(question).is_err() {
            while self.introductions.next(ticket).is_some() {
                self.refuse(sender.pid, Refusal::Crowded);
            }
        }
    }

    /// The control thread has looked at a process: its beats need wait no longer.
    pub(super) fn introduce(&mut self, introduction: Introduction) {
        let Introduction {
            ticket,
            process,
            instance,
            proved,
            acquaintance,
        } = introduction;
        while let Some(waiting) = self.introductions.next(ticket) {
            let (frame, sender) = (waiting.frame, waiting.sender);
            let known = self.tracker.local_agent(sender.pid);
            let known = known.filter(|agent| agent.instance == instance);
            if let Some(agent) = known {
                self.get_to_know(agent, &acquaintance);
                let is_known = self.held[agent.slot as usize].claims.is_some();
                match self.tracker.facts_in(agent.slot) {
                    // A later beat did not have to wait, and was credited meanwhile.
                    Some(facts) if facts.last_nonce.is_some_and(|last| frame.nonce <= last) => {
                        self.refuse(sender.pid, Refusal::OutOfOrder);
                    }
                    Some(facts) if is_known => self.credit(&(agent, facts), frame, sender, true),
                    // It has ended, so nobody will ever know.
                    _ => {
                        let claimed = frame.pid;
                        self.refuse(sender.pid, Refusal::UnverifiedClaim { claimed });
                    }
                }
                continue;
            }
            if !proved {
                self.refuse(sender.pid, Refusal::UnprovedSender);
                continue;
            }
            if self.has_ended(sender.pid, Some(instance)) {
                self.refuse(sender.pid, Refusal::SenderEnded);
                continue;
            }
            match self.judge_introduced(&frame, sender, process.as_ref(), &acquaintance) {
                Ok(()) => {
                    // More of its beats may wait, and it may say goodbye and come back among them.
                    let process = process
                        .as_ref()
                        .and_then(|process| process.try_clone().ok());
                    let newcomer = Newcomer {
                        instance,
                        process,
                        acquaintance,
                    };
                    self.join(frame, sender, newcomer);
                }
                Err(reason) => {
                    let now_ns = self.attention.raw_now_ns();
                    let rejected = Rejected {
                        reason,
                        claims: acquaintance.claims,
                    };
                    self.introductions
                        .remember_rejected(sender.pid, rejected, now_ns);
                    self.refuse(sender.pid, reason);
                }
            }
        }
    }

    /// Whether a process that was looked at may join with this claim. One that has ended before anybody
    /// could tell where it lived is not foreign: it comes and goes at once, and nothing is done about it.
    fn judge_introduced(
        &self,
        frame: &Frame,
        sender: Credentials,
        process: Option<&OwnedFd>,
        acquaintance: &Acquaintance,
    ) -> Result<(), Refusal> {
        let claimed = frame.pid;
        if self.config.refuse_foreign {
            if acquaintance.is_foreign {
                return Err(Refusal::ForeignNamespace);
            }
            let is_unknown = acquaintance.claims.is_none();
            if is_unknown && !process.is_some_and(process_info::has_ended) {
                return Err(Refusal::UnverifiedClaim { claimed });
            }
        }
        match LocalGate::judge_claim(sender.pid, claimed, acquaintance.claims.as_ref())? {
            true => Ok(()),
            false => Err(Refusal::UnverifiedClaim { claimed }),
        }
    }

    /// Keeps what the control thread has found out about an agent.
    pub(super) fn get_to_know(&mut self, agent: Agent, acquaintance: &Acquaintance) {
        if self.tracker.agent_in(agent.slot) != Some(agent) {
            return;
        }
        let held = &mut self.held[agent.slot as usize];
        if held.claims.is_none()
            && let Some(claims) = acquaintance.claims
        {
            held.claims = Some(claims);
            self.inner_pids.add(claims);
        }
        held.pid_ns = held.pid_ns.or(acquaintance.pid_ns);
        if let Some(pid_ns) = acquaintance.pid_ns {
            self.tracker.learn_namespace(agent, pid_ns);
        }
    }

    /// The first beat of an agent.
    fn join(&mut self, frame: Frame, sender: Credentials, newcomer: Newcomer) -> Option<Agent> {
        let Newcomer {
            instance,
            process,
            acquaintance,
        } = newcomer;
        let beat = first_beat(frame, sender, instance, acquaintance.pid_ns);
        let recorded = self.record(&beat);
        let Some(agent) = recorded.agent else {
            self.refuse_recorded(local(sender.pid), &recorded);
            return None;
        };
        if let Some(displaced) = recorded.displaced {
            self.see_off(displaced);
        }
        self.limits.welcome(agent.slot, self.attention.raw_now_ns());
        self.shed.spare(frame.pid);
        let has_room = self.held_descriptors < self.config.descriptor_budget;
        let pidfd = process
            .filter(|process| has_room && self.sleeper.watch_exit(agent.slot, process).is_ok());
        if pidfd.is_some() {
            self.held_descriptors += 1;
        } else if instance != UNIDENTIFIED {
            self.counters.count(Counter::ExitWatchFailed);
        }
        let exit_watched = pidfd.is_some();
        if let Some(claims) = acquaintance.claims {
            self.inner_pids.add(claims);
        }
        self.held[agent.slot as usize] = Held {
            pidfd,
            has_ended: false,
            claims: acquaintance.claims,
            pid_ns: acquaintance.pid_ns,
            critical_from_ns: 0,
            senders: Senders::default(),
        };
        let from = JoinedFrom::Local {
            uid: sender.uid,
            exit_watched,
        };
        if recorded.outcome == BeatOutcome::Inserted {
            self.tell_join(agent, &frame, from);
        }
        self.tell(local(sender.pid), &beat, &recorded);
        self.take_leave(&frame, &recorded);
        Some(agent)
    }

    /// Retires an agent that has said goodbye.
    pub(super) fn take_leave(&mut self, frame: &Frame, recorded: &Recorded) {
        let Some(agent) = recorded.agent.filter(|_| frame.is_goodbye()) else {
            return;
        };
        if let Some(facts) = self.tracker.retire(agent) {
            let now_ns = self.attention.raw_now_ns();
            if agent.is_remote() {
                self.remember_departed(agent, frame.timestamp, now_ns);
            } else {
                self.introductions.remember_departed(agent.pid, now_ns);
            }
            let last_nonce = facts.last_nonce.unwrap_or(0);
            self.tell_exit(agent, last_nonce, ExitStatus::Goodbye, None);
        }
    }

    pub(super) fn record(&mut self, beat: &Beat) -> Recorded {
        let now_ns = self.attention.now_ns();
        self.tracker.record(beat, now_ns, self.config.threshold_ns)
    }

    /// Somebody had to leave for somebody else.
    pub(super) fn see_off(&mut self, displaced: Displaced) {
        let Displaced {
            agent, last_nonce, ..
        } = displaced;
        if displaced.evicted {
            drop(self.release(agent));
            self.forget_elsewhere(agent);
            self.send(EventKind::Evicted { agent });
        } else {
            self.tell_exit(agent, last_nonce, ExitStatus::Unknown, None);
        }
    }

    /// Tells of somebody new.
    pub(super) fn tell_join(&mut self, agent: Agent, frame: &Frame, from: JoinedFrom) {
        self.send(EventKind::Join {
            agent,
            from,
            nonce: frame.nonce,
            status: frame.condition(),
            payload: frame.payload,
        });
    }

    /// Tells what a beat has changed.
    pub(super) fn tell(&mut self, sender: Sender, beat: &Beat, recorded: &Recorded) {
        let Some(agent) = recorded.agent else {
            return self.refuse_recorded(sender, recorded);
        };
        let Frame { payload, nonce, .. } = beat.frame;
        let status = beat.frame.condition();
        if recorded.new_session {
            self.send(EventKind::Session {
                agent,
                nonce,
                status,
                payload,
            });
        }
        if let Some(silence_ns) = recorded.returned_after_ns {
            self.send(EventKind::Return {
                agent,
                nonce,
                status,
                payload,
                silence_ns,
            });
        }
        if recorded.turned_critical && self.may_tell_critical(agent) {
            self.send(EventKind::Critical {
                agent,
                nonce,
                payload,
            });
        }
        if self.config.every_beat {
            self.send(EventKind::Beat {
                agent,
                nonce,
                status: beat.frame.status,
                payload,
            });
        }
    }

    /// Whether it is long enough ago that an agent was told to be critical. Whoever changes its mind many times
    /// a second would fill the ring; that it is in trouble has been told.
    fn may_tell_critical(&mut self, agent: Agent) -> bool {
        let now_ns = self.attention.raw_now_ns();
        let from_ns = &mut self.held[agent.slot as usize].critical_from_ns;
        let may = now_ns >= *from_ns;
        if may {
            *from_ns = now_ns.saturating_add(CRITICAL_PAUSE_NS);
        }
        may
    }

    /// Tells of a beat that the tracker has refused, and counted.
    pub(super) fn refuse_recorded(&mut self, sender: Sender, recorded: &Recorded) {
        let reason = match recorded.outcome {
            BeatOutcome::OriginConflict => Refusal::OriginConflict,
            BeatOutcome::NamespaceConflict => Refusal::NamespaceConflict,
            BeatOutcome::CapacityExceeded => Refusal::CapacityExceeded,
            BeatOutcome::UserShareExceeded { uid } => Refusal::UserShareExceeded { uid },
            BeatOutcome::OutOfOrder
            | BeatOutcome::Inserted
            | BeatOutcome::Refreshed
            | BeatOutcome::Reordered => Refusal::OutOfOrder,
        };
        self.refusals += 1;
        self.send(EventKind::Refused { sender, reason });
    }

    /// Refuses a local process's datagram before the tracker has heard of it.
    pub(super) fn refuse(&mut self, pid: u32, reason: Refusal) {
        self.refuse_from(local(pid), reason);
    }

    /// Refuses a datagram before the tracker has heard of it.
    pub(super) fn refuse_from(&mut self, sender: Sender, reason: Refusal) {
        self.counters.count(reason.counter());
        self.refusals += 1;
        self.send(EventKind::Refused { sender, reason });
    }
}

/// A process of this host.
fn local(pid: u32) -> Sender {
    Sender { pid, source: None }
}

fn first_beat(frame: Frame, sender: Credentials, instance: u64, pid_ns: Option<u64>) -> Beat {
    Beat {
        key: AgentKey::process(sender.pid, instance),
        frame,
        origin: BeatOrigin::KernelAttested,
        ns_inode: pid_ns,
        uid: sender.uid,
        session: None,
    }
}

fn datagram_of<'a>(received: &Received<'a>) -> Datagram<'a> {
    Datagram {
        bytes: received.bytes,
        truncated: received.truncated,
        control_truncated: received.control_truncated,
        credentials: received.credentials.map(credentials_of),
    }
}
