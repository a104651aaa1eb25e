//! Pid namespaces, made by `unshare` of util-linux.

use std::process::{Command, Stdio};

/// Starts the rest of the command as the first process of a pid namespace. `/proc` stays that of the test.
pub(crate) const CONTAINER: [&str; 4] = ["unshare", "--pid", "--fork", "--kill-child"];

/// Set in a test program that runs in a pid namespace of its own.
const INSIDE: &str = "VARTA_TEST_INSIDE";

/// Prints that a test has to be skipped.
pub(crate) fn may_make_pid_namespaces() -> bool {
    let [unshare, flags @ ..] = CONTAINER;
    let made = Command::new(unshare)
        .args(flags)
        .args(["--mount-proc", "true"])
        .stderr(Stdio::null())
        .status();
    let may = made.is_ok_and(|status| status.success());
    if !may {
        println!("skipped: this kernel or user may not make a pid namespace");
    }
    may
}

/// True inside a pid namespace of the test's own, where the test program is pid 1. Outside it runs the test of that
/// name inside, and returns false: the caller is done.
pub(crate) fn inside_a_pid_namespace(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !may_make_pid_namespaces() {
        return false;
    }
    let [unshare, flags @ ..] = CONTAINER;
    let output = Command::new(unshare)
        .args(flags)
        .arg("--mount-proc")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    print!("{text}");
    assert!(output.status.success(), "failed inside its namespace");
    assert!(text.contains("1 passed"), "there is no test {test}");
    false
}

/// Starts the rest of the command as root of a user namespace that maps only its user.
pub(crate) const AS_ROOT_OF_A_USER_NAMESPACE: [&str; 3] = ["unshare", "--user", "--map-root-user"];

/// Prints that a test has to be skipped: whether a user without rights may make user and mount namespaces.
pub(crate) fn may_make_user_namespaces() -> bool {
    if !super::may_become_nobody() {
        return false;
    }
    let [unshare, flags @ ..] = AS_ROOT_OF_A_USER_NAMESPACE;
    let mut made = Command::new(unshare);
    made.args(flags).args(["--mount", "true"]);
    let made = super::wrapped(&super::AS_NOBODY, &made)
        .stderr(Stdio::null())
        .status();
    let may = made.is_ok_and(|status| status.success());
    if !may {
        println!("skipped: a user of this host may not make user namespaces");
    }
    may
}
