//! The hook over UDP, in clear.

use std::io;
use std::net::SocketAddr;

use super::install_sender;
use crate::transport::udp::{connect, is_refusal};

/// Installs the hook, for the observer at `addr`, which may start later. If one was installed before, over
/// any transport, only the new one sends, and the old one keeps its socket.
///
/// # Errors
///
/// The first system call that failed, for example because there is no route. The previous hook stays.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install_udp(addr: SocketAddr) -> io::Result<()> {
    let socket = connect(addr)?;
    install_sender(move |frame| send_past_refusal(|| socket.send(frame)));
    Ok(())
}

/// Makes one attempt, and another if the first returned the refusal of an earlier datagram.
pub(super) fn send_past_refusal(attempt: impl Fn() -> io::Result<usize>) {
    if is_refusal(&attempt()) {
        let _ = attempt();
    }
}
