//! Messages about refused datagrams: the sender, the reason, and the fix.

use std::net::SocketAddr;

use varta_core::replay::SESSIONS_PER_AGENT;
use varta_core::{Limit, Refusal, Sender};

use super::Message;
use crate::log_line::{LogEvent, Refuse};

pub(super) fn refused(sender: &Sender, reason: Refusal, count: u64) -> Message {
    let Sender { pid, source } = *sender;
    let datagrams = if count == 1 { "datagram" } else { "datagrams" };
    let why = match source {
        Some(_) => why_over_network(reason),
        None => why(reason),
    };
    let source = source.map(|(address, port)| SocketAddr::new(address, port).to_string());
    let sender = match (pid, &source) {
        (0, None) => "an unknown sender".to_owned(),
        (pid, None) => format!("pid {pid}"),
        (0, Some(source)) => source.clone(),
        (pid, Some(source)) => format!("pid {pid} of {source}"),
    };
    let msg = format!("{count} {datagrams} refused, last from {sender}: {why}");
    let refuse = LogEvent::Refuse(Refuse {
        pid: (pid != 0).then_some(pid),
        reason: reason.label().to_owned(),
        count: Some(count),
        source,
    });
    match reason {
        // A key authenticates the sender, and the sender is alive.
        Refusal::TooManySessions | Refusal::SendersFull => Message::error(msg, refuse),
        _ => Message::warn(msg, refuse),
    }
}

/// The reason, where the text differs for a datagram from the network.
fn why_over_network(reason: Refusal) -> String {
    match reason {
        Refusal::WrongLength => "no frame and no envelope has its length".to_owned(),
        Refusal::CapacityExceeded => {
            "the table is full of agents elsewhere; raise --tracker-capacity".to_owned()
        }
        reason => why(reason),
    }
}

fn why(reason: Refusal) -> String {
    let fixed = match reason {
        Refusal::ForeignUser { uid, gid } => {
            return format!(
                "user {uid}, group {gid} may not speak here (--allow-uid, --allow-gid)"
            );
        }
        Refusal::UnmappedUser { uid } => {
            return format!(
                "user {uid} is nobody: every user that is not mapped has that number; run the agent as another user"
            );
        }
        Refusal::Decode(error) => return error.to_string(),
        Refusal::PidMismatch { claimed } => return format!("it claims to be pid {claimed}"),
        Refusal::PidAboveMax { claimed } => {
            return format!(
                "it claims to be pid {claimed}, which no process of this host can have"
            );
        }
        Refusal::UnverifiedClaim { claimed } => {
            return format!(
                "it claims to be pid {claimed}, and /proc does not show whether that is so: it has ended, or is \
                 hidden from this user (hidepid)"
            );
        }
        Refusal::TooManySessions => {
            return format!(
                "its agent beats over {SESSIONS_PER_AGENT} other sessions; let the process use fewer handles"
            );
        }
        Refusal::UserShareExceeded { uid } => {
            return format!(
                "uid {uid} has as many agents as one user may have; raise --max-agents-per-user"
            );
        }
        Refusal::ControlTruncated => "descriptors are attached to it, and no beat needs any",
        Refusal::WrongLength => "a frame has 32 bytes",
        Refusal::NoCredentials => "it came without credentials",
        Refusal::UnseenSender => {
            "its sender lives outside this pid namespace, so nobody vouches for it"
        }
        Refusal::UnprovedSender => "it cannot be proved that the process with this pid has sent it",
        Refusal::SenderEnded => "its process has ended, and has left already",
        Refusal::Crowded => "too many newcomers at once",
        Refusal::ForeignNamespace => "it lives in another pid namespace (--strict-namespace-check)",
        Refusal::RateLimited(limit) => over_limit(limit),
        Refusal::OriginConflict => "its agent is known over another transport",
        Refusal::NamespaceConflict => "its agent is known in another namespace",
        Refusal::OutOfOrder => "its nonce is old",
        Refusal::CapacityExceeded => "the table is full; raise --tracker-capacity",
        Refusal::Undecryptable => "no loaded key opens it (--key-file)",
        Refusal::Replayed => "it was heard before",
        Refusal::SessionNotNewer => "it is a last frame that is older than its agent's last one",
        Refusal::SendersFull => {
            "too many sessions are open to remember another (--tracker-capacity)"
        }
    };
    fixed.to_owned()
}

fn over_limit(limit: Limit) -> &'static str {
    match limit {
        Limit::Agent => "too many beats (--max-beat-rate)",
        Limit::Global => "too many beats of all agents together (--global-beat-rate)",
        Limit::Newcomers => "too many newcomers per second",
        Limit::Comebacks => "it said goodbye and comes back again and again",
        Limit::Sessions => {
            "its agent begins more than one session per second; let it keep its handle"
        }
    }
}

pub(super) fn flood(pid: u32, one_in: u32) -> Message {
    let what = match pid {
        0 => "datagrams that are no frames".to_owned(),
        pid => format!("beats of pid {pid}"),
    };
    let refuse = LogEvent::Refuse(Refuse {
        pid: (pid != 0).then_some(pid),
        reason: "flood".to_owned(),
        count: None,
        source: None,
    });
    match one_in {
        1 => Message::info(format!("the flood of {what} is over"), refuse),
        one_in => {
            let msg = format!(
                "a flood of {what}: one in {one_in} is let through, so that others are heard, until it ends"
            );
            Message::warn(msg, refuse)
        }
    }
}
