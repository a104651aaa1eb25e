//! Where the observer listens for remote agents, and the keys that authenticate them.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How to listen for remote agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UdpSettings {
    pub(crate) address: SocketAddr,
    /// `None`: without encryption.
    pub(crate) keys: KeyFiles,
    pub(crate) replay_file: PathBuf,
    /// The operator vouches for this listener: recovery may act on its agents.
    pub(crate) vouched_for: bool,
}

/// The key files; at least one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyFiles {
    /// `--key-file`: one key.
    pub(crate) shared: Option<PathBuf>,
    /// `--accepted-key-file`: any number.
    pub(crate) accepted: Option<PathBuf>,
    /// `--master-key-file`: one key.
    pub(crate) master: Option<PathBuf>,
}

impl KeyFiles {
    /// No file was named.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
