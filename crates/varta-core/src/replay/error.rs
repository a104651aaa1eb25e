//! Why words are not a guard's memory.

use std::error::Error;
use std::fmt;

/// Words that cannot be a guard's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// Fewer words than needed.
    TooShort {
        /// Words needed.
        needed: usize,
        /// Words given.
        given: usize,
    },
    /// They were not written by a guard on a machine of this kind.
    NotAReplayMemory,
    /// A guard of another version wrote them.
    UnknownVersion(u8),
    /// Their seed is not that of the guard that takes them over.
    OtherSeed,
    /// The guard that takes them over has already accepted datagrams.
    InUse,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { needed, given } => write!(
                f,
                "a replay memory of {needed} words was cut short to {given}; move it away to start afresh"
            ),
            Self::NotAReplayMemory => f.write_str(
                "not a replay memory of this kind of machine; move it away to start afresh",
            ),
            Self::UnknownVersion(version) => write!(
                f,
                "replay memory of version {version}, which this program does not know; \
                 run the program that wrote it, or move it away to start afresh"
            ),
            Self::OtherSeed => f.write_str(
                "replay memory with another seed than that of its successor; give both the same",
            ),
            Self::InUse => {
                f.write_str("a replay memory must be restored before the first datagram is heard")
            }
        }
    }
}

impl Error for ReplayError {}
