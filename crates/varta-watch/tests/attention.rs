//! The silence that counts while the observer itself is repeatedly stopped: with real processes, and signals that
//! stop the observer.

mod support;

use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::agents::{AgentProcess, joined};
use support::ladders::Marks;
use support::{Observer, PATIENCE, copy_program, public_directory};

const GAPS: &str = "varta_observer_gaps_total";
const PUT_OFF: &str = "varta_observer_stalls_put_off_total";

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// Stops and continues the observer repeatedly, until it reports a stall of `pid`. False if it has not after as many
/// rounds as take three times the timeout of a test.
fn reports_between_stops(
    observer: &Observer,
    pid: u32,
    stopped_for: Duration,
    runs_for: Duration,
) -> bool {
    let rounds = 3 * PATIENCE.as_millis() / (stopped_for + runs_for).as_millis();
    for _ in 0..rounds {
        observer.signal(Signal::STOP);
        std::thread::sleep(stopped_for);
        observer.signal(Signal::CONT);
        observer.count_within("stall", runs_for);
        if observer.seen_of("stall", pid) > 0 {
            return true;
        }
    }
    false
}

#[test]
fn a_hang_is_reported_by_an_observer_that_is_stopped_once_per_threshold() {
    let observer = Observer::start(&["--threshold-ms=1000"]);
    let hung = joined(&observer);
    let (stopped_for, runs_for) = (Duration::from_millis(310), Duration::from_millis(590));
    assert!(reports_between_stops(
        &observer,
        hung.pid,
        stopped_for,
        runs_for
    ));
    assert!(observer.stop().counter(GAPS) > 0);
}

#[test]
fn an_impatient_agent_that_came_and_went_delays_no_stall_of_others() {
    let marks = Marks::new();
    let rules = "threshold-ms = 1000\n[[agent]]\nname = \"fast\"\nthreshold = \"10ms\"\n";
    let observer = marks.observer(rules, &[]);
    let directory = public_directory();
    let program = directory.path().join("fast");
    copy_program(&std::env::current_exe().unwrap(), &program);
    let mut fast = support::agents::Puppet::start_under(&[], &program, &observer.socket);
    fast.tell("beat self 1");
    observer.wait_for_pid("join", fast.pid);
    fast.leave(0);
    observer.wait_for_pid("exit", fast.pid);
    let hung = joined(&observer);
    // More than the agent with the short threshold tolerated, less than the others do.
    let (stopped_for, runs_for) = (Duration::from_millis(30), Duration::from_millis(20));
    assert!(reports_between_stops(
        &observer,
        hung.pid,
        stopped_for,
        runs_for
    ));
    observer.stop();
}

/// Repeatedly stops the observer for this long, and lets it run for a moment in between.
fn stop_again_and_again(observer: &Observer, times: usize, stopped_for: Duration) {
    for _ in 0..times {
        observer.signal(Signal::STOP);
        std::thread::sleep(stopped_for);
        observer.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// The false stalls of a crowd that beats while the observer is stopped for 90 ms of every 93.
fn stalls_of_a_crowd(flags: &[&str]) -> support::Stopped {
    let flags = [&["--threshold-ms=2000"], flags].concat();
    let observer = Observer::start(&flags);
    let agents: Vec<AgentProcess> = (0..40)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    observer.wait_for_count("varta_observer_joins_total", agents.len() as u64);
    stop_again_and_again(&observer, 100, Duration::from_millis(90));
    observer.count_within("stall", Duration::from_millis(100));
    drop(agents);
    observer.stop()
}

#[test]
fn pauses_in_which_a_shallow_queue_loses_beats_stall_no_agent_that_beats() {
    let stopped = stalls_of_a_crowd(&["--queue-datagrams=off"]);
    assert_eq!(stopped.count("stall"), 0);
    let depth = std::fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
    if depth.trim() == "10" {
        assert!(stopped.counter("varta_observer_queue_full_total") > 0);
        let says_why =
            |line: &&LogLine| line.text("reason") == Some("queue_full") && line.pid().is_some();
        let told = stopped.lines.iter().filter(says_why);
        let put_off = told
            .filter_map(|line| line.number::<u64>("count"))
            .sum::<u64>();
        assert_eq!(put_off, stopped.counter(PUT_OFF), "each is in the log");
    }
}

#[test]
fn pauses_in_which_a_deep_queue_keeps_all_beats_put_off_no_stall() {
    let stopped = stalls_of_a_crowd(&[]);
    assert_eq!(stopped.count("stall"), 0);
    if stopped.counter("varta_observer_queue_full_total") == 0 {
        assert_eq!(stopped.counter(PUT_OFF), 0);
    }
}
