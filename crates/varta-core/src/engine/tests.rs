//! The engine in virtual time, over a table that the tests write.

mod hooks;
mod ladders;
mod pauses;
mod reload;
mod rules;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use varta_vlp::Status;

use super::*;
use crate::agent::{BeatOrigin, ExitStatus};
use crate::event::{Event, EventKind, JoinedFrom};
use crate::fact::{ExitCause, ProcessDescription, ProgramExit, Signal, SignalHits, SignalTarget};
use crate::hold::Pressure;
use crate::policy::{
    AgentRule, Hooks as HookSteps, Ladder, LadderChoice, Mode, RecoveryLimits, RunStep, SignalStep,
    Step,
};
use crate::rules::Selector;

const S: u64 = 1_000_000_000;
const SLOTS: usize = 8;
const THRESHOLD_NS: u64 = 2 * S;

/// The wheel rounds up to its tick, and held fire is examined at intervals.
const SLACK_NS: u64 = S / 10;

fn agent(slot: u32) -> Agent {
    Agent {
        slot,
        pid: 100 + slot,
        instance: u64::from(slot) + 1,
        stream: 0,
    }
}

fn run(program: &str) -> Step {
    Step::Run(RunStep {
        program: program.into(),
        arguments: Vec::new(),
        private_file: None,
        timeout: None,
        wait: Duration::from_secs(10),
    })
}

fn kill() -> Step {
    Step::Signal(SignalStep {
        signal: Signal::Kill,
        to: SignalTarget::Process,
        wait: Duration::from_secs(5),
    })
}

fn ladder(steps: &[Step]) -> Ladder {
    Ladder {
        name: "ladder".to_owned(),
        steps: steps.to_vec(),
        debounce: Duration::from_secs(1),
        budget: 10,
        window: Duration::from_secs(600),
        backoff: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        reset_after: Duration::from_secs(60),
    }
}

/// One default ladder and no rules.
fn policy(steps: &[Step]) -> Policy {
    Policy {
        threshold: Duration::from_nanos(THRESHOLD_NS),
        late: None,
        rules: Vec::new(),
        ladders: vec![ladder(steps)],
        default_ladder: Some(0),
        mode: Mode::Enforce,
        limits: RecoveryLimits {
            max_in_flight: 4,
            starts_per_second: 0,
            user_budget: 0,
            user_window: Duration::from_secs(60),
            mass_stall_share: Some(0.5),
            mass_stall_min: 5,
            mass_stall_hold: None,
            memory_pressure: Some(20.0),
            io_pressure: Some(60.0),
        },
        recover_foreign: false,
    }
}

fn rule(name: &str) -> AgentRule {
    AgentRule {
        selector: Selector {
            name: Some(name.to_owned()),
            ..Selector::default()
        },
        ..AgentRule::default()
    }
}

/// An engine, its table, the time, and the effects it returned.
struct World {
    engine: Engine,
    table: Arc<SlotTable>,
    now_ns: u64,
    pressure: Pressure,
    /// Outcomes of the ordered steps; without an entry a program starts, and a signal is sent.
    outcomes: VecDeque<Outcome>,
    orders: Vec<StepOrder>,
    facts: Vec<Fact>,
    updates: Vec<AgentUpdate>,
    answers: Vec<(u64, Result<(), AgentGone>)>,
    directory: BTreeMap<u32, Arc<AgentInfo>>,
}

impl World {
    fn new(policy: Policy) -> Self {
        let table = Arc::new(SlotTable::on_heap(SLOTS));
        let now_ns = 100 * S;
        let options = EngineOptions {
            seed: 7,
            own_uid: 1000,
        };
        let engine = Engine::new(options, Arc::clone(&table), Arc::new(policy), at(now_ns));
        Self {
            engine,
            table,
            now_ns,
            pressure: Pressure::default(),
            outcomes: VecDeque::new(),
            orders: Vec::new(),
            facts: Vec::new(),
            updates: Vec::new(),
            answers: Vec::new(),
            directory: BTreeMap::new(),
        }
    }

    fn feed(&mut self, input: Input) {
        self.engine.handle(input, at(self.now_ns));
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.engine.poll_effect() {
            match effect {
                Effect::Publish { fact, .. } => self.facts.push(*fact),
                Effect::TakeStep(order) => self.take_step(*order),
                Effect::Update(update) => self.updates.push(update),
                Effect::ReadPressure => {
                    let pressure = Input::Pressure(self.pressure);
                    self.engine.handle(pressure, at(self.now_ns));
                }
                Effect::Directory { agent, info } => {
                    match info {
                        Some(info) => self.directory.insert(agent.slot, info),
                        None => self.directory.remove(&agent.slot),
                    };
                }
                Effect::Answer { ticket, result } => self.answers.push((ticket, result)),
            }
        }
    }

    fn take_step(&mut self, order: StepOrder) {
        let usual = || match order.action {
            _ if order.is_rehearsal => Outcome::Rehearsed {
                step: "step".to_owned(),
            },
            Action::Run(_) => Outcome::Started {
                child_pid: 7,
                command: "command".to_owned(),
            },
            Action::Signal(_) => Outcome::Signalled(SignalHits {
                signalled: 1,
                spared: 0,
            }),
        };
        let outcome = self.outcomes.pop_front().unwrap_or_else(usual);
        let action = order.id;
        self.orders.push(order);
        let input = Input::Outcome { action, outcome };
        self.engine.handle(input, at(self.now_ns));
    }

    /// Advances the time, with everything that falls due meanwhile.
    fn pass(&mut self, ns: u64) {
        let end_ns = self.now_ns + ns;
        self.feed(Input::Timeout);
        for _ in 0..10_000 {
            match self.engine.next_timeout() {
                Some(next_ns) if next_ns <= end_ns => {
                    // A timeout that changes nothing must not be due again at the same time for ever.
                    self.now_ns = next_ns.max(self.now_ns + 1);
                    self.feed(Input::Timeout);
                }
                _ => {
                    self.now_ns = end_ns;
                    return;
                }
            }
        }
        panic!("it is never done");
    }

    fn event(&mut self, kind: EventKind, facts: Option<ProcessFacts>) {
        let event = Event {
            observer_ns: self.now_ns,
            kind,
        };
        let facts = facts.map(Box::new);
        self.feed(Input::Event { event, facts });
    }

    fn join(&mut self, agent: Agent) {
        self.join_as(agent, "web", BeatOrigin::KernelAttested);
    }

    fn join_as(&mut self, agent: Agent, name: &str, origin: BeatOrigin) {
        self.table.store(
            agent.slot,
            &Slot {
                state: SlotState::Alive,
                pid: agent.pid,
                locality: crate::agent::Locality::Local,
                instance: agent.instance,
                stream: 0,
                origin,
                uid: 500,
                ns_inode: None,
                status: Status::Ok,
                payload: 0,
                last_nonce: Some(1),
                last_timestamp: 1,
                terminal_timestamp: 0,
                last_ns: self.now_ns,
                joined_ns: self.now_ns,
                paused_until_ns: 0,
                threshold_ns: THRESHOLD_NS,
                late_ns: 0,
                beats: 1,
                stalls: 0,
                session_restarts: 0,
            },
        );
        let kind = EventKind::Join {
            agent,
            from: JoinedFrom::Local {
                uid: 500,
                exit_watched: true,
            },
            nonce: 1,
            status: Status::Ok,
            payload: 0,
        };
        let facts = ProcessFacts {
            name: name.to_owned(),
            is_foreign: Some(false),
            process: ProcessDescription::default(),
        };
        self.event(kind, Some(facts));
    }

    fn change(&mut self, agent: Agent, change: impl FnOnce(&mut Slot)) {
        let mut slot = self.table.read(agent.slot).unwrap();
        change(&mut slot);
        self.table.store(agent.slot, &slot);
    }

    /// An agent whose last beat is a threshold ago stalls now.
    fn stall(&mut self, agent: Agent) {
        let last_ns = self.now_ns - THRESHOLD_NS;
        self.change(agent, |slot| {
            slot.state = SlotState::Stalled;
            slot.last_ns = last_ns;
        });
        let kind = EventKind::Stall {
            agent,
            last_nonce: 1,
            silence_ns: THRESHOLD_NS,
            threshold_ns: THRESHOLD_NS,
            refused: 0,
        };
        self.event(kind, None);
    }

    fn late(&mut self, agent: Agent) {
        self.change(agent, |slot| slot.state = SlotState::Late);
        let kind = EventKind::Late {
            agent,
            last_nonce: 1,
            silence_ns: S,
        };
        self.event(kind, None);
    }

    fn beat_again(&mut self, agent: Agent) {
        let now_ns = self.now_ns;
        self.change(agent, |slot| {
            slot.state = SlotState::Alive;
            slot.last_ns = now_ns;
        });
        let kind = EventKind::Return {
            agent,
            nonce: 2,
            status: Status::Ok,
            payload: 0,
            silence_ns: THRESHOLD_NS,
        };
        self.event(kind, None);
    }

    fn exit(&mut self, agent: Agent, status: ExitStatus) {
        self.table.clear(agent.slot);
        let kind = EventKind::Exit {
            agent,
            last_nonce: 1,
            status,
        };
        self.event(kind, None);
    }

    /// The program that was ordered last ends.
    fn end_program(&mut self, code: i32) {
        let action = self.orders.last().unwrap().id;
        let outcome = Outcome::Ended(ProgramEnd {
            child_pid: 7,
            exit: ProgramExit {
                status: Ok(code << 8),
                cause: ExitCause::Itself,
            },
            duration_ns: S,
            output: String::new(),
            output_bytes: 0,
            dropped_bytes: 0,
        });
        self.feed(Input::Outcome { action, outcome });
    }

    fn command(&mut self, ticket: u64, command: Command) {
        self.feed(Input::Command { ticket, command });
    }

    fn reload(&mut self, policy: Policy) {
        self.feed(Input::Policy {
            policy: Arc::new(policy),
            programs: Vec::new(),
        });
    }

    /// The programs and signals that were ordered since the last call.
    fn ordered(&mut self) -> Vec<String> {
        let orders = self.orders.drain(..);
        let shown = orders.map(|order| match order.action {
            Action::Run(run) => run.called(),
            Action::Signal(step) => step.signal.name().to_owned(),
        });
        shown.collect()
    }

    /// What was published since the last call.
    fn published(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.facts)
    }

    fn has_published(&self, wanted: impl Fn(&Fact) -> bool) -> bool {
        self.facts.iter().any(wanted)
    }
}

fn at(now_ns: u64) -> Now {
    Now {
        observer_ns: now_ns,
        attention_ns: now_ns,
    }
}
