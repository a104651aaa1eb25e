//! Senders: from a datagram to the agent that it is credited to, and the resulting events.

use varta_core::admission::{
    AttestedFrame, Datagram as Received, FoundProcess, Hold, KnownSender, Room, SenderReply,
    Verdict, is_successor, network_frame,
};
use varta_core::{
    Agent, AgentKey, Beat, BeatOrigin, BeatOutcome, Credentials, EventKind, ExitStatus, JoinedFrom,
    Locality, Recorded, Refusal,
};
use varta_vlp::Frame;

use crate::S;
use crate::beat_path::BeatPath;
use crate::oracle::Oracle;
use crate::processes::{Datagram, Remote};

/// Minimum interval between reports that an agent is critical.
const CRITICAL_PAUSE_NS: u64 = S;

impl BeatPath {
    pub(crate) fn hear(&mut self, datagram: &Datagram, oracle: &mut Oracle) {
        match datagram.remote {
            Some(remote) => self.hear_remote(datagram, remote, oracle),
            None => self.hear_local(datagram, oracle),
        }
    }

    fn hear_remote(&mut self, datagram: &Datagram, remote: Remote, oracle: &mut Oracle) {
        let frame = network_frame(&datagram.bytes).expect("remote agents send frames");
        let key = AgentKey::Remote {
            source: datagram.instance,
            pid: datagram.pid,
        };
        let (locality, now_ns) = (Locality::Remote, self.now_ns);
        match self.tracker.slot_of(&key) {
            Some(slot) => {
                let is_terminal = frame.is_terminal();
                let is_in = self.limits.admit_beat(slot, locality, is_terminal, now_ns);
                if let Some(agent) = self.tracker.agent_in(slot) {
                    let silence = &mut oracle.silence;
                    silence.admitted(agent, is_terminal, is_in.is_ok());
                }
                if is_in.is_err() {
                    return;
                }
            }
            None if !self.has_room_for_join() => return,
            None => {}
        }
        let origin = match remote.is_attested {
            true => BeatOrigin::OperatorAttestedTransport,
            false => BeatOrigin::NetworkUnverified,
        };
        let from = JoinedFrom::Remote {
            address: remote.address.ip(),
            sealed: remote.is_sealed,
        };
        let beat = Beat::new(key, frame, origin);
        self.record(&beat, from, datagram.instance, oracle);
    }

    fn hear_local(&mut self, datagram: &Datagram, oracle: &mut Oracle) {
        let received = Received {
            bytes: &datagram.bytes,
            truncated: false,
            control_truncated: false,
            credentials: Some(Credentials {
                pid: datagram.pid,
                uid: datagram.uid,
                gid: 0,
            }),
        };
        let now_ns = self.now_ns;
        let known = self.known_sender(datagram.pid);
        let known = known.filter(|known| {
            // The process comes with the datagram of one that has ended.
            let is_attached = known.hold == Hold::Ended;
            let is_other =
                is_attached && is_successor(known.agent, Some(datagram.instance), || false);
            // The tracker finds out by itself, too.
            if is_other && datagram.instance.is_multiple_of(2) {
                self.retire(known.agent, ExitStatus::Unknown, oracle);
            }
            !is_other
        });
        let is_attached = known.is_none_or(|known| known.hold == Hold::Ended);
        let Ok(beat) = self.senders.admit(&received, is_attached, now_ns) else {
            return;
        };
        let verdict = match known {
            Some(known) => {
                let (senders, limits) = (&mut self.senders, &mut self.limits);
                senders.judge_known(&beat, &known, is_attached, limits, now_ns, || None)
            }
            None => {
                let room = self.room_for(datagram.uid);
                let found = FoundProcess::Attached(Some(datagram.instance));
                let (senders, limits) = (&mut self.senders, &mut self.limits);
                senders.judge_unknown(&beat, room, 0, limits, now_ns, || found)
            }
        };
        check_limit(known.as_ref(), &beat, verdict, oracle);
        self.do_as_judged(verdict, &beat, datagram.instance, oracle);
    }

    fn known_sender(&self, pid: u32) -> Option<KnownSender> {
        let agent = self.tracker.local_agent(pid)?;
        let facts = self.tracker.facts_in(agent.slot)?;
        let hold = match self.dead.contains(&(pid, agent.instance)) {
            true => Hold::Ended,
            false => Hold::Held,
        };
        Some(KnownSender {
            agent,
            last_nonce: facts.last_nonce,
            claims: self.claims[agent.slot as usize],
            hold,
        })
    }

    fn room_for(&self, uid: u32) -> Room {
        Room {
            in_table: self.tracker.may_have_room_for(Some(uid)),
            for_events: self.has_room_for_join(),
        }
    }

    fn do_as_judged(
        &mut self,
        verdict: Verdict,
        beat: &AttestedFrame,
        sender: u64,
        oracle: &mut Oracle,
    ) {
        match verdict {
            Verdict::Credit => {
                let key = AgentKey::local(beat.sender.pid);
                self.credit(key, beat, sender, oracle);
            }
            Verdict::Join { instance } => {
                let key = AgentKey::process(beat.sender.pid, instance);
                self.credit(key, beat, sender, oracle);
                if self.dead.contains(&(beat.sender.pid, instance)) {
                    self.ended.push_back((beat.sender.pid, instance));
                }
            }
            Verdict::Ask(query) => self.queries.push_back(query),
            Verdict::JoinAndLeave | Verdict::RetireAndRefuse => {
                panic!("every process comes with its datagram: {verdict:?}");
            }
            Verdict::Wait | Verdict::NoRoom | Verdict::Refuse(_) => {}
        }
    }

    /// The reply about the sender of waiting beats.
    pub(crate) fn take_reply(&mut self, ticket: u64, reply: &SenderReply, oracle: &mut Oracle) {
        while let Some(beat) = self.senders.next_pending(ticket) {
            let known = self.known_sender(beat.sender.pid);
            let known = known.filter(|known| known.agent.instance == reply.instance);
            if let Some(known) = &known {
                let claims = &mut self.claims[known.agent.slot as usize];
                *claims = claims.or(reply.info.claims);
            }
            let known = known.map(|known| KnownSender {
                claims: self.claims[known.agent.slot as usize],
                ..known
            });
            let has_ended = self.dead.contains(&(beat.sender.pid, reply.instance));
            let (senders, limits) = (&mut self.senders, &mut self.limits);
            let verdict =
                senders.judge_reply(&beat, reply, known.as_ref(), limits, self.now_ns, || {
                    has_ended
                });
            check_limit(known.as_ref(), &beat, verdict, oracle);
            self.do_as_judged(verdict, &beat, reply.instance, oracle);
            if let (Verdict::Join { .. }, Some(agent)) =
                (verdict, self.tracker.local_agent(beat.sender.pid))
            {
                self.claims[agent.slot as usize] = reply.info.claims;
            }
        }
    }

    /// `sender` is the instance of the process that has sent it.
    fn credit(
        &mut self,
        key: AgentKey,
        attested: &AttestedFrame,
        sender: u64,
        oracle: &mut Oracle,
    ) {
        let beat = Beat {
            uid: attested.sender.uid,
            ..Beat::new(key, attested.frame, BeatOrigin::KernelAttested)
        };
        let from = JoinedFrom::Local {
            uid: beat.uid,
            exit_watched: true,
        };
        self.record(&beat, from, sender, oracle);
    }

    fn record(&mut self, beat: &Beat, from: JoinedFrom, sender: u64, oracle: &mut Oracle) {
        let known = self.tracker.get(&beat.key);
        let now_ns = self.clock.now_ns();
        let recorded = self.tracker.record(beat, now_ns, self.threshold_ns);
        let credited = recorded.agent.map(|agent| agent.instance);
        assert!(
            credited.is_none_or(|instance| instance == sender),
            "credited to another: {recorded:?}"
        );
        let silence = &mut oracle.silence;
        silence.heard(beat, known.as_ref(), &recorded, self.threshold_ns);
        self.report(beat, from, &recorded, oracle);
    }

    fn report(&mut self, beat: &Beat, from: JoinedFrom, recorded: &Recorded, oracle: &mut Oracle) {
        if let Some(displaced) = recorded.displaced {
            let agent = displaced.agent;
            match displaced.evicted {
                true => self.send(EventKind::Evicted { agent }, oracle),
                false => self.send_exit(agent, displaced.last_nonce, ExitStatus::Unknown, oracle),
            }
        }
        let Some(agent) = recorded.agent else {
            return;
        };
        let slot = agent.slot as usize;
        let Frame { payload, nonce, .. } = beat.frame;
        let status = beat.frame.condition();
        if recorded.outcome == BeatOutcome::Inserted {
            self.limits.note_join(agent.slot, self.now_ns);
            self.critical_from_ns[slot] = 0;
            self.claims[slot] = None;
            let join = EventKind::Join {
                agent,
                from,
                nonce,
                status,
                payload,
            };
            self.send(join, oracle);
        }
        if recorded.new_session {
            let session = EventKind::Session {
                agent,
                nonce,
                status,
                payload,
            };
            self.send(session, oracle);
        }
        if let Some(silence_ns) = recorded.returned_after_ns {
            let returned = EventKind::Return {
                agent,
                nonce,
                status,
                payload,
                silence_ns,
            };
            self.send(returned, oracle);
        }
        if recorded.turned_critical && self.now_ns >= self.critical_from_ns[slot] {
            self.critical_from_ns[slot] = self.now_ns + CRITICAL_PAUSE_NS;
            let critical = EventKind::Critical {
                agent,
                nonce,
                payload,
            };
            self.send(critical, oracle);
        }
        if beat.frame.is_goodbye() {
            self.retire(agent, ExitStatus::Goodbye, oracle);
        }
    }

    pub(crate) fn retire(&mut self, agent: Agent, status: ExitStatus, oracle: &mut Oracle) {
        let Some(facts) = self.tracker.retire(agent) else {
            return;
        };
        oracle.silence.left(agent);
        if status == ExitStatus::Goodbye && !agent.is_remote() {
            self.senders.note_goodbye(agent.pid, self.now_ns);
        }
        self.send_exit(agent, facts.last_nonce.unwrap_or(0), status, oracle);
    }

    fn send_exit(
        &mut self,
        agent: Agent,
        last_nonce: u64,
        status: ExitStatus,
        oracle: &mut Oracle,
    ) {
        if status == ExitStatus::Unknown && !agent.is_remote() {
            self.senders
                .note_end(agent.pid, agent.instance, self.now_ns);
        }
        let exit = EventKind::Exit {
            agent,
            last_nonce,
            status,
        };
        self.send(exit, oracle);
    }
}

/// Beats of known agents that pass the gate are counted.
fn check_limit(
    known: Option<&KnownSender>,
    beat: &AttestedFrame,
    verdict: Verdict,
    oracle: &mut Oracle,
) {
    let is_in = match verdict {
        Verdict::Refuse(Refusal::RateLimited(_)) => false,
        Verdict::Refuse(_) => return,
        _ => true,
    };
    if let Some(known) = known {
        let is_terminal = beat.frame.is_terminal();
        let silence = &mut oracle.silence;
        silence.admitted(known.agent, is_terminal, is_in);
    }
}
