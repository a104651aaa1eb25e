//! The observer from its users' point of view: a program, a socket, a log.

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::agents::{AgentProcess, Puppet, joined};
use support::ladders::has_outcome;
use support::{BEATS, Observer, frame, frame_of, refused_start, resealed, rows_when, signal_pid};

/// Not a test: the program of [`AgentProcess`].
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

#[test]
fn a_hung_agent_is_reported_once_and_reported_back() {
    let observer = Observer::start(&["--threshold-ms=300"]);
    let mut agent = Puppet::start(&observer.socket);
    agent.tell("beat self 1");
    let join = observer.wait_for_pid("join", agent.pid);
    assert!(join.text("name").is_some());
    agent.signal(Signal::STOP);
    let stall = observer.wait_for_pid("stall", agent.pid);
    assert_eq!(stall.ms("threshold_ms"), Some(300.0));
    assert!(stall.ms("silence_ms").unwrap() >= 300.0);
    let quiet = Duration::from_millis(1_000);
    assert_eq!(observer.count_within("stall", quiet), 1, "once");
    agent.signal(Signal::CONT);
    agent.tell("beat self 2");
    let back = observer.wait_for_pid("return", agent.pid);
    assert!(back.ms("silence_ms").unwrap() >= 1_000.0);
    let stopped = observer.stop();
    // It may have stalled again before the stop.
    let stalls = stopped.count("stall") as u64;
    stopped.assert_counters(&[
        ("varta_observer_stalls_total", stalls),
        ("varta_observer_returns_total", 1),
    ]);
}

#[test]
fn an_exit_is_told_at_once_and_is_no_stall() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let mut polite = AgentProcess::start(&observer.socket);
    let mut failing = AgentProcess::start(&observer.socket);
    let mut killed = AgentProcess::start(&observer.socket);
    for _ in 0..3 {
        observer.wait_for("join", |_| true);
    }
    polite.leave(0);
    let left = observer.wait_for_pid("exit", polite.pid());
    assert_eq!(
        (left.level.as_str(), left.number("code")),
        ("info", Some(0))
    );
    failing.leave(3);
    let died = observer.wait_for_pid("exit", failing.pid());
    assert_eq!(
        (died.level.as_str(), died.number("code")),
        ("warn", Some(3))
    );
    killed.kill();
    let died = observer.wait_for_pid("exit", killed.pid());
    assert_eq!(died.number("signal"), Some(9));
    assert_eq!(observer.stop().count("stall"), 0);
}

#[test]
fn a_process_that_is_gone_before_its_beat_is_read_comes_and_goes() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    observer.signal(Signal::STOP);
    let mut agent = Puppet::start(&observer.socket);
    agent.tell("beat self 1");
    agent.leave(9);
    observer.signal(Signal::CONT);
    observer.wait_for_pid("join", agent.pid);
    observer.wait_for_pid("exit", agent.pid);
    assert_eq!(observer.stop().count("stall"), 0);
}

#[test]
fn healthy_agents_do_not_pay_for_a_pause_of_the_observer() {
    let observer = Observer::start(&["--threshold-ms=2000"]);
    let agents: Vec<_> = (0..4)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    for _ in &agents {
        observer.wait_for("join", |_| true);
    }
    observer.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(3_000));
    observer.signal(Signal::CONT);
    let gap = observer.wait_for("gap", |_| true);
    assert!(gap.ms("duration_ms").unwrap() >= 2_000.0);
    // A false stall would come before these beats.
    let beats = observer.counters()[BEATS];
    observer.wait_for_count(BEATS, beats + 40);
    let stopped = observer.stop();
    assert_eq!(stopped.count("stall"), 0);
    assert!(stopped.seconds("varta_observer_gap_seconds_total") >= 2.0);
}

#[test]
fn a_stalled_agent_is_still_found_after_a_pause_of_the_observer() {
    let observer = Observer::start(&["--threshold-ms=400"]);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    agent.signal(Signal::STOP);
    observer.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(1_000));
    observer.signal(Signal::CONT);
    observer.wait_for_pid("stall", agent.pid());
}

#[test]
fn bad_datagrams_are_refused_by_reason_and_change_nothing() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    observer.send(&frame(1));
    observer.wait_for_pid("join", std::process::id());

    let good = frame(2);
    let altered = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        bytes
    };
    let mut long = good.to_vec();
    long.push(0);
    let lengths: [&[u8]; 5] = [&[], &good[..31], &long, &[7; 60], &[7; 4096]];
    for bytes in lengths {
        observer.send(bytes);
    }
    observer.send(&altered(0, 0));
    observer.send(&resealed(altered(2, 1)));
    observer.send(&altered(9, 0xff));
    observer.send(&resealed(altered(3, 4)));
    observer.send(&resealed(altered(3, 3)));
    observer.send(&frame_of(1, 2));
    let mut timeless = good;
    timeless[8..16].fill(0xff);
    observer.send(&resealed(timeless));
    let mut endless = good;
    endless[16..24].fill(0xff);
    observer.send(&resealed(endless));
    observer.send(&frame_of(std::process::id() + 1, 2));
    observer.send(&frame(1));
    observer.send(&good);

    let stopped = observer.stop_when(BEATS, 2);
    for (series, count) in [
        ("varta_truncated_datagrams_total", 5),
        ("varta_decode_errors_total{kind=\"bad_magic\"}", 1),
        ("varta_decode_errors_total{kind=\"bad_version\"}", 1),
        ("varta_decode_errors_total{kind=\"bad_crc\"}", 1),
        ("varta_decode_errors_total{kind=\"bad_status\"}", 1),
        ("varta_decode_errors_total{kind=\"stall_on_wire\"}", 1),
        ("varta_decode_errors_total{kind=\"bad_pid\"}", 1),
        ("varta_decode_errors_total{kind=\"bad_timestamp\"}", 1),
        ("varta_decode_errors_total{kind=\"bad_nonce\"}", 1),
        ("varta_frame_auth_failures_total", 1),
        ("varta_frame_out_of_order_total", 1),
        ("varta_observer_joins_total", 1),
        (BEATS, 2),
    ] {
        assert_eq!(stopped.counter(series), count, "{series}");
    }
    assert!(stopped.count("refuse") > 0, "the operator is told");
}

#[test]
fn the_recovery_command_runs_once_for_the_stalled_process() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("recover");
    let calls = directory.path().join("calls");
    fs::write(&script, format!("echo \"$@\" >> {}\n", calls.display())).unwrap();
    let exec = format!("sh {} {{pid}} for-{{pid}}", script.display());
    let flags = ["--threshold-ms=300", "--recovery-exec", &exec];
    let observer = Observer::start_in(directory, &flags, |command| command);
    let agent = joined(&observer);
    let spawned = observer.wait_for("recover", has_outcome("spawned"));
    assert_eq!(spawned.pid(), Some(agent.pid));
    assert!(spawned.has("child_pid"));
    observer.wait_for("recover", has_outcome("reaped_zero"));
    std::thread::sleep(Duration::from_millis(700));
    let calls = fs::read_to_string(calls).unwrap();
    assert_eq!(calls, format!("{0} for-{0}\n", agent.pid));
    let stopped = observer.stop();
    assert_eq!(
        stopped.counter("varta_recovery_outcomes_total{outcome=\"spawned\"}"),
        1
    );
    assert_eq!(
        stopped.counter("varta_recovery_outcomes_total{outcome=\"reaped_zero\"}"),
        1
    );
}

#[test]
fn a_second_stall_within_the_debounce_is_recovered_later_not_never() {
    let flags = [
        "--threshold-ms=200",
        "--recovery-exec=true {pid}",
        "--recovery-debounce-ms=4000",
    ];
    let observer = Observer::start(&flags);
    let mut agent = joined(&observer);
    let first = observer.wait_for("recover", has_outcome("spawned"));
    observer.wait_for("recover", has_outcome("reaped_zero"));
    agent.tell("beat self 2");
    observer.wait_for_pid("return", agent.pid);
    observer.wait_for_pid("stall", agent.pid);
    observer.wait_for("recover", has_outcome("debounced"));
    let second = observer.wait_for("recover", has_outcome("spawned"));
    // A line may be written a little after its command was started.
    let apart_ms = (second.ts_ns - first.ts_ns) / 1_000_000;
    assert!(apart_ms > 3_000, "{apart_ms} ms after the first one");
    observer.stop();
}

#[test]
fn a_recovery_command_that_takes_too_long_is_killed() {
    let flags = [
        "--threshold-ms=200",
        "--recovery-exec=sleep 600",
        "--recovery-timeout-ms=100",
        "--recovery-debounce-ms=60000",
    ];
    let observer = Observer::start(&flags);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    agent.signal(Signal::STOP);
    observer.wait_for("recover", |line| line.text("outcome") == Some("killed"));
    observer.stop();
}

#[test]
fn a_running_recovery_command_does_not_outlive_the_observer() {
    let flags = ["--threshold-ms=200", "--recovery-exec=sleep 600"];
    let observer = Observer::start(&flags);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    agent.signal(Signal::STOP);
    let spawned = observer.wait_for("recover", |line| line.has("child_pid"));
    let child: u32 = spawned.number("child_pid").unwrap();
    observer.stop();
    assert!(!fs::exists(format!("/proc/{child}")).unwrap());
}

#[test]
fn the_event_file_holds_every_beat_in_six_columns() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.tsv");
    let flag = format!("--export-file={}", file.display());
    let flags = ["--threshold-ms=200", &flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    // Read at once, before any agent can stall.
    observer.signal(Signal::STOP);
    for nonce in 1..=3 {
        observer.send(&frame(nonce));
    }
    observer.send(&frame_of(1, 9));
    observer.send(&frame_of(std::process::id() + 1, 9));
    observer.signal(Signal::CONT);
    let rows = rows_when(&file, |rows| rows.iter().any(|row| row[1] == "stall"));
    assert!(rows.iter().all(|row| row.len() == 6), "{rows:?}");
    let of_kind = |kind: &str| -> Vec<_> {
        let rows = rows.iter().filter(|row| row[1] == kind);
        rows.map(|row| row[2..].join(" ")).collect()
    };
    let pid = std::process::id();
    let beats: Vec<_> = (1..=3).map(|nonce| format!("{pid} {nonce} ok 7")).collect();
    assert_eq!(of_kind("beat"), beats);
    assert_eq!(of_kind("join"), [format!("{pid} 1 ok 7")]);
    assert_eq!(of_kind("stall"), [format!("{pid} 3 stall -")]);
    assert_eq!(of_kind("decode"), ["- - - BadPid(1)"]);
    assert_eq!(
        of_kind("mismatch"),
        [format!("{} - - auth_failure", pid + 1)]
    );
    let times: Vec<u64> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
    assert!(times.is_sorted());
}

#[test]
fn the_event_file_holds_no_beats_when_only_changes_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.tsv");
    let flag = format!("--export-file={}", file.display());
    let flags = ["--threshold-ms=2000", "--export-events=changes", &flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    let mut agent = joined(&observer);
    observer.wait_for_pid("stall", agent.pid);
    agent.tell("beat self 2");
    agent.leave(0);
    let rows = rows_when(&file, |rows| rows.iter().any(|row| row[1] == "exit"));
    // A busy machine makes gaps.
    let rows: Vec<_> = rows.iter().filter(|row| row[1] != "gap").collect();
    let kinds: Vec<_> = rows.iter().map(|row| row[1].as_str()).collect();
    assert_eq!(kinds, ["join", "stall", "return", "exit"]);
    assert_eq!(rows[3][4..], ["left", "code=0"]);
}

#[test]
fn the_event_file_is_opened_anew_on_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.tsv");
    let moved = directory.path().join("events.tsv.1");
    let flag = format!("--export-file={}", file.display());
    let flags = ["--threshold-ms=60000", &flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    let has_beat = |rows: &[Vec<String>]| rows.iter().any(|row| row[1] == "beat");
    observer.send(&frame(1));
    rows_when(&file, has_beat);
    observer.signal(Signal::HUP);
    observer.wait_for("notice", |line| line.msg.contains("SIGHUP"));
    fs::rename(&file, &moved).unwrap();
    observer.signal(Signal::HUP);
    observer.wait_for("notice", |line| line.msg.contains("SIGHUP"));
    observer.send(&frame(2));
    rows_when(&file, has_beat);
    assert_eq!(
        fs::read_to_string(&moved)
            .unwrap()
            .matches("\tbeat\t")
            .count(),
        1
    );
}

#[test]
fn a_full_disk_costs_one_log_line_and_tears_no_row() {
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(&disk)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: this user may not mount a small disk");
        return;
    }
    struct Unmount(std::path::PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(disk.clone());
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![0; 8192]).unwrap();
    let file = disk.join("events.tsv");
    let flag = format!("--export-file={}", file.display());
    let flags = ["--threshold-ms=60000", &flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    let beats = 600;
    for nonce in 1..=beats {
        observer.send(&frame(nonce));
    }
    let full = |line: &LogLine| line.level == "error" && line.msg.contains("events.tsv");
    observer.wait_for("notice", full);
    rows_when(&file, |rows| rows.iter().all(|row| row.len() == 6));
    fs::remove_file(&ballast).unwrap();
    Command::new("mount")
        .args(["-o", "remount,size=1m"])
        .arg(&disk)
        .status()
        .unwrap();
    observer.wait_for("notice", |line| line.msg.contains("written again"));
    let rows = rows_when(&file, |rows| {
        rows.iter().any(|row| row[3] == beats.to_string())
    });
    let nonces: Vec<u64> = rows
        .iter()
        .filter(|row| row[1] == "beat")
        .map(|row| row[3].parse().unwrap())
        .collect();
    assert_eq!(
        nonces,
        (1..=beats).collect::<Vec<_>>(),
        "none lost, none twice"
    );
    let stopped = observer.stop();
    let errors = stopped.lines.iter().filter(|line| full(line)).count();
    assert_eq!(errors, 1);
}

#[test]
fn agents_find_their_way_back_after_the_observer_was_killed() {
    let mut first = Observer::start(&["--threshold-ms=60000"]);
    let agent = AgentProcess::start(&first.socket);
    first.wait_for_pid("join", agent.pid());
    first.kill();
    assert!(first.socket.exists(), "a killed observer leaves its socket");
    let directory = std::mem::replace(&mut first.directory, tempfile::tempdir().unwrap());
    let second = Observer::start_in(directory, &["--threshold-ms=60000"], |command| command);
    second.wait_for_pid("join", agent.pid());
}

#[test]
fn one_clear_line_says_why_the_observer_cannot_start() {
    let observer = Observer::start(&[]);
    let live = observer.socket.to_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let file = path("file");
    fs::write(&file, b"precious").unwrap();
    let free = path("free.sock");
    let long = path(&"x".repeat(150));
    let orphan = path("missing/varta.sock");
    for (flags, words) in [
        (&["--socket", live][..], &[live, "another observer"][..]),
        (&["--socket", &file], &[&file, "not a socket"]),
        (&["--socket", &long], &["bytes long", "--socket"]),
        (
            &["--socket", &orphan],
            &[&orphan, "directory does not exist"],
        ),
        (
            &["--socket", "/proc/varta.sock"],
            &["/proc/varta.sock", "cannot listen"],
        ),
        (
            &["--socket", &free, "--export-file", &orphan],
            &["--export-file", &orphan],
        ),
    ] {
        let (status, text) = refused_start(flags);
        assert_eq!(status.code(), Some(1), "{flags:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{flags:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(!fs::exists(&free).unwrap(), "a socket was left behind");
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    observer.stop();
}

#[test]
fn an_unusable_command_line_is_answered_in_three_lines_with_exit_code_2() {
    for flags in [
        &["--treshold-ms=1"][..],
        &["--threshold-ms", "soon"],
        &["extra"],
    ] {
        let (status, text) = refused_start(flags);
        assert_eq!(status.code(), Some(2), "{text}");
        assert!(text.lines().count() <= 3, "{text}");
    }
}

#[test]
fn a_recovery_command_that_cannot_be_run_is_an_unusable_command_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    for (command, word) in [
        ("/no/such/program {pid}", "/no/such/program"),
        (file, file),
        (" ", "empty"),
    ] {
        let (status, text) = refused_start(&["--recovery-exec", command]);
        assert_eq!(status.code(), Some(2), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.contains("--recovery-exec: ") && text.contains(word),
            "{text}"
        );
    }
}

#[test]
fn without_any_flag_it_listens_in_the_runtime_directory() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("runtime");
    let mut child = Command::new(env!("CARGO_BIN_EXE_varta-watch"))
        .env("RUNTIME_DIRECTORY", &runtime)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let socket = runtime.join("varta.sock");
    let until = std::time::Instant::now() + support::PATIENCE;
    while UnixDatagram::unbound().unwrap().connect(&socket).is_err() {
        assert!(std::time::Instant::now() < until, "nobody listens");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal_pid(child.id(), Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn it_stops_by_itself_when_its_time_is_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let (status, text) = refused_start(&[
        "--socket",
        socket.to_str().unwrap(),
        "--shutdown-after-secs=0",
    ]);
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("listens on"), "the banner: {text}");
}

#[test]
fn a_log_nobody_reads_does_not_stop_the_observer() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("varta.sock");
    let file = directory.path().join("events.tsv");
    let mut child = Command::new(env!("CARGO_BIN_EXE_varta-watch"))
        .args(["--threshold-ms=60000", "--max-beat-rate=0", "--socket"])
        .arg(&socket)
        .arg("--export-file")
        .arg(&file)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    let until = std::time::Instant::now() + support::PATIENCE;
    while sender.connect(&socket).is_err() {
        assert!(std::time::Instant::now() < until, "nobody listens");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Far more lines than a pipe holds: the counters, repeatedly.
    sender.send(&frame(1)).unwrap();
    for nonce in 2..=1_500 {
        signal_pid(child.id(), Signal::USR1);
        sender.send(&frame(nonce)).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
    rows_when(&file, |rows| rows.iter().any(|row| row[3] == "1500"));
    signal_pid(child.id(), Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_flood_of_beats_does_not_keep_it_from_judging_nor_from_stopping() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.tsv");
    let flag = format!("--export-file={}", file.display());
    let flags = ["--threshold-ms=300", &flag];
    let observer = Observer::start_in(directory, &flags, |command| command);
    let agent = AgentProcess::start(&observer.socket);
    observer.wait_for_pid("join", agent.pid());
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(&observer.socket).unwrap();
    let flood = std::thread::spawn(move || {
        // Each send waits for space in the queue, so the observer always has a datagram to read. Ends when the
        // observer does.
        for nonce in 1.. {
            if sender.send(&frame(nonce)).is_err() {
                return;
            }
        }
    });
    agent.signal(Signal::STOP);
    observer.wait_for_pid("stall", agent.pid());
    observer.wait_for_count(BEATS, 100);
    observer.stop();
    flood.join().unwrap();
}
