//! The pending work for agents of one locality: timers, due actions that wait for a permit, and pending reports. Local
//! and remote agents have a lane each, so that neither delays the other.
//!
//! Bounds: everything is allocated at construction, by slot.

use super::{Action, GaveUp, Ladders, Next, Phase};
use crate::agent::Locality;
use crate::fifo::Fifo;
use crate::permits::Purpose;
use crate::wheel::Wheel;

/// The pending work for agents of one locality.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) timers: Wheel,
    /// Due actions that wait for a permit, oldest first.
    pub(super) ready: Ready,
    /// Agents with a waiting action that was not reported yet.
    pub(super) unreported: Fifo,
    pub(super) is_held: bool,
}

/// Due actions; those that need no permit come first.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) instant: Fifo,
    pub(super) lasting: Fifo,
}

impl Ready {
    pub(super) fn queue(&mut self, needs_permit: bool) -> &mut Fifo {
        match needs_permit {
            false => &mut self.instant,
            true => &mut self.lasting,
        }
    }
}

impl Lane {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            timers: Wheel::new(capacity),
            ready: Ready {
                instant: Fifo::new(capacity),
                lasting: Fifo::new(capacity),
            },
            unreported: Fifo::new(capacity),
            is_held: false,
        }
    }
}

impl Ladders {
    /// Starts the action that has waited longest, if there is a permit and budget for it.
    pub(super) fn start_ready(&mut self, locality: Locality, now_ns: u64) -> Option<Next> {
        [false, true]
            .into_iter()
            .find_map(|needs_permit| self.start_first(locality, needs_permit, now_ns))
    }

    fn start_first(&mut self, locality: Locality, needs_permit: bool, now_ns: u64) -> Option<Next> {
        let (slot, agent, user) = loop {
            let slot = self.first_ready(locality, needs_permit)?;
            let entry = self.entries.get_mut(slot as usize)?;
            let (agent, user) = (entry.agent, entry.user);
            let ladder = self.ladders.get(entry.ladder as usize)?;
            let history = &self.history[slot as usize];
            if history.have_spent(ladder.budget, ladder.window_ns, now_ns) {
                entry.phase = Phase::Idle;
                entry.gave_up = true;
                self.leave_queue(slot);
                return Some(Next::GaveUp(agent, GaveUp::BudgetSpent));
            }
            let user_may_ns = self.user_budgets.start_at_ns(user);
            let Some(uid) = user.filter(|_| user_may_ns > now_ns) else {
                break (slot, agent, user);
            };
            entry.phase = Phase::AwaitingBudget;
            let was_reported = std::mem::replace(&mut entry.user_wait_reported, true);
            self.leave_queue(slot);
            self.arm(agent, user_may_ns);
            if !was_reported {
                return Some(Next::UserWaits(agent, uid));
            }
        };
        let may_start = match needs_permit {
            true => self.permits.take(locality, Purpose::Ladder, now_ns),
            false => self.permits.start(now_ns),
        };
        if !may_start {
            return None;
        }
        self.leave_queue(slot);
        let entry = &mut self.entries[slot as usize];
        let history = &mut self.history[slot as usize];
        history.add(now_ns);
        self.user_budgets.add(user, now_ns);
        entry.phase = Phase::Acting;
        entry.in_flight = true;
        entry.last_start_ns = history.last_ns();
        if entry.acts == 0 {
            entry.escalations = entry.escalations.saturating_add(1);
        }
        entry.acts = entry.acts.saturating_add(1);
        Some(Next::Act(Action {
            agent,
            ladder: entry.ladder,
            step: entry.step,
            needs_permit,
        }))
    }

    /// The next agent with a waiting action that was not reported yet.
    pub(super) fn report_waiting(&mut self) -> Option<Next> {
        loop {
            let mut localities = self.free_localities();
            let slot = localities.find_map(|locality| self.lanes[locality].unreported.front())?;
            if !self.is_parked(slot) {
                let agent = self.entries.get(slot as usize)?.agent;
                self.lanes[agent.locality()].unreported.remove(slot);
                return Some(Next::Waits(agent));
            }
        }
    }

    /// Removes an agent from the queues that wait for a permit.
    pub(super) fn leave_queue(&mut self, slot: u32) {
        for locality in Locality::ALL {
            let lane = &mut self.lanes[locality];
            lane.ready.instant.remove(slot);
            lane.ready.lasting.remove(slot);
            lane.unreported.remove(slot);
        }
    }

    /// The lanes for which fire is not held.
    pub(super) fn free_localities(&self) -> impl Iterator<Item = Locality> + use<> {
        let is_held = Locality::ALL.map(|locality| self.lanes[locality].is_held);
        let localities = Locality::ALL.into_iter().zip(is_held);
        localities.filter_map(|(locality, is_held)| (!is_held).then_some(locality))
    }
}
