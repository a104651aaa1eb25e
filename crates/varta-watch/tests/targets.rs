//! Whom a signal may hit: what the user of the silent agent could signal itself, and nobody else.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::ExitStatusExt;
use support::ladders::{Marks, ladder};
use support::users::{AS_USER, Place};
use support::{copy_program, wrapped};
use varta_watch::api::{Level, LogEvent};

const SIGNALLED: &str = "varta_recovery_outcomes_total{outcome=\"signalled\"}";
const TARGET_GONE: &str = "varta_recovery_outcomes_total{outcome=\"target_gone\"}";

/// Not a test: what the agents run.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// With this threshold and a ladder of one step; `None` where this user cannot become another.
fn place(threshold_ms: u32, step: &str) -> Option<Place> {
    let text = ladder(threshold_ms, &[step.to_owned()], "");
    Place::with(Marks::new(), &text, &[])
}

/// Ends a process that nothing has ended yet, and shows that by what it dies of.
fn end_unharmed(mut process: Child) {
    kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
    assert_eq!(process.wait().unwrap().signal(), Some(15));
}

#[test]
fn an_agent_that_moves_into_the_group_of_a_root_process_takes_nobody_but_itself_along() {
    let step = "{ signal = \"KILL\", to = \"group\", wait = \"1h\" }";
    let Some(place) = place(300, step) else {
        return;
    };
    let sleeper = || {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        command
    };
    let daemon = sleeper().process_group(0).spawn().unwrap();
    let mut agent = place.puppet();
    agent.tell(&format!("move {}", daemon.id()));
    agent.tell("beat self 1");
    place.observer.wait_for_pid(LogEvent::Exit, agent.pid);
    end_unharmed(daemon);
    let stopped = place.observer.stop();
    let lines = stopped.lines_of(LogEvent::Recover, agent.pid);
    let sent = "sent signal KILL to 1 process of its process group, spared 1 of another user";
    assert!(lines[0].msg.ends_with(sent), "{lines:?}");
    stopped.assert_counters(&[(SIGNALLED, 1)]);
}

#[test]
fn an_agent_that_has_become_roots_through_a_setuid_program_is_not_signalled() {
    let step = "{ signal = \"KILL\", wait = \"1h\" }".to_owned();
    let Some(place) = place(3_600_000, &step) else {
        return;
    };
    let directory = place.observer.directory.path();
    let setuid = directory.join("setuid");
    let found = Command::new("sh")
        .args(["-c", "command -v setpriv"])
        .output();
    let setpriv = String::from_utf8(found.unwrap().stdout).unwrap();
    copy_program(setpriv.trim().as_ref(), &setuid);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let setuid = setuid.display();
    // Copied, as every program that is run at once.
    let (text, script) = (directory.join("text"), directory.join("become-root"));
    let agent = place.agent.display();
    let become_root = format!("exec {setuid} --reuid=0 --clear-groups {agent} \"$@\"");
    fs::write(&text, format!("#!/bin/sh\n{become_root}\n")).unwrap();
    copy_program(&text, &script);
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut tried = Command::new(&script);
    tried
        .args(["--list", "--exact", "no such test"])
        .stdout(Stdio::null());
    if !wrapped(&AS_USER, &tried)
        .stdout(Stdio::null())
        .status()
        .unwrap()
        .success()
    {
        println!("skipped: the temporary directory is mounted without setuid programs");
        return;
    }

    let mut agent = place.puppet();
    agent.tell("beat self 1");
    place.observer.wait_for_pid(LogEvent::Join, agent.pid);
    agent.tell(&format!("exec {}", script.display()));
    place
        .marks
        .reload(&place.observer, &ladder(300, &[step], ""));
    let line = place.observer.wait_for_outcome("target_gone");
    assert_eq!(line.fields.pid, Some(agent.pid));
    assert_eq!(line.level, Level::Warn);
    let why = "it runs as uid 0 by now and uid 65533, as which it joined, may not signal it";
    assert!(line.msg.ends_with(why), "{line:?}");
    assert!(agent.leave(0).success());
    place
        .observer
        .stop()
        .assert_counters(&[(SIGNALLED, 0), (TARGET_GONE, 1)]);
}
