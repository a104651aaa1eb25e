//! The flags about recovery: the actions on the stalls of one agent, and the limits for all agents.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgAction;
use clap::{Args, ValueEnum};
use varta_core::policy::Mode;

use super::Toggle;
use super::units;

/// Most actions on one agent within a window. An agent that needs more should be left to a service manager.
pub(super) const BUDGET_MAX: i64 = varta_core::ladder::BUDGET_MAX as i64;

/// Actions for the agents of one user within the window. It allows one step for each agent of an ordinary table, and
/// a second one for some; a user whose agents fall silent without end gets one command in two seconds.
const USER_BUDGET: u32 = 300;

/// Most bytes kept of a child's output, as in 0.2.0; 8 children run at a time.
const CAPTURE_BYTES_MAX: u64 = 1024 * 1024;

/// What is done about stalls, by one agent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Recovery")]
pub(super) struct RecoveryFlags {
    /// Command to run when an agent stalls
    ///
    /// Program and arguments, split at white space; no shell is involved. In arguments {pid}, {name}, {status},
    /// {silence-ms}, {unit}, {user-unit}, {reason} and {source} are replaced, and other lower-case words in braces
    /// are mistakes. A ladder of this one step is the default then.
    #[arg(long, value_name = "COMMAND")]
    pub(super) recovery_exec: Option<String>,

    /// File with the command for --recovery-exec, readable by its owner only
    ///
    /// Its words are shown nowhere: the log and --print-config name the file. While the command runs, its command
    /// line can be read like any other's.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    pub(super) recovery_exec_file: Option<PathBuf>,

    /// Ladder from the file for agents whose rule names none
    ///
    /// Its name, or none. Unless given: the one step of --recovery-exec, else none.
    #[arg(long, value_name = "NAME")]
    pub(super) default_recovery: Option<String>,

    /// What recovery may do
    #[arg(long, value_name = "MODE", value_enum, default_value_t = RecoveryMode::Enforce)]
    pub(super) recovery_mode: RecoveryMode,

    /// Least time between the actions of two silences of an agent, in milliseconds
    ///
    /// From the start of an action to the first one of the next silence, and between two tries of a ladder's
    /// last step. The steps of a ladder do not wait for it.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=2_678_400_000), hide_short_help = true)]
    pub(super) recovery_debounce_ms: u64,

    /// Kill a recovery command that runs longer, in milliseconds
    ///
    /// With all it started. Unless given it may run as long as it likes.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=2_678_400_000))]
    pub(super) recovery_timeout_ms: Option<u64>,

    /// How long an agent may take to come back after a step
    #[arg(long, value_name = "DURATION", value_parser = units::some_time, default_value = "10s", hide_short_help = true)]
    pub(super) recovery_wait: Duration,

    /// Most actions on an agent within --recovery-window
    ///
    /// 1 to 32; then the observer gives up on it.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=BUDGET_MAX))]
    pub(super) recovery_budget: u32,

    /// The time that --recovery-budget is for
    #[arg(long, value_name = "DURATION", value_parser = units::some_time, default_value = "10m")]
    pub(super) recovery_window: Duration,

    /// First pause after a failed action; doubles with each further one
    #[arg(long, value_name = "DURATION", value_parser = units::some_time, default_value = "1s", hide_short_help = true)]
    pub(super) recovery_backoff: Duration,

    /// Longest pause after a failed action
    #[arg(long, value_name = "DURATION", value_parser = units::some_time, default_value = "60s", hide_short_help = true)]
    pub(super) recovery_backoff_max: Duration,

    /// An agent that was well for this long starts with a clean slate
    #[arg(long, value_name = "DURATION", value_parser = units::some_time, default_value = "1m", hide_short_help = true)]
    pub(super) recovery_reset_after: Duration,

    /// Time a recovery command gets between SIGTERM and SIGKILL
    #[arg(long, value_name = "DURATION", value_parser = units::duration, default_value = "2s", hide_short_help = true)]
    pub(super) recovery_grace: Duration,

    /// Variable for recovery commands, on top of PATH=/usr/bin:/bin; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = units::key_value, hide_short_help = true)]
    pub(super) recovery_env: Vec<(String, String)>,

    /// Give recovery commands the observer's own environment too
    ///
    /// Without what the service manager put there for the observer.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_short_help = true)]
    pub(super) recovery_inherit_env: bool,

    /// Bytes kept of what a recovery command writes
    ///
    /// Half from its beginning and half from its end. At most 1048576.
    #[arg(long, value_name = "BYTES", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(..=CAPTURE_BYTES_MAX), hide_short_help = true)]
    pub(super) recovery_capture_bytes: u64,
}

/// What holds recovery back, for all agents together.
#[derive(Debug, Args)]
#[command(next_help_heading = "Restraint")]
pub(super) struct RecoveryLimitFlags {
    /// Recovery commands that run at the same time
    ///
    /// 1 to 1024.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) recovery_max_in_flight: u32,

    /// Recovery actions started per second; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 100, hide_short_help = true)]
    pub(super) recovery_starts_per_second: u32,

    /// Recovery actions started for the agents of one user within --recovery-window; 0 for no limit
    ///
    /// As many at once, whatever the agents are called; what is due beyond that waits. Root and the observer's own
    /// user have no limit.
    #[arg(long, value_name = "N", default_value_t = USER_BUDGET, hide_short_help = true)]
    pub(super) recovery_user_budget: u32,

    /// Hold fire when more than this part of all agents stalls together
    ///
    /// All agents of this host, or those of one user, for whom alone it is held then. Above 0, up to 1; or off. More than all cannot be, so 1 is the same as off.
    #[arg(long, value_name = "SHARE|off", value_parser = units::share, default_value = "0.5")]
    pub(super) mass_stall_share: Toggle<f64>,

    /// Fewer silent agents than this are never a mass stall
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true)]
    pub(super) mass_stall_min: u32,

    /// Longest time that a mass stall holds fire; off for as long as it lasts
    ///
    /// An agent that is silent by then is stuck and is recovered as usual.
    #[arg(long, value_name = "DURATION|off", value_parser = units::duration_or_off, default_value = "10m", hide_short_help = true)]
    pub(super) mass_stall_hold: Toggle<Duration>,

    /// Hold fire while all tasks wait for memory for more than this part of the time, in percent; or off
    ///
    /// Measured over the last 10 s by the kernel (/proc/pressure/memory).
    #[arg(long, value_name = "PERCENT|off", value_parser = units::percent, default_value = "20", hide_short_help = true)]
    pub(super) memory_pressure: Toggle<f64>,

    /// Hold fire while all tasks wait for I/O for more than this part of the time, in percent; or off
    ///
    /// Measured over the last 10 s by the kernel (/proc/pressure/io).
    #[arg(long, value_name = "PERCENT|off", value_parser = units::percent, default_value = "60", hide_short_help = true)]
    pub(super) io_pressure: Toggle<f64>,
}

/// What recovery may do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RecoveryMode {
    /// Tell of stalls, decide nothing.
    Observe,
    /// Decide and tell, touch nothing.
    DryRun,
    /// Decide, tell and act.
    Enforce,
}

impl From<RecoveryMode> for Mode {
    fn from(mode: RecoveryMode) -> Self {
        match mode {
            RecoveryMode::Observe => Self::Observe,
            RecoveryMode::DryRun => Self::DryRun,
            RecoveryMode::Enforce => Self::Enforce,
        }
    }
}
