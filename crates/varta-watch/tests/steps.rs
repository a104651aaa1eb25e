//! Programs of steps that are missing or misbehave, in a ladder of a running observer: the end of each is reported,
//! and the next step follows.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::LogLine;
use support::http::assert_problem;
use support::ladders::{Marks, ladder};
use support::{Observer, PATIENCE, frame};
use varta_api::v1::AgentsPage;

/// Time for a program to start on a busy machine, before it is ended.
const BEGUN: &str = ", timeout = \"3s\", wait = \"1h\"";

const SPAWN_FAILED: &str = "spawn_failed";

/// Makes an agent fall silent under a ladder of this step and one that leaves the mark `next`; returns how the first
/// one ended. `prepare` runs in between.
fn first_step(
    marks: &Marks,
    step: String,
    outcome: &'static str,
    prepare: impl FnOnce(),
) -> (Observer, LogLine) {
    let text = ladder(200, &[step, marks.mark("next", "")], "");
    let observer = marks.observer(&text, &["--recovery-grace=50ms"]);
    prepare();
    observer.send(&frame(1));
    let line = observer.wait_for_outcome(outcome);
    observer.wait_for_outcome("reaped_zero");
    assert_eq!(marks.read().last().unwrap(), "next");
    (observer, line)
}

/// A program that does nothing, and a step that runs it.
fn program(directory: &Path) -> (PathBuf, String) {
    let path = directory.join("program");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    let step = format!("{{ run = [\"{}\"], wait = \"1h\" }}", path.display());
    (path, step)
}

#[test]
fn a_program_that_is_missing_by_now_fails_its_step() {
    let directory = tempfile::tempdir().unwrap();
    let (path, step) = program(directory.path());
    let remove = || fs::remove_file(&path).unwrap();
    let (_observer, line) = first_step(&Marks::new(), step, SPAWN_FAILED, remove);
    assert!(line.text("error").unwrap().contains("No such file"));
}

#[test]
fn a_program_that_is_not_executable_by_now_fails_its_step() {
    let directory = tempfile::tempdir().unwrap();
    let (path, step) = program(directory.path());
    let forbid = || fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let (_observer, line) = first_step(&Marks::new(), step, SPAWN_FAILED, forbid);
    assert!(line.text("error").unwrap().contains("Permission denied"));
}

#[test]
fn a_program_that_exits_with_3_fails_its_step() {
    let marks = Marks::new();
    let step = marks.shell("echo why; exit 3", ", wait = \"1h\"");
    let (_observer, line) = first_step(&marks, step, "reaped_nonzero", || ());
    assert_eq!(line.number("code"), Some(3));
    assert!(line.msg.ends_with("; it said: why"), "{line:?}");
}

#[test]
fn a_program_that_hangs_is_ended_and_fails_its_step() {
    let marks = Marks::new();
    let step = marks.shell("exec sleep 600", ", timeout = \"100ms\", wait = \"1h\"");
    let (_observer, line) = first_step(&marks, step, "killed", || ());
    assert_eq!(line.number("signal"), Some(15), "{line:?}");
}

#[test]
fn a_program_that_ignores_being_told_to_go_is_killed_and_fails_its_step() {
    let marks = Marks::new();
    let script = "trap '' TERM; while :; do sleep 600; done";
    let (_observer, line) = first_step(&marks, marks.shell(script, BEGUN), "killed", || ());
    assert_eq!(line.number("signal"), Some(9), "{line:?}");
}

#[test]
fn an_observer_that_waits_for_its_programs_says_that_it_stops() {
    let marks = Marks::new();
    let stubborn = "trap '' TERM; echo begun >> marks; while :; do sleep 600; done";
    let text = ladder(200, &[marks.shell(stubborn, ", wait = \"1h\"")], "");
    let observer = marks.observer(&text, &["--recovery-grace=6s"]);
    observer.send(&frame(1));
    marks.wait_for(1);
    let agents: AgentsPage = observer.ask("/api/v1/agents").json();
    observer.signal(Signal::TERM);
    assert_problem(
        &observer.ask_until_refused("/readyz"),
        503,
        "the observer stops",
    );
    let path = format!("/api/v1/agents/{}/pause", agents.agents[0].id);
    assert_problem(
        &observer.wish(&path, r#"{"for":1}"#),
        503,
        "the observer stops",
    );
    observer.stop();
}

#[test]
fn what_a_program_that_is_ended_has_started_is_ended_with_it() {
    let marks = Marks::new();
    let script = "(trap '' TERM; sh -c 'echo $PPID >> marks'; while :; do sleep 600; done) & wait";
    let (_observer, _) = first_step(&marks, marks.shell(script, BEGUN), "killed", || ());
    let grandchild = marks.read().remove(0);
    let until = Instant::now() + PATIENCE;
    while runs(&grandchild) {
        assert!(Instant::now() < until, "{grandchild} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and is no zombie.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn what_a_program_writes_beyond_the_bound_is_counted_and_takes_no_memory() {
    let marks = Marks::new();
    let script = "head -c 200000000 /dev/zero; echo end; exit 3";
    let step = marks.shell(script, ", wait = \"1h\"");
    let (observer, line) = first_step(&marks, step, "reaped_nonzero", || ());
    assert_eq!(line.number("output_bytes"), Some(200_000_004));
    let output = line.text("output").unwrap();
    assert!(output.len() < 5_000, "{} bytes kept", output.len());
    assert!(output.ends_with("\0end\n"));
    let most_kib = most_resident_kib(&observer);
    assert!(most_kib < 64 * 1024, "{most_kib} KiB");
    let dropped = observer
        .stop()
        .counter("varta_recovery_output_dropped_bytes_total");
    assert_eq!(dropped, 200_000_004 - 4_096);
}

fn most_resident_kib(observer: &Observer) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", observer.pid())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let most = most.and_then(|most| most.trim().strip_suffix(" kB"));
    most.unwrap().parse().unwrap()
}

#[test]
fn a_program_that_closes_its_streams_is_waited_for() {
    let marks = Marks::new();
    let script = "echo first >> marks; exec <&- >&- 2>&-; sleep 0.3; echo last >> marks; exit 3";
    let step = marks.shell(script, ", wait = \"1h\"");
    let (_observer, line) = first_step(&marks, step, "reaped_nonzero", || ());
    assert_eq!(line.number("code"), Some(3));
    assert_eq!(marks.read(), ["first", "last", "next"]);
}
