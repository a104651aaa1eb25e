//! The content of an envelope, as an observer opens it.

use varta_client::{AgentKey, Frame, Key};
use varta_vlp::secure::{MasterEnvelope, SharedEnvelope};

/// The shared key of these tests, and their master key.
pub(crate) fn key() -> Key {
    Key::from_bytes([0x42; 32])
}

pub(crate) struct Opened {
    pub(crate) prefix: [u8; 8],
    pub(crate) counter: u32,
    pub(crate) frame: Frame,
}

pub(crate) fn open_shared(datagram: &[u8]) -> Opened {
    let envelope = SharedEnvelope::from_datagram(datagram).expect("60 bytes");
    let wire = envelope.open(&key()).expect("sealed under the shared key");
    Opened {
        prefix: envelope.prefix(),
        counter: envelope.counter(),
        frame: Frame::decode(&wire).expect("a legal frame"),
    }
}

/// Opens under the key of the pid that the envelope names, as the holder of the master key does.
pub(crate) fn open_by_master(datagram: &[u8]) -> Opened {
    let envelope = MasterEnvelope::from_datagram(datagram).expect("64 bytes");
    let agent_key = AgentKey::derive(&key(), envelope.pid());
    let wire = envelope.open(&agent_key).expect("sealed under its key");
    Opened {
        prefix: envelope.prefix(),
        counter: envelope.counter(),
        frame: Frame::decode(&wire).expect("a legal frame"),
    }
}
