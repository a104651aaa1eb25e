//! What a fact is specific about: outcomes, reasons, signals, owners of log lines.

use std::net::IpAddr;

/// How serious a notice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Needs attention.
    Warn,
    /// Something the operator asked for does not work.
    Error,
}

/// What ended a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeCause {
    /// An operator.
    Operator,
    /// Its time is over.
    Expired,
}

/// A way on which beats come.
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

/// Why a step comes later.
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
    /// The kernel does not say who has sent its beats.
    SocketModeOnly,
    /// It is heard over UDP in clear.
    PlainUdp,
    /// It is heard over encrypted UDP.
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

/// Who gets a signal.
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

/// Who got a signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalHits {
    /// Processes that got it, the agent's own among them.
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
    /// The process it is meant for has ended, is back, or its pid belongs to another one now.
    TargetGone,
    /// It lives in another pid namespace, and the operator has not allowed that.
    CrossNamespace,
    /// `/proc` does not show to the observer's user where it lives.
    Hidden,
    /// Nothing proves which process the pid belongs to.
    Unidentified,
    /// It has the rights of another user by now, whom the user that it joined as may not signal.
    OtherUser {
        /// Whose rights it has now.
        uid: u32,
        /// As which it joined.
        joined_as: u32,
    },
    /// It lives on another host, where no signal reaches.
    Remote,
    /// The signal would hit what must not be hit.
    Protected(Protected),
    /// The system could not start the program.
    Spawn {
        /// Which program.
        program: String,
        /// Why.
        error: OsError,
    },
    /// The system could not send the signal.
    Signal(OsError),
}

/// What must not be hit by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protected {
    /// The first process of the system.
    Init,
    /// The observer.
    Observer,
    /// `/proc` does not show whose process it is.
    OwnerUnknown,
    /// The observer may not see whose process it is.
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
    /// The control group is that of everything a user runs.
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
    /// The observer stops.
    ObserverStops(Force),
}

/// What it took to end a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It went when it was told to.
    Term,
    /// It was still there when the grace was over.
    Kill,
}

/// When steps are taken besides those of a ladder.
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
    /// It was given up.
    GaveUp,
}

impl Occasion {
    /// As settings, placeholders and logs call it.
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

/// Why the rest of a hook is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithdrawReason {
    /// Recovery may not act on agents that are heard this way.
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
        /// Which program.
        program: String,
        /// How it ended.
        exit: ProgramExit,
    },
}

/// Whose agents cause a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineOwner {
    /// A user of this host, by kernel credentials.
    User(u32),
    /// Where an agent of another host sends from.
    Address(IpAddr),
    /// All that are not told apart.
    Others,
}

/// What a log line that may be left out is about.
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
    /// It has run for as long as it was asked to.
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
