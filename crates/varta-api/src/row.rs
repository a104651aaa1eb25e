//! One fact as one row of the event file: six columns, separated by tabs (CLI spec 3).
//!
//! `observer_ns  kind  pid  nonce  status  payload`, `-` where a column does not apply. The kinds of the 0.2.0
//! generation keep their form; `join`, `session`, `late`, `return`, `exit` and `gap` are new. Every other fact has no
//! row.

use std::fmt::{self, Write};

use varta_core::{ExitStatus, Fact, Refusal, Sender};

/// Appends the row of a fact of the time `observer_ns` on the observer's clock, if it has one.
pub fn append_row(rows: &mut String, fact: &Fact, observer_ns: u64) {
    // Writing into a string cannot fail.
    let _ = match fact {
        Fact::Beat { .. }
        | Fact::Joined { .. }
        | Fact::SessionBegan { .. }
        | Fact::Returned { .. } => append_beat(rows, fact, observer_ns),
        Fact::Late {
            agent, last_nonce, ..
        } => writeln!(
            rows,
            "{observer_ns}\tlate\t{}\t{last_nonce}\tlate\t-",
            agent.agent.pid
        ),
        Fact::Stalled {
            agent, last_nonce, ..
        } => writeln!(
            rows,
            "{observer_ns}\tstall\t{}\t{last_nonce}\tstall\t-",
            agent.agent.pid
        ),
        Fact::Exited {
            agent,
            last_nonce,
            status,
        } => {
            let (how, detail) = how_it_ended(*status);
            writeln!(
                rows,
                "{observer_ns}\texit\t{}\t{last_nonce}\t{how}\t{detail}",
                agent.agent.pid
            )
        }
        Fact::Evicted { agent } => {
            writeln!(
                rows,
                "{observer_ns}\teviction\t{}\t-\t-\t-",
                agent.agent.pid
            )
        }
        Fact::Gap { late_ns, .. } => {
            writeln!(rows, "{observer_ns}\tgap\t-\t-\t-\t{late_ns}")
        }
        Fact::Refused { sender, reason, .. } => {
            let columns = refusal(*sender, *reason);
            columns.map_or(Ok(()), |columns| writeln!(rows, "{observer_ns}\t{columns}"))
        }
        // A critical beat has a row as a beat; the others have none.
        _ => Ok(()),
    };
}

/// The row of a beat, or of a beat that began a series or ended a silence.
fn append_beat(rows: &mut String, fact: &Fact, observer_ns: u64) -> fmt::Result {
    let (kind, pid) = match fact {
        Fact::Beat { agent, .. } => ("beat", agent.pid),
        Fact::Joined { agent, .. } => ("join", agent.agent.pid),
        Fact::SessionBegan { agent, .. } => ("session", agent.agent.pid),
        Fact::Returned { agent, .. } => ("return", agent.agent.pid),
        _ => return Ok(()),
    };
    match fact {
        Fact::Beat {
            status,
            payload,
            nonce,
            ..
        }
        | Fact::Joined {
            status,
            payload,
            nonce,
            ..
        }
        | Fact::SessionBegan {
            status,
            payload,
            nonce,
            ..
        }
        | Fact::Returned {
            status,
            payload,
            nonce,
            ..
        } => writeln!(
            rows,
            "{observer_ns}\t{kind}\t{pid}\t{nonce}\t{status}\t{payload}"
        ),
        _ => Ok(()),
    }
}

fn how_it_ended(status: ExitStatus) -> (&'static str, String) {
    match status {
        ExitStatus::Code(0) => ("left", "code=0".to_owned()),
        ExitStatus::Code(code) => ("died", format!("code={code}")),
        ExitStatus::Signal(signal) => ("died", format!("signal={signal}")),
        ExitStatus::Goodbye => ("left", "goodbye".to_owned()),
        ExitStatus::Unknown => ("unknown", "-".to_owned()),
    }
}

/// The columns after the time of a refusal that has a row.
fn refusal(Sender { pid, .. }: Sender, reason: Refusal) -> Option<String> {
    let label = reason.label();
    Some(match reason {
        Refusal::Decode(error) => format!("decode\t-\t-\t-\t{error:?}"),
        Refusal::PidMismatch { claimed } => format!("mismatch\t{claimed}\t-\t-\tauth_failure"),
        Refusal::ForeignNamespace => format!("mismatch\t{pid}\t-\t-\tnamespace_conflict"),
        Refusal::OriginConflict | Refusal::NamespaceConflict => {
            format!("mismatch\t{pid}\t-\t-\t{label}")
        }
        Refusal::UnverifiedClaim { .. } | Refusal::UnprovedSender => {
            format!("io\t-\t-\t-\t{label} (pid {pid})")
        }
        Refusal::NoCredentials | Refusal::UnseenSender => format!("io\t-\t-\t-\t{label}"),
        Refusal::ForeignUser { uid, .. } | Refusal::UnmappedUser { uid } => {
            format!("io\t-\t-\t-\t{label} {uid} (pid {pid})")
        }
        Refusal::ControlTruncated => format!("ctrunc\t-\t-\t-\t{label}"),
        // As in 0.2.0 these have a counter and no row: any process can cause any number of them.
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
        | Refusal::SendersFull => return None,
    })
}

/// Whether some bytes can be the start of a row: digits, then a tab and a word.
pub fn begins_a_row(bytes: &[u8]) -> bool {
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
    use varta_core::{Agent, AgentRef};
    use varta_vlp::{DecodeError, Status};

    const AGENT: Agent = Agent {
        slot: 3,
        pid: 42,
        instance: 9,
        stream: 0,
    };

    fn agent() -> AgentRef {
        AgentRef {
            agent: AGENT,
            name: "a\tb".to_owned(),
            address: None,
            uid: None,
        }
    }

    fn row(fact: &Fact) -> String {
        let mut rows = String::new();
        append_row(&mut rows, fact, 5);
        rows
    }

    fn refused(reason: Refusal) -> String {
        let sender = Sender {
            pid: 42,
            source: None,
        };
        row(&Fact::Refused {
            sender,
            reason,
            count: 1,
        })
    }

    #[test]
    fn the_rows_of_the_old_generation_keep_their_form() {
        let beat = Fact::Beat {
            agent: AGENT,
            nonce: 7,
            status: Status::Degraded,
            payload: 8,
        };
        assert_eq!(row(&beat), "5\tbeat\t42\t7\tdegraded\t8\n");
        let stall = Fact::Stalled {
            agent: agent(),
            last_nonce: 7,
            silence_ns: 1,
            threshold_ns: 1,
            refused: 0,
        };
        assert_eq!(row(&stall), "5\tstall\t42\t7\tstall\t-\n");
        assert_eq!(
            row(&Fact::Evicted { agent: agent() }),
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
        assert_eq!(
            refused(Refusal::UnmappedUser { uid: 65_534 }),
            "5\tio\t-\t-\t-\tforeign_uid 65534 (pid 42)\n"
        );
        assert_eq!(refused(Refusal::OutOfOrder), "");
    }

    #[test]
    fn an_exit_says_how() {
        let exit = |status| {
            row(&Fact::Exited {
                agent: agent(),
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
        for row in [
            row(&Fact::Gap {
                late_ns: 1,
                count: 1,
            }),
            refused(Refusal::ForeignUser { uid: 7, gid: 8 }),
            row(&Fact::Late {
                agent: agent(),
                last_nonce: 1,
                silence_ns: 2,
            }),
        ] {
            assert_eq!(row.split('\t').count(), 6, "{row}");
        }
    }
}
