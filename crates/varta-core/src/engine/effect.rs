//! What the engine answers with: data, to be carried out one by one in their order.

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

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// This happened: publish it.
    Publish {
        /// When, on the observer's clock.
        observer_ns: u64,
        /// What.
        fact: Box<Fact>,
    },
    /// Take this step, and report what became of it with [`Input::Outcome`](super::Input::Outcome).
    TakeStep(Box<StepOrder>),
    /// Tell the beat path.
    Update(AgentUpdate),
    /// Read the host's pressure figures and feed them with [`Input::Pressure`](super::Input::Pressure). No step is
    /// ordered before that.
    ReadPressure,
    /// What readers are to see of an agent from now on; `None` when it has left.
    Directory {
        /// Which.
        agent: Agent,
        /// What is known of it besides what is in its slot.
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

/// The agent has left by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentGone;

/// One step for one agent.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOrder {
    /// Names the order in its outcome.
    pub id: ActionId,
    /// What to do.
    pub action: Action,
    /// What it is about; also which process it is aimed at.
    pub subject: Subject,
    /// Only say what would be done.
    pub is_rehearsal: bool,
    /// First find out whether the process lives in a container: if so, or if that cannot be seen, nothing is done
    /// ([`StartFailure::CrossNamespace`](crate::fact::StartFailure::CrossNamespace),
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

/// What an action is about: what placeholders and variables stand for.
///
/// Names come from the agent itself, so a value may look like anything, an option for instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which agent.
    pub agent: Agent,
    /// Its label or name; empty if unknown.
    pub name: String,
    /// What its last beat said; `None` if it is gone.
    pub status: Option<Status>,
    /// How long it has been silent; 0 if it is gone.
    pub silence_ms: u64,
    /// The unit of the system's service manager.
    pub unit: Option<String>,
    /// The unit of the user's own service manager.
    pub user_unit: Option<String>,
    /// What has happened: `stall`, `late` and so on.
    pub reason: &'static str,
    /// The step is aimed at the agent's process, which must be there. Else it is about an agent, dead or alive.
    pub is_target: bool,
    /// Where a remote agent is.
    pub source: Option<IpAddr>,
}

/// What the beat path has to know about an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AgentUpdate {
    /// How long it may be silent.
    Deadlines(Agent, Deadlines),
    /// What it may send.
    BeatLimit(Agent, BeatLimit),
    /// Count none of its silence for so long, attention time. Zero: what was reported is over, and its silence counts
    /// anew.
    Pause(Agent, Duration),
    /// Count its silence again.
    Resume(Agent),
}

/// What readers see of an agent besides what is in its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentInfo {
    /// As its rule calls it, else its command name; empty if unknown.
    pub name: String,
    /// As its rule calls it.
    pub label: Option<String>,
    /// Its command name when it joined: that of its series of metrics unless its rule has another, for it must not
    /// make more of them by changing its name.
    pub joined_as: String,
    /// Its unit of the system's service manager.
    pub unit: Option<String>,
    /// Its unit of its own user's service manager.
    pub user_unit: Option<String>,
    /// By kernel credentials, if it came with them.
    pub uid: Option<u32>,
    /// Where it lives, if it is a remote agent.
    pub address: Option<IpAddr>,
    /// A key vouches for its beats.
    pub sealed: bool,
    /// Over how many sessions it beats at once, if that is more than one.
    pub sessions: usize,
    /// What became of the last recovery, as the counter of that outcome.
    pub recovery: Option<Counter>,
    /// Recovery has tried everything for this silence.
    pub gave_up: bool,
    /// Why it is paused, if it is and the operator gave a reason. Until when is in its slot.
    pub pause_reason: Option<String>,
}
