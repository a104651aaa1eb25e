//! The outcome of a beat, and the mapping of system errors to it (client spec 3.1, 3.2).
//!
//! Plain values of eight bytes: reporting an outcome never allocates.

use std::{error, fmt, io};

/// The outcome of one beat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a beat that did not go out is only told here"]
pub enum BeatOutcome {
    /// The local kernel accepted the frame. That does not prove that the observer received it.
    Sent,
    /// The frame is lost for a temporary reason; the next beat may succeed.
    Dropped(DropReason),
    /// The frame is lost for a reason that needs attention: permissions, arguments, limits.
    Failed(BeatError),
}

/// Why a frame was dropped. The texts are part of the contract with tools (client spec 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The observer, or the network, is too slow.
    KernelQueueFull,
    /// No process listens at the address.
    NoObserver,
    /// The process that listened at the address has gone.
    PeerGone,
    /// A device is full.
    StorageFull,
}

/// [`BeatError::errno`] of an error that did not come from the operating system.
pub const UNKNOWN_ERRNO: i32 = 0;

/// An error of the transport, stored as two numbers so that it can be copied and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeatError {
    /// The error number of the operating system, or [`UNKNOWN_ERRNO`].
    pub errno: i32,
    /// The standard library's class of the error.
    pub kind: io::ErrorKind,
}

// Outcomes are returned in a register and stored by the million in rings of metrics.
const _: () = assert!(size_of::<BeatOutcome>() == 8);
const _: () = assert!(size_of::<BeatError>() == 8);
const _: () = assert!(size_of::<DropReason>() == 1);

/// "No buffer space", which the standard library has no class for.
const ENOBUFS: i32 = if cfg!(any(target_os = "linux", target_os = "android")) {
    105
} else if cfg!(any(target_os = "solaris", target_os = "illumos")) {
    132
} else {
    55 // the BSD family and macOS
};

/// The error of the BSD family and macOS on a datagram socket whose peer has gone, where Linux returns "not
/// connected".
const EDESTADDRREQ: Option<i32> = if cfg!(any(
    target_vendor = "apple",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd",
    target_os = "dragonfly"
)) {
    Some(39)
} else {
    None
};

/// The outcome for an error of [`send`](crate::BeatTransport::send) (client spec 3.2). Public for custom
/// transports that map errors the same way.
pub fn classify_send_error(error: &io::Error) -> BeatOutcome {
    use io::ErrorKind;

    let errno = error.raw_os_error();
    if errno == Some(ENOBUFS) {
        return BeatOutcome::Dropped(DropReason::KernelQueueFull);
    }
    if errno.is_some() && errno == EDESTADDRREQ {
        return BeatOutcome::Dropped(DropReason::PeerGone);
    }
    match error.kind() {
        ErrorKind::WouldBlock => BeatOutcome::Dropped(DropReason::KernelQueueFull),
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
            BeatOutcome::Dropped(DropReason::NoObserver)
        }
        ErrorKind::ConnectionReset | ErrorKind::NotConnected | ErrorKind::BrokenPipe => {
            BeatOutcome::Dropped(DropReason::PeerGone)
        }
        ErrorKind::StorageFull => BeatOutcome::Dropped(DropReason::StorageFull),
        _ => BeatOutcome::Failed(BeatError::from_io(error)),
    }
}

impl BeatError {
    /// Keeps the number and the class of `error`; a custom message is lost.
    pub fn from_io(error: &io::Error) -> Self {
        Self {
            errno: error.raw_os_error().unwrap_or(UNKNOWN_ERRNO),
            kind: error.kind(),
        }
    }

    /// The error as the standard library writes it. Does not allocate.
    pub fn to_io_error(self) -> io::Error {
        if self.errno == UNKNOWN_ERRNO {
            self.kind.into()
        } else {
            io::Error::from_raw_os_error(self.errno)
        }
    }
}

impl DropReason {
    /// The contractual text, for example `no observer`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KernelQueueFull => "kernel queue full",
            Self::NoObserver => "no observer",
            Self::PeerGone => "peer gone",
            Self::StorageFull => "storage full",
        }
    }
}

impl fmt::Display for BeatOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent => f.write_str("sent"),
            Self::Dropped(reason) => write!(f, "dropped: {reason}"),
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for BeatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "send failed: {:?}", self.kind)?;
        match self.errno {
            UNKNOWN_ERRNO => Ok(()),
            errno => write!(f, " (errno={errno})"),
        }
    }
}

impl error::Error for BeatError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_errors_map_as_the_contract_says() {
        use DropReason::{KernelQueueFull, NoObserver, PeerGone, StorageFull};

        for (errno, reason) in [
            (105, KernelQueueFull), // ENOBUFS
            (11, KernelQueueFull),  // EAGAIN
            (111, NoObserver),      // ECONNREFUSED
            (2, NoObserver),        // ENOENT
            (104, PeerGone),        // ECONNRESET
            (107, PeerGone),        // ENOTCONN
            (32, PeerGone),         // EPIPE
            (28, StorageFull),      // ENOSPC
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(
                classify_send_error(&error),
                BeatOutcome::Dropped(reason),
                "errno {errno}"
            );
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_other_linux_error_is_a_failure_that_keeps_its_number() {
        // EPERM, EINTR, EBADF, EACCES, EMSGSIZE, ENETUNREACH, and two that mean something else on
        // other systems: 55 and 132.
        for errno in [1, 4, 9, 13, 90, 101, 55, 132] {
            let error = io::Error::from_raw_os_error(errno);
            let BeatOutcome::Failed(failure) = classify_send_error(&error) else {
                panic!("errno {errno} is no failure");
            };
            assert_eq!(
                failure,
                BeatError {
                    errno,
                    kind: error.kind()
                }
            );
        }
    }

    #[test]
    fn an_error_survives_the_way_there_and_back() {
        for error in [
            io::Error::from_raw_os_error(13),
            io::ErrorKind::InvalidInput.into(),
        ] {
            let kept = BeatError::from_io(&error);
            assert_eq!(BeatError::from_io(&kept.to_io_error()), kept);
        }
    }

    #[test]
    fn texts_are_those_tools_match_on() {
        let failed = |errno| {
            let kind = io::ErrorKind::PermissionDenied;
            BeatOutcome::Failed(BeatError { errno, kind }).to_string()
        };
        let dropped = |reason| BeatOutcome::Dropped(reason).to_string();

        assert_eq!(BeatOutcome::Sent.to_string(), "sent");
        assert_eq!(
            dropped(DropReason::KernelQueueFull),
            "dropped: kernel queue full"
        );
        assert_eq!(dropped(DropReason::NoObserver), "dropped: no observer");
        assert_eq!(dropped(DropReason::PeerGone), "dropped: peer gone");
        assert_eq!(dropped(DropReason::StorageFull), "dropped: storage full");
        assert_eq!(
            failed(13),
            "failed: send failed: PermissionDenied (errno=13)"
        );
        assert_eq!(
            failed(UNKNOWN_ERRNO),
            "failed: send failed: PermissionDenied"
        );
    }
}
