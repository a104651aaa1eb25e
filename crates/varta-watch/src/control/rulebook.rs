//! Which rule holds for which agent, and which agents are expected and do not come.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use tokio::time::Instant;
use varta_core::ladder::Lineage;
use varta_core::rules::{Known, Namespace, first_match};
use varta_core::{Agent, BeatLimit, BeatOrigin, Deadlines, Fact};

use super::nanoseconds;
use crate::process_info::facts::Facts;
use crate::settings::policy::{AgentRule, LadderChoice, Policy};

/// What is known of an agent when it joins.
pub(super) struct Newcomer<'a> {
    pub(super) agent: Agent,
    pub(super) facts: Option<&'a Facts>,
    pub(super) uid: Option<u32>,
    pub(super) origin: BeatOrigin,
    pub(super) sealed: bool,
    pub(super) address: Option<IpAddr>,
}

/// What an agent is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    agent: Agent,
    rule: Option<usize>,
    lineage: Lineage,
    origin: BeatOrigin,
    /// What it may send, as the beat path was told.
    limit: BeatLimit,
    /// How long it may be silent, if the beat path was told.
    patience: Option<Deadlines>,
}

/// A rule whose agents are awaited.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    rule: usize,
    until: Instant,
}

/// The book.
#[derive(Debug, Default)]
pub(super) struct Rulebook {
    entries: HashMap<u32, Entry>,
    /// Agents there are, by rule.
    present: Vec<u32>,
    awaited: Vec<Awaited>,
    /// Rules whose expectation was not met and is not now.
    missing: Vec<usize>,
}

impl Rulebook {
    /// A new set of rules in place of `old` ones. New expectations count from now, the others go on. The agents
    /// have to be entered anew.
    pub(super) fn open(&mut self, old: &[AgentRule], policy: &Policy, now: Instant) {
        for entry in self.entries.values_mut() {
            entry.rule = None;
        }
        self.present = vec![0; policy.rules.len()];
        let awaited = std::mem::take(&mut self.awaited);
        let missing = std::mem::take(&mut self.missing);
        for (rule, agent) in policy.rules.iter().enumerate() {
            let Some(expectation) = agent.expectation else {
                continue;
            };
            match old.iter().position(|old| old.expects_the_same(agent)) {
                Some(old) if missing.contains(&old) => self.missing.push(rule),
                Some(old) => {
                    let old = awaited.iter().find(|awaited| awaited.rule == old);
                    self.awaited.extend(old.map(|old| Awaited { rule, ..*old }));
                }
                None => {
                    let until = now.checked_add(expectation.within);
                    self.awaited
                        .extend(until.map(|until| Awaited { rule, until }));
                }
            }
        }
    }

    /// Finds the rule of an agent. If all agents that this rule has missed are there now, what they are called.
    pub(super) fn enter(&mut self, policy: &Policy, newcomer: &Newcomer) -> Option<String> {
        let facts = newcomer.facts;
        let exe = facts.and_then(|facts| facts.exe.as_deref());
        let known = Known {
            name: facts.map_or("", |facts| &facts.name),
            exe: exe.and_then(std::path::Path::to_str),
            cgroup: facts.and_then(|facts| facts.cgroup.as_deref()),
            unit: facts.and_then(|facts| facts.units.system.as_deref()),
            user_unit: facts.and_then(|facts| facts.units.user.as_deref()),
            uid: newcomer.uid,
            namespace: facts.filter(|facts| !facts.pids.is_empty()).map(|facts| {
                match facts.is_foreign() {
                    true => Namespace::Other,
                    false => Namespace::Own,
                }
            }),
            origin: newcomer.origin,
            sealed: newcomer.sealed,
            source: newcomer.address,
        };
        let rule = first_match(policy.rules.iter().map(|rule| &rule.selector), &known);
        let entry = Entry {
            agent: newcomer.agent,
            rule,
            lineage: lineage_of(&known),
            origin: newcomer.origin,
            limit: BeatLimit::Common,
            patience: None,
        };
        let before = self.leave_slot(newcomer.agent.slot);
        let before = before.filter(|before| before.agent == newcomer.agent);
        let entry = before.map_or(entry, |before| Entry {
            limit: before.limit,
            patience: before.patience,
            ..entry
        });
        self.entries.insert(newcomer.agent.slot, entry);
        let rule = rule?;
        self.present[rule] += 1;
        let is_complete = policy.rules[rule]
            .expectation
            .is_some_and(|expectation| self.present[rule] >= expectation.agents);
        if is_complete {
            self.awaited.retain(|awaited| awaited.rule != rule);
        }
        let was_missing = self.missing.contains(&rule);
        if is_complete {
            self.missing.retain(|missing| *missing != rule);
        }
        (is_complete && was_missing).then(|| policy.rules[rule].title())
    }

    /// Remembers what an agent may send; true if that is news.
    pub(super) fn note_limit(&mut self, agent: Agent, limit: BeatLimit) -> bool {
        let entry = self.entries.get_mut(&agent.slot);
        let entry = entry.filter(|entry| entry.agent == agent);
        entry.is_some_and(|entry| std::mem::replace(&mut entry.limit, limit) != limit)
    }

    /// Remembers how long an agent may be silent; true if that is news. `known` is what the beat path goes by
    /// unless it was told otherwise.
    pub(super) fn note_patience(
        &mut self,
        agent: Agent,
        patience: Deadlines,
        known: Deadlines,
    ) -> bool {
        let entry = self.entries.get_mut(&agent.slot);
        let entry = entry.filter(|entry| entry.agent == agent);
        entry.is_some_and(|entry| entry.patience.replace(patience).unwrap_or(known) != patience)
    }

    /// An agent is gone.
    pub(super) fn leave(&mut self, agent: Agent) {
        if self.entry_of(agent).is_some() {
            self.leave_slot(agent.slot);
        }
    }

    fn leave_slot(&mut self, slot: u32) -> Option<Entry> {
        let entry = self.entries.remove(&slot)?;
        if let Some(rule) = entry.rule {
            self.present[rule] -= 1;
        }
        Some(entry)
    }

    /// The rule an agent is held to, if any speaks of it.
    pub(super) fn rule_of<'a>(&self, policy: &'a Policy, agent: Agent) -> Option<&'a AgentRule> {
        policy.rules.get(self.entry_of(agent)?.rule?)
    }

    /// The ladder meant for an agent.
    pub(super) fn ladder_of(&self, policy: &Policy, agent: Agent) -> Option<u32> {
        let choice = self
            .rule_of(policy, agent)
            .map_or(LadderChoice::Default, |rule| rule.ladder);
        let ladder = match choice {
            LadderChoice::Default => policy.default_ladder,
            LadderChoice::None => None,
            LadderChoice::Named(ladder) => Some(ladder),
        };
        ladder.and_then(|ladder| u32::try_from(ladder).ok())
    }

    /// How an agent is heard.
    pub(super) fn origin_of(&self, agent: Agent) -> Option<BeatOrigin> {
        Some(self.entry_of(agent)?.origin)
    }

    /// What an agent has in common with its predecessors and successors.
    pub(super) fn lineage_of(&self, agent: Agent) -> Lineage {
        let entry = self.entry_of(agent);
        entry.map_or_else(Lineage::default, |entry| entry.lineage)
    }

    /// Every agent with what it has in common with others.
    pub(super) fn lineages(&self) -> impl Iterator<Item = (Agent, Lineage)> {
        let entries = self.entries.values();
        entries.map(|entry| (entry.agent, entry.lineage))
    }

    /// When the next expectation runs out.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.awaited.iter().map(|awaited| awaited.until).min()
    }

    /// Expectations that have run out, each told once.
    pub(super) fn take_missing(&mut self, policy: &Policy, now: Instant) -> Vec<Fact> {
        let mut missing = Vec::new();
        self.awaited.retain(|awaited| {
            if awaited.until > now {
                return true;
            }
            let rule = &policy.rules[awaited.rule];
            if let Some(expectation) = rule.expectation {
                self.missing.push(awaited.rule);
                missing.push(Fact::AgentsMissing {
                    selection: rule.title(),
                    expected: expectation.agents,
                    present: self.present[awaited.rule],
                    within_ns: nanoseconds(expectation.within),
                });
            }
            false
        });
        missing
    }

    /// Agents that were expected in time, did not come and are not there now.
    pub(super) fn count_missing(&self, policy: &Policy) -> u64 {
        let short = self.missing.iter().filter_map(|rule| {
            let expected = policy.rules.get(*rule)?.expectation?.agents;
            Some(u64::from(expected.saturating_sub(self.present[*rule])))
        });
        short.sum()
    }

    fn entry_of(&self, agent: Agent) -> Option<&Entry> {
        let entry = self.entries.get(&agent.slot);
        entry.filter(|entry| entry.agent == agent)
    }
}

/// What an agent has in common with others. Any user but root is free to call its processes what it likes, and to
/// run any program, so what it cannot choose makes its agents kin.
fn lineage_of(known: &Known<'_>) -> Lineage {
    // 0 is nobody's.
    let hash = |what: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        what(&mut hasher);
        hasher.finish() | 1
    };
    let user = known.uid.filter(|uid| *uid != 0);
    Lineage {
        service: hash(&|hasher| {
            (known.name, known.exe, known.unit, known.uid, known.source).hash(hasher);
        }),
        kin: user.map_or(0, |user| hash(&|hasher| (user, known.unit).hash(hasher))),
        user: known.uid,
    }
}
