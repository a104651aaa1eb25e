//! `varta demo` from outside: its output, its checks, and that it removes everything it made.
//!
//! The demo is real, so these tests take several seconds. Timeouts are generous: a slow machine makes them slower,
//! not wrong.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Timeout for a short operation.
const PATIENCE: Duration = Duration::from_secs(20);

/// A demo whose directory is in `base`.
fn demo(base: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varta"));
    command
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", base)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A short path: the demo avoids long ones, and its directory would then be indistinguishable from others.
fn base() -> TempDir {
    tempfile::tempdir_in("/tmp").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Whether a process whose command line mentions `base` still runs.
fn somebody_works_in(base: &Path) -> bool {
    let needle = base.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.filter_map(Result::ok).any(|process| {
        let command_line = std::fs::read(process.path().join("cmdline"));
        command_line.is_ok_and(|line| String::from_utf8_lossy(&line).contains(needle))
    })
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn assert_nothing_is_left_in(base: &Path) {
    wait_until("all processes are gone", || !somebody_works_in(base));
    let left: Vec<_> = std::fs::read_dir(base).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The position of the first line with all of these words.
fn find(lines: &[&str], words: &[&str]) -> usize {
    let found = lines
        .iter()
        .position(|line| words.iter().all(|word| line.contains(word)));
    found.unwrap_or_else(|| panic!("no line with {words:?} in\n{}", lines.join("\n")))
}

#[test]
fn the_story_is_told_in_plain_lines_where_there_is_no_terminal() {
    let base = base();
    let Output {
        status,
        stdout,
        stderr,
    } = demo(base.path(), &["--seconds", "6"]).output().unwrap();
    let (out, err) = (text(&stdout), text(&stderr));
    assert!(status.success(), "{out}{err}");
    assert_eq!(err, "");
    assert!(!out.contains('\u{1b}'), "no colours without a terminal");

    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].contains("an observer and six agents"), "{out}");
    for name in ["web", "worker", "hang", "stuck", "crash", "leave"] {
        find(&lines, &["join", &format!("demo-{name}: first beat")]);
    }
    find(&lines, &["left", "demo-leave", "no alarm"]);
    find(&lines, &["DIED", "demo-crash", "SIGABRT"]);
    let stall = find(
        &lines,
        &["STALL", "demo-hang: silent for 1 s", "ms after that"],
    );
    let recovery = find(&lines, &["recover", "demo-hang: step 1", "demo-heal"]);
    let healed = find(&lines, &["recover", "demo-hang", "succeeded"]);
    let back = find(&lines, &["return", "demo-hang", "beats again"]);
    let stop = find(&lines, &["stop", "the observer has stopped"]);
    assert!(stall < recovery && recovery < healed && recovery < back && back < stop);
    find(&lines, &["recover", "demo-hang: recovered"]);
    let row = find(&lines, &["demo-hang", "stalled and came back"]);

    let silent = find(&lines, &["STALL", "demo-stuck: silent for 1 s"]);
    let first_step = find(&lines, &["recover", "demo-stuck: step 1", "demo-heal"]);
    let second_step = find(&lines, &["recover", "demo-stuck", "step 2", "SIGCONT"]);
    let gave_up = find(&lines, &["GAVE UP", "demo-stuck", "no step is left"]);
    assert!(silent < first_step && first_step < second_step, "{out}");
    assert!(second_step < gave_up && gave_up < stop, "{out}");
    let stuck_row = find(&lines, &["demo-stuck", "given up, no step had helped"]);

    let promise = find(&lines, &["Everything that was promised was seen"]);
    assert!(stop < row && row < stuck_row && stuck_row < promise);
    assert_nothing_is_left_in(base.path());
}

#[test]
fn as_json_every_line_is_an_event_and_the_last_one_a_summary() {
    let base = base();
    let output = demo(base.path(), &["--json", "--seconds=7"])
        .output()
        .unwrap();
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    let events: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let position = |event: &str, name: Option<&str>, more: &dyn Fn(&Value) -> bool| {
        let found = events.iter().position(|line| {
            line["event"] == event && name.is_none_or(|name| line["name"] == name) && more(line)
        });
        found.unwrap_or_else(|| panic!("no {event} of {name:?} in\n{out}"))
    };
    let any = |_: &Value| true;

    assert_eq!(position("start", None, &any), 0);
    for name in ["web", "worker", "hang", "stuck", "crash"].map(|name| format!("demo-{name}")) {
        position("join", Some(&name), &any);
    }
    let join = position("join", Some("demo-leave"), &any);
    let left = position("exit", Some("demo-leave"), &|line| line["code"] == 0);
    let died = position("exit", Some("demo-crash"), &|line| line["signal"] == 6);
    let stall = position("stall", Some("demo-hang"), &|line| {
        line["lateness_ms"].as_f64().is_some_and(|ms| ms >= 0.0)
    });
    let spawned = position("recover", Some("demo-hang"), &|line| {
        line["outcome"] == "spawned"
    });
    let handled = position("recover", Some("demo-hang"), &|line| {
        line["outcome"] == "reaped_zero"
    });
    let back = position("return", Some("demo-hang"), &|line| {
        line["silence_ms"].as_f64().is_some_and(|ms| ms >= 1000.0)
    });
    let recovered = position("recover", Some("demo-hang"), &|line| {
        line["outcome"] == "recovered"
    });
    let stop = position("stop", None, &any);
    assert!(join < left && left < stop && died < stop, "{out}");
    assert!(stall < spawned && spawned < handled, "{out}");
    assert!(back < recovered && recovered < stop, "{out}");

    let stuck = |event: &str, outcome: &str| {
        position(event, Some("demo-stuck"), &|line| {
            line["outcome"] == outcome
        })
    };
    let first_step = stuck("recover", "spawned");
    let first_handled = stuck("recover", "reaped_zero");
    let second_step = stuck("recover", "signalled");
    let gave_up = stuck("gave_up", "gave_up");
    assert_eq!(events[gave_up]["reason"], "steps_exhausted");
    assert!(
        first_step < first_handled && first_handled < second_step,
        "{out}"
    );
    assert!(second_step < gave_up && gave_up < stop, "{out}");
    let of_stuck = |line: &&Value| line["name"] == "demo-stuck";
    let after = events[gave_up + 1..].iter().filter(of_stuck);
    let after: Vec<_> = after.map(|line| line["event"].as_str()).collect();
    assert_eq!(after, [Some("exit")], "nothing more is done about it");
    assert!(spawned < back && back < stop && handled < stop, "{out}");

    let summary = events.last().unwrap();
    assert_eq!(stop, events.len() - 2, "{out}");
    assert_eq!(summary["event"], "summary");
    assert_eq!(summary["ok"], true, "{summary}");
    assert_eq!(summary["missing"], Value::Array(Vec::new()));
    let agents = summary["agents"].as_array().unwrap();
    assert_eq!(agents.len(), 6);
    let beats: u64 = agents
        .iter()
        .map(|agent| agent["beats"].as_u64().unwrap())
        .sum();
    assert_eq!(
        summary["observer"]["beats"], beats,
        "the file has all beats"
    );
    assert_nothing_is_left_in(base.path());
}

fn started(base: &Path) -> Child {
    let mut demo = demo(base, &["--seconds=60"]).spawn().unwrap();
    let stdout = demo.stdout.take().unwrap();
    let joined = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("demo-leave: first beat"));
    assert!(joined);
    demo
}

#[test]
fn a_signal_ends_it_early_and_in_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let base = base();
        let child = demo(base.path(), &["--seconds=60", "--json"])
            .spawn()
            .unwrap();
        wait_until("agents work", || somebody_works_in(base.path()));
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let err = text(&output.stderr);
        assert!(err.starts_with("varta: ended by SIG"), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert_nothing_is_left_in(base.path());
    }
}

#[test]
fn a_demo_that_is_killed_takes_its_processes_with_it() {
    let base = base();
    let mut demo = started(base.path());
    demo.kill().unwrap();
    demo.wait().unwrap();
    wait_until("all processes are gone", || !somebody_works_in(base.path()));
}

#[test]
fn a_reader_who_leaves_ends_it() {
    let base = base();
    // Its standard output is closed by now.
    let mut demo = started(base.path());
    let mut err = BufReader::new(demo.stderr.take().unwrap());
    let mut line = String::new();
    err.read_line(&mut line).unwrap();
    assert!(line.contains("standard output"), "{line}");
    assert_eq!(demo.wait().unwrap().code(), Some(1));
    assert_nothing_is_left_in(base.path());
}

#[test]
fn a_place_that_cannot_be_used_is_named() {
    let missing = "/tmp/varta-no-such-directory";
    let output = demo(Path::new(missing), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert!(err.contains(missing) && err.contains("TMPDIR"), "{err}");
    assert!(err.lines().count() <= 3, "{err}");
}
