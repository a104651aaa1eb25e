//! An observer small enough for tests: a bound socket in a directory of its own.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use varta_client::Frame;

/// A fresh directory, removed at the end of the test.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "varta-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a fresh directory");
        Self(path)
    }

    pub(crate) fn socket_path(&self) -> PathBuf {
        self.0.join("varta.sock")
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
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

    /// The frames that are there. What the kernel took is there at once, so nobody has to wait.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Frame> {
        std::iter::from_fn(|| {
            let mut datagram = [0; 64];
            let length = self.0.recv(&mut datagram).ok()?;
            let wire = datagram[..length].try_into().expect("32 bytes");
            Some(Frame::decode(wire).expect("a legal frame"))
        })
    }
}
