//! The other end of a UDP socket.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Deref;
use std::time::Duration;

/// How long a datagram may take within this machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Listens at a port of its own.
pub(crate) struct Receiver(UdpSocket);

impl Receiver {
    pub(crate) fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"))
    }

    pub(crate) fn start_at(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind(addr).expect("a free port");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a live socket");
        Self(socket)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.local_addr().expect("a bound socket")
    }

    /// The next datagram. Does not allocate.
    pub(crate) fn datagram(&self) -> Datagram {
        let mut bytes = [0; 128];
        let length = self.0.recv(&mut bytes).expect("a datagram");
        Datagram { bytes, length }
    }
}

pub(crate) struct Datagram {
    bytes: [u8; 128],
    length: usize,
}

impl Deref for Datagram {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}
