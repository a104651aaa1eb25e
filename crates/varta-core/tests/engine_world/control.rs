//! A minimal control thread: it feeds the engine, carries out its effects, and feeds their outcomes.

use std::sync::Arc;

use varta_core::engine::{
    Action, ActionId, AgentGone, Command, Effect, Input, Now, Outcome, ProgramEnd, StepOrder,
};
use varta_core::fact::{ExitCause, Force, OsError, ProgramExit, Signal, SignalHits, StartFailure};
use varta_core::{Agent, Event, EventKind, ExitStatus};

use crate::beat_path::Told;
use crate::world::World;
use crate::{MS, S, US};

/// Events taken in one turn.
const EVENTS: usize = 16;

/// A program that was started.
pub(crate) struct Running {
    id: ActionId,
    agent: Agent,
    program: String,
    started_ns: u64,
    pub(crate) end_ns: u64,
    exit: ProgramExit,
}

impl World {
    fn engine_now(&self) -> Now {
        Now {
            observer_ns: self.now_ns,
            attention_ns: self.beat_path.attention_at(self.now_ns),
        }
    }

    /// The latest time of the next turn of control.
    pub(crate) fn control_due_ns(&self) -> u64 {
        let ends = self.running.iter().map(|running| running.end_ns);
        let due = ends.chain(self.engine.next_timeout());
        let due = due.chain(self.pressure_due_ns).chain(self.control_input_ns);
        due.min().unwrap_or(u64::MAX)
    }

    pub(crate) fn control_turn(&mut self, due_ns: u64) {
        self.oracle.is_control_late |= due_ns + MS < self.now_ns;
        self.control_input_ns = None;
        for _ in 0..EVENTS {
            let Some(event) = self.beat_path.ring.pop_front() else {
                break;
            };
            self.feed_event(event);
        }
        if !self.beat_path.ring.is_empty() {
            self.control_input_ns = Some(self.now_ns + 50 * US);
        }
        while let Some(query) = self.beat_path.queries.pop_front() {
            let reply = self.processes.reply_to(&query);
            self.beat_path
                .told
                .push_back(Told::Reply(query.ticket, reply));
        }
        if self
            .pressure_due_ns
            .is_some_and(|due_ns| due_ns <= self.now_ns)
        {
            self.pressure_due_ns = None;
            self.feed(Input::Pressure(self.pressure));
        }
        self.end_programs();
        while let Some(command) = self.commands.pop_front() {
            self.feed_command(command);
        }
        if let Some(policy) = self.next_policy.take() {
            let threshold_ns = policy.threshold.as_nanos() as u64;
            self.beat_path.told.push_back(Told::Threshold(threshold_ns));
            self.policy = Arc::clone(&policy);
            self.feed(Input::Policy {
                policy,
                programs: Vec::new(),
            });
        }
        for _ in 0..8 {
            let due_ns = self.engine.next_timeout();
            if due_ns.is_none_or(|due_ns| due_ns > self.now_ns) {
                self.spins = 0;
                return self.check_rest();
            }
            self.feed(Input::Timeout);
        }
        self.spins += 1;
        assert!(self.spins < 1_000, "it is never done");
        self.control_input_ns = Some(self.now_ns + 10 * US);
    }

    fn check_rest(&mut self) {
        let is_ring_empty = self.beat_path.ring.is_empty();
        self.oracle.check_rest(is_ring_empty);
        self.oracle.is_control_late &= !is_ring_empty;
        if is_ring_empty && self.beat_path.told.is_empty() {
            self.oracle.check_updates();
        }
        for (agent, info) in self.directory.values() {
            let reason = info.pause_reason.as_deref();
            self.oracle.check_shown(*agent, info.gave_up, reason);
        }
        let levels = self.engine.levels();
        self.oracle.check_levels(&levels);
    }

    fn feed_event(&mut self, mut event: Event) {
        let facts = match &mut event.kind {
            EventKind::Join { agent, .. } | EventKind::Session { agent, .. } => {
                let agent = *agent;
                (!agent.is_remote()).then(|| Box::new(self.processes.facts(agent)))
            }
            EventKind::Exit { agent, status, .. } => {
                if *status == ExitStatus::Unknown && !self.random.one_in(8) {
                    *status = self.processes.exit_status(*agent);
                }
                None
            }
            _ => None,
        };
        self.feed(Input::Event { event, facts });
    }

    fn feed_command(&mut self, command: Command) {
        let (Command::Pause { agent, .. } | Command::Resume { agent }) = &command;
        let result = match self.oracle.is_there(*agent) {
            true => Ok(()),
            false => Err(AgentGone),
        };
        self.tickets += 1;
        let ticket = self.tickets;
        self.answer = Some((ticket, result));
        self.feed(Input::Command { ticket, command });
        assert_eq!(self.answer, None, "a command is answered");
    }

    fn feed(&mut self, input: Input) {
        self.tell(input);
        while let Some(effect) = self.engine.poll_effect() {
            self.carry_out(effect);
        }
        self.oracle.check_wants();
    }

    fn tell(&mut self, input: Input) {
        self.steps += 1;
        let now = self.engine_now();
        self.oracle.told(&input, now);
        self.engine.handle(input, now);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish { fact, .. } => self.oracle.published(&fact),
            Effect::TakeStep(order) => {
                self.oracle.ordered(&order);
                let outcome = self.take_step(&order);
                let action = order.id;
                self.tell(Input::Outcome { action, outcome });
            }
            Effect::Update(update) => {
                self.oracle.updated(update);
                self.beat_path.told.push_back(Told::Update(update));
            }
            Effect::ReadPressure => {
                self.oracle.asked();
                if self.random.one_in(8) {
                    self.pressure_due_ns = Some(self.now_ns + self.random.below(2 * MS));
                } else {
                    self.tell(Input::Pressure(self.pressure));
                }
            }
            Effect::Directory { agent, info } => match info {
                Some(info) => drop(self.directory.insert(agent.slot, (agent, info))),
                None => drop(self.directory.remove(&agent.slot)),
            },
            Effect::Answer { ticket, result } => {
                assert_eq!(self.answer.take(), Some((ticket, result)), "an answer");
            }
        }
    }

    /// The outcome of a step.
    fn take_step(&mut self, order: &StepOrder) -> Outcome {
        if order.is_rehearsal {
            let step = format!("{:?}", order.action);
            return Outcome::Rehearsed { step };
        }
        let agent = order.subject.agent;
        let place = self.processes.place_of(agent);
        let is_signal = matches!(order.action, Action::Signal(_));
        let is_aimed = order.subject.is_target || is_signal;
        if is_aimed && place.is_none() {
            return Outcome::Failed(StartFailure::TargetGone);
        }
        let process = place.and_then(|place| self.processes.process(place));
        if order.refuse_foreign && process.is_some_and(|process| process.service.is_foreign) {
            return Outcome::Failed(match self.random.one_in(2) {
                true => StartFailure::CrossNamespace,
                false => StartFailure::Hidden,
            });
        }
        if self.is_faulty && self.random.one_in(12) {
            return Outcome::Postponed(StartFailure::Signal(os_error(24)));
        }
        match &order.action {
            Action::Run(run) => {
                let program = run.program.display().to_string();
                self.start_program(order.id, agent, &program, run.timeout)
            }
            Action::Signal(step) => self.signal(agent, step.signal),
        }
    }

    fn start_program(
        &mut self,
        id: ActionId,
        agent: Agent,
        program: &str,
        timeout: Option<std::time::Duration>,
    ) -> Outcome {
        let is_faulty = self.is_faulty;
        if program == "absent" && is_faulty {
            let program = program.to_owned();
            let error = os_error(2);
            return Outcome::Failed(StartFailure::Spawn { program, error });
        }
        let (duration_ns, status, cause) = match (program, timeout) {
            ("hang", Some(timeout)) if is_faulty => {
                let duration_ns = timeout.as_nanos() as u64;
                (duration_ns, Ok(9), ExitCause::TimedOut(Force::Term))
            }
            ("fail", _) if is_faulty => (self.random.below(S), Ok(256), ExitCause::Itself),
            _ => (self.random.below(S), Ok(0), ExitCause::Itself),
        };
        self.running.push(Running {
            id,
            agent,
            program: program.to_owned(),
            started_ns: self.now_ns,
            end_ns: self.now_ns + duration_ns,
            exit: ProgramExit { status, cause },
        });
        Outcome::Started {
            child_pid: 7,
            command: program.to_owned(),
        }
    }

    fn signal(&mut self, agent: Agent, signal: Signal) -> Outcome {
        if agent.is_remote() {
            return Outcome::Failed(StartFailure::Remote);
        }
        if self.random.one_in(20) {
            let (uid, joined_as) = (0, 500);
            return Outcome::Failed(StartFailure::OtherUser { uid, joined_as });
        }
        if let Some(place) = self.processes.place_of(agent) {
            match signal {
                Signal::Kill => {
                    let status = ExitStatus::Signal(9);
                    self.processes
                        .end(place, status, &mut self.random, self.now_ns);
                }
                _ if self.random.one_in(2) => self.wake_up(place),
                _ => {}
            }
        }
        Outcome::Signalled(SignalHits {
            signalled: 1,
            spared: 0,
        })
    }

    fn wake_up(&mut self, place: usize) {
        if let Some(process) = self.processes.process(place) {
            process.wake_up(self.now_ns);
        }
    }

    fn end_programs(&mut self) {
        let mut place = 0;
        while let Some(running) = self.running.get(place) {
            if running.end_ns > self.now_ns {
                place += 1;
                continue;
            }
            let running = self.running.swap_remove(place);
            self.take_effect(&running);
            let end = ProgramEnd {
                child_pid: 7,
                exit: running.exit,
                duration_ns: self.now_ns - running.started_ns,
                output: String::new(),
                output_bytes: 0,
                dropped_bytes: 0,
            };
            self.feed(Input::Outcome {
                action: running.id,
                outcome: Outcome::Ended(end),
            });
        }
    }

    /// The effect of a program on the process that it was run for.
    fn take_effect(&mut self, running: &Running) {
        let Some(process) = self.processes.place_of(running.agent) else {
            return;
        };
        match running.program.as_str() {
            "restart" => {
                let status = self
                    .random
                    .one_of(&[ExitStatus::Code(0), ExitStatus::Signal(15)]);
                self.processes
                    .end(process, status, &mut self.random, self.now_ns);
            }
            "nudge" if self.random.one_in(2) => self.wake_up(process),
            _ => {}
        }
    }
}

fn os_error(errno: i32) -> OsError {
    OsError {
        errno: Some(errno),
        text: String::new(),
    }
}
