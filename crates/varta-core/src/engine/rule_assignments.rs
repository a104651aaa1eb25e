//! Which rule applies to which agent, its consequences, and the expected agents that are missing.
//!
//! Bounds: two numbers per rule, and a deadline per rule that expects agents.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::agents::AgentRecord;
use crate::fact::Fact;
use crate::ladder::Lineage;
use crate::policy::{AgentRule, Policy};
use crate::rules::{Known, Namespace, first_match};
use crate::slot::Slot;
use crate::tracker::Deadlines;

/// The facts of an agent for the selectors of the rules.
pub(super) fn known<'a>(record: &'a AgentRecord, slot: &Slot) -> Known<'a> {
    let facts = record.facts.as_ref();
    let process = facts.map(|facts| &facts.process);
    let exe = process.and_then(|process| process.exe.as_deref());
    let namespace = |is_foreign| match is_foreign {
        true => Namespace::Other,
        false => Namespace::Own,
    };
    Known {
        name: facts.map_or("", |facts| &facts.name),
        exe: exe.and_then(std::path::Path::to_str),
        cgroup: process.and_then(|process| process.cgroup.as_deref()),
        unit: process.and_then(|process| process.unit.as_deref()),
        user_unit: process.and_then(|process| process.user_unit.as_deref()),
        uid: Some(slot.uid).filter(|uid| *uid != crate::agent::UID_UNKNOWN),
        namespace: facts.and_then(|facts| facts.is_foreign).map(namespace),
        origin: slot.origin,
        sealed: record.info.sealed,
        source: record.info.address,
    }
}

/// The number of the rule that applies.
pub(super) fn rule_for(policy: &Policy, known: &Known<'_>) -> Option<usize> {
    first_match(policy.rules.iter().map(|rule| &rule.selector), known)
}

/// The lineage of an agent. Any user but root may choose the names and programs of its processes, so its agents
/// are kin by what it cannot choose.
pub(super) fn lineage_of(known: &Known<'_>) -> Lineage {
    // 0 means no lineage.
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

/// The deadlines of an agent.
pub(super) fn deadlines(policy: &Policy, rule: Option<&AgentRule>, is_remote: bool) -> Deadlines {
    let threshold = rule.and_then(|rule| rule.threshold);
    let threshold = threshold.unwrap_or(policy.threshold);
    let grace = rule.filter(|_| is_remote);
    let grace = grace.map_or(Duration::ZERO, |rule| rule.network_grace);
    let late = rule.and_then(|rule| rule.late).or(policy.late);
    // A soft tier that is not shorter than the threshold would never be reached.
    let late = late.filter(|late| *late < threshold);
    Deadlines {
        threshold_ns: nanoseconds(threshold.saturating_add(grace)),
        late_ns: late.map_or(0, |late| nanoseconds(late.saturating_add(grace))),
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A rule with an open expectation.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    rule: usize,
    until_ns: u64,
}

/// How many agents each rule has, and how many it expects.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    /// Number of agents, by rule.
    present: Vec<u32>,
    awaited: Vec<Awaited>,
    /// Rules whose expectation was not met in time and is still not met.
    missing: Vec<usize>,
}

impl Expectations {
    /// Replaces the `old` rules. New expectations count from now, unchanged ones continue. The caller adds every
    /// agent again.
    pub(super) fn replace_rules(&mut self, old: &[AgentRule], policy: &Policy, now_ns: u64) {
        self.present = vec![0; policy.rules.len()];
        let awaited = std::mem::take(&mut self.awaited);
        let missing = std::mem::take(&mut self.missing);
        for (rule, agents) in policy.rules.iter().enumerate() {
            let Some(expectation) = agents.expectation else {
                continue;
            };
            match old.iter().position(|old| old.expects_the_same(agents)) {
                Some(old) if missing.contains(&old) => self.missing.push(rule),
                Some(old) => {
                    let old = awaited.iter().find(|awaited| awaited.rule == old);
                    self.awaited.extend(old.map(|old| Awaited { rule, ..*old }));
                }
                None => {
                    let until_ns = now_ns.checked_add(nanoseconds(expectation.within));
                    self.awaited
                        .extend(until_ns.map(|until_ns| Awaited { rule, until_ns }));
                }
            }
        }
    }

    /// Adds an agent to a rule. Returns the fact if the rule's missing agents are now complete.
    pub(super) fn add(&mut self, policy: &Policy, rule: usize) -> Option<Fact> {
        self.present[rule] += 1;
        let expectation = policy.rules[rule].expectation?;
        if self.present[rule] < expectation.agents {
            return None;
        }
        self.awaited.retain(|awaited| awaited.rule != rule);
        let was_missing = self.missing.contains(&rule);
        self.missing.retain(|missing| *missing != rule);
        was_missing.then(|| Fact::AgentsComplete {
            selection: policy.rules[rule].title(),
        })
    }

    /// Removes an agent from a rule.
    pub(super) fn remove(&mut self, rule: usize) {
        self.present[rule] -= 1;
    }

    /// When the next expectation runs out.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        self.awaited.iter().map(|awaited| awaited.until_ns).min()
    }

    /// Expectations that have run out, each once.
    pub(super) fn take_missing(&mut self, policy: &Policy, now_ns: u64) -> Vec<Fact> {
        let mut facts = Vec::new();
        self.awaited.retain(|awaited| {
            if awaited.until_ns > now_ns {
                return true;
            }
            let rule = &policy.rules[awaited.rule];
            if let Some(expectation) = rule.expectation {
                self.missing.push(awaited.rule);
                facts.push(Fact::AgentsMissing {
                    selection: rule.title(),
                    expected: expectation.agents,
                    present: self.present[awaited.rule],
                    within_ns: nanoseconds(expectation.within),
                });
            }
            false
        });
        facts
    }

    /// Agents that were expected in time, did not join and are still missing.
    pub(super) fn count_missing(&self, policy: &Policy) -> u64 {
        let short = self.missing.iter().filter_map(|rule| {
            let expected = policy.rules.get(*rule)?.expectation?.agents;
            Some(u64::from(expected.saturating_sub(self.present[*rule])))
        });
        short.sum()
    }
}
