//! The hook over UDP, in clear.

use std::io;
use std::net::SocketAddr;

use super::install_sender;
use crate::transport::udp::{connect, is_refusal};

/// Installs the hook, for the observer at `addr`, whether it is there yet or not. If one was installed
/// before, over whatever transport, only the new one sends, and the old one keeps its socket.
///
/// # Errors
///
/// The first system call that failed, for example because there is no route. The hook that was there
/// stays.
///
/// # Panics
///
/// When called from a panicking thread, as the standard library does.
pub fn install_udp(addr: SocketAddr) -> io::Result<()> {
    let socket = connect(addr)?;
    install_sender(move |frame| send_past_refusal(|| socket.send(frame)));
    Ok(())
}

/// Makes one attempt, and another if the first was told of an earlier datagram's refusal.
pub(super) fn send_past_refusal(attempt: impl Fn() -> io::Result<usize>) {
    if is_refusal(&attempt()) {
        let _ = attempt();
    }
}
