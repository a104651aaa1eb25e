//! Remote agents that a key authenticates: datagrams that open, and those that do not.

mod support;

use std::time::Duration;

use support::LogLine;
use support::agents::AgentProcess;
use support::network::{
    Beating, JOINS, LEFT, MASTER, MASTER_FILE, PATIENT, PID, REPLAYED, RETURNS, SEALS, SHARED,
    SHARED_FILE, STALLS, Seal, Series, TRUNCATED, UNDECRYPTABLE, flag, hex, key, last_frame,
    recovery_of, sealed_by_hand, socket, socket_at, start_sealed, write_key,
};
use support::{BEATS, Observer, frame_of, resealed};
use varta_vlp::PAYLOAD_GOODBYE;
use varta_vlp::secure::AgentKey;
use varta_vlp::secure::known_answers::{seal_agent, seal_shared};

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

fn shared(name: &str) -> Series {
    Series::new(Seal::Shared(SHARED), PID, name)
}

fn master(pid: u32, name: &str) -> Series {
    Series::new(Seal::Master(MASTER), pid, name)
}

/// An observer with the key files of these flags and no others; each holds these keys.
fn start_with(files: &[(&str, &[u8])]) -> Observer {
    let directory = tempfile::tempdir().unwrap();
    let key_flags = files.iter().map(|(name, bytes)| {
        let keys: Vec<String> = bytes.iter().map(|byte| hex(*byte)).collect();
        let path = write_key(directory.path(), &name[2..], keys.join("\n"));
        flag(name, &path)
    });
    let key_flags: Vec<String> = key_flags.collect();
    let key_flags = key_flags.iter().map(String::as_str);
    let flags: Vec<&str> = [PATIENT, "--udp-port=0"]
        .into_iter()
        .chain(key_flags)
        .collect();
    Observer::start_in(directory, &flags, |command| command)
}

/// Fails unless these are refused because no key has sealed them, without any other effect.
fn assert_no_key_opens(observer: &Observer, datagrams: &[Vec<u8>]) {
    let before = observer.counters();
    observer.hear_all(&socket(), datagrams);
    observer.assert_gained(&before, &[(UNDECRYPTABLE, datagrams.len() as u64)]);
}

#[test]
fn an_agent_under_a_key_joins_stalls_comes_back_and_says_goodbye() {
    for seal in SEALS {
        let observer = start_sealed(&["--threshold-ms=500"]);
        let socket = socket_at("127.0.0.2");
        let mut agent = Series::new(seal, PID, "life");
        observer.hear(&socket, &agent.beat());
        let join = observer.told("join", |_| true);
        assert_eq!(join.pid(), Some(PID));
        assert_eq!(join.text("source"), Some("127.0.0.2"));
        assert_eq!(join.text("transport"), Some("secure_udp"));
        observer.told("stall", |line| line.text("source") == join.text("source"));
        let last = [agent.beat(), agent.last(PAYLOAD_GOODBYE, 1)];
        observer.hear_all(&socket, &last);
        observer.told("return", |line| line.text("source") == join.text("source"));
        let exit = observer.told("exit", |_| true);
        assert_eq!(exit.text("how"), Some("left"), "{seal:?}");
        observer.stop().assert_counters(&[
            (BEATS, 3),
            (JOINS, 1),
            (STALLS, 1),
            (RETURNS, 1),
            (LEFT, 1),
        ]);
    }
}

#[test]
fn agents_under_shared_and_master_keys_are_heard_side_by_side() {
    let observer = start_sealed(&[PATIENT]);
    let agents = [shared("a"), master(PID, "a"), master(PID + 1, "a")];
    for mut agent in agents {
        observer.hear_all(&socket(), &agent.beats(3));
    }
    // With equal pids, and the same prefix and counters: other keys make other agents.
    observer
        .stop()
        .assert_counters(&[(JOINS, 3), (BEATS, 9), (REPLAYED, 0), (UNDECRYPTABLE, 0)]);
}

#[test]
fn with_keys_it_listens_on_loopback_and_says_so() {
    let observer = start_sealed(&[PATIENT]);
    let start = observer.told("start", |_| true);
    let udp = start.text("udp").unwrap();
    assert!(udp.starts_with("127.0.0.1:"), "{udp}");
    assert!(start.msg.contains(&format!("encrypted UDP on {udp}")));
    for byte in [SHARED, MASTER] {
        assert!(!start.msg.contains(&hex(byte)));
    }
}

#[test]
fn a_pid_that_no_process_of_this_host_can_have_is_welcome_under_a_key() {
    let observer = start_sealed(&[PATIENT]);
    for seal in SEALS {
        let mut agent = Series::new(seal, u32::MAX, "far");
        observer.hear(&socket(), &agent.beat());
    }
    observer.stop().assert_counters(&[(JOINS, 2), (BEATS, 2)]);
}

#[test]
fn datagrams_of_other_lengths_are_counted_and_change_nothing() {
    let observer = start_sealed(&[PATIENT]);
    let mut agent = shared("a");
    // From an unknown sender, and then from an agent. One of 32 bytes is a frame without encryption.
    for nonce in [1, 2] {
        let before = observer.counters();
        observer.hear(&socket(), &frame_of(PID, nonce));
        let next = agent.beat();
        for length in [0, 31, 33, 59, 61, 63, 65, 1400] {
            let mut bytes = next.clone();
            bytes.resize(length, 0);
            observer.hear(&socket(), &bytes);
        }
        observer.assert_gained(&before, &[(TRUNCATED, 9)]);
        observer.hear(&socket(), &next);
    }
    observer
        .stop()
        .assert_counters(&[(TRUNCATED, 18), (JOINS, 1), (BEATS, 2)]);
}

#[test]
fn no_bit_of_an_envelope_can_be_changed() {
    for seal in SEALS {
        let observer = start_sealed(&[PATIENT]);
        let mut agent = Series::new(seal, PID, "bits");
        observer.hear(&socket(), &agent.beat());
        let original = agent.beat();
        let bits = 0..8 * original.len();
        let altered = bits.map(|bit| {
            let mut bytes = original.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        assert_no_key_opens(&observer, &altered.collect::<Vec<_>>());
        let before = observer.counters();
        observer.hear(&socket(), &original);
        observer.assert_gained(&before, &[(BEATS, 1)]);
    }
}

#[test]
fn an_envelope_cannot_be_passed_off_as_that_of_another_pid() {
    let observer = start_sealed(&[PATIENT]);
    let mut victim = master(PID, "a");
    let mut other = master(PID + 1, "b");
    observer.hear(&socket(), &victim.beat());
    observer.hear(&socket(), &other.beat());
    let original = other.beat();
    for pid in [PID, PID + 2, 0, u32::MAX] {
        let altered = [&pid.to_le_bytes(), &original[4..]].concat();
        assert_no_key_opens(&observer, &[altered]);
    }
    let before = observer.counters();
    observer.hear(&socket(), &original);
    observer.hear(&socket(), &victim.beat());
    observer.assert_gained(&before, &[(BEATS, 2)]);
}

#[test]
fn the_shared_key_opens_no_envelope_that_names_a_pid() {
    let frame = frame_of(PID, 1);
    let prefix = *b"disguise";
    let with_pid = AgentKey::from_derived(key(SHARED), PID);
    let with_pid = seal_agent(&with_pid, prefix, 1, &frame).unwrap();
    // As published observers accepted it: the unencrypted pid is not proved.
    let without = seal_shared(&key(SHARED), prefix, 1, &frame).unwrap();
    let without = [&PID.to_le_bytes(), without.as_bytes()].concat();
    let disguised = [with_pid.as_bytes().to_vec(), without];
    for files in [
        &[("--key-file", &[SHARED][..])][..],
        &[("--key-file", &[SHARED]), ("--master-key-file", &[MASTER])],
        &[("--accepted-key-file", &[SHARED, MASTER])],
    ] {
        assert_no_key_opens(&start_with(files), &disguised);
    }
}

#[test]
fn a_master_key_itself_seals_nothing() {
    let observer = start_sealed(&[PATIENT]);
    let frame = frame_of(PID, 1);
    let prefix = *b"as it is";
    let agent_key = AgentKey::from_derived(key(MASTER), PID);
    let derived = AgentKey::derive(&key(MASTER), PID);
    let datagrams = [
        seal_agent(&agent_key, prefix, 1, &frame),
        seal_shared(&key(MASTER), prefix, 1, &frame),
        seal_shared(derived.key(), prefix, 1, &frame),
    ];
    let datagrams = datagrams.map(|envelope| envelope.unwrap().as_bytes().to_vec());
    assert_no_key_opens(&observer, &datagrams);
}

#[test]
fn a_frame_of_another_pid_than_its_envelope_names_is_refused() {
    let observer = start_sealed(&[PATIENT]);
    let prefix = *b"two pids";
    let agent_key = AgentKey::derive(&key(MASTER), PID);
    let by_hand = |pid| {
        let clear = PID.to_le_bytes();
        let sealed = sealed_by_hand(agent_key.key(), &clear, prefix, 1, &frame_of(pid, 1));
        [&clear, &sealed[..]].concat()
    };
    assert_no_key_opens(&observer, &[by_hand(PID + 1), by_hand(2)]);
    // The test's own sealing works.
    let before = observer.counters();
    observer.hear(&socket(), &by_hand(PID));
    observer.assert_gained(&before, &[(BEATS, 1), (JOINS, 1)]);
}

#[test]
fn who_holds_a_master_key_only_opens_nothing_under_shared_keys() {
    let observer = start_with(&[("--master-key-file", &[MASTER])]);
    assert_no_key_opens(&observer, &shared("a").beats(3));
    observer.hear(&socket(), &master(PID, "a").beat());
    observer.stop().assert_counters(&[(BEATS, 1), (JOINS, 1)]);
}

#[test]
fn who_holds_shared_keys_only_opens_nothing_under_a_master_key() {
    let observer = start_with(&[("--key-file", &[SHARED])]);
    assert_no_key_opens(&observer, &master(PID, "a").beats(3));
    observer.hear(&socket(), &shared("a").beat());
    observer.stop().assert_counters(&[(BEATS, 1), (JOINS, 1)]);
}

#[test]
fn what_is_under_another_key_is_refused() {
    let observer = start_sealed(&[PATIENT]);
    for seal in [Seal::Shared(1), Seal::Master(1), Seal::Master(SHARED)] {
        assert_no_key_opens(&observer, &Series::new(seal, PID, "a").beats(2));
    }
}

#[test]
fn what_is_sealed_and_no_valid_frame_is_counted_as_such_and_changes_nothing() {
    let observer = start_sealed(&[PATIENT]);
    let altered = |place: usize, byte: u8| {
        let mut frame = frame_of(PID, 1);
        frame[place] = byte;
        frame
    };
    let other_pid = |pid: u32| {
        let mut frame = frame_of(PID, 1);
        frame[4..8].copy_from_slice(&pid.to_le_bytes());
        resealed(frame)
    };
    let cases = [
        ("bad_crc", altered(24, 99)),
        ("stall_on_wire", resealed(altered(3, 3))),
        ("bad_pid", other_pid(0)),
        ("bad_pid", other_pid(1)),
    ];
    for (kind, frame) in cases {
        let before = observer.counters();
        observer.hear(&socket(), &shared("a").put(&frame));
        let pid = u32::from_le_bytes(frame[4..8].try_into().unwrap());
        observer.hear(&socket(), &master(pid, "a").put(&frame));
        let series = format!("varta_decode_errors_total{{kind=\"{kind}\"}}");
        observer.assert_gained(&before, &[(&series, 2)]);
    }
    // None of it has used up the first counter of these sessions.
    observer.hear(&socket(), &shared("a").beat());
    observer.hear(&socket(), &master(PID, "a").beat());
    observer.stop().assert_counters(&[(BEATS, 2), (JOINS, 2)]);
}

#[test]
fn accepted_keys_alone_are_enough() {
    let observer = start_with(&[("--accepted-key-file", &[SHARED])]);
    observer.hear_all(&socket(), &shared("a").beats(2));
    observer.stop().assert_counters(&[(BEATS, 2), (JOINS, 1)]);
}

#[test]
fn every_one_of_several_keys_opens() {
    let accepted: Vec<u8> = (1..=14).collect();
    let observer = start_with(&[
        ("--key-file", &[SHARED]),
        ("--accepted-key-file", &accepted),
        ("--master-key-file", &[MASTER]),
    ]);
    for byte in [&accepted[..], &[SHARED]].concat() {
        let mut agent = Series::new(Seal::Shared(byte), u32::from(byte) + 1, "many");
        observer.hear(&socket(), &agent.beat());
    }
    observer.hear(&socket(), &master(PID, "many").beat());
    observer
        .stop()
        .assert_counters(&[(JOINS, 16), (BEATS, 16), (UNDECRYPTABLE, 0)]);
}

#[test]
fn the_same_pid_under_two_keys_is_two_agents() {
    let observer = start_with(&[("--accepted-key-file", &[1, 2])]);
    for byte in [1, 2] {
        let mut agent = Series::new(Seal::Shared(byte), PID, "same");
        observer.hear_all(&socket(), &agent.beats(2));
    }
    observer
        .stop()
        .assert_counters(&[(JOINS, 2), (BEATS, 4), (REPLAYED, 0)]);
}

#[test]
fn an_agent_under_a_key_does_nothing_to_its_local_namesake() {
    let observer = start_sealed(&["--threshold-ms=2000"]);
    let local = AgentProcess::start(&observer.socket);
    let is_local = |line: &LogLine| line.text("source").is_none();
    observer.told("join", is_local);
    for seal in SEALS {
        let mut namesake = Series::new(seal, local.pid(), "namesake");
        let life = [
            namesake.beat(),
            namesake.last(0, 1),
            namesake.last(PAYLOAD_GOODBYE, 2),
        ];
        observer.hear_all(&socket(), &life);
        let remote = Beating::start(&observer, &socket(), namesake);
        observer.count_within("stall", Duration::from_millis(700));
        remote.stop();
        let is_remote = |line: &LogLine| line.text("source").is_some();
        observer.wait_for("stall", is_remote);
    }
    let stopped = observer.stop();
    let about_local = stopped.lines.iter().filter(|line| is_local(line));
    let local_events = about_local.filter(|line| line.pid() == Some(local.pid()));
    let events: Vec<&str> = local_events.map(|line| line.event.as_str()).collect();
    assert_eq!(events, ["join"], "nothing befell it");
    stopped.assert_counters(&[(JOINS, 5), (STALLS, 2), (LEFT, 2)]);
}

#[test]
fn a_last_frame_is_heard_first_from_an_agent_that_never_beat() {
    let observer = start_sealed(&["--threshold-ms=300"]);
    for seal in SEALS {
        let mut agent = Series::new(seal, PID, "crash");
        let frame = last_frame(PID, 0, 1);
        observer.hear(&socket(), &agent.put(&frame));
    }
    observer.wait_for("stall", |_| true);
    observer.wait_for("stall", |_| true);
    observer.stop().assert_counters(&[(JOINS, 2), (BEATS, 2)]);
}

#[test]
fn a_recovery_command_is_not_run_for_an_agent_under_a_key_unless_that_was_accepted() {
    let plain = "--allow-recovery-over-plain-udp";
    for (seal, flags) in [(SEALS[0], &[][..]), (SEALS[1], &[plain][..])] {
        let beat = Series::new(seal, PID, "r").beat();
        let (target, outcomes) = recovery_of(start_sealed, flags, &beat);
        assert_eq!(target, None);
        assert_eq!(outcomes, ["refused_unauthenticated_transport"]);
    }
}

#[test]
fn a_recovery_command_is_run_if_that_was_accepted_by_either_name_of_the_flag() {
    for (seal, flag) in [
        (SEALS[0], "--allow-recovery-over-secure-udp"),
        (
            SEALS[1],
            "--secure-udp-i-accept-recovery-on-unauthenticated-transport",
        ),
    ] {
        let beat = Series::new(seal, PID, "r").beat();
        let (target, outcomes) = recovery_of(start_sealed, &[flag], &beat);
        assert_eq!(target.as_deref(), Some("4242 127.0.0.1"), "{flag}");
        assert_eq!(outcomes, ["spawned", "reaped_zero"]);
    }
}

#[test]
fn no_key_is_ever_told() {
    let observer = start_sealed(&[PATIENT]);
    observer.hear(&socket(), &shared("a").beat());
    observer.hear(&socket(), &[7; 60]);
    let directory = observer.directory.path();
    assert!(directory.join(SHARED_FILE).exists() && directory.join(MASTER_FILE).exists());
    let stopped = observer.stop();
    for byte in [SHARED, MASTER] {
        assert!(
            !stopped
                .lines
                .iter()
                .any(|line| line.msg.contains(&hex(byte)))
        );
    }
}

#[test]
fn a_flood_of_garbage_makes_no_local_agent_stall() {
    let observer = start_sealed(&["--threshold-ms=2000"]);
    let local = AgentProcess::start(&observer.socket);
    observer.told("join", |_| true);
    let (socket, to) = (socket(), observer.udp());
    let until = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < until {
        for _ in 0..1_000 {
            // A flood expects a full queue.
            let _ = socket.send_to(&[7; 60], to);
        }
    }
    // A silence would have been judged by now.
    let beats = observer.counters()[BEATS];
    observer.wait_for_count(BEATS, beats + 20);
    let stopped = observer.stop();
    assert_eq!(stopped.lines_of("stall", local.pid()).len(), 0);
    assert!(stopped.counter(UNDECRYPTABLE) > 1_000);
    stopped.assert_counters(&[(JOINS, 1), (STALLS, 0)]);
}
