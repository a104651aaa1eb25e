//! What happens to a datagram of a local process: it is credited, queried, queued, refused, or credited to the
//! successor of the process that had its pid.
//!
//! A known agent costs one index lookup. An unknown sender is credited at once if the kernel passed its process with
//! the datagram and it claims the pid that the kernel reports; otherwise its beats wait for a query about the process.
//! A known pid may have passed to another process; the caller's queries decide which of the two sent a datagram.
//!
//! No function makes a system call. Facts about processes are arguments; expensive ones are closures, called at most
//! once and only where the decision depends on them. Nothing is allocated after construction, and a refused beat
//! changes nothing but the caches of recent refusals and the buckets of [`Limits`].

use varta_vlp::Frame;

use super::ended::EndedProcesses;
use super::pending::{PendingBeats, Queued};
use super::ttl_cache::TtlCache;
use super::{AttestedFrame, Claims, Datagram, Limits, LocalGate, ProcessInfo, wrong_claim};
use crate::agent::{Agent, Credentials, Locality, UNIDENTIFIED};
use crate::refusal::Refusal;

/// Refused datagrams that make an unknown process noisy, each within a second of the one before.
const NOISY_DATAGRAMS: u32 = 16;

/// What the caller does with a beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Credit it to the known agent.
    Credit,
    /// Its sender becomes an agent.
    Join {
        /// The instance of its process.
        instance: u64,
    },
    /// Its sender becomes an agent and leaves at once: it has ended, and no other process has its pid.
    JoinAndLeave,
    /// It waits for a reply that is on its way.
    Wait,
    /// It waits, and the caller makes this query.
    Ask(SenderQuery),
    /// The pid of the known agent has passed to another process, and it is unknown which of the two sent the beat:
    /// the agent is retired and the beat is refused ([`Refusal::UnprovedSender`]).
    RetireAndRefuse,
    /// The table has no free slot; the tracker determines the reason.
    NoRoom,
    /// It is refused.
    Refuse(Refusal),
}

/// A query about a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderQuery {
    /// Returned with the reply.
    pub ticket: u64,
    /// The sender's pid.
    pub pid: u32,
    /// Its instance, if that is known.
    pub instance: Option<u64>,
    /// If its process did not come with the datagram: a lower bound on the send time of the datagram. A process
    /// that existed then is the sender.
    pub sent_after_ns: Option<u64>,
}

/// The reply to a query about a sender.
#[derive(Clone, Copy, Debug)]
pub struct SenderReply {
    /// The instance of the process that has the pid; [`UNIDENTIFIED`] if it cannot be determined.
    pub instance: u64,
    /// Whether this process is certainly the sender.
    pub proved: bool,
    /// Its facts.
    pub info: ProcessInfo,
}

/// Whether a pidfd holds the process of an agent, so that its pid cannot pass on unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is held and was not seen to end.
    Held,
    /// It is held and has ended.
    Ended,
    /// It is not held, because the observer lacks descriptors.
    None,
}

/// The agent that has the pid of a sender.
#[derive(Clone, Copy, Debug)]
pub struct KnownSender {
    /// The agent.
    pub agent: Agent,
    /// Nonce of its last regular beat.
    pub last_nonce: Option<u64>,
    /// The pids it may claim; `None` while they are unknown.
    pub claims: Option<Claims>,
    /// Whether its process is held.
    pub hold: Hold,
}

impl KnownSender {
    fn is_past(&self, frame: &Frame) -> bool {
        self.last_nonce.is_some_and(|last| frame.nonce <= last)
    }
}

/// Whether one more agent can join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The table may have a free slot.
    pub in_table: bool,
    /// The ring has room for the events of a join.
    pub for_events: bool,
}

/// The process behind an unknown pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundProcess {
    /// It came with the datagram; its instance where the kernel reports it.
    Attached(Option<u64>),
    /// One that has the pid now; its instance where the kernel reports it.
    Opened(Option<u64>),
    /// No process has the pid.
    Gone,
}

/// Why a process was refused after it was examined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rejection {
    reason: Refusal,
    /// The pids it may claim, where known.
    claims: Option<Claims>,
}

/// State of the local senders beside the table.
#[derive(Debug)]
pub struct LocalSenders {
    gate: LocalGate,
    /// Processes of other pid namespaces are refused.
    refuse_foreign: bool,
    pending: PendingBeats,
    /// Unknown processes that were refused after an examination, which costs reading `/proc`.
    rejected: TtlCache<u32, Rejection>,
    /// Unknown processes whose datagrams are refused at once, and how often: each costs a descriptor.
    noisy: TtlCache<u32, u32>,
    /// Processes that sent a goodbye.
    departed: TtlCache<u32, ()>,
    ended: EndedProcesses,
}

impl LocalSenders {
    /// Behind this gate. `refuse_foreign` refuses processes of other pid namespaces.
    pub fn new(gate: LocalGate, refuse_foreign: bool) -> Self {
        Self {
            gate,
            refuse_foreign,
            pending: PendingBeats::new(),
            rejected: TtlCache::default(),
            noisy: TtlCache::default(),
            departed: TtlCache::default(),
            ended: EndedProcesses::default(),
        }
    }

    /// The largest pid of this host has changed.
    pub fn set_pid_max(&mut self, pid_max: u32) {
        self.gate.pid_max = pid_max;
    }

    /// Whether the process of an unknown sender is to come with its datagram.
    pub fn wants_process(&self, sender: Credentials, room: Room, now_ns: u64) -> bool {
        let is_noisy = || self.noisy.get(sender.pid, now_ns).unwrap_or(0) >= NOISY_DATAGRAMS;
        self.gate.lets_in(sender) && room.in_table && !is_noisy()
    }

    /// Identifies the sender and decodes the frame, or refuses the datagram. `is_attached`: the process came with the
    /// datagram, a wasted descriptor if the datagram is refused.
    pub fn admit(
        &mut self,
        datagram: &Datagram<'_>,
        is_attached: bool,
        now_ns: u64,
    ) -> Result<AttestedFrame, Refusal> {
        let admitted = self.gate.admit(datagram);
        if admitted.is_err() && is_attached {
            let pid = datagram.credentials.map_or(0, |sender| sender.pid);
            self.note_noise(pid, now_ns);
        }
        admitted
    }

    /// A beat of an agent that is known. `proved`: its process came with the datagram and is the agent's. `owner`
    /// returns the instance of the process that has the agent's pid now, `None` if there is none or it cannot be
    /// determined.
    pub fn judge_known(
        &mut self,
        beat: &AttestedFrame,
        known: &KnownSender,
        proved: bool,
        limits: &mut Limits,
        now_ns: u64,
        owner: impl FnOnce() -> Option<u64>,
    ) -> Verdict {
        let (frame, pid) = (&beat.frame, beat.sender.pid);
        let agent = known.agent;
        let is_right = match LocalGate::judge_claim(pid, frame.pid, known.claims.as_ref()) {
            Ok(is_right) => is_right,
            Err(reason) => return Verdict::Refuse(reason),
        };
        let is_terminal = frame.is_terminal();
        if let Err(limit) = limits.admit_beat(agent.slot, Locality::Local, is_terminal, now_ns) {
            return Verdict::Refuse(Refusal::RateLimited(limit));
        }
        if !is_right {
            return self.let_wait(beat, Some(agent.instance), None);
        }
        let is_doubtful = match known.hold {
            Hold::Held => false,
            Hold::Ended => true,
            Hold::None => known.is_past(frame),
        };
        if is_doubtful && !proved && !has_still_its_pid(known, owner) {
            return Verdict::RetireAndRefuse;
        }
        Verdict::Credit
    }

    /// A beat of a process that is no agent yet. `sent_after_ns` is a lower bound on the send time of its datagram;
    /// `find` identifies its process.
    pub fn judge_unknown(
        &mut self,
        beat: &AttestedFrame,
        room: Room,
        sent_after_ns: u64,
        limits: &mut Limits,
        now_ns: u64,
        find: impl FnOnce() -> FoundProcess,
    ) -> Verdict {
        let pid = beat.sender.pid;
        if !room.in_table {
            // Refused without examining the sender: it costs what an accepted beat costs.
            return Verdict::NoRoom;
        }
        if let Err(reason) = self.screen(beat, room, limits, now_ns) {
            return Verdict::Refuse(reason);
        }
        let found = find();
        let instance = match found {
            FoundProcess::Attached(instance) | FoundProcess::Opened(instance) => instance,
            FoundProcess::Gone if self.ended.contains(pid, None, now_ns) => {
                return Verdict::Refuse(Refusal::SenderEnded);
            }
            FoundProcess::Gone if beat.frame.pid != pid => return unverified(&beat.frame),
            FoundProcess::Gone => return Verdict::JoinAndLeave,
        };
        if instance.is_some() && self.ended.contains(pid, instance, now_ns) {
            self.note_noise(pid, now_ns);
            return Verdict::Refuse(Refusal::SenderEnded);
        }
        let is_attached = matches!(found, FoundProcess::Attached(_));
        match instance {
            Some(instance) if is_attached && beat.frame.pid == pid && !self.refuse_foreign => {
                Verdict::Join { instance }
            }
            _ => self.let_wait(beat, instance, (!is_attached).then_some(sent_after_ns)),
        }
    }

    /// The next beat that waits for the reply with this ticket, oldest first.
    pub fn next_pending(&mut self, ticket: u64) -> Option<AttestedFrame> {
        self.pending.pop(ticket)
    }

    /// A beat that waited for this reply. `known` is the agent of the examined process, with the facts learnt;
    /// `has_ended` reports whether that process has ended.
    pub fn judge_reply(
        &mut self,
        beat: &AttestedFrame,
        reply: &SenderReply,
        known: Option<&KnownSender>,
        limits: &mut Limits,
        now_ns: u64,
        has_ended: impl FnOnce() -> bool,
    ) -> Verdict {
        let pid = beat.sender.pid;
        if let Some(known) = known {
            return match known.claims {
                // A later beat did not wait and was credited meanwhile.
                _ if known.is_past(&beat.frame) => Verdict::Refuse(Refusal::OutOfOrder),
                // The agent has joined with another datagram meanwhile; this one may be an earlier process's.
                _ if !reply.proved => Verdict::Refuse(Refusal::UnprovedSender),
                Some(_) => self.judge_known(beat, known, true, limits, now_ns, || None),
                // It has ended, so its pids stay unknown.
                None => unverified(&beat.frame),
            };
        }
        if !reply.proved {
            return Verdict::Refuse(Refusal::UnprovedSender);
        }
        if self.ended.contains(pid, Some(reply.instance), now_ns) {
            return Verdict::Refuse(Refusal::SenderEnded);
        }
        match self.judge_examined(beat, &reply.info, has_ended) {
            Ok(()) => Verdict::Join {
                instance: reply.instance,
            },
            Err(reason) => {
                let claims = reply.info.claims;
                self.rejected
                    .insert(pid, Rejection { reason, claims }, now_ns);
                Verdict::Refuse(reason)
            }
        }
    }

    /// The end of a process was reported.
    pub fn note_end(&mut self, pid: u32, instance: u64, now_ns: u64) {
        self.ended.insert(pid, instance, now_ns);
    }

    /// Records the goodbye of a process.
    pub fn note_goodbye(&mut self, pid: u32, now_ns: u64) {
        self.departed.insert(pid, (), now_ns);
    }

    /// Whether the process of an unknown sender may be examined, which costs one or more system calls.
    fn screen(
        &mut self,
        beat: &AttestedFrame,
        room: Room,
        limits: &mut Limits,
        now_ns: u64,
    ) -> Result<(), Refusal> {
        let pid = beat.sender.pid;
        if !room.for_events {
            return Err(Refusal::Crowded);
        }
        if let Some(reason) = self.rejected_again(beat, now_ns) {
            self.note_noise(pid, now_ns);
            return Err(reason);
        }
        let mut limit = limits.admit_newcomer(Locality::Local, now_ns);
        if self.departed.get(pid, now_ns).is_some() {
            limit = limit.and_then(|()| limits.admit_comeback(Locality::Local, now_ns));
        }
        limit.map_err(Refusal::RateLimited)
    }

    /// The refusal of a recently examined process, repeated without another examination.
    fn rejected_again(&self, beat: &AttestedFrame, now_ns: u64) -> Option<Refusal> {
        let claimed = beat.frame.pid;
        let Rejection { reason, claims } = self.rejected.get(beat.sender.pid, now_ns)?;
        let is_right_now = || {
            let is_listed = claims.is_some_and(|claims| claims.contain(claimed));
            claimed == beat.sender.pid || is_listed
        };
        match reason {
            Refusal::ForeignNamespace => Some(reason),
            _ if is_right_now() => None,
            _ => Some(wrong_claim(claimed)),
        }
    }

    /// Whether a process that was examined may join with this claim. One that ended before its namespace
    /// could be read is not foreign: it joins and leaves at once.
    fn judge_examined(
        &self,
        beat: &AttestedFrame,
        info: &ProcessInfo,
        has_ended: impl FnOnce() -> bool,
    ) -> Result<(), Refusal> {
        let claimed = beat.frame.pid;
        if self.refuse_foreign {
            if info.is_foreign {
                return Err(Refusal::ForeignNamespace);
            }
            if info.claims.is_none() && !has_ended() {
                return Err(Refusal::UnverifiedClaim { claimed });
            }
        }
        match LocalGate::judge_claim(beat.sender.pid, claimed, info.claims.as_ref())? {
            true => Ok(()),
            false => Err(Refusal::UnverifiedClaim { claimed }),
        }
    }

    fn let_wait(
        &mut self,
        beat: &AttestedFrame,
        instance: Option<u64>,
        sent_after_ns: Option<u64>,
    ) -> Verdict {
        match self.pending.push(*beat, instance) {
            Queued::Behind => Verdict::Wait,
            Queued::Full => Verdict::Refuse(Refusal::Crowded),
            Queued::First(ticket) => Verdict::Ask(SenderQuery {
                ticket,
                pid: beat.sender.pid,
                instance,
                sent_after_ns,
            }),
        }
    }

    /// Records a datagram of an unknown process that was refused at once.
    fn note_noise(&mut self, pid: u32, now_ns: u64) {
        let before = self.noisy.get(pid, now_ns).unwrap_or(0);
        self.noisy.insert(pid, before.saturating_add(1), now_ns);
    }
}

/// Whether the process that came with a datagram differs from the process of the agent known under its pid.
/// `attached` is its instance; where the kernel does not report it, `has_passed_on` determines whether the agent's
/// process has ended and the attached one has not.
pub fn is_successor(
    agent: Agent,
    attached: Option<u64>,
    has_passed_on: impl FnOnce() -> bool,
) -> bool {
    match attached {
        Some(instance) => instance != agent.instance,
        None => has_passed_on(),
    }
}

/// Whether an agent still owns its pid. A zombie keeps its pid, and so does a process without a successor.
fn has_still_its_pid(known: &KnownSender, owner: impl FnOnce() -> Option<u64>) -> bool {
    let is_anyones = known.hold == Hold::None && known.agent.instance == UNIDENTIFIED;
    is_anyones || owner().is_none_or(|instance| instance == known.agent.instance)
}

fn unverified(frame: &Frame) -> Verdict {
    let claimed = frame.pid;
    Verdict::Refuse(Refusal::UnverifiedClaim { claimed })
}

#[cfg(test)]
mod tests;
