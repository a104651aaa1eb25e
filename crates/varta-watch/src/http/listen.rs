//! Opens the listeners, or reports why one cannot be opened.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::settings::SocketAccess;
use crate::settings::http::Place;
use crate::socket_file::{BindError, BoundSocket, Purpose};
use crate::token::TokenError;

/// The control socket is for the observer's own user, and for root.
const CONTROL_ACCESS: SocketAccess = SocketAccess {
    mode: 0o600,
    gid: None,
};

/// Why a listener cannot be opened. The text names the address and the fix.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum ListenError {
    Token(TokenError),
    Tcp(SocketAddr, io::Error),
    Control(BindError),
    /// The control socket is bound and cannot be used.
    ControlSocket(PathBuf, io::Error),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(error) => error.fmt(f),
            Self::Tcp(address, error) => write!(
                f,
                "cannot answer on {address}: {error}; choose another address with --http, or off"
            ),
            Self::Control(error) => error.fmt(f),
            Self::ControlSocket(path, error) => {
                write!(f, "cannot listen on {}: {error}", path.display())
            }
        }
    }
}

impl Error for ListenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Token(error) => error.source(),
            Self::Control(error) => error.source(),
            Self::Tcp(_, error) | Self::ControlSocket(_, error) => Some(error),
        }
    }
}

/// Opens a listener; a default one that cannot be opened costs only a notice.
pub(super) fn opened<T, L>(
    place: Option<&Place<T>>,
    notices: &mut Vec<String>,
    open: impl FnOnce(&T) -> Result<L, ListenError>,
) -> Result<Option<L>, ListenError> {
    let Some(Place { at, asked_for }) = place else {
        return Ok(None);
    };
    match open(at) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if *asked_for => Err(error),
        Err(error) => {
            notices.push(error.to_string());
            Ok(None)
        }
    }
}

pub(super) fn open_tcp(address: &SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    open().map_err(|error| ListenError::Tcp(*address, error))
}

pub(super) fn open_control(path: &Path) -> Result<(BoundSocket, UnixListener), ListenError> {
    let bound = BoundSocket::bind(path, CONTROL_ACCESS, Purpose::Questions)
        .map_err(ListenError::Control)?;
    let socket = bound.as_fd().try_clone_to_owned();
    let socket = socket.map_err(|error| ListenError::ControlSocket(path.to_owned(), error))?;
    Ok((bound, socket.into()))
}
