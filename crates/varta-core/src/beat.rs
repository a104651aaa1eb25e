//! A beat as it is given to the tracker: what a frame says, and what is known of its sender.

use varta_vlp::Frame;

use crate::agent::{BeatOrigin, UID_UNKNOWN};
use crate::replay::Heard;

/// How a beat's sender is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentKey {
    /// A process of this host.
    Local {
        /// Pid by kernel credentials.
        pid: u32,
        /// Which process has that pid. `None`: not examined for this beat; the process that is known under
        /// the pid is meant.
        instance: Option<u64>,
        /// Which stream of the process; 0 for beats that come as datagrams.
        stream: u16,
    },
    /// A remote process. Sources never meet local agents, nor each other.
    Remote {
        /// What vouches for the pid: key and address, as a number.
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

/// A beat with everything the kernel or a key says about it.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    /// Its sender.
    pub key: AgentKey,
    /// What it says. The pid in it is not used.
    pub frame: Frame,
    /// How it came.
    pub origin: BeatOrigin,
    /// The sender's pid namespace where known.
    pub ns_inode: Option<u64>,
    /// The sender's user where known, else [`crate::agent::UID_UNKNOWN`].
    pub uid: u32,
    /// Where it stands among the datagrams of its session, if a key vouches for it: then its nonce tells no order.
    pub session: Option<Heard>,
}

impl Beat {
    /// A beat of a sender about which nothing more is known: no namespace, no user, no session.
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
