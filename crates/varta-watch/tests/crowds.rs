//! Agents that end by the hundred and by the thousand: each is reported once, with its own kind of end.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use support::agents::agent_command;
use support::network::PATIENT;
use support::{BEATS, Observer, Stopped, rows_when, wait_until_judged};
use tempfile::TempDir;

const LEFT: &str = "varta_observer_exits_total{how=\"left\"}";
const JOINS: &str = "varta_observer_joins_total";

const UNPROVED: &str = "varta_frame_identity_refused_total{reason=\"unproved_sender\"}";

/// Agents that start at the same time.
const WAVE: u64 = 250;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// An observer, and its event file, which has every join and exit, however many there are at once.
struct Watched {
    observer: Observer,
    directory: TempDir,
}

impl Watched {
    fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = format!("--export-file={}", directory.path().join("rows").display());
        let kept = [PATIENT, "--export-events=changes", &file];
        Self {
            observer: Observer::start(&[&kept[..], flags].concat()),
            directory,
        }
    }

    /// Stops it when all have left, and returns its log and its rows.
    fn stop_when_left(self, agents: usize) -> (Stopped, Vec<Vec<String>>) {
        self.observer.wait_for_count(LEFT, agents as u64);
        let exits = |rows: &[Vec<String>]| rows.iter().filter(|row| row[1] == "exit").count();
        let file = self.directory.path().join("rows");
        let rows = rows_when(&file, |rows| exits(rows) >= agents);
        (self.observer.stop(), rows)
    }
}

/// Fails unless each of this many agents joined once and left once, without any other report. The exception: under
/// load the first beat of a process that has just started may be refused, because its sender cannot be proved.
fn assert_all_came_and_left(watched: Watched, agents: usize, beats: u64) -> Stopped {
    let (stopped, rows) = watched.stop_when_left(agents);
    for line in &stopped.lines {
        match line.event.as_str() {
            "join" | "exit" => {}
            "start" | "stop" | "notice" | "gap" => {}
            "refuse" if line.text("reason") == Some("unproved_sender") => {}
            _ => panic!("{line:?}"),
        }
    }
    let mut stories: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &rows {
        if let "join" | "exit" = row[1].as_str() {
            stories.entry(&row[2]).or_default().push(&row[1]);
        }
        assert!(row[1] != "exit" || row[4] == "left", "{row:?}");
    }
    assert_eq!(stories.len(), agents);
    for (pid, story) in stories {
        assert_eq!(story, ["join", "exit"], "of {pid}");
    }
    let count = agents as u64;
    assert_eq!(stopped.counter(BEATS) + stopped.counter(UNPROVED), beats);
    stopped.assert_counters(&[
        (JOINS, count),
        (LEFT, count),
        ("varta_observer_stalls_total", 0),
        ("varta_observer_exit_watch_failed_total", 0),
        ("varta_tracker_invariant_violations_total", 0),
        ("varta_events_dropped_total", 0),
    ]);
    stopped
}

/// Runs agents with these orders one after the other.
fn run(agents: usize, socket: &Path, orders: &str) {
    for _ in 0..agents {
        let mut agent = agent_command(socket, orders).spawn().unwrap();
        assert!(agent.wait().unwrap().success());
    }
}

#[test]
fn agents_that_end_right_after_their_last_beat_have_left() {
    let watched = Watched::start(&[]);
    let agents = 200;
    run(
        agents,
        &watched.observer.socket,
        "beat self 1 3;nap 5;beat self 4;exit 0",
    );
    let stopped = assert_all_came_and_left(watched, agents, 4 * agents as u64);
    assert_eq!(stopped.count("refuse"), 0);
}

#[test]
fn processes_that_beat_once_and_end_have_come_and_left() {
    let watched = Watched::start(&[]);
    let agents = 200;
    run(agents, &watched.observer.socket, "beat self 1;exit 0");
    let stopped = assert_all_came_and_left(watched, agents, agents as u64);
    assert_eq!(stopped.count("refuse"), 0);
}

/// Whether this system lets this many agents run and be watched: each costs the observer a descriptor, and is a
/// process. A hard limit of 20 000 descriptors and a `kernel.pid_max` of 32 768 are plenty for 5 000.
fn has_room_for(agents: u64) -> bool {
    let needed = agents + agents / 5;
    let descriptors = getrlimit(Resource::Nofile).maximum;
    let processes = getrlimit(Resource::Nproc).current;
    let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let pid_max: u64 = pid_max.trim().parse().unwrap();
    let limits = [descriptors, processes, Some(pid_max)];
    let has_room = limits.iter().flatten().all(|limit| *limit >= needed);
    if !has_room {
        println!("skipped: too few processes or open files allowed for {agents} agents");
    }
    has_room
}

#[test]
fn five_thousand_agents_that_leave_together_have_all_left() {
    let agents = 5_000;
    if !has_room_for(agents as u64) {
        return;
    }
    let watched = Watched::start(&["--tracker-capacity=6000"]);
    let observer = &watched.observer;
    let (hold, let_go) = std::io::pipe().unwrap();
    let mut processes: Vec<Child> = Vec::with_capacity(agents);
    let mut beats = 0;
    // In waves, so that the observer is not starved by processes that start.
    while processes.len() < agents {
        for _ in 0..WAVE {
            // Ends when its standard input does, which is the same for all.
            let mut command = agent_command(&observer.socket, "beat self 1;nap 300;beat self 2");
            command.stdin(hold.try_clone().unwrap());
            processes.push(command.stderr(Stdio::null()).spawn().unwrap());
        }
        beats += 2 * WAVE;
        wait_until_judged(observer, UNPROVED, beats);
    }
    observer.wait_for_count(JOINS, agents as u64);
    drop(let_go);
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    observer.wait_for_count(LEFT, agents as u64);
    // A second or a wrong report would have been written by now.
    std::thread::sleep(Duration::from_millis(500));
    assert_all_came_and_left(watched, agents, beats);
}
