//! A beat for the tracker: the decoded frame and the facts of its sender.

use varta_vlp::Frame;

use crate::agent::{BeatOrigin, UID_UNKNOWN};
use crate::replay::Heard;

/// The key of a beat's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKey {
    /// A process of this host.
    Local {
        /// Pid by kernel credentials.
        pid: u32,
        /// Which process has that pid. `None`: not examined for this beat; the beat belongs to the process
        /// known under the pid.
        instance: Option<u64>,
        /// Which stream of the process; 0 for beats that come as datagrams.
        stream: u16,
    },
    /// A remote process. Its key is separate from local agents and from other sources.
    Remote {
        /// The source: key and address, as a number.
        source: u64,
        /// Pid as claimed.
        pid: u32,
    },
}

impl AgentKey {
    /// Stream 0 of the process known under a pid.
    pub const fn local(pid: u32) -> Self {
        Self::Local {
            pid,
            instance: None,
            stream: 0,
        }
    }

    /// Stream 0 of this very process.
    pub const fn process(pid: u32, instance: u64) -> Self {
        Self::Local {
            pid,
            instance: Some(instance),
            stream: 0,
        }
    }

    /// Another stream of the same process. A remote process has one stream.
    pub const fn with_stream(self, stream: u16) -> Self {
        match self {
            Self::Local { pid, instance, .. } => Self::Local {
                pid,
                instance,
                stream,
            },
            Self::Remote { .. } => self,
        }
    }
}

/// A beat with everything that the kernel or a key attests.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    /// Its sender.
    pub key: AgentKey,
    /// The decoded frame. Its pid is not used.
    pub frame: Frame,
    /// Its origin.
    pub origin: BeatOrigin,
    /// The sender's pid namespace where known.
    pub ns_inode: Option<u64>,
    /// The sender's user where known, else [`crate::agent::UID_UNKNOWN`].
    pub uid: u32,
    /// Its position in its session, if a key authenticates it: then its nonce does not determine the order.
    pub session: Option<Heard>,
}

impl Beat {
    /// A beat without further facts: no namespace, no user, no session.
    pub const fn new(key: AgentKey, frame: Frame, origin: BeatOrigin) -> Self {
        Self {
            key,
            frame,
            origin,
            ns_inode: None,
            uid: UID_UNKNOWN,
            session: None,
        }
    }
}
