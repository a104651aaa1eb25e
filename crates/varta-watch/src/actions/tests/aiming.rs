use super::*;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use varta_core::fact::{Protected, Signal, SignalTarget};

/// As the user that owns this process and all others.
fn send(signal: Signal, to: SignalTarget, agent: Agent) -> Result<SignalHits, StartFailure> {
    send_as(rustix::process::getuid().as_raw(), signal, to, agent)
}

/// To an agent that joined as `user`.
fn send_as(
    user: u32,
    signal: Signal,
    to: SignalTarget,
    agent: Agent,
) -> Result<SignalHits, StartFailure> {
    let step = SignalStep {
        signal,
        to,
        wait: Duration::ZERO,
    };
    Runner::new(kernel()).signal(&step, agent, user)
}

fn hits(signalled: u64, spared: u64) -> SignalHits {
    SignalHits { signalled, spared }
}

/// Users other than the test's own, where the test runs as root.
const USERS: [u32; 2] = [65_534, 65_533];

/// Prints that a test is skipped.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("skipped: only root starts processes of other users");
    }
    is_root
}

const EVERY_TARGET: [SignalTarget; 3] = [
    SignalTarget::Process,
    SignalTarget::Group,
    SignalTarget::Cgroup,
];

#[test]
fn a_signal_reaches_the_process_and_nobody_else() {
    let mut target = bystander(sleeper().process_group(0));
    let mut neighbour = bystander(sleeper().process_group(target.id() as i32));
    let sent = send(Signal::Usr1, SignalTarget::Process, agent(target.id()));
    assert_eq!(sent.unwrap(), hits(1, 0));
    assert_eq!(target.wait().unwrap().signal(), Some(10));
    assert_eq!(neighbour.try_wait().unwrap(), None);
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
}

#[test]
fn a_signal_reaches_the_whole_group_through_its_leader() {
    let mut leader = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(leader.id() as i32));
    let sent = send(Signal::Term, SignalTarget::Group, agent(leader.id()));
    assert_eq!(sent.unwrap(), hits(2, 0));
    assert_eq!(leader.wait().unwrap().signal(), Some(15));
    assert_eq!(member.wait().unwrap().signal(), Some(15));
}

#[test]
fn a_signal_reaches_the_whole_group_through_any_member() {
    let mut leader = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(leader.id() as i32));
    let sent = send(Signal::Kill, SignalTarget::Group, agent(member.id()));
    assert_eq!(sent.unwrap(), hits(2, 0));
    assert_eq!(leader.wait().unwrap().signal(), Some(9));
    assert_eq!(member.wait().unwrap().signal(), Some(9));
}

#[test]
fn an_agent_that_moved_into_a_foreign_group_takes_nobody_along_that_it_could_not_signal() {
    if !is_root() {
        return;
    }
    let [user, other] = USERS;
    let mut leader = bystander(sleeper().process_group(0));
    let group = leader.id() as i32;
    let mut moved_in = bystander(sleeper().process_group(group).uid(user));
    let mut same_user = bystander(sleeper().process_group(group).uid(user));
    let mut other_user = bystander(sleeper().process_group(group).uid(other));
    let sent = send_as(
        user,
        Signal::Kill,
        SignalTarget::Group,
        agent(moved_in.id()),
    );
    assert_eq!(sent.unwrap(), hits(2, 2));
    for hit in [&mut moved_in, &mut same_user] {
        assert_eq!(hit.wait().unwrap().signal(), Some(9));
    }
    // No other signal is pending for them: they die of the next one.
    for spared in [&mut leader, &mut other_user] {
        assert_eq!(spared.try_wait().unwrap(), None);
        let pid = rustix::process::Pid::from_child(spared);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(spared.wait().unwrap().signal(), Some(15));
    }
}

#[test]
fn the_group_of_an_agent_of_roots_is_hit_whoever_is_in_it() {
    if !is_root() {
        return;
    }
    let mut leader = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(leader.id() as i32).uid(USERS[0]));
    let sent = send_as(0, Signal::Kill, SignalTarget::Group, agent(leader.id()));
    assert_eq!(sent.unwrap(), hits(2, 0));
    assert_eq!(leader.wait().unwrap().signal(), Some(9));
    assert_eq!(member.wait().unwrap().signal(), Some(9));
}

#[test]
fn members_that_are_forked_while_their_group_is_signalled_are_hit_too() {
    let mut leader = bystander(sleeper().process_group(0));
    let group = leader.id() as i32;
    let script = "echo; while :; do sleep 600 & sleep 0.001; done";
    let mut forking = Command::new("sh");
    forking
        .args(["-c", script])
        .process_group(group)
        .stdout(Stdio::piped());
    let mut forking = bystander(&mut forking);
    let mut stdout = forking.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    send(Signal::Kill, SignalTarget::Group, agent(leader.id())).unwrap();
    // Each of them holds the pipe: it closes when the last one has ended.
    assert_eq!(stdout.read(&mut [0]).unwrap(), 0);
    leader.wait().unwrap();
    forking.wait().unwrap();
}

#[test]
fn a_process_that_its_user_could_not_signal_any_more_is_not_signalled() {
    if !is_root() {
        return;
    }
    let mut now_roots = bystander(sleeper().process_group(0));
    for to in EVERY_TARGET {
        let error = send_as(USERS[0], Signal::Kill, to, agent(now_roots.id())).unwrap_err();
        let expected = StartFailure::OtherUser {
            uid: 0,
            joined_as: USERS[0],
        };
        assert_eq!(error, expected);
    }
    assert_eq!(now_roots.try_wait().unwrap(), None);
    now_roots.kill().unwrap();
    now_roots.wait().unwrap();
}

#[test]
fn a_process_of_roots_that_became_another_users_is_signalled_still() {
    if !is_root() {
        return;
    }
    let mut dropped = bystander(sleeper().uid(USERS[0]));
    let sent = send_as(0, Signal::Kill, SignalTarget::Process, agent(dropped.id()));
    assert_eq!(sent.unwrap(), hits(1, 0));
    assert_eq!(dropped.wait().unwrap().signal(), Some(9));
}

#[test]
fn nobody_is_signalled_where_it_cannot_be_seen_whose_process_it_is() {
    let mut child = bystander(&mut sleeper());
    let blind = KernelFeatures {
        proc: false,
        ..kernel()
    };
    if !blind.pidfs {
        println!("skipped: without pidfs nobody is identified without /proc");
    } else {
        let step = SignalStep {
            signal: Signal::Kill,
            to: SignalTarget::Process,
            wait: Duration::ZERO,
        };
        let sent = Runner::new(blind).signal(&step, agent(child.id()), 0);
        assert!(matches!(sent, Err(StartFailure::Protected(_))), "{sent:?}");
        assert_eq!(child.try_wait().unwrap(), None);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_group_that_the_observer_is_in_is_not_signalled() {
    let mut child = bystander(&mut sleeper());
    let error = send(Signal::Cont, SignalTarget::Group, agent(child.id())).unwrap_err();
    assert_eq!(error, StartFailure::Protected(Protected::ObserverInGroup));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_observer_is_not_signalled() {
    for to in EVERY_TARGET {
        let error = send(Signal::Cont, to, this_process()).unwrap_err();
        assert!(matches!(error, StartFailure::Protected(_)), "{error:?}");
    }
}

#[test]
fn the_first_process_is_not_signalled() {
    let init = Agent {
        slot: 0,
        pid: 1,
        instance: 4711,
        stream: 0,
    };
    for to in EVERY_TARGET {
        let error = send(Signal::Cont, to, init).unwrap_err();
        assert!(matches!(error, StartFailure::Protected(_)), "{error:?}");
    }
}

#[test]
fn an_agent_elsewhere_cannot_be_signalled() {
    for to in EVERY_TARGET {
        let error = send(Signal::Cont, to, remote_agent()).unwrap_err();
        assert!(matches!(error, StartFailure::Remote), "{error:?}");
    }
}

#[test]
fn a_process_that_nothing_identifies_is_not_signalled() {
    let mut child = bystander(sleeper().process_group(0));
    let unknown = Agent {
        instance: varta_core::agent::UNIDENTIFIED,
        ..agent(child.id())
    };
    for to in EVERY_TARGET {
        let error = send(Signal::Kill, to, unknown).unwrap_err();
        assert!(matches!(error, StartFailure::Unidentified), "{error:?}");
    }
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_recycled_pid_is_not_signalled() {
    let mut child = bystander(sleeper().process_group(0));
    let before = another_instance_of(agent(child.id()));
    for to in EVERY_TARGET {
        let error = send(Signal::Kill, to, before).unwrap_err();
        assert!(matches!(error, StartFailure::TargetGone), "{error:?}");
    }
    // No other signal is pending for it: it dies of the next one.
    send(Signal::Term, SignalTarget::Process, agent(child.id())).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
fn a_process_that_has_ended_is_not_signalled_even_as_a_zombie() {
    let mut child = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(child.id() as i32));
    let agent = agent(child.id());
    child.kill().unwrap();
    assert!(ends(&crate::process_info::open(child.id()).unwrap()));
    for to in EVERY_TARGET {
        let error = send(Signal::Kill, to, agent).unwrap_err();
        assert!(matches!(error, StartFailure::TargetGone), "{error:?}");
    }
    child.wait().unwrap();
    for to in EVERY_TARGET {
        let error = send(Signal::Kill, to, agent).unwrap_err();
        assert!(matches!(error, StartFailure::TargetGone), "{error:?}");
    }
    assert_eq!(member.try_wait().unwrap(), None);
    member.kill().unwrap();
    member.wait().unwrap();
}

#[test]
fn a_signal_can_be_caught() {
    let mut child = Command::new("sh")
        .args([
            "-c",
            "trap 'echo caught; exit 0' USR2; echo; while :; do sleep 0.01; done",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    send(Signal::Usr2, SignalTarget::Process, agent(child.id())).unwrap();
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "caught\n");
    assert!(child.wait().unwrap().success());
}
