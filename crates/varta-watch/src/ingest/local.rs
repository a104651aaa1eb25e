//! Local senders: from a datagram with credentials to the agent it is credited to, or to its refusal.
//!
//! [`varta_core::admission::LocalSenders`] decides; this module answers its queries about processes and applies its
//! verdicts.
//!
//! A known pid may have passed to another process. That is impossible while the agent's own process runs or is a
//! zombie, so each datagram is peeked at, the process is then checked for its end, and only then is the datagram
//! taken. After that end, datagrams under its pid are received together with their sender's pidfd, which separates
//! the last beats of the old process from the first of the new one. The same applies to an agent without a
//! descriptor.
//!
//! In a flood, which is taken in batches, processes are checked for their end afterwards. A beat of a process that
//! has ended is credited to it unless its pid has a new owner; then its sender is unknown, and it is refused.

use std::os::fd::OwnedFd;

use varta_core::admission::{
    AttestedFrame, Datagram, FoundProcess, Hold, ProcessInfo, Room, SenderQuery, SenderReply,
    Verdict, is_successor,
};
use varta_core::agent::UNIDENTIFIED;
use varta_core::tracker::Recorded;
use varta_core::{
    Agent, AgentKey, Beat, BeatOrigin, BeatOutcome, Counter, Credentials, JoinedFrom, Refusal,
    Sender, Slot,
};

use super::recorder::Recorder;
use crate::handoff::{IdentityQuery, IdentityReply};
use crate::process_info;

/// The outcome of a datagram, as far as its source needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LocalOutcome {
    /// Its sender was unknown.
    pub(super) was_unknown: bool,
    /// The claim of an agent that joined with it.
    pub(super) joined_as: Option<u32>,
}

impl Recorder {
    /// Whether the next datagram, which comes from `sender`, must be received together with its sender's pidfd.
    pub(super) fn wants_process_of(&self, sender: Credentials) -> bool {
        match self.tracker.slot_of(&AgentKey::local(sender.pid)) {
            // The datagram was in the queue before this check: an agent that has not ended by now had its pid when
            // the datagram was sent.
            Some(slot) => !self.processes.is_running(slot),
            None => {
                let now_ns = self.clock.raw_ns();
                self.senders
                    .wants_process(sender, self.room_for(sender), now_ns)
            }
        }
    }

    /// Judges a datagram that came with `process`, or without. It was sent after `sent_after_ns`.
    pub(super) fn hear_local(
        &mut self,
        datagram: &Datagram<'_>,
        process: Option<OwnedFd>,
        sent_after_ns: u64,
    ) -> LocalOutcome {
        let now_ns = self.clock.raw_ns();
        let beat = match self.senders.admit(datagram, process.is_some(), now_ns) {
            Ok(beat) => beat,
            Err(reason) => {
                let pid = datagram.credentials.map_or(0, |sender| sender.pid);
                self.refuse(local(pid), reason);
                return LocalOutcome::default();
            }
        };
        match self.agent_of(beat.sender.pid, process.as_ref()) {
            Some((agent, facts)) => {
                self.hear_known(&beat, agent, &facts, process.is_some());
                LocalOutcome::default()
            }
            None => LocalOutcome {
                was_unknown: true,
                joined_as: self.record_unknown(&beat, process, sent_after_ns),
            },
        }
    }

    /// The agent that sent a datagram from `pid`, with its facts. An agent whose pid has passed to another process is
    /// retired first.
    fn agent_of(&mut self, pid: u32, process: Option<&OwnedFd>) -> Option<(Agent, Slot)> {
        let slot = self.tracker.slot_of(&AgentKey::local(pid))?;
        let facts = self.tracker.facts_in(slot)?;
        let agent = facts.agent(slot);
        let Some(process) = process else {
            return Some((agent, facts));
        };
        let attached = self.options.kernel.instance_of(process);
        let has_passed_on = || self.processes.has_ended(slot) && !process_info::has_ended(process);
        if is_successor(agent, attached, has_passed_on) {
            self.retire_process(agent, None);
            return None;
        }
        Some((agent, facts))
    }

    /// A beat of a known agent; `proved` if its pidfd came with it.
    fn hear_known(&mut self, beat: &AttestedFrame, agent: Agent, facts: &Slot, proved: bool) {
        let known = self.processes.known(agent, facts);
        let (processes, kernel) = (&self.processes, self.options.kernel);
        let owner = || match known.hold {
            Hold::Held | Hold::Ended if processes.is_running(agent.slot) => Some(agent.instance),
            _ => process_info::open(agent.pid)
                .ok()
                .and_then(|process| kernel.instance_of(&process)),
        };
        let now_ns = self.clock.raw_ns();
        let limits = &mut self.limits;
        let verdict = self
            .senders
            .judge_known(beat, &known, proved, limits, now_ns, owner);
        match verdict {
            Verdict::Credit => self.credit(beat, facts),
            Verdict::RetireAndRefuse => {
                // It is unknown which of the two processes sent it.
                self.retire_process(agent, None);
                self.refuse(local(agent.pid), Refusal::UnprovedSender);
            }
            verdict => self.defer_or_refuse(beat, verdict, None),
        }
    }

    fn credit(&mut self, beat: &AttestedFrame, facts: &Slot) {
        let AttestedFrame { frame, sender } = *beat;
        let beat = Beat {
            ns_inode: facts.ns_inode,
            uid: sender.uid,
            ..Beat::new(
                AgentKey::local(sender.pid),
                frame,
                BeatOrigin::KernelAttested,
            )
        };
        let recorded = self.record(&beat);
        self.report(local(sender.pid), &beat, &recorded);
        self.take_local_goodbye(&beat, &recorded);
    }

    /// A beat of an unknown process. Returns its claim if it joins.
    fn record_unknown(
        &mut self,
        beat: &AttestedFrame,
        process: Option<OwnedFd>,
        sent_after_ns: u64,
    ) -> Option<u32> {
        let pid = beat.sender.pid;
        let room = self.room_for(beat.sender);
        let now_ns = self.clock.raw_ns();
        let kernel = self.options.kernel;
        let mut process = process;
        let find = || {
            if let Some(process) = &process {
                return FoundProcess::Attached(kernel.instance_of(process));
            }
            match process_info::open(pid) {
                Err(error) if process_info::is_gone(&error) => FoundProcess::Gone,
                opened => {
                    process = opened.ok();
                    let instance = process
                        .as_ref()
                        .and_then(|opened| kernel.instance_of(opened));
                    FoundProcess::Opened(instance)
                }
            }
        };
        let limits = &mut self.limits;
        let verdict = self
            .senders
            .judge_unknown(beat, room, sent_after_ns, limits, now_ns, find);
        match verdict {
            Verdict::Join { instance } => {
                self.join(beat, instance, process, &ProcessInfo::default())?;
                Some(beat.frame.pid)
            }
            Verdict::JoinAndLeave => {
                let agent = self.join(beat, UNIDENTIFIED, None, &ProcessInfo::default())?;
                self.retire_process(agent, None);
                Some(beat.frame.pid)
            }
            Verdict::NoRoom => {
                // The tracker refuses it and returns the reason.
                let refused = self.record(&first_beat(AgentKey::local(pid), beat, None));
                self.report_refused(local(pid), &refused);
                None
            }
            verdict => {
                self.defer_or_refuse(beat, verdict, process);
                None
            }
        }
    }

    /// Lets a beat wait, or refuses it.
    fn defer_or_refuse(
        &mut self,
        beat: &AttestedFrame,
        verdict: Verdict,
        process: Option<OwnedFd>,
    ) {
        match verdict {
            Verdict::Wait => {}
            Verdict::Ask(query) => self.send_query(query, process),
            Verdict::Refuse(reason) => self.refuse(local(beat.sender.pid), reason),
            // Each has a caller that carries it out.
            Verdict::Credit
            | Verdict::Join { .. }
            | Verdict::JoinAndLeave
            | Verdict::RetireAndRefuse
            | Verdict::NoRoom => self.counters.count(Counter::InvariantViolations),
        }
    }

    fn send_query(&mut self, query: SenderQuery, process: Option<OwnedFd>) {
        let SenderQuery {
            ticket,
            pid,
            instance,
            sent_after_ns,
        } = query;
        let query = IdentityQuery {
            ticket,
            pid,
            process,
            instance,
            sent_after_ns,
        };
        if self.events.query(query).is_err() {
            while self.senders.next_pending(ticket).is_some() {
                self.refuse(local(pid), Refusal::Crowded);
            }
        }
    }

    /// The control thread has examined a process: beats that waited for that are judged. `joined_as` gets the claim
    /// of an agent that joins.
    pub(super) fn settle(&mut self, reply: IdentityReply, mut joined_as: impl FnMut(u32)) {
        let IdentityReply {
            ticket,
            process,
            instance,
            proved,
            info,
        } = reply;
        let reply = SenderReply {
            instance,
            proved,
            info,
        };
        while let Some(beat) = self.senders.next_pending(ticket) {
            let pid = beat.sender.pid;
            let known = self.tracker.local_agent(pid);
            let known = known.filter(|agent| agent.instance == instance);
            if let Some(agent) = known {
                self.learn(agent, &info);
            }
            let known = known.and_then(|agent| {
                let facts = self.tracker.facts_in(agent.slot)?;
                Some((self.processes.known(agent, &facts), facts))
            });
            let has_ended = || process.as_ref().is_some_and(process_info::has_ended);
            let verdict = self.senders.judge_reply(
                &beat,
                &reply,
                known.as_ref().map(|(known, _)| known),
                &mut self.limits,
                self.clock.raw_ns(),
                has_ended,
            );
            match (verdict, known) {
                (Verdict::Credit, Some((_, facts))) => self.credit(&beat, &facts),
                (Verdict::Join { instance }, _) => {
                    // More of its beats may wait, and it may depart and join again among them.
                    let process = process
                        .as_ref()
                        .and_then(|process| process.try_clone().ok());
                    if self.join(&beat, instance, process, &info).is_some() {
                        joined_as(beat.frame.pid);
                    }
                }
                (verdict, _) => self.defer_or_refuse(&beat, verdict, None),
            }
        }
    }

    /// Stores the facts that the control thread has found about an agent.
    pub(super) fn learn(&mut self, agent: Agent, info: &ProcessInfo) {
        if self.tracker.agent_in(agent.slot) != Some(agent) {
            return;
        }
        self.processes.learn(agent, info);
        if let Some(pid_ns) = info.pid_ns {
            self.tracker.learn_namespace(agent, pid_ns);
        }
    }

    /// The first beat of an agent.
    fn join(
        &mut self,
        beat: &AttestedFrame,
        instance: u64,
        process: Option<OwnedFd>,
        info: &ProcessInfo,
    ) -> Option<Agent> {
        let sender = beat.sender;
        let key = AgentKey::process(sender.pid, instance);
        let beat = first_beat(key, beat, info.pid_ns);
        let recorded = self.record(&beat);
        self.report_displaced(&recorded);
        let Some(agent) = recorded.agent else {
            self.report_refused(local(sender.pid), &recorded);
            return None;
        };
        self.limits.note_join(agent.slot, self.clock.raw_ns());
        let has_room = self.processes.has_room();
        let pidfd = process
            .filter(|process| has_room && self.sleeper.watch_exit(agent.slot, process).is_ok());
        if pidfd.is_none() && instance != UNIDENTIFIED {
            self.counters.count(Counter::ExitWatchFailed);
        }
        let from = JoinedFrom::Local {
            uid: sender.uid,
            exit_watched: pidfd.is_some(),
        };
        self.processes.hold(agent, pidfd, info);
        if recorded.outcome == BeatOutcome::Inserted {
            self.report_join(agent, &beat.frame, from);
        }
        self.report(local(sender.pid), &beat, &recorded);
        self.take_local_goodbye(&beat, &recorded);
        Some(agent)
    }

    /// Retires an agent that has departed.
    fn take_local_goodbye(&mut self, beat: &Beat, recorded: &Recorded) {
        let agent = recorded.agent.filter(|_| beat.frame.is_goodbye());
        if let Some(agent) = agent
            && self.retire_after_goodbye(agent)
        {
            self.senders.note_goodbye(agent.pid, self.clock.raw_ns());
        }
    }

    fn room_for(&self, sender: Credentials) -> Room {
        Room {
            in_table: self.tracker.may_have_room_for(Some(sender.uid)),
            for_events: self.events.has_room_for_join(),
        }
    }
}

/// A process of this host.
pub(super) fn local(pid: u32) -> Sender {
    Sender { pid, source: None }
}

fn first_beat(key: AgentKey, beat: &AttestedFrame, pid_ns: Option<u64>) -> Beat {
    Beat {
        ns_inode: pid_ns,
        uid: beat.sender.uid,
        ..Beat::new(key, beat.frame, BeatOrigin::KernelAttested)
    }
}
