//! Agents that end by the hundred and by the thousand: each is told once, as what it was.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use support::agents::agent_command;
use support::network::PATIENT;
use support::{BEATS, Observer, Stopped, wait_until_judged};
use varta_watch::api::LogEvent;

const LEFT: &str = "varta_observer_exits_total{how=\"left\"}";
const JOINS: &str = "varta_observer_joins_total";

const UNPROVED: &str = "varta_frame_identity_refused_total{reason=\"unproved_sender\"}";

/// Agents that start at the same time.
const WAVE: u64 = 250;

/// Not a test: what the agents run.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// Fails unless each of so many agents came once and left once, with nothing else to be said of anybody.
/// Except that in a crush the first beat of a process that has just begun may be refused, for want of proof
/// who has sent it.
fn assert_all_came_and_left(stopped: &Stopped, agents: usize, beats: u64) {
    let mut stories: BTreeMap<u32, Vec<LogEvent>> = BTreeMap::new();
    for line in &stopped.lines {
        match line.event {
            LogEvent::Join | LogEvent::Exit => {
                let pid = line.fields.pid.unwrap();
                stories.entry(pid).or_default().push(line.event);
                if line.event == LogEvent::Exit {
                    assert_eq!(line.fields.how.as_deref(), Some("left"), "{line:?}");
                }
            }
            LogEvent::Start | LogEvent::Stop | LogEvent::Notice | LogEvent::Gap => {}
            LogEvent::Refuse if line.fields.reason.as_deref() == Some("unproved_sender") => {}
            _ => panic!("{line:?}"),
        }
    }
    assert_eq!(stories.len(), agents);
    for (pid, story) in stories {
        assert_eq!(story, [LogEvent::Join, LogEvent::Exit], "of {pid}");
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
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let agents = 200;
    run(
        agents,
        &observer.socket,
        "beat self 1 3;nap 5;beat self 4;exit 0",
    );
    let stopped = observer.stop_when(LEFT, agents as u64);
    assert_all_came_and_left(&stopped, agents, 4 * agents as u64);
    assert_eq!(stopped.count(LogEvent::Refuse), 0);
}

#[test]
fn processes_that_beat_once_and_end_have_come_and_left() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let agents = 200;
    run(agents, &observer.socket, "beat self 1;exit 0");
    let stopped = observer.stop_when(LEFT, agents as u64);
    assert_all_came_and_left(&stopped, agents, agents as u64);
    assert_eq!(stopped.count(LogEvent::Refuse), 0);
}

/// Whether this system lets so many agents run and be watched: each costs the observer a descriptor, and is
/// a process. A hard limit of 20 000 descriptors and a `kernel.pid_max` of 32 768 are plenty for 5 000.
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
    let observer = Observer::start(&[PATIENT, "--tracker-capacity=6000"]);
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
        wait_until_judged(&observer, UNPROVED, beats);
    }
    observer.wait_for_count(JOINS, agents as u64);
    drop(let_go);
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    observer.wait_for_count(LEFT, agents as u64);
    // Whoever is told twice, or as something else, would be by now.
    std::thread::sleep(Duration::from_millis(500));
    assert_all_came_and_left(&observer.stop(), agents, beats);
}
