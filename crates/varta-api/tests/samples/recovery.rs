//! Samples of the decisions and actions of recovery.

use varta_core::fact::{
    DeferReason, ExitCause, Force, HookOutcome, Occasion, OsError, ProgramExit, Protected, Signal,
    SignalHits, SignalTarget, StartFailure, UntrustedOrigin, WithdrawReason,
};
use varta_core::hold::{HoldChange, HoldReason, Scope};
use varta_core::ladder::GaveUp;
use varta_core::{Fact, Locality};

use super::{Samples, db, put, web};

pub(super) fn waits(samples: &mut Samples) {
    for (name, reason) in [
        ("recovery_deferred_too_recent", DeferReason::TooRecent),
        ("recovery_deferred_still_acting", DeferReason::StillActing),
    ] {
        let agent = web();
        put(samples, name, Fact::RecoveryDeferred { agent, reason });
    }
    for (name, starts_per_second) in [
        ("waits_for_permit", 2),
        ("waits_for_permit_without_rate", 0),
    ] {
        let fact = Fact::WaitsForPermit {
            agent: web(),
            max_in_flight: 4,
            starts_per_second,
        };
        put(samples, name, fact);
    }
    let fact = Fact::WaitsForUserBudget {
        agent: web(),
        uid: 1000,
        budget: 10,
        window_ns: 600_000_000_000,
    };
    put(samples, "waits_for_user_budget", fact);
    for (name, agent, reason) in [
        (
            "recovery_refused_socket_mode",
            web(),
            UntrustedOrigin::SocketModeOnly,
        ),
        (
            "recovery_refused_plain_udp",
            db(),
            UntrustedOrigin::PlainUdp,
        ),
        (
            "recovery_refused_secure_udp",
            db(),
            UntrustedOrigin::SecureUdp,
        ),
    ] {
        put(samples, name, Fact::RecoveryRefused { agent, reason });
    }
}

fn os_error(errno: i32) -> OsError {
    OsError {
        errno: Some(errno),
        text: std::io::Error::from_raw_os_error(errno).to_string(),
    }
}

fn exit(status: Result<i32, OsError>, cause: ExitCause) -> ProgramExit {
    ProgramExit { status, cause }
}

pub(super) fn programs(samples: &mut Samples) {
    let rehearsed = Fact::StepRehearsed {
        agent: web(),
        step: "/bin/heal 7".to_owned(),
    };
    put(samples, "step_rehearsed", rehearsed);
    let started = Fact::ProgramStarted {
        agent: web(),
        child_pid: 99,
        command: "/bin/heal 7".to_owned(),
    };
    put(samples, "program_started", started);
    let late = "late\n[... 7 bytes ...]";
    let timed_out = ExitCause::TimedOut;
    let stops = ExitCause::ObserverStops(Force::Kill);
    for (name, status, cause, output, dropped_bytes) in [
        ("program_succeeded", Ok(0), ExitCause::Itself, "fine\n", 0),
        (
            "program_failed",
            Ok(3 << 8),
            ExitCause::Itself,
            "one\ntwo\n\n",
            0,
        ),
        (
            "program_failed_silently",
            Ok(3 << 8),
            ExitCause::Itself,
            "",
            0,
        ),
        ("program_killed_by_signal", Ok(9), ExitCause::Itself, "", 0),
        (
            "program_dumped_core",
            Ok(6 | 0x80),
            ExitCause::Itself,
            "",
            0,
        ),
        ("program_timed_out", Ok(15), timed_out(Force::Term), "", 0),
        (
            "program_timed_out_and_killed",
            Ok(9),
            timed_out(Force::Kill),
            late,
            7,
        ),
        ("program_stopped", Ok(0), stops, "", 0),
        ("program_lost", Err(os_error(10)), ExitCause::Itself, "", 0),
    ] {
        let kept = output.strip_suffix("[... 7 bytes ...]").unwrap_or(output);
        let fact = Fact::ProgramEnded {
            agent: web(),
            child_pid: 99,
            exit: exit(status, cause),
            duration_ns: 12_345_678,
            output: output.to_owned(),
            output_bytes: kept.len() as u64 + dropped_bytes,
            dropped_bytes,
        };
        put(samples, name, fact);
    }
    for (name, target, signalled, spared) in [
        ("signalled", SignalTarget::Process, 1, 0),
        ("signalled_group_of_one", SignalTarget::Group, 1, 0),
        ("signalled_group", SignalTarget::Group, 3, 2),
        ("signalled_cgroup", SignalTarget::Cgroup, 2, 0),
    ] {
        let fact = Fact::Signalled {
            agent: web(),
            signal: Signal::Term,
            target,
            hits: SignalHits { signalled, spared },
        };
        put(samples, name, fact);
    }
}

fn spawn_failure(errno: i32) -> StartFailure {
    StartFailure::Spawn {
        program: "/bin/heal".to_owned(),
        error: os_error(errno),
    }
}

pub(super) fn failures(samples: &mut Samples) {
    let mut reasons = vec![
        StartFailure::TargetGone,
        StartFailure::CrossNamespace,
        StartFailure::Hidden,
        StartFailure::Unidentified,
        StartFailure::OtherUser {
            uid: 0,
            joined_as: 1000,
        },
        StartFailure::Remote,
    ];
    let protected = [
        Protected::Init,
        Protected::Observer,
        Protected::OwnerUnknown,
        Protected::OwnerHidden,
        Protected::GroupHidden,
        Protected::ObserverInGroup,
        Protected::InitInGroup,
        Protected::ObserverInCgroup,
        Protected::InitInCgroup,
        Protected::UnseenInCgroup,
        Protected::ContainerInitInCgroup,
        Protected::RootCgroup,
        Protected::Slice,
        Protected::LoginSession,
        Protected::UserManager,
        Protected::ServiceManager,
    ];
    reasons.extend(protected.map(StartFailure::Protected));
    reasons.push(spawn_failure(2));
    reasons.push(StartFailure::Signal(os_error(1)));
    for (index, reason) in reasons.into_iter().enumerate() {
        let agent = web();
        let fact = Fact::StepFailed { agent, reason };
        put(samples, &format!("step_failed_{index}"), fact);
    }
    for (name, reason, count) in [
        ("step_postponed", spawn_failure(24), 1),
        ("steps_postponed", StartFailure::Signal(os_error(24)), 2),
    ] {
        let fact = Fact::StepPostponed {
            agent: web(),
            hook: None,
            reason,
            count,
        };
        put(samples, name, fact);
    }
}

pub(super) fn holds(samples: &mut Samples) {
    put(samples, "recovered", Fact::Recovered { agent: web() });
    for (name, reason, rehearsed) in [
        ("gave_up_steps", GaveUp::StepsExhausted, false),
        ("gave_up_budget", GaveUp::BudgetSpent, false),
        ("gave_up_rehearsed", GaveUp::BudgetSpent, true),
    ] {
        let fact = Fact::GaveUp {
            agent: web(),
            reason,
            rehearsed,
        };
        put(samples, name, fact);
    }
    let mass = HoldChange::Held(HoldReason::MassStall { silent: 3, of: 4 });
    let memory = HoldChange::Held(HoldReason::Memory(41.6));
    let io = HoldChange::Held(HoldReason::Io(99.5));
    let (local, remote) = (Scope::All(Locality::Local), Scope::All(Locality::Remote));
    let user = Scope::User(1000);
    for (name, scope, change) in [
        ("hold_mass_stall", local, mass),
        ("hold_mass_stall_remote", remote, mass),
        ("hold_mass_stall_of_user", user, mass),
        ("hold_memory", local, memory),
        ("hold_io", local, io),
        ("hold_resumed", local, HoldChange::Resumed),
        ("hold_resumed_remote", remote, HoldChange::Resumed),
        ("hold_resumed_of_user", user, HoldChange::Resumed),
        ("hold_expired", remote, HoldChange::Expired),
        ("hold_expired_of_user", user, HoldChange::Expired),
    ] {
        put(samples, name, Fact::Hold { scope, change });
    }
}

pub(super) fn hooks(samples: &mut Samples) {
    let agent = web;
    let rehearsed = Fact::HookRehearsed {
        agent: agent(),
        occasion: Occasion::GaveUp,
    };
    put(samples, "hook_rehearsed", rehearsed);
    let dropped = Fact::HookDropped {
        agent: agent(),
        occasion: Occasion::Late,
    };
    put(samples, "hook_dropped", dropped);
    for (name, reason) in [
        ("hook_withdrawn_origin", WithdrawReason::UntrustedOrigin),
        ("hook_withdrawn_mode", WithdrawReason::ModeChanged),
        ("hook_withdrawn_paused", WithdrawReason::Paused),
        ("hook_withdrawn_returned", WithdrawReason::Returned),
    ] {
        let fact = Fact::HookWithdrawn {
            agent: agent(),
            occasion: Occasion::Late,
            reason,
        };
        put(samples, name, fact);
    }
    let failed = HookOutcome::ProgramFailed {
        program: "/bin/heal".to_owned(),
        exit: exit(Ok(3 << 8), ExitCause::Itself),
    };
    for (name, occasion, outcome) in [
        (
            "hook_done",
            Occasion::Critical,
            HookOutcome::Done { steps: 1 },
        ),
        (
            "hook_done_in_two_steps",
            Occasion::Exit,
            HookOutcome::Done { steps: 2 },
        ),
        (
            "hook_not_started",
            Occasion::Recovered,
            HookOutcome::NotStarted(spawn_failure(2)),
        ),
        ("hook_program_failed", Occasion::Late, failed),
    ] {
        let fact = Fact::HookEnded {
            agent: agent(),
            occasion,
            outcome,
            duration_ns: 12_345_678,
        };
        put(samples, name, fact);
    }
}
