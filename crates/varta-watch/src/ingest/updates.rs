//! Doing what the control thread has decided: answers about strangers, keys, rules, limits and pauses.
//!
//! A bounded number per turn; an update about an agent that has left by now is void.

use varta_core::{Agent, BeatLimit, LimitOptions};

use super::Ingest;
use crate::handoff::Update;

/// Updates of the control thread taken per turn.
const UPDATE_BUDGET: usize = 1024;

impl Ingest {
    pub(super) fn apply_updates(&mut self) {
        if !std::mem::take(&mut self.ready.updates) {
            return;
        }
        self.lines.updates.quiet();
        for _ in 0..UPDATE_BUDGET {
            let Some(update) = self.lines.updates.pop() else {
                return;
            };
            self.apply(update);
            self.lines.updates.done();
        }
        // There may be more, and the bell has been quieted.
        self.lines.updates.ring_again();
    }

    /// Does what the control thread has decided. An update about an agent that has left by now is void.
    fn apply(&mut self, update: Update) {
        let now_ns = self.attention.now_ns();
        match update {
            Update::Introduce(introduction) => self.introduce(introduction),
            Update::Know(agent, acquaintance) => self.get_to_know(agent, &acquaintance),
            Update::Ended(agent, process) => {
                if self.tracker.agent_in(agent.slot) == Some(agent) {
                    self.retire(agent, process);
                }
            }
            Update::PidMax(pid_max) => self.config.gate.pid_max = pid_max,
            Update::Keys(ring) => {
                if let Some(network) = &mut self.network {
                    network.replace_keys(ring);
                }
            }
            Update::Deadlines(agent, deadlines) => {
                self.tracker.set_deadlines(agent, deadlines, now_ns);
            }
            Update::Pause(agent, time) => {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                let until_ns = now_ns.saturating_add(time_ns);
                self.tracker.pause(agent, until_ns, now_ns);
            }
            Update::Resume(agent) => {
                self.tracker.resume(agent, now_ns);
            }
            Update::BeatRate(agent, limit) => self.limit(agent, limit),
            Update::Limits(options) => self.replace_limits(options),
            Update::Threshold(threshold_ns) => self.config.threshold_ns = threshold_ns,
        }
    }

    fn limit(&mut self, agent: Agent, limit: BeatLimit) {
        if self.tracker.agent_in(agent.slot) == Some(agent) {
            let now_ns = self.attention.raw_now_ns();
            self.limits.set_agent_limit(agent.slot, limit, now_ns);
            if let BeatLimit::Own(rate) = limit {
                self.shed.allow(rate.per_second);
            }
        }
    }

    fn replace_limits(&mut self, options: LimitOptions) {
        self.limits.replace(options);
        if let Some(rate) = options.agent {
            self.shed.allow(rate.per_second);
        }
    }
}
