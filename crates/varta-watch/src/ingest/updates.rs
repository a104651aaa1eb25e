//! Applies the decisions of the control thread: replies about unknown processes, keys, rules, limits and pauses.
//!
//! Bounds: a limited number per turn. An update about an agent that has left by now has no effect.

use varta_core::{Agent, BeatLimit, LimitOptions};

use super::Ingest;
use crate::handoff::Update;

/// Updates of the control thread applied per turn.
const UPDATE_BUDGET: usize = 1024;

impl Ingest {
    pub(super) fn drain_updates(&mut self) {
        if !std::mem::take(&mut self.ready.updates) {
            return;
        }
        self.updates.quiet();
        for _ in 0..UPDATE_BUDGET {
            let Some(update) = self.updates.pop() else {
                return;
            };
            self.apply(update);
            self.updates.done();
        }
        // There may be more updates, and the eventfd has been cleared.
        self.updates.ring_again();
    }

    fn apply(&mut self, update: Update) {
        let recorder = &mut self.recorder;
        let now_ns = recorder.clock.now_ns();
        match update {
            Update::Identity(reply) => self.unix.settle(recorder, reply),
            Update::Info(agent, info) => recorder.learn(agent, &info),
            Update::Ended(agent, process) => {
                if recorder.tracker.agent_in(agent.slot) == Some(agent) {
                    recorder.retire_process(agent, process);
                }
            }
            Update::PidMax(pid_max) => recorder.senders.set_pid_max(pid_max),
            Update::Keys(ring) => {
                if let Some(udp) = &mut self.udp {
                    udp.replace_keys(ring);
                }
            }
            Update::Deadlines(agent, deadlines) => {
                recorder.tracker.set_deadlines(agent, deadlines, now_ns);
            }
            Update::Pause(agent, time) => {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                let until_ns = now_ns.saturating_add(time_ns);
                recorder.tracker.pause(agent, until_ns, now_ns);
            }
            Update::Resume(agent) => {
                recorder.tracker.resume(agent, now_ns);
            }
            Update::BeatLimit(agent, limit) => self.limit(agent, limit),
            Update::Limits(options) => self.replace_limits(options),
            Update::Threshold(threshold_ns) => recorder.options.threshold_ns = threshold_ns,
        }
    }

    fn limit(&mut self, agent: Agent, limit: BeatLimit) {
        let recorder = &mut self.recorder;
        if recorder.tracker.agent_in(agent.slot) == Some(agent) {
            let now_ns = recorder.clock.raw_ns();
            recorder.limits.set_agent_limit(agent.slot, limit, now_ns);
            if let BeatLimit::Own(rate) = limit {
                self.unix.shed.allow(rate.per_second);
            }
        }
    }

    fn replace_limits(&mut self, options: LimitOptions) {
        self.recorder.limits.replace(options);
        if let Some(rate) = options.agent {
            self.unix.shed.allow(rate.per_second);
        }
    }
}
