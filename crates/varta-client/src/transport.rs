//! Transports: how a frame leaves the process.
//!
//! A transport owns one socket and moves bytes. [`Varta`](crate::Varta) handles nonces, timestamps, the
//! classification of errors and the decision when to reconnect.

#[cfg(feature = "udp")]
pub(crate) mod udp;

use std::io;
#[cfg(unix)]
use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

#[cfg(feature = "udp")]
pub use udp::UdpTransport;
use varta_vlp::FRAME_BYTES;

/// Carries frames for [`Varta`](crate::Varta). Implement it to send beats another way and pass it to
/// [`Varta::from_transport`](crate::Varta::from_transport).
pub trait BeatTransport: Send + 'static {
    /// Passes one frame to the system without waiting. Any `Ok` counts as sent;
    /// [`classify_send_error`](crate::classify_send_error) maps an error.
    ///
    /// # Errors
    ///
    /// Why the frame was not sent.
    fn send(&mut self, frame: &[u8; FRAME_BYTES]) -> io::Result<usize>;

    /// Replaces the connection by a new one to the same target. On failure the old one stays.
    ///
    /// # Errors
    ///
    /// Why the new connection failed.
    fn reconnect(&mut self) -> io::Result<()>;
}

/// One unbound, connected, non-blocking Unix datagram socket.
///
/// The socket does not survive the observer it is connected to (wire spec 11), which is why the path is kept.
/// A relative path is resolved again each time; use an absolute one if the process changes its directory.
#[cfg(unix)]
#[derive(Debug)]
pub struct UdsTransport {
    path: PathBuf,
    /// `None` until an observer was found.
    socket: Option<UnixDatagram>,
}

#[cfg(unix)]
impl UdsTransport {
    /// Connects to the observer at `path`, which must exist.
    ///
    /// # Errors
    ///
    /// The first system call that failed: not found when there is no such path, connection refused when no
    /// process listens there.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self {
            path: path.to_owned(),
            socket: Some(connect_datagram(path)?),
        })
    }

    /// Connects to the observer at `path` if it exists. If not, `send` answers "not found" until a
    /// [`reconnect`](BeatTransport::reconnect) succeeds.
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self {
            path: path.to_owned(),
            socket: connect_datagram(path).ok(),
        }
    }
}

#[cfg(unix)]
impl BeatTransport for UdsTransport {
    fn send(&mut self, frame: &[u8; FRAME_BYTES]) -> io::Result<usize> {
        match &self.socket {
            Some(socket) => socket.send(frame),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn reconnect(&mut self) -> io::Result<()> {
        self.socket = Some(connect_datagram(&self.path)?);
        Ok(())
    }
}

/// A new socket to the listener at `path`. Neither waits nor allocates.
#[cfg(unix)]
pub(crate) fn connect_datagram(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}
