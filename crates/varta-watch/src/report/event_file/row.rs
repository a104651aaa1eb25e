//! One event as one row: six columns, separated by tabs (CLI spec 3).
//!
//! `observer_ns  kind  pid  nonce  status  payload`, `-` where a column does not apply. The kinds
//! of the 0.2.0 generation keep their form; `join`, `session`, `late`, `return`,
//! `exit` and `gap` are ours.

use std::fmt::Write;

use varta_core::{Event, EventKind, ExitStatus, Refusal, Sender};

/// Appends the row of an event, if it has one.
pub(crate) fn append_row(rows: &mut String, event: &Event) {
    let ns = event.observer_ns;
    // Writing into a string cannot fail.
    let _ = match event.kind {
        EventKind::Join {
            agent,
            nonce,
            status,
            payload,
            ..
        } => writeln!(
            rows,
            "{ns}\tjoin\t{}\t{nonce}\t{status}\t{payload}",
            agent.pid
        ),
        EventKind::Session {
            agent,
            nonce,
            status,
            payload,
        } => writeln!(
            rows,
            "{ns}\tsession\t{}\t{nonce}\t{status}\t{payload}",
            agent.pid
        ),
        EventKind::Beat {
            agent,
            nonce,
            status,
            payload,
        } => writeln!(
            rows,
            "{ns}\tbeat\t{}\t{nonce}\t{status}\t{payload}",
            agent.pid
        ),
        EventKind::Return {
            agent,
            nonce,
            status,
            payload,
            ..
        } => writeln!(
            rows,
            "{ns}\treturn\t{}\t{nonce}\t{status}\t{payload}",
            agent.pid
        ),
        EventKind::Late {
            agent, last_nonce, ..
        } => writeln!(rows, "{ns}\tlate\t{}\t{last_nonce}\tlate\t-", agent.pid),
        EventKind::Stall {
            agent, last_nonce, ..
        } => writeln!(rows, "{ns}\tstall\t{}\t{last_nonce}\tstall\t-", agent.pid),
        EventKind::Exit {
            agent,
            last_nonce,
            status,
        } => {
            let (how, detail) = match status {
                ExitStatus::Code(0) => ("left", "code=0".to_owned()),
                ExitStatus::Code(code) => ("died", format!("code={code}")),
                ExitStatus::Signal(signal) => ("died", format!("signal={signal}")),
                ExitStatus::Goodbye => ("left", "goodbye".to_owned()),
                ExitStatus::Unknown => ("unknown", "-".to_owned()),
            };
            writeln!(
                rows,
                "{ns}\texit\t{}\t{last_nonce}\t{how}\t{detail}",
                agent.pid
            )
        }
        EventKind::Evicted { agent } => writeln!(rows, "{ns}\teviction\t{}\t-\t-\t-", agent.pid),
        EventKind::Gap { gap_ns } => writeln!(rows, "{ns}\tgap\t-\t-\t-\t{gap_ns}"),
        EventKind::Refused {
            sender: Sender { pid, .. },
            reason,
        } => match reason {
            Refusal::Decode(error) => writeln!(rows, "{ns}\tdecode\t-\t-\t-\t{error:?}"),
            Refusal::PidMismatch { claimed } => {
                writeln!(rows, "{ns}\tmismatch\t{claimed}\t-\t-\tauth_failure")
            }
            Refusal::ForeignNamespace => {
                writeln!(rows, "{ns}\tmismatch\t{pid}\t-\t-\tnamespace_conflict")
            }
            Refusal::OriginConflict | Refusal::NamespaceConflict => {
                writeln!(rows, "{ns}\tmismatch\t{pid}\t-\t-\t{}", reason.label())
            }
            Refusal::UnverifiedClaim { .. } | Refusal::UnprovedSender => {
                writeln!(rows, "{ns}\tio\t-\t-\t-\t{} (pid {pid})", reason.label())
            }
            Refusal::NoCredentials | Refusal::UnseenSender => {
                writeln!(rows, "{ns}\tio\t-\t-\t-\t{}", reason.label())
            }
            Refusal::ForeignUser { uid, .. } | Refusal::UnmappedUser { uid } => {
                writeln!(rows, "{ns}\tio\t-\t-\t-\tforeign_uid {uid} (pid {pid})")
            }
            Refusal::ControlTruncated => {
                writeln!(rows, "{ns}\tctrunc\t-\t-\t-\t{}", reason.label())
            }
            // As in 0.2.0 these have a counter and no row: anybody can make any number of them.
            Refusal::WrongLength
            | Refusal::OutOfOrder
            | Refusal::CapacityExceeded
            | Refusal::UserShareExceeded { .. }
            | Refusal::PidAboveMax { .. }
            | Refusal::RateLimited(_)
            | Refusal::SenderEnded
            | Refusal::Crowded
            | Refusal::Undecryptable
            | Refusal::Replayed
            | Refusal::SessionNotNewer
            | Refusal::TooManySessions
            | Refusal::SendersFull => Ok(()),
        },
        // The beat that says so has a row of its own.
        EventKind::Critical { .. }
        | EventKind::Sessions { .. }
        | EventKind::Flood { .. }
        | EventKind::PutOff { .. }
        | EventKind::NetworkDrops { .. }
        | EventKind::ReceiveTrouble => Ok(()),
    };
}

/// Whether some bytes can be the beginning of a row of ours: digits, then a tab and a word.
pub(super) fn begins_a_row(bytes: &[u8]) -> bool {
    let mut columns = bytes.split(|byte| *byte == b'\t');
    let time = columns.next().unwrap_or_default();
    let kind = columns.next().unwrap_or_default();
    !time.is_empty()
        && time.iter().all(u8::is_ascii_digit)
        && kind.iter().all(u8::is_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_core::Agent;
    use varta_vlp::{DecodeError, Status};

    const AGENT: Agent = Agent {
        slot: 3,
        pid: 42,
        instance: 9,
        stream: 0,
    };

    fn row(kind: EventKind) -> String {
        let mut rows = String::new();
        append_row(
            &mut rows,
            &Event {
                observer_ns: 5,
                kind,
            },
        );
        rows
    }

    fn refused(reason: Refusal) -> String {
        let sender = Sender {
            pid: 42,
            source: None,
        };
        row(EventKind::Refused { sender, reason })
    }

    #[test]
    fn the_rows_of_the_old_generation_keep_their_form() {
        let beat = EventKind::Beat {
            agent: AGENT,
            nonce: 7,
            status: Status::Degraded,
            payload: 8,
        };
        assert_eq!(row(beat), "5\tbeat\t42\t7\tdegraded\t8\n");
        let stall = EventKind::Stall {
            agent: AGENT,
            last_nonce: 7,
            silence_ns: 1,
            threshold_ns: 1,
            refused: 0,
        };
        assert_eq!(row(stall), "5\tstall\t42\t7\tstall\t-\n");
        assert_eq!(
            row(EventKind::Evicted { agent: AGENT }),
            "5\teviction\t42\t-\t-\t-\n"
        );
        assert_eq!(
            refused(Refusal::Decode(DecodeError::BadPid(1))),
            "5\tdecode\t-\t-\t-\tBadPid(1)\n"
        );
        assert_eq!(
            refused(Refusal::PidMismatch { claimed: 43 }),
            "5\tmismatch\t43\t-\t-\tauth_failure\n"
        );
        assert_eq!(
            refused(Refusal::NamespaceConflict),
            "5\tmismatch\t42\t-\t-\tnamespace_conflict\n"
        );
        assert_eq!(refused(Refusal::OutOfOrder), "");
    }

    #[test]
    fn an_exit_says_how() {
        let exit = |status| {
            row(EventKind::Exit {
                agent: AGENT,
                last_nonce: 7,
                status,
            })
        };
        assert_eq!(exit(ExitStatus::Code(0)), "5\texit\t42\t7\tleft\tcode=0\n");
        assert_eq!(
            exit(ExitStatus::Signal(9)),
            "5\texit\t42\t7\tdied\tsignal=9\n"
        );
        assert_eq!(exit(ExitStatus::Unknown), "5\texit\t42\t7\tunknown\t-\n");
    }

    #[test]
    fn every_row_has_six_columns() {
        for kind in [
            EventKind::Gap { gap_ns: 1 },
            EventKind::Refused {
                sender: Sender {
                    pid: 1,
                    source: None,
                },
                reason: Refusal::ForeignUser { uid: 7, gid: 8 },
            },
            EventKind::Late {
                agent: AGENT,
                last_nonce: 1,
                silence_ns: 2,
            },
        ] {
            assert_eq!(row(kind).split('\t').count(), 6, "{kind:?}");
        }
    }
}
