//! Messages about agents: how they join, fall silent, return and end, and which datagrams are refused.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, SystemTime};

use varta_core::fact::{AgentRef, Fact, ProcessDescription, ResumeCause};
use varta_core::{ExitStatus, JoinedFrom, UID_UNKNOWN};
use varta_vlp::Status;

use super::{Message, exact_duration, ms, number_of, refusals, seconds, source};
use crate::log_line::{
    BeatStatus, Critical, Exit, How, Join, Late, LogEvent, Notice, Pause, Return, Session, Stall,
};

pub(super) fn message(fact: &Fact, ts_ns: u64) -> Option<Message> {
    Some(match fact {
        Fact::Joined {
            agent,
            from,
            process,
            status,
            payload,
            nonce,
        } => joined(agent, *from, process.as_ref(), (*status, *payload, *nonce)),
        Fact::SessionBegan { agent, count, .. } => session_began(agent, *count),
        Fact::SessionsChanged { agent, sessions } => sessions_changed(agent, *sessions),
        Fact::Critical {
            agent,
            nonce,
            payload,
        } => critical(agent, *nonce, *payload),
        Fact::Late {
            agent, silence_ns, ..
        } => late(agent, *silence_ns),
        Fact::Stalled {
            agent,
            last_nonce,
            silence_ns,
            threshold_ns,
            refused,
        } => stalled(agent, *last_nonce, *silence_ns, *threshold_ns, *refused),
        Fact::StallPutOff {
            agent,
            silence_ns,
            count,
        } => stall_put_off(agent, *silence_ns, *count),
        Fact::StallExcused {
            agent,
            silence_ns,
            threshold_ns,
        } => stall_excused(agent, *silence_ns, *threshold_ns),
        Fact::Returned {
            agent,
            silence_ns,
            status,
            payload,
            nonce,
        } => returned(agent, *silence_ns, (*status, *payload, *nonce)),
        Fact::Exited { agent, status, .. } => exited(agent, *status),
        Fact::Evicted { agent } => Message::warn(
            format!("{agent}: long silent, gave its slot to a newcomer (table full)"),
            LogEvent::Evict(agent.into()),
        ),
        Fact::Paused {
            agent,
            duration_ns,
            reason,
        } => paused(agent, *duration_ns, reason.as_deref(), ts_ns),
        Fact::Resumed { agent, cause } => resumed(agent, *cause),
        Fact::Refused {
            sender,
            reason,
            count,
        } => refusals::refused(sender, *reason, *count),
        Fact::Flood { pid, one_in } => refusals::flood(*pid, *one_in),
        _ => return None,
    })
}

/// Status, payload and nonce of a beat.
type Beat = (Status, u32, u64);

fn joined(
    agent: &AgentRef,
    from: JoinedFrom,
    process: Option<&ProcessDescription>,
    (status, payload, nonce): Beat,
) -> Message {
    let (mut about, uid, transport) = match from {
        JoinedFrom::Local {
            uid: UID_UNKNOWN, ..
        } => (String::new(), None, None),
        JoinedFrom::Local { uid, .. } => (format!(", uid {uid}"), Some(uid), None),
        JoinedFrom::Remote { sealed: true, .. } => (String::new(), None, Some("secure_udp")),
        JoinedFrom::Remote { sealed: false, .. } => (", in clear".to_owned(), None, Some("udp")),
    };
    let process = process.cloned().unwrap_or_default();
    for unit in [&process.unit, &process.user_unit].into_iter().flatten() {
        about.push_str(&format!(", {unit}"));
    }
    if let Some(inner) = process.inner_pid {
        about.push_str(&format!(", pid {inner} in its container"));
    }
    let msg = format!("{agent}{about}: first beat, status {status}");
    let join = Join {
        agent: agent.into(),
        uid,
        exe: process.exe,
        cgroup: process.cgroup,
        unit: process.unit,
        user_unit: process.user_unit,
        start_ticks: process.start_ticks,
        pid_ns: process.pid_ns,
        inner_pid: process.inner_pid,
        status: status.into(),
        payload,
        nonce,
        source: source(agent),
        transport: transport.map(str::to_owned),
    };
    Message::info(msg, LogEvent::Join(join))
}

fn session_began(agent: &AgentRef, count: u64) -> Message {
    let msg = match count {
        1 => format!("{agent}: a new series of beats by the same process"),
        count => format!("{count} new series of beats by known processes, last by {agent}"),
    };
    let session = Session {
        agent: agent.into(),
        reason: None,
        count,
        source: source(agent),
    };
    Message::info(msg, LogEvent::Session(session))
}

fn sessions_changed(agent: &AgentRef, sessions: u64) -> Message {
    let session = LogEvent::Session(Session {
        agent: agent.into(),
        reason: Some("several_sessions".to_owned()),
        count: sessions,
        source: source(agent),
    });
    match sessions {
        0 | 1 => {
            let msg =
                format!("{agent}: beats over one session again; the others are silent or left");
            Message::info(msg, session)
        }
        sessions => {
            let msg = format!(
                "{agent}: beats over {sessions} sessions at once: several handles of one process, or several \
                 processes with its key, address and pid, which cannot be told apart; one that hangs while \
                 another one beats is not noticed"
            );
            Message::warn(msg, session)
        }
    }
}

fn critical(agent: &AgentRef, nonce: u64, payload: u32) -> Message {
    let critical = Critical {
        agent: agent.into(),
        status: BeatStatus::Critical,
        payload,
        nonce,
        source: source(agent),
    };
    let msg = format!("{agent}: says it is critical");
    Message::warn(msg, LogEvent::Critical(critical))
}

fn late(agent: &AgentRef, silence_ns: u64) -> Message {
    let late = Late {
        agent: agent.into(),
        silence_ms: ms(silence_ns),
        source: source(agent),
    };
    let msg = format!("{agent}: silent for {}", seconds(silence_ns));
    Message::warn(msg, LogEvent::Late(late))
}

fn stalled(
    agent: &AgentRef,
    nonce: u64,
    silence_ns: u64,
    threshold_ns: u64,
    refused: u32,
) -> Message {
    let lateness_ms = ms(silence_ns.saturating_sub(threshold_ns));
    let stall = Stall {
        agent: agent.into(),
        nonce,
        silence_ms: ms(silence_ns),
        threshold_ms: ms(threshold_ns),
        lateness_ms,
        reason: (refused > 0).then(|| "beats_refused".to_owned()),
        count: (refused > 0).then_some(refused.into()),
        source: source(agent),
    };
    let although = match refused {
        0 => String::new(),
        refused => format!(
            ", but {} of it refused meanwhile (see the lines before): it may be alive",
            number_of(refused.into(), "datagram")
        ),
    };
    let msg = format!(
        "{agent}: silent for {} (threshold {}), noticed {lateness_ms:.3} ms after the deadline{although}",
        seconds(silence_ns),
        exact_duration(threshold_ns)
    );
    Message::warn(msg, LogEvent::Stall(stall))
}

fn stall_put_off(agent: &AgentRef, silence_ns: u64, count: u64) -> Message {
    let remedy = match agent.address {
        None => "--queue-datagrams",
        Some(_) => "net.core.rmem_max",
    };
    let msg = format!(
        "{} put off, last that of {agent}, not heard for {}: the queue was full, so its beats may have been \
         refused; make it deeper ({remedy})",
        number_of(count, "stall"),
        seconds(silence_ns)
    );
    let notice = Notice {
        silence_ms: Some(ms(silence_ns)),
        reason: Some("queue_full".to_owned()),
        count: Some(count),
        ..about(agent)
    };
    Message::warn(msg, LogEvent::Notice(notice))
}

fn stall_excused(agent: &AgentRef, silence_ns: u64, threshold_ns: u64) -> Message {
    let msg = format!(
        "{agent}: not stalled any more, its threshold is {} now; silent for {}",
        exact_duration(threshold_ns),
        seconds(silence_ns)
    );
    let notice = Notice {
        silence_ms: Some(ms(silence_ns)),
        threshold_ms: Some(ms(threshold_ns)),
        ..about(agent)
    };
    Message::info(msg, LogEvent::Notice(notice))
}

fn about(agent: &AgentRef) -> Notice {
    Notice {
        pid: Some(agent.agent.pid),
        name: (!agent.name.is_empty()).then(|| agent.name.clone()),
        source: source(agent),
        ..Notice::default()
    }
}

fn returned(agent: &AgentRef, silence_ns: u64, (status, payload, nonce): Beat) -> Message {
    let returned = Return {
        agent: agent.into(),
        status: status.into(),
        payload,
        nonce,
        silence_ms: ms(silence_ns),
        source: source(agent),
    };
    let msg = format!("{agent}: back after {} of silence", seconds(silence_ns));
    Message::info(msg, LogEvent::Return(returned))
}

fn exited(agent: &AgentRef, status: ExitStatus) -> Message {
    let exit = |how, code, signal| {
        LogEvent::Exit(Exit {
            agent: agent.into(),
            how,
            code,
            signal,
            source: source(agent),
        })
    };
    match status {
        ExitStatus::Code(0) => Message::info(
            format!("{agent}: exited cleanly"),
            exit(How::Left, Some(0), None),
        ),
        ExitStatus::Code(code) => Message::warn(
            format!("{agent}: exited with code {code}"),
            exit(How::Died, Some(code), None),
        ),
        ExitStatus::Signal(signal) => Message::warn(
            format!("{agent}: killed by {}", signal_name(signal)),
            exit(How::Died, None, Some(signal)),
        ),
        ExitStatus::Goodbye => Message::info(
            format!("{agent}: said goodbye"),
            exit(How::Left, None, None),
        ),
        ExitStatus::Unknown => Message::info(
            format!("{agent}: is gone, the kernel does not tell how it ended"),
            exit(How::Unknown, None, None),
        ),
    }
}

/// "signal 9 (SIGKILL)", the text of the standard library.
fn signal_name(signal: u8) -> String {
    let status = std::process::ExitStatus::from_raw(i32::from(signal));
    status.to_string().replacen(": ", " ", 1)
}

fn paused(agent: &AgentRef, duration_ns: u64, reason: Option<&str>, ts_ns: u64) -> Message {
    let until_ns = ts_ns.checked_add(duration_ns);
    let until =
        SystemTime::UNIX_EPOCH + Duration::from_nanos(ts_ns) + Duration::from_nanos(duration_ns);
    let why = reason.map_or(String::new(), |reason| format!(": {reason}"));
    let msg = format!(
        "{agent}: paused for {}, until {}{why}",
        exact_duration(duration_ns),
        humantime::format_rfc3339_seconds(until)
    );
    let pause = Pause {
        agent: agent.into(),
        reason: reason.map(str::to_owned),
        until_ns,
        source: source(agent),
    };
    Message::info(msg, LogEvent::Pause(pause))
}

fn resumed(agent: &AgentRef, cause: ResumeCause) -> Message {
    let how = match cause {
        ResumeCause::Operator => "resumed: its silence counts from now on",
        ResumeCause::Expired => "the pause is over",
    };
    Message::info(format!("{agent}: {how}"), LogEvent::Resume(agent.into()))
}
