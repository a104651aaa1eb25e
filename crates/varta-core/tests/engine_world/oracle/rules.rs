//! Rules: which one applies, its consequences for the agent, and which agents are expected.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use varta_core::event::JoinedFrom;
use varta_core::policy::{AgentRule, Ladder, LadderChoice, Mode, Policy};
use varta_core::rules::{Namespace, Selector, Transport};
use varta_core::{Agent, Deadlines, UID_UNKNOWN};

use super::records::{Record, beat_limit};
use super::silence::Heard;
use super::{Oracle, PUNCTUAL_NS, key};

/// Agents that a rule expects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    rule: usize,
    agents: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Awaited { until_ns: u64 },
    Missing,
    HaveCome,
}

pub(super) fn expected_of(policy: &Policy, now_ns: u64) -> Vec<Expected> {
    let rules = policy.rules.iter().enumerate();
    let expected = rules.filter_map(|(rule, agents)| {
        let expectation = agents.expectation?;
        let until_ns = now_ns + expectation.within.as_nanos() as u64;
        Some(Expected {
            rule,
            agents: expectation.agents,
            state: State::Awaited { until_ns },
        })
    });
    expected.collect()
}

/// Whether the same agents are expected.
fn is_same(one: &AgentRule, other: &AgentRule) -> bool {
    let of = |rule: &AgentRule| (rule.selector.clone(), rule.label.clone(), rule.expectation);
    of(one) == of(other)
}

/// A title as the number of an expectation.
pub(super) fn number_of(title: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    title.hash(&mut hasher);
    hasher.finish()
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

/// Whether a selector matches an agent. An unknown fact does not match.
fn is_meant(selector: &Selector, record: &Record, heard: &Heard) -> bool {
    let name = &record.facts.name;
    let unit = record.facts.process.unit.as_deref();
    let transport = match record.from {
        JoinedFrom::Local { .. } => Transport::Unix,
        JoinedFrom::Remote { sealed: true, .. } => Transport::SecureUdp,
        JoinedFrom::Remote { sealed: false, .. } => Transport::Udp,
    };
    let namespace = record.facts.is_foreign.map(|is_foreign| match is_foreign {
        true => Namespace::Other,
        false => Namespace::Own,
    });
    let wants_name = selector.name.as_deref();
    let wants_unit = selector.unit.as_deref();
    wants_name.is_none_or(|pattern| !name.is_empty() && glob(pattern, name))
        && wants_unit.is_none_or(|pattern| unit.is_some_and(|unit| glob(pattern, unit)))
        && selector.uid.is_none_or(|uid| uid == heard.uid)
        && selector.origin.is_none_or(|origin| origin == transport)
        && (selector.namespace.is_none() || selector.namespace == namespace)
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

/// The deadlines of an agent: by its rule, with a grace for remote agents.
fn deadlines(policy: &Policy, rule: Option<&AgentRule>, is_remote: bool) -> Deadlines {
    let threshold = rule
        .and_then(|rule| rule.threshold)
        .unwrap_or(policy.threshold);
    let late = rule.and_then(|rule| rule.late).or(policy.late);
    let late = late.filter(|late| *late < threshold);
    let grace = match rule {
        Some(rule) if is_remote => rule.network_grace,
        _ => Duration::ZERO,
    };
    Deadlines {
        threshold_ns: nanoseconds(threshold + grace),
        late_ns: late.map_or(0, |late| nanoseconds(late + grace)),
    }
}

impl Oracle {
    pub(super) fn ladder_meant_for(&self, record: &Record) -> Option<Ladder> {
        let rule = record.rule.map(|rule| &self.policy.rules[rule]);
        let ladder = match rule.map_or(LadderChoice::Default, |rule| rule.ladder) {
            LadderChoice::Default => self.policy.default_ladder,
            LadderChoice::None => None,
            LadderChoice::Named(ladder) => Some(ladder),
        };
        ladder.map(|ladder| self.policy.ladders[ladder].clone())
    }

    /// Assigns the rule of an agent. True if it was stalled and is not by that rule.
    pub(super) fn assign_rule(&mut self, agent: Agent) -> bool {
        let is_paused = self.is_paused(agent);
        let (Some(heard), Some(record)) =
            (self.silence.get(agent), self.records.get_mut(&key(agent)))
        else {
            return false;
        };
        let mut selectors = self.policy.rules.iter().map(|rule| &rule.selector);
        let rule = selectors.position(|selector| is_meant(selector, record, heard));
        record.rule = rule;
        record.origin = Some(heard.origin);
        record.uid = Some(heard.uid).filter(|uid| *uid != UID_UNKNOWN);
        let source = match record.from {
            JoinedFrom::Local { .. } => None,
            JoinedFrom::Remote { address, .. } => Some(address),
        };
        let unit = &record.facts.process.unit;
        let service = format!("{:?}", (&record.facts.name, unit, record.uid, source));
        let kin = record.uid.filter(|uid| *uid != 0);
        let kin = kin.map(|uid| format!("{:?}", (uid, unit)));
        record.lineage = Some((service, kin));
        let rule_data = rule.map(|rule| &self.policy.rules[rule]);
        let deadlines = deadlines(&self.policy, rule_data, agent.is_remote());
        let heard_by = Deadlines {
            threshold_ns: heard.threshold_ns,
            late_ns: heard.late_ns,
        };
        let has_changed = record.deadlines.unwrap_or(heard_by) != deadlines;
        record.deadlines = Some(deadlines);
        record.limit = beat_limit(rule_data.and_then(|rule| rule.max_beat_rate));
        let silence_ns = heard.silence_ns(self.now.attention_ns);
        let is_short = silence_ns < deadlines.threshold_ns;
        let is_excused = has_changed && heard.told_stall && is_short && !is_paused;
        if let Some(rule) = rule {
            self.came(rule);
        }
        if is_excused {
            self.want("excused", agent, 0);
            self.end_silence(agent);
        }
        is_excused
    }

    fn count(&self, rule: usize) -> u32 {
        let records = self.records.values();
        records.filter(|record| record.rule == Some(rule)).count() as u32
    }

    /// Adds an agent to a rule.
    fn came(&mut self, rule: usize) {
        let count = self.count(rule);
        let title = self.policy.rules[rule].title();
        for expected in &mut self.expected {
            if expected.rule == rule && count >= expected.agents {
                if expected.state == State::Missing {
                    self.wants.push(("complete", (0, 0, 0), number_of(&title)));
                }
                expected.state = State::HaveCome;
            }
        }
    }

    pub(super) fn agents_missing(&mut self, title: &str, agents: u32, present: u32) {
        let now_ns = self.now.observer_ns;
        let place = self.expected.iter().position(|expected| {
            let is_due =
                matches!(expected.state, State::Awaited { until_ns } if until_ns <= now_ns);
            let is_it = self.policy.rules[expected.rule].title() == title;
            is_due && is_it && expected.agents == agents && self.count(expected.rule) == present
        });
        let place = place.unwrap_or_else(|| panic!("missed, and not expected: {title}"));
        self.expected[place].state = State::Missing;
    }

    pub(super) fn check_expected(&self) {
        let now_ns = self.now.observer_ns;
        for expected in &self.expected {
            if let State::Awaited { until_ns } = expected.state {
                assert!(
                    now_ns <= until_ns + PUNCTUAL_NS,
                    "not said to be missing: {expected:?}"
                );
            }
        }
    }

    /// Missing agents.
    pub(crate) fn missing(&self) -> u64 {
        let missing = self.expected.iter();
        let missing = missing.filter(|expected| expected.state == State::Missing);
        let short = missing.map(|expected| {
            let present = self.count(expected.rule);
            u64::from(expected.agents.saturating_sub(present))
        });
        short.sum()
    }

    pub(super) fn on_policy(&mut self, policy: Arc<Policy>) {
        let now_ns = self.now.observer_ns;
        let old = std::mem::replace(&mut self.policy, policy);
        match (old.mode, self.policy.mode) {
            (Mode::DryRun, Mode::DryRun) => {}
            (Mode::DryRun, _) => self.forget_rehearsal(),
            _ => self.rehearsed_since_ns = now_ns,
        }
        self.replace_hold_limits();
        let before = std::mem::take(&mut self.expected);
        let mut expected = expected_of(&self.policy, now_ns);
        for expected in &mut expected {
            let rule = &self.policy.rules[expected.rule];
            let same = old.rules.iter().position(|old| is_same(old, rule));
            if let Some(same) = same {
                let before = before.iter().find(|before| before.rule == same);
                expected.state = before.map_or(State::HaveCome, |before| before.state);
            }
        }
        self.expected = expected;
        for record in self.records.values_mut() {
            record.rule = None;
        }
        let agents = self.records.values().map(|record| record.agent);
        let mut agents: Vec<Agent> = agents.collect();
        agents.retain(|agent| !self.assign_rule(*agent));
        for agent in agents {
            self.replace_ladders(agent);
        }
    }
}
