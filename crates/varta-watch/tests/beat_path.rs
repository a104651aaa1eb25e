//! The beat path, observed from outside: requests do not disturb it, its hang is visible, and its priority cannot be
//! turned against the host.

mod support;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::process::Signal;
use serde_json::Value;
use support::http::{Reply, assert_healthy, assert_problem};
use support::{BEATS, Observer, PATIENCE, frame};
use varta_api::v1::{AgentView, AgentsPage, Health, State};

/// Number of requests of each kind while the beat path sleeps.
const QUESTIONS: usize = 20;

/// The thread of the observer with this name, by its directory below `/proc`. A thread that has just started gets its
/// name a moment later.
fn thread(observer: &Observer, name: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let tasks = fs::read_dir(format!("/proc/{}/task", observer.pid())).unwrap();
        let mut tasks = tasks.map(|task| task.unwrap().path().display().to_string());
        let named = |task: &String| {
            let comm = fs::read_to_string(format!("{task}/comm"));
            comm.is_ok_and(|comm| comm.trim() == name)
        };
        if let Some(task) = tasks.find(named) {
            return task;
        }
        assert!(Instant::now() < until, "no thread is called {name}");
    }
}

/// How often a thread has gone to sleep, read once it sleeps.
fn sleeps(thread: &str) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = fs::read_to_string(format!("{thread}/status")).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.unwrap().trim().to_owned()
        };
        if field("State:").starts_with('S') {
            return field("voluntary_ctxt_switches:").parse().unwrap();
        }
        assert!(Instant::now() < until, "it does not sleep: {status}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Stops the beat path until it is detached from.
fn hang(observer: &Observer) -> Pid {
    let thread = thread(observer, "varta-ingest");
    let thread = Pid::from_raw(thread.rsplit('/').next().unwrap().parse().unwrap());
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    thread
}

fn only_agent(observer: &Observer) -> AgentView {
    let mut page: AgentsPage = observer.ask("/api/v1/agents").json();
    assert_eq!(page.agents.len(), 1);
    page.agents.remove(0)
}

const ONLY_INPUT_WAKES_IT: &str = "varta_observer_next_turn_seconds +Inf";

const IN_REAL_TIME: &str = "varta_observer_real_time 1";
const NOT_IN_REAL_TIME: &str = "varta_observer_real_time 0";

/// The page of metrics has this line.
fn tells(observer: &Observer, line: &str) -> bool {
    let page = observer.ask("/metrics").text();
    page.lines().any(|told| told == line)
}

fn wait_until_it_tells(observer: &Observer, line: &str) {
    let until = Instant::now() + PATIENCE;
    while !tells(observer, line) {
        assert!(Instant::now() < until, "not {line}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn no_question_but_that_for_its_health_wakes_the_beat_path() {
    let observer = Observer::start(&["--threshold-ms=100"]);
    observer.send(&frame(7));
    observer.wait_for_pid("stall", std::process::id());
    wait_until_it_tells(&observer, ONLY_INPUT_WAKES_IT);
    let agent = only_agent(&observer);
    let thread = thread(&observer, "varta-ingest");
    let before = sleeps(&thread);
    for _ in 0..QUESTIONS {
        for path in [
            "/metrics",
            "/api/v1/info",
            "/api/v1/agents",
            "/api/v1/events",
            "/readyz",
            "/",
        ] {
            assert_eq!(observer.ask(path).status, 200, "{path}");
        }
        let again: AgentView = observer.ask(&format!("/api/v1/agents/{}", agent.id)).json();
        assert_eq!(again.state, State::Stalled);
    }
    assert_eq!(sleeps(&thread), before);
    assert!(
        only_agent(&observer).silence > agent.silence,
        "it is of now all the same"
    );
    assert_healthy(&observer);
    assert!(sleeps(&thread) > before);
}

#[test]
fn a_beat_path_that_hangs_is_said_to_and_nobody_grows_silent_meanwhile() {
    let observer = Observer::start(&["--threshold-ms=600"]);
    let agent = observer.connect();
    agent.send(&frame(1)).unwrap();
    observer.wait_for_pid("join", std::process::id());
    let thread = hang(&observer);
    // Each of these waits a second for it.
    let hung: Reply = observer.ask("/healthz");
    let silence = only_agent(&observer).silence;
    let page = observer.ask("/metrics");
    let health: Health = observer.ask("/healthz").json();
    assert_eq!((hung.status, health.healthy), (503, false));
    assert!(health.last_turn_age > 1.5, "{health:?}");
    assert_eq!(only_agent(&observer).silence, silence);
    let told = |page: &Reply| {
        let name = "varta_watch_last_poll_loop_timestamp_seconds ";
        let text = page.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().parse::<f64>().unwrap()
    };
    let (early, late) = (told(&page), told(&observer.ask("/metrics")));
    // A health request in between has taken a second.
    assert!((early - late).abs() < 0.5, "{early} {late}");
    agent.send(&frame(2)).unwrap();
    ptrace::detach(thread, None).unwrap();
    assert_healthy(&observer);
    observer.wait_for_count(BEATS, 2);
    // It may stall after its second beat, and not for the time before that.
    let stalls = observer.lines_told(|line| line.event == "stall");
    assert!(
        stalls.iter().all(|line| line.number("nonce") == Some(2)),
        "{stalls:?}"
    );
    let info: Value = observer.ask("/api/v1/info").json();
    assert!(info["attention_lag"].as_f64().unwrap() > 1.5, "{info}");
}

#[test]
fn an_observer_whose_beat_path_hangs_ends_when_it_is_told_to_and_says_why() {
    let observer = Observer::start(&[]);
    let thread = hang(&observer);
    observer.signal(Signal::TERM);
    assert_problem(
        &observer.ask_until_refused("/readyz"),
        503,
        "the observer stops",
    );
    // The test, its tracer, must wait for its end before its parent can.
    waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    observer.wait_for("notice", |line| line.msg.contains("hangs"));
    assert_eq!(observer.exit_code(), Some(1));
}

#[test]
fn nobody_keeps_the_beat_path_in_real_time_by_flooding_it() {
    let observer = Observer::start(&["--max-beat-rate=0"]);
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    // Some users may not run in real time; the observer works for them without it.
    let from_the_start = match tells(&observer, IN_REAL_TIME) {
        true => IN_REAL_TIME,
        false => NOT_IN_REAL_TIME,
    };
    let agent = observer.connect();
    let flood_is_over = AtomicBool::new(false);
    let begun = Instant::now();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut nonce = 1;
            while !flood_is_over.load(Ordering::Relaxed) && begun.elapsed() < 2 * PATIENCE {
                nonce += 1;
                agent.send(&frame(nonce)).unwrap();
            }
        });
        wait_until_it_tells(&observer, NOT_IN_REAL_TIME);
        flood_is_over.store(true, Ordering::Relaxed);
    });
    wait_until_it_tells(&observer, from_the_start);
    assert_healthy(&observer);
}

#[test]
fn an_observer_that_is_not_to_run_in_real_time_does_not() {
    let observer = Observer::start(&["--real-time=false"]);
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    assert!(tells(&observer, NOT_IN_REAL_TIME));
}
