//! The observer's state for readers: consistent copies, taken on request.
//!
//! Slots, counters and histograms are read through their sequence counters, names under locks that only the control
//! thread shares. Nothing in this module can delay a beat.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use varta_api::AgentId;
use varta_api::log_line::Outcome;
use varta_api::v1::{self, AgentView, Info, State, StateCounts};
use varta_core::engine::AgentInfo;
use varta_core::slot::Slot;
use varta_core::{Agent, Counters, Gauge, SlotState, SlotTable};

use super::control_state::ControlState;
use super::directory::Directory;
use super::no_room::{Full, NoRoom};
use crate::beat_path_state::BeatPathState;
use crate::beat_queue::Depth;
use crate::handoff::LivenessProbe;

/// What does not change while the observer runs.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) session_id: String,
    pub(crate) started: SystemTime,
    pub(crate) capacity: usize,
    /// Agents of this host that one user may have, root aside.
    pub(crate) agents_per_user: usize,
    pub(crate) socket: String,
    pub(crate) udp: Option<String>,
    pub(crate) queue: Depth,
}

/// Everything that a request can read.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) about: About,
    pub(crate) table: Arc<SlotTable>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) no_room: Arc<NoRoom>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) beat_path: Arc<BeatPathState>,
    pub(crate) control: Arc<ControlState>,
    pub(crate) probe: LivenessProbe,
}

/// One agent at one moment.
#[derive(Clone, Debug)]
pub(crate) struct AgentSnapshot {
    pub(crate) agent: Agent,
    pub(crate) facts: Slot,
    pub(crate) state: State,
    /// Silence so far, attention time.
    pub(crate) silence_ns: u64,
}

impl View {
    /// Every agent, by slot.
    pub(crate) fn agents(&self) -> impl Iterator<Item = AgentSnapshot> {
        let now_ns = self.beat_path.attention_now_ns();
        let slots = 0..self.table.capacity() as u32;
        slots.filter_map(move |slot| self.seen(slot, now_ns))
    }

    /// One agent as it is now, if it has not left.
    pub(crate) fn again(&self, agent: Agent) -> Option<AgentSnapshot> {
        let seen = self.seen(agent.slot, self.beat_path.attention_now_ns())?;
        (seen.agent == agent).then_some(seen)
    }

    fn seen(&self, slot: u32, now_ns: u64) -> Option<AgentSnapshot> {
        let facts = self.table.read(slot)?;
        let state = match facts.state {
            SlotState::Free => return None,
            SlotState::Stalled | SlotState::Reclaimable => State::Stalled,
            SlotState::Alive | SlotState::Late if now_ns < facts.paused_until_ns => State::Paused,
            SlotState::Late => State::Late,
            SlotState::Alive => State::Alive,
        };
        Some(AgentSnapshot {
            agent: facts.agent(slot),
            facts,
            state,
            silence_ns: facts.silence_ns(now_ns),
        })
    }

    /// How many agents there are, by state.
    pub(crate) fn state_counts(&self) -> StateCounts {
        let mut counts = StateCounts::default();
        for seen in self.agents() {
            counts.count(seen.state);
        }
        counts
    }

    /// The directory entry of an agent; empty if the agent has none yet.
    pub(crate) fn info_of(&self, agent: Agent) -> Arc<AgentInfo> {
        self.directory.get(agent).unwrap_or_default()
    }

    /// One agent for a reader.
    pub(crate) fn show(&self, seen: &AgentSnapshot) -> AgentView {
        use varta_core::{Locality, UID_UNKNOWN};
        let AgentSnapshot {
            agent,
            facts,
            state,
            silence_ns,
        } = seen;
        let info = Arc::unwrap_or_clone(self.info_of(*agent));
        let now_ns = self.beat_path.attention_now_ns();
        let tracked_ns = now_ns.saturating_sub(facts.joined_ns);
        let is_paused = *state == State::Paused;
        let transport = match (facts.locality, info.sealed) {
            (Locality::Local, _) => "unix",
            (Locality::Remote, false) => "udp",
            (Locality::Remote, true) => "secure_udp",
        };
        AgentView {
            id: AgentId::from(*agent).to_string(),
            state: *state,
            pid: agent.pid,
            name: (!info.name.is_empty()).then_some(info.name),
            uid: (facts.uid != UID_UNKNOWN).then_some(facts.uid),
            unit: info.unit,
            user_unit: info.user_unit,
            source: info.address.map(|address| address.to_string()),
            transport: transport.to_owned(),
            // The last status is outdated for a silent agent.
            sessions: (info.sessions > 1 && *silence_ns < facts.threshold_ns)
                .then_some(info.sessions),
            status: facts.status.into(),
            payload: facts.payload,
            nonce: facts.last_nonce,
            silence: seconds(*silence_ns),
            threshold: seconds(facts.threshold_ns),
            beats: facts.beats,
            beats_per_second: facts.beats as f64 / seconds(tracked_ns).max(1.0),
            stalls: facts.stalls,
            tracked: seconds(tracked_ns),
            recovery: info.recovery.map(Outcome::counted_as),
            gave_up: info.gave_up,
            paused_for: is_paused.then(|| seconds(facts.paused_until_ns.saturating_sub(now_ns))),
            pause_reason: info.pause_reason.filter(|_| is_paused),
        }
    }

    /// Whether agents of this host use all their slots.
    pub(crate) fn is_full(&self) -> bool {
        self.beat_path.local_agents() >= self.about.capacity as u64
    }

    /// The tables and shares that recently were too full for a new agent.
    pub(crate) fn no_room(&self) -> Vec<v1::NoRoom> {
        let lately = self.no_room.lately(Instant::now());
        let shown = lately.into_iter().map(|full| match full {
            Full::Table | Full::RemoteTable => v1::NoRoom {
                reason: v1::TABLE_FULL.to_owned(),
                uid: None,
                limit: self.about.capacity,
                elsewhere: full == Full::RemoteTable,
            },
            Full::Share(uid) => v1::NoRoom {
                reason: v1::SHARE_FULL.to_owned(),
                uid: Some(uid),
                limit: self.about.agents_per_user,
                elsewhere: false,
            },
        });
        shown.collect()
    }

    /// The value of a gauge, from the part that keeps it.
    pub(crate) fn level(&self, gauge: Gauge) -> u64 {
        let shown = self.beat_path.level(gauge);
        let shown = shown.or_else(|| self.control.level(gauge));
        shown.unwrap_or_else(|| self.counters.level(gauge))
    }

    /// The observer itself.
    pub(crate) fn info(&self) -> Info {
        let started = self.about.started.duration_since(UNIX_EPOCH);
        Info {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            session_id: self.about.session_id.clone(),
            pid: std::process::id(),
            started: started.unwrap_or_default().as_secs_f64(),
            uptime: seconds(self.beat_path.raw().now_ns()),
            threshold: seconds(self.control.threshold_ns()),
            capacity: self.about.capacity,
            socket: self.about.socket.clone(),
            udp: self.about.udp.clone(),
            queue_datagrams: self.about.queue.datagrams,
            queue_shallow: self.about.queue.shallow.clone(),
            agents: self.state_counts(),
            full: self.is_full(),
            no_room: self.no_room(),
            missing: self.control.agents_missing() as usize,
            attention_lag: seconds(self.beat_path.attention_lag_ns()),
        }
    }
}

/// For readers: seconds as a decimal number.
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
