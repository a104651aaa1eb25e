//! The hook over UDP, encrypted (wire spec 8.1).
//!
//! Salt and socket are made at installation. Each attempt to send has a nonce of its own, derived from the
//! salt, the pid and the timestamp of the frame and a count, so neither a second panic nor a forked child
//! repeats one.

use std::net::{SocketAddr, UdpSocket};
use std::{error, fmt, io};

use varta_vlp::secure::{AgentKey, CrashSealer, Envelope, Key, SealError};

use super::install_sender;
use super::udp::send_past_refusal;
use crate::secure_transport::{ForeignKey, draw_salt};
use crate::transport::udp;

/// Installs the hook, for the observer at `addr`, under a key that all agents share. If one was installed
/// before, over any transport, only the new one sends, and the old one keeps its socket.
///
/// # Errors
///
/// [`PanicInstallError`]. The previous hook stays.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install_secure_udp(addr: SocketAddr, key: Key) -> Result<(), PanicInstallError> {
    let line = SecureLine::to(addr)?;
    install_sender(move |frame| line.send(|sealer| sealer.seal_shared(&key, frame)));
    Ok(())
}

/// As [`install_secure_udp`], under the key of the process that panics, derived in the hook from the master
/// key, which is kept for that. A forked child sends under its own key.
///
/// # Errors
///
/// [`PanicInstallError`]. The previous hook stays.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install_secure_udp_with_master(
    addr: SocketAddr,
    master: Key,
) -> Result<(), PanicInstallError> {
    let line = SecureLine::to(addr)?;
    install_sender(move |frame| {
        let key = AgentKey::derive(&master, std::process::id());
        line.send(|sealer| sealer.seal_agent(&key, frame));
    });
    Ok(())
}

/// As [`install_secure_udp_with_master`], under a key that the operator has derived for the pid of this
/// process. In a forked child the hook sends nothing.
///
/// # Errors
///
/// [`PanicInstallError`], also when the key is for another pid. The previous hook stays.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install_secure_udp_with_agent_key(
    addr: SocketAddr,
    key: AgentKey,
) -> Result<(), PanicInstallError> {
    ForeignKey::check(key.pid()).map_err(PanicInstallError::ForeignKey)?;
    let line = SecureLine::to(addr)?;
    install_sender(move |frame| line.send(|sealer| sealer.seal_agent(&key, frame)));
    Ok(())
}

/// The state of a hook that sends over UDP, except its key.
struct SecureLine {
    socket: UdpSocket,
    sealer: CrashSealer,
}

impl SecureLine {
    fn to(addr: SocketAddr) -> Result<Self, PanicInstallError> {
        let salt = draw_salt().map_err(PanicInstallError::EntropyUnavailable)?;
        Ok(Self {
            socket: udp::connect(addr).map_err(PanicInstallError::SocketBind)?,
            sealer: CrashSealer::new(salt),
        })
    }

    /// Sends the envelope of `seal`; sends nothing if there is none, for example under the key of another
    /// pid.
    fn send(&self, seal: impl Fn(&CrashSealer) -> Result<Envelope, SealError>) {
        send_past_refusal(|| {
            let envelope = seal(&self.sealer).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.socket.send(envelope.as_bytes())
        });
    }
}

/// Why no hook was installed.
#[derive(Debug)]
#[non_exhaustive]
pub enum PanicInstallError {
    /// The system returned no random bytes, and without them no hook may send.
    EntropyUnavailable(io::Error),
    /// There is no socket to the observer's address.
    SocketBind(io::Error),
    /// The agent key is not for this process.
    ForeignKey(ForeignKey),
}

impl fmt::Display for PanicInstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EntropyUnavailable(error) => write!(
                f,
                "no random bytes for the panic hook: {error}; does a sandbox forbid getrandom?"
            ),
            Self::SocketBind(error) => write!(
                f,
                "no socket for the panic hook: {error}; check the observer's address"
            ),
            Self::ForeignKey(error) => error.fmt(f),
        }
    }
}

impl error::Error for PanicInstallError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::EntropyUnavailable(error) | Self::SocketBind(error) => Some(error),
            Self::ForeignKey(_) => None,
        }
    }
}
