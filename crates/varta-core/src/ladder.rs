//! Ladders: which step is next for a stalled agent, and when. How a step is taken is up to the caller.
//!
//! `silent -> act -> wait -> act harder -> give up and report -> recovered, reset`. A ladder is data: steps
//! that act or wait, a budget of actions within a window, pauses that grow. The caller takes the steps and
//! reports how they ended.
//!
//! - An action that was handled gives the agent its time to come back, then the next step comes. One that
//!   failed leads to the next step at once; the last one is tried again with growing pauses.
//! - Nothing is lost: a step that debounce, a running action, the limits or a held fire postpone is taken
//!   later, while the agent stays silent. A silence ends when the agent is back, left or paused, or when no
//!   step is left or the budget is spent: then there is one [`Next::GaveUp`].
//! - At most one action is in flight per agent and a fixed number altogether, of which remote agents may have
//!   half, so that they cannot take the permits of local agents (law 3).
//!
//! [`hold`](crate::hold) decides when fire is held, [`engine`](crate::engine) which ladder an agent has.
//!
//! Bounds: everything is allocated at construction, by slot, except the list of users for which fire is held.

mod action_history;
mod budget_carryover;
mod lanes;
mod parked;
mod reload;
#[cfg(test)]
mod tests;
mod timing;

use crate::agent::{Agent, Locality, PerLocality};
use crate::fifo::Fifo;
use crate::permits::{PermitLimits, Permits, Purpose, UserBudgets};
use action_history::ActionHistory;
use budget_carryover::{BudgetCarryover, BudgetCarryovers};
use lanes::Lane;

pub use action_history::BUDGET_MAX;
pub use budget_carryover::Lineage;
pub use timing::{LadderTiming, StepTiming};

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionEnd {
    /// It succeeded: the agent has its time to come back.
    Handled,
    /// It could not be started, or failed.
    Failed,
    /// The observer lacks descriptors or memory for it. It is tried again a second later, and nothing is spent.
    Postponed,
    /// The target process has ended or beats again: nothing to do.
    TargetGone,
    /// Recovery may not act on this agent. Nothing more is tried in this silence, unless a reload changes
    /// what is allowed.
    Refused,
}

/// The answer to a stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The agent has no ladder.
    Nothing,
    /// The first step is due as soon as there is a permit.
    Now,
    /// The last action on this agent is too recent: the first step comes later.
    TooRecent,
    /// The last action on this agent, about an earlier silence, still runs: the first step comes when it has ended.
    StillActing,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this step; it is in flight until [`Ladders::on_end`].
    Act(Action),
    /// The next step for this agent is due and waits until the limits leave room for it. Reported once per step.
    Waits(Agent),
    /// As many actions as allowed were started for agents of this user: the next step for this agent waits until
    /// there may be more. Reported once per silence.
    UserWaits(Agent, u32),
    /// Nothing more is done in this silence. Reported once.
    GaveUp(Agent, GaveUp),
}

/// One step of a ladder for one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// The agent that it is about.
    pub agent: Agent,
    /// Number of the ladder.
    pub ladder: u32,
    /// Number of the step in the ladder.
    pub step: u32,
    /// Whether it holds a permit until it has ended (see [`StepTiming::Act`]).
    pub needs_permit: bool,
}

/// Why recovery gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// The last step was handled and the agent did not come back.
    StepsExhausted,
    /// The budget of actions within the window is spent.
    BudgetSpent,
}

/// What was done about a silence that is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SilenceEnded {
    /// An action was started.
    pub acted: bool,
    /// Recovery had given up.
    pub gave_up: bool,
}

/// The position of an agent on its ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing to do: not silent, no ladder, refused, or given up.
    Idle,
    /// The step starts when the timer fires.
    Due,
    /// The step is an action that waits for the budget of its user; the timer fires when the budget allows
    /// it.
    AwaitingBudget,
    /// The step is an action that waits for a permit.
    Ready,
    /// The action of the step runs.
    Acting,
    /// The agent has until the timer fires to come back.
    Waiting,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    agent: Agent,
    /// The user of a local agent, where it is known.
    user: Option<u32>,
    /// It was reported in this silence that the budget of its user is spent.
    user_wait_reported: bool,
    ladder: u32,
    step: u32,
    phase: Phase,
    silent: bool,
    /// Whether an action runs, perhaps that of an earlier silence.
    in_flight: bool,
    /// Actions of this silence that were started.
    acts: u32,
    gave_up: bool,
    /// Times the last step has failed in this silence.
    failures: u32,
    /// Silences with an action since the agent was last well for long.
    escalations: u32,
    /// 0 without any action so far.
    last_start_ns: u64,
    /// End of the last silence.
    silence_ended_ns: u64,
}

/// When a step that was postponed is tried again: 1 s, seldom enough not to add to the shortage.
const POSTPONED_NS: u64 = 1_000_000_000;

/// In place of the number of a ladder.
const NO_LADDER: u32 = u32::MAX;

impl Entry {
    const fn of(agent: Agent, user: Option<u32>) -> Self {
        Self {
            agent,
            user,
            user_wait_reported: false,
            ladder: NO_LADDER,
            step: 0,
            phase: Phase::Idle,
            silent: false,
            in_flight: false,
            acts: 0,
            gave_up: false,
            failures: 0,
            escalations: 0,
            last_start_ns: 0,
            silence_ended_ns: 0,
        }
    }
}

/// The position of every agent on its ladder, by slot.
#[derive(Debug)]
pub struct Ladders {
    ladders: Box<[LadderTiming]>,
    entries: Box<[Entry]>,
    /// When the last actions on each agent were started. Pages of agents without actions are never touched,
    /// so they take no memory.
    history: Box<[ActionHistory]>,
    carryovers: BudgetCarryovers,
    lanes: PerLocality<Lane>,
    permits: Permits,
    user_budgets: UserBudgets,
    held_users: Vec<u32>,
    /// Agents whose timer has fired, or whose turn came, while fire was held for their user.
    parked: Fifo,
    seed: u64,
}

impl Ladders {
    /// For a tracker with `capacity` slots. `seed` spreads the pauses of agents that failed at the same time.
    pub fn new(
        capacity: usize,
        ladders: Vec<LadderTiming>,
        limits: PermitLimits,
        seed: u64,
    ) -> Self {
        let nobody = Agent {
            slot: 0,
            pid: 0,
            instance: 0,
            stream: 0,
        };
        Self {
            ladders: ladders.into_boxed_slice(),
            entries: vec![Entry::of(nobody, None); capacity].into_boxed_slice(),
            history: vec![ActionHistory::NONE; capacity].into_boxed_slice(),
            carryovers: BudgetCarryovers::new(),
            lanes: PerLocality {
                local: Lane::new(capacity),
                remote: Lane::new(capacity),
            },
            permits: Permits::new(limits),
            user_budgets: UserBudgets::new(limits.user_budget),
            held_users: Vec::new(),
            parked: Fifo::new(capacity),
            seed,
        }
    }

    /// Adds a new agent. If an agent of the same `lineage` left after an action on it, the new one takes over its
    /// spent budget, so that a service that is restarted into the next stall spends one budget and not one per
    /// process.
    pub fn on_join(&mut self, agent: Agent, lineage: Lineage) {
        let slot = agent.slot as usize;
        if slot >= self.entries.len() {
            return;
        }
        self.clear_timer(agent.slot);
        let mut new = Entry::of(agent, lineage.user);
        let before = self.entries[slot];
        // A process that left in order and beats again: an action on it may still run.
        new.in_flight = before.in_flight && before.agent == agent;
        self.entries[slot] = new;
        if before.last_start_ns != 0 {
            self.history[slot] = ActionHistory::NONE;
        }
        if let Some(carryover) = self.carryovers.take(lineage) {
            let entry = &mut self.entries[slot];
            entry.escalations = carryover.escalations;
            entry.silence_ended_ns = carryover.left_ns;
            entry.last_start_ns = carryover.history.last_ns();
            self.history[slot] = carryover.history;
        }
    }

    /// Starts the `ladder` of a stalled agent.
    pub fn on_stall(&mut self, agent: Agent, ladder: Option<u32>, now_ns: u64) -> Plan {
        let Some(entry) = self.entries.get_mut(agent.slot as usize) else {
            return Plan::Nothing;
        };
        if entry.agent != agent {
            // An action still running for the slot's last owner does not concern this one.
            self.on_join(agent, Lineage::default());
        }
        let entry = &mut self.entries[agent.slot as usize];
        if entry.silent && entry.in_flight {
            return Plan::StillActing;
        }
        if entry.silent && entry.phase != Phase::Idle {
            return Plan::TooRecent;
        }
        // An agent that was silent and stalls again was well in between.
        entry.silent = true;
        entry.acts = 0;
        entry.gave_up = false;
        entry.user_wait_reported = false;
        entry.ladder = ladder.unwrap_or(NO_LADDER);
        let Some(ladder) = self.ladders.get(entry.ladder as usize) else {
            return Plan::Nothing;
        };
        if now_ns.saturating_sub(entry.silence_ended_ns) >= ladder.reset_after_ns {
            entry.escalations = 0;
        }
        if entry.in_flight {
            return Plan::StillActing;
        }
        if self.begin(agent.slot, now_ns) > now_ns {
            Plan::TooRecent
        } else {
            Plan::Now
        }
    }

    /// Ends a silence: the agent is back, left or paused. Nothing more is done about it.
    pub fn on_silence_ended(&mut self, agent: Agent, now_ns: u64) -> SilenceEnded {
        let Some(entry) = self.entry_of(agent) else {
            return SilenceEnded::default();
        };
        let silence_ended = SilenceEnded {
            acted: entry.silent && entry.acts > 0,
            gave_up: entry.gave_up,
        };
        if std::mem::take(&mut entry.silent) {
            entry.silence_ended_ns = now_ns;
        }
        entry.phase = Phase::Idle;
        entry.acts = 0;
        entry.gave_up = false;
        entry.failures = 0;
        self.clear_timer(agent.slot);
        silence_ended
    }

    /// Removes an agent: its silence is over, and its spent budget counts for the next agent of its
    /// `lineage`.
    pub fn on_gone(&mut self, agent: Agent, lineage: Lineage, now_ns: u64) -> SilenceEnded {
        let silence_ended = self.on_silence_ended(agent, now_ns);
        if let Some(entry) = self.entry_of(agent).map(|entry| *entry)
            && entry.last_start_ns != 0
        {
            self.carryovers.leave(BudgetCarryover {
                lineage,
                escalations: entry.escalations,
                left_ns: now_ns,
                history: self.history[agent.slot as usize],
            });
        }
        silence_ended
    }

    /// Whether an agent has stalled and is not back, left or paused.
    pub fn is_silent(&self, agent: Agent) -> bool {
        let entry = self.entries.get(agent.slot as usize);
        entry.is_some_and(|entry| entry.agent == agent && entry.silent)
    }

    /// While fire is held for the agents of a locality, nothing is started for them and none is given up;
    /// both follow afterwards.
    pub fn hold(&mut self, locality: Locality, held: bool) {
        self.lanes[locality].is_held = held;
    }

    /// The next thing to do, if any.
    pub fn next(&mut self, now_ns: u64) -> Option<Next> {
        for locality in self.free_localities() {
            let mut budget = u32::MAX;
            while let Some(slot) = self.lanes[locality].timers.pop_due(now_ns, &mut budget) {
                if self.is_parked(slot) {
                    continue;
                }
                if let Some(agent) = self.on_timer(slot, now_ns) {
                    return Some(Next::GaveUp(agent, GaveUp::StepsExhausted));
                }
            }
        }
        self.free_localities()
            .find_map(|locality| self.start_ready(locality, now_ns))
            .or_else(|| self.report_waiting())
    }

    /// An action has ended.
    pub fn on_end(&mut self, action: Action, end: ActionEnd, now_ns: u64) {
        let Action { agent, .. } = action;
        if action.needs_permit {
            self.permits.give_back(agent.locality(), Purpose::Ladder);
        }
        let Some(entry) = self.entry_of(agent) else {
            return;
        };
        entry.in_flight = false;
        if end == ActionEnd::Postponed {
            let history = &mut self.history[agent.slot as usize];
            history.take_back();
            self.entries[agent.slot as usize].last_start_ns = history.last_ns();
        }
        let entry = &mut self.entries[agent.slot as usize];
        if !entry.silent {
            return;
        }
        if entry.phase != Phase::Acting {
            // It belongs to an earlier silence.
            if !entry.gave_up {
                self.begin(agent.slot, now_ns);
            }
            return;
        }
        let entry = &mut self.entries[agent.slot as usize];
        let ladder = self.ladders.get(entry.ladder as usize);
        let is_done = matches!(end, ActionEnd::TargetGone | ActionEnd::Refused);
        if is_done || end == ActionEnd::Postponed {
            // Nothing was spent.
            entry.acts = entry.acts.saturating_sub(1);
            entry.escalations -= u32::from(entry.acts == 0 && entry.escalations > 0);
        }
        let Some(ladder) = ladder.filter(|_| !is_done) else {
            entry.phase = Phase::Idle;
            return;
        };
        let due_ns = match end {
            ActionEnd::Handled => {
                entry.phase = Phase::Waiting;
                now_ns.saturating_add(ladder.grace_ns(entry.step))
            }
            ActionEnd::Postponed => {
                entry.phase = Phase::Due;
                now_ns.saturating_add(POSTPONED_NS)
            }
            _ if entry.step < ladder.last_action() => {
                entry.phase = Phase::Due;
                entry.step += 1;
                now_ns
            }
            _ => {
                entry.phase = Phase::Due;
                entry.failures = entry.failures.saturating_add(1);
                let pause_ns = ladder.pause_ns(entry.failures).max(ladder.debounce_ns);
                now_ns.saturating_add(spread(pause_ns, self.seed, entry))
            }
        };
        self.arm(agent, due_ns);
    }

    /// When [`Self::next`] may return something; `None` while nothing is pending, or while everything waits
    /// for the end of an action.
    pub fn next_due_ns(&self) -> Option<u64> {
        let due_ns = self.free_localities().flat_map(|locality| {
            let lane = &self.lanes[locality];
            let instant = lane.ready.instant.front();
            let instant_ns = instant.map(|_| self.permits.start_at_ns());
            let lasting = lane.ready.lasting.front();
            let lasting_ns =
                lasting.and_then(|_| self.permits.free_at_ns(locality, Purpose::Ladder));
            let timer_ns = lane.timers.next_deadline_ns();
            [timer_ns, instant_ns, lasting_ns]
        });
        due_ns.flatten().min()
    }

    /// Takes a permit for a step of a hook, which counts against the same limits; false if there is none.
    /// Hooks may have half. Returned with [`Self::give_back_hook`].
    pub fn take_hook_permit(&mut self, agent: Agent, now_ns: u64) -> bool {
        self.permits.take(agent.locality(), Purpose::Hook, now_ns)
    }

    /// See [`Self::take_hook_permit`].
    pub fn give_back_hook(&mut self, agent: Agent) {
        self.permits.give_back(agent.locality(), Purpose::Hook);
    }

    /// When a permit for a hook of this agent is available; `None` while an action must end first.
    pub fn hook_room_at_ns(&self, agent: Agent) -> Option<u64> {
        self.permits.free_at_ns(agent.locality(), Purpose::Hook)
    }

    /// Actions in flight and other holders of permits.
    pub fn in_flight(&self) -> usize {
        self.permits.in_flight()
    }

    /// Puts an agent at the first step of its ladder; returns when that starts.
    fn begin(&mut self, slot: u32, now_ns: u64) -> u64 {
        let entry = &mut self.entries[slot as usize];
        let Some(ladder) = self.ladders.get(entry.ladder as usize) else {
            return now_ns;
        };
        entry.step = 0;
        entry.failures = 0;
        entry.phase = Phase::Due;
        let pause_ns = match entry.escalations {
            0 => 0,
            1 => ladder.debounce_ns,
            escalations => {
                spread(ladder.pause_ns(escalations - 1), self.seed, entry).max(ladder.debounce_ns)
            }
        };
        let earliest_ns = match pause_ns {
            0 => now_ns,
            pause_ns => entry.last_start_ns.saturating_add(pause_ns).max(now_ns),
        };
        let agent = entry.agent;
        self.arm(agent, earliest_ns);
        earliest_ns
    }

    /// Moves an agent on after its timer fired. `Some` if there is no next step.
    fn on_timer(&mut self, slot: u32, now_ns: u64) -> Option<Agent> {
        let entry = self.entries.get_mut(slot as usize)?;
        let agent = entry.agent;
        match entry.phase {
            Phase::Waiting => entry.step += 1,
            Phase::Due | Phase::AwaitingBudget => {}
            Phase::Idle | Phase::Ready | Phase::Acting => return None,
        }
        let ladder = self.ladders.get(entry.ladder as usize);
        match ladder.and_then(|ladder| ladder.steps.get(entry.step as usize)) {
            Some(StepTiming::Act { needs_permit, .. }) => {
                entry.phase = Phase::Ready;
                let lane = &mut self.lanes[agent.locality()];
                lane.ready.queue(*needs_permit).push(slot);
                lane.unreported.push(slot);
            }
            Some(StepTiming::Wait { wait_ns }) => {
                entry.phase = Phase::Waiting;
                let until_ns = now_ns.saturating_add(*wait_ns);
                self.arm(agent, until_ns);
            }
            None => {
                entry.phase = Phase::Idle;
                entry.gave_up = true;
                return Some(agent);
            }
        }
        None
    }

    fn arm(&mut self, agent: Agent, due_ns: u64) {
        self.lanes[agent.locality()].timers.arm(agent.slot, due_ns);
    }

    fn clear_timer(&mut self, slot: u32) {
        for locality in Locality::ALL {
            self.lanes[locality].timers.cancel(slot);
        }
        self.parked.remove(slot);
        self.leave_queue(slot);
    }

    fn entry_of(&mut self, agent: Agent) -> Option<&mut Entry> {
        self.entries
            .get_mut(agent.slot as usize)
            .filter(|entry| entry.agent == agent)
    }
}

/// Up to a quarter more, so that agents that failed together are not acted on together again.
fn spread(pause_ns: u64, seed: u64, entry: &Entry) -> u64 {
    use crate::index::IndexKey;
    let attempt = u64::from(entry.failures) << 32 | u64::from(entry.escalations);
    let dice = (entry.agent.instance ^ u64::from(entry.agent.slot)).hash(attempt.hash(seed)) % 256;
    pause_ns.saturating_add(pause_ns / 1024 * dice)
}
