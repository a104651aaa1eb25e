//! Where questions are answered, and to whom.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A place to answer at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place<T> {
    pub(crate) at: T,
    /// The operator named it: without it the observer does not start.
    pub(crate) asked_for: bool,
}

/// Where to answer.
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
    /// That many at most: the faulty ones first, then those that joined first.
    AtMost(usize),
}
