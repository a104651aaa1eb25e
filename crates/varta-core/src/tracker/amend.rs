//! Changes by the operator to a known agent: its deadlines, and pauses.
//!
//! No change alone makes an agent stall, and counts, wheel and queues stay consistent.

use std::sync::atomic::AtomicU64;

use super::{Deadlines, Tracker};
use crate::agent::Agent;
use crate::slot::{Slot, SlotState};

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// Sets new deadlines for an agent. Its silence so far counts, unless the change alone would make it
    /// stall now: then it has its full new threshold from `now_ns` on. A reported tier of this silence is not
    /// reported again. False if the agent has left.
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
                // The wheel determines whether it still is one.
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

    /// Does not count silence of this agent's process, in any of its streams, from `now_ns` to `until_ns`; after that
    /// it has its full threshold. A reported stall ends without a return, so silence after the pause is a new stall.
    /// The pause ends by itself; another one replaces it. False if the process has left.
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
    /// paused. False if it has left.
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
