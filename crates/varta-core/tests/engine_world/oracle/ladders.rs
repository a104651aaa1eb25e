//! Ladders: steps in order, on time, within budgets, and an end of every silence.

use varta_core::engine::{Action, ActionId, Outcome, StepOrder};
use varta_core::fact::{Occasion, StartFailure};
use varta_core::ladder::GaveUp;
use varta_core::policy::{Ladder, Mode, Step};
use varta_core::{Agent, BeatOrigin};

use super::climb::{Climb, End, is_action, nanoseconds, next_of, spent};
use super::records::Record;
use super::{Flight, Oracle, PUNCTUAL_NS, key};
use crate::TICK_NS;

impl Oracle {
    /// A stall was reported.
    pub(super) fn on_stall(&mut self, agent: Agent, stalled_ns: u64) {
        let Some(record) = self.records.get(&key(agent)) else {
            return;
        };
        if self.is_excusable(record) {
            self.want("excused", agent, 0);
            self.end_silence(agent);
            return;
        }
        let ladder = self.ladder_meant_for(record);
        let is_observed = self.policy.mode == Mode::Observe;
        if is_observed || self.is_paused(agent) || ladder.is_none() {
            return;
        }
        let is_trusted = is_trusted(record);
        if !is_trusted {
            self.want("refused", agent, 0);
        }
        let known_ns = self.now.observer_ns;
        let record = self.records.get_mut(&key(agent)).expect("is known");
        if record.climb.as_ref().is_some_and(Climb::goes_on) {
            // The end of the previous silence was lost, or a pause came late: the engine treats both alike.
            let is_acting = record.in_flight.is_some();
            return self.want("deferred", agent, is_acting.into());
        }
        let Some(ladder) = ladder.filter(|_| is_trusted) else {
            record.climb = Some(Climb::new(None, stalled_ns, known_ns));
            return;
        };
        if stalled_ns - record.settled_ns.min(stalled_ns) >= nanoseconds(ladder.reset_after) {
            record.climbs = 0;
        }
        record.climb = Some(Climb::new(Some(ladder), stalled_ns, known_ns));
        if record.in_flight.is_some() {
            self.want("deferred", agent, 1);
            return;
        }
        let first = next_of(record).expect("begins");
        if first.from_ns - first.waits_ns > stalled_ns {
            self.want("deferred", agent, 0);
        } else {
            // Pauses that have grown are spread.
            self.options.push(("deferred", key(agent), 0));
        }
    }

    /// It has not stalled by the current threshold.
    fn is_excusable(&self, record: &Record) -> bool {
        let heard = self
            .silence
            .get(record.agent)
            .filter(|heard| heard.told_stall);
        let silence_ns = heard.map(|heard| heard.silence_ns(self.now.attention_ns));
        let threshold_ns = record.deadlines.map(|deadlines| deadlines.threshold_ns);
        silence_ns.is_some() && silence_ns < threshold_ns && !self.is_paused(record.agent)
    }

    /// Recovery starts for a silent agent without one, as if it had stalled now.
    pub(super) fn take_up_silence(&mut self, agent: Agent) {
        let record = self.records.get(&key(agent));
        if self.is_silent(agent) && record.is_some_and(|record| record.climb.is_none()) {
            self.on_stall(agent, self.now.observer_ns);
        }
    }

    pub(super) fn on_return(&mut self, agent: Agent) {
        let climb = self.end_silence(agent);
        let acted = climb.is_some_and(|climb| climb.acts > 0);
        if acted && self.policy.mode != Mode::DryRun {
            self.want("recovered", agent, 0);
        }
    }

    pub(super) fn end_silence(&mut self, agent: Agent) -> Option<Climb> {
        let now_ns = self.now.observer_ns;
        let record = self.records.get_mut(&key(agent))?;
        record.was_given_up = false;
        let climb = record.climb.take();
        if climb.is_some() {
            record.settled_ns = now_ns;
        }
        climb
    }

    /// A step is ordered: of a ladder, or of a hook.
    pub(crate) fn ordered(&mut self, order: &StepOrder) {
        self.trace(&("order", order));
        self.orders += 1;
        let agent = order.subject.agent;
        assert!(
            self.may_order,
            "orders come when everything else was told: {order:?}"
        );
        let is_run = matches!(order.action, Action::Run(_));
        let occasion = order.subject.reason;
        let hook = self.occasion_of(occasion);
        let uid = match hook {
            Some(_) => self.user_of_hook(agent, occasion),
            None => self.records.get(&key(agent)).and_then(|record| record.uid),
        };
        assert!(
            !self.is_held(agent, uid),
            "ordered while fire is held: {order:?}"
        );
        self.check_pressure(order);
        let is_signal_abroad = !is_run || hook.is_none();
        let refuse_foreign = is_signal_abroad && !self.policy.recover_foreign && !agent.is_remote();
        assert_eq!(
            order.refuse_foreign, refuse_foreign,
            "containers: {order:?}"
        );
        let is_rehearsal = self.policy.mode == Mode::DryRun;
        assert_eq!(order.is_rehearsal, is_rehearsal, "mode: {order:?}");
        assert_ne!(self.policy.mode, Mode::Observe, "mode: {order:?}");
        let heard = self.silence.get(agent);
        let joined_as = heard.map_or(varta_core::UID_UNKNOWN, |heard| heard.uid);
        assert_eq!(order.uid, joined_as, "its user: {order:?}");
        self.check_start(agent, is_run, hook.is_some());
        match hook {
            Some(occasion) => self.hook_step(order, occasion),
            None => self.ladder_step(order),
        }
        let flight = Flight {
            agent,
            is_run,
            hook,
            is_started: false,
        };
        let before = self.flights.insert(order.id, flight);
        assert!(before.is_none(), "an order's name is its own: {order:?}");
    }

    fn ladder_step(&mut self, order: &StepOrder) {
        let agent = order.subject.agent;
        assert_eq!(order.subject.reason, "stall", "an occasion: {order:?}");
        assert!(order.subject.is_target, "aimed at its process: {order:?}");
        assert!(
            self.is_present(agent),
            "aimed at another instance: {order:?}"
        );
        assert!(
            self.is_silent(agent),
            "aimed at an agent that is not silent: {order:?}"
        );
        assert!(
            !self.is_paused(agent),
            "aimed at an agent that is paused: {order:?}"
        );
        let mut flights = self.flights.values();
        let is_busy = flights.any(|flight| flight.hook.is_none() && flight.agent == agent);
        assert!(!is_busy, "two actions in flight for {agent:?}");
        let now_ns = self.now.observer_ns;
        let record = self.records.get(&key(agent)).expect("ordered for nobody");
        assert!(is_trusted(record), "not trusted: {order:?}");
        assert!(
            self.may_start_for(record.uid, 100),
            "over the budget of its user: {order:?}"
        );
        self.count_start_for(record.uid);
        let record = self.records.get_mut(&key(agent)).expect("is known");
        let climb = record.climb.as_ref().expect("nothing is to be done");
        assert!(!climb.gave_up, "given up: {order:?}");
        let ladder = climb.ladder.clone().expect("it has no ladder");
        let next = next_of(record).expect("nothing is due");
        let step = next.step.expect("no step is left");
        let is_right = is_same(&ladder.steps[step], &order.action);
        assert!(is_right, "another step: {order:?} {record:?}");
        let is_due = now_ns + TICK_NS >= next.from_ns;
        assert!(is_due, "a step too early: {record:?}");
        assert!(
            spent(record, &ladder, now_ns) < ladder.budget,
            "over budget: {record:?}"
        );
        record.starts.push(now_ns);
        record.in_flight = Some(order.id);
        let climb = record.climb.as_mut().expect("is climbed");
        record.climbs += u32::from(climb.acts == 0);
        climb.acts += 1;
        climb.last = Some((step, None));
    }

    /// The outcome of a step.
    pub(super) fn on_outcome(&mut self, id: ActionId, outcome: &Outcome) {
        let flight = self
            .flights
            .get_mut(&id)
            .expect("an outcome without an order");
        let agent = flight.agent;
        if matches!(outcome, Outcome::Started { .. }) {
            flight.is_started = true;
            if flight.hook.is_none() {
                self.want("started", agent, 0);
            }
            return;
        }
        let flight = self.flights.remove(&id).expect("is there");
        if let Some(occasion) = flight.hook {
            return self.hook_outcome(agent, occasion, outcome);
        }
        let (end, kind, number) = match outcome {
            Outcome::Started { .. } => return,
            Outcome::Ended(end) => {
                let is_handled = end.exit.is_success();
                let ended = if is_handled {
                    End::Handled
                } else {
                    End::Failed
                };
                (Some(ended), "ended", end.duration_ns)
            }
            Outcome::Signalled(_) => (Some(End::Handled), "signalled", 0),
            Outcome::Rehearsed { .. } => (Some(End::Handled), "rehearsed", 0),
            Outcome::Postponed(_) => (Some(End::Postponed), "postponed", 0),
            Outcome::Failed(StartFailure::TargetGone) => (None, "gone", 0),
            Outcome::Failed(StartFailure::CrossNamespace | StartFailure::Hidden) => {
                (None, "failed", 0)
            }
            Outcome::Failed(_) => (Some(End::Failed), "failed", 0),
        };
        self.want(kind, agent, number);
        self.step_ended(agent, id, end);
    }

    fn step_ended(&mut self, agent: Agent, id: ActionId, end: Option<End>) {
        let now_ns = self.now.observer_ns;
        let Some(record) = self.records.get_mut(&key(agent)) else {
            return;
        };
        if record.in_flight != Some(id) {
            return;
        }
        record.in_flight = None;
        if end == Some(End::Postponed) {
            record.starts.pop();
        }
        let Some(climb) = &mut record.climb else {
            return;
        };
        let Some((step, ended @ None)) = &mut climb.last else {
            // It belongs to an earlier silence, or another ladder: now this one can start.
            if !climb.gave_up {
                climb.begun_ns = now_ns;
                climb.known_ns = now_ns;
            }
            return;
        };
        let _ = step;
        *ended = end.map(|end| (end, now_ns));
        climb.is_refused = end.is_none();
        climb.failures += u32::from(end == Some(End::Failed));
        if !matches!(end, Some(End::Handled | End::Failed)) {
            climb.acts -= 1;
            record.climbs -= u32::from(climb.acts == 0 && record.climbs > 0);
        }
        // Only the last step is tried again.
        let ladder = climb.ladder.as_ref();
        let is_last = ladder.is_some_and(|ladder| !ladder.steps[*step + 1..].iter().any(is_action));
        if !is_last {
            climb.failures = 0;
        }
    }

    /// A step was due for an agent that has left, is back, or is paused.
    pub(super) fn gone_before_step(&mut self, agent: Agent) {
        let is_silent = self.is_silent(agent) && !self.is_paused(agent);
        assert!(!is_silent, "said to be gone, and is not: {agent:?}");
        if let Some(record) = self.records.get_mut(&key(agent)) {
            // It counts as a start.
            record.starts.push(self.now.observer_ns);
            let uid = record.uid;
            if let Some(climb) = &mut record.climb {
                climb.is_refused = true;
            }
            self.count_start_for(uid);
            self.count_start();
        }
    }

    pub(super) fn waits_for_permit(&mut self, agent: Agent) {
        let has_place = self.has_place(agent.locality(), false);
        assert!(
            !has_place || !self.may_start(),
            "waits, and there is room: {agent:?}"
        );
        self.check_waits(agent);
    }

    pub(super) fn waits_for_user_budget(&mut self, agent: Agent, uid: u32) {
        assert!(
            !self.may_start_for(Some(uid), 0),
            "waits, and its user may: {agent:?}"
        );
        self.check_waits(agent);
        let record = self
            .records
            .get_mut(&key(agent))
            .expect("waits: the agent is unknown");
        assert_eq!(record.uid, Some(uid), "another user: {record:?}");
        if let Some(climb) = &mut record.climb {
            let was_told = std::mem::replace(&mut climb.is_user_wait_told, true);
            assert!(!was_told, "said once in a silence: {record:?}");
        }
    }

    fn check_waits(&self, agent: Agent) {
        let record = self
            .records
            .get(&key(agent))
            .expect("waits: the agent is unknown");
        assert!(
            !self.is_held(agent, record.uid),
            "waits while fire is held: {record:?}"
        );
        assert!(record.in_flight.is_none(), "waits and acts: {record:?}");
        let climb = record.climb.as_ref().expect("waits for nothing");
        assert!(
            !climb.gave_up && !climb.is_refused,
            "waits for nothing: {record:?}"
        );
    }

    pub(super) fn gave_up(&mut self, agent: Agent, reason: GaveUp) {
        let now_ns = self.now.observer_ns;
        let record = self.records.get(&key(agent)).expect("gave up on nobody");
        assert!(
            !self.is_held(agent, record.uid),
            "gave up while fire is held: {record:?}"
        );
        assert!(
            !self.is_paused(agent),
            "gave up on an agent that is paused: {record:?}"
        );
        let climb = record.climb.as_ref().expect("gave up, and is not silent");
        assert!(!climb.gave_up, "gave up twice: {record:?}");
        let ladder = climb.ladder.as_ref().expect("gave up without a ladder");
        let next = next_of(record).expect("gave up while it acts");
        assert!(
            now_ns + TICK_NS >= next.from_ns,
            "gave up too early: {record:?}"
        );
        match reason {
            GaveUp::StepsExhausted => assert_eq!(next.step, None, "steps are left: {record:?}"),
            GaveUp::BudgetSpent => {
                let spent = spent(record, ladder, now_ns);
                assert!(spent >= ladder.budget, "there is a budget left: {record:?}");
            }
        }
        let record = self.records.get_mut(&key(agent)).expect("is known");
        record.climb.as_mut().expect("is climbed").gave_up = true;
        record.was_given_up = true;
        self.on_occasion(agent, Occasion::GaveUp);
    }

    /// A new policy: an unchanged ladder continues, a changed one restarts.
    pub(super) fn replace_ladders(&mut self, agent: Agent) {
        let Some(record) = self.records.get(&key(agent)) else {
            return;
        };
        let Some(climb) = &record.climb else {
            return self.take_up_silence(agent);
        };
        let ladder = self.ladder_for(record).filter(|_| record.origin.is_some());
        let content = |ladder: &Option<Ladder>| {
            ladder.clone().map(|ladder| Ladder {
                name: String::new(),
                ..ladder
            })
        };
        let is_same = content(&ladder) == content(&climb.ladder);
        let is_stopped = climb.is_refused && record.in_flight.is_none();
        if is_same && !is_stopped && ladder.is_some() {
            return;
        }
        let now_ns = self.now.observer_ns;
        let record = self.records.get_mut(&key(agent)).expect("is known");
        if let Some(climb) = &mut record.climb {
            climb.begin_again(ladder, now_ns);
        }
    }

    /// Discards rehearsals.
    pub(super) fn forget_rehearsal(&mut self) {
        let since_ns = self.rehearsed_since_ns;
        self.users.clear();
        for debts in &mut self.debts {
            debts.starts.retain(|start_ns| *start_ns < since_ns);
            debts.climbs = debts.climbs.min(debts.starts.len() as u32);
        }
        for record in self.records.values_mut() {
            if record.last_start_ns() < since_ns && record.climb.is_none() {
                continue;
            }
            record.starts.retain(|start_ns| *start_ns < since_ns);
            record.climbs = record.climbs.min(record.starts.len() as u32);
            record.climb = None;
        }
    }

    /// Control is idle: all due steps about silent agents were taken, or are blocked.
    pub(super) fn check_ladders(&mut self) {
        let now_ns = self.now.observer_ns;
        let mut waiting = Vec::new();
        for record in self.records.values() {
            let agent = record.agent;
            if !self.is_silent(agent) || self.is_paused(agent) {
                continue;
            }
            if self.ladder_for(record).is_none() || record.is_excused {
                continue;
            }
            let climb = record.climb.as_ref();
            assert!(climb.is_some(), "a stall was forgotten: {record:?}");
            if record.in_flight.is_some() {
                continue;
            }
            let Some(next) = next_of(record) else {
                let is_over = climb.is_some_and(|climb| climb.gave_up || climb.is_refused);
                assert!(is_over, "nothing is done about a stall: {record:?}");
                continue;
            };
            let keeps_waiting = self.is_held(agent, record.uid)
                || self.is_control_late
                || self.is_asked
                || !self.has_place(agent.locality(), false)
                || !self.may_start();
            let user_free_ns = self.free_for_user_ns(record.uid);
            let was_waiting = climb.is_some_and(|climb| climb.is_waiting);
            let waited_ns = climb.map_or(0, |climb| climb.waited_ns);
            let due_ns = next.until_ns.max(waited_ns + next.waits_ns);
            if !keeps_waiting && !was_waiting && user_free_ns <= now_ns {
                assert!(
                    now_ns <= due_ns + PUNCTUAL_NS,
                    "a step is overdue: {record:?}"
                );
            } else {
                waiting.push((agent, keeps_waiting, user_free_ns.max(now_ns)));
            }
        }
        for (agent, is_waiting, until_ns) in waiting {
            let record = self.records.get_mut(&key(agent));
            if let Some(climb) = record.and_then(|record| record.climb.as_mut()) {
                climb.is_waiting = is_waiting;
                climb.waited_ns = until_ns;
            }
        }
    }
}

/// Whether recovery may act on it, by its origin.
pub(super) fn is_trusted(record: &Record) -> bool {
    !matches!(
        record.origin,
        Some(BeatOrigin::NetworkUnverified | BeatOrigin::SocketModeOnly)
    )
}

pub(super) fn is_same(step: &Step, action: &Action) -> bool {
    match (step, action) {
        (Step::Run(step), Action::Run(action)) => step == action,
        (Step::Signal(step), Action::Signal(action)) => step == action,
        _ => false,
    }
}
