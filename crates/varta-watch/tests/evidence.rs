//! The log and the event file: the file types that are accepted, that no line displaces others, and what is never
//! written.

mod support;

use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred, sendmsg};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use support::Event;
use support::network::{
    MASTER, PATIENT, PID, SHARED, Seal, Series, bytes_of, flag, key, last_frame, socket,
    start_sealed_in, write_key,
};
use support::{
    Observer, Stopped, frame, frame_of, public_directory, refused_start, rows_when,
    wait_until_judged, wrapped,
};
use tempfile::TempDir;
use varta_api::v1::EventsPage;
use varta_vlp::PAYLOAD_GOODBYE;
use varta_vlp::secure::AgentKey;

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
    observer.wait_for("notice", |line| line.msg.contains("it is a symbolic link"));
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
    observer.wait_for("recover", |line| {
        line.text("outcome") == Some("reaped_zero")
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
    let failed = observer.wait_for("recover", |line| {
        line.text("outcome") == Some("spawn_failed")
    });
    assert!(failed.msg.contains("the command in /"), "{}", failed.msg);
    for line in &observer.stop().lines {
        assert!(!format!("{line:?}").contains(SECRET), "{line:?}");
    }
}

/// A file with a recovery command that only its owner may read, as the flag that names it.
fn write_command(directory: &TempDir, command: &str) -> String {
    let path = directory.path().join("command");
    fs::write(&path, command).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    flag("--recovery-exec-file", &path)
}

/// Fails unless the written and the dropped lines of a kind add up to this many, and those written are the burst of
/// one user or a few more.
fn assert_left_out(stopped: &Stopped, event: &str, name: &str, total: u64) {
    let told = stopped.count(event) as u64;
    let left_out: u64 = stopped
        .lines
        .iter()
        .filter_map(|line| line.keys.get("left_out")?.get(name)?.as_u64())
        .sum();
    assert_eq!(
        told + left_out,
        total,
        "{name}: {told} told, {left_out} left out"
    );
    assert!(told < total / 2, "{name}: {told} told");
}

#[test]
fn joins_and_exits_without_end_are_a_line_a_second_and_a_stall_is_remembered_among_them() {
    const AGENTS: u32 = 3_000;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rows");
    let flags = [
        "--udp-port=0",
        "--udp-bind-addr=127.0.0.1",
        "--i-accept-plaintext-udp",
        "--threshold-ms=200",
        &export(&path),
    ];
    let observer = Observer::start_in(directory, &flags, |command| command);
    observer.send(&frame(1));
    let stall = observer.wait_for_pid("stall", std::process::id());
    let datagrams: Vec<_> = (0..AGENTS)
        .flat_map(|i| {
            [
                frame_of(PID + i, 1),
                last_frame(PID + i, PAYLOAD_GOODBYE, 1),
            ]
        })
        .map(Vec::from)
        .collect();
    observer.hear_all(&socket(), &datagrams);
    // No other user pays.
    observer.send(&frame(2));
    observer.wait_for_pid("return", std::process::id());
    let page: EventsPage<Event> = observer.ask("/api/v1/events?after=0&limit=1000").json();
    let remembered = page.events.iter().map(|event| &event.line);
    assert!(remembered.clone().any(|line| *line == stall), "{page:#?}");
    let rows = rows_when(&path, |rows| {
        rows.iter().filter(|row| row[1] == "exit").count() == AGENTS as usize
    });
    let joins = rows.iter().filter(|row| row[1] == "join").count();
    assert_eq!(joins, AGENTS as usize + 1);
    let stopped = observer.stop();
    assert_left_out(&stopped, "join", "join", u64::from(AGENTS) + 1);
    assert_left_out(&stopped, "exit", "exit", u64::from(AGENTS));
    let counted = stopped.counter("varta_log_suppressed_total{kind=\"user_rate\"}");
    let lines = stopped.lines.iter().filter(|line| line.has("left_out"));
    let sum: u64 = lines
        .clone()
        .filter_map(|line| line.number::<u64>("count"))
        .sum();
    assert_eq!(counted, sum);
    for line in lines {
        assert_eq!(line.text("source"), Some("127.0.0.1"));
    }
}

#[test]
fn a_zombie_that_is_made_to_speak_again_and_again_joins_and_leaves_once() {
    const ENDED: &str = "varta_frame_identity_refused_total{reason=\"sender_ended\"}";
    const DATAGRAMS: u64 = 300;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may put another pid into its credentials");
        return;
    }
    let observer = Observer::start(&[PATIENT]);
    let mut child = Command::new("true").spawn().unwrap();
    let pid = Pid::from_child(&child);
    let has_ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(pid), has_ended).unwrap();
    let sender = observer.connect();
    for nonce in 1..=DATAGRAMS {
        send_as(&sender, pid, &frame_of(child.id(), nonce));
        if nonce == 1 {
            observer.wait_for_pid("exit", child.id());
        }
    }
    wait_until_judged(&observer, ENDED, DATAGRAMS);
    child.wait().unwrap();
    observer
        .stop()
        .assert_counters(&[("varta_observer_joins_total", 1), (ENDED, DATAGRAMS - 1)]);
}

/// Sends in the name of another process, which requires rights over its pid namespace.
fn send_as(sender: &UnixDatagram, pid: Pid, bytes: &[u8]) {
    let credentials = UCred {
        pid,
        uid: rustix::process::getuid(),
        gid: rustix::process::getgid(),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmCredentials(credentials)));
    sendmsg(
        sender,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
}

/// The memory of a process that is not backed by files: how often it holds these bytes, within pages that core
/// dumps have and within pages that they leave out.
fn times_in_memory(pid: u32, bytes: &[u8]) -> (usize, usize) {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut range = None;
    let (mut dumped, mut left_out) = (0, 0);
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let bounds = words[0].split_once('-').and_then(|(from, to)| {
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((number(from)?, number(to)?))
        });
        if let Some((from, to)) = bounds {
            let is_file = words.len() > 5 && !["[heap]", "[stack]"].contains(&words[5]);
            range = Some((from, to)).filter(|_| !is_file && words[1].starts_with('r'));
        } else if words[0] == "VmFlags:"
            && let Some((from, to)) = range
        {
            let mut content = vec![0; (to - from) as usize];
            memory.read_exact_at(&mut content, from).unwrap();
            let first = bytes[0];
            let starts = content
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == first);
            let found = starts
                .filter(|(i, _)| content[*i..].starts_with(bytes))
                .count();
            match words.contains(&"dd") {
                true => left_out += found,
                false => dumped += found,
            }
        }
    }
    (dumped, left_out)
}

#[test]
fn keys_and_token_are_on_no_page_that_a_core_dump_has() {
    const TOKEN: &str = "tok-0123456789abcdef";
    let directory = tempfile::tempdir().unwrap();
    let token = write_key(directory.path(), "token", format!("{TOKEN}\n"));
    let token = flag("--http-token-file", &token);
    let observer = start_sealed_in(directory, &[PATIENT, "--http=127.0.0.1:0", &token]);
    if fs::File::open(format!("/proc/{}/mem", observer.pid())).is_err() {
        println!("skipped: this user may not read the memory of another process");
        return;
    }
    // The key of an agent that has proved that it has it is kept.
    observer.hear(
        &socket(),
        &Series::new(Seal::Master(MASTER), PID, "a").beat(),
    );
    let derived = AgentKey::derive(&key(MASTER), PID);
    for (name, secret) in [
        ("shared", &[SHARED; 32][..]),
        ("master", &[MASTER; 32]),
        ("derived", &bytes_of(derived.key())),
        ("token", TOKEN.as_bytes()),
    ] {
        let (dumped, left_out) = times_in_memory(observer.pid(), secret);
        assert_eq!(left_out, 1, "{name}");
        // A key that was just derived has left copies on the stack.
        assert!(dumped == 0 || name == "derived", "{name}: {dumped}");
    }
}
