//! A change of policy at run time, and the rule that applies to an agent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::effect::{AgentUpdate, Effect};
use super::ladders::{ladder_of, limits, refusal, rhythms};
use super::rule_assignments::{deadlines, known, lineage_of, rule_for};
use crate::admission::{BeatLimit, Rate};
use crate::agent::Agent;
use crate::fact::Fact;
use crate::policy::{AgentRule, Mode, Policy};
use crate::tracker::Deadlines;

/// Burst of an agent with a limit of its own, in seconds of its rate.
const BURST_SECONDS: u32 = 10;

impl Engine {
    /// Replaces rules, ladders and limits. Running actions continue; a silent agent keeps its position where its
    /// ladder is unchanged, and restarts at the first step where it is not.
    pub(super) fn on_policy(
        &mut self,
        policy: Arc<Policy>,
        programs: Vec<(Agent, Option<PathBuf>)>,
    ) {
        let now_ns = self.now.observer_ns;
        for (agent, exe) in programs {
            if let Some(record) = self.agents.get_mut(agent)
                && let Some(facts) = &mut record.facts
            {
                facts.process.exe = exe;
            }
        }
        let before = std::mem::replace(&mut self.policy, policy);
        self.host.replace_policy(&self.policy);
        self.expectations
            .replace_rules(&before.rules, &self.policy, now_ns);
        for record in self.agents.iter_mut() {
            record.rule = None;
        }
        match (before.mode, self.policy.mode) {
            (Mode::DryRun, Mode::DryRun) => {}
            // All earlier steps were rehearsals.
            (Mode::DryRun, _) => {
                if let Some(ladders) = &mut self.ladders {
                    ladders.forget_rehearsal(self.rehearsed_since_ns);
                }
            }
            (_, _) => self.rehearsed_since_ns = now_ns,
        }
        let mut agents: Vec<Agent> = self.agents.iter().map(|record| record.agent).collect();
        agents.retain(|agent| !self.assign_rule(*agent));
        self.replace_ladders();
        // Agents that fell silent while recovery was off.
        for agent in agents {
            self.recover_forgotten(agent);
        }
    }

    /// Replaces the ladders and limits.
    fn replace_ladders(&mut self) {
        let Self {
            agents,
            policy,
            ladders,
            options,
            now,
            ..
        } = self;
        let wanted = |agent: Agent| {
            let record = agents.get(agent).filter(|record| record.origin.is_some())?;
            let may_act = policy.mode != Mode::Observe && refusal(record).is_none();
            ladder_of(policy, record).filter(|_| may_act)
        };
        if let Some(ladders) = ladders {
            let limits = limits(policy, options.own_uid);
            ladders.reload(rhythms(policy), limits, wanted, now.observer_ns);
        }
    }

    /// Assigns the rule of an agent, updates the beat path, and sets the agent's label. True if it was stalled
    /// and is not by that rule.
    pub(super) fn assign_rule(&mut self, agent: Agent) -> bool {
        let (Some(slot), Some(record)) = (self.slot_of(agent), self.agents.get_mut(agent)) else {
            self.show(agent);
            return false;
        };
        let known = known(record, &slot);
        let rule = rule_for(&self.policy, &known);
        record.lineage = lineage_of(&known);
        record.origin = Some(slot.origin);
        let before = std::mem::replace(&mut record.rule, rule);
        let rule_data = rule.map(|rule| &self.policy.rules[rule]);
        record.rename(rule_data.and_then(|rule| rule.label.clone()));
        let deadlines = deadlines(&self.policy, rule_data, agent.is_remote());
        // The default that the beat path applies without an update.
        let default = Deadlines {
            threshold_ns: slot.threshold_ns,
            late_ns: slot.late_ns,
        };
        let has_other_deadlines =
            record.deadlines.replace(deadlines).unwrap_or(default) != deadlines;
        let limit = beat_limit(rule_data);
        let has_other_limit = std::mem::replace(&mut record.limit, limit) != limit;
        if let Some(before) = before {
            self.expectations.remove(before);
        }
        let complete = rule.and_then(|rule| self.expectations.add(&self.policy, rule));
        self.show(agent);
        complete.into_iter().for_each(|fact| self.publish(fact));
        if has_other_deadlines {
            let update = AgentUpdate::Deadlines(agent, deadlines);
            self.effects.push_back(Effect::Update(update));
        }
        if has_other_limit {
            let update = AgentUpdate::BeatLimit(agent, limit);
            self.effects.push_back(Effect::Update(update));
        }
        has_other_deadlines && self.excuse_stall(agent)
    }

    /// Excuses an agent that has not stalled by the current threshold, which the beat path may not have applied yet.
    /// False if it has stalled, or if the stall is over.
    pub(super) fn excuse_stall(&mut self, agent: Agent) -> bool {
        let slot = self.slot_of(agent).filter(|slot| slot.state.is_latched());
        // A pause that the beat path has not applied yet ends the stall by itself, and must not be cut short.
        let Some(slot) = slot.filter(|_| !self.is_paused(agent)) else {
            return false;
        };
        let silence_ns = slot.silence_ns(self.now.attention_ns);
        let threshold_ns = self.threshold_ns(agent).unwrap_or(slot.threshold_ns);
        let is_excused = silence_ns < threshold_ns;
        if is_excused {
            self.excuse(agent, silence_ns, threshold_ns);
        }
        is_excused
    }

    /// Ends a stall that is none by the current rule: no further step is taken about it. The agent has its full
    /// threshold from now on.
    fn excuse(&mut self, agent: Agent, silence_ns: u64, threshold_ns: u64) {
        // A pause of zero length: the reported stall is over, and later silence is reported again.
        let update = AgentUpdate::Pause(agent, Duration::ZERO);
        self.effects.push_back(Effect::Update(update));
        self.end_silence(agent);
        self.publish(Fact::StallExcused {
            agent: self.agent_ref(agent),
            silence_ns,
            threshold_ns,
        });
    }
}

/// The rate limit of an agent by its rule.
fn beat_limit(rule: Option<&AgentRule>) -> BeatLimit {
    match rule.and_then(|rule| rule.max_beat_rate) {
        None => BeatLimit::Common,
        Some(0) => BeatLimit::Unlimited,
        Some(per_second) => BeatLimit::Own(Rate {
            per_second,
            burst: per_second.saturating_mul(BURST_SECONDS),
        }),
    }
}
