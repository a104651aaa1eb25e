//! The inputs of the engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::event::Event;
use crate::fact::{ProcessDescription, ProgramExit, SignalHits, StartFailure};
use crate::hold::Pressure;
use crate::policy::Policy;

/// The time of an input. Both clocks count nanoseconds and never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The observer's clock: every real second counts. Timeouts are on this clock.
    pub observer_ns: u64,
    /// The attention clock: the slot table and silence go by it (law 2).
    pub attention_ns: u64,
}

/// One input.
#[derive(Clone, Debug)]
pub enum Input {
    /// An event of the beat path. The caller adds the exit status where the kernel reports it.
    Event {
        /// The event.
        event: Event,
        /// The facts of the process: with the join of a local agent, and with a new session if they could be
        /// read again.
        facts: Option<Box<ProcessFacts>>,
    },
    /// The outcome of a step of [`Effect::TakeStep`](super::Effect::TakeStep).
    Outcome {
        /// Id of the order.
        action: ActionId,
        /// The outcome.
        outcome: Outcome,
    },
    /// A command of an operator. Answered with one [`Effect::Answer`](super::Effect::Answer).
    Command {
        /// Returned with the answer.
        ticket: u64,
        /// The command.
        command: Command,
    },
    /// The answer to [`Effect::ReadPressure`](super::Effect::ReadPressure).
    Pressure(Pressure),
    /// A new policy applies.
    Policy {
        /// The policy.
        policy: Arc<Policy>,
        /// The program file of each local agent, as far as the policy may match by it; see
        /// [`ProcessFacts::process`]. Agents that are not listed keep theirs.
        programs: Vec<(Agent, Option<PathBuf>)>,
    },
    /// The time of [`Engine::next_timeout`](super::Engine::next_timeout) has come. Extra calls do no harm. Steps are
    /// ordered after this input only, so feed all other inputs first.
    Timeout,
}

/// The facts of a process. Any may be missing: the process may belong to another user, or have ended during the
/// examination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Command name; empty if unknown. The process chooses it.
    pub name: String,
    /// Whether it runs in a pid namespace below the observer's; `None` where `/proc` does not show it.
    pub is_foreign: Option<bool>,
    /// Program, control group, units. The program file is missing if a rule asks for it and the file that the
    /// observer finds at that path is another one, see [`Policy::names_program`].
    pub process: ProcessDescription,
}

/// Identifies one ordered step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub u64);

/// The outcome of a step. A program has two, its start and its end; any other step has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program started.
    Started {
        /// Its pid.
        child_pid: u32,
        /// The command line for display.
        command: String,
    },
    /// The program has ended.
    Ended(ProgramEnd),
    /// The signal was sent.
    Signalled(SignalHits),
    /// It was a rehearsal: this would have been done.
    Rehearsed {
        /// The step for display.
        step: String,
    },
    /// Nothing was done.
    Failed(StartFailure),
    /// Nothing was done because the observer currently lacks descriptors, memory or processes.
    Postponed(StartFailure),
}

/// How a program that was run for an agent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramEnd {
    /// Its pid.
    pub child_pid: u32,
    /// How it ended.
    pub exit: ProgramExit,
    /// From its start to its end.
    pub duration_ns: u64,
    /// Its output, up to a bound.
    pub output: String,
    /// Bytes of its output.
    pub output_bytes: u64,
    /// Bytes of that which were not kept.
    pub dropped_bytes: u64,
}

/// The commands of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Do not judge an agent for this long.
    Pause {
        /// Which.
        agent: Agent,
        /// How long, attention time.
        time: Duration,
        /// Why, in the operator's words.
        reason: Option<String>,
    },
    /// Judge it again. Nothing changes for one that is not paused.
    Resume {
        /// Which.
        agent: Agent,
    },
}
