//! All metric families, in the order of the page: name, kind, help, labels and the source of their samples.
//!
//! The observer's own counters are declared in [`varta_core::counters`] and taken from there; this module declares
//! the figures of agents and of the process, and families of 0.2.0 that this design has no use for. `varta-watch
//! --list-metrics` prints the table as the page `docs/metrics.md`.

use std::fmt::Write;

use varta_api::v1::StateCounts;
use varta_core::histogram::{Distribution, Histogram};
use varta_core::{Counter, Gauge, Timing};

use super::agents::Row;
use super::page::{self, Kind, Number};
use super::{Moment, last_attended, unix_seconds};
use crate::snapshot::view::seconds;

/// A label and its value.
pub(super) type Label = (&'static str, &'static str);

/// One family.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// One sentence for the operator.
    pub(super) help: &'static str,
    pub(super) samples: Samples,
}

/// The source of a family's samples.
pub(super) enum Samples {
    /// A figure of each agent.
    Agents(fn(&Row) -> Number),
    /// Counters of the core, and labels whose value is always 0.
    Counters {
        counted: Vec<Counter>,
        never: &'static [Label],
    },
    /// A gauge of the core.
    Gauge(Gauge),
    /// A distribution of the core.
    Timing(Timing),
    /// A distribution that is always empty.
    Empty(fn() -> Distribution),
    /// The number of agents in each state.
    States(&'static [OfState]),
    /// The number of agents of each name in each state.
    Names(&'static [OfState]),
    /// The version of this program.
    Build,
    /// A figure of the observer.
    Observer(fn(&Moment<'_>) -> Number),
}

/// A state, with the number of agents in it.
type OfState = (&'static str, fn(&StateCounts) -> usize);

/// A family without counters of the core.
type Declared = (&'static str, Kind, &'static str, fn() -> Samples);

/// The figures of agents; they come first because readers look for them.
const OF_AGENTS: &[Declared] = &[
    (
        "varta_beats_total",
        Kind::Counter,
        "Accepted beats.",
        || Samples::Agents(|row| Number::Whole(row.beats)),
    ),
    (
        "varta_stalls_total",
        Kind::Counter,
        "Silences that reached the agent's threshold.",
        || Samples::Agents(|row| Number::Whole(row.stalls)),
    ),
    (
        "varta_status",
        Kind::Gauge,
        "What the agent says of itself: 0 ok, 1 degraded, 2 critical; or 3: it has stalled.",
        || Samples::Agents(|row| Number::Whole(row.status)),
    ),
    (
        "varta_agent_last_beat_age_seconds",
        Kind::Gauge,
        "Time since the agent's last beat, without the time during which the observer was not watching.",
        || Samples::Agents(|row| Number::Real(seconds(row.age_ns))),
    ),
    (
        "varta_agents",
        Kind::Gauge,
        "Agents by state: heard within their threshold, late, stalled, or paused by an operator.",
        || Samples::States(STATES),
    ),
    (
        "varta_agents_by_name",
        Kind::Gauge,
        "The same by name, of agents that have series of their own.",
        || Samples::Names(STATES),
    ),
];

const STATES: &[OfState] = &[
    ("alive", |counts| counts.alive),
    ("late", |counts| counts.late),
    ("stalled", |counts| counts.stalled),
    ("paused", |counts| counts.paused),
];

/// The figures of the observer.
const OF_THE_OBSERVER: &[Declared] = &[
    (
        "varta_tracker_capacity",
        Kind::Gauge,
        "Slots for local agents; with a UDP port, as many again for remote ones.",
        || Samples::Observer(|moment| Number::from(moment.view.about.capacity)),
    ),
    (
        "varta_observer_queue_datagrams",
        Kind::Gauge,
        "Beats of all agents of this host together that the kernel queues before it refuses one.",
        || Samples::Observer(|moment| Number::from(moment.view.about.queue.datagrams)),
    ),
    (
        "varta_watch_pids_tracked",
        Kind::Gauge,
        "Agents that are tracked, local and remote.",
        || Samples::Observer(|moment| Number::from(moment.agents.counts.total())),
    ),
    (
        "varta_watch_uptime_seconds",
        Kind::Gauge,
        "Time since the observer started.",
        || Samples::Observer(|moment| Number::Real(seconds(moment.view.beat_path.raw().now_ns()))),
    ),
    (
        "varta_watch_last_poll_loop_timestamp_seconds",
        Kind::Gauge,
        "Until when the beat path has turned, or slept no longer than announced, Unix time: now, unless it hangs. Written by another thread.",
        || Samples::Observer(last_attended),
    ),
    (
        "varta_build_info",
        Kind::Gauge,
        "Always 1; its labels say which program this is.",
        || Samples::Build,
    ),
    (
        "process_cpu_seconds_total",
        Kind::Counter,
        "Processor time of the observer, in user and kernel mode.",
        || Samples::Observer(|moment| moment.process.cpu),
    ),
    (
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Memory of the observer that is in RAM.",
        || Samples::Observer(|moment| moment.process.resident_bytes),
    ),
    (
        "process_open_fds",
        Kind::Gauge,
        "Descriptors the observer has open, one for each agent that is held among them.",
        || Samples::Observer(|moment| moment.process.open_descriptors),
    ),
    (
        "process_max_fds",
        Kind::Gauge,
        "Descriptors the observer may have open.",
        || Samples::Observer(|moment| moment.process.descriptors_max),
    ),
    (
        "process_start_time_seconds",
        Kind::Gauge,
        "When the observer started, Unix time.",
        || Samples::Observer(|moment| Number::Real(unix_seconds(moment.view.about.started))),
    ),
];

/// Families of 0.2.0 that this design has no use for: they stay empty, so that queries for them still find them.
const OF_THE_PAST: &[Declared] = &[
    (
        "varta_recovery_audit_dropped_total",
        Kind::Counter,
        "Records the audit log could not take; always 0 as long as there is none.",
        || Samples::Observer(|_| Number::Whole(0)),
    ),
    (
        "varta_audit_fsync_seconds",
        Kind::Histogram,
        "Time it took to sync the audit log; always empty as long as there is none.",
        || Samples::Empty(|| Histogram::new(&SYNC_BOUNDS_NS).read()),
    ),
];

/// As in 0.2.0: 1 ms to 1 s.
static SYNC_BOUNDS_NS: [u64; 8] = [
    1_000_000,
    5_000_000,
    10_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
];

/// Labels of 0.2.0 in families of the core that this design has no use for: no line is dropped for these reasons, and
/// neither the ledger of last runs nor that of running commands can be full.
fn never(family: &str) -> &'static [Label] {
    match family {
        "varta_log_suppressed_total" => &[
            ("kind", "file_export_io"),
            ("kind", "audit_io"),
            ("kind", "prom_serve"),
            ("kind", "heartbeat_io"),
            ("kind", "audit_ring_warn"),
            ("kind", "audit_ring_critical"),
        ],
        "varta_recovery_outcomes_total" => &[
            ("outcome", "refused_debounce_capacity"),
            ("outcome", "refused_outstanding_capacity"),
        ],
        "varta_recovery_refused_total" => &[
            ("reason", "debounce_capacity"),
            ("reason", "outstanding_capacity"),
        ],
        _ => &[],
    }
}

/// All families.
pub(super) fn families() -> Vec<Family> {
    let mut families: Vec<Family> = OF_AGENTS.iter().map(declared).collect();
    families.extend(of_counters());
    families.extend(Gauge::ALL.iter().map(|gauge| Family {
        name: gauge.info().name,
        kind: Kind::Gauge,
        help: gauge.info().help,
        samples: Samples::Gauge(*gauge),
    }));
    families.extend(Timing::ALL.iter().map(|timing| Family {
        name: timing.info().name,
        kind: Kind::Histogram,
        help: timing.info().help,
        samples: Samples::Timing(*timing),
    }));
    families.extend(OF_THE_OBSERVER.iter().map(declared));
    families.extend(OF_THE_PAST.iter().map(declared));
    families
}

fn declared((name, kind, help, samples): &Declared) -> Family {
    Family {
        name,
        kind: *kind,
        help,
        samples: samples(),
    }
}

/// Counters of one name are declared one after the other.
fn of_counters() -> impl Iterator<Item = Family> {
    let alike = Counter::ALL.chunk_by(|a, b| a.info().name == b.info().name);
    alike.filter_map(|counted| {
        let info = counted.first()?.info();
        Some(Family {
            name: info.name,
            kind: Kind::Counter,
            help: info.help,
            samples: Samples::Counters {
                counted: counted.to_vec(),
                never: never(info.name),
            },
        })
    })
}

/// Labels of the family that identifies this program.
pub(super) fn build_labels() -> String {
    page::labels(&[
        ("version", env!("CARGO_PKG_VERSION")),
        ("os", std::env::consts::OS),
        ("arch", std::env::consts::ARCH),
    ])
}

/// The table as a page of Markdown.
pub(crate) fn list() -> String {
    let mut text = String::from(HEAD);
    for family in families() {
        let (labels, series) = family.samples.extent();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {labels} | {series} | {} |",
            family.name,
            family.kind.name(),
            family.help,
        );
    }
    text
}

const HEAD: &str = "\
# Metrics

This page is what `varta-watch --list-metrics` prints. Every series of a fixed number is there from the first
scrape on. *Per agent* means series for each agent that `--metrics-agents` gives series to, as long as it
is tracked; `name` is its command name when it joined, where that is known, `source` the address of a
remote agent and empty for a local one.

| name | type | labels | series | meaning |
|---|---|---|---|---|
";

impl Samples {
    /// The labels, and the number of series.
    fn extent(&self) -> (String, String) {
        let none = String::new;
        let of_histogram = |bounds: usize| {
            // The bucket beyond the last bound, the sum, the count.
            ("`le`".to_owned(), (bounds + 3).to_string())
        };
        match self {
            Self::Agents(_) => (
                "`pid`, `name`, `source`".to_owned(),
                "1 per agent".to_owned(),
            ),
            Self::Counters { counted, never } => {
                let counted = counted.iter().filter_map(|counter| counter.info().label);
                fixed(&counted.chain(never.iter().copied()).collect::<Vec<_>>())
            }
            Self::Gauge(_) | Self::Observer(_) => (none(), "1".to_owned()),
            Self::Timing(timing) => of_histogram(timing.bounds_ns().len()),
            Self::Empty(distribution) => of_histogram(distribution().bounds_ns.len()),
            Self::States(states) => {
                let states = states.iter().map(|(state, _)| ("state", *state));
                fixed(&states.collect::<Vec<_>>())
            }
            Self::Names(states) => {
                let (states, count) = Self::States(states).extent();
                (format!("`name`; {states}"), format!("{count} per name"))
            }
            Self::Build => ("`version`, `os`, `arch`".to_owned(), "1".to_owned()),
        }
    }
}

/// One label with all its values.
fn fixed(labels: &[Label]) -> (String, String) {
    let Some((key, _)) = labels.first() else {
        return (String::new(), "1".to_owned());
    };
    let values: Vec<&str> = labels.iter().map(|(_, value)| *value).collect();
    let text = format!("`{key}`: {}", values.join(", "));
    (text, labels.len().to_string())
}
