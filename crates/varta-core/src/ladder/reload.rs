//! Replacing ladders that are in progress, and ending a rehearsal.

use super::{Entry, LadderTiming, Ladders, NO_LADDER, Phase};
use crate::agent::Agent;
use crate::permits::PermitLimits;

impl Ladders {
    /// Replaces ladders and limits. A silent agent keeps its position if its ladder has not changed, else it starts the
    /// one that `ladder_of` returns; without one nothing more is done about it.
    pub fn reload(
        &mut self,
        ladders: Vec<LadderTiming>,
        limits: PermitLimits,
        mut ladder_of: impl FnMut(Agent) -> Option<u32>,
        now_ns: u64,
    ) {
        let old = std::mem::replace(&mut self.ladders, ladders.into_boxed_slice());
        self.permits.set_limits(limits);
        self.user_budgets.set_budget(limits.user_budget);
        for slot in 0..self.entries.len() as u32 {
            let entry = &mut self.entries[slot as usize];
            if !entry.silent {
                continue;
            }
            let agent = entry.agent;
            let before = old.get(entry.ladder as usize);
            let after = ladder_of(agent).filter(|new| (*new as usize) < self.ladders.len());
            entry.ladder = after.unwrap_or(NO_LADDER);
            let is_stopped = entry.phase == Phase::Idle && !entry.gave_up && !entry.in_flight;
            if before == self.ladders.get(entry.ladder as usize) && !is_stopped {
                if entry.phase == Phase::AwaitingBudget {
                    // The new limits may allow more.
                    self.arm(agent, now_ns);
                }
                continue;
            }
            entry.phase = Phase::Idle;
            entry.gave_up = false;
            entry.failures = 0;
            let may_begin = after.is_some() && !entry.in_flight;
            self.clear_timer(slot);
            if may_begin {
                self.begin(slot, now_ns);
            }
        }
    }

    /// Discards what was started since `since_ns` as a rehearsal: no budget was spent, and no silent agent was
    /// acted on. The caller feeds the stalls of silent agents again with [`Self::on_stall`].
    pub fn forget_rehearsal(&mut self, since_ns: u64) {
        self.carryovers.forget_starts(since_ns);
        self.user_budgets.forget();
        for slot in 0..self.entries.len() as u32 {
            let entry = &mut self.entries[slot as usize];
            let (agent, user, in_flight) = (entry.agent, entry.user, entry.in_flight);
            if entry.last_start_ns < since_ns && !entry.silent {
                continue;
            }
            let history = &mut self.history[slot as usize];
            history.forget_since(since_ns);
            *entry = Entry {
                in_flight,
                escalations: entry.escalations.min(history.count()),
                last_start_ns: history.last_ns(),
                silence_ended_ns: entry.silence_ended_ns,
                ..Entry::of(agent, user)
            };
            self.clear_timer(slot);
        }
    }
}
