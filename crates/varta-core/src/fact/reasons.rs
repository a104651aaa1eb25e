//! The details of facts: outcomes, reasons, signals, owners of log lines.

use std::net::IpAddr;

/// How serious a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Needs attention.
    Warn,
    /// A feature that the operator requested does not work.
    Error,
}

/// What ended a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeCause {
    /// An operator.
    Operator,
    /// Its time elapsed.
    Expired,
}

/// A transport of beats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The Unix socket.
    Unix,
    /// The UDP socket.
    Udp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Unix, Self::Udp];
}

/// Why a step is deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeferReason {
    /// The last action on this agent is too recent.
    TooRecent,
    /// The last action on this agent still runs.
    StillActing,
}

/// Why recovery may not act on an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UntrustedOrigin {
    /// The kernel does not attest the sender of its beats.
    SocketModeOnly,
    /// It beats over UDP in clear.
    PlainUdp,
    /// It beats over encrypted UDP.
    SecureUdp,
}

/// A signal that a step can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Signal {
    /// `SIGHUP`.
    Hup = 1,
    /// `SIGINT`.
    Int = 2,
    /// `SIGQUIT`.
    Quit = 3,
    /// `SIGABRT`.
    Abrt = 6,
    /// `SIGKILL`.
    Kill = 9,
    /// `SIGUSR1`.
    Usr1 = 10,
    /// `SIGUSR2`.
    Usr2 = 12,
    /// `SIGALRM`.
    Alrm = 14,
    /// `SIGTERM`.
    Term = 15,
    /// `SIGCONT`.
    Cont = 18,
    /// `SIGSTOP`.
    Stop = 19,
    /// `SIGWINCH`.
    Winch = 28,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Term,
        Self::Kill,
        Self::Int,
        Self::Hup,
        Self::Quit,
        Self::Abrt,
        Self::Usr1,
        Self::Usr2,
        Self::Cont,
        Self::Stop,
        Self::Alrm,
        Self::Winch,
    ];

    /// Its name without `SIG`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Int => "INT",
            Self::Quit => "QUIT",
            Self::Abrt => "ABRT",
            Self::Kill => "KILL",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
            Self::Alrm => "ALRM",
            Self::Term => "TERM",
            Self::Cont => "CONT",
            Self::Stop => "STOP",
            Self::Winch => "WINCH",
        }
    }

    /// Its number on Linux.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// The target of a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SignalTarget {
    /// The agent's process.
    #[default]
    Process,
    /// Its process group.
    Group,
    /// Everything in its control group.
    Cgroup,
}

/// The processes that received a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalHits {
    /// Processes that received it, including the agent's own.
    pub signalled: u64,
    /// Processes of the group that the agent or the observer may not signal.
    pub spared: u64,
}

/// An error of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsError {
    /// Its number, if it has one.
    pub errno: Option<i32>,
    /// Its text.
    pub text: String,
}

/// Why an action did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// The target process has ended, beats again, or its pid belongs to another process now.
    TargetGone,
    /// It runs in another pid namespace, and the operator has not allowed that.
    CrossNamespace,
    /// `/proc` does not show its pid namespace to the observer's user.
    Hidden,
    /// The process of the pid cannot be proved.
    Unidentified,
    /// It now has the rights of another user, which the user that it joined as may not signal.
    OtherUser {
        /// The user whose rights it has now.
        uid: u32,
        /// The user that it joined as.
        joined_as: u32,
    },
    /// It runs on another host, out of reach of signals.
    Remote,
    /// The signal would reach a protected process.
    Protected(Protected),
    /// The system could not start the program.
    Spawn {
        /// The program.
        program: String,
        /// Why.
        error: OsError,
    },
    /// The system could not send the signal.
    Signal(OsError),
}

/// Why a signal must not be sent to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protected {
    /// The first process of the system.
    Init,
    /// The observer.
    Observer,
    /// `/proc` does not show the owner of the process.
    OwnerUnknown,
    /// The observer may not see the owner of the process.
    OwnerHidden,
    /// The observer may not see the process group.
    GroupHidden,
    /// The observer is in the process group.
    ObserverInGroup,
    /// The first process of the system is in the process group.
    InitInGroup,
    /// The observer is in the control group.
    ObserverInCgroup,
    /// The first process of the system is in the control group.
    InitInCgroup,
    /// A process outside of the observer's pid namespace is in the control group.
    UnseenInCgroup,
    /// The first process of a container is in the control group.
    ContainerInitInCgroup,
    /// The control group is the root.
    RootCgroup,
    /// The control group is a slice.
    Slice,
    /// The control group is a login session.
    LoginSession,
    /// The control group contains all processes of a user.
    UserManager,
    /// The control group is that of a service manager.
    ServiceManager,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramExit {
    /// Its wait status as the kernel encodes it, or why it could not be waited for.
    pub status: Result<i32, OsError>,
    /// What ended it.
    pub cause: ExitCause,
}

impl ProgramExit {
    /// It ended by itself with exit code 0.
    pub fn is_success(&self) -> bool {
        self.cause == ExitCause::Itself && self.status == Ok(0)
    }
}

/// What ended a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// It ended by itself.
    Itself,
    /// Its time was up.
    TimedOut(Force),
    /// The observer stopped.
    ObserverStops(Force),
}

/// How a program was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It ended after the first signal.
    Term,
    /// It still ran at the end of the grace period.
    Kill,
}

/// The occasion of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Occasion {
    /// The agent is silent beyond its soft tier.
    Late,
    /// It reports that it is critical.
    Critical,
    /// It died.
    Exit,
    /// It is back.
    Recovered,
    /// Recovery gave up on it.
    GaveUp,
}

impl Occasion {
    /// Its name in settings, placeholders and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Critical => "critical",
            Self::Exit => "exit",
            Self::Recovered => "recovered",
            Self::GaveUp => "gave-up",
        }
    }
}

/// Why the rest of a hook is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithdrawReason {
    /// Recovery may not act on agents with this origin.
    UntrustedOrigin,
    /// The operator has changed what recovery may do.
    ModeChanged,
    /// The agent is paused.
    Paused,
    /// The agent is back.
    Returned,
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// All of its steps were taken.
    Done {
        /// How many.
        steps: u64,
    },
    /// A step could not be taken.
    NotStarted(StartFailure),
    /// A program of it failed.
    ProgramFailed {
        /// The program.
        program: String,
        /// How it ended.
        exit: ProgramExit,
    },
}

/// The owner of the agents that cause a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineOwner {
    /// A user of this host, by kernel credentials.
    User(u32),
    /// The address of a remote agent.
    Address(IpAddr),
    /// All other agents together.
    Others,
}

/// The kind of a log line that may be suppressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LineKind {
    /// [`Fact::Joined`](super::Fact::Joined).
    Join,
    /// [`Fact::Exited`](super::Fact::Exited).
    Exit,
    /// [`Fact::Critical`](super::Fact::Critical).
    Critical,
    /// [`Fact::Late`](super::Fact::Late).
    Late,
    /// A hook that did not fail.
    Hook,
}

/// Why the observer stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// It ran for the requested time.
    TimeIsUp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_succeeded_only_if_it_ended_by_itself_with_code_0() {
        let success = |status, cause| ProgramExit { status, cause }.is_success();
        assert!(success(Ok(0), ExitCause::Itself));
        assert!(!success(Ok(256), ExitCause::Itself));
        assert!(!success(Ok(0), ExitCause::TimedOut(Force::Term)));
    }
}
