//! Where agents of other hosts are listened to, and what makes them believed.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How to listen for agents elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UdpSettings {
    pub(crate) address: SocketAddr,
    /// None: in clear.
    pub(crate) keys: KeyFiles,
    pub(crate) replay_file: PathBuf,
    /// The operator vouches for this listener: recovery may act on its agents.
    pub(crate) vouched_for: bool,
}

/// Where the keys are; at least one file.
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
