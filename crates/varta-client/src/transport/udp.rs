//! One connected UDP socket (wire spec 11).
//!
//! Unlike a Unix socket it survives the observer at the other end. An error of a send concerns an earlier
//! datagram: "connection refused" means that no process received that one, and that this one was not sent.

use std::io;
use std::mem::replace;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use varta_vlp::FRAME_BYTES;

use super::BeatTransport;

/// Sends frames in clear over one connected, non-blocking UDP socket.
///
/// For trusted networks only: any host in the network can read such frames and forge them.
#[derive(Debug)]
pub struct UdpTransport {
    target: SocketAddr,
    socket: UdpSocket,
    refusals: Refusals,
}

impl UdpTransport {
    /// A socket for the observer at `target`, which may start later.
    ///
    /// # Errors
    ///
    /// The first system call that failed, for example because there is no route or no such family of
    /// addresses.
    pub fn connect(target: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            target,
            socket: connect(target)?,
            refusals: Refusals::default(),
        })
    }
}

impl BeatTransport for UdpTransport {
    fn send(&mut self, frame: &[u8; FRAME_BYTES]) -> io::Result<usize> {
        let first = self.socket.send(frame);
        if self.refusals.ask_for_another(&first) {
            self.socket.send(frame)
        } else {
            first
        }
    }

    fn reconnect(&mut self) -> io::Result<()> {
        *self = Self::connect(self.target)?;
        Ok(())
    }
}

/// A new socket that sends to `target` only. Neither waits nor allocates.
pub(crate) fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let any_address = match target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any_address, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    Ok(socket)
}

/// Whether an earlier datagram, not this one, was refused.
pub(crate) fn is_refusal(sent: &io::Result<usize>) -> bool {
    matches!(sent, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Distinguishes a refusal caused by a restart of the observer from those of a port without a listener: one
/// more attempt resolves the former, the agent must see the latter.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Whether the last first attempt with a conclusive result returned a refusal.
    was_refused: bool,
}

impl Refusals {
    /// Records the result of the first attempt of a send, and returns whether to make one more now.
    pub(crate) fn ask_for_another(&mut self, first: &io::Result<usize>) -> bool {
        if first.is_ok() {
            self.was_refused = false;
        }
        is_refusal(first) && !replace(&mut self.was_refused, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: Result<usize, io::ErrorKind> = Err(io::ErrorKind::ConnectionRefused);
    const QUEUE_FULL: Result<usize, io::ErrorKind> = Err(io::ErrorKind::WouldBlock);

    /// The first attempts that are followed by another one.
    fn answers<const N: usize>(firsts: [Result<usize, io::ErrorKind>; N]) -> [bool; N] {
        let mut refusals = Refusals::default();
        firsts.map(|first| refusals.ask_for_another(&first.map_err(io::Error::from)))
    }

    #[test]
    fn the_first_refusal_is_answered_by_another_attempt_and_the_next_ones_are_not() {
        let firsts = [REFUSED, REFUSED, REFUSED, Ok(32), REFUSED, REFUSED];
        assert_eq!(answers(firsts), [true, false, false, false, true, false]);
    }

    #[test]
    fn other_errors_are_not_answered_and_end_no_run_of_refusals() {
        let firsts = [QUEUE_FULL, REFUSED, QUEUE_FULL, REFUSED];
        assert_eq!(answers(firsts), [false, true, false, false]);
    }
}
