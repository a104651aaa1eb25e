//! What the programs get that are run for agents. When which one is run is said by the policy
//! ([`varta_core::policy`]).

use std::time::Duration;

/// Where programs are looked up, unless the operator says otherwise.
pub(crate) const CHILD_PATH: &str = "/usr/bin:/bin";

/// What children get.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Children {
    /// Start from the observer's own environment.
    pub(crate) inherit_environment: bool,
    pub(crate) environment: Vec<(String, String)>,
    /// Bytes kept of what a child writes, half from its beginning and half from its end.
    pub(crate) capture_bytes: usize,
    /// Time between the polite and the final signal.
    pub(crate) grace: Duration,
}
