//! A pid that passes to another process. Each test runs in a pid namespace of its own, where no other process takes
//! the pid in between.

mod support;

use std::ffi::CStr;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::agents::{spawn_agent_as, wait_for_pid};
use support::namespaces::inside_a_pid_namespace;
use support::{BEATS, Observer, signal_pid};
use varta_sys::spawn::spawn_as;

const LEFT: &str = "varta_observer_exits_total{how=\"left\"}";
const OUT_OF_ORDER: &str = "varta_frame_out_of_order_total";
const SESSIONS: &str = "varta_session_restarts_total";
const SPAWNED: &str = "varta_recovery_outcomes_total{outcome=\"spawned\"}";
const STALLS: &str = "varta_observer_stalls_total";

/// The pid that passes from one process to the next.
const PID: u32 = 4_000;

/// How often the reuse is repeated.
const ROUNDS: u64 = 20;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

fn start_agent(observer: &Observer, orders: &str) {
    spawn_agent_as(PID, &observer.socket, orders);
}

/// Starts a process that never beats.
fn start_bystander() {
    let sleep: &CStr = c"/bin/sleep";
    spawn_as(PID, sleep, &[c"600"], &[]).unwrap();
}

/// Kills the process that has the pid, and frees the pid.
fn kill() {
    signal_pid(PID, Signal::KILL);
    wait_for_pid(PID);
}

/// Lines of an observer about the pid, in the order in which they were written.
fn story(lines: &[LogLine]) -> Vec<&str> {
    let of_it = lines.iter().filter(|line| line.pid() == Some(PID));
    of_it.map(|line| line.event.as_str()).collect()
}

fn come_and_go(times: u64) -> Vec<&'static str> {
    ["join", "exit"].repeat(times as usize)
}

#[test]
fn a_successor_with_the_same_pid_is_a_new_agent_from_its_first_beat() {
    if !inside_a_pid_namespace("a_successor_with_the_same_pid_is_a_new_agent_from_its_first_beat") {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000"]);
    for _ in 0..ROUNDS {
        start_agent(&observer, "beat self 1 50;exit 0");
        assert_eq!(wait_for_pid(PID), Some(0));
        start_agent(&observer, "beat self 1;exit 0");
        assert_eq!(wait_for_pid(PID), Some(0));
    }
    observer.wait_for_count(LEFT, 2 * ROUNDS);
    let stopped = observer.stop();
    assert_eq!(story(&stopped.lines), come_and_go(2 * ROUNDS));
    stopped.assert_counters(&[(BEATS, 51 * ROUNDS), (OUT_OF_ORDER, 0), (SESSIONS, 0)]);
}

#[test]
fn a_successor_that_continues_the_series_of_its_predecessor_is_a_new_agent() {
    if !inside_a_pid_namespace(
        "a_successor_that_continues_the_series_of_its_predecessor_is_a_new_agent",
    ) {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000"]);
    for round in 0..ROUNDS {
        let next = 10 * round + 1;
        start_agent(&observer, &format!("beat self {next} {};exit 0", next + 9));
        assert_eq!(wait_for_pid(PID), Some(0));
    }
    observer.wait_for_count(LEFT, ROUNDS);
    let stopped = observer.stop();
    assert_eq!(story(&stopped.lines), come_and_go(ROUNDS));
    stopped.assert_counters(&[(BEATS, 10 * ROUNDS), (OUT_OF_ORDER, 0), (SESSIONS, 0)]);
}

#[test]
fn who_takes_over_a_pid_unseen_is_told_from_who_had_it() {
    if !inside_a_pid_namespace("who_takes_over_a_pid_unseen_is_told_from_who_had_it") {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000"]);
    for round in 0..ROUNDS {
        let next = 4 * round + 1;
        start_agent(&observer, &format!("beat self {next};stay"));
        observer.wait_for_pid("join", PID);
        // It has finished its work and waits for the next beat. While it is stopped the pid passes to another process
        // and the successor beats.
        std::thread::sleep(Duration::from_millis(20));
        observer.signal(Signal::STOP);
        kill();
        start_agent(
            &observer,
            &format!("beat self {} {};exit 0", next + 1, next + 3),
        );
        assert_eq!(wait_for_pid(PID), Some(0));
        observer.signal(Signal::CONT);
        for _ in 0..2 {
            observer.wait_for_pid("exit", PID);
        }
    }
    let stopped = observer.stop();
    assert_eq!(story(&stopped.lines), come_and_go(2 * ROUNDS));
    let exits = stopped.lines_of("exit", PID);
    for pair in exits.chunks(2) {
        assert_eq!(
            (pair[0].number("signal"), pair[1].number("code")),
            (Some(9), Some(0))
        );
    }
    stopped.assert_counters(&[(BEATS, 4 * ROUNDS), (OUT_OF_ORDER, 0), (SESSIONS, 0)]);
}

#[test]
fn a_bystander_with_the_pid_of_a_dead_sender_is_not_taken_for_it() {
    if !inside_a_pid_namespace("a_bystander_with_the_pid_of_a_dead_sender_is_not_taken_for_it") {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=300"]);
    for _ in 0..5 {
        observer.signal(Signal::STOP);
        start_agent(&observer, "beat self 1;exit 0");
        assert_eq!(wait_for_pid(PID), Some(0));
        start_bystander();
        observer.signal(Signal::CONT);
        let exit = observer.wait_for_pid("exit", PID);
        assert_eq!(exit.number("code"), Some(0), "{exit:?}");
        let silence = Duration::from_millis(700);
        assert_eq!(observer.count_within("stall", silence), 0);
        kill();
    }
    let stopped = observer.stop();
    assert_eq!(story(&stopped.lines), come_and_go(5));
    stopped.assert_counters(&[(BEATS, 5), (STALLS, 0)]);
}

/// A recovery command that records the pid for which it was called, and then waits at a gate.
struct Calls {
    directory: tempfile::TempDir,
    exec: String,
    file: PathBuf,
}

impl Calls {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("recover");
        let file = directory.path().join("calls");
        let gate = directory.path().join("gate");
        let wait = format!("while ! test -e {}; do sleep 0.02; done", gate.display());
        fs::write(&script, format!("echo $1 >> {}\n{wait}\n", file.display())).unwrap();
        Self {
            exec: format!("sh {} {{pid}}", script.display()),
            directory,
            file,
        }
    }

    fn observer(&self, debounce_ms: u32) -> Observer {
        assert!(self.directory.path().exists());
        Observer::start(&[
            "--threshold-ms=300",
            "--recovery-exec",
            &self.exec,
            &format!("--recovery-debounce-ms={debounce_ms}"),
        ])
    }

    fn open_gate(&self) {
        fs::write(self.directory.path().join("gate"), "").unwrap();
    }

    fn count(&self) -> usize {
        let calls = fs::read_to_string(&self.file).unwrap_or_default();
        assert!(calls.lines().all(|pid| pid == PID.to_string()), "{calls}");
        calls.lines().count()
    }
}

fn has_outcome(wanted: &'static str) -> impl Fn(&LogLine) -> bool {
    move |line| line.text("outcome") == Some(wanted)
}

/// Makes an agent stall, be recovered, return, and stall again: its second recovery is due later.
fn stall_twice(observer: &Observer) {
    // The second beat comes too late for the threshold.
    start_agent(observer, "beat self 1;nap 900;beat self 2;stay");
    observer.wait_for_pid("join", PID);
    for _ in 0..2 {
        observer.wait_for_pid("stall", PID);
    }
    observer.wait_for("recover", has_outcome("debounced"));
}

#[test]
fn a_recovery_that_is_due_later_is_not_done_to_a_successor() {
    if !inside_a_pid_namespace("a_recovery_that_is_due_later_is_not_done_to_a_successor") {
        return;
    }
    let calls = Calls::new();
    calls.open_gate();
    let observer = calls.observer(5_000);
    stall_twice(&observer);
    kill();
    start_bystander();
    observer.wait_for_pid("exit", PID);
    std::thread::sleep(Duration::from_millis(5_000));
    assert_eq!(calls.count(), 1);
    observer.stop().assert_counters(&[(SPAWNED, 1)]);
    kill();
}

#[test]
fn a_recovery_that_waits_for_the_one_before_is_not_done_to_a_successor() {
    if !inside_a_pid_namespace(
        "a_recovery_that_waits_for_the_one_before_is_not_done_to_a_successor",
    ) {
        return;
    }
    let calls = Calls::new();
    let observer = calls.observer(100);
    stall_twice(&observer);
    kill();
    start_bystander();
    calls.open_gate();
    observer.wait_for("recover", has_outcome("reaped_zero"));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(calls.count(), 1);
    observer.stop().assert_counters(&[(SPAWNED, 1)]);
    kill();
}

#[test]
fn a_recovery_that_became_due_while_nobody_looked_is_not_done_to_a_successor() {
    if !inside_a_pid_namespace(
        "a_recovery_that_became_due_while_nobody_looked_is_not_done_to_a_successor",
    ) {
        return;
    }
    let calls = Calls::new();
    calls.open_gate();
    let observer = calls.observer(4_500);
    stall_twice(&observer);
    observer.signal(Signal::STOP);
    kill();
    start_bystander();
    std::thread::sleep(Duration::from_millis(4_500));
    // Both are overdue now: the exit event, and the action.
    observer.signal(Signal::CONT);
    observer.wait_for_pid("exit", PID);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(calls.count(), 1);
    observer.stop().assert_counters(&[(SPAWNED, 1)]);
    kill();
}
