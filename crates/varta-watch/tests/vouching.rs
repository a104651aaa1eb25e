//! Proof of attributes: units, programs and users are what the kernel proves, not what an agent arranges.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use varta_api::v1::AgentsPage;

use support::LogLine;
use support::agents::Puppet;
use support::ladders::Marks;
use support::namespaces::{AS_ROOT_OF_A_USER_NAMESPACE, may_make_user_namespaces};
use support::{
    AS_NOBODY, Observer, copy_program, frame, may_become_nobody, public_directory, wrapped,
};

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

/// The directories of service managers, if the test may make more: in the unified hierarchy or in systemd's own.
const HIERARCHIES: [&str; 3] = [
    "/sys/fs/cgroup/systemd",
    "/sys/fs/cgroup/unified",
    "/sys/fs/cgroup",
];

/// Control groups of this test, which are removed with it.
struct Groups(PathBuf);

impl Groups {
    /// `None`, with a message, where this user can make none or `/proc` would not show them.
    fn new() -> Option<Self> {
        let name = format!("varta-test-{}.slice", std::process::id());
        for hierarchy in HIERARCHIES {
            let groups = Self(Path::new(hierarchy).join(&name));
            let is_hierarchy = Path::new(hierarchy).join("cgroup.procs").exists();
            if is_hierarchy && fs::create_dir(&groups.0).is_ok() {
                let mut member = Command::new("sleep").arg("60").spawn().unwrap();
                let is_shown = groups.put("", member.id())
                    && fs::read_to_string(format!("/proc/{}/cgroup", member.id()))
                        .is_ok_and(|text| text.contains(&name));
                member.kill().unwrap();
                member.wait().unwrap();
                if is_shown {
                    return Some(groups);
                }
            }
        }
        println!("skipped: this user can make no control groups of a service manager");
        None
    }

    /// Puts a process into a group below.
    fn put(&self, below: &str, pid: u32) -> bool {
        let group = self.0.join(below);
        let made = fs::create_dir_all(&group);
        made.and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()))
            .is_ok()
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // The deepest first; one that is not empty yet is left to the next try.
        let script = "for try in $(seq 100); do find \"$0\" -depth -type d -exec rmdir {} + 2>/dev/null; \
                      test -d \"$0\" || exit 0; sleep 0.05; done";
        let _ = Command::new("sh")
            .args(["-c", script])
            .arg(&self.0)
            .status();
    }
}

#[test]
fn a_unit_that_a_user_has_named_is_not_handed_to_the_system_manager() {
    if !may_become_nobody() {
        return;
    }
    let Some(groups) = Groups::new() else {
        return;
    };
    let marks = Marks::new();
    let run = |word: &str| {
        let program = marks.shell(&format!("echo \\\"{word} <$1> <$2>\\\" >> marks"), "");
        program.replace("\"]", "\", \"sh\", \"{unit}\", \"{user-unit}\"]")
    };
    let (by_default, by_unit, by_user_unit) = (run("default"), run("unit"), run("user-unit"));
    let config = format!(
        "threshold-ms = 300\ndefault-recovery = \"it\"\n\
         [recovery.it]\nsteps = [{by_default}]\n\
         [[agent]]\nunit = \"web@*.service\"\nrecovery = [{by_unit}]\n\
         [[agent]]\nuser-unit = \"web@*.service\"\nuid = 64000\nrecovery = [{by_user_unit}]\n"
    );
    let observer = marks.observer(&config, &[]);
    let manager = "user-64000.slice/user@64000.service";
    let mut puppets = Vec::new();
    for (group, mark) in [
        (
            "user-64000.slice/user@64000.service/app.slice/web@1.service",
            "user-unit <user@64000.service> <web@1.service>",
        ),
        (
            "user-64000.slice/user@64000.service/app.slice/--host=root@attacker.service",
            "default <user@64000.service> <>",
        ),
        (
            "user-64000.slice/user@64000.service/app.slice/-Hevil.service",
            "default <user@64000.service> <>",
        ),
        (
            "user-64000.slice/user@64000.service/app.slice/sshd.service",
            "default <user@64000.service> <sshd.service>",
        ),
        (
            "user-64000.slice/user@64000.service/app.slice/a b;reboot.service",
            "default <user@64000.service> <>",
        ),
        (
            "user-64000.slice/user@64000.service/app.slice/{pid}{name}.service",
            "default <user@64000.service> <>",
        ),
        (
            "user-64001.slice/user@64001.service/app.slice/web@1.service",
            "default <user@64001.service> <>",
        ),
        ("docker/system.slice/web@1.service", "default <> <>"),
        (
            "delegated.service/web@1.service",
            "default <delegated.service> <>",
        ),
        ("web@2.service/worker", "unit <web@2.service> <>"),
    ] {
        let (directory, agent) = place();
        let mut puppet = Puppet::start_under(&AS_NOBODY, &agent, &observer.socket);
        assert!(groups.put(group, puppet.pid), "{group}");
        let known = marks.read().len();
        puppet.tell("beat self 1");
        let join = observer.wait_for_pid("join", puppet.pid);
        assert!(join.text("cgroup").unwrap().ends_with(group));
        assert_eq!(marks.wait_for(known + 1)[known], mark, "{group}");
        puppets.push((puppet, directory));
    }
    assert!(groups.0.join(manager).exists());
    let page: AgentsPage = observer.ask("/api/v1/agents?limit=100").json();
    let shown = page.agents.iter();
    let shown = shown.filter(|agent| agent.user_unit.as_deref() == Some("web@1.service"));
    assert_eq!(shown.count(), 1);
    drop(puppets);
}

/// A directory where other users can run a copy of the agents' program.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = public_directory();
    let agent = directory.path().join("agent");
    copy_program(&std::env::current_exe().unwrap(), &agent);
    (directory, agent)
}

/// An observer with a rule for the program at this path.
fn observer_for(marks: &Marks, program: &Path) -> Observer {
    let rule = format!(
        "[[agent]]\nexe = \"{}\"\nas = \"trusted\"\n",
        program.display()
    );
    marks.observer(&format!("threshold-ms = 60000\n{rule}"), &[])
}

fn joined(observer: &Observer, puppet: &mut Puppet) -> LogLine {
    puppet.tell("beat self 1");
    observer.wait_for_pid("join", puppet.pid)
}

#[track_caller]
fn assert_trusted(join: &LogLine, program: &Path) {
    assert_eq!(join.text("name"), Some("trusted"));
    assert_eq!(join.text("exe"), program.to_str());
}

#[track_caller]
fn assert_not_trusted(join: &LogLine) {
    assert_ne!(join.text("name"), Some("trusted"));
    assert_eq!(join.text("exe"), None);
}

/// Mounts the started program over another path, and starts the file at that path then.
fn mounted_over(path: &Path) -> String {
    let path = path.display();
    format!("mount --bind \"$0\" {path} && exec {path} \"$@\"")
}

#[test]
fn a_file_that_a_user_mounts_over_a_path_is_not_the_program_there() {
    if !may_make_user_namespaces() {
        return;
    }
    let marks = Marks::new();
    let (directory, agent) = place();
    let program = directory.path().join("program");
    copy_program(&agent, &program);
    let observer = observer_for(&marks, &program);
    let script = mounted_over(&program);
    let namespace = ["--mount", "sh", "-c", &script];
    let mounting = [&AS_NOBODY[..], &AS_ROOT_OF_A_USER_NAMESPACE, &namespace].concat();
    let mut impostor = Puppet::start_under(&mounting, &agent, &observer.socket);
    assert_not_trusted(&joined(&observer, &mut impostor));
    let inside = [&AS_NOBODY[..], &AS_ROOT_OF_A_USER_NAMESPACE, &["--mount"]].concat();
    let mut same_file = Puppet::start_under(&inside, &program, &observer.socket);
    assert_trusted(&joined(&observer, &mut same_file), &program);
    let mut outside = Puppet::start_under(&AS_NOBODY, &program, &observer.socket);
    assert_trusted(&joined(&observer, &mut outside), &program);
}

/// The path of an unlinked file is trusted only if the file was opened in this namespace.
#[test]
fn a_file_of_another_mount_namespace_that_was_unlinked_is_not_the_program_at_its_path() {
    if !may_make_user_namespaces() {
        return;
    }
    let marks = Marks::new();
    let (directory, agent) = place();
    let program = directory.path().join("program");
    let evil = directory.path().join("evil");
    copy_program(&agent, &program);
    let observer = observer_for(&marks, &program);
    let (shown, own) = (program.display(), std::process::id());
    // It ends when its process has, and its mounts with it.
    let hold = "tail --pid=$$ -f /dev/null &";
    for (who, script) in [
        (
            &AS_ROOT_OF_A_USER_NAMESPACE[..],
            format!("mount --bind \"$0\" {shown}; rm \"$0\"; exec {shown} \"$@\""),
        ),
        (
            &["unshare"],
            // Back in the observer's namespace, with an open descriptor of the other namespace's file.
            format!(
                "mount --bind \"$0\" {shown}; exec 3<{shown}; rm \"$0\"; {hold} \
                 exec nsenter --mount=/proc/{own}/ns/mnt /proc/self/fd/3 \"$@\""
            ),
        ),
    ] {
        copy_program(&agent, &evil);
        let in_namespace = [who, &["--mount", "sh", "-c", &script]].concat();
        let mut impostor = Puppet::start_under(&in_namespace, &evil, &observer.socket);
        let link = fs::read_link(format!("/proc/{}/exe", impostor.pid)).unwrap();
        let expected = format!("{shown} (deleted)");
        assert_eq!(
            link,
            Path::new(&expected),
            "the trick does not work as meant"
        );
        assert_not_trusted(&joined(&observer, &mut impostor));
    }
}

#[test]
fn a_program_that_was_replaced_while_it_runs_keeps_its_rule() {
    let marks = Marks::new();
    let (directory, agent) = place();
    let program = directory.path().join("program");
    copy_program(&agent, &program);
    let observer = observer_for(&marks, &program);
    let mut old = Puppet::start_under(&[], &program, &observer.socket);
    let mut older = Puppet::start_under(&[], &program, &observer.socket);
    assert_trusted(&joined(&observer, &mut older), &program);
    fs::rename(&agent, &program).unwrap();
    assert_trusted(&joined(&observer, &mut old), &program);
    let mut new = Puppet::start_under(&[], &program, &observer.socket);
    assert_trusted(&joined(&observer, &mut new), &program);
    // A reload of the rules finds it, too.
    marks.reload(&observer, "[[agent]]\nname = \"*\"\nas = \"other\"\n");
    let rule = format!("[[agent]]\nexe = \"{}\"\nas = \"it\"\n", program.display());
    marks.reload(&observer, &rule);
    let page: AgentsPage = observer.ask("/api/v1/agents").json();
    let names = page.agents.iter().map(|agent| agent.name.as_deref());
    assert_eq!(names.collect::<Vec<_>>(), [Some("it"); 3]);
}

#[test]
fn a_program_that_was_replaced_goes_on_with_the_budget_of_its_service() {
    let marks = Marks::new();
    let (directory, agent) = place();
    let program = directory.path().join("program");
    copy_program(&agent, &program);
    let step = marks.mark("acted", ", wait = \"10ms\"");
    let rule = format!(
        "threshold-ms = 300\n[recovery.it]\nsteps = [{step}]\nbudget = 1\n\
         [[agent]]\nexe = \"{}\"\nrecovery = \"it\"\n",
        program.display()
    );
    let observer = marks.observer(&rule, &[]);
    let mut old = Puppet::start_under(&[], &program, &observer.socket);
    fs::rename(&agent, &program).unwrap();
    let mut new = Puppet::start_under(&[], &program, &observer.socket);
    joined(&observer, &mut old);
    observer.wait_for_pid("gave_up", old.pid);
    old.leave(1);
    observer.wait_for_pid("exit", old.pid);
    joined(&observer, &mut new);
    observer.wait_for_pid("gave_up", new.pid);
    assert_eq!(marks.read(), ["acted"]);
}

#[test]
fn in_a_user_namespace_an_observer_watches_its_own_user_and_nobody_else() {
    if !may_make_user_namespaces() {
        return;
    }
    let observer_of_a_namespace = |flags: &[&str]| {
        let (directory, agent) = place();
        let program = directory.path().join("observer");
        copy_program(Path::new(env!("CARGO_BIN_EXE_varta-watch")), &program);
        std::os::unix::fs::chown(directory.path(), Some(64000), Some(64000)).unwrap();
        let observer = Observer::start_in(directory, flags, |command| {
            let mut copy = Command::new(program);
            copy.args(command.get_args());
            let inner = wrapped(&AS_ROOT_OF_A_USER_NAMESPACE, &copy);
            wrapped(&AS_NOBODY, &inner)
        });
        (observer, agent)
    };
    let (observer, agent) = observer_of_a_namespace(&[]);
    assert_eq!(observer.socket_mode(), 0o600);
    let start = observer.start_line();
    assert!(start.msg.contains("processes of uid 0)"), "{}", start.msg);
    // Root bypasses the permissions of the file, and no other check.
    observer.send(&frame(1));
    let refused = observer.wait_for_refusal("foreign_uid");
    assert!(refused.msg.contains("is nobody"), "{}", refused.msg);
    let mut own = Puppet::start_under(&AS_NOBODY, &agent, &observer.socket);
    assert_eq!(joined(&observer, &mut own).number("uid"), Some(0));
    assert_eq!(observer.stop().count("join"), 1);
    // Nor does a group admit an unmapped user: 64000 is 0 inside.
    let (observer, agent) = observer_of_a_namespace(&["--allow-gid=0", "--socket-mode=666"]);
    let member = [
        "setpriv",
        "--reuid=64001",
        "--regid=64000",
        "--clear-groups",
    ];
    let mut member = Puppet::start_under(&member, &agent, &observer.socket);
    member.tell("beat self 1");
    observer.wait_for_refusal("foreign_uid");
    let mut own = Puppet::start_under(&AS_NOBODY, &agent, &observer.socket);
    joined(&observer, &mut own);
    assert_eq!(observer.stop().count("join"), 1);
}

#[test]
fn an_agent_that_proc_hides_is_not_said_to_live_in_another_namespace() {
    if !may_become_nobody() {
        return;
    }
    let hiding = |program: &str| {
        let [setpriv, ids @ ..] = AS_NOBODY;
        let ids = ids.join(" ");
        format!("mount -t proc -o hidepid=2 proc /proc && exec {setpriv} {ids} {program} \"$@\"")
    };
    let may_hide = Command::new("unshare")
        .args(["--mount", "sh", "-c", &hiding("test ! -e /proc/1")])
        .stderr(Stdio::null())
        .status();
    if !may_hide.is_ok_and(|status| status.success()) {
        println!("skipped: this user may not mount /proc with hidepid");
        return;
    }
    let (directory, _) = place();
    let program = directory.path().join("observer");
    copy_program(Path::new(env!("CARGO_BIN_EXE_varta-watch")), &program);
    std::os::unix::fs::chown(directory.path(), Some(64000), Some(64000)).unwrap();
    let flags = [
        "--allow-uid=0",
        "--threshold-ms=300",
        "--recovery-exec=/bin/true",
    ];
    let script = hiding("\"$0\"");
    let observer = Observer::start_in(directory, &flags, |command| {
        let mut copy = Command::new(program);
        copy.args(command.get_args());
        wrapped(&["unshare", "--mount", "sh", "-c", &script], &copy)
    });
    observer.send(&frame(1));
    let refused = observer.wait_for("recover", |_| true);
    assert!(refused.msg.contains("hidepid"), "{}", refused.msg);
    assert!(
        !refused.msg.contains("it lives in another"),
        "{}",
        refused.msg
    );
}

/// The output of the observer for a configuration that it only checks, and its exit code.
fn check(wrapper: &[&str], flags: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_varta-watch"));
    command.args(["--socket=/s", "--check-config"]).args(flags);
    let output = wrapped(wrapper, &command)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.code())
}

#[test]
fn nobody_cannot_be_let_in() {
    if !may_make_user_namespaces() {
        return;
    }
    let (directory, _) = place();
    let program = directory.path().join("observer");
    copy_program(Path::new(env!("CARGO_BIN_EXE_varta-watch")), &program);
    for flag in ["--allow-uid", "--allow-gid"] {
        let mut copy = Command::new(&program);
        copy.args(["--socket=/s", "--check-config", &format!("{flag}=65534")]);
        let inner = wrapped(&AS_ROOT_OF_A_USER_NAMESPACE, &copy);
        let output = wrapped(&AS_NOBODY, &inner).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(flag), "{said}");
        assert!(said.contains("is nobody and is never let in"), "{said}");
        let (said, code) = check(&[], &[&format!("{flag}=65534")]);
        assert_eq!(code, Some(0), "where every user is mapped: {said}");
    }
    // Without any map the observer itself has the overflow id.
    let mut copy = Command::new(&program);
    copy.args(["--socket=/s", "--check-config"]);
    let inner = wrapped(&["unshare", "--user"], &copy);
    let output = wrapped(&AS_NOBODY, &inner).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("which is nobody"), "{said}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_file_of_a_user_that_is_not_mapped_is_not_believed_and_that_is_said() {
    if !may_make_user_namespaces() {
        return;
    }
    let (directory, _) = place();
    let program = directory.path().join("observer");
    copy_program(Path::new(env!("CARGO_BIN_EXE_varta-watch")), &program);
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let words = "any user that this user namespace does not map";
    for (flag, mode) in [("--config", 0o644), ("--recovery-exec-file", 0o600)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let mut copy = Command::new(&program);
        copy.args(["--socket=/s", "--check-config", flag])
            .arg(&file);
        // As root of its namespace, and as an unmapped user, like the owner of the file.
        for namespace in [&AS_ROOT_OF_A_USER_NAMESPACE[..], &["unshare", "--user"]] {
            let inner = wrapped(namespace, &copy);
            let output = wrapped(&AS_NOBODY, &inner).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains(words), "{flag}: {said}");
            assert_eq!(output.status.code(), Some(2));
        }
    }
}

#[test]
fn a_rule_that_any_user_can_match_is_warned_of_and_holds() {
    let marks = Marks::new();
    let rule = "[[agent]]\nname = \"web-*\"\nrecovery = [{ signal = \"TERM\" }]\n";
    let several = ["--allow-uid=0", "--allow-uid=64000"];
    marks.configure(rule);
    let config = format!("--config={}", marks.config().display());
    let (said, code) = check(&[], &[&several[..], &[&config]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("warning: "), "{said}");
    assert!(said.ends_with(": ok, 1 warning\n"), "{said}");
    let (said, code) = check(&[], &["--allow-uid=0", &config]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.ends_with(": ok\n") && !said.contains("warning"),
        "{said}"
    );
    let observer = marks.observer(rule, &several);
    let is_warning = |line: &LogLine| line.msg.contains("several users may join");
    observer.wait_for("notice", is_warning);
    // A known warning is not repeated, a new one is logged.
    marks.reload(&observer, rule);
    marks.configure(&format!("{rule}{}", rule.replace("web", "job")));
    observer.signal(rustix::process::Signal::HUP);
    let new = observer.wait_for("notice", is_warning);
    observer.wait_for("notice", |line| line.msg.starts_with("SIGHUP"));
    let stopped = observer.stop();
    let warnings = stopped.lines.iter().filter(|line| is_warning(line));
    assert_eq!(warnings.count(), 2, "{new:?}");
}
