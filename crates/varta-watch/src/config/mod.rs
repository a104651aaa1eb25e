//! What the operator asked for, checked.
//!
//! Flags become a [`Config`] or an error of at most three lines that names the flag. Apart
//! from looking up names of users nothing here touches the file system; what the file system makes of
//! the values is found out at start.

pub(crate) mod http;
pub(crate) mod network;
pub(crate) mod users;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use varta_core::tracker::{DEFAULT_CAPACITY, DEFAULT_EVICTION_SCAN_WINDOW, MAX_CAPACITY};
use varta_core::{AllowedUsers, EvictionPolicy, LimitOptions, Rate};

use crate::api;
use crate::control::log::LogFormat;
use crate::journal::ExportEvents;
use http::{HttpConfig, HttpFlags};
use network::{NetworkFlags, UdpConfig};
use users::SocketAccess;

/// Exit code of an unusable command line.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Beats per second of one agent unless told otherwise, as in 0.2.0.
const MAX_BEAT_RATE: u32 = 100;

/// Seconds' worth of beats an agent may send at once unless told otherwise.
const MAX_BEAT_BURST_SECONDS: u32 = 10;

/// Watches processes: each sends a beat now and then, and whoever falls silent is reported
/// and, if you say so, recovered.
#[derive(Debug, Parser)]
#[command(
    name = "varta-watch",
    version,
    max_term_width = 100,
    after_help = "Without any flag it listens on the default socket and reports stalls after 2 s of \
                  silence.\nSIGTERM and SIGINT end it, SIGHUP opens the event file anew and reads \
                  keys and token again, SIGUSR1 logs the counters."
)]
pub(crate) struct Flags {
    /// Unix datagram socket to listen on [default: varta.sock in $RUNTIME_DIRECTORY, else in
    /// /run/varta for root, else in $XDG_RUNTIME_DIR/varta]
    #[arg(long, value_name = "PATH", help_heading = "Listening")]
    socket: Option<PathBuf>,

    /// Permission bits of the socket, octal [default: as open as --allow-uid and --allow-gid need it]
    #[arg(long, value_name = "MODE", value_parser = octal_mode, help_heading = "Listening")]
    socket_mode: Option<u32>,

    /// User whose processes may be agents, by name or number; repeatable [default: this user; everyone
    /// if this is root]
    #[arg(long, value_name = "USER", value_parser = users::user_id, help_heading = "Who may join")]
    allow_uid: Vec<u32>,

    /// Group whose processes may be agents, by name or number; repeatable. Meant is the real group of a
    /// process, not its supplementary ones
    #[arg(long, value_name = "GROUP", value_parser = users::group_id, help_heading = "Who may join")]
    allow_gid: Vec<u32>,

    /// Refuse agents of other pid namespaces (containers); unless --allow-cross-namespace-agents
    #[arg(long, help_heading = "Who may join")]
    strict_namespace_check: bool,

    /// Let recovery act on agents of other pid namespaces (containers) too
    #[arg(long, help_heading = "Who may join")]
    allow_cross_namespace_agents: bool,

    /// Beats per second taken from one agent; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = MAX_BEAT_RATE, help_heading = "Who may join")]
    max_beat_rate: u32,

    /// Beats one agent may send at once, at least 1 [default: 10 times --max-beat-rate]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Who may join")]
    max_beat_burst: Option<u32>,

    /// Beats per second taken from all agents of this host together, and as many from all elsewhere; 0 for
    /// no limit
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        help_heading = "Who may join"
    )]
    global_beat_rate: u32,

    /// Beats all agents together may send at once; 0 for no limit
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10_000,
        help_heading = "Who may join"
    )]
    global_beat_burst: u32,

    #[command(flatten)]
    network: NetworkFlags,

    #[command(flatten)]
    http: HttpFlags,

    /// Silence that makes an agent stalled, in milliseconds, at least 10
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=86_400_000), help_heading = "Silence")]
    threshold_ms: u64,

    /// Agents of this host that can be watched at the same time, 1 to 1048576; with --udp-port as many
    /// elsewhere on top
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY as u64, value_parser = clap::value_parser!(u64).range(1..=MAX_CAPACITY as u64), help_heading = "Silence")]
    tracker_capacity: u64,

    /// Who may lose the slot to a newcomer when the table is full: agents silent for more than ten
    /// thresholds whose stall was reported (strict), or any as silent (balanced)
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = Eviction::Strict, help_heading = "Silence")]
    tracker_eviction_policy: Eviction,

    /// Slots looked at per attempt to evict under the balanced policy
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EVICTION_SCAN_WINDOW as u64, value_parser = clap::value_parser!(u64).range(1..=MAX_CAPACITY as u64), help_heading = "Silence")]
    eviction_scan_window: u64,

    /// Program and arguments to run when an agent stalls, split at white space; {pid} becomes the
    /// agent's process id, {source} the address of one elsewhere; no shell is involved
    #[arg(long, value_name = "COMMAND", help_heading = "Recovery")]
    recovery_exec: Option<String>,

    /// Least time between two runs for the same agent, in milliseconds
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 1000,
        help_heading = "Recovery"
    )]
    recovery_debounce_ms: u64,

    /// Kill a recovery command, with all it started, that runs longer than this, in milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Recovery")]
    recovery_timeout_ms: Option<u64>,

    /// Variable for the recovery command, on top of PATH=/usr/bin:/bin; repeatable
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Recovery")]
    recovery_env: Vec<(String, String)>,

    /// Append events to this file, one tab-separated row each
    #[arg(long, value_name = "PATH", help_heading = "Evidence")]
    export_file: Option<PathBuf>,

    /// Which events the file gets: all, or only changes (no beats)
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = ExportEvents::All, help_heading = "Evidence")]
    export_events: ExportEvents,

    /// How the log on standard error looks
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Human, help_heading = "Evidence")]
    log_format: LogFormat,

    /// Stop cleanly after this many seconds
    #[arg(long, value_name = "SECS", help_heading = "Listening")]
    shutdown_after_secs: Option<u64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Eviction {
    Strict,
    Balanced,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) socket: PathBuf,
    /// The socket's directory is ours to create.
    pub(crate) socket_is_default: bool,
    pub(crate) socket_access: SocketAccess,
    pub(crate) users: AllowedUsers,
    /// Agents of other pid namespaces are refused.
    pub(crate) refuse_foreign: bool,
    /// Recovery may act on agents of other pid namespaces.
    pub(crate) recover_foreign: bool,
    pub(crate) limits: LimitOptions,
    pub(crate) udp: Option<UdpConfig>,
    pub(crate) http: HttpConfig,
    pub(crate) threshold: Duration,
    pub(crate) capacity: usize,
    pub(crate) eviction_policy: EvictionPolicy,
    pub(crate) eviction_scan_window: usize,
    pub(crate) recovery_exec: Option<String>,
    pub(crate) recovery_debounce: Duration,
    pub(crate) recovery_timeout: Option<Duration>,
    pub(crate) recovery_env: Vec<(String, String)>,
    pub(crate) export_file: Option<PathBuf>,
    pub(crate) export_events: ExportEvents,
    pub(crate) log_format: LogFormat,
    pub(crate) shutdown_after: Option<Duration>,
}

/// What to print instead of starting, and how to exit.
#[derive(Debug)]
pub(crate) struct Instead {
    pub(crate) text: String,
    /// 0: help or version, for standard output. Else an error.
    pub(crate) exit_code: u8,
}

impl Config {
    /// Reads the command line; the first argument is the program's name.
    pub(crate) fn from_arguments(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, Instead> {
        let flags = Flags::command()
            .try_get_matches_from(arguments)
            .and_then(|mut matches| Flags::from_arg_matches_mut(&mut matches))
            .map_err(|error| instead(&error))?;
        flags.check()
    }
}

impl Flags {
    fn check(self) -> Result<Config, Instead> {
        let socket_is_default = self.socket.is_none();
        let Some(socket) = self.socket.or_else(api::default_socket_path) else {
            return Err(usage(
                "no place for the socket: XDG_RUNTIME_DIR is not set; say where with --socket PATH",
            ));
        };
        if socket.as_os_str().is_empty() {
            return Err(usage("--socket is empty; give a path"));
        }
        let udp = self
            .network
            .check(&socket)
            .map_err(|problem| usage(&problem))?;
        let http = self
            .http
            .check(&socket)
            .map_err(|problem| usage(&problem))?;
        let own_uid = rustix::process::geteuid().as_raw();
        let users = users::allowed(self.allow_uid, self.allow_gid, own_uid);
        let socket_access = match self.socket_mode {
            Some(mode) => SocketAccess { mode, gid: None },
            None => users::socket_access(&users, own_uid),
        };
        let agent_burst = self
            .max_beat_burst
            .unwrap_or_else(|| self.max_beat_rate.saturating_mul(MAX_BEAT_BURST_SECONDS));
        Ok(Config {
            socket,
            socket_is_default,
            socket_access,
            users,
            refuse_foreign: self.strict_namespace_check && !self.allow_cross_namespace_agents,
            recover_foreign: self.allow_cross_namespace_agents,
            limits: LimitOptions {
                agent: rate(self.max_beat_rate, agent_burst),
                global: rate(self.global_beat_rate, self.global_beat_burst),
            },
            udp,
            http,
            threshold: Duration::from_millis(self.threshold_ms),
            capacity: self.tracker_capacity as usize,
            eviction_policy: match self.tracker_eviction_policy {
                Eviction::Strict => EvictionPolicy::Strict,
                Eviction::Balanced => EvictionPolicy::Balanced,
            },
            eviction_scan_window: self.eviction_scan_window as usize,
            recovery_exec: self.recovery_exec,
            recovery_debounce: Duration::from_millis(self.recovery_debounce_ms),
            recovery_timeout: self.recovery_timeout_ms.map(Duration::from_millis),
            recovery_env: self.recovery_env,
            export_file: self.export_file,
            export_events: self.export_events,
            log_format: self.log_format,
            shutdown_after: self.shutdown_after_secs.map(Duration::from_secs),
        })
    }
}

/// A limit; `None` if either number is 0, as in 0.2.0.
fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    (per_second > 0 && burst > 0).then_some(Rate { per_second, burst })
}

fn octal_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = u32::from_str_radix(digits, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "not a mode; write octal digits from 000 to 777, such as 660".to_owned())
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("no '='; write KEY=VALUE")?;
    if key.is_empty() {
        return Err("nothing before '='; write KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn usage(problem: &str) -> Instead {
    Instead {
        text: format!("varta-watch: {problem}\n"),
        exit_code: EXIT_USAGE,
    }
}

/// Cuts the parser's message to what the operator needs: what is wrong, the nearest right name,
/// where to read more.
fn instead(error: &clap::Error) -> Instead {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return Instead {
            text: format!("{}\n", error.to_string().trim_end()),
            exit_code: 0,
        };
    }
    let rendered = error.to_string();
    let first = rendered.lines().next().unwrap_or_default();
    let problem = first.strip_prefix("error: ").unwrap_or(first);
    let mut text = format!("varta-watch: {problem}\n");
    let help = rendered
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("tip:") || line.starts_with("[possible values:"));
    text.extend(help.map(|help| format!("  {help}\n")));
    text.push_str("  'varta-watch --help' lists every flag\n");
    Instead {
        text,
        exit_code: EXIT_USAGE,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parse(arguments: &[&str]) -> Result<Config, Instead> {
        let program = std::iter::once("varta-watch");
        Config::from_arguments(program.chain(arguments.iter().copied()).map(OsString::from))
    }

    pub(crate) fn error_of(arguments: &[&str]) -> String {
        let instead = parse(arguments).unwrap_err();
        assert_eq!(instead.exit_code, EXIT_USAGE);
        assert!(instead.text.lines().count() <= 3, "{}", instead.text);
        instead.text
    }

    #[test]
    fn the_definition_of_the_flags_is_sound() {
        Flags::command().debug_assert();
    }

    #[test]
    fn both_forms_of_a_flag_mean_the_same() {
        for arguments in [
            &["--socket", "/s", "--threshold-ms", "500"][..],
            &["--socket=/s", "--threshold-ms=500"],
        ] {
            let config = parse(arguments).unwrap();
            assert_eq!(config.socket, PathBuf::from("/s"));
            assert_eq!(config.threshold, Duration::from_millis(500));
        }
    }

    #[test]
    fn defaults_need_no_flag_but_a_place() {
        let config = parse(&["--socket=/s"]).unwrap();
        assert_eq!(config.threshold, Duration::from_millis(2000));
        assert_eq!(config.capacity, 256);
        let own_uid = rustix::process::geteuid().as_raw();
        let mode = if own_uid == 0 { 0o666 } else { 0o600 };
        assert_eq!(config.socket_access, SocketAccess { mode, gid: None });
        let agent = Rate {
            per_second: 100,
            burst: 1000,
        };
        assert_eq!(config.limits.agent, Some(agent));
        assert_eq!(config.limits.global, None);
        assert!(!config.refuse_foreign && !config.recover_foreign);
        assert_eq!(config.recovery_debounce, Duration::from_millis(1000));
        assert_eq!(config.export_events, ExportEvents::All);
    }

    #[test]
    fn socket_modes_are_octal_in_any_of_three_forms() {
        for text in ["660", "0660", "0o660"] {
            let config = parse(&["--socket=/s", "--socket-mode", text]).unwrap();
            assert_eq!(config.socket_access.mode, 0o660);
        }
        for text in ["777777", "9", "rw", ""] {
            assert!(error_of(&["--socket-mode", text]).contains("--socket-mode"));
        }
    }

    #[test]
    fn a_limit_of_zero_is_no_limit() {
        let config = parse(&["--socket=/s", "--max-beat-rate=0"]).unwrap();
        assert_eq!(config.limits.agent, None);
        let config = parse(&["--socket=/s", "--global-beat-rate=7"]).unwrap();
        assert_eq!(config.limits.global.map(|rate| rate.burst), Some(10_000));
        let flags = [
            "--socket=/s",
            "--global-beat-rate=7",
            "--global-beat-burst=0",
        ];
        assert_eq!(parse(&flags).unwrap().limits.global, None);
    }

    #[test]
    fn containers_are_refused_only_by_who_asks_for_that_alone() {
        let both = ["--strict-namespace-check", "--allow-cross-namespace-agents"];
        let strict = parse(&["--socket=/s", both[0]]).unwrap();
        assert!(strict.refuse_foreign && !strict.recover_foreign);
        let allowed = parse(&["--socket=/s", both[0], both[1]]).unwrap();
        assert!(!allowed.refuse_foreign && allowed.recover_foreign);
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        for (flag, value) in [
            ("--threshold-ms", "9"),
            ("--threshold-ms", "-1"),
            ("--threshold-ms", "2s"),
            ("--tracker-capacity", "0"),
            ("--tracker-capacity", "1048577"),
            ("--eviction-scan-window", "0"),
            ("--recovery-timeout-ms", "0"),
            ("--allow-uid", "no-such-user-here"),
            ("--allow-gid", "no-such-group-here"),
            ("--max-beat-burst", "0"),
            ("--max-beat-rate", "-1"),
            ("--recovery-env", "NOVALUE"),
            ("--recovery-env", "=x"),
            ("--export-events", "some"),
            ("--log-format", "xml"),
        ] {
            let error = error_of(&[&format!("{flag}={value}")]);
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn a_misspelt_flag_is_answered_with_the_right_one() {
        let error = error_of(&["--treshold-ms", "500"]);
        assert!(error.contains("--treshold-ms"), "{error}");
        assert!(error.contains("--threshold-ms"), "{error}");
    }

    #[test]
    fn a_wrong_choice_is_answered_with_the_right_ones() {
        let error = error_of(&["--log-format=xml"]);
        assert!(error.contains("human, json"), "{error}");
    }

    #[test]
    fn help_and_version_are_not_errors() {
        let help = parse(&["--help"]).unwrap_err();
        assert_eq!(help.exit_code, 0);
        assert!(help.text.contains("--recovery-exec"));
        let version = parse(&["--version"]).unwrap_err();
        assert_eq!(version.exit_code, 0);
        assert!(version.text.starts_with("varta-watch "));
    }

    #[test]
    fn an_argument_that_is_not_text_is_an_error_and_not_a_crash() {
        use std::os::unix::ffi::OsStringExt;
        let arguments = ["varta-watch".into(), OsString::from_vec(vec![b'-', 0xff])];
        assert_eq!(
            Config::from_arguments(arguments).unwrap_err().exit_code,
            EXIT_USAGE
        );
    }

    #[test]
    fn variables_are_split_at_the_first_equals_sign() {
        let config = parse(&["--socket=/s", "--recovery-env", "A=b=c"]).unwrap();
        assert_eq!(config.recovery_env, [("A".to_owned(), "b=c".to_owned())]);
    }
}
