//! Telling about refused datagrams without repeating: the first of a reason at once, then one line
//! per reason and second with the number of those that came since. Time is monotonic.

use std::time::Duration;

use tokio::time::Instant;
use varta_core::Refusal;

use super::log::Log;
use crate::api::{Fields, LogEvent};

const QUIET: Duration = Duration::from_secs(1);

/// What has been refused since the log last told.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    reasons: Vec<Reason>,
}

#[derive(Debug)]
struct Reason {
    label: &'static str,
    last: (u32, Refusal),
    untold: u64,
    /// Nothing is told of this reason before then.
    quiet_until: Instant,
}

impl Refusals {
    pub(crate) fn add(&mut self, log: &Log, now: Instant, pid: u32, refusal: Refusal) {
        let label = refusal.label();
        if !self.reasons.iter().any(|reason| reason.label == label) {
            self.reasons.push(Reason {
                label,
                last: (pid, refusal),
                untold: 0,
                quiet_until: now,
            });
        }
        for reason in &mut self.reasons {
            if reason.label == label {
                reason.untold += 1;
                reason.last = (pid, refusal);
            }
        }
        self.tell_due(log, now);
    }

    /// Tells what has waited long enough.
    pub(crate) fn tell_due(&mut self, log: &Log, now: Instant) {
        for reason in &mut self.reasons {
            if reason.untold > 0 && reason.quiet_until <= now {
                reason.tell(log);
                reason.quiet_until = now + QUIET;
            }
        }
    }

    /// Tells everything, whether it is time or not.
    pub(crate) fn tell_all(&mut self, log: &Log) {
        for reason in &mut self.reasons {
            if reason.untold > 0 {
                reason.tell(log);
            }
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let waiting = self.reasons.iter().filter(|reason| reason.untold > 0);
        waiting.map(|reason| reason.quiet_until).min()
    }
}

impl Reason {
    fn tell(&mut self, log: &Log) {
        let count = std::mem::take(&mut self.untold);
        let (pid, refusal) = self.last;
        let beats = if count == 1 { "datagram" } else { "datagrams" };
        let sender = match pid {
            0 => "an unknown sender".to_owned(),
            pid => format!("pid {pid}"),
        };
        let why = match refusal {
            Refusal::ControlTruncated => "control data was cut short".to_owned(),
            Refusal::WrongLength => "a frame has 32 bytes".to_owned(),
            Refusal::NoCredentials => "it came without credentials".to_owned(),
            Refusal::UnseenSender => {
                "its sender lives outside this pid namespace, so nobody vouches for it".to_owned()
            }
            Refusal::ForeignUid(uid) => format!("user {uid} may not speak here"),
            Refusal::Decode(error) => error.to_string(),
            Refusal::PidMismatch { claimed } => format!("it claims to be pid {claimed}"),
            Refusal::OriginConflict => "its agent is known over another transport".to_owned(),
            Refusal::NamespaceConflict => "its agent is known in another namespace".to_owned(),
            Refusal::OutOfOrder => "its nonce is old".to_owned(),
            Refusal::CapacityExceeded => "the table is full; raise --tracker-capacity".to_owned(),
        };
        log.warn(
            LogEvent::Refuse,
            format!("{count} {beats} refused, last from {sender}: {why}"),
            Fields {
                pid: (pid != 0).then_some(pid),
                reason: Some(self.label.to_owned()),
                count: Some(count),
                ..Fields::default()
            },
        );
    }
}
