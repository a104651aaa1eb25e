//! The ladder under random times, ends, refusals, pauses, held fire, reloads and rehearsals, against a model of the
//! calls and their results only: never two in flight per agent, never over budget, no step skipped, no action
//! during a pause or while fire is held for all or for a user, no user beyond its bound, and every stall ends.

use std::collections::HashMap;

use varta_core::ladder::{
    Action, ActionEnd, GaveUp, LadderTiming, Ladders, Lineage, Next, StepTiming,
};
use varta_core::permits::{PermitLimits, UserBudget};
use varta_core::{Agent, Locality};

const S: u64 = 1_000_000_000;
const AGENTS: u32 = 12;
const IN_FLIGHT: usize = 3;

/// The users of the agents, in turns: two users with a bound, root, and the observer's own user.
const USERS: [u32; 4] = [5, 6, 0, 7];
const USER_BUDGET: UserBudget = UserBudget {
    starts: 12,
    window_ns: 60 * S,
    exempt: 7,
};

/// Steps of the random walk in all seeds together.
const STEPS: usize = 1_200_000;
const SEEDS: u64 = 60;

/// The wheel rounds up to its tick of 2^14 ns; by the reference times, a step may come this much early.
const TICK: u64 = 1 << 14;

/// Numbers from a seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn random_act(dice: &mut Dice) -> StepTiming {
    StepTiming::Act {
        grace_ns: dice.below(10) * S,
        needs_permit: dice.below(3) > 0,
    }
}

fn random_ladder(dice: &mut Dice) -> LadderTiming {
    let mut steps: Vec<StepTiming> = (0..1 + dice.below(4))
        .map(|_| match dice.below(3) {
            0 => StepTiming::Wait {
                wait_ns: dice.below(5) * S,
            },
            _ => random_act(dice),
        })
        .collect();
    steps.push(random_act(dice));
    LadderTiming {
        tag: dice.below(1 << 20),
        steps,
        debounce_ns: dice.below(4) * S,
        budget: 1 + dice.below(6) as u32,
        window_ns: (10 + dice.below(100)) * S,
        backoff_ns: (1 + dice.below(3)) * S,
        backoff_max_ns: (1 + dice.below(20)) * S,
        reset_after_ns: (1 + dice.below(60)) * S,
    }
}

fn limits() -> PermitLimits {
    PermitLimits {
        max_in_flight: IN_FLIGHT,
        starts_per_second: 0,
        user_budget: USER_BUDGET,
    }
}

/// The visible state of an agent.
#[derive(Clone, Default)]
struct Seen {
    silent: bool,
    gave_up: bool,
    /// Whether the spent budget of its user was reported in this silence.
    user_waits: bool,
    /// Whether acting on it is not allowed in this silence.
    refused: bool,
    ladder: Option<u32>,
    starts_ns: Vec<u64>,
    /// Actions started in this silence.
    acts: u32,
    /// The last action of this silence, how it ended and when.
    last: Option<(u32, Option<(ActionEnd, u64)>)>,
}

struct Model {
    dice: Dice,
    recovery: Ladders,
    ladders: Vec<LadderTiming>,
    agents: Vec<Agent>,
    seen: HashMap<Agent, Seen>,
    running: Vec<Action>,
    held: bool,
    held_users: Vec<u32>,
    /// Start times of actions, by user.
    user_starts_ns: HashMap<u32, Vec<u64>>,
    now_ns: u64,
    instances: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed | 1 << 40);
        let ladders: Vec<LadderTiming> = (0..3).map(|_| random_ladder(&mut dice)).collect();
        let recovery = Ladders::new(AGENTS as usize, ladders.clone(), limits(), seed);
        let agents: Vec<Agent> = (0..AGENTS)
            .map(|slot| agent(slot, u64::from(slot) + 1))
            .collect();
        let mut model = Self {
            dice,
            recovery,
            ladders,
            agents: agents.clone(),
            seen: HashMap::new(),
            running: Vec::new(),
            held: false,
            held_users: Vec::new(),
            user_starts_ns: HashMap::new(),
            now_ns: S,
            instances: 1000,
        };
        for agent in agents {
            model.join(agent);
        }
        model
    }

    fn join(&mut self, agent: Agent) {
        let lineage = Lineage {
            user: Some(user_of(agent)),
            ..Lineage::default()
        };
        self.recovery.on_join(agent, lineage);
        self.seen.insert(agent, Seen::default());
    }

    fn some_agent(&mut self) -> Agent {
        self.agents[self.dice.below(u64::from(AGENTS)) as usize]
    }

    fn some_ladder(&mut self) -> Option<u32> {
        let ladder = self.dice.below(self.ladders.len() as u64 + 1) as u32;
        (ladder < self.ladders.len() as u32).then_some(ladder)
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..25 => self.stall(),
            25..40 => {
                let agent = self.some_agent();
                self.settle(agent);
            }
            40..44 => self.replace_process(),
            44..46 => {
                self.held = !self.held;
                self.recovery.hold(Locality::Local, self.held);
            }
            46 => self.reload(),
            47 => self.forget_rehearsal(),
            48..50 => self.hold_some_user(),
            50..70 => self.end_one(),
            _ => self.now_ns += self.dice.below(4 * S),
        }
        self.take_all();
    }

    fn hold_some_user(&mut self) {
        let user = USERS[self.dice.below(USERS.len() as u64) as usize];
        let is_held = self.held_users.contains(&user);
        self.held_users.retain(|held| *held != user);
        if !is_held {
            self.held_users.push(user);
        }
        self.recovery.hold_user(user, !is_held);
    }

    fn stall(&mut self) {
        let agent = self.some_agent();
        let ladder = self.some_ladder();
        let seen = self.seen.get_mut(&agent).unwrap();
        if seen.silent {
            return;
        }
        *seen = Seen {
            silent: true,
            ladder,
            starts_ns: std::mem::take(&mut seen.starts_ns),
            ..Seen::default()
        };
        self.recovery.on_stall(agent, ladder, self.now_ns);
    }

    /// Back or paused: the ladder treats both alike.
    fn settle(&mut self, agent: Agent) {
        let silence_ended = self.recovery.on_silence_ended(agent, self.now_ns);
        let seen = self.seen.get_mut(&agent).unwrap();
        assert_eq!(silence_ended.gave_up, seen.gave_up, "{agent:?}");
        assert_eq!(
            silence_ended.acted,
            seen.silent && seen.acts > 0,
            "{agent:?}"
        );
        seen.silent = false;
        seen.gave_up = false;
    }

    fn replace_process(&mut self) {
        let old = self.some_agent();
        self.recovery.on_gone(old, Lineage::default(), self.now_ns);
        self.seen.get_mut(&old).unwrap().silent = false;
        self.instances += 1;
        let new = agent(old.slot, self.instances);
        self.agents[old.slot as usize] = new;
        self.join(new);
    }

    fn reload(&mut self) {
        let old = self.ladders.clone();
        for ladder in &mut self.ladders {
            if self.dice.below(3) == 0 {
                *ladder = random_ladder(&mut self.dice);
            }
        }
        let mut wishes = HashMap::new();
        for agent in self.agents.clone() {
            let ladder = match self.dice.below(4) {
                0 => self.some_ladder(),
                _ => self.seen[&agent].ladder,
            };
            wishes.insert(agent, ladder);
        }
        let wish = |agent| wishes[&agent];
        self.recovery
            .reload(self.ladders.clone(), limits(), wish, self.now_ns);
        for (agent, ladder) in &wishes {
            let seen = self.seen.get_mut(agent).unwrap();
            let before = seen.ladder.map(|ladder| &old[ladder as usize]);
            let after = ladder.map(|ladder| &self.ladders[ladder as usize]);
            if seen.silent && (before != after || seen.refused) {
                // Restarts.
                let acted = seen.last.is_some();
                seen.gave_up = false;
                seen.refused = false;
                seen.last = acted.then_some((u32::MAX, None));
            }
            seen.ladder = *ladder;
        }
    }

    /// The recent starts were rehearsals.
    fn forget_rehearsal(&mut self) {
        let since_ns = self.now_ns.saturating_sub(self.dice.below(60) * S);
        self.recovery.forget_rehearsal(since_ns);
        self.user_starts_ns.clear();
        for seen in self.seen.values_mut() {
            seen.starts_ns.retain(|start_ns| *start_ns < since_ns);
            *seen = Seen {
                starts_ns: std::mem::take(&mut seen.starts_ns),
                ..Seen::default()
            };
        }
    }

    fn end_one(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let which = self.dice.below(self.running.len() as u64) as usize;
        let action = self.running.swap_remove(which);
        let end = match self.dice.below(20) {
            0 => ActionEnd::TargetGone,
            1 => ActionEnd::Refused,
            2..8 => ActionEnd::Failed,
            8..10 => ActionEnd::Postponed,
            _ => ActionEnd::Handled,
        };
        self.end(action, end);
    }

    fn end(&mut self, action: Action, end: ActionEnd) {
        self.recovery.on_end(action, end, self.now_ns);
        let Some(seen) = self.seen.get_mut(&action.agent) else {
            return;
        };
        if end == ActionEnd::Postponed {
            seen.starts_ns.pop();
        }
        if let Some((step, ended @ None)) = &mut seen.last
            && *step == action.step
        {
            *ended = Some((end, self.now_ns));
            seen.refused = matches!(end, ActionEnd::TargetGone | ActionEnd::Refused);
            seen.acts -= u32::from(seen.refused || end == ActionEnd::Postponed);
        }
    }

    /// Takes the next thing to do, and checks it.
    fn take_all(&mut self) {
        while let Some(next) = self.recovery.next(self.now_ns) {
            assert!(!self.held, "{next:?} while fire is held");
            let agent = match next {
                Next::Act(action) => action.agent,
                Next::Waits(agent) | Next::UserWaits(agent, _) | Next::GaveUp(agent, _) => agent,
            };
            assert!(
                !self.held_users.contains(&user_of(agent)),
                "{next:?} while fire is held for its user"
            );
            match next {
                Next::Act(action) => self.acted(action),
                Next::Waits(agent) => self.waits(agent),
                Next::UserWaits(agent, user) => self.user_waits(agent, user),
                Next::GaveUp(agent, reason) => self.gave_up(agent, reason),
            }
        }
        assert!(self.recovery.in_flight() <= IN_FLIGHT);
        assert_eq!(self.recovery.in_flight(), self.places_taken());
        if let Some(due_ns) = self.recovery.next_due_ns() {
            assert!(due_ns > self.now_ns, "what is due now was not done");
        }
    }

    fn places_taken(&self) -> usize {
        self.running
            .iter()
            .filter(|action| action.needs_permit)
            .count()
    }

    fn waits(&self, agent: Agent) {
        assert_eq!(self.places_taken(), IN_FLIGHT, "{agent:?} has room");
        let seen = &self.seen[&agent];
        assert!(seen.silent && !seen.gave_up && !seen.refused, "{agent:?}");
        assert!(!self.running.iter().any(|other| other.agent == agent));
    }

    /// Starts of a user within the last window.
    fn starts_of(&self, user: u32) -> usize {
        let since_ns = self.now_ns.saturating_sub(USER_BUDGET.window_ns);
        let starts = self.user_starts_ns.get(&user).into_iter().flatten();
        starts.filter(|start_ns| **start_ns > since_ns).count()
    }

    fn user_waits(&mut self, agent: Agent, user: u32) {
        assert_eq!(user, user_of(agent));
        assert!(self.starts_of(user) >= USER_BUDGET.starts as usize);
        let seen = self.seen.get_mut(&agent).unwrap();
        assert!(seen.silent && !seen.gave_up && !seen.refused, "{agent:?}");
        assert!(!seen.user_waits, "said twice in a silence");
        seen.user_waits = true;
    }

    fn acted(&mut self, action: Action) {
        let agent = action.agent;
        let user = user_of(agent);
        let starts = self.user_starts_ns.entry(user).or_default();
        starts.push(self.now_ns);
        let is_bounded = user != 0 && user != USER_BUDGET.exempt;
        let most = 2 * USER_BUDGET.starts as usize;
        assert!(!is_bounded || self.starts_of(user) <= most, "user {user}");
        let is_busy = self.running.iter().any(|other| other.agent == agent);
        assert!(!is_busy, "two in flight for {agent:?}");
        let seen = self.seen.get_mut(&agent).unwrap();
        assert!(
            seen.silent && !seen.gave_up && !seen.refused,
            "{agent:?} {seen_state}",
            seen_state = seen.gave_up
        );
        assert_eq!(Some(action.ladder), seen.ladder);
        let ladder = &self.ladders[action.ladder as usize];
        let is_action = |step: u32| matches!(ladder.steps[step as usize], StepTiming::Act { .. });
        let needs_permit = |step: &StepTiming| {
            matches!(
                step,
                StepTiming::Act {
                    needs_permit: true,
                    ..
                }
            )
        };
        assert!(is_action(action.step));
        assert_eq!(
            needs_permit(&ladder.steps[action.step as usize]),
            action.needs_permit
        );
        let acts: Vec<u32> = (0..ladder.steps.len() as u32)
            .filter(|step| is_action(*step))
            .collect();
        let place = acts.iter().position(|step| *step == action.step).unwrap();
        match seen.last {
            None | Some((u32::MAX, None)) => assert_eq!(place, 0, "a step was skipped"),
            Some((last, Some((end, ended_ns)))) => {
                let before = acts.iter().position(|step| *step == last).unwrap();
                let is_last = before + 1 == acts.len();
                if end == ActionEnd::Postponed {
                    assert_eq!(place, before, "tried again");
                    assert!(self.now_ns + TICK >= ended_ns + S, "no pause");
                } else if end == ActionEnd::Failed && is_last {
                    assert_eq!(place, before, "tried again");
                    let least_ns = ladder.backoff_ns.min(ladder.backoff_max_ns);
                    assert!(self.now_ns + TICK >= ended_ns + least_ns, "no pause");
                } else {
                    assert_eq!(place, before + 1, "a step was skipped");
                }
                if let (ActionEnd::Handled, StepTiming::Act { grace_ns, .. }) =
                    (end, ladder.steps[last as usize])
                {
                    assert!(
                        self.now_ns + TICK >= ended_ns + grace_ns,
                        "no time to come back"
                    );
                }
            }
            Some((last, None)) => panic!("step {last} has not ended"),
        }
        seen.last = Some((action.step, None));
        seen.acts += 1;
        let since_ns = self.now_ns.saturating_sub(ladder.window_ns);
        let within = |start_ns: &&u64| **start_ns > since_ns;
        let spent = seen.starts_ns.iter().rev().take_while(within).count();
        assert!(
            spent < ladder.budget as usize,
            "over budget: {:?} now {} {ladder:?}",
            seen.starts_ns,
            self.now_ns
        );
        seen.starts_ns.push(self.now_ns);
        self.running.push(action);
    }

    fn gave_up(&mut self, agent: Agent, reason: GaveUp) {
        let seen = self.seen.get_mut(&agent).unwrap();
        assert!(seen.silent && !seen.gave_up, "said once");
        seen.gave_up = true;
        if reason == GaveUp::StepsExhausted {
            let ladder = &self.ladders[seen.ladder.unwrap() as usize];
            let is_action = |step: &StepTiming| matches!(step, StepTiming::Act { .. });
            let last_action = ladder.steps.iter().rposition(is_action).unwrap() as u32;
            let (last, end) = seen.last.expect("gave up without doing anything");
            assert_eq!(last, last_action);
            assert_eq!(end.unwrap().0, ActionEnd::Handled);
        }
    }

    /// Fire is free and every action ends: then every stall has ended.
    fn converge(&mut self) {
        self.held = false;
        self.recovery.hold(Locality::Local, false);
        for user in USERS {
            self.recovery.hold_user(user, false);
        }
        self.held_users.clear();
        for _ in 0..10_000 {
            self.take_all();
            while let Some(action) = self.running.pop() {
                let end = match self.dice.below(2) {
                    0 => ActionEnd::Handled,
                    _ => ActionEnd::Failed,
                };
                self.end(action, end);
            }
            match self.recovery.next_due_ns() {
                Some(due_ns) => self.now_ns = due_ns.max(self.now_ns),
                None => break,
            }
        }
        for (agent, seen) in &self.seen {
            let has_ended = !seen.silent || seen.gave_up || seen.refused || seen.ladder.is_none();
            assert!(has_ended, "{agent:?} was forgotten");
        }
    }
}

fn agent(slot: u32, instance: u64) -> Agent {
    Agent {
        slot,
        pid: 100 + slot,
        instance,
        stream: 0,
    }
}

fn user_of(agent: Agent) -> u32 {
    USERS[agent.slot as usize % USERS.len()]
}

#[test]
fn the_ladder_keeps_its_rules_under_random_calls() {
    for seed in 1..=SEEDS {
        let mut model = Model::new(seed * 0x9e37_79b9);
        for _ in 0..STEPS / SEEDS as usize {
            model.step();
        }
        model.converge();
    }
}
