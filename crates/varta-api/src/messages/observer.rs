//! Messages about the observer itself: its problems, its commands, its counters.

use std::collections::BTreeMap;
use std::io;

use serde_json::Number;
use varta_core::Counter;
use varta_core::fact::{Fact, LineKind, LineOwner, StopCause, Transport};

use super::{Message, exact_duration, exact_ms, ms, number_of, seconds};
use crate::log_line::{Gap, LogEvent, Missing, Notice, Start, Stop};

pub(super) fn message(fact: &Fact) -> Option<Message> {
    Some(match fact {
        Fact::Gap { late_ns, count } => gap(*late_ns, *count),
        Fact::AgentsMissing {
            selection,
            expected,
            present,
            within_ns,
        } => agents_missing(selection, *expected, *present, *within_ns),
        Fact::AgentsComplete { selection } => Message::info(
            format!("{selection}: all that were expected are there now"),
            LogEvent::Missing(Missing {
                name: selection.clone(),
                reason: "complete".to_owned(),
                count: None,
            }),
        ),
        Fact::LinesOverRate {
            owner,
            counts,
            within_ns,
            per_second,
        } => lines_over_rate(*owner, counts, *within_ns, *per_second),
        Fact::LinesUnread { count } => Message::warn(
            format!("{count} log lines were lost because nobody read them"),
            LogEvent::Notice(Notice::default()),
        ),
        Fact::Started {
            pid,
            socket,
            udp,
            http,
            control,
            threshold_ns,
            banner,
        } => {
            let start = Start {
                pid: *pid,
                threshold_ms: exact_ms(*threshold_ns),
                socket: socket.clone(),
                udp: udp.map(|address| address.to_string()),
                http: http.map(|address| address.to_string()),
                control: control.clone(),
            };
            Message::info(banner.clone(), LogEvent::Start(start))
        }
        Fact::CountersSoFar { counters } => {
            let notice = Notice {
                counters: Some(series(counters)),
                ..Notice::default()
            };
            Message::info(summary("so far", counters), LogEvent::Notice(notice))
        }
        Fact::Stopped { cause, counters } => {
            let when = match cause {
                StopCause::Interrupt => "SIGINT",
                StopCause::Terminate => "SIGTERM",
                StopCause::TimeIsUp => "--shutdown-after-secs has passed",
            };
            let stop = Stop {
                counters: series(counters),
            };
            Message::info(summary(when, counters), LogEvent::Stop(stop))
        }
        Fact::Notice { level, text } => Message {
            level: *level,
            msg: text.clone(),
            event: LogEvent::Notice(Notice::default()),
        },
        _ => return receive_message(fact),
    })
}

fn gap(late_ns: u64, count: u64) -> Message {
    let times = match count {
        1 => String::new(),
        count => format!(" in {count} gaps"),
    };
    let msg = format!(
        "this observer was late by {}{times} (stopped, starved or suspended); that time makes no agent stalled",
        seconds(late_ns)
    );
    let gap = Gap {
        duration_ms: ms(late_ns),
        count,
    };
    Message::warn(msg, LogEvent::Gap(gap))
}

fn agents_missing(selection: &str, expected: u32, present: u32, within_ns: u64) -> Message {
    let agents = number_of(expected.into(), "agent");
    let within = exact_duration(within_ns);
    let msg = format!("{selection}: {agents} expected within {within}, {present} there");
    let missing = Missing {
        name: selection.to_owned(),
        reason: "missing".to_owned(),
        count: Some(expected.saturating_sub(present).into()),
    };
    Message::error(msg, LogEvent::Missing(missing))
}

fn lines_over_rate(
    owner: LineOwner,
    counts: &[(LineKind, u64)],
    within_ns: u64,
    per_second: u32,
) -> Message {
    let whose = match owner {
        LineOwner::User(uid) => format!("agents of uid {uid}"),
        LineOwner::Address(address) => format!("agents at {address}"),
        LineOwner::Others => "agents of other users".to_owned(),
    };
    let name = |kind| match kind {
        LineKind::Join => "join",
        LineKind::Exit => "exit",
        LineKind::Critical => "critical",
        LineKind::Late => "late",
        LineKind::Hook => "hook",
    };
    let duration_ms = exact_ms(within_ns).round();
    let lines = counts.iter();
    let lines: Vec<String> = lines
        .map(|(kind, count)| number_of(*count, name(*kind)))
        .collect();
    let msg = format!(
        "{whose} caused too many lines, more than {per_second} per second: left out {} within {duration_ms} ms; stalls \
         and recoveries never are",
        lines.join(", ")
    );
    let counted = counts.iter();
    let notice = Notice {
        uid: match owner {
            LineOwner::User(uid) => Some(uid),
            LineOwner::Address(_) | LineOwner::Others => None,
        },
        duration_ms: Some(duration_ms),
        reason: Some("user_rate".to_owned()),
        count: Some(counted.clone().map(|(_, count)| count).sum()),
        left_out: Some(
            counted
                .map(|(kind, count)| (name(*kind).to_owned(), *count))
                .collect(),
        ),
        source: match owner {
            LineOwner::Address(address) => Some(address.to_string()),
            LineOwner::User(_) | LineOwner::Others => None,
        },
        ..Notice::default()
    };
    Message::warn(msg, LogEvent::Notice(notice))
}

fn receive_message(fact: &Fact) -> Option<Message> {
    Some(match fact {
        Fact::NetworkDrops { count } => {
            let msg = format!(
                "{} from the network dropped by the kernel because the queue was full: the silence of agents elsewhere \
                 restarts",
                number_of(*count, "datagram")
            );
            Message::warn(msg, notice("udp_queue_full", Some(*count)))
        }
        Fact::ReceiveFailed { transport, errno } => {
            let error = os_error(*errno);
            let msg = format!(
                "cannot receive beats over {}: {error}; tried again at least once a second, and until it succeeds no \
                 silence counts that could not be heard",
                transport_name(*transport)
            );
            let notice = Notice {
                reason: Some("receive_failed".to_owned()),
                error: Some(error),
                ..Notice::default()
            };
            Message::error(msg, LogEvent::Notice(notice))
        }
        Fact::ReceiveRestored {
            transport,
            after_ns,
        } => {
            let after_ms = exact_ms(*after_ns);
            let msg = format!(
                "beats are received over {} again, after {:.1} s",
                transport_name(*transport),
                after_ms / 1e3
            );
            let notice = Notice {
                duration_ms: Some(after_ms),
                reason: Some("receive_works".to_owned()),
                ..Notice::default()
            };
            Message::info(msg, LogEvent::Notice(notice))
        }
        Fact::ReceiveBlocked => {
            let msg = "a datagram with descriptors keeps all local beats waiting: every thread that could take it out \
                       of the queue hangs over an earlier one; end the process that sends them, or restart the observer";
            Message::error(msg.to_owned(), notice("receive_blocked", None))
        }
        Fact::DescriptorsHang {
            threads,
            threads_max,
        } => descriptors_hang(*threads, *threads_max),
        Fact::ExitsUnwatched => {
            let msg = "no descriptor left to watch for the end of every agent: for the end of those without one it is \
                       looked a few times a second at most, so it is noticed later; raise the limit on open files";
            Message::warn(msg.to_owned(), LogEvent::Notice(Notice::default()))
        }
        _ => return None,
    })
}

fn notice(reason: &str, count: Option<u64>) -> LogEvent {
    LogEvent::Notice(Notice {
        reason: Some(reason.to_owned()),
        count,
        ..Notice::default()
    })
}

/// An error of the operating system, as readable text.
pub fn os_error(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}

/// A transport of beats, as readable text.
pub fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Unix => "the Unix socket",
        Transport::Udp => "UDP",
    }
}

/// The number of hanging threads, as a sentence.
pub fn hanging_threads(threads: u64, threads_max: u64) -> String {
    format!(
        "{} letting go of descriptors that were attached to datagrams (of {threads_max} that may)",
        match threads {
            1 => "1 thread hangs".to_owned(),
            threads => format!("{threads} threads hang"),
        }
    )
}

fn descriptors_hang(threads: u64, threads_max: u64) -> Message {
    let notice = notice("descriptors_hang", Some(threads));
    match threads {
        0 => {
            let msg = "no thread hangs over attached descriptors any more".to_owned();
            Message::info(msg, notice)
        }
        threads => {
            let msg = format!(
                "{}; once all do, the next datagram with descriptors keeps local beats waiting; the line about refused \
                 datagrams names the sender",
                hanging_threads(threads, threads_max)
            );
            Message::warn(msg, notice)
        }
    }
}

fn summary(when: &str, counters: &[(Counter, u64)]) -> String {
    let of = |counter: Counter, what: &str| {
        let found = counters.iter().find(|(known, _)| *known == counter);
        number_of(found.map_or(0, |(_, value)| *value), what)
    };
    format!(
        "{when}: {} of {}, {}, {}",
        of(Counter::BeatsAccepted, "beat"),
        of(Counter::Joins, "agent"),
        of(Counter::Stalls, "stall"),
        of(Counter::Returns, "return"),
    )
}

/// Counters under the names and in the units of the metrics.
fn series(counters: &[(Counter, u64)]) -> BTreeMap<String, Number> {
    let series = counters.iter().filter_map(|(counter, value)| {
        let info = counter.info();
        let name = match info.label {
            Some((key, label)) => format!("{}{{{key}=\"{label}\"}}", info.name),
            None => info.name.to_owned(),
        };
        let value = match counter.is_time() {
            true => Number::from_f64(*value as f64 / 1e9)?,
            false => (*value).into(),
        };
        Some((name, value))
    });
    series.collect()
}
