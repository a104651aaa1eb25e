use super::*;

#[test]
fn a_program_that_hangs_is_told_to_go() {
    let step = RunStep {
        timeout: Some(Duration::from_millis(20)),
        ..step("/bin/sleep", &["600"])
    };
    let ended = run(&step);
    assert_eq!(ended.exit.cause, ExitCause::TimedOut(Force::Term));
    assert_eq!(ended.exit.status, Ok(15));
}

#[test]
fn a_program_that_ignores_being_told_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!(
        "trap '' TERM; echo > {}; while :; do sleep 600; done",
        ready.display()
    );
    let step = RunStep {
        timeout: Some(Duration::from_millis(20)),
        ..shell(&script)
    };
    let children = Children {
        grace: Duration::from_millis(20),
        ..children()
    };
    block_on(async {
        let runner = Runner::new(kernel());
        let running = runner
            .start(&step, &children, &subject(this_process()))
            .unwrap();
        std::fs::read_to_string(&ready).unwrap();
        let ended = running.wait().await;
        assert_eq!(ended.exit.cause, ExitCause::TimedOut(Force::Kill));
        assert_eq!(ended.exit.status, Ok(9));
    });
}

#[test]
fn a_program_may_use_its_grace_to_clean_up() {
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!(
        "trap 'echo cleaned; exit 7' TERM; echo > {}; while :; do sleep 0.01; done",
        ready.display()
    );
    block_on(async {
        let runner = Runner::new(kernel());
        let (running, _) = start_ready(&runner, &shell(&script), &ready);
        runner.stop(Duration::from_secs(600));
        let ended = running.wait().await;
        assert_eq!(ended.exit.cause, ExitCause::ObserverStops(Force::Term));
        assert_eq!(ended.exit.status, Ok(7 << 8));
        // The shell may print a message about its own child before.
        assert!(ended.output.text().ends_with("cleaned\n"));
    });
}

#[test]
fn a_stopped_program_hears_that_it_is_to_go() {
    block_on(async {
        let runner = Runner::new(kernel());
        let running = start(&runner, &step("/bin/sleep", &["600"]));
        let pid = rustix::process::Pid::from_raw(running.pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        runner.stop(Duration::from_secs(600));
        assert_eq!(
            running.wait().await.exit.cause,
            ExitCause::ObserverStops(Force::Term)
        );
    });
}

/// The end of a program that exits on TERM, and of the grandchild, which ignores TERM.
fn stubborn_grandchild(grace: Duration, on_this_kernel: impl Fn(Running) -> Running) {
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!(
        "(trap '' TERM; sh -c 'echo $PPID > {}'; while :; do sleep 600; done) & wait",
        ready.display()
    );
    block_on(async {
        let runner = Runner::new(kernel());
        let (running, grandchild) = start_ready(&runner, &shell(&script), &ready);
        runner.stop(grace);
        on_this_kernel(running).wait().await;
        assert!(pid_ends(&grandchild));
    });
}

#[test]
fn what_a_program_has_started_is_killed_with_it() {
    stubborn_grandchild(Duration::ZERO, |running| running);
}

#[test]
fn what_a_program_has_started_is_killed_even_if_only_the_program_goes_when_told() {
    stubborn_grandchild(Duration::from_millis(50), |running| running);
}

#[test]
fn what_a_program_has_started_is_killed_on_older_kernels_too() {
    stubborn_grandchild(Duration::ZERO, Running::before_linux_6_9);
    stubborn_grandchild(Duration::from_secs(600), Running::before_linux_6_9);
}

#[test]
fn what_a_program_has_started_has_the_rest_of_the_grace() {
    let directory = tempfile::tempdir().unwrap();
    let (ready, done) = (fifo(&directory, "ready"), directory.path().join("done"));
    let script = format!(
        "(trap 'sleep 0.1; echo > {}; exit' TERM; echo > {}; while :; do sleep 0.01; done) & wait",
        done.display(),
        ready.display()
    );
    block_on(async {
        let runner = Runner::new(kernel());
        let (running, _) = start_ready(&runner, &shell(&script), &ready);
        let by_group = running.outlives_leader();
        runner.stop(Duration::from_secs(600));
        running.wait().await;
        // Before Linux 6.9 other members cannot be distinguished from the zombie of the leader.
        assert_eq!(done.exists(), by_group);
    });
}

#[test]
fn what_a_program_has_left_running_when_it_ended_by_itself_stays() {
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!("sleep 600 & echo $! > {}", ready.display());
    block_on(async {
        let runner = Runner::new(kernel());
        let (running, left) = start_ready(&runner, &shell(&script), &ready);
        assert_eq!(running.wait().await.exit.cause, ExitCause::Itself);
        let pidfd = crate::process_info::open(left.trim().parse().unwrap()).unwrap();
        assert!(!crate::process_info::has_ended(&pidfd));
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    });
}

#[test]
fn a_program_that_is_dropped_is_killed_with_all_it_has_started_and_reaped() {
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!("sleep 600 & echo $! > {}; wait", ready.display());
    block_on(async {
        let (running, grandchild) = start_ready(&Runner::new(kernel()), &shell(&script), &ready);
        let leader = running.pid.to_string();
        drop(running);
        assert!(pid_ends(&leader));
        assert!(pid_ends(&grandchild));
        while Path::new("/proc").join(&leader).exists() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn waiting_that_is_given_up_kills_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!("sleep 600 & echo $! > {}; wait", ready.display());
    block_on(async {
        let (running, grandchild) = start_ready(&Runner::new(kernel()), &shell(&script), &ready);
        let given_up = tokio::time::timeout(Duration::from_millis(20), running.wait()).await;
        assert!(given_up.is_err());
        assert!(pid_ends(&grandchild));
    });
}

#[test]
fn a_program_that_was_waited_for_is_no_zombie() {
    block_on(async {
        let running = start(&Runner::new(kernel()), &step("/bin/true", &[]));
        let proc = Path::new("/proc").join(running.pid.to_string());
        running.wait().await;
        assert!(!proc.exists());
    });
}

#[test]
fn all_children_end_when_the_observer_stops() {
    block_on(async {
        let runner = Runner::new(kernel());
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..20 {
            set.spawn(start(&runner, &step("/bin/sleep", &["600"])).wait());
        }
        runner.stop(Duration::from_secs(600));
        let mut ended = 0;
        while let Some(end) = set.join_next().await {
            assert_eq!(
                end.unwrap().exit.cause,
                ExitCause::ObserverStops(Force::Term)
            );
            ended += 1;
        }
        assert_eq!(ended, 20);
    });
}
