//! Messages about recovery: ladders, hold-fire and hooks.

use std::os::unix::process::ExitStatusExt;

use varta_core::Locality;
use varta_core::fact::{
    AgentRef, DeferReason, ExitCause, Fact, Force, HookOutcome, Occasion, OsError, ProgramExit,
    Protected, SignalHits, SignalTarget, StartFailure, UntrustedOrigin, WithdrawReason,
};
use varta_core::hold::{HoldChange, HoldReason, Scope};
use varta_core::ladder::GaveUp as GiveUpReason;

use super::{Message, exact_duration, ms, number_of, source};
use crate::log_line::{GaveUp, Hold, Hook, LogEvent, Outcome, Recover};

pub(super) fn message(fact: &Fact) -> Option<Message> {
    Some(match fact {
        Fact::RecoveryDeferred { agent, reason } => deferred(agent, *reason),
        Fact::WaitsForPermit {
            agent,
            max_in_flight,
            starts_per_second,
        } => waits_for_permit(agent, *max_in_flight, *starts_per_second),
        Fact::WaitsForUserBudget {
            agent,
            uid,
            budget,
            window_ns,
        } => {
            let msg = format!(
                "{agent}: its next step waits, {budget} actions were started for agents of uid {uid} within {} \
                 (--recovery-user-budget)",
                exact_duration(*window_ns)
            );
            let recover = recover(agent, Outcome::UserBudgetSpent);
            Message::warn(msg, LogEvent::Recover(recover))
        }
        Fact::RecoveryRefused { agent, reason } => refused(agent, *reason),
        Fact::StepRehearsed { agent, step } => {
            let msg = format!("{agent}: would have done: {step} (--recovery-mode dry-run)");
            Message::info(msg, LogEvent::Recover(recover(agent, Outcome::DryRun)))
        }
        Fact::ProgramStarted {
            agent,
            child_pid,
            command,
        } => {
            let msg = format!("{agent}: started {command} (child {child_pid})");
            let recover = Recover {
                child_pid: Some(*child_pid),
                ..recover(agent, Outcome::Spawned)
            };
            Message::info(msg, LogEvent::Recover(recover))
        }
        Fact::ProgramEnded {
            agent,
            child_pid,
            exit,
            duration_ns,
            output,
            output_bytes,
            ..
        } => program_ended(
            agent,
            *child_pid,
            exit,
            *duration_ns,
            (output, *output_bytes),
        ),
        Fact::Signalled {
            agent,
            signal,
            target,
            hits,
        } => signalled(agent, signal.name(), *target, *hits),
        Fact::StepFailed { agent, reason } => step_failed(agent, reason),
        Fact::StepPostponed {
            agent,
            reason,
            count,
            ..
        } => step_postponed(agent, reason, *count),
        Fact::Recovered { agent } => Message::info(
            format!("{agent}: recovered"),
            LogEvent::Recover(recover(agent, Outcome::Recovered)),
        ),
        Fact::GaveUp {
            agent,
            reason,
            rehearsed,
        } => gave_up(agent, *reason, *rehearsed),
        Fact::Hold { scope, change } => hold(*scope, *change),
        _ => return hook_message(fact),
    })
}

fn recover(agent: &AgentRef, outcome: Outcome) -> Recover {
    Recover {
        agent: agent.into(),
        code: None,
        signal: None,
        outcome,
        child_pid: None,
        duration_ms: None,
        output: None,
        output_bytes: None,
        reason: None,
        count: None,
        error: None,
        source: source(agent),
    }
}

fn deferred(agent: &AgentRef, reason: DeferReason) -> Message {
    let why = match reason {
        DeferReason::TooRecent => "the last action is too recent",
        DeferReason::StillActing => "the last action still runs",
    };
    let msg = format!("{agent}: {why}, tried again later");
    Message::info(msg, LogEvent::Recover(recover(agent, Outcome::Debounced)))
}

/// The global limits postpone the next step of this agent.
fn waits_for_permit(agent: &AgentRef, max_in_flight: u64, starts_per_second: u32) -> Message {
    let per_second = match starts_per_second {
        0 => String::new(),
        per_second => format!(" and {per_second} start per second"),
    };
    let msg =
        format!("{agent}: its next step waits for room, {max_in_flight} run at a time{per_second}");
    Message::info(msg, LogEvent::Recover(recover(agent, Outcome::Waiting)))
}

fn refused(agent: &AgentRef, reason: UntrustedOrigin) -> Message {
    let (outcome, why) = match reason {
        UntrustedOrigin::SocketModeOnly => (
            Outcome::RefusedSocketModeOnly,
            "the kernel does not say who has sent its beats",
        ),
        UntrustedOrigin::SecureUdp => (
            Outcome::RefusedUnauthenticatedTransport,
            "it was heard over UDP (--allow-recovery-over-secure-udp)",
        ),
        UntrustedOrigin::PlainUdp => (
            Outcome::RefusedUnauthenticatedTransport,
            "it was heard over plain UDP (--allow-recovery-over-plain-udp)",
        ),
    };
    let msg = format!("{agent}: nothing started, {why}");
    Message::warn(msg, LogEvent::Recover(recover(agent, outcome)))
}

fn program_ended(
    agent: &AgentRef,
    child_pid: u32,
    exit: &ProgramExit,
    duration_ns: u64,
    (output, output_bytes): (&str, u64),
) -> Message {
    let outcome = match exit.cause {
        ExitCause::Itself if exit.is_success() => Outcome::ReapedZero,
        ExitCause::Itself => Outcome::ReapedNonzero,
        ExitCause::TimedOut(_) | ExitCause::ObserverStops(_) => Outcome::Killed,
    };
    let status = exit.status.as_ref().ok();
    let status = status.map(|status| std::process::ExitStatus::from_raw(*status));
    let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
    let took_ms = ms(duration_ns);
    let recover = LogEvent::Recover(Recover {
        code: byte(status.and_then(|status| status.code())),
        signal: byte(status.and_then(|status| status.signal())),
        child_pid: Some(child_pid),
        duration_ms: Some(took_ms),
        output: (!output.is_empty()).then(|| output.to_owned()),
        output_bytes: Some(output_bytes),
        error: exit.status.as_ref().err().map(|error| error.text.clone()),
        ..recover(agent, outcome)
    });
    let msg = format!(
        "{agent}: recovery command (child {child_pid}) {} after {took_ms:.1} ms",
        end_of(exit)
    );
    if exit.is_success() {
        return Message::info(msg, recover);
    }
    // Its output usually contains the reason of the failure.
    let last = output.lines().rev().find(|line| !line.trim().is_empty());
    let said = last.map(|last| format!("; it said: {last}"));
    Message::warn(msg + &said.unwrap_or_default(), recover)
}

/// How a program ended, after its name.
fn end_of(exit: &ProgramExit) -> String {
    match (&exit.status, exit.cause) {
        (_, ExitCause::TimedOut(Force::Term)) => "took too long and was ended".to_owned(),
        (_, ExitCause::TimedOut(Force::Kill)) => "took too long and was killed".to_owned(),
        (_, ExitCause::ObserverStops(_)) => "was ended because the observer stops".to_owned(),
        (Ok(0), ExitCause::Itself) => "succeeded".to_owned(),
        (Ok(status), ExitCause::Itself) => {
            format!("failed ({})", std::process::ExitStatus::from_raw(*status))
        }
        (Err(error), ExitCause::Itself) => format!("could not be waited for: {}", error.text),
    }
}

fn signalled(agent: &AgentRef, signal: &str, target: SignalTarget, hits: SignalHits) -> Message {
    let whom = |what: &str| match hits.signalled {
        1 => format!("1 process of its {what}"),
        many => format!("{many} processes of its {what}"),
    };
    let whom = match target {
        SignalTarget::Process => "it".to_owned(),
        SignalTarget::Group => whom("process group"),
        SignalTarget::Cgroup => whom("control group"),
    };
    let spared = match hits.spared {
        0 => String::new(),
        spared => format!(", spared {spared} of another user"),
    };
    let msg = format!("{agent}: sent signal {signal} to {whom}{spared}");
    Message::info(msg, LogEvent::Recover(recover(agent, Outcome::Signalled)))
}

fn step_failed(agent: &AgentRef, reason: &StartFailure) -> Message {
    let failure = failure(reason);
    let msg = format!("{agent}: {failure}");
    let failed = |outcome, error| {
        LogEvent::Recover(Recover {
            error: Some(error),
            ..recover(agent, outcome)
        })
    };
    let plain = |outcome| LogEvent::Recover(recover(agent, outcome));
    match reason {
        StartFailure::TargetGone => Message::info(msg, plain(Outcome::TargetGone)),
        StartFailure::Unidentified => Message::warn(msg, plain(Outcome::TargetGone)),
        StartFailure::CrossNamespace | StartFailure::Hidden => {
            Message::warn(msg, plain(Outcome::RefusedCrossNamespace))
        }
        StartFailure::Spawn { .. } => Message::error(msg, failed(Outcome::SpawnFailed, failure)),
        StartFailure::Remote
        | StartFailure::OtherUser { .. }
        | StartFailure::Protected(_)
        | StartFailure::Signal(_) => Message::error(msg, failed(Outcome::SignalFailed, failure)),
    }
}

fn step_postponed(agent: &AgentRef, reason: &StartFailure, count: u64) -> Message {
    let failure = failure(reason);
    let msg = format!(
        "{} of recovery postponed for want of descriptors or memory, the last one for {agent}: {failure}; tried again \
         in a second, and no budget is spent",
        number_of(count, "step")
    );
    let recover = Recover {
        count: Some(count),
        error: Some(failure),
        ..recover(agent, Outcome::Postponed)
    };
    Message::error(msg, LogEvent::Recover(recover))
}

/// Why an action did not start.
fn failure(reason: &StartFailure) -> String {
    let fixed = match reason {
        StartFailure::OtherUser { uid, joined_as } => {
            return format!(
                "not signalled, it joined as uid {joined_as} and has the rights of uid {uid} by now"
            );
        }
        StartFailure::Protected(what) => return format!("not signalled, {}", protected(*what)),
        StartFailure::Spawn {
            program,
            error: OsError { text, .. },
        } => return format!("cannot start {program}: {text}"),
        StartFailure::Signal(OsError { text, .. }) => {
            return format!("cannot send the signal: {text}");
        }
        StartFailure::TargetGone => "gone or back before anything was started",
        StartFailure::CrossNamespace => {
            "nothing started, it lives in another pid namespace (--allow-cross-namespace-agents)"
        }
        StartFailure::Hidden => {
            "nothing started, /proc does not show it to the observer's user (mount option hidepid), so it may live \
             in another pid namespace; run the observer as root, or mount /proc without hidepid"
        }
        StartFailure::Unidentified => "nothing started, it cannot be proved which process it is",
        StartFailure::Remote => {
            "not signalled, it lives on another host; run a program that knows how to reach it"
        }
    };
    fixed.to_owned()
}

fn protected(what: Protected) -> &'static str {
    match what {
        Protected::Init => "it is the first process of the system",
        Protected::Observer => "it is the observer itself",
        Protected::OwnerUnknown => "/proc does not show whose process it is",
        Protected::OwnerHidden => "whose process it is, is not for the observer to see",
        Protected::GroupHidden => "its process group is not for the observer to see",
        Protected::ObserverInGroup => "the observer is in its process group",
        Protected::InitInGroup => "the first process of the system is in its process group",
        Protected::ObserverInCgroup => "the observer is in its control group",
        Protected::InitInCgroup => "the first process of the system is in its control group",
        Protected::UnseenInCgroup => {
            "a process outside of the observer's pid namespace, perhaps the first of the host, is in its control group"
        }
        Protected::ContainerInitInCgroup => {
            "the first process of a container is in its control group, whose end is the end of everything in it"
        }
        Protected::RootCgroup => "it is in the root control group, with everything else",
        Protected::Slice => "its control group is a slice, with services and sessions in it",
        Protected::LoginSession => "its control group is a login session",
        Protected::UserManager => "its control group is that of everything a user runs",
        Protected::ServiceManager => "its control group is that of a service manager",
    }
}

fn gave_up(agent: &AgentRef, reason: GiveUpReason, rehearsed: bool) -> Message {
    let (label, why) = match reason {
        GiveUpReason::StepsExhausted => (
            "steps_exhausted",
            "the last step of its ladder did not bring it back",
        ),
        GiveUpReason::BudgetSpent => (
            "budget_spent",
            "as many actions as its ladder allows within its window did not help",
        ),
    };
    if rehearsed {
        let msg = format!(
            "{agent}: would have given up if none of that had helped (--recovery-mode dry-run)"
        );
        let recover = Recover {
            reason: Some(label.to_owned()),
            ..recover(agent, Outcome::DryRun)
        };
        return Message::info(msg, LogEvent::Recover(recover));
    }
    let msg = format!("{agent}: gave up, {why}; an operator must look at it");
    let gave_up = GaveUp {
        agent: agent.into(),
        outcome: Outcome::GaveUp,
        reason: label.to_owned(),
        source: source(agent),
    };
    Message::error(msg, LogEvent::GaveUp(gave_up))
}

fn hold(scope: Scope, change: HoldChange) -> Message {
    let (of_whom, suspect, uid) = match scope {
        Scope::All(Locality::Local) => (String::new(), "the host", None),
        Scope::All(Locality::Remote) => {
            (" of agents elsewhere".to_owned(), "what lies between", None)
        }
        Scope::User(uid) => (format!(" of agents of uid {uid}"), "that user", Some(uid)),
    };
    let event = |reason: &str| {
        LogEvent::Hold(Hold {
            uid,
            reason: reason.to_owned(),
        })
    };
    let held = |reason, why| {
        let msg = format!("recovery{of_whom} holds its fire, {suspect} is the suspect: {why}");
        Message::error(msg, event(reason))
    };
    let starved = |of, percent| {
        format!("all tasks were stalled for want of {of} for {percent:.0} % of the last 10 s")
    };
    match change {
        HoldChange::Held(HoldReason::MassStall { silent, of }) => held(
            "mass_stall",
            format!("{silent} of {of} fell silent together"),
        ),
        HoldChange::Held(HoldReason::Memory(percent)) => {
            held("memory_pressure", starved("memory", percent))
        }
        HoldChange::Held(HoldReason::Io(percent)) => held("io_pressure", starved("I/O", percent)),
        HoldChange::Resumed => {
            let msg = format!("recovery{of_whom} goes on: {suspect} is not the suspect any more");
            Message::info(msg, event("resumed"))
        }
        HoldChange::Expired => {
            let msg = format!(
                "recovery{of_whom} goes on: fire was held for as long as it may be (mass-stall-hold), agents that are \
                 silent by now count as stuck"
            );
            Message::warn(msg, event("expired"))
        }
    }
}

fn hook_message(fact: &Fact) -> Option<Message> {
    Some(match fact {
        Fact::HookRehearsed { agent, occasion } => {
            let occasion = occasion.name();
            let msg = format!("{agent}: would have run on-{occasion} (--recovery-mode dry-run)");
            Message::info(msg, LogEvent::Hook(hook(agent, None)))
        }
        Fact::HookWithdrawn {
            agent,
            occasion,
            reason,
        } => {
            let why = match reason {
                WithdrawReason::UntrustedOrigin => {
                    "recovery may not act on agents that are heard this way"
                }
                WithdrawReason::ModeChanged => "--recovery-mode is another one by now",
                WithdrawReason::Paused => "the agent is paused",
                WithdrawReason::Returned => "the agent is back",
            };
            let msg = format!("{agent}: no more of on-{}, {why}", occasion.name());
            Message::info(msg, LogEvent::Hook(hook(agent, Some(*occasion))))
        }
        Fact::HookEnded {
            agent,
            occasion,
            outcome,
            duration_ns,
        } => hook_ended(agent, *occasion, outcome, *duration_ns),
        _ => return None,
    })
}

fn hook(agent: &AgentRef, occasion: Option<Occasion>) -> Hook {
    Hook {
        agent: agent.into(),
        duration_ms: None,
        reason: occasion.map(|occasion| occasion.name().to_owned()),
        error: None,
        source: source(agent),
    }
}

fn hook_ended(
    agent: &AgentRef,
    occasion: Occasion,
    outcome: &HookOutcome,
    duration_ns: u64,
) -> Message {
    let name = occasion.name();
    let took_ms = super::exact_ms(duration_ns);
    let hook = Hook {
        duration_ms: Some((took_ms * 1e3).round() / 1e3),
        ..hook(agent, Some(occasion))
    };
    let problem = match outcome {
        HookOutcome::Done { steps } => {
            let steps = number_of(*steps, "step");
            let msg = format!("{agent}: on-{name} done ({steps}, {took_ms:.1} ms)");
            return Message::info(msg, LogEvent::Hook(hook));
        }
        HookOutcome::NotStarted(reason) => failure(reason),
        HookOutcome::ProgramFailed { program, exit } => format!("{program}: {}", end_of(exit)),
    };
    let msg = format!("{agent}: on-{name} failed: {problem}");
    let hook = Hook {
        error: Some(problem),
        ..hook
    };
    Message::warn(msg, LogEvent::Hook(hook))
}
