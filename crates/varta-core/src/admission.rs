//! Who may speak: the gate every local datagram passes before the tracker hears of it.
//!
//! Identity comes from the kernel, never from a claim (law 3). The gate decides; counting and
//! reporting a refusal is the caller's business. A refused datagram changes nothing at all.
//! The order of the checks is that of the wire specification, section 10.2.

use varta_vlp::{DecodeError, FRAME_BYTES, Frame};

use crate::counters::Counter;

/// What the kernel says about the sender of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id in the observer's namespace; 0 when the sender is not visible from there.
    pub pid: u32,
    /// Real user id.
    pub uid: u32,
    /// Real group id.
    pub gid: u32,
}

/// A datagram as it came from the socket, before anything in it is believed.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The bytes, possibly cut short by the receive buffer.
    pub bytes: &'a [u8],
    /// The datagram was longer than the receive buffer.
    pub truncated: bool,
    /// The kernel had more control data than it could hand over.
    pub control_truncated: bool,
    /// Kernel credentials, if any came along.
    pub credentials: Option<Credentials>,
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Control data was cut short, so the credentials cannot be relied on.
    ControlTruncated,
    /// Not 32 bytes.
    WrongLength,
    /// The kernel attached no credentials.
    NoCredentials,
    /// Credential pid 0: the sender lives outside the observer's pid namespace and has no identity.
    UnseenSender,
    /// The sender's user may not speak here.
    ForeignUid(u32),
    /// Not a valid frame.
    Decode(DecodeError),
    /// The frame names another pid than the kernel does.
    PidMismatch {
        /// What the frame claims.
        claimed: u32,
    },
    /// A known agent was heard over another kind of transport than before.
    OriginConflict,
    /// A known agent was heard from another pid namespace than before.
    NamespaceConflict,
    /// An old or repeated nonce.
    OutOfOrder,
    /// The table is full and nobody may be evicted.
    CapacityExceeded,
}

impl Refusal {
    /// The counter of this reason.
    pub const fn counter(self) -> Counter {
        match self {
            Self::ControlTruncated => Counter::ControlTruncated,
            Self::WrongLength => Counter::WrongLength,
            Self::NoCredentials => Counter::NoCredentials,
            Self::UnseenSender => Counter::UnseenSender,
            Self::ForeignUid(_) => Counter::ForeignUid,
            Self::PidMismatch { .. } => Counter::PidMismatch,
            Self::OriginConflict => Counter::OriginConflicts,
            Self::NamespaceConflict => Counter::NamespaceConflicts,
            Self::OutOfOrder => Counter::OutOfOrder,
            Self::CapacityExceeded => Counter::CapacityExceeded,
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
            Self::ForeignUid(_) => "foreign_uid",
            Self::PidMismatch { .. } => "pid_mismatch",
            Self::OriginConflict => "origin_conflict",
            Self::NamespaceConflict => "namespace_conflict",
            Self::OutOfOrder => "out_of_order",
            Self::CapacityExceeded => "capacity_exceeded",
            Self::Decode(error) => error.kind(),
        }
    }
}

/// The identity gate of the Unix socket.
#[derive(Clone, Copy, Debug)]
pub struct LocalGate {
    /// The only user that may speak; `None` lets every user speak.
    pub only_uid: Option<u32>,
}

impl LocalGate {
    /// Says who is speaking and what, or why not.
    pub fn admit(&self, datagram: &Datagram<'_>) -> Result<(Frame, Credentials), Refusal> {
        if datagram.control_truncated {
            return Err(Refusal::ControlTruncated);
        }
        let Ok(bytes) = <&[u8; FRAME_BYTES]>::try_from(datagram.bytes) else {
            return Err(Refusal::WrongLength);
        };
        if datagram.truncated {
            return Err(Refusal::WrongLength);
        }
        let sender = datagram.credentials.ok_or(Refusal::NoCredentials)?;
        if sender.pid == 0 {
            return Err(Refusal::UnseenSender);
        }
        if self.only_uid.is_some_and(|uid| uid != sender.uid) {
            return Err(Refusal::ForeignUid(sender.uid));
        }
        let frame = Frame::decode(bytes).map_err(Refusal::Decode)?;
        if frame.pid != sender.pid {
            return Err(Refusal::PidMismatch { claimed: frame.pid });
        }
        Ok((frame, sender))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_vlp::Status;

    const GATE: LocalGate = LocalGate {
        only_uid: Some(1000),
    };

    fn frame(pid: u32) -> [u8; 32] {
        let mut bytes = [0; 32];
        Frame::new(Status::Ok, pid, 5, 1, 7).encode(&mut bytes);
        bytes
    }

    fn datagram(bytes: &[u8]) -> Datagram<'_> {
        Datagram {
            bytes,
            truncated: false,
            control_truncated: false,
            credentials: Some(Credentials {
                pid: 42,
                uid: 1000,
                gid: 1000,
            }),
        }
    }

    fn refusal(datagram: &Datagram<'_>) -> Refusal {
        GATE.admit(datagram).unwrap_err()
    }

    #[test]
    fn a_frame_that_agrees_with_its_credentials_is_admitted() {
        let bytes = frame(42);
        let (frame, sender) = GATE.admit(&datagram(&bytes)).unwrap();
        assert_eq!((frame.pid, frame.payload, sender.pid), (42, 7, 42));
    }

    #[test]
    fn a_claim_about_another_pid_is_refused() {
        let bytes = frame(43);
        assert_eq!(
            refusal(&datagram(&bytes)),
            Refusal::PidMismatch { claimed: 43 }
        );
    }

    #[test]
    fn credential_pid_zero_is_no_credential_whatever_the_frame_claims() {
        let bytes = frame(42);
        let mut unseen = datagram(&bytes);
        unseen.credentials.as_mut().unwrap().pid = 0;
        assert_eq!(refusal(&unseen), Refusal::UnseenSender);
        let any = LocalGate { only_uid: None };
        assert_eq!(any.admit(&unseen).unwrap_err(), Refusal::UnseenSender);
    }

    #[test]
    fn missing_credentials_are_refused() {
        let bytes = frame(42);
        let anonymous = Datagram {
            credentials: None,
            ..datagram(&bytes)
        };
        assert_eq!(refusal(&anonymous), Refusal::NoCredentials);
    }

    #[test]
    fn another_user_is_refused_unless_every_user_may_speak() {
        let bytes = frame(42);
        let mut foreign = datagram(&bytes);
        foreign.credentials.as_mut().unwrap().uid = 0;
        assert_eq!(refusal(&foreign), Refusal::ForeignUid(0));
        assert!(LocalGate { only_uid: None }.admit(&foreign).is_ok());
    }

    #[test]
    fn only_thirty_two_bytes_are_a_frame() {
        let bytes = frame(42);
        let mut long = bytes.to_vec();
        long.push(0);
        for wrong in [&[][..], &bytes[..31], &long] {
            assert_eq!(
                refusal(&datagram(wrong)),
                Refusal::WrongLength,
                "{}",
                wrong.len()
            );
        }
        let cut = Datagram {
            truncated: true,
            ..datagram(&bytes)
        };
        assert_eq!(
            refusal(&cut),
            Refusal::WrongLength,
            "longer than the buffer"
        );
    }

    #[test]
    fn truncated_control_data_is_named_before_anything_else() {
        let cut = Datagram {
            control_truncated: true,
            ..datagram(&[])
        };
        assert_eq!(refusal(&cut), Refusal::ControlTruncated);
    }

    #[test]
    fn an_invalid_frame_is_refused_with_its_own_reason() {
        let mut bytes = frame(42);
        bytes[0] = 0;
        assert_eq!(
            refusal(&datagram(&bytes)),
            Refusal::Decode(DecodeError::BadMagic)
        );
    }
}
