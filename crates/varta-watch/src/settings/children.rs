//! Settings of the programs that are run for agents. The policy ([`varta_core::policy`]) decides which program is run
//! when.

use std::time::Duration;

/// The search path of programs, unless the operator sets another.
pub(crate) const CHILD_PATH: &str = "/usr/bin:/bin";

/// Settings of children.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Children {
    /// Start from the observer's own environment.
    pub(crate) inherit_environment: bool,
    pub(crate) environment: Vec<(String, String)>,
    /// Bytes kept of what a child writes, half from its beginning and half from its end.
    pub(crate) capture_bytes: usize,
    /// Time between TERM and KILL.
    pub(crate) grace: Duration,
}
