mod samples;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use varta_core::engine::AgentInfo;
use varta_core::{
    Agent, AgentKey, Beat, BeatOrigin, Counters, SlotTable, Timing, Tracker, TrackerOptions,
};
use varta_vlp::{Frame, Status};

use self::samples::{Sample, of, samples, value};
use super::*;
use crate::beat_path_state::BeatPathState;
use crate::beat_queue::Depth;
use crate::clock::RawClock;
use crate::handoff;
use crate::snapshot::directory::Directory;
use crate::snapshot::view::About;

const THRESHOLD_NS: u64 = 1_000_000_000;

/// An observer without threads. Its tracker has a clock of its own, which the test advances.
struct Observer {
    view: View,
    tracker: Tracker,
    now_ns: u64,
}

/// The same with a beat path whose turn was due an hour ago.
fn overdue_for_an_hour(view: View) -> View {
    let raw = RawClock::started_before(3_600_000_000_000);
    View {
        beat_path: Arc::new(BeatPathState::new(raw)),
        ..view
    }
}

impl Observer {
    fn new(capacity: usize) -> Self {
        let table = Arc::new(SlotTable::on_heap(capacity));
        let counters = Arc::new(Counters::default());
        let beat_path = Arc::new(BeatPathState::new(RawClock::start()));
        // As if the beat path were idle.
        beat_path.set_next_turn(u64::MAX);
        let options = TrackerOptions {
            local_capacity: capacity,
            remote_capacity: capacity,
            ..TrackerOptions::default()
        };
        let view = View {
            about: About {
                session_id: "0".repeat(16),
                started: SystemTime::now(),
                capacity,
                agents_per_user: capacity,
                socket: "/s".to_owned(),
                udp: None,
                queue: Depth {
                    datagrams: 8192,
                    shallow: None,
                },
            },
            table: Arc::clone(&table),
            directory: Arc::new(Directory::default()),
            no_room: Arc::default(),
            counters: Arc::clone(&counters),
            probe: handoff::updates()
                .unwrap()
                .0
                .liveness_probe(Arc::clone(&beat_path)),
            beat_path,
            control: Arc::default(),
        };
        Self {
            view,
            tracker: Tracker::new(table, counters, options),
            now_ns: 0,
        }
    }

    fn hear(&mut self, key: AgentKey, pid: u32, status: Status, info: AgentInfo) -> Agent {
        self.now_ns += 1;
        let beat = Beat {
            key,
            frame: Frame::new(status, pid, 1, self.now_ns, 0),
            origin: BeatOrigin::KernelAttested,
            ns_inode: None,
            uid: 0,
            session: None,
        };
        let recorded = self.tracker.record(&beat, self.now_ns, THRESHOLD_NS);
        let agent = recorded.agent.unwrap();
        self.view.directory.enter(agent, Arc::new(info));
        agent
    }

    fn local(&mut self, pid: u32, status: Status, name: &str) -> Agent {
        let key = AgentKey::process(pid, pid.into());
        let info = AgentInfo {
            name: name.to_owned(),
            joined_as: name.to_owned(),
            ..AgentInfo::default()
        };
        self.hear(key, pid, status, info)
    }

    fn hear_remote(&mut self, pid: u32, source: u64, address: &str) -> Agent {
        let info = AgentInfo {
            address: Some(address.parse().unwrap()),
            ..AgentInfo::default()
        };
        self.hear(AgentKey::Remote { source, pid }, pid, Status::Ok, info)
    }

    /// Lets every agent fall silent for two thresholds: a wheel may be a tick late with the first.
    fn silence(&mut self) {
        self.now_ns += 2 * THRESHOLD_NS;
        let take = |_: &_| ControlFlow::Continue(());
        self.tracker
            .drain_stalled_slots(self.now_ns, u32::MAX, take);
    }

    fn page(&self, format: Format) -> Vec<Sample> {
        samples(&render(&self.view, format, AgentSeries::All))
    }

    fn pids(&self, agents: AgentSeries) -> Vec<String> {
        let page = samples(&render(&self.view, Format::Text, agents));
        let statuses = page.iter().filter(|sample| sample.name == "varta_status");
        statuses
            .map(|sample| sample.labels["pid"].clone())
            .collect()
    }
}

/// Families of 0.2.0 that are kept: name, type, label, its values.
const KEPT: &[(&str, &str, &str, &[&str])] = &[
    ("varta_tracker_evicted_total", "counter", "", &[]),
    ("varta_frame_auth_failures_total", "counter", "", &[]),
    (
        "varta_decode_errors_total",
        "counter",
        "kind",
        &[
            "bad_magic",
            "bad_version",
            "bad_status",
            "bad_pid",
            "bad_timestamp",
            "bad_nonce",
            "stall_on_wire",
            "bad_crc",
        ],
    ),
    ("varta_io_errors_total", "counter", "", &[]),
    ("varta_ctrl_truncated_total", "counter", "", &[]),
    ("varta_tracker_capacity_exceeded_total", "counter", "", &[]),
    ("varta_tracker_capacity", "gauge", "", &[]),
    (
        "varta_recovery_outcomes_total",
        "counter",
        "outcome",
        &[
            "spawned",
            "debounced",
            "reaped_zero",
            "reaped_nonzero",
            "killed",
            "spawn_failed",
            "refused_unauthenticated_transport",
            "refused_cross_namespace",
            "refused_debounce_capacity",
            "refused_outstanding_capacity",
            "refused_socket_mode_only",
        ],
    ),
    (
        "varta_recovery_refused_total",
        "counter",
        "reason",
        &[
            "unauthenticated_transport",
            "cross_namespace_agent",
            "debounce_capacity",
            "outstanding_capacity",
            "socket_mode_only",
        ],
    ),
    (
        "varta_log_suppressed_total",
        "counter",
        "kind",
        &[
            "file_export_io",
            "audit_io",
            "prom_serve",
            "heartbeat_io",
            "audit_ring_warn",
            "audit_ring_critical",
        ],
    ),
    ("varta_origin_conflict_total", "counter", "", &[]),
    ("varta_frame_namespace_mismatch_total", "counter", "", &[]),
    (
        "varta_frame_rejected_pid_above_max_total",
        "counter",
        "",
        &[],
    ),
    ("varta_tracker_namespace_conflict_total", "counter", "", &[]),
    ("varta_recovery_audit_dropped_total", "counter", "", &[]),
    (
        "varta_audit_fsync_seconds",
        "histogram",
        "le",
        &[
            "0.001", "0.005", "0.01", "0.05", "0.1", "0.25", "0.5", "1.0", "+Inf",
        ],
    ),
    ("varta_frame_decrypt_failures_total", "counter", "", &[]),
    ("varta_truncated_datagrams_total", "counter", "", &[]),
    ("varta_sender_state_full_total", "counter", "", &[]),
    (
        "varta_rate_limited_total",
        "counter",
        "reason",
        &["per_pid", "global"],
    ),
    ("varta_observer_clock_regression_total", "counter", "", &[]),
    (
        "varta_observer_clock_jump_forward_total",
        "counter",
        "",
        &[],
    ),
    ("varta_prom_auth_failures_total", "counter", "", &[]),
    (
        "varta_prom_connections_dropped_total",
        "counter",
        "reason",
        &["drain", "rate_limit", "ip_table_full"],
    ),
    ("varta_watch_uptime_seconds", "gauge", "", &[]),
    (
        "varta_watch_last_poll_loop_timestamp_seconds",
        "gauge",
        "",
        &[],
    ),
    ("varta_watch_pids_tracked", "gauge", "", &[]),
    // Replaced ones.
    (
        "varta_recovery_duration_seconds",
        "histogram",
        "le",
        &["+Inf"],
    ),
    ("varta_observer_work_seconds", "histogram", "le", &["+Inf"]),
];

/// Kept as well, with a series per agent.
const KEPT_OF_AGENTS: &[(&str, &str)] = &[
    ("varta_beats_total", "counter"),
    ("varta_stalls_total", "counter"),
    ("varta_status", "gauge"),
];

fn assert_holds_what_is_kept(observer: &Observer) {
    let text = render(&observer.view, Format::Text, AgentSeries::All);
    let page = samples(&text);
    for (name, kind, label, values) in KEPT {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        let name = match *kind {
            "histogram" => format!("{name}_bucket"),
            _ => (*name).to_owned(),
        };
        let found = of(&page, &name);
        assert!(!found.is_empty(), "{name}");
        for value in *values {
            let is_it = |sample: &&&Sample| sample.labels.get(*label).is_some_and(|v| v == value);
            let there = found.iter().filter(is_it).count();
            assert_eq!(there, 1, "{name} {value}");
        }
    }
    for (name, kind) in KEPT_OF_AGENTS {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert_eq!(of(&page, name).len(), observer.tracker.len(), "{name}");
    }
}

#[test]
fn every_family_that_is_kept_is_there_without_agents_and_with_some() {
    let mut observer = Observer::new(8);
    assert_holds_what_is_kept(&observer);
    observer.local(7, Status::Ok, "a");
    observer.local(8, Status::Critical, "b");
    assert_holds_what_is_kept(&observer);
}

#[test]
fn series_of_an_agent_say_what_it_is_and_how_it_does() {
    let mut observer = Observer::new(8);
    observer.local(7, Status::Ok, "silent");
    observer.silence();
    for _ in 0..3 {
        observer.local(8, Status::Degraded, "degraded");
    }
    observer.hear_remote(9, 1, "10.0.0.7");
    let page = observer.page(Format::Text);
    let statuses = ["7", "8", "9"].map(|pid| value(&page, "varta_status", pid));
    assert_eq!(statuses, ["3", "1", "0"]);
    assert_eq!(value(&page, "varta_beats_total", "degraded"), "3");
    assert_eq!(value(&page, "varta_stalls_total", "silent"), "1");
    assert_eq!(value(&page, "varta_agents", "stalled"), "1");
    assert_eq!(value(&page, "varta_agents", "alive"), "2");
    assert_eq!(value(&page, "varta_watch_pids_tracked", ""), "3");
    let sources = of(&page, "varta_agent_last_beat_age_seconds");
    let sources: Vec<_> = sources
        .iter()
        .map(|sample| &sample.labels["source"])
        .collect();
    assert_eq!(sources, ["", "", "10.0.0.7"]);
}

#[test]
fn agents_are_counted_by_name_and_state_and_a_name_goes_with_its_last_agent() {
    let mut observer = Observer::new(8);
    let first = observer.local(7, Status::Ok, "web");
    observer.silence();
    observer.local(8, Status::Ok, "web");
    let db = observer.local(9, Status::Ok, "db");
    let counts = |observer: &mut Observer| {
        let page = observer.page(Format::Text);
        let samples = of(&page, "varta_agents_by_name");
        let counts = samples.iter().map(|sample| {
            let labels = &sample.labels;
            format!("{} {} {}", labels["name"], labels["state"], sample.value)
        });
        counts.collect::<Vec<_>>()
    };
    let of_web = |alive, stalled| {
        [
            format!("web alive {alive}"),
            "web late 0".to_owned(),
            format!("web stalled {stalled}"),
            "web paused 0".to_owned(),
        ]
    };
    let all = counts(&mut observer);
    assert_eq!(all.len(), 8);
    assert!(all.contains(&"db alive 1".to_owned()), "{all:?}");
    assert_eq!(all[4..], of_web(1, 1));
    observer.tracker.retire(first);
    observer.tracker.retire(db);
    assert_eq!(counts(&mut observer), of_web(1, 0));
}

#[test]
fn series_of_an_agent_go_with_it() {
    let mut observer = Observer::new(8);
    let agent = observer.local(7, Status::Ok, "a");
    observer.local(8, Status::Ok, "b");
    observer.tracker.retire(agent);
    assert_eq!(observer.pids(AgentSeries::All), ["8"]);
}

#[test]
fn agents_that_nothing_visible_tells_apart_share_a_series() {
    let mut observer = Observer::new(8);
    observer.hear_remote(7, 1, "10.0.0.7");
    observer.silence();
    observer.hear_remote(7, 2, "10.0.0.7");
    observer.hear_remote(7, 3, "10.0.0.8");
    let page = observer.page(Format::Text);
    assert_eq!(of(&page, "varta_beats_total").len(), 2);
    assert_eq!(value(&page, "varta_beats_total", "10.0.0.7"), "2");
    assert_eq!(value(&page, "varta_status", "10.0.0.7"), "3", "the worst");
    assert_eq!(value(&page, "varta_watch_pids_tracked", ""), "3");
}

#[test]
fn only_as_many_agents_have_series_as_were_asked_for_and_all_are_counted() {
    let mut observer = Observer::new(8);
    for (pid, status) in [
        (1001, Status::Ok),
        (1002, Status::Ok),
        (1003, Status::Degraded),
        (1004, Status::Ok),
    ] {
        observer.local(pid, status, "a");
    }
    assert_eq!(observer.pids(AgentSeries::Faulty), ["1003"]);
    assert!(observer.pids(AgentSeries::None).is_empty());
    assert_eq!(observer.pids(AgentSeries::AtMost(2)), ["1001", "1003"]);
    assert_eq!(observer.pids(AgentSeries::AtMost(9)).len(), 4);
    let text = render(&observer.view, Format::Text, AgentSeries::None);
    assert_eq!(value(&samples(&text), "varta_agents", "alive"), "4");
}

#[test]
fn no_name_of_a_process_breaks_the_page() {
    let names = [
        "plain",
        "q\"uote",
        "back\\slash",
        "new\nline",
        "\\n",
        "trailing\\",
        "\"} 1\nvarta_status{pid=\"1",
        "naïve 日本 🦀",
        "a{b}=c, d",
        "tab\tand\rreturn",
        "",
    ];
    let mut observer = Observer::new(names.len());
    for (pid, name) in (100..).zip(names) {
        observer.local(pid, Status::Ok, name);
    }
    for format in [Format::Text, Format::OpenMetrics] {
        let page = observer.page(format);
        let found = of(&page, "varta_status").into_iter();
        let found: Vec<_> = found.map(|sample| sample.labels["name"].as_str()).collect();
        assert_eq!(found, names);
    }
}

#[test]
fn both_formats_hold_the_same_samples() {
    let mut observer = Observer::new(8);
    observer.local(7, Status::Ok, "a");
    observer.hear_remote(9, 1, "10.0.0.7");
    for timing in Timing::ALL {
        observer.view.counters.observe(*timing, 1_234_567);
    }
    // Values that change between two pages keep their name only.
    let is_fixed = |sample: &Sample| {
        !["varta_watch_", "varta_agent_", "process_"]
            .iter()
            .any(|moving| sample.name.starts_with(moving))
    };
    let page = |format| {
        let mut page = observer.page(format);
        let moving = page.iter_mut().filter(|sample| !is_fixed(sample));
        moving.for_each(|sample| sample.value.clear());
        page
    };
    assert_eq!(page(Format::Text), page(Format::OpenMetrics));
}

#[test]
fn open_metrics_names_families_of_counters_without_their_suffix_and_has_an_end() {
    let observer = Observer::new(1);
    let text = render(&observer.view, Format::Text, AgentSeries::All);
    let open = render(&observer.view, Format::OpenMetrics, AgentSeries::All);
    assert!(text.contains("# TYPE varta_io_errors_total counter\nvarta_io_errors_total 0\n"));
    assert!(open.contains("# TYPE varta_io_errors counter\nvarta_io_errors_total 0\n"));
    assert!(open.ends_with("\n# EOF\n") && !text.contains("# EOF"));
}

#[test]
fn buckets_are_cumulative_and_end_with_the_count() {
    let observer = Observer::new(1);
    for duration_ns in [1, 1_000_000, 4_000_000, 3_600_000_000_000] {
        observer
            .view
            .counters
            .observe(Timing::BeatInterval, duration_ns);
    }
    let page = observer.page(Format::Text);
    let name = "varta_beat_interval_seconds";
    let bucket = |le| value(&page, &format!("{name}_bucket"), le);
    assert_eq!(
        ["0.001", "0.005", "600.0", "+Inf"].map(bucket),
        ["2", "3", "3", "4"]
    );
    assert_eq!(value(&page, &format!("{name}_count"), ""), "4");
    assert_eq!(value(&page, &format!("{name}_sum"), ""), "3600.005000001");
}

#[test]
fn times_are_told_in_seconds_and_counters_in_full() {
    let observer = Observer::new(1);
    let counters = &observer.view.counters;
    counters.add(Counter::GapNanoseconds, 1_500_000_000);
    counters.add(Counter::OutOfOrder, u64::MAX);
    observer.view.beat_path.set_attention_lag(2_000_000_000);
    let page = observer.page(Format::Text);
    assert_eq!(value(&page, "varta_observer_gap_seconds_total", ""), "1.5");
    assert_eq!(
        value(&page, "varta_observer_attention_lag_seconds", ""),
        "2"
    );
    let out_of_order = value(&page, "varta_frame_out_of_order_total", "");
    assert_eq!(out_of_order, u64::MAX.to_string());
}

#[test]
fn until_when_the_beat_path_was_well_is_told_as_a_time_of_day() {
    let observer = Observer::new(1);
    let name = "varta_watch_last_poll_loop_timestamp_seconds";
    let started = unix_seconds(observer.view.about.started);
    let recent: f64 = value(&observer.page(Format::Text), name, "")
        .parse()
        .unwrap();
    assert!(recent >= started);
    let overdue = Observer {
        view: overdue_for_an_hour(observer.view),
        ..observer
    };
    let old: f64 = value(&overdue.page(Format::Text), name, "")
        .parse()
        .unwrap();
    assert!(old < recent - 3_500.0);
}

#[test]
fn no_family_is_declared_twice() {
    let mut names = BTreeSet::new();
    for family in table::families() {
        assert!(names.insert(family.name), "{}", family.name);
    }
}

#[test]
fn names_and_help_need_no_escape_and_follow_the_rules() {
    for family in table::families() {
        let is_counter = family.kind == page::Kind::Counter;
        assert_eq!(
            family.name.ends_with("_total"),
            is_counter,
            "{}",
            family.name
        );
        let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(family.name.chars().all(is_plain), "{}", family.name);
        assert!(family.help.ends_with('.'), "{}", family.help);
        assert!(
            !family.help.contains(['\\', '"', '\n', '|']),
            "{}",
            family.help
        );
    }
}

#[test]
fn an_agent_that_changes_its_name_keeps_its_series() {
    let mut observer = Observer::new(1);
    let agent = observer.local(7, Status::Ok, "worker");
    let info = observer.view.directory.get(agent).unwrap();
    let renamed = AgentInfo {
        name: "other".to_owned(),
        ..Arc::unwrap_or_clone(info)
    };
    observer.view.directory.enter(agent, Arc::new(renamed));
    let page = observer.page(Format::Text);
    let statuses = of(&page, "varta_status");
    assert_eq!(statuses.len(), 1);
    assert_eq!(statuses[0].labels["name"], "worker");
}

#[test]
fn a_beat_path_that_only_input_wakes_turns_next_at_no_time() {
    let page = Observer::new(1).page(Format::Text);
    assert_eq!(value(&page, "varta_observer_next_turn_seconds", ""), "+Inf");
}

#[test]
fn the_series_of_an_observer_without_agents_are_these() {
    let text = render(&Observer::new(1).view, Format::Text, AgentSeries::All);
    let names: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        // Its labels differ between versions and machines.
        .filter(|series| !series.starts_with("varta_build_info"))
        .flat_map(|series| [series, "\n"])
        .collect();
    // Users rely on the series. If a new one is intended, add the left side to the file.
    assert_eq!(names, include_str!("series.txt"));
}

#[test]
fn the_documentation_is_what_the_program_prints() {
    let page = include_str!("../../../../../docs/metrics.md");
    // `varta-watch --list-metrics > docs/metrics.md` regenerates it.
    assert_eq!(page, list());
}
