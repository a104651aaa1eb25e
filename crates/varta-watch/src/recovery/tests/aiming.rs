use super::*;
use crate::policy::Target;
use rustix::process::Signal;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};

fn send(signal: Signal, to: Target, agent: Agent) -> Result<(), StartError> {
    let step = SignalStep {
        signal,
        to,
        wait: Duration::ZERO,
    };
    Runner::new(means()).signal(&step, agent)
}

const EVERY_TARGET: [Target; 3] = [Target::Process, Target::Group, Target::Cgroup];

#[test]
fn a_signal_reaches_the_process_and_nobody_else() {
    let mut target = bystander(sleeper().process_group(0));
    let mut neighbour = bystander(sleeper().process_group(target.id() as i32));
    send(Signal::USR1, Target::Process, agent(target.id())).unwrap();
    assert_eq!(target.wait().unwrap().signal(), Some(10));
    assert_eq!(neighbour.try_wait().unwrap(), None);
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
}

#[test]
fn a_signal_reaches_the_whole_group_through_its_leader() {
    let mut leader = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(leader.id() as i32));
    send(Signal::TERM, Target::Group, agent(leader.id())).unwrap();
    assert_eq!(leader.wait().unwrap().signal(), Some(15));
    assert_eq!(member.wait().unwrap().signal(), Some(15));
}

#[test]
fn a_signal_reaches_the_whole_group_through_any_member() {
    let mut leader = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(leader.id() as i32));
    send(Signal::KILL, Target::Group, agent(member.id())).unwrap();
    assert_eq!(leader.wait().unwrap().signal(), Some(9));
    assert_eq!(member.wait().unwrap().signal(), Some(9));
}

#[test]
fn the_group_that_the_observer_is_in_is_not_signalled() {
    let mut child = bystander(&mut sleeper());
    let error = send(Signal::CONT, Target::Group, agent(child.id())).unwrap_err();
    assert!(matches!(error, StartError::Forbidden(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("the observer is in its process group")
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_observer_is_not_signalled() {
    for to in EVERY_TARGET {
        let error = send(Signal::CONT, to, this_process()).unwrap_err();
        assert!(matches!(error, StartError::Forbidden(_)), "{error}");
    }
}

#[test]
fn the_first_process_is_not_signalled() {
    let init = Agent {
        slot: 0,
        pid: 1,
        instance: 4711,
    };
    for to in EVERY_TARGET {
        let error = send(Signal::CONT, to, init).unwrap_err();
        assert!(matches!(error, StartError::Forbidden(_)), "{error}");
    }
}

#[test]
fn an_agent_elsewhere_cannot_be_signalled() {
    for to in EVERY_TARGET {
        let error = send(Signal::CONT, to, elsewhere()).unwrap_err();
        assert!(matches!(error, StartError::NotHere), "{error}");
    }
}

#[test]
fn a_process_that_nothing_identifies_is_not_signalled() {
    let mut child = bystander(sleeper().process_group(0));
    let unknown = Agent {
        instance: crate::identity::UNIDENTIFIED,
        ..agent(child.id())
    };
    for to in EVERY_TARGET {
        let error = send(Signal::KILL, to, unknown).unwrap_err();
        assert!(matches!(error, StartError::Unidentified), "{error}");
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
        let error = send(Signal::KILL, to, before).unwrap_err();
        assert!(matches!(error, StartError::TargetGone), "{error}");
    }
    // Nothing is under way to it: what it gets next is what it dies of.
    send(Signal::TERM, Target::Process, agent(child.id())).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(15));
}

#[test]
fn a_process_that_has_ended_is_not_signalled_even_as_a_zombie() {
    let mut child = bystander(sleeper().process_group(0));
    let mut member = bystander(sleeper().process_group(child.id() as i32));
    let agent = agent(child.id());
    child.kill().unwrap();
    assert!(ends(&crate::identity::open(child.id()).unwrap()));
    for to in EVERY_TARGET {
        let error = send(Signal::KILL, to, agent).unwrap_err();
        assert!(matches!(error, StartError::TargetGone), "{error}");
    }
    child.wait().unwrap();
    for to in EVERY_TARGET {
        let error = send(Signal::KILL, to, agent).unwrap_err();
        assert!(matches!(error, StartError::TargetGone), "{error}");
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
    send(Signal::USR2, Target::Process, agent(child.id())).unwrap();
    let mut said = String::new();
    stdout.read_to_string(&mut said).unwrap();
    assert_eq!(said, "caught\n");
    assert!(child.wait().unwrap().success());
}
