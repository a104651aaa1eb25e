//! Opens envelopes: finds the key, if any, that sealed a datagram.
//!
//! A datagram costs as many trials as its length and the loaded keys require, whichever key fits, so the time does
//! not reveal which key it was (wire spec 10.4). The time may reveal whether a pid has already proved that it has its
//! derived key. Nothing is ever sent back.

use std::io;

use varta_core::Refusal;
use varta_core::index::BoundedIndex;
use varta_core::replay::SessionKey;
use varta_sys::undumped::Undumped;
use varta_vlp::FRAME_BYTES;
use varta_vlp::secure::{AgentKey, MasterEnvelope, SharedEnvelope};

use crate::keys::{KeyRing, NamedKey};

/// Value in place of the pid for a session key, which agents share.
pub(super) const SHARED: u32 = 0;

/// The content of an envelope, and its proof.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) frame: [u8; FRAME_BYTES],
    pub(super) session: SessionKey,
    pub(super) counter: u32,
}

/// The keys, and those derived from the master key.
#[derive(Debug)]
pub(super) struct Opener {
    ring: KeyRing,
    agent_keys: AgentKeys,
}

impl Opener {
    /// `agents` is the number of derived keys that are kept; the others are derived again for each datagram.
    ///
    /// # Errors
    ///
    /// There is no memory for the derived keys.
    pub(super) fn new(ring: KeyRing, agents: usize, seed: u64) -> io::Result<Self> {
        Ok(Self {
            ring,
            agent_keys: AgentKeys::new(agents, seed)?,
        })
    }

    /// Accepts exactly these keys from now on.
    pub(super) fn replace(&mut self, ring: KeyRing) {
        let master_id = |ring: &KeyRing| ring.master.as_ref().map(|named| named.id);
        if master_id(&self.ring) != master_id(&ring) {
            self.agent_keys.clear();
        }
        self.ring = ring;
    }

    pub(super) fn open(&mut self, bytes: &[u8]) -> Result<Opened, Refusal> {
        if let Some(envelope) = SharedEnvelope::from_datagram(bytes) {
            return self.open_shared(envelope).ok_or(Refusal::Undecryptable);
        }
        let envelope = MasterEnvelope::from_datagram(bytes).ok_or(Refusal::WrongLength)?;
        self.open_by_master(envelope).ok_or(Refusal::Undecryptable)
    }

    fn open_shared(&self, envelope: SharedEnvelope<'_>) -> Option<Opened> {
        let mut opened = None;
        for named in &self.ring.shared {
            let frame = envelope.open(&named.key);
            // Every key is tried, whatever the result of those before.
            opened = opened.or(frame.map(|frame| (frame, named.id)));
        }
        let (frame, key) = opened?;
        Some(Opened {
            frame,
            session: SessionKey {
                key,
                pid: SHARED,
                prefix: envelope.prefix(),
            },
            counter: envelope.counter(),
        })
    }

    fn open_by_master(&mut self, envelope: MasterEnvelope<'_>) -> Option<Opened> {
        let master = self.ring.master.as_ref()?;
        let frame = self.agent_keys.open(master, envelope)?;
        Some(Opened {
            frame,
            session: SessionKey {
                key: master.id,
                pid: envelope.pid(),
                prefix: envelope.prefix(),
            },
            counter: envelope.counter(),
        })
    }
}

/// Keys derived from the master key, of agents that have proved to have theirs. A claim alone stores no key, so an
/// attacker without a key cannot evict one.
#[derive(Debug)]
struct AgentKeys {
    index: BoundedIndex<u32>,
    keys: Undumped<[Option<AgentKey>]>,
    /// The entry that is replaced next once all are in use.
    next: usize,
}

impl AgentKeys {
    fn new(capacity: usize, seed: u64) -> io::Result<Self> {
        let capacity = capacity.max(1);
        Ok(Self {
            index: BoundedIndex::with_capacity(capacity, seed),
            keys: Undumped::row(capacity, || None)?,
            next: 0,
        })
    }

    fn open(
        &mut self,
        master: &NamedKey,
        envelope: MasterEnvelope<'_>,
    ) -> Option<[u8; FRAME_BYTES]> {
        if let Some(place) = self.index.get(&envelope.pid())
            && let Some(key) = &self.keys[place as usize]
        {
            return envelope.open(key);
        }
        let key = AgentKey::derive(&master.key, envelope.pid());
        let frame = envelope.open(&key)?;
        self.keep(key);
        Some(frame)
    }

    fn keep(&mut self, key: AgentKey) {
        let place = self.next;
        self.next = (self.next + 1) % self.keys.len();
        let pid = key.pid();
        if let Some(old) = self.keys[place].replace(key) {
            self.index.remove(&old.pid());
        }
        // Never full: the index has as many entries as there are keys, and one was just removed.
        let _ = self.index.insert(pid, place as u32);
    }

    fn clear(&mut self) {
        self.index.clear();
        self.keys.fill_with(|| None);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use varta_vlp::secure::{Envelope, Key, Salt, Sealer};
    use varta_vlp::{Frame, Status};

    use super::*;

    fn master() -> NamedKey {
        NamedKey {
            key: Undumped::new(Key::from_bytes([1; 32])).unwrap(),
            id: 7,
        }
    }

    fn sealed_by(pid: u32) -> Envelope {
        let mut frame = [0; FRAME_BYTES];
        Frame::new(Status::Ok, pid, 0, 1, 0).encode(&mut frame);
        let Ok(salt) = Salt::draw(|_| Ok::<(), Infallible>(()));
        let key = AgentKey::derive(&master().key, pid);
        Sealer::agent(key, salt).seal(&frame).unwrap()
    }

    #[test]
    fn more_agents_than_keys_are_kept_are_heard_all_the_same() {
        let mut keys = AgentKeys::new(2, 0).unwrap();
        for pid in [10, 11, 12, 10, 12, 11, 11] {
            let sealed = sealed_by(pid);
            let envelope = MasterEnvelope::from_datagram(sealed.as_bytes()).unwrap();
            assert!(keys.open(&master(), envelope).is_some(), "{pid}");
        }
        assert_eq!(keys.index.len(), 2);
    }

    #[test]
    fn a_claim_that_proves_nothing_pushes_no_key_out() {
        let mut keys = AgentKeys::new(1, 0).unwrap();
        let good = sealed_by(10);
        let envelope = MasterEnvelope::from_datagram(good.as_bytes()).unwrap();
        keys.open(&master(), envelope).unwrap();
        let mut forged = sealed_by(11).as_bytes().to_vec();
        forged[63] ^= 1;
        let forged = MasterEnvelope::from_datagram(&forged).unwrap();
        assert_eq!(keys.open(&master(), forged), None);
        assert_eq!(keys.index.get(&10), Some(0));
    }

    #[test]
    fn another_master_key_makes_the_derived_ones_forgotten() {
        let ring = |byte| KeyRing {
            shared: Vec::new(),
            master: Some(NamedKey {
                key: Undumped::new(Key::from_bytes([byte; 32])).unwrap(),
                id: u64::from(byte),
            }),
        };
        let mut opener = Opener::new(ring(1), 4, 0).unwrap();
        let sealed = sealed_by(10);
        assert!(opener.open(sealed.as_bytes()).is_ok());
        opener.replace(ring(2));
        assert_eq!(
            opener.open(sealed.as_bytes()).map(|_| ()),
            Err(Refusal::Undecryptable)
        );
        opener.replace(ring(1));
        assert!(opener.open(sealed.as_bytes()).is_ok());
    }
}
