//! Errors that keep the observer from starting or running. Exit code 1.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::descriptors::RUNTIME_DESCRIPTORS;
use crate::http::ListenError;
use crate::keys::KeyFileError;
use crate::replay_file::ReplayFileError;
use crate::report::event_file::EventFileError;
use crate::socket_file::BindError;

/// Why the observer does not start or cannot continue. The text names the fix.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum Failure {
    /// A resource that the runtime needs first is not available.
    Runtime(io::Error),
    /// The system refused a call that the observer cannot do without.
    System(&'static str, io::Error),
    /// The runtime directory cannot be created.
    Directory(PathBuf, io::Error),
    BeatSocket(BindError),
    Udp(SocketAddr, io::Error),
    Keys(KeyFileError),
    ReplayFile(ReplayFileError),
    Listeners(ListenError),
    EventFile(EventFileError),
    /// The beat path did not end when it was requested to.
    BeatPathHangs,
}

impl Failure {
    /// For `map_err`: the system refused this.
    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::System(what, error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runtime(error) => write!(
                f,
                "cannot start: {error}; what it takes first is room for {RUNTIME_DESCRIPTORS} more open files (ulimit -n, \
                 LimitNOFILE=), epoll, and socket pairs"
            ),
            Self::System(what, error) => write!(f, "{what}: {error}"),
            Self::Directory(path, error) => write!(
                f,
                "cannot create {}: {error}; create it or say where to listen with --socket",
                path.display()
            ),
            Self::BeatSocket(error) => error.fmt(f),
            Self::Udp(address, error) => {
                write!(f, "cannot listen on UDP {address} (--udp-port): {error}")
            }
            Self::Keys(error) => error.fmt(f),
            Self::ReplayFile(error) => error.fmt(f),
            Self::Listeners(error) => error.fmt(f),
            Self::EventFile(error) => error.fmt(f),
            Self::BeatPathHangs => f.write_str(
                "the beat path hangs: it did not end within 2 s and was not waited for any longer; its socket \
                 file is left behind, the next observer takes it over",
            ),
        }
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Runtime(error)
            | Self::System(_, error)
            | Self::Directory(_, error)
            | Self::Udp(_, error) => Some(error),
            Self::BeatSocket(error) => error.source(),
            Self::Keys(error) => error.source(),
            Self::ReplayFile(error) => error.source(),
            Self::Listeners(error) => error.source(),
            Self::EventFile(error) => error.source(),
            Self::BeatPathHangs => None,
        }
    }
}
