//! A panic hook that sends one last frame (client spec 7; feature `panic-handler`).
//!
//! When any thread panics, caught or not, the hook sends Critical with the terminal nonce and then calls the
//! previous hook. It does not run on fatal signals, `abort`, `exit` or a kill: the kernel reports those to
//! the observer.
//!
//! In the hook: no lock, no allocation, no entropy, no waiting; at most two sends, the second one in case the
//! observer was restarted since. Over a Unix socket the second send uses a new socket. All errors are
//! ignored, because a panicking process cannot handle them.

#[cfg(feature = "secure-udp")]
mod secure;
#[cfg(feature = "udp")]
mod udp;

use std::io;
use std::os::unix::net::UnixDatagram;
use std::panic::{set_hook, take_hook};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

#[cfg(feature = "secure-udp")]
pub use secure::{
    PanicInstallError, install_secure_udp, install_secure_udp_with_agent_key,
    install_secure_udp_with_master,
};
#[cfg(feature = "udp")]
pub use udp::install_udp;
use varta_vlp::{FRAME_BYTES, Frame, NONCE_TERMINAL, Status};

use crate::terminal::TERMINAL;
use crate::terminal_clock::CLOCK;
use crate::transport::connect_datagram;

/// Number of the last hook installed, the only one that sends; 0 before the first.
static LAST_INSTALLED: AtomicU64 = AtomicU64::new(0);

/// Installs the hook, for the observer listening at `path`. If one was installed before, only the new
/// one sends, and the old one keeps its socket.
///
/// # Errors
///
/// The first system call that failed, for example not found when there is no observer. The previous hook
/// stays.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install(path: impl AsRef<Path>) -> io::Result<()> {
    let path = path.as_ref();
    let line = UdsLine {
        path: path.to_owned(),
        socket: Some(connect_datagram(path)?),
    };
    install_sender(move |frame| line.send(frame));
    Ok(())
}

/// Installs the hook, even without an observer; the hook looks for the observer again when it fires.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install_lazy(path: impl AsRef<Path>) {
    let path = path.as_ref();
    let line = UdsLine {
        path: path.to_owned(),
        socket: connect_datagram(path).ok(),
    };
    install_sender(move |frame| line.send(frame));
}

/// Sets the hook that passes its frame to `send`, from now on the only one that sends.
fn install_sender(send: impl Fn(&[u8; FRAME_BYTES]) + Send + Sync + 'static) {
    // Taking the old hook and setting the new one are two steps; two installations must not mix.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _installing = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);

    CLOCK.begin();
    let number = LAST_INSTALLED.load(Ordering::Relaxed) + 1;
    let previous = take_hook();
    set_hook(Box::new(move |info| {
        if LAST_INSTALLED.load(Ordering::Acquire) == number {
            send(&terminal_frame());
        }
        previous(info);
    }));
    LAST_INSTALLED.store(number, Ordering::Release);
}

/// The pid is read here, so that the hook sends the child's pid after a fork.
fn terminal_frame() -> [u8; FRAME_BYTES] {
    let pid = std::process::id();
    let timestamp_ns = TERMINAL.at_least(CLOCK.elapsed_ns(Instant::now()));
    let mut frame = [0; FRAME_BYTES];
    Frame::new(Status::Critical, pid, timestamp_ns, NONCE_TERMINAL, 0).encode(&mut frame);
    frame
}

/// The state of a hook that sends over a Unix socket.
struct UdsLine {
    path: PathBuf,
    /// Absent if there was no observer at installation.
    socket: Option<UnixDatagram>,
}

impl UdsLine {
    fn send(&self, frame: &[u8; FRAME_BYTES]) {
        let sent = self
            .socket
            .as_ref()
            .is_some_and(|socket| socket.send(frame).is_ok());
        if !sent && let Ok(fresh) = connect_datagram(&self.path) {
            let _ = fresh.send(frame);
        }
    }
}
