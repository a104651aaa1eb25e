//! Doing what the control thread has decided: answers about strangers, keys, rules, limits and pauses.
//!
//! A bounded number per turn; an order about an agent that has left by now is void.

use varta_core::{Agent, BeatLimit, LimitOptions};

use super::Ingest;
use crate::handoff::Order;

/// Orders of the control thread taken per turn.
const ORDER_BUDGET: usize = 1024;

impl Ingest {
    pub(super) fn drain_orders(&mut self) {
        if !std::mem::take(&mut self.ready.orders) {
            return;
        }
        self.lines.orders.quiet();
        for _ in 0..ORDER_BUDGET {
            let Some(order) = self.lines.orders.pop() else {
                return;
            };
            self.obey(order);
            self.lines.orders.done();
        }
        // There may be more, and the bell has been quieted.
        self.lines.orders.ring_again();
    }

    /// Does what the control thread has decided. An order about an agent that has left by now is void.
    fn obey(&mut self, order: Order) {
        let now_ns = self.attention.now_ns();
        match order {
            Order::Introduce(introduction) => self.introduce(introduction),
            Order::Know(agent, acquaintance) => self.get_to_know(agent, &acquaintance),
            Order::Ended(agent, process) => {
                if self.tracker.agent_in(agent.slot) == Some(agent) {
                    self.retire(agent, process);
                }
            }
            Order::PidMax(pid_max) => self.config.gate.pid_max = pid_max,
            Order::Keys(ring) => {
                if let Some(network) = &mut self.network {
                    network.replace_keys(ring);
                }
            }
            Order::Deadlines(agent, deadlines) => {
                self.tracker.set_deadlines(agent, deadlines, now_ns);
            }
            Order::Pause(agent, time) => {
                let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                let until_ns = now_ns.saturating_add(time_ns);
                self.tracker.pause(agent, until_ns, now_ns);
            }
            Order::Resume(agent) => {
                self.tracker.resume(agent, now_ns);
            }
            Order::BeatRate(agent, limit) => self.limit(agent, limit),
            Order::Limits(options) => self.replace_limits(options),
            Order::Threshold(threshold_ns) => self.config.threshold_ns = threshold_ns,
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
