//! Where requests are answered, and for which clients.

use std::net::SocketAddr;
use std::path::PathBuf;

/// An address to answer at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place<T> {
    pub(crate) at: T,
    /// The operator named it: without it the observer does not start.
    pub(crate) asked_for: bool,
}

/// The addresses to answer at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpSettings {
    pub(crate) tcp: Option<Place<SocketAddr>>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) control: Option<Place<PathBuf>>,
    pub(crate) agents: AgentSeries,
}

/// Which agents have series of their own (`--metrics-agents`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AgentSeries {
    /// All of them.
    All,
    /// Those that are not alive and well: late, stalled, paused, degraded, critical.
    Faulty,
    /// None.
    None,
    /// At most this many: the faulty ones first, then those that joined first.
    AtMost(usize),
}
