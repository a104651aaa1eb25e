use super::*;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use std::collections::BTreeSet;
use std::fs::File;

fn error_of(step: &RunStep, agent: Agent) -> Option<StartFailure> {
    let start = async {
        Runner::new(kernel())
            .start(step, &children(), &subject(agent))
            .err()
    };
    block_on(start)
}

#[test]
fn a_program_that_is_missing_is_not_started() {
    let error = error_of(&step("/no/such/program", &[]), this_process());
    assert!(
        matches!(&error, Some(StartFailure::Spawn { error, .. }) if error.errno == Some(Errno::NOENT.raw_os_error())),
        "{error:?}"
    );
}

#[test]
fn a_program_that_is_not_executable_is_not_started() {
    let error = error_of(&step("/etc/passwd", &[]), this_process());
    assert!(
        matches!(&error, Some(StartFailure::Spawn { error, .. }) if error.errno == Some(Errno::ACCESS.raw_os_error())),
        "{error:?}"
    );
}

#[test]
fn a_program_that_cannot_be_started_is_named_with_what_the_system_says() {
    let error = error_of(&step("/etc/passwd", &[]), this_process()).unwrap();
    let StartFailure::Spawn { program, error } = error else {
        panic!("{error:?}");
    };
    assert_eq!(program, "/etc/passwd");
    assert_eq!(error.text, "Permission denied (os error 13)");
}

#[test]
fn an_argument_that_no_program_can_be_given_is_an_error() {
    let error = error_of(&step("/bin/true", &["a\0b"]), this_process());
    assert!(
        matches!(error, Some(StartFailure::Spawn { .. })),
        "{error:?}"
    );
}

#[test]
fn the_exit_code_of_a_program_is_told() {
    let ended = run(&shell("exit 3"));
    assert_eq!(ended.exit.status, Ok(3 << 8));
    assert_eq!(ended.exit.cause, ExitCause::Itself);
}

#[test]
fn a_program_learns_whom_it_is_about() {
    let mut step =
        shell("echo $1 $VARTA_PID $VARTA_NAME $VARTA_STATUS $VARTA_SILENCE_MS $VARTA_REASON");
    step.arguments.extend(["sh".to_owned(), "{pid}".to_owned()]);
    let pid = std::process::id();
    assert_eq!(
        run(&step).output.text(),
        format!("{pid} {pid} web degraded 1500 stall\n")
    );
}

#[test]
fn a_program_sees_nothing_of_the_observers_environment() {
    let names: BTreeSet<String> = run(&step("/usr/bin/env", &[]))
        .output
        .text()
        .lines()
        .map(|line| line.split('=').next().unwrap().to_owned())
        .collect();
    let expected = [
        "PATH",
        "VARTA_NAME",
        "VARTA_PID",
        "VARTA_REASON",
        "VARTA_SILENCE_MS",
        "VARTA_SOURCE",
        "VARTA_STATUS",
        "VARTA_UNIT",
        "VARTA_USER_UNIT",
    ];
    assert_eq!(names, expected.map(str::to_owned).into());
}

#[test]
fn a_program_that_reads_its_input_finds_the_end() {
    assert_eq!(run(&shell("wc -c")).output.text().trim(), "0");
}

#[test]
fn a_program_inherits_no_descriptor_even_if_somebody_lets_it() {
    let file = File::open("/dev/null").unwrap();
    fcntl_setfd(&file, FdFlags::empty()).unwrap();
    let ended = run(&shell(
        "for fd in /proc/$$/fd/*; do [ -e $fd ] && echo ${fd##*/}; done; true",
    ));
    assert_eq!(ended.output.text(), "0\n1\n2\n");
}

#[test]
fn a_program_has_a_session_and_a_group_of_its_own() {
    block_on(async {
        let step = shell("read stat < /proc/$$/stat; echo ${stat##*)}");
        let running = start(&Runner::new(kernel()), &step);
        let pid = running.pid.to_string();
        let text = running.wait().await.output.text();
        let fields: Vec<_> = text.split_whitespace().collect();
        assert_eq!((fields[2], fields[3]), (pid.as_str(), pid.as_str()));
    });
}

#[test]
fn no_program_is_started_for_a_recycled_pid() {
    let error = error_of(&step("/bin/true", &[]), another_instance_of(this_process()));
    assert!(matches!(error, Some(StartFailure::TargetGone)), "{error:?}");
}

#[test]
fn no_program_is_started_for_a_process_that_has_ended_even_as_a_zombie() {
    let mut child = bystander(&mut sleeper());
    let agent = agent(child.id());
    child.kill().unwrap();
    assert!(ends(&crate::process_info::open(child.id()).unwrap()));
    let as_zombie = error_of(&step("/bin/true", &[]), agent);
    assert!(
        matches!(as_zombie, Some(StartFailure::TargetGone)),
        "{as_zombie:?}"
    );
    child.wait().unwrap();
    let reaped = error_of(&step("/bin/true", &[]), agent);
    assert!(
        matches!(reaped, Some(StartFailure::TargetGone)),
        "{reaped:?}"
    );
}

#[test]
fn no_program_is_started_for_a_process_that_nothing_identifies() {
    let unknown = Agent {
        instance: varta_core::agent::UNIDENTIFIED,
        ..this_process()
    };
    let error = error_of(&step("/bin/true", &[]), unknown);
    assert!(
        matches!(error, Some(StartFailure::Unidentified)),
        "{error:?}"
    );
}

#[test]
fn a_program_for_an_agent_elsewhere_is_given_its_address() {
    block_on(async {
        let about = Subject {
            source: Some("10.0.0.7".parse().unwrap()),
            ..subject(remote_agent())
        };
        let step = step("/bin/echo", &["{pid}@{source}"]);
        let running = Runner::new(kernel())
            .start(&step, &children(), &about)
            .unwrap();
        assert_eq!(running.wait().await.output.text(), "4242@10.0.0.7\n");
    });
}
