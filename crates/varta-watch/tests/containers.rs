//! Agents in another pid namespace. The test runs in the outer one, so a process has the same pid for the test and
//! for an observer in that namespace.

mod support;

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::agents::{AgentProcess, Puppet, agent_command};
use support::namespaces::{CONTAINER, may_make_pid_namespaces};
use support::{
    AS_NOBODY, BEATS, DISTRUST, Observer, copy_program, frame_of, may_become_nobody,
    public_directory, wrapped,
};

const MISMATCH: &str = "varta_frame_auth_failures_total";
const BAD_PID: &str = "varta_decode_errors_total{kind=\"bad_pid\"}";
const FOREIGN: &str = "varta_frame_namespace_mismatch_total";
const JOINS: &str = "varta_observer_joins_total";

/// A shell for the first process of a container, which starts one agent after `before` other processes.
fn init_script(before: usize) -> String {
    let others = "true & wait; ".repeat(before);
    format!("{others}\"$0\" \"$@\"; exit $?")
}

/// The agent that is the first process of a container.
fn first_in_container(observer: &Observer) -> Puppet {
    let program = std::env::current_exe().unwrap();
    Puppet::start_under(&CONTAINER, &program, &observer.socket)
}

/// An agent that has a pid of its own in its container, higher than `before` others.
fn later_in_container(observer: &Observer, before: usize) -> Puppet {
    let script = init_script(before);
    let wrapper = [&CONTAINER[..], &["sh", "-c", &script]].concat();
    let program = std::env::current_exe().unwrap();
    let puppet = Puppet::start_under(&wrapper, &program, &observer.socket);
    assert!(puppet.inner_pid as usize > before);
    assert_ne!(puppet.inner_pid, puppet.pid);
    puppet
}

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// An observer in a pid namespace of its own: a process outside has pid 0 for it.
fn enclosed_observer(flags: &[&str]) -> Observer {
    Observer::start_in(public_directory(), flags, |command| {
        wrapped(&CONTAINER, &command)
    })
}

fn assert_unseen(observer: &Observer) {
    let line = observer.wait_for_refusal("unseen_sender");
    assert_eq!(line.pid(), None);
    let more = Duration::from_millis(500);
    assert_eq!(observer.count_within("join", more), 0);
}

#[test]
fn a_sender_the_observer_cannot_see_is_nobody_whatever_it_claims() {
    if !may_make_pid_namespaces() {
        return;
    }
    for flags in [&[][..], &["--allow-cross-namespace-agents"]] {
        let observer = enclosed_observer(flags);
        for claimed in [std::process::id(), 1, 2, 4242] {
            observer.send(&frame_of(claimed, 1));
        }
        assert_unseen(&observer);
    }
}

#[test]
fn an_unseen_sender_of_another_user_is_nobody_either() {
    if !may_make_pid_namespaces() || !may_become_nobody() {
        return;
    }
    let observer = enclosed_observer(&["--socket-mode=666", "--allow-uid=64000"]);
    let agent = observer.directory.path().join("agent");
    copy_program(&std::env::current_exe().unwrap(), &agent);
    let mut nobody = Puppet::start_under(&AS_NOBODY, &agent, &observer.socket);
    nobody.tell("beat self 1");
    assert_unseen(&observer);
}

#[test]
fn the_first_process_of_a_container_is_known_by_its_outer_pid() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=300"]);
    let mut agent = first_in_container(&observer);
    assert_eq!(agent.inner_pid, 1);
    agent.tell("beat 1 1");
    let join = observer.wait_for_pid("join", agent.pid);
    assert_eq!(join.number("inner_pid"), Some(1));
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", agent.pid)).unwrap();
    let inode = format!("pid:[{}]", join.number::<u64>("pid_ns").unwrap());
    assert_eq!(namespace.to_str(), Some(&*inode));
    let stall = observer.wait_for("stall", |_| true);
    assert_eq!(stall.pid(), Some(agent.pid));
    agent.leave(3);
    let exit = observer.wait_for("exit", |_| true);
    assert_eq!(exit.pid(), Some(agent.pid));
    assert_eq!(exit.number("code"), Some(3));
    observer.stop().assert_counters(&[(BAD_PID, 0), (BEATS, 1)]);
}

#[test]
fn a_contained_process_may_use_its_inner_and_its_outer_pid() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut inner = later_in_container(&observer, 2);
    inner.tell("beat self 1");
    let join = observer.wait_for_pid("join", inner.pid);
    assert_eq!(join.number("inner_pid"), Some(inner.inner_pid));
    inner.tell(&format!("beat {} 2", inner.pid));
    let mut outer = later_in_container(&observer, 2);
    outer.tell(&format!("beat {} 1", outer.pid));
    let join = observer.wait_for_pid("join", outer.pid);
    assert_eq!(join.number("inner_pid"), Some(outer.inner_pid));
    outer.tell("beat self 2");
    let stopped = observer.stop_when(BEATS, 4);
    stopped.assert_counters(&[(JOINS, 2), (MISMATCH, 0), (BEATS, 4)]);
}

#[test]
fn a_contained_process_may_use_no_other_pid() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut agent = later_in_container(&observer, 2);
    // As an unknown process, and when it is known.
    for nonce in [1, 2] {
        let wrong = agent.inner_pid + 1;
        agent.tell(&format!("beat {wrong} {nonce}"));
        observer.wait_for_count(MISMATCH, 2 * nonce - 1);
        agent.tell(&format!("beat {} {nonce}", std::process::id()));
        observer.wait_for_count(MISMATCH, 2 * nonce);
        agent.tell(&format!("beat 1 {nonce}"));
        observer.wait_for_count(BAD_PID, nonce);
        std::thread::sleep(DISTRUST);
        agent.tell(&format!("beat self {nonce}"));
        observer.wait_for_count(BEATS, nonce);
    }
    let stopped = observer.stop();
    stopped.assert_counters(&[(JOINS, 1), (MISMATCH, 4), (BAD_PID, 2), (BEATS, 2)]);
}

#[test]
fn a_process_cannot_pass_for_one_of_a_sibling_container() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut liar = later_in_container(&observer, 0);
    let mut sibling = later_in_container(&observer, 5);
    assert_ne!(liar.inner_pid, sibling.inner_pid);
    sibling.tell("beat self 1");
    observer.wait_for_pid("join", sibling.pid);
    // As an unknown process, and when it is known.
    for nonce in [1, 2] {
        liar.tell(&format!("beat {} {}", sibling.inner_pid, 10 * nonce));
        liar.tell(&format!("beat {} {}", sibling.pid, 10 * nonce));
        observer.wait_for_count(MISMATCH, 2 * nonce);
        std::thread::sleep(DISTRUST);
        liar.tell(&format!("beat self {nonce}"));
        observer.wait_for_count(BEATS, 1 + nonce);
    }
    // Whatever nonces the impostor used, the sibling's own series continues undisturbed.
    sibling.tell("beat self 2");
    let stopped = observer.stop_when(BEATS, 4);
    stopped.assert_counters(&[(JOINS, 2), (MISMATCH, 4), (BEATS, 4)]);
}

#[test]
fn the_strict_check_refuses_containers_and_nobody_else() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=60000", "--strict-namespace-check"]);
    let mut contained = first_in_container(&observer);
    contained.tell("beat self 1");
    let refused = observer.wait_for_refusal("foreign_namespace");
    assert_eq!(refused.pid(), Some(contained.pid));
    contained.tell(&format!("beat {} 1", contained.pid));
    observer.wait_for_count(FOREIGN, 2);
    let host = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", host.pid());
    let stopped = observer.stop();
    stopped.assert_counters(&[(FOREIGN, 2), (JOINS, 1)]);
}

#[test]
fn the_strict_check_does_not_take_the_shortlived_for_foreign() {
    let flags = [
        "--threshold-ms=60000",
        "--strict-namespace-check",
        "--tracker-capacity=200",
    ];
    let observer = Observer::start(&flags);
    let agents = 100;
    for _ in 0..agents {
        let mut agent = agent_command(&observer.socket, "beat self 1;exit 0")
            .spawn()
            .unwrap();
        agent.wait().unwrap();
    }
    for _ in 0..agents {
        observer.wait_for("exit", |_| true);
    }
    let stopped = observer.stop();
    stopped.assert_counters(&[
        (FOREIGN, 0),
        (JOINS, agents),
        ("varta_observer_exits_total{how=\"left\"}", agents),
    ]);
}

#[test]
fn the_strict_check_gives_way_to_who_allows_containers() {
    if !may_make_pid_namespaces() {
        return;
    }
    let flags = ["--strict-namespace-check", "--allow-cross-namespace-agents"];
    let observer = Observer::start(&flags);
    let mut contained = first_in_container(&observer);
    contained.tell("beat self 1");
    observer.wait_for_pid("join", contained.pid);
    observer.stop().assert_counters(&[(FOREIGN, 0)]);
}

fn has_outcome(wanted: &'static str) -> impl Fn(&LogLine) -> bool {
    move |line| line.text("outcome") == Some(wanted)
}

#[test]
fn recovery_leaves_containers_alone_unless_allowed() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&["--threshold-ms=1500", "--recovery-exec=kill -KILL {pid}"]);
    let mut agent = first_in_container(&observer);
    agent.tell("beat self 1");
    observer.wait_for_pid("stall", agent.pid);
    let refused = observer.wait_for("recover", has_outcome("refused_cross_namespace"));
    assert_eq!(refused.pid(), Some(agent.pid));
    agent.tell("beat self 2");
    observer.wait_for_pid("return", agent.pid);
    observer.stop().assert_counters(&[
        ("varta_recovery_outcomes_total{outcome=\"spawned\"}", 0),
        (
            "varta_recovery_outcomes_total{outcome=\"refused_cross_namespace\"}",
            1,
        ),
        (
            "varta_recovery_refused_total{reason=\"cross_namespace_agent\"}",
            1,
        ),
    ]);
}

#[test]
fn a_hook_signals_nobody_in_a_container_unless_allowed() {
    if !may_make_pid_namespaces() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let rule = "threshold-ms = 60000\n\
                [[agent]]\n\
                namespace = \"other\"\n\
                late = \"50ms\"\n\
                on-late = [{ signal = \"KILL\" }]\n";
    fs::write(file.path(), rule).unwrap();
    let observer = Observer::start(&["--config", file.path().to_str().unwrap()]);
    let mut agent = first_in_container(&observer);
    agent.tell("beat self 1");
    let refused = observer.wait_for_pid("hook", agent.pid);
    let error = refused.text("error").unwrap_or_default();
    assert!(error.contains("--allow-cross-namespace-agents"), "{error}");
}

#[test]
fn recovery_that_may_touch_containers_is_aimed_at_the_outer_pid() {
    if !may_make_pid_namespaces() {
        return;
    }
    let observer = Observer::start(&[
        "--threshold-ms=200",
        "--allow-cross-namespace-agents",
        "--recovery-exec=kill -KILL {pid}",
    ]);
    let mut agent = first_in_container(&observer);
    agent.tell("beat self 1");
    agent.signal(Signal::STOP);
    let spawned = observer.wait_for("recover", |line| {
        has_outcome("spawned")(line) && line.pid() == Some(agent.pid)
    });
    assert!(
        spawned.msg.contains(&format!("-KILL {}", agent.pid)),
        "{}",
        spawned.msg
    );
    let exit = observer.wait_for_pid("exit", agent.pid);
    assert_eq!(exit.number("signal"), Some(9));
}
