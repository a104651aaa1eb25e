//! The oracle: the required effects of the engine, written from the laws and from `docs/recovery.md`.
//!
//! It gets every input before the engine, and every effect. A fact that must follow from an input is *wanted*: a fact
//! that is not wanted and a want that is not met are failures. Effects that come by themselves, mainly orders, are
//! judged when they come. When control is idle, everything that is due must have been done, or its blocking reason
//! must have been reported ([`Oracle::check_rest`]).

mod allowance;
mod climb;
mod facts;
mod holds;
mod hooks;
mod ladders;
mod limits;
mod records;
mod rules;
mod silence;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use varta_core::engine::{ActionId, Levels, Now};
use varta_core::fact::Occasion;
use varta_core::hold::Pressure;
use varta_core::policy::{Mode, Policy};
use varta_core::{Agent, EventKind};

use crate::S;
use holds::{Cause, Crowds};
use hooks::Hook;
use limits::Bucket;
use records::{Debts, Record};
use rules::Expected;
pub(crate) use silence::Silence;

/// Slot, pid, instance.
pub(crate) type Key = (u32, u32, u64);

pub(crate) fn key(agent: Agent) -> Key {
    (agent.slot, agent.pid, agent.instance)
}

/// The user that no budget of users applies to.
pub(crate) const OWN_UID: u32 = 1000;

/// How late the engine may be: it examines the host at intervals.
pub(crate) const PUNCTUAL_NS: u64 = S / 4;

/// Trace lines kept for a failure.
const TRACES: usize = 100;

/// A required fact: its kind, its agent, and a number that distinguishes it from facts of the same kind.
pub(crate) type Want = (&'static str, Key, u64);

/// An ordered step without its last outcome.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    agent: Agent,
    /// Whether it runs a program.
    is_run: bool,
    /// The hook that the step belongs to.
    hook: Option<Occasion>,
    is_started: bool,
}

pub(crate) struct Oracle {
    pub(crate) silence: Silence,
    policy: Arc<Policy>,
    now: Now,
    records: BTreeMap<Key, Record>,
    debts: Vec<Debts>,
    hooks: BTreeMap<(Key, &'static str), Hook>,
    flights: BTreeMap<ActionId, Flight>,
    starts: Bucket,
    users: BTreeMap<u32, Bucket>,
    expected: Vec<Expected>,
    /// The scopes of held fire, by the facts.
    held: [bool; 2],
    held_users: BTreeSet<u32>,
    /// The causes of held fire, as far as certain.
    causes: [Cause; 2],
    crowds: Crowds,
    /// The last answer about pressure.
    pressure: Option<(Pressure, u64)>,
    is_asked: bool,
    asked_ns: u64,
    /// How long the last look at the host took.
    look_took_ns: u64,
    /// Control was stopped, so wait steps start late.
    pub(crate) is_control_late: bool,
    /// Start of the rehearsal.
    rehearsed_since_ns: u64,
    wants: Vec<Want>,
    /// Facts that may follow.
    options: Vec<Want>,
    /// Whether a step may be ordered: the last input was the timeout, or the answer about the host.
    may_order: bool,
    digest: DefaultHasher,
    traces: VecDeque<String>,
    pub(crate) facts: u64,
    pub(crate) orders: u64,
}

impl Oracle {
    pub(crate) fn new(policy: Arc<Policy>, now: Now) -> Self {
        let expected = rules::expected_of(&policy, now.observer_ns);
        Self {
            silence: Silence::default(),
            policy,
            now,
            records: BTreeMap::new(),
            debts: Vec::new(),
            hooks: BTreeMap::new(),
            flights: BTreeMap::new(),
            starts: Bucket::default(),
            users: BTreeMap::new(),
            expected,
            held: [false; 2],
            held_users: BTreeSet::new(),
            causes: [Cause::default(), Cause::default()],
            crowds: Crowds::default(),
            pressure: None,
            is_asked: false,
            asked_ns: 0,
            look_took_ns: 0,
            is_control_late: false,
            rehearsed_since_ns: 0,
            wants: Vec::new(),
            options: Vec::new(),
            may_order: false,
            digest: DefaultHasher::new(),
            traces: VecDeque::new(),
            facts: 0,
            orders: 0,
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    pub(crate) fn traces(&self) -> impl Iterator<Item = &String> {
        self.traces.iter()
    }

    pub(crate) fn trace(&mut self, what: &dyn std::fmt::Debug) {
        let seconds = self.now.observer_ns as f64 / S as f64;
        if self.traces.len() == TRACES {
            self.traces.pop_front();
        }
        self.traces.push_back(format!("{seconds:.6} {what:?}"));
    }

    /// The ring was full for an event. Stalls and late agents are reported later, a join always fits.
    pub(crate) fn lost(&mut self, kind: &EventKind) {
        self.trace(&("lost", kind));
        let must_arrive = matches!(
            kind,
            EventKind::Join { .. } | EventKind::Stall { .. } | EventKind::Late { .. }
        );
        assert!(!must_arrive, "must not be lost: {kind:?}");
    }

    fn want(&mut self, kind: &'static str, agent: Agent, number: u64) {
        self.wants.push((kind, key(agent), number));
    }

    /// Checks that every required fact of an input was published.
    pub(crate) fn check_wants(&mut self) {
        self.check_causes();
        self.options.clear();
        assert!(self.wants.is_empty(), "did not follow: {:?}", self.wants);
    }

    fn is_present(&self, agent: Agent) -> bool {
        self.silence.get(agent).is_some()
    }

    /// Whether its silence was reported and is a stall by the current threshold.
    fn is_silent(&self, agent: Agent) -> bool {
        let heard = self.silence.get(agent).filter(|heard| heard.told_stall);
        let silence_ns = heard.map(|heard| heard.silence_ns(self.now.attention_ns));
        let record = self.records.get(&key(agent));
        let deadlines = record.and_then(|record| record.deadlines);
        let threshold_ns = deadlines.map(|deadlines| deadlines.threshold_ns);
        silence_ns.is_some() && silence_ns >= threshold_ns
    }

    /// Whether an operator paused it.
    fn is_paused(&self, agent: Agent) -> bool {
        let record = self.records.get(&key(agent));
        let pause = record.and_then(|record| record.pause.as_ref());
        pause.is_some_and(|pause| pause.until_ns > self.now.observer_ns)
    }

    fn is_held(&self, agent: Agent, uid: Option<u32>) -> bool {
        self.held[agent.locality() as usize]
            || uid.is_some_and(|uid| self.held_users.contains(&uid))
    }

    /// Control is idle: everything due was done.
    pub(crate) fn check_rest(&mut self, is_ring_empty: bool) {
        self.check_wants();
        if is_ring_empty {
            self.check_ladders();
        }
        self.check_hooks();
        self.check_expected();
        self.check_pauses();
    }

    /// Figures for the metrics.
    pub(crate) fn check_levels(&self, levels: &Levels) {
        let runs = self.flights.values().filter(|flight| flight.is_run);
        assert_eq!(levels.in_flight, runs.count(), "in flight");
        let is_any_held = self.held != [false; 2] || !self.held_users.is_empty();
        assert_eq!(levels.is_fire_held, is_any_held, "fire is held");
        assert_eq!(
            levels.agents_missing,
            self.missing(),
            "agents that are missing"
        );
    }

    /// After a long time without faults nothing is pending.
    pub(crate) fn check_healed(&self) {
        assert!(self.flights.is_empty(), "in flight: {:?}", self.flights);
        assert!(self.hooks.is_empty(), "hooks under way: {:?}", self.hooks);
        assert_eq!(self.held, [false; 2], "fire is held");
        assert!(
            self.held_users.is_empty(),
            "fire is held: {:?}",
            self.held_users
        );
        for record in self.records.values() {
            assert!(self.is_present(record.agent), "has left: {record:?}");
            if !self.is_silent(record.agent) || self.policy.mode == Mode::Observe {
                continue;
            }
            if self.ladder_for(record).is_none() {
                continue;
            }
            let climb = record.climb.as_ref();
            let is_over = climb.is_some_and(|climb| climb.gave_up || climb.is_refused);
            assert!(is_over, "silent and forgotten: {record:?}");
        }
    }

    fn digest_fact(&mut self, text: &str) {
        text.hash(&mut self.digest);
        self.facts += 1;
    }
}
