//! Telling about what may repeat without repeating: the first of its kind at once, then one line per
//! kind and second with the number of those that came since. Time is monotonic.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;
use varta_api::{Fields, LogEvent};
use varta_core::replay::SESSIONS_PER_AGENT;
use varta_core::{Limit, Refusal, Sender};

use super::log::Log;
use super::messages;

const QUIET: Duration = Duration::from_secs(1);

/// What has happened since the log last told.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    refusals: Vec<Reason>,
    gaps: Option<Gaps>,
    put_off: Option<PutOff>,
    drops: Option<Waiting>,
    sessions: Option<Sessions>,
    postponed: Option<Postponed>,
}

/// Things of one kind that wait to be told.
#[derive(Debug)]
struct Waiting {
    count: u64,
    /// Nothing is told of this kind before then.
    quiet_until: Instant,
}

#[derive(Debug)]
struct Reason {
    label: &'static str,
    last: (Sender, Refusal),
    waiting: Waiting,
}

#[derive(Debug)]
struct Gaps {
    total_ns: u64,
    waiting: Waiting,
}

impl Gaps {
    fn from(now: Instant) -> Self {
        Self {
            total_ns: 0,
            waiting: Waiting::from(now),
        }
    }

    fn add(&mut self, ns: u64) {
        self.total_ns = self.total_ns.saturating_add(ns);
        self.waiting.count += 1;
    }
}

#[derive(Debug)]
struct Sessions {
    last: messages::Who,
    waiting: Waiting,
}

/// Stalls that were put off.
#[derive(Debug)]
struct PutOff {
    last: (messages::Who, u64),
    waiting: Waiting,
}

/// Steps that the observer lacked the means for.
#[derive(Debug)]
struct Postponed {
    last: (messages::Who, String),
    waiting: Waiting,
}

impl Waiting {
    fn from(now: Instant) -> Self {
        Self {
            count: 0,
            quiet_until: now,
        }
    }

    /// How many are to be told now; `None` if it is not time or there is nothing.
    fn take_due(&mut self, now: Instant) -> Option<u64> {
        if self.count == 0 || now < self.quiet_until {
            return None;
        }
        self.quiet_until = now + QUIET;
        Some(std::mem::take(&mut self.count))
    }

    fn next_due(&self) -> Option<Instant> {
        (self.count > 0).then_some(self.quiet_until)
    }
}

impl LogThrottle {
    pub(crate) fn add_refusal(&mut self, now: Instant, sender: Sender, refusal: Refusal) {
        let label = refusal.label();
        let known = self
            .refusals
            .iter()
            .position(|reason| reason.label == label);
        let position = known.unwrap_or_else(|| {
            self.refusals.push(Reason {
                label,
                last: (sender, refusal),
                waiting: Waiting::from(now),
            });
            self.refusals.len() - 1
        });
        let reason = &mut self.refusals[position];
        reason.last = (sender, refusal);
        reason.waiting.count += 1;
    }

    pub(crate) fn add_gap(&mut self, now: Instant, gap_ns: u64) {
        self.gaps.get_or_insert_with(|| Gaps::from(now)).add(gap_ns);
    }

    pub(crate) fn add_put_off(&mut self, now: Instant, who: messages::Who, silence_ns: u64) {
        let last = (who, silence_ns);
        match &mut self.put_off {
            Some(put_off) => {
                put_off.last = last;
                put_off.waiting.count += 1;
            }
            none => {
                let mut waiting = Waiting::from(now);
                waiting.count = 1;
                *none = Some(PutOff { last, waiting });
            }
        }
    }

    pub(crate) fn add_drops(&mut self, now: Instant, count: u64) {
        self.drops.get_or_insert_with(|| Waiting::from(now)).count += count;
    }

    pub(crate) fn add_session(&mut self, now: Instant, who: messages::Who) {
        match &mut self.sessions {
            Some(sessions) => {
                sessions.last = who;
                sessions.waiting.count += 1;
            }
            none => {
                let mut waiting = Waiting::from(now);
                waiting.count = 1;
                *none = Some(Sessions { last: who, waiting });
            }
        }
    }

    pub(crate) fn add_postponed(&mut self, now: Instant, who: &messages::Who, error: String) {
        let last = (who.clone(), error);
        let postponed = self.postponed.get_or_insert_with(|| Postponed {
            last: last.clone(),
            waiting: Waiting::from(now),
        });
        postponed.last = last;
        postponed.waiting.count += 1;
    }

    /// Tells what has waited long enough.
    pub(crate) fn tell_due(&mut self, log: &Log, now: Instant) {
        for reason in &mut self.refusals {
            if let Some(count) = reason.waiting.take_due(now) {
                reason.tell(log, count);
            }
        }
        if let Some(gaps) = &mut self.gaps
            && let Some(count) = gaps.waiting.take_due(now)
        {
            messages::gaps(log, count, std::mem::take(&mut gaps.total_ns));
        }
        if let Some(put_off) = &mut self.put_off
            && let Some(count) = put_off.waiting.take_due(now)
        {
            let (who, silence_ns) = &put_off.last;
            messages::put_off(log, count, who, *silence_ns);
        }
        if let Some(drops) = &mut self.drops
            && let Some(count) = drops.take_due(now)
        {
            messages::drops(log, count);
        }
        if let Some(sessions) = &mut self.sessions
            && let Some(count) = sessions.waiting.take_due(now)
        {
            messages::sessions(log, count, &sessions.last);
        }
        if let Some(postponed) = &mut self.postponed
            && let Some(count) = postponed.waiting.take_due(now)
        {
            let (who, error) = &postponed.last;
            messages::postponed(log, count, who, error);
        }
    }

    /// Tells everything, whether it is time or not.
    pub(crate) fn tell_all(&mut self, log: &Log) {
        self.tell_due(log, Instant::now() + QUIET);
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let gaps = self.gaps.iter().map(|gaps| &gaps.waiting);
        let put_off = self.put_off.iter().map(|put_off| &put_off.waiting);
        let sessions = self.sessions.iter().map(|sessions| &sessions.waiting);
        let refusals = self.refusals.iter().map(|reason| &reason.waiting);
        let postponed = self.postponed.iter().map(|postponed| &postponed.waiting);
        let all = refusals.chain(gaps).chain(put_off).chain(sessions);
        let all = all.chain(postponed).chain(&self.drops);
        all.filter_map(Waiting::next_due).min()
    }
}

impl Reason {
    fn tell(&self, log: &Log, count: u64) {
        let (Sender { pid, source }, refusal) = self.last;
        let beats = if count == 1 { "datagram" } else { "datagrams" };
        let source = source.map(|(address, port)| SocketAddr::new(address, port).to_string());
        let sender = match (pid, &source) {
            (0, None) => "an unknown sender".to_owned(),
            (pid, None) => format!("pid {pid}"),
            (0, Some(source)) => source.clone(),
            (pid, Some(source)) => format!("pid {pid} of {source}"),
        };
        let why = match refusal {
            Refusal::WrongLength if source.is_some() => {
                "no frame and no envelope has its length".to_owned()
            }
            Refusal::Undecryptable => "no loaded key opens it (--key-file)".to_owned(),
            Refusal::Replayed => "it was heard before".to_owned(),
            Refusal::SessionNotNewer => {
                "it is a last frame that is older than its agent's last one".to_owned()
            }
            Refusal::TooManySessions => format!(
                "its agent beats over {SESSIONS_PER_AGENT} other sessions; let the process use fewer handles"
            ),
            Refusal::SendersFull => {
                "too many sessions are open to remember another (--tracker-capacity)".to_owned()
            }
            Refusal::CapacityExceeded if source.is_some() => {
                "the table is full of agents elsewhere; raise --tracker-capacity".to_owned()
            }
            Refusal::ControlTruncated => {
                "descriptors are attached to it, and no beat needs any".to_owned()
            }
            Refusal::WrongLength => "a frame has 32 bytes".to_owned(),
            Refusal::NoCredentials => "it came without credentials".to_owned(),
            Refusal::UnseenSender => {
                "its sender lives outside this pid namespace, so nobody vouches for it".to_owned()
            }
            Refusal::UnmappedUser { uid } => {
                format!(
                    "user {uid} is nobody: every user that is not mapped has that number; run the agent as another user"
                )
            }
            Refusal::ForeignUser { uid, gid } => {
                format!("user {uid}, group {gid} may not speak here (--allow-uid, --allow-gid)")
            }
            Refusal::Decode(error) => error.to_string(),
            Refusal::PidMismatch { claimed } => format!("it claims to be pid {claimed}"),
            Refusal::PidAboveMax { claimed } => {
                format!("it claims to be pid {claimed}, which no process of this host can have")
            }
            Refusal::UnverifiedClaim { claimed } => {
                format!(
                    "it claims to be pid {claimed}, and /proc does not show whether that is so: it has ended, or is hidden from this user (hidepid)"
                )
            }
            Refusal::UnprovedSender => {
                "it cannot be proved that whoever has the pid has sent it".to_owned()
            }
            Refusal::SenderEnded => "its process has ended, and has left already".to_owned(),
            Refusal::Crowded => "too many newcomers at once".to_owned(),
            Refusal::ForeignNamespace => {
                "it lives in another pid namespace (--strict-namespace-check)".to_owned()
            }
            Refusal::RateLimited(Limit::Agent) => "too many beats (--max-beat-rate)".to_owned(),
            Refusal::RateLimited(Limit::Global) => {
                "too many beats of all agents together (--global-beat-rate)".to_owned()
            }
            Refusal::RateLimited(Limit::Newcomers) => "too many newcomers per second".to_owned(),
            Refusal::RateLimited(Limit::Comebacks) => {
                "it said goodbye and comes back again and again".to_owned()
            }
            Refusal::RateLimited(Limit::Sessions) => {
                "its agent begins more than one session per second; let it keep its handle"
                    .to_owned()
            }
            Refusal::OriginConflict => "its agent is known over another transport".to_owned(),
            Refusal::NamespaceConflict => "its agent is known in another namespace".to_owned(),
            Refusal::OutOfOrder => "its nonce is old".to_owned(),
            Refusal::CapacityExceeded => "the table is full; raise --tracker-capacity".to_owned(),
            Refusal::UserShareExceeded { uid } => format!(
                "uid {uid} has as many agents as one user may have; raise --max-agents-per-user"
            ),
        };
        let msg = format!("{count} {beats} refused, last from {sender}: {why}");
        let fields = Fields {
            pid: (pid != 0).then_some(pid),
            source,
            reason: Some(self.label.to_owned()),
            count: Some(count),
            ..Fields::default()
        };
        match refusal {
            // A key vouches for the sender, and it lives.
            Refusal::TooManySessions | Refusal::SendersFull => {
                log.error(LogEvent::Refuse, msg, fields);
            }
            _ => log.warn(LogEvent::Refuse, msg, fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_once_a_second() {
        let start = Instant::now();
        let mut waiting = Waiting::from(start);
        assert_eq!(waiting.take_due(start), None);
        waiting.count += 1;
        assert_eq!(waiting.take_due(start), Some(1));
        waiting.count += 5;
        assert_eq!(waiting.take_due(start + QUIET / 2), None);
        assert_eq!(waiting.next_due(), Some(start + QUIET));
        assert_eq!(waiting.take_due(start + QUIET), Some(5));
        assert_eq!(waiting.next_due(), None);
    }

    #[test]
    fn each_reason_waits_for_itself() {
        let now = Instant::now();
        let mut throttle = LogThrottle::default();
        let sender = Sender {
            pid: 7,
            source: None,
        };
        for refusal in [
            Refusal::OutOfOrder,
            Refusal::WrongLength,
            Refusal::OutOfOrder,
        ] {
            throttle.add_refusal(now, sender, refusal);
        }
        let counts: Vec<_> = throttle.refusals.iter().map(|r| r.waiting.count).collect();
        assert_eq!(counts, [2, 1]);
    }
}
