//! The settings: plain data.
//!
//! `config` makes them from flags, environment and file, and checks them; every other module reads them. This module
//! reads no file, looks nothing up and decides nothing.

pub(crate) mod children;
pub(crate) mod http;
pub(crate) mod network;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use varta_core::policy::Policy;
use varta_core::{AllowedUsers, EvictionPolicy, LimitOptions};

use children::Children;
use http::HttpSettings;
use network::UdpSettings;

/// Default number of datagrams that the beat socket queues, as a text. That is eight times the beats of a thousand
/// agents in phase; agents can fill it with some 6 MiB of beats.
pub(crate) const QUEUE_DATAGRAMS_DEFAULT: &str = "8192";

/// Permitted range. Fewer than the kernel's own eleven have no benefit. A larger number takes longer to read when
/// full: 65 536 beats take some 100 ms, during which no agent is judged.
pub(crate) const QUEUE_DATAGRAMS_MIN: u32 = 16;
pub(crate) const QUEUE_DATAGRAMS_MAX: u32 = 65_536;

/// All settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) socket: PathBuf,
    /// The observer may create the socket's directory.
    pub(crate) socket_is_default: bool,
    pub(crate) socket_access: SocketAccess,
    /// Fewest datagrams that the kernel must queue on the socket; `None`: the kernel's default.
    pub(crate) queue_datagrams: Option<u32>,
    pub(crate) users: AllowedUsers,
    /// Agents of other pid namespaces are refused.
    pub(crate) refuse_foreign: bool,
    /// The beat path may run in real time.
    pub(crate) real_time: bool,
    pub(crate) limits: LimitOptions,
    pub(crate) udp: Option<UdpSettings>,
    pub(crate) http: HttpSettings,
    pub(crate) threshold: Duration,
    pub(crate) capacity: usize,
    /// Slots that agents of one user may have, root aside.
    pub(crate) agents_per_user: usize,
    pub(crate) eviction_policy: EvictionPolicy,
    pub(crate) eviction_scan_window: usize,
    pub(crate) recovery_exec: Option<String>,
    /// Rules, ladders and limits.
    pub(crate) policy: Policy,
    pub(crate) children: Children,
    pub(crate) export_file: Option<PathBuf>,
    /// `export_file` may be any kind of file, at any path.
    pub(crate) allow_any_export_file: bool,
    pub(crate) export_events: ExportEvents,
    pub(crate) log_format: LogFormat,
    pub(crate) shutdown_after: Option<Duration>,
    /// Time that running recovery commands get to end when the observer stops.
    pub(crate) shutdown_grace: Duration,
}

/// How the socket file is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketAccess {
    /// Permission bits.
    pub(crate) mode: u32,
    /// The group it is given to, if not the observer's.
    pub(crate) gid: Option<u32>,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One sentence per line.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Which events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportEvents {
    /// Every accepted beat, and everything below.
    #[default]
    All,
    /// Joins, stalls, returns, exits, evictions, refusals, gaps: no beats.
    Changes,
}
