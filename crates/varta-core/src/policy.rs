//! The operator's policy: rules, ladders, hooks, limits and the mode. Plain data, already checked.
//!
//! The settings reader makes it, [`Engine`](crate::engine::Engine) applies it. It makes no decision, and does
//! not cover how a program is run (its environment, how much of its output is kept). Bounds: those that the
//! reader of the settings puts on the number of rules, ladders and steps.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use crate::fact::{Occasion, Signal, SignalTarget};
use crate::rules::{Selector, glob};

/// The whole policy; replaced at once when the settings are read again.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Stall threshold of agents whose rule gives none.
    pub threshold: Duration,
    /// Soft tier of agents whose rule gives none.
    pub late: Option<Duration>,
    /// The first rule that matches applies.
    pub rules: Vec<AgentRule>,
    /// Ladders, by number.
    pub ladders: Vec<Ladder>,
    /// The ladder of agents whose rule names none: an index into `ladders`.
    pub default_ladder: Option<usize>,
    /// What recovery may do.
    pub mode: Mode,
    /// Limits for all recoveries together.
    pub limits: RecoveryLimits,
    /// Whether recovery may act on agents of other pid namespaces.
    pub recover_foreign: bool,
}

/// What recovery may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Report stalls, decide nothing.
    Observe,
    /// Decide and report, touch nothing.
    DryRun,
    /// Decide, report and act.
    Enforce,
}

/// The settings of the agents that a selector matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentRule {
    /// Which agents.
    pub selector: Selector,
    /// The label of the agents, instead of their own name.
    pub label: Option<String>,
    /// Stall threshold.
    pub threshold: Option<Duration>,
    /// Soft tier, shorter than the threshold.
    pub late: Option<Duration>,
    /// Extra time of remote agents, on top of the threshold.
    pub network_grace: Duration,
    /// How many agents must join, and by when.
    pub expectation: Option<Expectation>,
    /// Beats per second accepted from one agent; 0 for no limit.
    pub max_beat_rate: Option<u32>,
    /// The ladder of a stall.
    pub ladder: LadderChoice,
    /// The steps of other occasions.
    pub hooks: Hooks,
}

/// An expectation: this many agents must have joined by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// At least 1.
    pub agents: u32,
    /// From the start of the observer, or from the reload that brought the expectation.
    pub within: Duration,
}

/// The ladder of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LadderChoice {
    /// The policy's default ladder.
    #[default]
    Default,
    /// None.
    None,
    /// An index into the policy's ladders.
    Named(usize),
}

/// Steps for other occasions than a stall, run in order until one fails.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hooks {
    /// The agent reached its soft tier.
    pub on_late: Vec<Step>,
    /// The agent reports that it is critical.
    pub on_critical: Vec<Step>,
    /// The process died; not if it left in order.
    pub on_exit: Vec<Step>,
    /// A stalled agent beats again.
    pub on_recovered: Vec<Step>,
    /// The ladder gave the agent up.
    pub on_gave_up: Vec<Step>,
}

/// The steps about a stalled agent, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    /// The operator's name for it.
    pub name: String,
    /// At least one, and not only waits.
    pub steps: Vec<Step>,
    /// Minimum time between two actions on one agent.
    pub debounce: Duration,
    /// Most actions on one agent within `window`; then the observer gives up. 1 to 32.
    pub budget: u32,
    /// The sliding window of the budget.
    pub window: Duration,
    /// First pause after a failure; doubles up to `backoff_max`.
    pub backoff: Duration,
    /// Longest pause after a failure.
    pub backoff_max: Duration,
    /// After this long without a stall an agent has its full budget again.
    pub reset_after: Duration,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Run a program.
    Run(RunStep),
    /// Send a signal.
    Signal(SignalStep),
    /// Wait.
    Wait(Duration),
}

/// Run a program.
#[derive(Clone, Debug, PartialEq)]
pub struct RunStep {
    /// Found and executable when the policy was checked.
    pub program: PathBuf,
    /// With placeholders.
    pub arguments: Vec<String>,
    /// The file that the words come from if only its owner may read it: they are never shown then.
    pub private_file: Option<PathBuf>,
    /// `None`: no limit.
    pub timeout: Option<Duration>,
    /// How long the agent may take to come back after exit code 0.
    pub wait: Duration,
}

/// Send a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignalStep {
    /// Which.
    pub signal: Signal,
    /// To which processes.
    pub to: SignalTarget,
    /// How long the agent may take to come back.
    pub wait: Duration,
}

/// Limits for all recoveries together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecoveryLimits {
    /// Children at the same time, at least 1.
    pub max_in_flight: usize,
    /// Actions started per second; 0 for no limit.
    pub starts_per_second: u32,
    /// Actions started for the agents of one user within `user_window`, and their burst; 0 for no limit.
    pub user_budget: u32,
    /// The window of `user_budget`.
    pub user_window: Duration,
    /// Hold fire when more than this part of all agents falls silent together; `None`: never.
    pub mass_stall_share: Option<f64>,
    /// Fewer silent agents than this are never a mass stall.
    pub mass_stall_min: u32,
    /// Longest time that a mass stall holds fire; `None`: no limit.
    pub mass_stall_hold: Option<Duration>,
    /// Hold fire while tasks are stalled for lack of memory for more than this part of the last 10 s, in percent as
    /// the kernel reports it; `None`: never.
    pub memory_pressure: Option<f64>,
    /// The same for I/O.
    pub io_pressure: Option<f64>,
}

impl Hooks {
    /// The steps for an occasion.
    pub fn on(&self, occasion: Occasion) -> &[Step] {
        match occasion {
            Occasion::Late => &self.on_late,
            Occasion::Critical => &self.on_critical,
            Occasion::Exit => &self.on_exit,
            Occasion::Recovered => &self.on_recovered,
            Occasion::GaveUp => &self.on_gave_up,
        }
    }
}

impl Policy {
    /// Whether a rule selects by the program at this path. Then the caller compares the file with the one that
    /// the observer finds there before a rule may match by it: the agent has chosen the path.
    pub fn names_program(&self, path: &str) -> bool {
        let patterns = self.rules.iter();
        let mut patterns = patterns.filter_map(|rule| rule.selector.exe.as_deref());
        patterns.any(|pattern| glob(pattern, path))
    }
}

impl AgentRule {
    /// Whether it expects the same agents as another rule.
    pub fn expects_the_same(&self, other: &Self) -> bool {
        self.expectation == other.expectation
            && self.label == other.label
            && self.selector == other.selector
    }

    /// The selected agents, for display: its label, else its selectors.
    pub fn title(&self) -> String {
        let Selector {
            name,
            exe,
            cgroup,
            unit,
            user_unit,
            uid,
            namespace: _,
            origin: _,
            source,
        } = &self.selector;
        let uid = uid.map(|uid| format!("uid {uid}"));
        let title = [
            &self.label,
            name,
            unit,
            user_unit,
            exe,
            cgroup,
            source,
            &uid,
        ];
        let title = title.into_iter().flatten().next();
        title.map_or_else(|| "agents".to_owned(), Clone::clone)
    }
}

impl Ladder {
    /// Differs between ladders with different actions, independent of their names: a ladder within a rule is
    /// named by the rule's number.
    pub fn fingerprint(&self) -> u64 {
        let nameless = Self {
            name: String::new(),
            ..self.clone()
        };
        let mut hasher = DefaultHasher::new();
        format!("{nameless:?}").hash(&mut hasher);
        hasher.finish()
    }
}

impl RunStep {
    /// The program for display.
    pub fn called(&self) -> String {
        match &self.private_file {
            Some(file) => format!("the command in {}", file.display()),
            None => self.program.display().to_string(),
        }
    }
}
