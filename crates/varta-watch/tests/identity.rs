//! The identity of senders: every beat is credited to the process that sent it, or refused.

mod support;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use support::agents::{Puppet, agent_command, joined};
use support::{
    AS_NOBODY, BEATS, Observer, copy_program, frame, frame_of, may_become_nobody, public_directory,
    rows_when, wrapped,
};
use tempfile::TempDir;
use varta_client::{BeatOutcome, Status, Varta};

const MISMATCH: &str = "varta_frame_auth_failures_total";
const FOREIGN_USER: &str = "varta_frame_identity_refused_total{reason=\"foreign_uid\"}";
const OUT_OF_ORDER: &str = "varta_frame_out_of_order_total";
const SESSIONS: &str = "varta_session_restarts_total";

/// Starts the rest of the command as another user of that group.
const AS_GROUP_MEMBER: [&str; 4] = [
    "setpriv",
    "--reuid=64001",
    "--regid=64000",
    "--clear-groups",
];

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

#[test]
fn nobody_beats_in_the_name_of_another() {
    let observer = Observer::start(&["--threshold-ms=300"]);
    let victim = joined(&observer);
    let forger = observer.connect();
    let mut forged = 0;
    // The silence is judged while the other one is still beating.
    while observer.seen_of("stall", victim.pid) == 0 {
        forged += 1;
        forger.send(&frame_of(victim.pid, 1_000 + forged)).unwrap();
        observer.count_within("stall", Duration::from_millis(10));
        assert!(forged < 10_000, "it does not stall");
    }
    let stopped = observer.stop_when(MISMATCH, forged);
    let stall = stopped.lines_of("stall", victim.pid)[0];
    assert!(stall.number::<u64>("nonce").unwrap() < 1_000, "{stall:?}");
    assert_eq!(stopped.count("return"), 0);
    stopped.assert_counters(&[(MISMATCH, forged), ("varta_observer_joins_total", 1)]);
}

#[test]
fn a_child_that_inherits_its_parents_socket_speaks_for_itself_only() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let parent = std::process::id();
    let socket = observer.connect();
    socket.send(&frame(1)).unwrap();
    observer.wait_for_pid("join", parent);
    let orders = format!("adopt;beat {parent} 2;beat self 1;stay");
    let inherited = OwnedFd::from(socket.try_clone().unwrap());
    let mut child = agent_command(&observer.socket, &orders)
        .stdin(Stdio::from(inherited))
        .spawn()
        .unwrap();
    observer.wait_for_pid("join", child.id());
    observer.wait_for_count(MISMATCH, 1);
    // The parent can still use nonce 2.
    socket.send(&frame(2)).unwrap();
    let stopped = observer.stop_when(BEATS, 3);
    stopped.assert_counters(&[(MISMATCH, 1), (OUT_OF_ORDER, 0), (BEATS, 3)]);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A directory where other users can reach the socket and run copies of the programs.
struct Place {
    directory: TempDir,
    agent: PathBuf,
}

/// `None` where this user cannot become another.
fn place_for_other_users() -> Option<Place> {
    if !may_become_nobody() {
        return None;
    }
    let directory = public_directory();
    let agent = directory.path().join("agent");
    copy_program(&std::env::current_exe().unwrap(), &agent);
    Some(Place { directory, agent })
}

/// An observer that other users can reach, and a puppet of another user.
fn meet_other_user(flags: &[&str], wrapper: &[&str]) -> Option<(Observer, Puppet)> {
    let Place { directory, agent } = place_for_other_users()?;
    let observer = Observer::start_in(directory, flags, |command| command);
    let puppet = Puppet::start_under(wrapper, &agent, &observer.socket);
    Some((observer, puppet))
}

#[test]
fn a_user_who_may_not_speak_is_refused_although_the_socket_is_open() {
    let flags = ["--allow-uid=0", "--socket-mode=666"];
    let Some((observer, mut nobody)) = meet_other_user(&flags, &AS_NOBODY) else {
        return;
    };
    assert_eq!(observer.socket_mode(), 0o666);
    nobody.tell("beat self 1");
    let refused = observer.wait_for_refusal("foreign_uid");
    assert_eq!(refused.pid(), Some(nobody.pid));
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    let stopped = observer.stop();
    assert_eq!(stopped.count("join"), 1);
    stopped.assert_counters(&[(FOREIGN_USER, 1), (BEATS, 1)]);
}

#[test]
fn a_user_who_is_named_may_speak_and_even_root_may_not_unless_named() {
    let Some((observer, mut nobody)) = meet_other_user(&["--allow-uid=64000"], &AS_NOBODY) else {
        return;
    };
    assert_eq!(observer.socket_mode(), 0o666);
    nobody.tell("beat self 1");
    let join = observer.wait_for_pid("join", nobody.pid);
    assert_eq!(join.number("uid"), Some(64000));
    observer.send(&frame(1));
    observer.wait_for_refusal("foreign_uid");
    observer
        .stop()
        .assert_counters(&[(FOREIGN_USER, 1), (BEATS, 1)]);
}

#[test]
fn a_group_that_is_named_may_speak_whoever_the_user_is() {
    let flags = ["--allow-gid=64000"];
    let Some((observer, mut member)) = meet_other_user(&flags, &AS_GROUP_MEMBER) else {
        return;
    };
    assert_eq!(observer.socket_mode(), 0o660);
    member.tell("beat self 1");
    let join = observer.wait_for_pid("join", member.pid);
    assert_eq!(join.number("uid"), Some(64001));
    // Root bypasses the permissions of the file, and no other check.
    observer.send(&frame(1));
    observer.wait_for_refusal("foreign_uid");
    observer
        .stop()
        .assert_counters(&[(FOREIGN_USER, 1), (BEATS, 1)]);
}

#[test]
fn the_observer_of_root_listens_to_everybody() {
    let Some((observer, mut nobody)) = meet_other_user(&[], &AS_NOBODY) else {
        return;
    };
    assert_eq!(observer.socket_mode(), 0o666);
    nobody.tell("beat self 1");
    observer.wait_for_pid("join", nobody.pid);
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());
    observer.stop().assert_counters(&[(FOREIGN_USER, 0)]);
}

#[test]
fn the_observer_of_a_user_listens_to_that_user_only() {
    let Some(Place { directory, agent }) = place_for_other_users() else {
        return;
    };
    let program = directory.path().join("observer");
    copy_program(Path::new(env!("CARGO_BIN_EXE_varta-watch")), &program);
    std::os::unix::fs::chown(directory.path(), Some(64000), Some(64000)).unwrap();
    let observer = Observer::start_in(directory, &[], |command| {
        let mut copy = Command::new(program);
        copy.args(command.get_args());
        wrapped(&AS_NOBODY, &copy)
    });
    assert_eq!(observer.socket_mode(), 0o600);
    observer.send(&frame(1));
    observer.wait_for_refusal("foreign_uid");
    let mut own = Puppet::start_under(&AS_NOBODY, &agent, &observer.socket);
    own.tell("beat self 1");
    let join = observer.wait_for_pid("join", own.pid);
    assert_eq!(join.number("uid"), Some(64000));
    // It can report how its own agents end, too.
    own.leave(3);
    let exit = observer.wait_for_pid("exit", own.pid);
    assert_eq!(exit.number("code"), Some(3));
    let stopped = observer.stop();
    assert_eq!(stopped.count("join"), 1);
    stopped.assert_counters(&[(FOREIGN_USER, 1), (BEATS, 1)]);
}

#[test]
fn an_older_handle_that_goes_on_after_a_newer_one_is_heard() {
    let observer = Observer::start(&["--threshold-ms=2000"]);
    let pause = Duration::from_millis(25);
    let mut older = Varta::connect(&observer.socket).unwrap();
    let mut newer = Varta::connect(&observer.socket).unwrap();
    for i in 0..100 {
        if i % 10 == 0 {
            assert_eq!(older.beat(Status::Ok, 1), BeatOutcome::Sent);
        }
        assert_eq!(newer.beat(Status::Ok, 2), BeatOutcome::Sent);
        std::thread::sleep(pause);
    }
    drop(newer);
    for _ in 0..10 {
        std::thread::sleep(10 * pause);
        assert_eq!(older.beat(Status::Ok, 1), BeatOutcome::Sent);
    }
    let stopped = observer.stop_when(BEATS, 100);
    assert_eq!(stopped.count("stall"), 0);
    assert_eq!(stopped.count("join"), 1);
    assert!(stopped.counter(SESSIONS) > 0);
}

#[test]
fn a_process_that_becomes_another_program_is_the_same_agent() {
    let directory = tempfile::tempdir().unwrap();
    let successor = directory.path().join("successor");
    copy_program(&std::env::current_exe().unwrap(), &successor);
    let observer = Observer::start_in(directory, &["--threshold-ms=60000"], |command| command);
    let orders = format!(
        "beat self 1 50;exec {};beat self 1 5;exit 4",
        successor.display()
    );
    let mut agent = agent_command(&observer.socket, &orders).spawn().unwrap();
    agent.wait().unwrap();
    let exit = observer.wait_for_pid("exit", agent.id());
    assert_eq!(exit.number("code"), Some(4));
    let stopped = observer.stop();
    let join = stopped.lines_of("join", agent.id());
    assert_eq!(join.len(), 1);
    let session = stopped.lines_of("session", agent.id());
    assert_eq!(session.len(), 1);
    assert_eq!(stopped.count("exit"), 1);
    assert_eq!(stopped.count("stall"), 0);
    stopped.assert_counters(&[(SESSIONS, 1), (OUT_OF_ORDER, 0), (BEATS, 55)]);
}

#[test]
fn an_agent_is_called_by_the_program_it_has_become() {
    let directory = tempfile::tempdir().unwrap();
    let successor = directory.path().join("successor");
    copy_program(&std::env::current_exe().unwrap(), &successor);
    let observer = Observer::start_in(directory, &["--threshold-ms=60000"], |command| command);
    let orders = format!(
        "beat self 1 50;exec {};beat self 1;stay",
        successor.display()
    );
    let mut agent = agent_command(&observer.socket, &orders).spawn().unwrap();
    let session = observer.wait_for_pid("session", agent.id());
    assert_eq!(session.text("name"), Some("successor"));
    agent.kill().unwrap();
    agent.wait().unwrap();
    let exit = observer.wait_for_pid("exit", agent.id());
    assert_eq!(exit.text("name"), Some("successor"));
}

#[test]
fn who_survives_a_panic_goes_on_as_before() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut agent = Puppet::start(&observer.socket);
    let late_in_life = (1 << 20) + 1;
    agent.tell(&format!("beat self {late_in_life}"));
    agent.tell("crash");
    let beats = 8;
    for i in 1..=beats {
        agent.tell(&format!("beat self {}", late_in_life + i));
    }
    let stopped = observer.stop_when(BEATS, beats + 2);
    stopped.assert_counters(&[
        ("varta_observer_joins_total", 1),
        (OUT_OF_ORDER, 0),
        (SESSIONS, 0),
    ]);
}

#[test]
fn who_says_goodbye_has_left_and_may_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.tsv");
    let flag = format!("--export-file={}", file.display());
    let flags = ["--threshold-ms=300", "--export-events=changes", &flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    let pid = std::process::id();
    let mut agent = Varta::connect(&observer.socket).unwrap();
    // Both are read at once, before any agent can stall.
    observer.signal(Signal::STOP);
    assert_eq!(agent.beat(Status::Ok, 7), BeatOutcome::Sent);
    assert_eq!(agent.leave(), BeatOutcome::Sent);
    observer.signal(Signal::CONT);
    let exit = observer.wait_for_pid("exit", pid);
    assert_eq!(exit.text("how"), Some("left"));
    assert!(exit.msg.contains("goodbye"), "{}", exit.msg);
    let is_exit = |row: &&Vec<String>| row[1] == "exit";
    let rows = rows_when(&file, |rows| rows.iter().any(|row| is_exit(&row)));
    let exits: Vec<_> = rows.iter().filter(is_exit).collect();
    assert_eq!(exits.len(), 1);
    assert_eq!(exits[0][2..].join(" "), format!("{pid} 1 left goodbye"));
    let silence = Duration::from_millis(1_000);
    assert_eq!(observer.count_within("stall", silence), 0);
    assert_eq!(agent.beat(Status::Ok, 7), BeatOutcome::Sent);
    observer.wait_for_pid("join", pid);
    let stopped = observer.stop();
    assert_eq!(stopped.count("join"), 2);
    stopped.assert_counters(&[("varta_observer_exits_total{how=\"left\"}", 1)]);
}
