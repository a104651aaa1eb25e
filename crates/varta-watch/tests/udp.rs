//! Remote agents without encryption: any host can send their beats, and none for any other agent.

mod support;

use std::net::UdpSocket;
use std::time::Duration;

use rustix::process::Signal;
use support::LogLine;
use support::agents::{AgentProcess, Puppet};
use support::network::{
    Beating, JOINS, LEFT, OUT_OF_ORDER, PATIENT, PID, RETURNS, STALLS, Seal, Series, TABLE_FULL,
    TRUNCATED, last_frame, recovery_of, socket, socket_at, start_in_clear,
};
use support::{BEATS, frame, frame_of, refused_start, resealed};
use varta_vlp::PAYLOAD_GOODBYE;

const UNAUTHENTICATED: &str = "varta_recovery_refused_total{reason=\"unauthenticated_transport\"}";

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

fn series(pid: u32) -> Series {
    Series::new(Seal::Clear, pid, "")
}

fn is_from(source: &str) -> impl Fn(&LogLine) -> bool {
    move |line| line.text("source") == Some(source)
}

fn is_local(line: &LogLine) -> bool {
    line.text("source").is_none()
}

#[test]
fn an_agent_elsewhere_joins_stalls_comes_back_and_says_goodbye() {
    let observer = start_in_clear(&["--threshold-ms=500"]);
    let socket = socket_at("127.0.0.2");
    observer.hear(&socket, &frame_of(PID, 1));
    let join = observer.told("join", |_| true);
    assert_eq!(join.pid(), Some(PID));
    assert_eq!(join.text("source"), Some("127.0.0.2"));
    assert_eq!(join.text("transport"), Some("udp"));
    assert!(!join.has("uid") && !join.has("name") && !join.has("exe"));
    let stall = observer.told("stall", is_from("127.0.0.2"));
    assert_eq!((stall.pid(), stall.number("nonce")), (Some(PID), Some(1)));
    let last = [frame_of(PID, 2), last_frame(PID, PAYLOAD_GOODBYE, 1)];
    observer.hear_all(&socket, &last.map(Vec::from));
    observer.told("return", is_from("127.0.0.2"));
    let exit = observer.told("exit", is_from("127.0.0.2"));
    assert_eq!(exit.text("how"), Some("left"));
    observer.stop().assert_counters(&[
        (BEATS, 3),
        (JOINS, 1),
        (STALLS, 1),
        (RETURNS, 1),
        (LEFT, 1),
    ]);
}

#[test]
fn who_said_goodbye_elsewhere_is_no_stall_and_may_come_again() {
    let observer = start_in_clear(&["--threshold-ms=300"]);
    let socket = socket();
    let life = [frame_of(PID, 1), last_frame(PID, PAYLOAD_GOODBYE, 1)];
    observer.hear_all(&socket, &life.map(Vec::from));
    observer.told("exit", |_| true);
    assert_eq!(
        observer.count_within("stall", Duration::from_millis(700)),
        0
    );
    observer.hear(&socket, &frame_of(PID, 1));
    observer.stop().assert_counters(&[(JOINS, 2), (LEFT, 1)]);
}

#[test]
fn it_does_not_listen_in_clear_unless_that_was_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("varta.sock");
    let (status, text) = refused_start(&["--udp-port=0", "--socket", socket.to_str().unwrap()]);
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("--key-file"), "{text}");
    assert!(text.contains("--i-accept-plaintext-udp"), "{text}");
    assert!(!socket.exists());
}

#[test]
fn the_banner_warns_of_a_port_that_is_open_to_everybody() {
    let observer = start_in_clear(&[]);
    let start = observer.told("start", |_| true);
    let udp = start.text("udp").unwrap();
    let warning = format!("WARNING: plain UDP on {udp}");
    assert!(start.msg.contains(&warning), "{}", start.msg);
    assert!(udp.starts_with("0.0.0.0:"), "{udp}");
    observer.stop();
}

#[test]
fn it_listens_where_it_is_told_to() {
    let observer = start_in_clear(&["--udp-bind-addr=127.0.0.3", PATIENT]);
    assert_eq!(observer.udp().ip().to_string(), "127.0.0.3");
    observer.hear(&socket(), &frame_of(PID, 1));
    observer.told("join", |_| true);
}

#[test]
fn an_agent_is_heard_over_ipv6() {
    // Where there is none, it has no effect.
    let Ok(socket) = UdpSocket::bind("[::1]:0") else {
        return;
    };
    let observer = start_in_clear(&["--udp-bind-addr=::1", PATIENT]);
    observer.hear(&socket, &frame_of(PID, 1));
    observer.told("join", is_from("::1"));
}

#[test]
fn datagrams_of_other_lengths_are_counted_and_change_nothing() {
    let observer = start_in_clear(&[PATIENT]);
    let socket = socket();
    // From an unknown sender, and then from an agent.
    for nonce in [1, 2] {
        let before = observer.counters();
        for length in [0, 31, 33, 60, 64, 65, 1400] {
            let mut bytes = frame_of(PID, nonce).to_vec();
            bytes.resize(length, 0);
            observer.hear(&socket, &bytes);
        }
        observer.assert_gained(&before, &[(TRUNCATED, 7)]);
        observer.hear(&socket, &frame_of(PID, nonce));
    }
    observer
        .stop()
        .assert_counters(&[(TRUNCATED, 14), (JOINS, 1), (BEATS, 2)]);
}

#[test]
fn what_is_no_valid_frame_is_counted_by_kind_and_changes_nothing() {
    let observer = start_in_clear(&[PATIENT]);
    let socket = socket();
    observer.hear(&socket, &frame_of(PID, 1));
    let altered = |place: usize, bytes: &[u8]| {
        let mut frame = frame_of(PID, 2);
        frame[place..place + bytes.len()].copy_from_slice(bytes);
        resealed(frame)
    };
    let mut bad_crc = frame_of(PID, 2);
    bad_crc[30] ^= 1;
    let cases = [
        ("bad_magic", altered(0, b"AV")),
        ("bad_version", altered(2, &[3])),
        ("bad_crc", bad_crc),
        ("bad_status", altered(3, &[4])),
        ("stall_on_wire", altered(3, &[3])),
        ("bad_pid", altered(4, &[1, 0, 0, 0])),
        ("bad_pid", altered(4, &[0; 4])),
        ("bad_timestamp", altered(8, &[255; 8])),
        ("bad_nonce", altered(16, &[255; 8])),
    ];
    for (kind, bytes) in cases {
        let before = observer.counters();
        observer.hear(&socket, &bytes);
        let series = format!("varta_decode_errors_total{{kind=\"{kind}\"}}");
        observer.assert_gained(&before, &[(&series, 1)]);
    }
    observer.stop().assert_counters(&[(BEATS, 1), (JOINS, 1)]);
}

#[test]
fn a_pid_that_no_process_of_this_host_can_have_is_welcome() {
    let observer = start_in_clear(&[PATIENT]);
    for pid in [2, 4_194_305, u32::MAX] {
        observer.hear(&socket(), &frame_of(pid, 1));
        let join = observer.told("join", |line| line.pid() == Some(pid));
        assert!(is_from("127.0.0.1")(&join));
    }
    observer.stop().assert_counters(&[(JOINS, 3), (BEATS, 3)]);
}

#[test]
fn an_old_beat_is_refused_while_newer_ones_come() {
    let observer = start_in_clear(&[PATIENT]);
    let socket = socket();
    observer.hear(&socket, &frame_of(PID, 10));
    let before = observer.counters();
    for nonce in [10, 9, 1] {
        observer.hear(&socket, &frame_of(PID, nonce));
    }
    observer.assert_gained(&before, &[(OUT_OF_ORDER, 3)]);
    observer.hear(&socket, &frame_of(PID, 11));
    observer.assert_gained(&before, &[(OUT_OF_ORDER, 3), (BEATS, 1)]);
}

#[test]
fn the_beats_of_a_local_agent_do_not_count_for_its_namesake_elsewhere() {
    let observer = start_in_clear(&["--threshold-ms=2000"]);
    let local = AgentProcess::start(&observer.socket);
    observer.told("join", is_local);
    let remote = Beating::start(&observer, &socket(), series(local.pid()));
    observer.told("join", is_from("127.0.0.1"));
    remote.stop();
    let stall = observer.told("stall", |_| true);
    assert!(is_from("127.0.0.1")(&stall), "{}", stall.msg);
    observer.stop().assert_counters(&[(JOINS, 2), (STALLS, 1)]);
}

#[test]
fn the_beats_of_an_agent_elsewhere_do_not_count_for_its_local_namesake() {
    let observer = start_in_clear(&["--threshold-ms=2000"]);
    let local = AgentProcess::start(&observer.socket);
    observer.told("join", is_local);
    let remote = Beating::start(&observer, &socket(), series(local.pid()));
    observer.told("join", is_from("127.0.0.1"));
    local.signal(Signal::STOP);
    let stall = observer.told("stall", |_| true);
    assert!(is_local(&stall), "{}", stall.msg);
    local.signal(Signal::CONT);
    observer.told("return", is_local);
    remote.stop();
    observer.stop().assert_counters(&[(JOINS, 2), (STALLS, 1)]);
}

#[test]
fn the_last_frame_of_a_namesake_elsewhere_does_nothing_to_a_local_agent() {
    let observer = start_in_clear(&[PATIENT]);
    let (socket, own) = (socket(), std::process::id());
    observer.send(&frame(1));
    observer.told("join", is_local);
    for (timestamp, payload) in [(1, 0), (2, PAYLOAD_GOODBYE)] {
        observer.hear(&socket, &last_frame(own, payload, timestamp));
    }
    let exit = observer.told("exit", |_| true);
    assert!(is_from("127.0.0.1")(&exit), "{}", exit.msg);
    observer.send(&frame(2));
    observer.wait_for_count(BEATS, 4);
    // One join each: the local agent is unchanged.
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (LEFT, 1), ("varta_session_restarts_total", 0)]);
}

#[test]
fn the_end_of_a_local_agent_does_nothing_to_its_namesake_elsewhere() {
    let observer = start_in_clear(&[PATIENT]);
    let mut local = Puppet::start(&observer.socket);
    let (socket, pid) = (socket(), local.pid);
    observer.hear(&socket, &frame_of(pid, 1));
    local.tell("beat self 1");
    observer.told("join", is_local);
    local.leave(3);
    let exit = observer.told("exit", |_| true);
    assert!(is_local(&exit), "{}", exit.msg);
    let before = observer.counters();
    observer.hear(&socket, &frame_of(pid, 2));
    observer.assert_gained(&before, &[(BEATS, 1)]);
}

#[test]
fn agents_elsewhere_that_fill_their_table_take_no_room_from_local_ones() {
    let observer = start_in_clear(&[PATIENT, "--tracker-capacity=4"]);
    let socket = socket();
    for pid in 100..120 {
        observer.hear(&socket, &frame_of(pid, 1));
    }
    let before = observer.counters();
    assert_eq!((before[JOINS], before[TABLE_FULL]), (4, 16));
    let mut locals: Vec<_> = (0..4).map(|_| Puppet::start(&observer.socket)).collect();
    for local in &mut locals {
        local.tell("beat self 1");
        observer.told("join", |line| line.pid() == Some(local.pid));
    }
    observer.hear(&socket, &frame_of(103, 2));
    observer.assert_gained(&before, &[(JOINS, 4), (BEATS, 5)]);
}

#[test]
fn an_agent_elsewhere_takes_no_slot_of_a_local_one_that_is_silent() {
    let observer = start_in_clear(&["--threshold-ms=200", "--tracker-capacity=2"]);
    let socket = socket();
    let mut locals: Vec<_> = (0..2).map(|_| Puppet::start(&observer.socket)).collect();
    for local in &mut locals {
        local.tell("beat self 1");
        observer.told("stall", |line| line.pid() == Some(local.pid));
    }
    // Once a new local agent can be admitted, silent ones are evicted, and only for it.
    let mut newcomer = Puppet::start(&observer.socket);
    let mut tries = 0;
    while observer.seen_of("join", newcomer.pid) == 0 {
        tries += 1;
        let frames = (100..104).map(|pid| frame_of(pid, tries).to_vec());
        observer.hear_all(&socket, &frames.collect::<Vec<_>>());
        newcomer.tell(&format!("beat self {tries}"));
        observer.count_within("join", Duration::from_millis(50));
    }
    let stopped = observer.stop();
    stopped.assert_counters(&[("varta_tracker_evicted_total", 1), (JOINS, 5)]);
}

#[test]
fn a_recovery_command_is_not_run_for_an_agent_that_nobody_vouches_for() {
    let observer = start_in_clear(&["--threshold-ms=300", "--recovery-exec=true {pid}"]);
    observer.hear(&socket(), &frame_of(PID, 1));
    let refusal = observer.told("recover", |_| true);
    let outcome = refusal.text("outcome");
    assert_eq!(outcome, Some("refused_unauthenticated_transport"));
    assert!(is_from("127.0.0.1")(&refusal));
    observer.stop().assert_counters(&[
        (UNAUTHENTICATED, 1),
        (
            "varta_recovery_outcomes_total{outcome=\"refused_unauthenticated_transport\"}",
            1,
        ),
        ("varta_recovery_outcomes_total{outcome=\"spawned\"}", 0),
    ]);
}

#[test]
fn a_recovery_command_is_run_if_that_was_accepted_by_either_name_of_the_flag() {
    for flag in [
        "--allow-recovery-over-plain-udp",
        "--plaintext-udp-i-accept-recovery-on-unauthenticated-transport",
    ] {
        let (target, outcomes) = recovery_of(start_in_clear, &[flag], &frame_of(PID, 1));
        assert_eq!(target.as_deref(), Some("4242 127.0.0.1"), "{flag}");
        assert_eq!(outcomes, ["spawned", "reaped_zero"]);
    }
}

#[test]
fn leave_to_recover_agents_under_keys_is_none_for_those_in_clear() {
    let flags = ["--allow-recovery-over-secure-udp"];
    let (target, outcomes) = recovery_of(start_in_clear, &flags, &frame_of(PID, 1));
    assert_eq!(target, None);
    assert_eq!(outcomes, ["refused_unauthenticated_transport"]);
}

#[test]
fn a_local_agent_is_recovered_although_those_elsewhere_are_not() {
    let observer = start_in_clear(&["--threshold-ms=300", "--recovery-exec=true {pid}"]);
    observer.send(&frame(1));
    let end = |line: &LogLine| line.text("outcome") == Some("reaped_zero");
    observer.told("recover", end);
    observer.stop().assert_counters(&[(UNAUTHENTICATED, 0)]);
}
