//! The inputs about each agent, and their immediate consequences.

use std::sync::Arc;

use varta_core::admission::{BeatLimit, Rate};
use varta_core::engine::{ActionId, AgentUpdate, Command, Input, Now, ProcessFacts};
use varta_core::event::JoinedFrom;
use varta_core::fact::Occasion;
use varta_core::policy::{Ladder, Mode};
use varta_core::{Agent, BeatOrigin, Deadlines, Event, EventKind};

use super::climb::Climb;
use super::ladders::is_trusted;
use super::{Oracle, PUNCTUAL_NS, key};
use crate::MS;

/// An agent.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) agent: Agent,
    pub(crate) facts: ProcessFacts,
    pub(crate) from: JoinedFrom,
    /// Its user, if it was present when its rule was assigned.
    pub(crate) uid: Option<u32>,
    /// The identity of its budget carryover: service, and kin.
    pub(crate) lineage: Option<(String, Option<String>)>,
    /// Its transport, if it was present when its rule was assigned.
    pub(crate) origin: Option<BeatOrigin>,
    pub(crate) rule: Option<usize>,
    pub(crate) deadlines: Option<Deadlines>,
    pub(crate) limit: BeatLimit,
    pub(crate) pause: Option<Pause>,
    pub(crate) climb: Option<Climb>,
    /// Start times of actions on it.
    pub(crate) starts: Vec<u64>,
    /// Silences with an action since it was well for long.
    pub(crate) climbs: u32,
    pub(crate) settled_ns: u64,
    /// Whether recovery gave up in this silence.
    pub(crate) was_given_up: bool,
    /// The running action on it, perhaps about an earlier silence.
    pub(crate) in_flight: Option<ActionId>,
    /// It has not stalled by its threshold, and the beat path has not applied that yet.
    pub(crate) is_excused: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Pause {
    pub(crate) until_ns: u64,
    /// The pause that the operator set.
    wanted_until_ns: u64,
    pub(crate) reason: Option<String>,
    /// Whether the beat path has applied it.
    pub(crate) is_applied: bool,
}

/// The budget carryover of an agent.
#[derive(Clone, Debug)]
pub(crate) struct Debts {
    service: String,
    kin: Option<String>,
    pub(crate) climbs: u32,
    left_ns: u64,
    pub(crate) starts: Vec<u64>,
}

impl Record {
    pub(crate) fn last_start_ns(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

impl Oracle {
    /// The next input of the engine.
    pub(crate) fn told(&mut self, input: &Input, now: Now) {
        self.now = now;
        match input {
            Input::Event { event, facts } => {
                self.trace(event);
                self.may_order = false;
                self.on_event(event, facts.as_deref());
            }
            Input::Outcome { action, outcome } => {
                self.trace(&(action, outcome));
                self.on_outcome(*action, outcome);
            }
            Input::Command { command, .. } => {
                self.trace(command);
                self.may_order = false;
                self.on_command(command);
            }
            Input::Pressure(pressure) => {
                self.is_asked = false;
                self.look_took_ns = now.observer_ns - self.asked_ns;
                self.may_order = true;
                self.pressure = Some((*pressure, now.observer_ns));
                self.note_causes(*pressure);
            }
            Input::Policy { policy, .. } => {
                self.trace(&("policy", policy.mode, policy.limits));
                self.may_order = false;
                self.on_policy(Arc::clone(policy));
            }
            Input::Timeout => {
                self.may_order = true;
                self.extend_pauses();
            }
        }
    }

    fn on_event(&mut self, event: &Event, facts: Option<&ProcessFacts>) {
        match event.kind {
            EventKind::Join {
                agent, from, nonce, ..
            } => {
                self.want("joined", agent, nonce);
                self.join(agent, from, facts);
            }
            EventKind::Session { agent, nonce, .. } => {
                self.want("session", agent, nonce);
                if let (Some(record), Some(facts)) = (self.records.get_mut(&key(agent)), facts) {
                    record.facts = facts.clone();
                }
                self.assign_rule(agent);
            }
            EventKind::Critical { agent, nonce, .. } => {
                self.want("critical", agent, nonce);
                self.on_occasion(agent, Occasion::Critical);
            }
            EventKind::Late {
                agent, silence_ns, ..
            } => {
                self.want("late", agent, silence_ns);
                self.on_occasion(agent, Occasion::Late);
            }
            EventKind::Stall {
                agent, silence_ns, ..
            } => {
                self.want("stalled", agent, silence_ns);
                self.on_stall(agent, event.observer_ns);
            }
            EventKind::Return {
                agent, silence_ns, ..
            } => {
                self.want("returned", agent, silence_ns);
                self.on_return(agent);
                self.on_occasion(agent, Occasion::Recovered);
            }
            EventKind::Exit { agent, status, .. } => {
                self.want("exited", agent, 0);
                if !status.is_clean() {
                    self.on_occasion(agent, Occasion::Exit);
                }
                self.leave(agent);
            }
            EventKind::Evicted { agent } => {
                self.want("evicted", agent, 0);
                self.leave(agent);
            }
            EventKind::PutOff { agent, silence_ns } => self.want("put off", agent, silence_ns),
            EventKind::NetworkDrops { count } => self.wants.push(("drops", (0, 0, 0), count)),
            EventKind::Gap { gap_ns } => self.wants.push(("gap", (0, 0, 0), gap_ns)),
            _ => {}
        }
    }

    fn join(&mut self, agent: Agent, from: JoinedFrom, facts: Option<&ProcessFacts>) {
        let other = self
            .records
            .values()
            .find(|record| record.agent.slot == agent.slot);
        if let Some(other) = other.map(|record| record.agent) {
            self.leave(other);
        }
        let record = Record {
            agent,
            facts: facts.cloned().unwrap_or_default(),
            from,
            uid: None,
            lineage: None,
            origin: None,
            rule: None,
            deadlines: None,
            limit: BeatLimit::Common,
            pause: None,
            climb: None,
            starts: Vec::new(),
            climbs: 0,
            settled_ns: 0,
            was_given_up: false,
            in_flight: None,
            is_excused: false,
        };
        self.records.insert(key(agent), record);
        self.assign_rule(agent);
        self.inherit(agent);
    }

    /// A service continues with the budget of its previous process; one under another name with that of its
    /// kin.
    fn inherit(&mut self, agent: Agent) {
        let Some(record) = self.records.get_mut(&key(agent)) else {
            return;
        };
        let Some((service, kin)) = &record.lineage else {
            return;
        };
        let own = self
            .debts
            .iter()
            .rposition(|debts| debts.service == *service);
        let of_kin = || {
            let is_kin = |debts: &Debts| kin.is_some() && debts.kin == *kin;
            self.debts.iter().rposition(is_kin)
        };
        if let Some(place) = own.or_else(of_kin) {
            let debts = self.debts.remove(place);
            record.climbs = debts.climbs;
            record.settled_ns = debts.left_ns;
            record.starts = debts.starts;
        }
    }

    fn leave(&mut self, agent: Agent) {
        let Some(record) = self.records.remove(&key(agent)) else {
            return;
        };
        if let (Some((service, kin)), true) = (&record.lineage, record.last_start_ns() != 0) {
            self.debts.push(Debts {
                service: service.clone(),
                kin: kin.clone(),
                climbs: record.climbs,
                left_ns: self.now.observer_ns,
                starts: record.starts,
            });
        }
    }

    fn on_command(&mut self, command: &Command) {
        let (Command::Pause { agent, .. } | Command::Resume { agent }) = command;
        let agent = *agent;
        if !self.is_there(agent) {
            return;
        }
        match command {
            Command::Pause { time, reason, .. } => {
                let duration_ns = time.as_nanos() as u64;
                self.want("paused", agent, duration_ns);
                let until_ns = self.now.observer_ns + duration_ns;
                self.end_silence(agent);
                let record = self.records.get_mut(&key(agent)).expect("is there");
                record.pause = Some(Pause {
                    until_ns,
                    wanted_until_ns: until_ns,
                    reason: reason.clone(),
                    is_applied: false,
                });
            }
            Command::Resume { .. } => {
                let record = self.records.get_mut(&key(agent)).expect("is there");
                if record.pause.take().is_some() {
                    self.want("resumed", agent, 0);
                    self.take_up_silence(agent);
                }
            }
        }
    }

    /// Whether an operator's command about an agent can be carried out.
    pub(crate) fn is_there(&self, agent: Agent) -> bool {
        self.is_present(agent) && self.records.contains_key(&key(agent))
    }

    /// A pause ended: not before the beat path counts silence again.
    pub(super) fn pause_expired(&mut self, agent: Agent) {
        let attention_ns = self.now.attention_ns;
        let heard = self.silence.get(agent).map(|heard| heard.paused_until_ns);
        let record = self
            .records
            .get_mut(&key(agent))
            .expect("resumed: the agent is unknown");
        let pause = record.pause.take().expect("resumed, and was not paused");
        assert!(
            pause.until_ns <= self.now.observer_ns,
            "resumed too early: {record:?}"
        );
        if let Some(until_ns) = heard.filter(|_| pause.is_applied) {
            assert!(
                until_ns <= attention_ns,
                "resumed while it is not judged: {record:?}"
            );
        }
        self.take_up_silence(agent);
    }

    /// Pauses end on the attention clock: an overdue one continues.
    fn extend_pauses(&mut self) {
        let now = self.now;
        for record in self.records.values_mut() {
            let Some(pause) = &mut record.pause else {
                continue;
            };
            let heard = self.silence.get(record.agent);
            let until_ns = heard.map_or(0, |heard| heard.paused_until_ns);
            let left_ns = until_ns.saturating_sub(now.attention_ns);
            if pause.until_ns <= now.observer_ns && left_ns > 0 {
                pause.until_ns = now.observer_ns + left_ns.clamp(MS, 100 * MS);
            }
        }
    }

    pub(super) fn check_pauses(&self) {
        for record in self.records.values() {
            let Some(pause) = record.pause.as_ref().filter(|pause| pause.is_applied) else {
                continue;
            };
            let Some(heard) = self.silence.get(record.agent) else {
                continue;
            };
            let is_over = heard.paused_until_ns + PUNCTUAL_NS < self.now.attention_ns
                && pause.wanted_until_ns + PUNCTUAL_NS < self.now.observer_ns;
            assert!(!is_over, "a pause does not end: {record:?}");
        }
    }

    /// An update of the beat path: it must match the rules.
    pub(crate) fn updated(&mut self, update: AgentUpdate) {
        self.trace(&update);
        match update {
            AgentUpdate::Deadlines(agent, deadlines) => {
                let record = self.records.get(&key(agent)).expect("told of nobody");
                assert_eq!(
                    record.deadlines,
                    Some(deadlines),
                    "deadlines by its rule: {record:?}"
                );
            }
            AgentUpdate::BeatLimit(agent, limit) => {
                let record = self.records.get(&key(agent)).expect("told of nobody");
                assert_eq!(record.limit, limit, "limit by its rule: {record:?}");
            }
            AgentUpdate::Pause(agent, time) => {
                if let Some(record) = self.records.get_mut(&key(agent)) {
                    record.is_excused = time.is_zero();
                }
            }
            AgentUpdate::Resume(_) => {}
        }
    }

    /// The beat path has applied an update.
    pub(crate) fn applied(&mut self, update: AgentUpdate) {
        let AgentUpdate::Pause(agent, time) = update else {
            return;
        };
        let Some(record) = self.records.get_mut(&key(agent)) else {
            return;
        };
        record.is_excused = false;
        if let Some(pause) = record.pause.as_mut().filter(|_| !time.is_zero()) {
            pause.is_applied = true;
        }
    }

    /// No update is pending: each agent has the deadlines of its rule.
    pub(crate) fn check_updates(&self) {
        for record in self.records.values() {
            let Some(heard) = self.silence.get(record.agent) else {
                continue;
            };
            let deadlines = Deadlines {
                threshold_ns: heard.threshold_ns,
                late_ns: heard.late_ns,
            };
            assert_eq!(
                Some(deadlines),
                record.deadlines,
                "held to its rule: {record:?}"
            );
            let silence_ns = heard.silence_ns(self.silence.attention_ns());
            assert!(
                !heard.told_stall || silence_ns >= heard.threshold_ns,
                "stalled, but not by its threshold: {heard:?}"
            );
        }
    }

    pub(super) fn ladder_for(&self, record: &Record) -> Option<Ladder> {
        if self.policy.mode == Mode::Observe || !is_trusted(record) {
            return None;
        }
        self.ladder_meant_for(record)
    }

    /// What readers see of an agent.
    pub(crate) fn check_shown(&self, agent: Agent, gave_up: bool, pause_reason: Option<&str>) {
        let Some(record) = self.records.get(&key(agent)) else {
            return;
        };
        assert!(
            !gave_up || record.was_given_up,
            "shown as given up: {record:?}"
        );
        let reason = record
            .pause
            .as_ref()
            .and_then(|pause| pause.reason.as_deref());
        assert_eq!(pause_reason, reason, "reason of its pause: {record:?}");
    }
}

/// The rate limit of an agent by its rule: the burst is ten seconds of the rate.
pub(super) fn beat_limit(max_beat_rate: Option<u32>) -> BeatLimit {
    match max_beat_rate {
        None => BeatLimit::Common,
        Some(0) => BeatLimit::Unlimited,
        Some(per_second) => BeatLimit::Own(Rate {
            per_second,
            burst: per_second * 10,
        }),
    }
}
