//! The settings that the operator requested, checked.
//!
//! `table` is the one list of settings; `sources` merges flags, environment and file; this module makes a [`Config`]
//! of them, or lines that report every problem with its fix. Names of users, programs and the recovery command's file
//! are looked up in this phase; sockets, keys and other files are opened at the start.

mod file;
mod http;
mod network;
mod old_flags;
mod pages;
mod plan;
mod positions;
mod problems;
mod programs;
mod recovery_flags;
mod rules;
mod section;
mod show;
mod sources;
mod steps;
mod table;
mod units;
mod unvouched;
mod users;

use std::path::Path;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, FromArgMatches};
use varta_core::{AllowedUsers, EvictionPolicy, LimitOptions, Rate};

use crate::beat_queue;
use crate::keys;
use crate::settings::{Settings, SocketAccess};
use crate::token::Token;
use file::Parsed;
use problems::{Origin, Problems};
pub(crate) use sources::Sources;
use sources::{Gathered, Setting};
use table::{Eviction, Flags};

/// Exit code of an unusable command line or configuration.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Default burst of an agent, in seconds of its rate.
const MAX_BEAT_BURST_SECONDS: u32 = 10;

/// Default part of the table that no single user gets: a quarter, so that a user that fills its share leaves slots
/// for the agents of the others.
const UNSHARED_PART: usize = 4;

/// A setting that can also be switched off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Toggle<T> {
    Off,
    At(T),
}

/// A checked configuration, and its sources.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) settings: Settings,
    /// Notices that are logged once: settings without effect, unknown variables.
    pub(crate) notices: Vec<String>,
    /// Warnings: settings that work as written, but apply to more agents than intended.
    pub(crate) warnings: Vec<String>,
    written: Vec<Setting>,
    sources: Sources,
}

/// The text to print instead of starting, with the exit code.
#[derive(Debug)]
pub(crate) struct EarlyExit {
    pub(crate) text: String,
    /// 0: requested output such as help, for standard output. Else an error.
    pub(crate) exit_code: u8,
}

impl Config {
    /// Reads flags, environment and file. `list_metrics` makes the text of `--list-metrics`.
    pub(crate) fn read(
        sources: Sources,
        list_metrics: impl FnOnce() -> String,
    ) -> Result<Self, EarlyExit> {
        let flags = match sources.flags() {
            Ok(flags) => flags,
            Err(error) if error.kind() == ErrorKind::DisplayHelp => {
                return Err(printed(pages::help(sources.has_argument("--help"))));
            }
            Err(error) => return Err(early_exit(&error)),
        };
        if let Some(page) = page(&flags, list_metrics) {
            return Err(printed(page));
        }
        let mut problems = Problems::default();
        let document = sources.document(&flags, &mut problems);
        let file = document.as_ref().map(|file| file.parse(&mut problems));
        let gathered = sources.gather(&flags, file.as_ref(), &mut problems);
        let gathered = gathered.map_err(|error| early_exit(&error))?;
        check(&flags, gathered, file.as_ref(), sources, problems)
    }

    /// Reads them again, with the environment of the start; else all problems, one line each.
    pub(crate) fn again(&self) -> Result<Self, Vec<String>> {
        Self::read(self.sources.clone(), String::new)
            .map_err(|exit| exit.text.lines().map(str::to_owned).collect())
    }

    /// The settings that differ in `new` and take effect after a restart only.
    pub(crate) fn needing_restart(&self, new: &Self) -> Vec<&str> {
        let pairs = self.written.iter().zip(&new.written);
        let changed = pairs.filter(|(old, new)| !old.reloaded && old.texts != new.texts);
        changed.map(|(old, _)| old.key.as_str()).collect()
    }
}

/// The requested output instead of watching.
fn page(flags: &ArgMatches, list_metrics: impl FnOnce() -> String) -> Option<String> {
    if let Some(shell) = flags.get_one::<String>("completions") {
        return Some(pages::completions(shell));
    }
    if flags.get_flag("man") {
        Some(pages::manual())
    } else if flags.get_flag("list_settings") {
        Some(pages::settings())
    } else if flags.get_flag("list_metrics") {
        Some(list_metrics())
    } else {
        None
    }
}

fn check(
    arguments: &ArgMatches,
    gathered: Gathered,
    file: Option<&Parsed<'_>>,
    sources: Sources,
    mut problems: Problems,
) -> Result<Config, EarlyExit> {
    let Gathered {
        mut matches,
        settings: written,
        notices,
    } = gathered;
    let flags = Flags::from_arg_matches_mut(&mut matches).map_err(|error| early_exit(&error))?;
    let check_only = arguments.get_flag("check_config");
    let inherited_path = sources.path_of_children(flags.recovery.recovery_inherit_env);
    let inputs = Inputs {
        file,
        inherited_path,
        written,
        sources,
    };
    let config = flags.check(inputs, &mut problems, notices);
    if check_only && let Some(config) = &config {
        config.check_secrets(&mut problems);
    }
    let Some(config) = config.filter(|_| problems.is_empty()) else {
        return Err(usage(&problems.into_lines()));
    };
    if check_only {
        return Err(printed(config.said_ok(file)));
    }
    if arguments.get_flag("print_config") {
        return Err(printed(show::page(&config.written, file)));
    }
    Ok(config)
}

/// The parts of a configuration besides the flags.
struct Inputs<'a> {
    file: Option<&'a Parsed<'a>>,
    inherited_path: Option<String>,
    written: Vec<Setting>,
    sources: Sources,
}

impl Flags {
    /// The configuration, as far as one can be made; reports every problem.
    fn check(
        self,
        inputs: Inputs<'_>,
        problems: &mut Problems,
        mut notices: Vec<String>,
    ) -> Option<Config> {
        let exec = plan::command(&self.recovery, problems);
        let users = self.allowed_users(problems);
        let several_may_join = users.as_ref().is_ok_and(users::may_be_several);
        let (children, limits) = (self.children(), self.beat_limits());
        let agents_per_user = self.agents_per_user(several_may_join);
        let policy = self.policy(
            inputs.file,
            exec.as_deref(),
            inputs.inherited_path,
            several_may_join,
            problems,
        );
        let socket_is_default = self.socket.is_none();
        let Some(socket) = self.socket.or_else(varta_api::default_socket_path) else {
            let text = "no place for it: XDG_RUNTIME_DIR is not set; say where with --socket PATH";
            problems.about("socket", &[], text);
            return None;
        };
        let udp = self.network.check(&socket, problems, &mut notices);
        let http = self.http.check(&socket, problems);
        let users = users.ok()?;
        let socket_access = match self.socket_mode {
            Some(mode) => SocketAccess { mode, gid: None },
            None => users::socket_access(&users, rustix::process::geteuid().as_raw()),
        };
        let settings = Settings {
            socket,
            socket_is_default,
            socket_access,
            queue_datagrams: match self.queue_datagrams {
                Toggle::Off => None,
                Toggle::At(datagrams) => Some(datagrams),
            },
            users,
            refuse_foreign: self.strict_namespace_check && !self.allow_cross_namespace_agents,
            real_time: self.real_time,
            limits,
            udp,
            http,
            threshold: Duration::from_millis(self.threshold_ms),
            capacity: self.tracker_capacity as usize,
            agents_per_user,
            eviction_policy: match self.tracker_eviction_policy {
                Eviction::Strict => EvictionPolicy::Strict,
                Eviction::Balanced => EvictionPolicy::Balanced,
            },
            eviction_scan_window: self.eviction_scan_window as usize,
            recovery_exec: exec,
            policy,
            children,
            export_file: self.export_file,
            allow_any_export_file: self.allow_any_export_file,
            export_events: self.export_events,
            log_format: self.log_format,
            shutdown_after: self.shutdown_after_secs.map(Duration::from_secs),
            shutdown_grace: Duration::from_millis(self.shutdown_grace_ms),
        };
        Some(Config {
            settings,
            notices,
            warnings: problems.warnings(),
            written: inputs.written,
            sources: inputs.sources,
        })
    }

    /// The users whose processes may join; none, with a report, if the flags do not name any.
    fn allowed_users(&self, problems: &mut Problems) -> Result<AllowedUsers, ()> {
        let own_uid = rustix::process::geteuid().as_raw();
        let is_root = varta_sys::users::is_root();
        let (uids, gids) = (self.allow_uid.clone(), self.allow_gid.clone());
        let nobody = varta_sys::users::unmapped_uid();
        let users = users::allowed(uids, gids, own_uid, is_root, nobody);
        users.map_err(|text| problems.about("allow-uid", &[], text))
    }

    fn beat_limits(&self) -> LimitOptions {
        let agent_burst = self
            .max_beat_burst
            .unwrap_or_else(|| self.max_beat_rate.saturating_mul(MAX_BEAT_BURST_SECONDS));
        LimitOptions {
            agent: rate(self.max_beat_rate, agent_burst),
            global: rate(self.global_beat_rate, self.global_beat_burst),
        }
    }

    fn agents_per_user(&self, several_may_join: bool) -> usize {
        let capacity = self.tracker_capacity as usize;
        let share = match several_may_join {
            true => capacity - capacity / UNSHARED_PART,
            false => capacity,
        };
        self.max_agents_per_user.map_or(share, |most| most as usize)
    }
}

impl Config {
    /// Reads the secrets; a start reads them where they are used.
    fn check_secrets(&self, problems: &mut Problems) {
        let files = self.settings.udp.as_ref().map(|udp| &udp.keys);
        let files = files.filter(|files| !files.is_empty());
        for error in files.map(keys::problems).unwrap_or_default() {
            report_flag(&error.to_string(), problems);
        }
        let token = self.settings.http.token_file.as_deref().map(Token::read);
        if let Some(Err(error)) = token {
            report_flag(&error.to_string(), problems);
        }
    }

    fn said_ok(&self, file: Option<&Parsed<'_>>) -> String {
        let mut text = String::new();
        let queue = beat_queue::make_socket(self.settings.queue_datagrams);
        let queue = queue.map(|(_, depth)| depth.to_string());
        let queue = queue.unwrap_or_else(|error| format!("cannot make the beat socket: {error}"));
        for notice in self.notices.iter().chain([&queue]) {
            text.push_str(&format!("note: {notice}\n"));
        }
        for warning in &self.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        let warnings = match self.warnings.len() {
            0 => String::new(),
            1 => ", 1 warning".to_owned(),
            many => format!(", {many} warnings"),
        };
        let checked = file.map_or(Path::new("varta-watch").display(), |file| {
            file.document.path.display()
        });
        text.push_str(&format!("{checked}: ok{warnings}\n"));
        text
    }
}

/// Reports an error whose text starts with its flag.
fn report_flag(text: &str, problems: &mut Problems) {
    let split = text
        .strip_prefix("--")
        .and_then(|text| text.split_once(": "));
    match split {
        Some((key, text)) => problems.about(key, &[], text),
        None => problems.add(Origin::Default, "", text),
    }
}

/// A limit; `None` if either number is 0, as in 0.2.0.
fn rate(per_second: u32, burst: u32) -> Option<Rate> {
    (per_second > 0 && burst > 0).then_some(Rate { per_second, burst })
}

/// The notice about a setting without effect.
fn no_effect(key: &str, why: &str) -> String {
    format!("--{key} has no effect: {why}")
}

fn printed(text: String) -> EarlyExit {
    EarlyExit { text, exit_code: 0 }
}

fn usage(problems: &[String]) -> EarlyExit {
    EarlyExit {
        text: problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect(),
        exit_code: EXIT_USAGE,
    }
}

/// Cuts the parser's message to what the operator needs: the problem, the closest valid name, and where to read more.
fn early_exit(error: &clap::Error) -> EarlyExit {
    if error.kind() == ErrorKind::DisplayVersion {
        return printed(format!("{}\n", error.to_string().trim_end()));
    }
    let rendered = error.to_string();
    let first = rendered.lines().next().unwrap_or_default();
    let problem = first.strip_prefix("error: ").unwrap_or(first);
    let mut text = format!("varta-watch: {problem}\n");
    let help = match error.kind() {
        ErrorKind::UnknownArgument => tip(error),
        _ => rendered
            .lines()
            .map(|line| line.trim().to_owned())
            .find(|line| line.starts_with("[possible values:")),
    };
    text.extend(help.map(|help| format!("  {help}\n")));
    text.push_str("  'varta-watch --help' lists every flag\n");
    EarlyExit {
        text,
        exit_code: EXIT_USAGE,
    }
}

/// The flag that may have been intended. The parser's own suggestion may be one without effect.
fn tip(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(written)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let command = table::command();
    let meant = table::meant(&command, written.strip_prefix("--")?, table::NO_SETTINGS)?;
    Some(format!("tip: did you mean --{meant}?"))
}

#[cfg(test)]
pub(crate) mod tests;
