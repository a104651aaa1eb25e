//! The event file and what may have its name; and what is written nowhere.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use support::network::flag;
use support::{Observer, frame, public_directory, refused_start, rows_when, wrapped};
use tempfile::TempDir;
use varta_watch::api::LogEvent;

/// Nobody stalls, and the file has all events.
const PATIENT: &str = "--threshold-ms=60000";

fn export(path: &Path) -> String {
    flag("--export-file", path)
}

/// Fails unless an observer with this event file refuses to start, for this reason.
fn assert_refused(path: &Path, why: &str) {
    let directory = tempfile::tempdir().unwrap();
    let socket = flag("--socket", &directory.path().join("varta.sock"));
    let (status, text) = refused_start(&[&socket, "--http=off", &export(path)]);
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(why), "{text}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
}

#[test]
fn an_event_file_that_another_user_could_have_chosen_is_refused_and_left_as_it_is() {
    let directory = public_directory();
    let (path, victim) = (
        directory.path().join("rows"),
        directory.path().join("victim"),
    );
    fs::write(&victim, "7\tbeat").unwrap();
    symlink(&victim, &path).unwrap();
    assert_refused(&path, "it is a symbolic link");
    fs::remove_file(&path).unwrap();
    fs::hard_link(&victim, &path).unwrap();
    assert_refused(&path, "2 names");
    fs::remove_file(&path).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    assert_refused(&path, "a FIFO");
    fs::remove_file(&path).unwrap();
    if rustix::process::geteuid().is_root() {
        fs::write(&path, "").unwrap();
        lchown(&path, Some(4711), None).unwrap();
        assert_refused(&path, "belongs to uid 4711");
    } else {
        println!("skipped: only root can give a file away");
    }
    assert_eq!(fs::read(&victim).unwrap(), b"7\tbeat");
}

#[test]
fn a_link_that_is_planted_before_a_rotation_is_not_followed_and_the_old_file_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (path, victim) = (
        directory.path().join("rows"),
        directory.path().join("victim"),
    );
    fs::write(&victim, "precious\n").unwrap();
    let observer = Observer::start_in(directory, &[PATIENT, &export(&path)], |command| command);
    let moved = path.with_extension("1");
    fs::rename(&path, &moved).unwrap();
    symlink(&victim, &path).unwrap();
    observer.signal(Signal::HUP);
    observer.wait_for(LogEvent::Notice, |line| {
        line.msg.contains("it is a symbolic link")
    });
    observer.send(&frame(1));
    rows_when(&moved, |rows| rows.iter().any(|row| row[1] == "beat"));
    assert_eq!(fs::read(&victim).unwrap(), b"precious\n");
}

#[test]
fn nobody_but_owner_and_group_reads_the_event_file_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    let (made, found) = (
        directory.path().join("made"),
        directory.path().join("found"),
    );
    fs::write(&found, "").unwrap();
    fs::set_permissions(&found, fs::Permissions::from_mode(0o666)).unwrap();
    for path in [made, found] {
        let place = tempfile::tempdir().unwrap();
        let observer = Observer::start_in(place, &[PATIENT, &export(&path)], |command| {
            wrapped(&["sh", "-c", "umask 0; exec \"$0\" \"$@\""], &command)
        });
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        observer.stop();
    }
}

#[test]
fn an_event_file_of_any_kind_is_written_to_if_that_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, target) = (
        directory.path().join("rows"),
        directory.path().join("target"),
    );
    symlink(&target, &path).unwrap();
    let flags = [PATIENT, "--allow-any-export-file", &export(&path)];
    let observer = Observer::start_in(directory, &flags, |command| command);
    observer.send(&frame(1));
    rows_when(&target, |rows| rows.iter().any(|row| row[1] == "beat"));
}

#[test]
fn the_words_of_a_private_command_are_in_no_log_and_no_answer() {
    const SECRET: &str = "sk_0123456789abcdef";
    let directory = tempfile::tempdir().unwrap();
    let file = write_command(&directory, &format!("/bin/sh -c : {SECRET} {{pid}}"));
    let flags = ["--threshold-ms=100", &file, "--recovery-wait=10ms"];
    let observer = Observer::start_in(directory, &flags, |command| command);
    observer.send(&frame(1));
    observer.wait_for(LogEvent::Recover, |line| {
        line.fields.outcome.as_deref() == Some("reaped_zero")
    });
    for page in [
        "/api/v1/events",
        "/api/v1/info",
        "/api/v1/agents",
        "/metrics",
    ] {
        let text = observer.ask(page).text();
        assert!(!text.contains(SECRET), "{page}: {text}");
    }
    let stopped = observer.stop();
    for line in &stopped.lines {
        assert!(!format!("{line:?}").contains(SECRET), "{line:?}");
    }
}

#[test]
fn a_private_command_that_cannot_start_is_told_of_without_its_words() {
    const SECRET: &str = "sk_0123456789abcdef";
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join(SECRET);
    fs::write(&program, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let file = write_command(&directory, &format!("{} {SECRET}", program.display()));
    let flags = ["--threshold-ms=100", &file];
    let observer = Observer::start_in(directory, &flags, |command| command);
    observer.send(&frame(1));
    let failed = observer.wait_for(LogEvent::Recover, |line| {
        line.fields.outcome.as_deref() == Some("spawn_failed")
    });
    assert!(failed.msg.contains("the command in /"), "{}", failed.msg);
    for line in &observer.stop().lines {
        assert!(!format!("{line:?}").contains(SECRET), "{line:?}");
    }
}

/// A file with a recovery command that nobody else may read, as the flag that names it.
fn write_command(directory: &TempDir, command: &str) -> String {
    let path = directory.path().join("command");
    fs::write(&path, command).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    flag("--recovery-exec-file", &path)
}
