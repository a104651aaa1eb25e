//! These tests need a control group of their own; where none can be made they print that and do nothing.

use super::*;
use crate::actions::cgroup::{self, Delegated};
use std::os::unix::process::ExitStatusExt;
use varta_core::fact::{Protected, Signal, SignalTarget};

/// A control group for one test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(name: &str) -> Option<Self> {
        let make = || {
            let own = cgroup::path_of(std::process::id())?;
            let name = format!("varta-test-{name}-{}", std::process::id());
            let directory = cgroup::directory_of(&own)?.join(name);
            std::fs::create_dir(&directory)?;
            Ok(Self(directory))
        };
        let made: io::Result<Self> = make();
        made.inspect_err(|error| println!("skipped: cannot make a control group: {error}"))
            .ok()
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn below(&self, name: &str) -> Self {
        let directory = self.0.join(name);
        std::fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    fn count(&self) -> usize {
        std::fs::read_dir(&self.0)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir())
            .count()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = cgroup::kill(&self.0);
        let below = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        for entry in below.filter(|entry| entry.path().is_dir()) {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn send(signal: Signal, agent: Agent) -> Result<SignalHits, StartFailure> {
    let step = SignalStep {
        signal,
        to: SignalTarget::Cgroup,
        wait: Duration::ZERO,
    };
    let user = rustix::process::getuid().as_raw();
    Runner::new(kernel()).signal(&step, agent, user)
}

/// Processes that a signal to the control group of one process reaches: itself, one beside it and one below.
fn reaches_all(name: &str, signal: Signal) {
    let Some(group) = Cgroup::make(name) else {
        return;
    };
    let below = group.below("worker");
    let mut processes = [(); 3].map(|()| bystander(&mut sleeper()));
    group.add(processes[0].id());
    group.add(processes[1].id());
    below.add(processes[2].id());
    let hits = send(signal, agent(processes[0].id())).unwrap();
    let all = SignalHits {
        signalled: 3,
        spared: 0,
    };
    assert_eq!(hits, all);
    for process in &mut processes {
        assert_eq!(
            process.wait().unwrap().signal(),
            Some(signal.number().into())
        );
    }
}

#[test]
fn a_signal_reaches_everything_in_the_control_group() {
    reaches_all("term", Signal::Term);
}

#[test]
fn a_kill_reaches_everything_in_the_control_group() {
    reaches_all("kill", Signal::Kill);
}

#[test]
fn the_control_group_that_the_observer_is_in_is_not_signalled() {
    let mut child = bystander(&mut sleeper());
    let result = send(Signal::Cont, agent(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    match result.unwrap_err() {
        StartFailure::Protected(what) => assert_ne!(what, Protected::GroupHidden),
        error => println!("skipped: no unified hierarchy: {error:?}"),
    }
}

/// Sends a signal to the control group of a process, in which `script` starts more processes. The script gets a line
/// on its input once it is in the group.
fn send_beside(name: &str, script: &str, is_ready: impl Fn(&Cgroup) -> bool) {
    use std::io::Write;
    let Some(group) = Cgroup::make(name) else {
        return;
    };
    let mut process = bystander(&mut sleeper());
    group.add(process.id());
    let mut other = Command::new("sh")
        .args(["-c", &format!("read x; {script}")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    group.add(other.id());
    other.stdin.take().unwrap().write_all(b"\n").unwrap();
    while !is_ready(&group) {
        assert_eq!(other.try_wait().unwrap(), None, "{script}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = send(Signal::Kill, agent(process.id()));
    cgroup::kill(&group.0).unwrap();
    process.wait().unwrap();
    other.wait().unwrap();
    let error = result.unwrap_err();
    assert!(matches!(error, StartFailure::Protected(_)), "{error:?}");
}

#[test]
fn the_control_group_that_a_containers_first_process_is_in_is_not_signalled() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root makes pid namespaces");
        return;
    }
    let has_init = |group: &Cgroup| {
        let members = cgroup::members(&group.0).unwrap();
        members.into_iter().any(crate::process_info::facts::is_init)
    };
    send_beside("init", "exec unshare --pid --fork sleep 600", has_init);
}

#[test]
fn groups_that_hold_a_login_or_many_services_are_not_hit_and_those_below_them_are() {
    for path in [
        "/",
        "/system.slice",
        "/user.slice/user-1000.slice",
        "/user.slice/user-1000.slice/session-3.scope",
        "/user.slice/user-1000.slice/user@1000.service",
        "/user.slice/user-1000.slice/user@1000.service/init.scope",
        "/init.scope",
    ] {
        assert!(cgroup::shared_by_many(path).is_some(), "{path}");
    }
    for path in [
        "/system.slice/web.service",
        "/system.slice/web.service/worker",
        "/user.slice/user-1000.slice/session-3.scope/job",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service",
        "/system.slice/docker-0123.scope",
        "/varta-test",
    ] {
        assert_eq!(cgroup::shared_by_many(path), None, "{path}");
    }
}

#[test]
fn a_session_is_not_signalled() {
    let Some(group) = Cgroup::make("login") else {
        return;
    };
    let session = group.below("session-3.scope");
    let mut processes = [(); 2].map(|()| bystander(&mut sleeper()));
    for process in &processes {
        session.add(process.id());
    }
    let error = send(Signal::Kill, agent(processes[0].id())).unwrap_err();
    assert_eq!(error, StartFailure::Protected(Protected::LoginSession));
    for process in &mut processes {
        assert_eq!(process.try_wait().unwrap(), None);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[test]
fn a_group_holds_itself_and_what_is_below_it() {
    for (path, ancestor, expected) in [
        ("/a", "/a", true),
        ("/a/b", "/a", true),
        ("/ab", "/a", false),
        ("/a", "/a/b", false),
        ("/a", "/", true),
        ("/", "/", true),
        ("/b", "/a", false),
    ] {
        assert_eq!(
            cgroup::is_within(path, ancestor),
            expected,
            "{path} in {ancestor}"
        );
    }
}

#[test]
fn the_directory_of_a_group_is_where_its_mount_shows_it() {
    let line =
        |root: &str| format!("30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw");
    let located = |root: &str, path: &str| cgroup::locate(&line(root), path);
    assert_eq!(located("/", "/a/b"), Some("/sys/fs/cgroup/a/b".into()));
    assert_eq!(located("/a", "/a/b"), Some("/sys/fs/cgroup/b".into()));
    assert_eq!(located("/a", "/b"), None);
    assert_eq!(located("/", "/../b"), None);
    let v1 = "33 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
    assert_eq!(cgroup::locate(v1, "/a"), None);
    assert_eq!(cgroup::locate("", "/a"), None);
}

/// A runner whose children get control groups of their own below `group`.
fn runner_in(group: &Cgroup) -> Runner {
    Runner {
        delegated: Some(Delegated::at(group.0.clone())),
        ..Runner::new(kernel())
    }
}

#[test]
fn a_child_that_leaves_its_session_is_killed_through_its_control_group() {
    let Some(group) = Cgroup::make("escape") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let ready = fifo(&directory, "ready");
    let script = format!(
        "setsid sh -c 'echo $$ > {}; exec sleep 600' & wait",
        ready.display()
    );
    block_on(async {
        let runner = runner_in(&group);
        let (running, escaped) = start_ready(&runner, &shell(&script), &ready);
        runner.stop(Duration::ZERO);
        running.wait().await;
        assert!(pid_ends(&escaped));
    });
}

#[test]
fn the_control_groups_of_children_are_removed() {
    let Some(group) = Cgroup::make("sweep") else {
        return;
    };
    block_on(async {
        let runner = runner_in(&group);
        let running = start(&runner, &step("/bin/sleep", &["600"]));
        assert_eq!(group.count(), 1);
        runner.stop(Duration::ZERO);
        running.wait().await;
        // A group whose last process is still exiting is removed before the next child.
        let runner = runner_in(&group);
        let ended = start(&runner, &step("/bin/true", &[])).wait().await;
        assert_eq!(ended.exit.status, Ok(0));
        assert_eq!(group.count(), 0);
    });
}

#[test]
fn a_child_runs_where_the_observer_is_if_it_cannot_have_a_control_group() {
    block_on(async {
        let runner = Runner {
            delegated: Some(Delegated::at("/no/such/directory".into())),
            ..Runner::new(kernel())
        };
        let ended = start(&runner, &step("/bin/true", &[])).wait().await;
        assert_eq!(ended.exit.status, Ok(0));
    });
}
