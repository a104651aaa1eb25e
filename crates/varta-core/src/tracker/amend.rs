//! What an operator changes about an agent that is known: the rule it is held to, and pauses.
//!
//! Whatever changes, no agent is reported as stalled because of it alone, and counts, wheel and queues stay true.

use std::sync::atomic::AtomicU64;

use super::{Deadlines, Tracker};
use crate::agent::Agent;
use crate::slot::{Slot, SlotState};

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// Holds an agent to another rule. Its silence so far keeps counting, unless that alone would make a
    /// stall by now: then it has its full new threshold from `now_ns` on. What was already reported of this
    /// silence is not reported again. False if the agent is not there any more.
    pub fn set_deadlines(&mut self, agent: Agent, deadlines: Deadlines, now_ns: u64) -> bool {
        let Some(mut facts) = self.facts_of(agent) else {
            return false;
        };
        self.thresholds.remove(facts.threshold_ns);
        self.thresholds.add(deadlines.threshold_ns);
        facts.threshold_ns = deadlines.threshold_ns;
        facts.late_ns = deadlines.late_ns;
        let silence_ns = facts.silence_ns(now_ns);
        match facts.state {
            SlotState::Reclaimable => {
                // Whether it still is one is for the wheel to find out.
                facts.state = SlotState::Stalled;
                self.dequeue_reclaimable(agent.slot, &facts);
            }
            SlotState::Stalled | SlotState::Free => {}
            SlotState::Alive | SlotState::Late => {
                if silence_ns >= deadlines.threshold_ns {
                    facts.paused_until_ns = facts.paused_until_ns.max(now_ns);
                }
                let is_late =
                    deadlines.late_ns != 0 && facts.silence_ns(now_ns) >= deadlines.late_ns;
                if !is_late {
                    facts.state = SlotState::Alive;
                }
            }
        }
        self.rearm(agent.slot, &facts);
        true
    }

    /// Counts no silence of the process of this agent, in none of its streams, from `now_ns` to `until_ns`; after that
    /// it has its full threshold. A stall that was reported is over without a return, so silence after the pause is a
    /// stall of its own. The pause ends by itself; another one takes its place. False if the process is not there any
    /// more.
    pub fn pause(&mut self, agent: Agent, until_ns: u64, now_ns: u64) -> bool {
        self.for_each_stream(agent, |tracker, slot, mut facts| {
            if facts.state.is_latched() {
                tracker.latched -= 1;
                tracker.dequeue_reclaimable(slot, &facts);
            }
            facts.state = SlotState::Alive;
            facts.paused_until_ns = until_ns.max(now_ns);
            tracker.rearm(slot, &facts);
        })
    }

    /// Ends a pause: from `now_ns` on the process has its full threshold. Nothing changes for one that is not
    /// paused. False if it is not there any more.
    pub fn resume(&mut self, agent: Agent, now_ns: u64) -> bool {
        self.for_each_stream(agent, |tracker, slot, mut facts| {
            if now_ns < facts.paused_until_ns {
                facts.paused_until_ns = now_ns;
                tracker.rearm(slot, &facts);
            }
        })
    }

    fn rearm(&mut self, slot: u32, facts: &Slot) {
        self.table.store(slot, facts);
        self.wheel.arm(slot, facts.next_look_ns());
    }
}
