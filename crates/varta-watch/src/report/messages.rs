//! The messages: each thing that happened as one sentence for a person and as fields for a program.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Number;
use varta_api::{Fields, LogEvent};
use varta_core::{Counter, Counters, ExitStatus, JoinedFrom, UID_UNKNOWN};
use varta_vlp::Status;

use super::line_limit::{self, LeftOut, Owner};
use super::log::Log;
use crate::beat_path_state::{HangingThreads, Transport};
use crate::process_info::facts::Facts;
use crate::process_info::units::Units;

/// How an agent is called.
#[derive(Clone, Debug)]
pub(crate) struct Who {
    pub(crate) pid: u32,
    /// Empty if unknown.
    pub(crate) name: String,
    /// Where it lives, if not here.
    pub(crate) address: Option<IpAddr>,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.name.as_str(), self.address) {
            ("", Some(address)) => write!(f, "pid {} of {address}", self.pid),
            (name, Some(address)) => write!(f, "{name} ({} of {address})", self.pid),
            ("", None) => write!(f, "pid {}", self.pid),
            (name, None) => write!(f, "{name} ({})", self.pid),
        }
    }
}

impl Who {
    pub(crate) fn fields(&self) -> Fields {
        Fields {
            pid: Some(self.pid),
            name: (!self.name.is_empty()).then(|| self.name.clone()),
            source: self.address.map(|address| address.to_string()),
            ..Fields::default()
        }
    }
}

/// An expectation that was not met.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The agents the rule means, in the operator's words.
    pub(crate) what: String,
    pub(crate) expected: u32,
    pub(crate) heard: u32,
    pub(crate) within: Duration,
}

/// Milliseconds with three decimals, so that microseconds survive.
pub(crate) fn ms(ns: u64) -> f64 {
    (ns / 1_000) as f64 / 1_000.0
}

fn seconds(ns: u64) -> String {
    format!("{:.3} s", ms(ns) / 1_000.0)
}

pub(crate) fn number_of(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A setting as a person would write it.
pub(crate) fn exact(ns: u64) -> String {
    humantime::format_duration(Duration::from_nanos(ns)).to_string()
}

pub(crate) fn join(
    log: &Log,
    who: &Who,
    facts: Option<&Facts>,
    from: JoinedFrom,
    status: Status,
    payload: u32,
    nonce: u64,
) {
    let (mut about, uid, transport) = match from {
        JoinedFrom::Local {
            uid: UID_UNKNOWN, ..
        } => (String::new(), None, None),
        JoinedFrom::Local { uid, .. } => (format!(", uid {uid}"), Some(uid), None),
        JoinedFrom::Remote { sealed: true, .. } => (String::new(), None, Some("secure_udp")),
        JoinedFrom::Remote { sealed: false, .. } => (", in clear".to_owned(), None, Some("udp")),
    };
    let mut fields = Fields {
        uid,
        transport: transport.map(str::to_owned),
        status: Some(status.to_string()),
        payload: Some(payload),
        nonce: Some(nonce),
        ..who.fields()
    };
    if let Some(facts) = facts {
        let Units { system, user } = &facts.units;
        for unit in [system, user].into_iter().flatten() {
            about.push_str(&format!(", {unit}"));
        }
        if let Some(inner) = facts.inner_pid() {
            about.push_str(&format!(", pid {inner} in its container"));
        }
        fields = Fields {
            exe: facts.exe.clone(),
            cgroup: facts.cgroup.clone(),
            unit: system.clone(),
            user_unit: user.clone(),
            start_ticks: facts.start_ticks,
            pid_ns: facts.pid_ns,
            inner_pid: facts.inner_pid(),
            ..fields
        };
    }
    log.info(
        LogEvent::Join,
        format!("{who}{about}: first beat, status {status}"),
        fields,
    );
}

pub(crate) fn sessions(log: &Log, count: u64, last: &Who) {
    let fields = Fields {
        count: Some(count),
        ..last.fields()
    };
    let msg = match count {
        1 => format!("{last}: a new series of beats by the same process"),
        count => format!("{count} new series of beats by known processes, last by {last}"),
    };
    log.info(LogEvent::Session, msg, fields);
}

pub(crate) fn several_sessions(log: &Log, who: &Who, count: usize) {
    let fields = Fields {
        count: Some(count as u64),
        reason: Some("several_sessions".to_owned()),
        ..who.fields()
    };
    match count {
        0 | 1 => {
            let msg = format!("{who}: beats over one session again; the others are silent or left");
            log.info(LogEvent::Session, msg, fields);
        }
        count => {
            let msg = format!(
                "{who}: beats over {count} sessions at once: several handles of one process, or several \
                 processes with its key, address and pid, which cannot be told apart; one that hangs while \
                 another one beats is not noticed"
            );
            log.warn(LogEvent::Session, msg, fields);
        }
    }
}

pub(crate) fn critical(log: &Log, who: &Who, nonce: u64, payload: u32) {
    let fields = Fields {
        status: Some(Status::Critical.to_string()),
        payload: Some(payload),
        nonce: Some(nonce),
        ..who.fields()
    };
    let msg = format!("{who}: says it is critical");
    log.warn(LogEvent::Critical, msg, fields);
}

pub(crate) fn paused(log: &Log, who: &Who, time: Duration, reason: Option<&str>) {
    let until = SystemTime::now() + time;
    let until_ns = until.duration_since(UNIX_EPOCH).unwrap_or_default();
    let fields = Fields {
        reason: reason.map(str::to_owned),
        until_ns: u64::try_from(until_ns.as_nanos()).ok(),
        ..who.fields()
    };
    let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
    let msg = format!(
        "{who}: paused for {}, until {}{why}",
        humantime::format_duration(time),
        humantime::format_rfc3339_seconds(until)
    );
    log.info(LogEvent::Pause, msg, fields);
}

pub(crate) fn resumed(log: &Log, who: &Who, how: &str) {
    log.info(LogEvent::Resume, format!("{who}: {how}"), who.fields());
}

pub(crate) fn late(log: &Log, who: &Who, silence_ns: u64) {
    let fields = Fields {
        silence_ms: Some(ms(silence_ns)),
        ..who.fields()
    };
    let msg = format!("{who}: silent for {}", seconds(silence_ns));
    log.warn(LogEvent::Late, msg, fields);
}

pub(crate) fn stall(
    log: &Log,
    who: &Who,
    last_nonce: u64,
    silence_ns: u64,
    threshold_ns: u64,
    refused: u32,
) {
    let lateness_ms = ms(silence_ns.saturating_sub(threshold_ns));
    let fields = Fields {
        count: (refused > 0).then_some(refused.into()),
        reason: (refused > 0).then(|| "beats_refused".to_owned()),
        silence_ms: Some(ms(silence_ns)),
        threshold_ms: Some(ms(threshold_ns)),
        lateness_ms: Some(lateness_ms),
        nonce: Some(last_nonce),
        ..who.fields()
    };
    let although = match refused {
        0 => String::new(),
        refused => format!(
            ", but {} of it refused meanwhile (see the lines before): it may be alive",
            number_of(refused.into(), "datagram")
        ),
    };
    let msg = format!(
        "{who}: silent for {} (threshold {}), noticed {lateness_ms:.3} ms after the deadline{although}",
        seconds(silence_ns),
        exact(threshold_ns)
    );
    log.warn(LogEvent::Stall, msg, fields);
}

pub(crate) fn excused(log: &Log, who: &Who, silence_ns: u64, threshold_ns: u64) {
    let fields = Fields {
        silence_ms: Some(ms(silence_ns)),
        threshold_ms: Some(ms(threshold_ns)),
        ..who.fields()
    };
    let msg = format!(
        "{who}: not stalled any more, its threshold is {} now; silent for {}",
        exact(threshold_ns),
        seconds(silence_ns)
    );
    log.info(LogEvent::Notice, msg, fields);
}

pub(crate) fn returned(
    log: &Log,
    who: &Who,
    silence_ns: u64,
    status: Status,
    payload: u32,
    nonce: u64,
) {
    let fields = Fields {
        silence_ms: Some(ms(silence_ns)),
        status: Some(status.to_string()),
        payload: Some(payload),
        nonce: Some(nonce),
        ..who.fields()
    };
    let msg = format!("{who}: back after {} of silence", seconds(silence_ns));
    log.info(LogEvent::Return, msg, fields);
}

pub(crate) fn exit(log: &Log, who: &Who, status: ExitStatus) {
    let mut fields = who.fields();
    match status {
        ExitStatus::Code(0) => {
            fields.how = Some("left".to_owned());
            fields.code = Some(0);
            log.info(LogEvent::Exit, format!("{who}: exited cleanly"), fields);
        }
        ExitStatus::Code(code) => {
            fields.how = Some("died".to_owned());
            fields.code = Some(code);
            log.warn(
                LogEvent::Exit,
                format!("{who}: exited with code {code}"),
                fields,
            );
        }
        ExitStatus::Signal(signal) => {
            fields.how = Some("died".to_owned());
            fields.signal = Some(signal);
            log.warn(
                LogEvent::Exit,
                format!("{who}: killed by {}", signal_name(signal)),
                fields,
            );
        }
        ExitStatus::Goodbye => {
            fields.how = Some("left".to_owned());
            log.info(LogEvent::Exit, format!("{who}: said goodbye"), fields);
        }
        ExitStatus::Unknown => {
            fields.how = Some("unknown".to_owned());
            let msg = format!("{who}: is gone, the kernel does not tell how it ended");
            log.info(LogEvent::Exit, msg, fields);
        }
    }
}

/// "signal 9 (SIGKILL)", in the standard library's words.
fn signal_name(signal: u8) -> String {
    let status = std::process::ExitStatus::from_raw(i32::from(signal));
    status.to_string().replacen(": ", " ", 1)
}

pub(crate) fn evicted(log: &Log, who: &Who) {
    let msg = format!("{who}: long silent, gave its slot to a newcomer (table full)");
    log.warn(LogEvent::Evict, msg, who.fields());
}

/// Stalls were put off `count` times, last that of `who`.
pub(crate) fn put_off(log: &Log, count: u64, who: &Who, silence_ns: u64) {
    let fields = Fields {
        count: Some(count),
        silence_ms: Some(ms(silence_ns)),
        reason: Some("queue_full".to_owned()),
        ..who.fields()
    };
    let remedy = match who.address {
        None => "--queue-datagrams",
        Some(_) => "net.core.rmem_max",
    };
    let msg = format!(
        "{} put off, last that of {who}, not heard for {}: the queue was full, so its beats may have been \
         refused; make it deeper ({remedy})",
        number_of(count, "stall"),
        seconds(silence_ns)
    );
    log.warn(LogEvent::Notice, msg, fields);
}

pub(crate) fn receiving_fails(log: &Log, transport: Transport, error: &std::io::Error) {
    let fields = Fields {
        error: Some(error.to_string()),
        reason: Some("receive_failed".to_owned()),
        ..Fields::default()
    };
    let msg = format!(
        "cannot receive beats over {transport}: {error}; tried again at least once a second, and until it succeeds no \
         silence counts that could not be heard"
    );
    log.error(LogEvent::Notice, msg, fields);
}

pub(crate) fn receives_again(log: &Log, transport: Transport, after: Duration) {
    let fields = Fields {
        duration_ms: Some(after.as_secs_f64() * 1e3),
        reason: Some("receive_works".to_owned()),
        ..Fields::default()
    };
    let msg = format!(
        "beats are received over {transport} again, after {:.1} s",
        after.as_secs_f64()
    );
    log.info(LogEvent::Notice, msg, fields);
}

pub(crate) fn receiving_is_blocked(log: &Log) {
    let fields = Fields {
        reason: Some("receive_blocked".to_owned()),
        ..Fields::default()
    };
    let msg = "a datagram with descriptors keeps all local beats waiting: every thread that could take it out of the \
               queue hangs over an earlier one; end the process that sends them, or restart the observer";
    log.error(LogEvent::Notice, msg.to_owned(), fields);
}

pub(crate) fn descriptors_hang(log: &Log, count: u64) {
    let fields = Fields {
        count: Some(count),
        reason: Some("descriptors_hang".to_owned()),
        ..Fields::default()
    };
    match count {
        0 => {
            let msg = "no thread hangs over attached descriptors any more".to_owned();
            log.info(LogEvent::Notice, msg, fields);
        }
        count => {
            let msg = format!(
                "{}; once all do, the next datagram with descriptors keeps local beats waiting; the line about refused \
                 datagrams names the sender",
                HangingThreads(count)
            );
            log.warn(LogEvent::Notice, msg, fields);
        }
    }
}

/// The fields of a line about a recovery.
pub(crate) fn recovery(who: &Who, outcome: &str) -> Fields {
    Fields {
        outcome: Some(outcome.to_owned()),
        ..who.fields()
    }
}

pub(crate) fn postponed(log: &Log, count: u64, who: &Who, error: &str) {
    let fields = Fields {
        count: Some(count),
        error: Some(error.to_owned()),
        ..recovery(who, "postponed")
    };
    let msg = format!(
        "{} of recovery postponed for want of descriptors or memory, the last one for {who}: {error}; tried again in a \
         second, and no budget is spent",
        number_of(count, "step")
    );
    log.error(LogEvent::Recover, msg, fields);
}

pub(crate) fn drops(log: &Log, count: u64) {
    let fields = Fields {
        count: Some(count),
        reason: Some("udp_queue_full".to_owned()),
        ..Fields::default()
    };
    let msg = format!(
        "{} from the network dropped by the kernel because the queue was full: the silence of agents \
         elsewhere starts anew",
        number_of(count, "datagram")
    );
    log.warn(LogEvent::Notice, msg, fields);
}

/// Lines that were left out because one user caused too many.
pub(crate) fn left_out(log: &Log, all: Vec<(Owner, LeftOut)>) {
    for (owner, LeftOut { since, counts }) in all {
        let whose = match owner {
            Owner::User(uid) => format!("agents of uid {uid}"),
            Owner::Address(address) => format!("agents at {address}"),
            Owner::Others => "agents of other users".to_owned(),
        };
        let duration_ms = (since.elapsed().as_secs_f64() * 1e3).round();
        let lines = counts
            .iter()
            .map(|(kind, count)| number_of(*count, kind.name()));
        let lines: Vec<String> = lines.collect();
        let msg = format!(
            "{whose} caused too many lines, more than {} per second: left out {} within {duration_ms} ms; stalls and \
             recoveries never are",
            line_limit::USER.per_second,
            lines.join(", ")
        );
        let fields = Fields {
            uid: match owner {
                Owner::User(uid) => Some(uid),
                Owner::Address(_) | Owner::Others => None,
            },
            source: match owner {
                Owner::Address(address) => Some(address.to_string()),
                Owner::User(_) | Owner::Others => None,
            },
            reason: Some("user_rate".to_owned()),
            count: Some(counts.values().sum()),
            left_out: Some(
                counts
                    .iter()
                    .map(|(kind, count)| (kind.name().to_owned(), *count))
                    .collect(),
            ),
            duration_ms: Some(duration_ms),
            ..Fields::default()
        };
        log.warn(LogEvent::Notice, msg, fields);
    }
}

pub(crate) fn flood(log: &Log, pid: u32, one_in: u32) {
    let what = match pid {
        0 => "datagrams that are no frames".to_owned(),
        pid => format!("beats of pid {pid}"),
    };
    let fields = Fields {
        pid: (pid != 0).then_some(pid),
        reason: Some("flood".to_owned()),
        ..Fields::default()
    };
    if one_in == 1 {
        let msg = format!("the flood of {what} is over");
        return log.info(LogEvent::Refuse, msg, fields);
    }
    let msg = format!(
        "a flood of {what}: one in {one_in} is let through, so that others are heard, until it ends"
    );
    log.warn(LogEvent::Refuse, msg, fields);
}

pub(crate) fn gaps(log: &Log, count: u64, total_ns: u64) {
    let fields = Fields {
        count: Some(count),
        duration_ms: Some(ms(total_ns)),
        ..Fields::default()
    };
    let times = match count {
        1 => String::new(),
        count => format!(" in {count} gaps"),
    };
    let msg = format!(
        "this observer was late by {}{times} (stopped, starved or suspended); that time makes no agent stalled",
        seconds(total_ns)
    );
    log.warn(LogEvent::Gap, msg, fields);
}

pub(crate) fn unwatched_exits(log: &Log) {
    let msg = "no descriptor left to watch for the end of every agent: for the end of those without \
               one it is looked a few times a second at most, so it is noticed later; raise the \
               limit on open files";
    log.warn(LogEvent::Notice, msg.to_owned(), Fields::default());
}

pub(crate) fn missing(log: &Log, missing: &Missing) {
    let Missing {
        what,
        expected,
        heard,
        within,
    } = missing;
    let fields = Fields {
        name: Some(what.clone()),
        count: Some(u64::from(expected.saturating_sub(*heard))),
        reason: Some("missing".to_owned()),
        ..Fields::default()
    };
    let within = humantime::format_duration(*within);
    let agents = number_of(u64::from(*expected), "agent");
    let msg = format!("{what}: {agents} expected within {within}, {heard} there");
    log.error(LogEvent::Missing, msg, fields);
}

pub(crate) fn complete(log: &Log, what: &str) {
    let fields = Fields {
        name: Some(what.to_owned()),
        reason: Some("complete".to_owned()),
        ..Fields::default()
    };
    let msg = format!("{what}: all that were expected are there now");
    log.info(LogEvent::Missing, msg, fields);
}

/// All counters that are not zero, as the metrics tell them.
pub(crate) fn counters(log: &Log, event: LogEvent, when: &str, counters: &Counters) {
    let msg = format!(
        "{when}: {} of {}, {}, {}",
        number_of(counters.get(Counter::BeatsAccepted), "beat"),
        number_of(counters.get(Counter::Joins), "agent"),
        number_of(counters.get(Counter::Stalls), "stall"),
        number_of(counters.get(Counter::Returns), "return"),
    );
    let fields = Fields {
        counters: Some(series(counters)),
        ..Fields::default()
    };
    log.info(event, msg, fields);
}

fn series(counters: &Counters) -> BTreeMap<String, Number> {
    let counted = Counter::ALL
        .iter()
        .map(|counter| (counter, counters.get(*counter)))
        .filter(|(_, value)| *value > 0);
    let told = counted.filter_map(|(counter, value)| {
        let info = counter.info();
        let name = match info.label {
            Some((key, label)) => format!("{}{{{key}=\"{label}\"}}", info.name),
            None => info.name.to_owned(),
        };
        let value = match counter.is_time() {
            true => Number::from_f64(value as f64 / 1e9)?,
            false => value.into(),
        };
        Some((name, value))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_under_the_names_and_in_the_units_of_the_metrics() {
        let counters = Counters::default();
        counters.add(Counter::BeatsAccepted, 3);
        counters.add(Counter::ExitsLeft, 2);
        counters.add(Counter::GapNanoseconds, 1_500_000_000);
        counters.add(Counter::QueueFull, 1);
        assert_eq!(
            serde_json::to_string(&series(&counters)).unwrap(),
            r#"{"varta_observer_beats_total":3,"varta_observer_exits_total{how=\"left\"}":2,"varta_observer_gap_seconds_total":1.5,"varta_observer_queue_full_total":1}"#
        );
    }
}
