//! The open sessions of each agent, and which of them may be closed for another one.
//!
//! Places are an index from an agent to its open sessions, built from the records; they hold no counters. Reading
//! an agent's places is a look-up each, five in all.

use std::sync::atomic::AtomicU64;

use super::memory::{Record, Role};
use super::{Agent, ReplayGuard, SESSIONS_PER_AGENT};
use crate::index::IndexKey;

/// Parts of its agent's threshold after which a silent session may be closed for another one of that agent: a
/// half, so that an agent whose sessions are all taken can open another one before it counts as stalled.
const QUIET_PARTS: u64 = 2;

/// When a session is quiet enough to be closed for another one of its agent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    after_ns: u64,
    pub(super) now_ns: u64,
}

impl Quiet {
    /// For an agent with this threshold.
    pub(super) fn of(threshold_ns: u64, now_ns: u64) -> Self {
        Self {
            after_ns: threshold_ns / QUIET_PARTS,
            now_ns,
        }
    }

    /// Whether a session with its last datagram at that time is quiet; a departed one is.
    fn applies_to(self, heard_ns: Option<u64>) -> bool {
        heard_ns.is_none_or(|heard_ns| self.now_ns.saturating_sub(heard_ns) >= self.after_ns)
    }
}

/// One of an agent's places for sessions: those below [`SESSIONS_PER_AGENT`] are for current sessions, the next
/// one is for its farewell session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) agent: Agent,
    number: usize,
}

impl Agent {
    pub(super) fn places(self) -> impl Iterator<Item = Place> {
        (0..=SESSIONS_PER_AGENT).map(move |number| Place {
            agent: self,
            number,
        })
    }

    pub(super) fn places_for(self, role: Role) -> impl Iterator<Item = Place> {
        self.places().filter(move |place| place.role() == role)
    }
}

impl Place {
    fn role(self) -> Role {
        match self.number < SESSIONS_PER_AGENT {
            true => Role::Current,
            false => Role::Farewell,
        }
    }
}

impl IndexKey for Place {
    fn hash(&self, seed: u64) -> u64 {
        let number = (self.number as u64) << 32;
        (u64::from(self.agent.pid) | number).hash(self.agent.source.hash(seed))
    }
}

impl<W: AsRef<[AtomicU64]>> ReplayGuard<W> {
    pub(super) fn free_place(&self, agent: Agent, role: Role) -> Option<Place> {
        let mut places = agent.places_for(role);
        places.find(|place| self.session_in(place).is_none())
    }

    /// The quiet session of an agent in a role that is silent for longest. `continued` counts as departed.
    /// Last frames share one place, and the next one always gets it.
    pub(super) fn quiet_session(
        &self,
        agent: Agent,
        role: Role,
        continued: Option<u32>,
        quiet: Quiet,
    ) -> Option<(Place, u32)> {
        let sessions = agent.places_for(role).filter_map(|place| {
            let (number, record) = self.session_in(&place)?;
            let heard_ns = record.heard_ns.filter(|_| continued != Some(number));
            Some((heard_ns, place, number))
        });
        let sessions =
            sessions.filter(|(heard_ns, ..)| role == Role::Farewell || quiet.applies_to(*heard_ns));
        let quietest = sessions.min_by_key(|(heard_ns, ..)| *heard_ns);
        quietest.map(|(_, place, number)| (place, number))
    }

    /// The current session with the agent's last datagram.
    pub(super) fn latest_session(&self, agent: Agent) -> Option<u32> {
        let places = agent.places_for(Role::Current);
        let sessions = places.filter_map(|place| self.session_in(&place));
        let latest = sessions.max_by_key(|(_, record)| record.heard_ns);
        latest.map(|(number, _)| number)
    }

    /// The session in a place.
    pub(super) fn session_in(&self, place: &Place) -> Option<(u32, Record)> {
        let number = self.places.get(place)?;
        let record = self.memory.load(number)?;
        (record.owner.agent == place.agent).then_some((number, record))
    }

    pub(super) fn take_place(&mut self, number: u32, place: &Place) {
        let _ = self.places.insert(*place, number);
    }

    pub(super) fn leave_place(&mut self, number: u32, agent: Agent) {
        let mut places = agent.places();
        if let Some(place) = places.find(|place| self.places.get(place) == Some(number)) {
            self.places.remove(&place);
        }
    }
}
