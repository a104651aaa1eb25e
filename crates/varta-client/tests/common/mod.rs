//! An observer small enough for tests: a bound socket in a directory of its own.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use varta_client::Frame;

/// A fresh directory, removed at the end of the test.
pub(crate) struct TempDir(tempfile::TempDir);

impl TempDir {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a fresh directory"))
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.0.path().join("varta.sock")
    }
}

/// Listens at a path, replacing what a previous observer left there.
pub(crate) struct Observer(UnixDatagram);

impl Observer {
    pub(crate) fn start(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("a free path");
        socket.set_nonblocking(true).expect("a live socket");
        Self(socket)
    }

    /// The queued frames. A sent frame is queued at once, so the test does not wait.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> {
        std::iter::from_fn(|| {
            let mut datagram = [0; 64];
            let length = self.0.recv(&mut datagram).ok()?;
            let wire = datagram[..length].try_into().expect("32 bytes");
            Some(Frame::decode(wire).expect("a legal frame"))
        })
    }
}
