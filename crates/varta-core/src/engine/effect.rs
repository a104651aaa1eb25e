//! The effects of the engine: data, carried out one by one in order.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use varta_vlp::Status;

use super::input::ActionId;
use crate::admission::BeatLimit;
use crate::agent::Agent;
use crate::counters::Counter;
use crate::fact::Fact;
use crate::policy::{RunStep, SignalStep, Step};
use crate::tracker::Deadlines;

/// One effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// This happened: publish it.
    Publish {
        /// Time of the fact, on the observer's clock.
        observer_ns: u64,
        /// The fact.
        fact: Box<Fact>,
    },
    /// Take this step, and feed its outcome with [`Input::Outcome`](super::Input::Outcome).
    TakeStep(Box<StepOrder>),
    /// Update the beat path.
    Update(AgentUpdate),
    /// Read the host's pressure figures and feed them with [`Input::Pressure`](super::Input::Pressure). No step is
    /// ordered before that.
    ReadPressure,
    /// Publish the state of an agent to readers; `None` when it has left.
    Directory {
        /// Which agent.
        agent: Agent,
        /// Its facts beside those in its slot.
        info: Option<Arc<AgentInfo>>,
    },
    /// The answer to a command. Its update of the beat path, if there is one, is the last [`Effect::Update`] before.
    Answer {
        /// From the command.
        ticket: u64,
        /// Whether it was carried out.
        result: Result<(), AgentGone>,
    },
}

/// The agent has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentGone;

/// One step for one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOrder {
    /// Names the order in its outcome.
    pub id: ActionId,
    /// The action.
    pub action: Action,
    /// The agent and the process that it is for.
    pub subject: Subject,
    /// Only report what would be done.
    pub is_rehearsal: bool,
    /// First determine whether the process runs in a container: if so, or if that cannot be determined, nothing
    /// is done ([`StartFailure::CrossNamespace`](crate::fact::StartFailure::CrossNamespace),
    /// [`StartFailure::Hidden`](crate::fact::StartFailure::Hidden)).
    pub refuse_foreign: bool,
    /// The user that the agent joined as. A signal hits no process that this user could not signal.
    pub uid: u32,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Run a program.
    Run(RunStep),
    /// Send a signal.
    Signal(SignalStep),
}

impl Action {
    /// `None` for a step that only waits, which the engine does by itself.
    pub fn of(step: &Step) -> Option<Self> {
        match step {
            Step::Run(run) => Some(Self::Run(run.clone())),
            Step::Signal(signal) => Some(Self::Signal(*signal)),
            Step::Wait(_) => None,
        }
    }
}

/// The subject of an action: the values of placeholders and variables.
///
/// The agent chooses its name, so a value may look like an option, for example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which agent.
    pub agent: Agent,
    /// Its label or name; empty if unknown.
    pub name: String,
    /// Status of its last beat; `None` if it has left.
    pub status: Option<Status>,
    /// How long it has been silent; 0 if it has left.
    pub silence_ms: u64,
    /// The unit of the system's service manager.
    pub unit: Option<String>,
    /// The unit of the user's own service manager.
    pub user_unit: Option<String>,
    /// The occasion: `stall`, `late` and so on.
    pub reason: &'static str,
    /// Whether the step acts on the agent's process, which must exist. Otherwise it reports an agent, dead or
    /// alive.
    pub is_target: bool,
    /// Address of a remote agent.
    pub source: Option<IpAddr>,
}

/// An update of the beat path about an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AgentUpdate {
    /// How long it may be silent.
    Deadlines(Agent, Deadlines),
    /// What it may send.
    BeatLimit(Agent, BeatLimit),
    /// Do not count its silence for this long, attention time. Zero: the reported stall is over, and its silence
    /// restarts.
    Pause(Agent, Duration),
    /// Count its silence again.
    Resume(Agent),
}

/// What readers see of an agent beside its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentInfo {
    /// The label of its rule, else its command name; empty if unknown.
    pub name: String,
    /// The label of its rule.
    pub label: Option<String>,
    /// Its command name when it joined: names its metric series unless its rule has a label. A later change of
    /// name must not create more series.
    pub joined_as: String,
    /// Its unit of the system's service manager.
    pub unit: Option<String>,
    /// Its unit of its own user's service manager.
    pub user_unit: Option<String>,
    /// By kernel credentials, if it came with them.
    pub uid: Option<u32>,
    /// Its address, if it is a remote agent.
    pub address: Option<IpAddr>,
    /// Whether a key authenticates its beats.
    pub sealed: bool,
    /// The number of sessions it beats over at once, if more than one.
    pub sessions: usize,
    /// The outcome of the last recovery, as its counter.
    pub recovery: Option<Counter>,
    /// Whether recovery gave up on this silence.
    pub gave_up: bool,
    /// The operator's reason for its pause, if it is paused and there is one. The end of the pause is in its
    /// slot.
    pub pause_reason: Option<String>,
}
