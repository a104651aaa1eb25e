//! The effect of a process that sends without pause on other agents: none.

mod support;

use std::process::Child;
use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::Observer;
use support::agents::{AgentProcess, agent_command, me};
use varta_client::{BeatOutcome, Status, Varta};

/// How long a flood lasts, in milliseconds.
const FLOOD_MS: u64 = 4_000;

const SHED: &str = "varta_rate_limited_total{reason=\"shed\"}";

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// A process that floods the observer, until the test ends at the latest.
struct Flood(Child);

impl Flood {
    fn start(observer: &Observer, kind: &str, ms: u64) -> Self {
        let orders = format!("flood {kind} {ms}");
        Self(agent_command(&observer.socket, &orders).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn wait(&mut self) {
        self.0.wait().unwrap();
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Agents beat 20 times per second next to a flood; none of them is reported as stalled. Returns the observer's log.
fn neighbours_of_a_flood_of(kind: impl Fn(&AgentProcess) -> String) -> (support::Stopped, u32) {
    neighbours_of_a_flood(Observer::start(&["--threshold-ms=2000"]), kind)
}

/// The same with this observer.
fn neighbours_of_a_flood(
    observer: Observer,
    kind: impl Fn(&AgentProcess) -> String,
) -> (support::Stopped, u32) {
    let agents: Vec<_> = (0..3)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    for _ in &agents {
        observer.wait_for("join", |_| true);
    }
    let mut flood = Flood::start(&observer, &kind(&agents[0]), FLOOD_MS);
    flood.wait();
    let pid = flood.pid();
    drop(flood);
    // Long enough for a silence that started at the end.
    observer.count_within("stall", Duration::from_millis(2_200));
    let stopped = observer.stop();
    let stalled = |line: &&LogLine| {
        line.event == "stall" && agents.iter().any(|a| Some(a.pid()) == line.pid())
    };
    assert_eq!(stopped.lines.iter().filter(stalled).count(), 0);
    (stopped, pid)
}

fn says_flood_of(line: &LogLine, pid: Option<u32>) -> bool {
    line.text("reason") == Some("flood") && line.pid() == pid
}

#[test]
fn a_flood_of_beats_is_shed_and_its_neighbours_are_heard() {
    let (stopped, pid) = neighbours_of_a_flood_of(|_| "own".to_owned());
    assert!(stopped.counter(SHED) > 1_000, "{}", stopped.counter(SHED));
    let told = |line: &&LogLine| says_flood_of(line, Some(pid));
    assert!(stopped.lines.iter().any(|line| told(&line)));
    assert_eq!(stopped.count("stall"), 0, "nor is the flooder");
}

#[test]
fn a_flood_of_junk_is_shed_and_its_neighbours_are_heard() {
    let (stopped, _) = neighbours_of_a_flood_of(|_| "junk".to_owned());
    assert!(stopped.counter(SHED) > 1_000, "{}", stopped.counter(SHED));
    assert!(stopped.lines.iter().any(|line| says_flood_of(line, None)));
}

#[test]
fn a_flood_of_last_frames_is_shed_and_its_neighbours_are_heard() {
    let (stopped, pid) = neighbours_of_a_flood_of(|_| "last".to_owned());
    assert!(stopped.counter(SHED) > 1_000, "{}", stopped.counter(SHED));
    let told = |line: &&LogLine| says_flood_of(line, Some(pid));
    assert!(stopped.lines.iter().any(|line| told(&line)));
}

#[test]
fn a_flood_in_the_name_of_nobody_is_shed_and_its_neighbours_are_heard() {
    let (stopped, _) = neighbours_of_a_flood_of(|_| "stranger".to_owned());
    assert!(stopped.counter(SHED) > 1_000, "{}", stopped.counter(SHED));
}

#[test]
fn a_flood_in_the_name_of_an_agent_finds_room_in_a_deep_queue_and_makes_no_stall() {
    let (stopped, _) = neighbours_of_a_flood_of(|agent| agent.pid().to_string());
    assert_eq!(stopped.counter(SHED), 0);
}

#[test]
fn a_flood_in_the_name_of_an_agent_makes_no_stall_and_the_full_queue_is_counted() {
    let observer = Observer::start(&["--threshold-ms=2000", "--queue-datagrams=off"]);
    let (stopped, _) = neighbours_of_a_flood(observer, |agent| agent.pid().to_string());
    assert_eq!(stopped.counter(SHED), 0);
    assert!(stopped.counter("varta_observer_queue_full_total") > 0);
}

#[test]
fn a_stall_is_noticed_in_the_midst_of_a_flood_that_cannot_be_shed() {
    let observer = Observer::start(&["--threshold-ms=200"]);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    let _flood = Flood::start(&observer, &agent.pid().to_string(), 60_000);
    agent.signal(Signal::STOP);
    observer.wait_for_pid("stall", agent.pid());
    observer.stop();
}

#[test]
fn a_flood_that_is_over_is_said_to_be_and_costs_nothing_later() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut flood = Flood::start(&observer, "own", 2_000);
    let pid = flood.pid();
    let is_news = |line: &LogLine| says_flood_of(line, Some(pid));
    observer.wait_for("refuse", is_news);
    flood.wait();
    let over = observer.wait_for("refuse", is_news);
    assert!(over.msg.contains("is over"), "{}", over.msg);
    observer.stop();
}

#[test]
fn who_leaves_and_comes_back_without_end_is_stopped_at_some_time() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut turnstile = agent_command(&observer.socket, "turnstile 3000")
        .spawn()
        .unwrap();
    turnstile.wait().unwrap();
    // A beat that is sent now is received after all of it.
    let mut last = Varta::connect(&observer.socket).unwrap();
    assert_eq!(last.beat(Status::Ok, 0), BeatOutcome::Sent);
    assert_eq!(last.leave(), BeatOutcome::Sent);
    observer.wait_for_pid("exit", me());
    let stopped = observer.stop();
    let joins = stopped.counter("varta_observer_joins_total");
    assert!((5..1_000).contains(&joins), "{joins} joins");
    assert_eq!(stopped.count("join") as u64, joins);
    assert_eq!(stopped.count("exit") as u64, joins);
    let refused = "varta_rate_limited_total{reason=\"comebacks\"}";
    assert!(stopped.counter(refused) > 0);
    assert_eq!(stopped.counter("varta_events_dropped_total"), 0);
}
