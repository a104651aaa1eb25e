//! Identity and rate limits: which sender may beat, as which agent, and how often.
//!
//! Every datagram passes a gate before it reaches the tracker. Identity comes from the kernel or from a key,
//! never from a claim (law 3). The gate decides; the caller counts and reports refusals. A refused datagram
//! changes nothing at all. The order of the checks is that of the wire specification, section 10.2: datagram,
//! credentials, user, frame, claim; then [`Limits`], then the tracker.

mod bucket;
mod claim;
mod ended;
mod pending;
mod remote;
mod send_time;
mod sender;
mod ttl_cache;

use varta_vlp::{DecodeError, FRAME_BYTES, Frame};

use crate::agent::Credentials;
use crate::refusal::Refusal;

pub use bucket::{BeatLimit, LimitOptions, Limits, Rate, TokenBucket};
pub use claim::{CLAIMS_MAX, Claims, ProcessInfo};
pub use remote::{Admitted, KnownRemote, Moment, RemoteBeat, RemoteFrame, RemoteSenders};
pub use send_time::SendTimeBound;
pub use sender::{
    FoundProcess, Hold, KnownSender, LocalSenders, Room, SenderQuery, SenderReply, Verdict,
    is_successor,
};
pub use ttl_cache::TtlCache;

/// A datagram as received from the socket, not yet verified.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The bytes, possibly cut short by the receive buffer.
    pub bytes: &'a [u8],
    /// The datagram was longer than the receive buffer.
    pub truncated: bool,
    /// The kernel had more control data than the buffer could take.
    pub control_truncated: bool,
    /// Kernel credentials, if the datagram carried any.
    pub credentials: Option<Credentials>,
}

/// A frame and the credentials that came with it.
#[derive(Clone, Copy, Debug)]
pub struct AttestedFrame {
    /// The decoded frame.
    pub frame: Frame,
    /// The sender, as the kernel attests it.
    pub sender: Credentials,
}

/// The users whose processes may beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedUsers {
    /// All users.
    Everyone,
    /// These users and these groups, by the credentials of the datagram: the real user and the real group,
    /// not the supplementary ones.
    Only {
        /// User ids.
        uids: Box<[u32]>,
        /// Group ids.
        gids: Box<[u32]>,
    },
}

impl AllowedUsers {
    fn contain(&self, sender: Credentials) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only { uids, gids } => uids.contains(&sender.uid) || gids.contains(&sender.gid),
        }
    }
}

/// The identity gate of the Unix socket.
#[derive(Clone, Debug)]
pub struct LocalGate {
    /// The users whose processes may beat.
    pub users: AllowedUsers,
    /// A user id that is never admitted: the kernel's overflow id where the observer's user namespace does not map
    /// every user, because all unmapped users appear under it. `None` where every user is mapped.
    pub nobody: Option<u32>,
    /// The largest pid that this host assigns.
    pub pid_max: u32,
}

impl LocalGate {
    /// Checks datagram, credentials, user and frame, and returns the frame with its sender or the refusal.
    /// The claimed pid is not checked: see [`Self::judge_claim`].
    pub fn admit(&self, datagram: &Datagram<'_>) -> Result<AttestedFrame, Refusal> {
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
        if self.nobody == Some(sender.uid) {
            return Err(Refusal::UnmappedUser { uid: sender.uid });
        }
        if !self.lets_in(sender) {
            return Err(Refusal::ForeignUser {
                uid: sender.uid,
                gid: sender.gid,
            });
        }
        let frame = Frame::decode_attested(bytes).map_err(Refusal::Decode)?;
        if frame.pid != sender.pid && frame.pid > self.pid_max {
            return Err(Refusal::PidAboveMax { claimed: frame.pid });
        }
        Ok(AttestedFrame { frame, sender })
    }

    /// Whether the sender's user or group is allowed.
    pub fn lets_in(&self, sender: Credentials) -> bool {
        self.nobody != Some(sender.uid) && self.users.contain(sender)
    }

    /// Whether a process with the kernel's `pid` may claim the pid `claimed`. `Ok(false)`: that depends on
    /// its pids in its container, which are not known yet.
    pub fn judge_claim(pid: u32, claimed: u32, claims: Option<&Claims>) -> Result<bool, Refusal> {
        if claimed == pid {
            return Ok(true);
        }
        match claims {
            None => Ok(false),
            Some(claims) if claims.contain(claimed) => Ok(true),
            Some(_) => Err(wrong_claim(claimed)),
        }
    }
}

/// The frame in a datagram from a network. Its pid belongs to the sender's host, so the local range of pids
/// does not apply (wire spec 10.3, 10.4).
pub fn network_frame(bytes: &[u8]) -> Result<Frame, Refusal> {
    let bytes = bytes.try_into().map_err(|_| Refusal::WrongLength)?;
    Frame::decode(bytes).map_err(Refusal::Decode)
}

/// The refusal of a claim that is not the sender's. Pid 1 is reserved on the wire for the first process of a
/// container, so for any other it is no valid frame (wire spec 5).
pub fn wrong_claim(claimed: u32) -> Refusal {
    match claimed {
        1 => Refusal::Decode(DecodeError::BadPid(1)),
        claimed => Refusal::PidMismatch { claimed },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_vlp::Status;

    fn gate(uids: &[u32], gids: &[u32]) -> LocalGate {
        LocalGate {
            users: AllowedUsers::Only {
                uids: uids.into(),
                gids: gids.into(),
            },
            nobody: Some(65_534),
            pid_max: 32_768,
        }
    }

    fn open_gate() -> LocalGate {
        LocalGate {
            users: AllowedUsers::Everyone,
            ..gate(&[], &[])
        }
    }

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
        gate(&[1000], &[]).admit(datagram).unwrap_err()
    }

    #[test]
    fn a_frame_that_agrees_with_its_credentials_is_admitted() {
        let bytes = frame(42);
        let AttestedFrame { frame, sender } = gate(&[1000], &[]).admit(&datagram(&bytes)).unwrap();
        assert_eq!((frame.pid, frame.payload, sender.pid), (42, 7, 42));
    }

    #[test]
    fn a_claim_is_right_if_the_kernel_uses_the_name_too() {
        let claims = Claims::from_pids(&[42, 7, 1]);
        let judge = |claimed, claims| LocalGate::judge_claim(42, claimed, claims);
        assert_eq!(judge(42, None), Ok(true));
        assert_eq!(judge(7, Some(&claims)), Ok(true));
        assert_eq!(judge(1, Some(&claims)), Ok(true));
        assert_eq!(judge(7, None), Ok(false), "nobody knows yet");
        let lie = Refusal::PidMismatch { claimed: 43 };
        assert_eq!(judge(43, Some(&claims)), Err(lie));
        let outside = Claims::from_pids(&[42]);
        let reserved = Refusal::Decode(DecodeError::BadPid(1));
        assert_eq!(judge(1, Some(&outside)), Err(reserved));
    }

    #[test]
    fn a_claim_beyond_the_range_of_pids_is_refused_but_for_a_process_that_has_it() {
        let bytes = frame(40_000);
        let claimed = 40_000;
        assert_eq!(refusal(&datagram(&bytes)), Refusal::PidAboveMax { claimed });
        let mut lowered = datagram(&bytes);
        lowered.credentials.as_mut().unwrap().pid = claimed;
        assert!(gate(&[1000], &[]).admit(&lowered).is_ok());
    }

    #[test]
    fn credential_pid_zero_is_no_credential_whatever_the_frame_claims() {
        let bytes = frame(42);
        let mut unseen = datagram(&bytes);
        unseen.credentials.as_mut().unwrap().pid = 0;
        assert_eq!(refusal(&unseen), Refusal::UnseenSender);
        let error = open_gate().admit(&unseen).unwrap_err();
        assert_eq!(error, Refusal::UnseenSender);
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
    fn only_allowed_users_and_groups_may_beat() {
        let bytes = frame(42);
        let mut foreign = datagram(&bytes);
        let sender = foreign.credentials.as_mut().unwrap();
        (sender.uid, sender.gid) = (33, 44);
        let refused = Refusal::ForeignUser { uid: 33, gid: 44 };
        let both = |uids, gids| gate(uids, gids).admit(&foreign).map(|_| ());
        assert_eq!(both(&[1000, 44], &[1000, 33]), Err(refused));
        assert_eq!(both(&[1000, 33], &[]), Ok(()));
        assert_eq!(both(&[], &[7, 44]), Ok(()));
        assert_eq!(both(&[], &[]), Err(refused));
        assert!(open_gate().admit(&foreign).is_ok());
    }

    #[test]
    fn the_overflow_user_may_not_beat_under_any_rule() {
        let bytes = frame(42);
        let mut unmapped = datagram(&bytes);
        let sender = unmapped.credentials.as_mut().unwrap();
        (sender.uid, sender.gid) = (65_534, 44);
        let refused = Refusal::UnmappedUser { uid: 65_534 };
        for gate in [open_gate(), gate(&[65_534], &[]), gate(&[], &[44])] {
            assert_eq!(gate.admit(&unmapped).map(|_| ()), Err(refused));
            assert!(!gate.lets_in(unmapped.credentials.unwrap()));
        }
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
    fn a_frame_from_a_network_may_name_any_pid_that_is_not_reserved() {
        let claimed = |pid| network_frame(&frame(pid)).map(|frame| frame.pid);
        assert_eq!(claimed(u32::MAX), Ok(u32::MAX));
        let reserved = |pid| Err(Refusal::Decode(DecodeError::BadPid(pid)));
        assert_eq!(claimed(1), reserved(1));
        assert_eq!(claimed(0), reserved(0));
        assert_eq!(network_frame(&[0; 33]), Err(Refusal::WrongLength));
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
