//! Targets of a signal: the processes that the user of the silent agent could signal itself, and no others.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::process::ExitStatusExt;
use support::ladders::{Marks, ladder};
use support::users::{AS_USER, Place};
use support::{copy_program, wrapped};

const SIGNALLED: &str = "varta_recovery_outcomes_total{outcome=\"signalled\"}";

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// With this threshold and a ladder of one step; `None` where this user cannot become another.
fn place(threshold_ms: u32, step: &str) -> Option<Place> {
    let text = ladder(threshold_ms, &[step.to_owned()], "");
    Place::with(Marks::new(), &text, &[])
}

/// Ends a process that has not ended yet, and proves that by the signal of its death.
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
    place.observer.wait_for_pid("exit", agent.pid);
    end_unharmed(daemon);
    let stopped = place.observer.stop();
    let lines = stopped.lines_of("recover", agent.pid);
    let sent = "sent signal KILL to 1 process of its process group, spared 1 of another user";
    assert!(lines[0].msg.ends_with(sent), "{lines:?}");
    stopped.assert_counters(&[(SIGNALLED, 1)]);
}

#[test]
fn an_agent_that_has_become_a_setuid_program_is_not_signalled() {
    let step = "{ signal = \"KILL\", wait = \"1h\" }".to_owned();
    let Some(place) = place(3_600_000, &step) else {
        return;
    };
    let directory = place.observer.directory.path();
    // The agent's own program as root's: the real user is unchanged.
    let setuid = directory.join("setuid");
    copy_program(&place.agent, &setuid);
    fs::set_permissions(&setuid, fs::Permissions::from_mode(0o4755)).unwrap();
    let becomes_root = {
        let id = directory.join("id");
        copy_program(Path::new("/usr/bin/id"), &id);
        fs::set_permissions(&id, fs::Permissions::from_mode(0o4755)).unwrap();
        let user = wrapped(&AS_USER, Command::new(&id).arg("-u")).output();
        user.unwrap().stdout == b"0\n"
    };
    if !becomes_root {
        println!("skipped: the temporary directory is mounted without setuid programs");
        return;
    }

    let mut agent = place.puppet();
    agent.tell("beat self 1");
    place.observer.wait_for_pid("join", agent.pid);
    agent.tell(&format!("exec {}", setuid.display()));
    place
        .marks
        .reload(&place.observer, &ladder(300, &[step], ""));
    let line = place.observer.wait_for_outcome("signal_failed");
    assert_eq!(line.pid(), Some(agent.pid));
    assert_eq!(line.level, "error");
    let why = "it joined as uid 65533 and has the rights of uid 0 by now";
    assert!(line.msg.ends_with(why), "{line:?}");
    assert!(agent.leave(0).success());
    place.observer.stop().assert_counters(&[(SIGNALLED, 0)]);
}
