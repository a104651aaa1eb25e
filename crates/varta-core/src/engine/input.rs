//! What the engine is fed.

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
    /// The observer's clock: every real second counts. Timeouts are times on it.
    pub observer_ns: u64,
    /// The attention clock: the slot table and silence go by it (law 2).
    pub attention_ns: u64,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The beat path saw this. The status of an exit is completed by the caller where the kernel says how the process
    /// ended.
    Event {
        /// What it saw.
        event: Event,
        /// With the join of a local agent, and with a session if they could be read again.
        facts: Option<Box<ProcessFacts>>,
    },
    /// What became of a step that was ordered with [`Effect::TakeStep`](super::Effect::TakeStep).
    Outcome {
        /// From the order.
        action: ActionId,
        /// What became of it.
        outcome: Outcome,
    },
    /// An operator wants something. Answered with one [`Effect::Answer`](super::Effect::Answer).
    Command {
        /// Given back with the answer.
        ticket: u64,
        /// What is wanted.
        command: Command,
    },
    /// The answer to [`Effect::ReadPressure`](super::Effect::ReadPressure).
    Pressure(Pressure),
    /// Another policy applies from now on.
    Policy {
        /// The policy.
        policy: Arc<Policy>,
        /// The program file of each local agent, as far as the policy may match by it; see
        /// [`ProcessFacts::process`]. Agents that are not listed keep theirs.
        programs: Vec<(Agent, Option<PathBuf>)>,
    },
    /// It is time: the time that [`Engine::next_timeout`](super::Engine::next_timeout) gave has come. More calls than
    /// needed do no harm. Steps are ordered after this input only, so feed everything else that has happened first.
    Timeout,
}

/// What is known of a process. Anything may be missing: the process may belong to another user, or have ended while
/// it was examined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Command name; empty if unknown. The process chooses it.
    pub name: String,
    /// It lives in a pid namespace below the observer's; `None` where `/proc` does not show it.
    pub is_foreign: Option<bool>,
    /// Program, control group, units. The program file is missing if a rule asks for it and the file that the
    /// observer finds at that path is another one, see [`Policy::names_program`].
    pub process: ProcessDescription,
}

/// Names one step that was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId(pub u64);

/// What became of a step. A program is reported twice, when it has started and when it has ended; anything else once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program runs.
    Started {
        /// Its pid.
        child_pid: u32,
        /// The command line for people.
        command: String,
    },
    /// The program has ended.
    Ended(ProgramEnd),
    /// The signal was sent.
    Signalled(SignalHits),
    /// It was a rehearsal: this would have been done.
    Rehearsed {
        /// The step for people.
        step: String,
    },
    /// Nothing was done.
    Failed(StartFailure),
    /// Nothing was done because the observer lacks descriptors, memory or processes now.
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
    /// What it wrote, kept to a bound.
    pub output: String,
    /// Bytes that it wrote.
    pub output_bytes: u64,
    /// Bytes of that which were not kept.
    pub dropped_bytes: u64,
}

/// What an operator can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Do not judge an agent for so long.
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
