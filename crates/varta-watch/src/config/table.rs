//! The one table of settings: flags, variables, keys of the configuration file, help, manual page, completions and
//! docs/configuration.md are all generated from it.
//!
//! Each value is read by the parser in this table, whatever its source. `check` validates combinations of values.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgAction;
use clap::{Arg, Args, Command, CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use varta_core::{
    DEFAULT_CAPACITY, DEFAULT_EVICTION_SCAN_WINDOW, MAX_CAPACITY, MAX_EVICTION_SCAN_WINDOW,
    MIN_EVICTION_SCAN_WINDOW,
};

use super::Toggle;
use super::http::HttpFlags;
use super::network::NetworkFlags;
use super::problems::nearest;
use super::recovery_flags::{RecoveryFlags, RecoveryLimitFlags};
use super::{old_flags, units, users};
use crate::settings::http::AgentSeries;
use crate::settings::{ExportEvents, LogFormat, QUEUE_DATAGRAMS_DEFAULT};

/// Default beats per second of one agent, as in 0.2.0.
const MAX_BEAT_RATE: u32 = 100;

/// Watches processes: each sends a beat now and then, and whoever falls silent is reported and, if you say
/// so, recovered.
#[derive(Debug, Parser)]
#[command(
    name = "varta-watch",
    version,
    max_term_width = 100,
    after_help = "Without any flag it listens on the default socket and reports stalls after 2 s of silence.\n\
                  Every setting can also be given as a variable (VARTA_THRESHOLD_MS) or in a file (threshold-ms);\n\
                  --help says it all.",
    after_long_help = "Every setting can be given in three ways: as a flag, as a variable in the environment \
                       (VARTA_ and its name, VARTA_THRESHOLD_MS=500), or in the file that --config names \
                       (threshold-ms = 500). A flag overrides a variable, a variable the file. Flags that are \
                       on or off can be switched off again with =false. Rules for single agents and recovery \
                       ladders are written in the file only: docs/configuration.md.\n\n\
                       SIGTERM and SIGINT end it, SIGHUP opens the event file anew and reads configuration, \
                       keys and token again, SIGUSR1 logs the counters.\n\n\
                       Exit codes: 0 after a clean stop, 1 if it cannot start or go on, 2 for an unusable \
                       command line or configuration."
)]
pub(super) struct Flags {
    #[command(flatten)]
    pub(super) configuration: ConfigurationFlags,

    /// Unix datagram socket to listen on
    ///
    /// Unless given: varta.sock in $RUNTIME_DIRECTORY, else in /run/varta for root, else in
    /// $XDG_RUNTIME_DIR/varta.
    #[arg(long, value_name = "PATH", help_heading = "Listening")]
    pub(super) socket: Option<PathBuf>,

    /// Permission bits of the socket, octal
    ///
    /// Unless given: as open as --allow-uid and --allow-gid need it.
    #[arg(long, value_name = "MODE", value_parser = units::octal_mode, hide_short_help = true, help_heading = "Listening")]
    pub(super) socket_mode: Option<u32>,

    /// Beats of all agents together that the kernel queues on the socket, at least; or off
    ///
    /// 16 to 65536. Off: as many as the kernel offers, eleven unless net.unix.max_dgram_qlen says otherwise. A beat
    /// that finds the queue full is lost. A full queue of 8192 takes 6 MiB of kernel memory.
    #[arg(long, value_name = "N|off", value_parser = units::queue_datagrams, default_value = QUEUE_DATAGRAMS_DEFAULT, hide_short_help = true, help_heading = "Listening")]
    pub(super) queue_datagrams: Toggle<u32>,

    /// Stop cleanly after this many seconds
    #[arg(
        long,
        value_name = "SECS",
        hide_short_help = true,
        help_heading = "Listening"
    )]
    pub(super) shutdown_after_secs: Option<u64>,

    /// Time that running recovery commands get to end at a stop, in milliseconds
    ///
    /// At least 100.
    #[arg(long, value_name = "MS", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(100..=86_400_000), hide_short_help = true, help_heading = "Listening")]
    pub(super) shutdown_grace_ms: u64,

    /// User whose processes may be agents; repeatable
    ///
    /// By name or number. Unless given: this user; everyone if this is root, and not only of a user namespace.
    /// In a user namespace the overflow id, 65534 or nobody, is never let in: every user that is not mapped has it.
    #[arg(long, value_name = "USER", value_parser = users::allowed_user, help_heading = "Who may join")]
    pub(super) allow_uid: Vec<u32>,

    /// Group whose processes may be agents; repeatable
    ///
    /// By name or number. Meant is the real group of a process, not its supplementary ones. The overflow id is
    /// refused as for --allow-uid.
    #[arg(long, value_name = "GROUP", value_parser = users::allowed_group, help_heading = "Who may join")]
    pub(super) allow_gid: Vec<u32>,

    /// Refuse agents in containers
    ///
    /// That is, in other pid namespaces. Without effect beside --allow-cross-namespace-agents.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_short_help = true, help_heading = "Who may join")]
    pub(super) strict_namespace_check: bool,

    /// Let recovery act on agents in containers too
    ///
    /// That is, in other pid namespaces.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", help_heading = "Who may join")]
    pub(super) allow_cross_namespace_agents: bool,

    /// Agents that one user may have at the same time, root aside
    ///
    /// Of this host. Unless given: three quarters of --tracker-capacity where processes of several users may
    /// join, so that one user cannot take every slot, else no limit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CAPACITY as u64), hide_short_help = true, help_heading = "Who may join")]
    pub(super) max_agents_per_user: Option<u64>,

    /// Beats per second taken from one agent; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = MAX_BEAT_RATE, hide_short_help = true, help_heading = "Who may join")]
    pub(super) max_beat_rate: u32,

    /// Beats one agent may send at once, at least 1
    ///
    /// Unless given: 10 times --max-beat-rate.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), hide_short_help = true, help_heading = "Who may join")]
    pub(super) max_beat_burst: Option<u32>,

    /// Beats per second taken from all agents together; 0 for no limit
    ///
    /// That many from local agents, and as many from remote ones.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_short_help = true,
        help_heading = "Who may join"
    )]
    pub(super) global_beat_rate: u32,

    /// Beats all agents together may send at once; 0 for no limit
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_000,
        hide_short_help = true,
        help_heading = "Who may join"
    )]
    pub(super) global_beat_burst: u32,

    #[command(flatten)]
    pub(super) network: NetworkFlags,

    #[command(flatten)]
    pub(super) http: HttpFlags,

    /// Silence that makes an agent stalled, in milliseconds
    ///
    /// 10 to 86400000.
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=86_400_000), help_heading = "Silence")]
    pub(super) threshold_ms: u64,

    /// Silence that makes an agent late, in milliseconds
    ///
    /// Shorter than the threshold. Reported and kept as evidence; the only action is a rule's on-late. Unless given, no
    /// agent is called late.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=86_400_000), help_heading = "Silence")]
    pub(super) late_ms: Option<u64>,

    /// Agents that can be watched at the same time
    ///
    /// 1 to 1048576 local ones; with --udp-port as many remote ones on top.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY as u64, value_parser = clap::value_parser!(u64).range(1..=MAX_CAPACITY as u64), help_heading = "Silence")]
    pub(super) tracker_capacity: u64,

    /// Who may lose the slot to a newcomer when the table is full
    ///
    /// Agents silent for more than ten thresholds whose stall was reported (strict), or any as silent
    /// (balanced).
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = Eviction::Strict, hide_short_help = true, help_heading = "Silence")]
    pub(super) tracker_eviction_policy: Eviction,

    /// Run what notices silence in real time, where this user may
    ///
    /// So that nothing else on a busy host makes it late. It takes a quarter of a core at most that way; a flood
    /// of beats is read as an ordinary thread.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", hide_short_help = true, help_heading = "Silence")]
    pub(super) real_time: bool,

    /// Slots looked at per attempt to evict under the balanced policy
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EVICTION_SCAN_WINDOW as u64, value_parser = clap::value_parser!(u64).range(MIN_EVICTION_SCAN_WINDOW as u64..=MAX_EVICTION_SCAN_WINDOW as u64), hide_short_help = true, help_heading = "Silence")]
    pub(super) eviction_scan_window: u64,

    #[command(flatten)]
    pub(super) recovery: RecoveryFlags,

    #[command(flatten)]
    pub(super) limits: RecoveryLimitFlags,

    /// Append events to this file
    ///
    /// One tab-separated row each. The file is made with mode 0640 at most, and one that is there loses what it has
    /// beyond that. It must be a regular file of this user, under one name.
    #[arg(long, value_name = "PATH", help_heading = "Evidence")]
    pub(super) export_file: Option<PathBuf>,

    /// Append them to whatever --export-file leads to
    ///
    /// Through links, to a FIFO, a device such as /dev/stdout, or a file of another user. Any user that may write to a
    /// directory on the way then decides which file is written to.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_short_help = true, help_heading = "Evidence")]
    pub(super) allow_any_export_file: bool,

    /// Which events the file gets
    ///
    /// Changes are all but beats.
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = ExportEvents::All, help_heading = "Evidence")]
    pub(super) export_events: ExportEvents,

    /// How the log on standard error looks
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Human, help_heading = "Evidence")]
    pub(super) log_format: LogFormat,
}

/// Where settings come from, and what is printed instead of watching.
#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct ConfigurationFlags {
    /// Read settings, rules and ladders from this TOML file
    #[arg(long, value_name = "PATH")]
    pub(super) config: Option<PathBuf>,

    /// Say everything that is wrong with the configuration, and exit
    ///
    /// Each problem with file, line, column and how to mend it; exit code 2 if there is any, else 0. Warnings are said
    /// as well and leave the exit code at 0. Key and token files are read too, nothing is listened on. Says how deep the queue of the beat socket is, and what helps
    /// if that is little.
    #[arg(long)]
    pub(super) check_config: bool,

    /// Print the settings in force and where each comes from, and exit
    ///
    /// What is printed is a configuration file itself. It shows all values, also those of variables that
    /// commands get (--recovery-env), which may be secret.
    #[arg(long)]
    pub(super) print_config: bool,

    /// Print a script that completes these flags in a shell, and exit
    #[arg(long, value_name = "SHELL", value_parser = [Shell::Bash.to_string(), Shell::Zsh.to_string(), Shell::Fish.to_string()].map(clap::builder::PossibleValue::new), hide_short_help = true)]
    pub(super) completions: Option<String>,

    /// Print the manual page, and exit
    #[arg(long, hide_short_help = true)]
    pub(super) man: bool,

    /// Print all settings there are as a Markdown page, and exit
    #[arg(long, hide_short_help = true)]
    pub(super) list_settings: bool,

    /// Print all metrics there are as a Markdown table, and exit
    #[arg(long, hide_short_help = true)]
    pub(super) list_metrics: bool,
}

/// The agents that a full table may evict.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Eviction {
    Strict,
    Balanced,
}

/// Settings that take effect on SIGHUP. The others concern what is open already, or its size, and need a restart.
const RELOADED: &[&str] = &[
    "max-beat-rate",
    "max-beat-burst",
    "global-beat-rate",
    "global-beat-burst",
    "threshold-ms",
    "late-ms",
    "recovery-exec",
    "recovery-exec-file",
    "default-recovery",
    "recovery-mode",
    "recovery-debounce-ms",
    "recovery-timeout-ms",
    "recovery-wait",
    "recovery-budget",
    "recovery-window",
    "recovery-backoff",
    "recovery-backoff-max",
    "recovery-reset-after",
    "recovery-grace",
    "recovery-env",
    "recovery-inherit-env",
    "recovery-capture-bytes",
    "recovery-max-in-flight",
    "recovery-starts-per-second",
    "recovery-user-budget",
    "mass-stall-share",
    "mass-stall-min",
    "mass-stall-hold",
    "memory-pressure",
    "io-pressure",
];

/// Arguments about the command line itself, which are no settings. `config` has a variable, the others have none.
pub(super) const NO_SETTINGS: &[&str] = &[
    "config",
    "check-config",
    "print-config",
    "completions",
    "man",
    "list-settings",
    "list-metrics",
];

/// The form of a value in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Integer,
    Text,
    /// A number with its unit, in quotes.
    Duration,
    /// A number, or a word such as off.
    NumberOrText,
    /// An array of texts.
    List,
}

/// The table with everything the command line takes.
pub(super) fn command() -> Command {
    Flags::command().args(old_flags::all())
}

/// The same, but settings may have any value: they are checked like those of the file, so that all invalid ones are
/// reported.
pub(super) fn unjudged_command() -> Command {
    command().mut_args(|arg| match is_setting(&arg) {
        true => arg.value_parser(clap::value_parser!(OsString)),
        false => arg,
    })
}

/// The table for display: without old flags, and with boolean flags without their `=true|false`.
pub(super) fn shown_command() -> Command {
    Flags::command().mut_args(|arg| match kind(&arg) {
        Kind::Bool => arg
            .action(ArgAction::SetTrue)
            .num_args(0)
            .require_equals(false),
        _ => arg,
    })
}

/// The name of a setting: its flag without the dashes.
pub(super) fn key(arg: &Arg) -> Option<&str> {
    arg.get_long()
}

/// Whether an argument can be given in the environment and the file too.
pub(super) fn is_setting(arg: &Arg) -> bool {
    key(arg).is_some_and(|key| {
        !arg.is_hide_set() && !NO_SETTINGS.contains(&key) && !["help", "version"].contains(&key)
    })
}

/// All settings of a table.
pub(super) fn settings(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let settings = command.get_arguments().filter(|arg| is_setting(arg));
    settings.filter_map(|arg| key(arg).map(|key| (key, arg)))
}

/// The setting that replaced an old name.
pub(super) fn by_alias<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    let (_, key) = aliases(command).find(|(alias, _)| *alias == name)?;
    Some(key)
}

/// Old names with the keys that replaced them.
fn aliases(command: &Command) -> impl Iterator<Item = (&str, &str)> {
    settings(command).flat_map(|(key, arg)| {
        let aliases = arg.get_all_aliases().unwrap_or_default();
        aliases.into_iter().map(move |alias| (alias, key))
    })
}

/// The setting, or one of the `others`, whose name is closest to `name`. For a name that is close to an old one the
/// result is its replacement; a flag without effect has none.
pub(super) fn meant<'a>(command: &'a Command, name: &str, others: &[&'a str]) -> Option<&'a str> {
    let current = settings(command).map(|(key, _)| key);
    let current = current.chain(others.iter().copied());
    let renamed = aliases(command).map(|(alias, key)| (alias, Some(key)));
    let removed = old_flags::REMOVED.iter();
    let removed = removed.map(|(key, _, successor)| (*key, Some(*successor)));
    let ignored = old_flags::IGNORED.iter().map(|(key, _)| (*key, None));
    let known: Vec<(&str, Option<&str>)> = current
        .map(|key| (key, Some(key)))
        .chain(renamed)
        .chain(removed)
        .chain(ignored)
        .collect();
    let nearest = nearest(name, known.iter().map(|(name, _)| *name))?;
    let (_, meant) = known.iter().find(|(name, _)| *name == nearest)?;
    *meant
}

/// Whether a change of this setting takes effect on SIGHUP.
pub(super) fn is_reloaded(key: &str) -> bool {
    RELOADED.contains(&key)
}

/// The form of its value in the file.
pub(super) fn kind(arg: &Arg) -> Kind {
    let id = arg.get_value_parser().type_id();
    let is = |types: &[TypeId]| types.iter().any(|one| id == *one);
    if matches!(arg.get_action(), ArgAction::Append) {
        Kind::List
    } else if is(&[TypeId::of::<bool>()]) {
        Kind::Bool
    } else if arg.get_id() != "socket_mode"
        && is(&[
            TypeId::of::<u64>(),
            TypeId::of::<u32>(),
            TypeId::of::<u16>(),
        ])
    {
        Kind::Integer
    } else if is(&[TypeId::of::<Duration>()]) {
        Kind::Duration
    } else if is(&[
        TypeId::of::<Toggle<f64>>(),
        TypeId::of::<Toggle<u32>>(),
        TypeId::of::<AgentSeries>(),
    ]) {
        Kind::NumberOrText
    } else {
        Kind::Text
    }
}

/// The separator of several values in one variable.
pub(super) fn separator(key: &str) -> char {
    // Values of variables may contain any other character.
    if key == "recovery-env" { '\n' } else { ',' }
}

/// The command `Config` and tests parse with must be sound.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_flags_is_sound() {
        command().debug_assert();
        unjudged_command().debug_assert();
        shown_command().debug_assert();
    }

    #[test]
    fn what_is_said_about_settings_is_about_settings_there_are() {
        let command = command();
        for name in RELOADED {
            assert!(settings(&command).any(|(key, _)| key == *name), "{name}");
        }
        for name in NO_SETTINGS {
            let known = command.get_arguments().any(|arg| key(arg) == Some(name));
            assert!(known, "{name}");
        }
    }

    #[test]
    fn every_setting_is_explained_under_a_heading() {
        let command = command();
        for (name, arg) in settings(&command) {
            assert!(arg.get_help().is_some(), "{name}");
            assert!(arg.get_help_heading().is_some(), "{name}");
        }
    }
}
