//! Why a datagram is refused: one reason per refusal, with its counter and its label.

use varta_vlp::DecodeError;

use crate::counters::Counter;

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Control data was cut short, so the credentials cannot be relied on.
    ControlTruncated,
    /// Not 32 bytes.
    WrongLength,
    /// The kernel attached no credentials.
    NoCredentials,
    /// Credential pid 0: the sender runs outside the observer's pid namespace and has no identity.
    UnseenSender,
    /// The sender's user and group are not allowed.
    ForeignUser {
        /// The sender's user.
        uid: u32,
        /// The sender's group.
        gid: u32,
    },
    /// The user of the process is unknown: the observer's user namespace does not map it, see
    /// [`crate::LocalGate::nobody`].
    UnmappedUser {
        /// The number under which all such users appear.
        uid: u32,
    },
    /// Not a valid frame.
    Decode(DecodeError),
    /// The frame names a pid that no process of this host can have.
    PidAboveMax {
        /// The claimed pid.
        claimed: u32,
    },
    /// The frame names a pid that its sender does not have in any namespace.
    PidMismatch {
        /// The claimed pid.
        claimed: u32,
    },
    /// The frame names another pid than the observer's kernel does, and its sender ended before its pid in
    /// its container could be read.
    UnverifiedClaim {
        /// The claimed pid.
        claimed: u32,
    },
    /// A process has the sender's pid, but it cannot be proved that it is the sender.
    UnprovedSender,
    /// The sender has ended, and its end was reported already.
    SenderEnded,
    /// Too many new senders wait for an examination.
    Crowded,
    /// The sender runs in another pid namespace, and the operator refuses those.
    ForeignNamespace,
    /// Too many beats.
    RateLimited(Limit),
    /// A known agent beat over another kind of transport than before.
    OriginConflict,
    /// A known agent beat from another pid namespace than before.
    NamespaceConflict,
    /// An old or repeated nonce.
    OutOfOrder,
    /// The table is full and no agent may be evicted.
    CapacityExceeded,
    /// The sender's user has as many agents as one user may have, and none of them may be evicted.
    UserShareExceeded {
        /// The user.
        uid: u32,
    },
    /// An envelope that no loaded key has sealed.
    Undecryptable,
    /// An envelope that was received before, or is too old to determine that.
    Replayed,
    /// An envelope that opens a session with a terminal frame older than the last one of its agent.
    SessionNotNewer,
    /// An envelope of one more session than its agent may have.
    TooManySessions,
    /// An envelope of a new session, and the table of sessions is full.
    SendersFull,
}

impl Refusal {
    /// The counter of this reason.
    pub const fn counter(self) -> Counter {
        match self {
            Self::ControlTruncated => Counter::ControlTruncated,
            Self::WrongLength => Counter::WrongLength,
            Self::NoCredentials => Counter::NoCredentials,
            Self::UnseenSender => Counter::UnseenSender,
            Self::ForeignUser { .. } | Self::UnmappedUser { .. } => Counter::ForeignUser,
            Self::PidAboveMax { .. } => Counter::PidAboveMax,
            Self::PidMismatch { .. } => Counter::PidMismatch,
            Self::UnverifiedClaim { .. } => Counter::UnverifiedClaim,
            Self::UnprovedSender => Counter::UnprovedSender,
            Self::SenderEnded => Counter::SenderEnded,
            Self::Crowded => Counter::Crowded,
            Self::ForeignNamespace => Counter::ForeignNamespace,
            Self::RateLimited(Limit::Agent) => Counter::RateLimitedAgent,
            Self::RateLimited(Limit::Global) => Counter::RateLimitedGlobal,
            Self::RateLimited(Limit::Newcomers) => Counter::RateLimitedNewcomers,
            Self::RateLimited(Limit::Comebacks) => Counter::RateLimitedComebacks,
            Self::RateLimited(Limit::Sessions) => Counter::RateLimitedSessions,
            Self::OriginConflict => Counter::OriginConflicts,
            Self::NamespaceConflict => Counter::NamespaceConflicts,
            Self::OutOfOrder => Counter::OutOfOrder,
            Self::CapacityExceeded => Counter::CapacityExceeded,
            Self::UserShareExceeded { .. } => Counter::UserShareExceeded,
            Self::Undecryptable => Counter::DecryptFailures,
            Self::Replayed | Self::SessionNotNewer => Counter::ReplayRefused,
            Self::TooManySessions | Self::SendersFull => Counter::SenderStateFull,
            Self::Decode(error) => match error {
                DecodeError::BadMagic => Counter::DecodeBadMagic,
                DecodeError::BadVersion => Counter::DecodeBadVersion,
                DecodeError::BadCrc { .. } => Counter::DecodeBadCrc,
                DecodeError::BadStatus(_) => Counter::DecodeBadStatus,
                DecodeError::StallOnWire => Counter::DecodeStallOnWire,
                DecodeError::BadPid(_) => Counter::DecodeBadPid,
                DecodeError::BadTimestamp(_) => Counter::DecodeBadTimestamp,
                DecodeError::BadNonce { .. } => Counter::DecodeBadNonce,
            },
        }
    }

    /// One word for logs: the reason's label value.
    pub const fn label(self) -> &'static str {
        match self {
            Self::ControlTruncated => "control_truncated",
            Self::WrongLength => "wrong_length",
            Self::NoCredentials => "no_credentials",
            Self::UnseenSender => "unseen_sender",
            Self::ForeignUser { .. } | Self::UnmappedUser { .. } => "foreign_uid",
            Self::PidAboveMax { .. } => "pid_above_max",
            Self::PidMismatch { .. } => "pid_mismatch",
            Self::UnverifiedClaim { .. } => "unverified_claim",
            Self::UnprovedSender => "unproved_sender",
            Self::SenderEnded => "sender_ended",
            Self::Crowded => "crowded",
            Self::ForeignNamespace => "foreign_namespace",
            Self::RateLimited(Limit::Agent) => "rate_per_pid",
            Self::RateLimited(Limit::Global) => "rate_global",
            Self::RateLimited(Limit::Newcomers) => "rate_newcomers",
            Self::RateLimited(Limit::Comebacks) => "rate_comebacks",
            Self::RateLimited(Limit::Sessions) => "rate_sessions",
            Self::OriginConflict => "origin_conflict",
            Self::NamespaceConflict => "namespace_conflict",
            Self::OutOfOrder => "out_of_order",
            Self::CapacityExceeded => "capacity_exceeded",
            Self::UserShareExceeded { .. } => "user_share_exceeded",
            Self::Undecryptable => "undecryptable",
            Self::Replayed => "replayed",
            Self::SessionNotNewer => "session_not_newer",
            Self::TooManySessions => "too_many_sessions",
            Self::SendersFull => "senders_full",
            Self::Decode(error) => error.kind(),
        }
    }
}

/// The limit that a beat exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The limit of the agent.
    Agent,
    /// The limit of all agents together.
    Global,
    /// The limit of first contacts.
    Newcomers,
    /// The limit of processes that join again directly after a goodbye.
    Comebacks,
    /// The limit of sessions that one agent opens.
    Sessions,
}
