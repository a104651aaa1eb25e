//! The messages about recovery: ladders, hold-fire and hooks.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use varta_api::{Fields, LogEvent};
use varta_core::hold::{HoldChange, HoldReason, Scope};
use varta_core::ladder::GaveUp;
use varta_core::{BeatOrigin, Locality};

use crate::actions::{Ended, Force, Hits, How, StartError};
use crate::report::log::Log;
use crate::report::messages::{Who, ms, number_of, recovery};
use crate::settings::policy::{Occasion, RecoveryLimits, SignalStep, Target, signal_name};

pub(super) fn deferred(log: &Log, who: &Who, why: &str) {
    let msg = format!("{who}: {why}, tried again later");
    log.info(LogEvent::Recover, msg, recovery(who, "debounced"));
}

pub(super) fn spawned(log: &Log, who: &Who, child_pid: u32, command: &str) {
    let fields = Fields {
        child_pid: Some(child_pid),
        ..recovery(who, "spawned")
    };
    log.info(
        LogEvent::Recover,
        format!("{who}: started {command} (child {child_pid})"),
        fields,
    );
}

pub(super) fn signalled(log: &Log, who: &Who, step: &SignalStep, hits: Hits) {
    let name = signal_name(step.signal);
    let whom = |what: &str| match hits.signalled {
        1 => format!("1 process of its {what}"),
        many => format!("{many} processes of its {what}"),
    };
    let whom = match step.to {
        Target::Process => "it".to_owned(),
        Target::Group => whom("process group"),
        Target::Cgroup => whom("control group"),
    };
    let spared = match hits.spared {
        0 => String::new(),
        spared => format!(", spared {spared} of another user"),
    };
    let msg = format!("{who}: sent signal {name} to {whom}{spared}");
    log.info(LogEvent::Recover, msg, recovery(who, "signalled"));
}

pub(super) fn dry_run(log: &Log, who: &Who, shown: &str) {
    let msg = format!("{who}: would have done: {shown} (--recovery-mode dry-run)");
    log.info(LogEvent::Recover, msg, recovery(who, "dry_run"));
}

pub(super) fn not_started(log: &Log, who: &Who, error: &StartError) {
    let msg = format!("{who}: {error}");
    match error {
        StartError::TargetGone => {
            log.info(LogEvent::Recover, msg, recovery(who, "target_gone"));
        }
        StartError::Unidentified => {
            log.warn(LogEvent::Recover, msg, recovery(who, "target_gone"));
        }
        StartError::CrossNamespace | StartError::Hidden => {
            let fields = recovery(who, "refused_cross_namespace");
            log.warn(LogEvent::Recover, msg, fields);
        }
        StartError::Spawn(reason) => {
            let fields = Fields {
                error: Some(reason.to_string()),
                ..recovery(who, "spawn_failed")
            };
            log.error(LogEvent::Recover, msg, fields);
        }
        StartError::NotHere
        | StartError::OthersNow { .. }
        | StartError::Forbidden(_)
        | StartError::Signal(_) => {
            let fields = Fields {
                error: Some(error.to_string()),
                ..recovery(who, "signal_failed")
            };
            log.error(LogEvent::Recover, msg, fields);
        }
    }
}

pub(super) fn recovered(log: &Log, who: &Who) {
    let msg = format!("{who}: recovered");
    log.info(LogEvent::Recover, msg, recovery(who, "recovered"));
}

/// The limits for all have no room for the next step of this agent now.
pub(super) fn waits(log: &Log, who: &Who, limits: &RecoveryLimits) {
    let per_second = match limits.starts_per_second {
        0 => String::new(),
        per_second => format!(" and {per_second} start per second"),
    };
    let msg = format!(
        "{who}: its next step waits for room, {} run at a time{per_second}",
        limits.max_in_flight
    );
    log.info(LogEvent::Recover, msg, recovery(who, "waiting"));
}

/// As many actions as allowed were started for agents of this user; the next one comes when there may be more.
pub(super) fn user_waits(log: &Log, who: &Who, user: u32, limits: &RecoveryLimits) {
    let msg = format!(
        "{who}: its next step waits, {} actions were started for agents of uid {user} within {} \
         (--recovery-user-budget)",
        limits.user_budget,
        humantime::format_duration(limits.user_window)
    );
    log.warn(LogEvent::Recover, msg, recovery(who, "user_budget_spent"));
}

/// Why, for programs and for people.
fn reason_of(why: GaveUp) -> (&'static str, &'static str) {
    match why {
        GaveUp::StepsExhausted => (
            "steps_exhausted",
            "the last step of its ladder did not bring it back",
        ),
        GaveUp::BudgetSpent => (
            "budget_spent",
            "as many actions as its ladder allows within its window did not help",
        ),
    }
}

pub(super) fn gave_up(log: &Log, who: &Who, why: GaveUp) {
    let (reason, why) = reason_of(why);
    let fields = Fields {
        reason: Some(reason.to_owned()),
        ..recovery(who, "gave_up")
    };
    let msg = format!("{who}: gave up, {why}; somebody must look at it");
    log.error(LogEvent::GaveUp, msg, fields);
}

pub(super) fn would_give_up(log: &Log, who: &Who, why: GaveUp) {
    let (reason, _) = reason_of(why);
    let fields = Fields {
        reason: Some(reason.to_owned()),
        ..recovery(who, "dry_run")
    };
    let msg =
        format!("{who}: would have given up if none of that had helped (--recovery-mode dry-run)");
    log.info(LogEvent::Recover, msg, fields);
}

pub(super) fn hold(log: &Log, scope: Scope, change: HoldChange) {
    let (of_whom, suspect, uid) = match scope {
        Scope::All(Locality::Local) => (String::new(), "the host", None),
        Scope::All(Locality::Remote) => {
            (" of agents elsewhere".to_owned(), "what lies between", None)
        }
        Scope::User(uid) => (format!(" of agents of uid {uid}"), "that user", Some(uid)),
    };
    let (reason, why) = match change {
        HoldChange::Held(HoldReason::MassStall { silent, of }) => (
            "mass_stall",
            format!("{silent} of {of} fell silent together"),
        ),
        HoldChange::Held(HoldReason::Memory(percent)) => (
            "memory_pressure",
            format!(
                "all tasks were stalled for want of memory for {percent:.0} % of the last 10 s"
            ),
        ),
        HoldChange::Held(HoldReason::Io(percent)) => (
            "io_pressure",
            format!("all tasks were stalled for want of I/O for {percent:.0} % of the last 10 s"),
        ),
        HoldChange::Resumed => {
            let fields = Fields {
                reason: Some("resumed".to_owned()),
                uid,
                ..Fields::default()
            };
            let msg = format!("recovery{of_whom} goes on: {suspect} is not the suspect any more");
            return log.info(LogEvent::Hold, msg, fields);
        }
        HoldChange::Expired => {
            let fields = Fields {
                reason: Some("expired".to_owned()),
                uid,
                ..Fields::default()
            };
            let msg = format!(
                "recovery{of_whom} goes on: fire was held for as long as it may be \
                 (mass-stall-hold), whoever is silent by now is taken to be stuck"
            );
            return log.warn(LogEvent::Hold, msg, fields);
        }
    };
    let fields = Fields {
        reason: Some(reason.to_owned()),
        uid,
        ..Fields::default()
    };
    let msg = format!("recovery{of_whom} holds its fire, {suspect} is the suspect: {why}");
    log.error(LogEvent::Hold, msg, fields);
}

pub(super) fn would_hook(log: &Log, who: &Who, occasion: Occasion) {
    let occasion = occasion.name();
    let msg = format!("{who}: would have run on-{occasion} (--recovery-mode dry-run)");
    log.info(LogEvent::Hook, msg, who.fields());
}

/// A hook that is not taken, or not to its end.
pub(super) fn withdrawn(log: &Log, who: &Who, occasion: Occasion, why: &str) {
    let occasion = occasion.name();
    let fields = Fields {
        reason: Some(occasion.to_owned()),
        ..who.fields()
    };
    let msg = format!("{who}: no more of on-{occasion}, {why}");
    log.info(LogEvent::Hook, msg, fields);
}

pub(super) fn hooked(
    log: &Log,
    who: &Who,
    occasion: Occasion,
    result: &Result<usize, String>,
    took: Duration,
) {
    let occasion = occasion.name();
    let took_ms = took.as_secs_f64() * 1e3;
    let mut fields = Fields {
        duration_ms: Some((took_ms * 1e3).round() / 1e3),
        reason: Some(occasion.to_owned()),
        ..who.fields()
    };
    match result {
        Ok(steps) => {
            let steps = number_of(*steps as u64, "step");
            let msg = format!("{who}: on-{occasion} done ({steps}, {took_ms:.1} ms)");
            log.info(LogEvent::Hook, msg, fields);
        }
        Err(problem) => {
            fields.error = Some(problem.clone());
            let msg = format!("{who}: on-{occasion} failed: {problem}");
            log.warn(LogEvent::Hook, msg, fields);
        }
    }
}

/// Recovery may not act on an agent that was heard this way.
pub(super) fn refused_by_origin(log: &Log, who: &Who, origin: BeatOrigin, sealed: bool) {
    let (outcome, why) = match (origin, sealed) {
        (BeatOrigin::SocketModeOnly, _) => (
            "refused_socket_mode_only",
            "the kernel does not say who has sent its beats",
        ),
        (_, true) => (
            "refused_unauthenticated_transport",
            "it was heard over UDP (--allow-recovery-over-secure-udp)",
        ),
        (_, false) => (
            "refused_unauthenticated_transport",
            "it was heard over plain UDP (--allow-recovery-over-plain-udp)",
        ),
    };
    let msg = format!("{who}: nothing started, {why}");
    log.warn(LogEvent::Recover, msg, recovery(who, outcome));
}

pub(super) fn ended(log: &Log, who: &Who, child_pid: u32, ended: &Ended, outcome: &'static str) {
    let took_ms = ms(u64::try_from(ended.duration.as_nanos()).unwrap_or(u64::MAX));
    let output = ended.output.text();
    let mut fields = Fields {
        child_pid: Some(child_pid),
        duration_ms: Some(took_ms),
        output: (!output.is_empty()).then(|| output.clone()),
        output_bytes: Some(ended.output.written()),
        ..recovery(who, outcome)
    };
    match &ended.status {
        Ok(status) => {
            fields.code = status.code().and_then(|code| u8::try_from(code).ok());
            fields.signal = status.signal().and_then(|signal| u8::try_from(signal).ok());
        }
        Err(error) => fields.error = Some(error.to_string()),
    }
    let what = end_of(ended);
    let msg = format!("{who}: recovery command (child {child_pid}) {what} after {took_ms:.1} ms");
    if outcome == "reaped_zero" {
        return log.info(LogEvent::Recover, msg, fields);
    }
    // What it wrote is why it failed, as a rule.
    let last = output.lines().rev().find(|line| !line.trim().is_empty());
    let said = last
        .map(|last| format!("; it said: {last}"))
        .unwrap_or_default();
    log.warn(LogEvent::Recover, format!("{msg}{said}"), fields);
}

/// How a program ended, after its name.
pub(super) fn end_of(ended: &Ended) -> String {
    match (&ended.status, ended.how) {
        (_, How::TimedOut(Force::Term)) => "took too long and was ended".to_owned(),
        (_, How::TimedOut(Force::Kill)) => "took too long and was killed".to_owned(),
        (_, How::Stopped(_)) => "was ended because the observer stops".to_owned(),
        (Ok(status), How::Finished) if status.success() => "succeeded".to_owned(),
        (Ok(status), How::Finished) => format!("failed ({status})"),
        (Err(error), How::Finished) => format!("could not be waited for: {error}"),
    }
}
