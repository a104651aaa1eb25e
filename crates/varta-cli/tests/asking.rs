//! `varta status` and `varta events` with a real observer and a real agent.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

fn varta(arguments: &[&str], socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varta"));
    command
        .args(arguments)
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

/// A directory for an observer.
struct Place(TempDir);

impl Place {
    fn socket(&self) -> PathBuf {
        self.0.path().join("varta.sock")
    }

    /// It listens when this returns.
    fn observer(&self) -> Running {
        let arguments = ["__observer", "--http=off", "--threshold-ms=2000"];
        let mut child = varta(&arguments, &self.socket()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = log.lines().map(Result::unwrap);
        let started = lines.any(|line| line.contains("answers on"));
        assert!(started, "the observer has not started");
        // It continues to write, so the pipe needs a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Running(child)
    }

    fn agent(&self) -> Running {
        let agent = varta(&["beat", "--every=50ms"], &self.socket()).spawn();
        Running(agent.unwrap())
    }

    fn follower(&self) -> Follower {
        let arguments = ["events", "--follow", "--json", "--after=0"];
        let mut child = varta(&arguments, &self.socket()).spawn().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let child = Running(child);
        Follower { child, events }
    }

    fn status(&self, flags: &[&str]) -> (Option<i32>, String, String) {
        let mut command = varta(&["status"], &self.socket());
        let output = command.args(flags).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code();
        (code, text(output.stdout), text(output.stderr))
    }
}

/// `varta events --follow`
struct Follower {
    child: Running,
    events: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    /// Waits for an event of this kind.
    fn wait_for(&mut self, kind: &str) -> Value {
        let events = self.events.by_ref().map(Result::unwrap);
        let mut events = events.map(|line| serde_json::from_str::<Value>(&line).unwrap());
        let found = events.find(|event| event["event"] == kind);
        found.unwrap_or_else(|| panic!("no {kind}"))
    }

    /// Ends it; returns its standard error.
    fn end(mut self) -> String {
        self.child.signal(Signal::KILL);
        let stderr = self.child.0.stderr.take().unwrap();
        let lines = BufReader::new(stderr).lines().map(Result::unwrap);
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_stall_and_a_return_are_told_as_they_happen() {
    let place = Place(tempfile::tempdir().unwrap());
    let _observer = place.observer();
    let (code, text, error) = place.status(&[]);
    assert_eq!(code, Some(0), "{error}");
    assert!(text.contains("no agents"), "{text}");

    let mut follower = place.follower();
    let agent = place.agent();
    let pid = agent.0.id();
    assert_eq!(follower.wait_for("join")["pid"], pid);
    let (code, text, error) = place.status(&["--agent=varta"]);
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(text.contains("1 agent of 'varta', 1 alive"), "{text}");

    agent.signal(Signal::STOP);
    assert_eq!(follower.wait_for("stall")["pid"], pid);
    let (code, text, _) = place.status(&["--json"]);
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["agents"][0]["state"], "stalled");
    assert_eq!(report["agents"][0]["pid"], pid);
    assert_eq!(report["info"]["agents"]["stalled"], 1);
    assert_eq!(report["health"]["healthy"], true);

    agent.signal(Signal::CONT);
    assert_eq!(follower.wait_for("return")["pid"], pid);
    let (code, text, _) = place.status(&["--agent", &pid.to_string()]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(follower.end(), "");
}

#[test]
fn a_stalled_agent_that_is_paused_is_no_trouble_until_it_is_resumed() {
    let place = Place(tempfile::tempdir().unwrap());
    let _observer = place.observer();
    let mut follower = place.follower();
    let agent = place.agent();
    let id = agent.0.id().to_string();
    follower.wait_for("join");
    agent.signal(Signal::STOP);
    follower.wait_for("stall");
    let run = |arguments: &[&str]| {
        let output = varta(arguments, &place.socket()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let paused = run(&["pause", &id, "--for=1h", "--reason=debugger"]);
    assert_eq!(
        paused,
        (Some(0), format!("paused varta ({id}) for 1h 00m\n"))
    );
    assert_eq!(follower.wait_for("pause")["reason"], "debugger");
    let (code, text, _) = place.status(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(": debugger"), "{text}");
    let resumed = run(&["resume", &id]);
    assert_eq!(resumed, (Some(0), format!("resumed varta ({id})\n")));
    follower.wait_for("resume");
    follower.wait_for("stall");
}

#[test]
fn a_follower_finds_the_observer_that_comes_next() {
    let place = Place(tempfile::tempdir().unwrap());
    let first = place.observer();
    let mut follower = place.follower();
    let started = follower.wait_for("start");
    first.signal(Signal::TERM);
    drop(first);
    let (code, _, error) = place.status(&[]);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("start varta-watch"), "{error}");

    let _second = place.observer();
    let again = follower.wait_for("start");
    assert_ne!(started["session_id"], again["session_id"]);
    assert_eq!(again["id"], 1);
    let said = follower.end();
    let session = again["session_id"].as_str().unwrap();
    assert!(said.contains("looking for the observer"), "{said}");
    let another = format!("another observer, session {session}");
    assert!(said.contains(&another), "{said}");
}

#[test]
fn a_stopped_observer_cannot_tell() {
    let place = Place(tempfile::tempdir().unwrap());
    let observer = place.observer();
    observer.signal(Signal::STOP);
    let (code, text, error) = place.status(&[]);
    observer.signal(Signal::CONT);
    assert_eq!((code, text.as_str()), (Some(2), ""), "{error}");
    assert!(error.contains("no answer within 3 s"), "{error}");
}
