//! What is to be done about whom, as the operator wants it: rules, ladders and limits, all checked.
//!
//! When to climb which step is decided in `varta_core::ladder`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use varta_core::fact::{Occasion, Signal, SignalTarget};
use varta_core::rules::{Selector, glob};

/// All of it; replaced as a whole on SIGHUP.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    /// First match wins.
    pub(crate) rules: Vec<AgentRule>,
    pub(crate) ladders: Vec<Ladder>,
    /// The ladder of agents whose rule names none: an index into `ladders`.
    pub(crate) default_ladder: Option<usize>,
    pub(crate) mode: Mode,
    pub(crate) limits: RecoveryLimits,
    pub(crate) children: Children,
    /// Recovery may touch agents of other pid namespaces.
    pub(crate) recover_foreign: bool,
}

/// What recovery may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Tell of stalls, decide nothing.
    Observe,
    /// Decide and tell, touch nothing.
    DryRun,
    /// Decide, tell and act.
    Enforce,
}

/// What holds for the agents that are meant.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AgentRule {
    pub(crate) selector: Selector,
    /// What the agents are called instead of their own name.
    pub(crate) label: Option<String>,
    pub(crate) threshold: Option<Duration>,
    /// Soft tier, shorter than the threshold.
    pub(crate) late: Option<Duration>,
    /// What agents elsewhere get on top of the threshold.
    pub(crate) network_grace: Duration,
    pub(crate) expectation: Option<Expectation>,
    /// Beats per second taken from one agent; 0 for no limit.
    pub(crate) max_beat_rate: Option<u32>,
    pub(crate) ladder: LadderChoice,
    pub(crate) hooks: Hooks,
}

/// So many agents must have been heard by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expectation {
    /// At least 1.
    pub(crate) agents: u32,
    /// From the start of the observer, or from the reload that brought the expectation.
    pub(crate) within: Duration,
}

/// Which ladder a rule wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LadderChoice {
    #[default]
    Default,
    None,
    /// An index into the policy's ladders.
    Named(usize),
}

/// Steps for other occasions than a stall, run in order until one fails.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Hooks {
    pub(crate) on_late: Vec<Step>,
    pub(crate) on_critical: Vec<Step>,
    /// The process died; not if it left in order.
    pub(crate) on_exit: Vec<Step>,
    pub(crate) on_recovered: Vec<Step>,
    pub(crate) on_gave_up: Vec<Step>,
}

impl Hooks {
    pub(crate) fn on(&self, occasion: Occasion) -> &[Step] {
        match occasion {
            Occasion::Late => &self.on_late,
            Occasion::Critical => &self.on_critical,
            Occasion::Exit => &self.on_exit,
            Occasion::Recovered => &self.on_recovered,
            Occasion::GaveUp => &self.on_gave_up,
        }
    }
}

/// What is done about a stalled agent, one step after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ladder {
    pub(crate) name: String,
    /// At least one, and not only waits.
    pub(crate) steps: Vec<Step>,
    /// Least time between two actions on one agent.
    pub(crate) debounce: Duration,
    /// Most actions on one agent within `window`; then the observer gives up. 1 to 32.
    pub(crate) budget: u32,
    pub(crate) window: Duration,
    /// First pause after a failure; doubles up to `backoff_max`.
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
    /// An agent that was well for this long starts with a clean slate.
    pub(crate) reset_after: Duration,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Run(RunStep),
    Signal(SignalStep),
    /// Do nothing for so long.
    Wait(Duration),
}

/// Run a program.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RunStep {
    /// Found and executable when the policy was checked.
    pub(crate) program: PathBuf,
    /// With placeholders.
    pub(crate) arguments: Vec<String>,
    /// The file that the words come from if only its owner may read it: they are shown to nobody then.
    pub(crate) private_file: Option<PathBuf>,
    /// `None`: as long as it likes.
    pub(crate) timeout: Option<Duration>,
    /// How long the agent may take to come back after exit code 0.
    pub(crate) wait: Duration,
}

/// Send a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SignalStep {
    pub(crate) signal: Signal,
    pub(crate) to: SignalTarget,
    /// How long the agent may take to come back.
    pub(crate) wait: Duration,
}

/// Limits for all recoveries together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RecoveryLimits {
    /// Children at the same time, at least 1.
    pub(crate) max_in_flight: usize,
    /// Actions started per second; 0 for no limit.
    pub(crate) starts_per_second: u32,
    /// Actions started for the agents of one user within `user_window`, as many at once; 0 for no limit.
    pub(crate) user_budget: u32,
    pub(crate) user_window: Duration,
    /// Hold fire when more than this part of all agents falls silent together; `None`: never.
    pub(crate) mass_stall_share: Option<f64>,
    /// Fewer silent agents than this are never a mass stall.
    pub(crate) mass_stall_min: u32,
    /// Longest time that a mass stall holds fire; `None`: as long as it lasts.
    pub(crate) mass_stall_hold: Option<Duration>,
    /// Hold fire while tasks are stalled for want of memory or I/O for more than this part of the last
    /// 10 s, in percent as the kernel says it; `None`: never.
    pub(crate) memory_pressure: Option<f64>,
    pub(crate) io_pressure: Option<f64>,
}

/// Where programs are looked up, unless the operator says otherwise.
pub(crate) const CHILD_PATH: &str = "/usr/bin:/bin";

/// What children get.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Children {
    /// Start from the observer's own environment.
    pub(crate) inherit_environment: bool,
    pub(crate) environment: Vec<(String, String)>,
    /// Bytes kept of what a child writes, half from its beginning and half from its end.
    pub(crate) capture_bytes: usize,
    /// Time between the polite and the final signal.
    pub(crate) grace: Duration,
}

impl Policy {
    /// Whether a rule asks for the program at this path.
    pub(crate) fn names_program(&self, path: &str) -> bool {
        let mut patterns = self
            .rules
            .iter()
            .filter_map(|rule| rule.selector.exe.as_deref());
        patterns.any(|pattern| glob(pattern, path))
    }
}

impl AgentRule {
    /// Whether it awaits the same agents as another rule.
    pub(crate) fn expects_the_same(&self, other: &Self) -> bool {
        let what = |rule: &Self| (rule.expectation, rule.label.clone(), rule.selector.clone());
        what(self) == what(other)
    }

    /// The agents it means, for people: its label, else what it selects by.
    pub(crate) fn title(&self) -> String {
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
    /// Differs between ladders that do different things, whatever they are called: a ladder within a rule is
    /// called by the rule's number.
    pub(crate) fn fingerprint(&self) -> u64 {
        let nameless = Self {
            name: String::new(),
            ..self.clone()
        };
        let mut hasher = DefaultHasher::new();
        format!("{nameless:?}").hash(&mut hasher);
        hasher.finish()
    }
}
