//! What may come in or with a datagram besides a frame, and what becomes of it when descriptors run out.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::agents::AgentProcess;
use support::network::{NOISE, TRUNCATED};
use support::{
    BEATS, DESCRIPTORS_MAX, DISTRUST, Observer, PATIENCE, frame, send_with_descriptors,
    with_descriptor_limit,
};
use varta_watch::api::{LogEvent, LogLine};

const CLOSED: &str = "varta_descriptors_closed_total";
const CUT: &str = "varta_ctrl_truncated_total";
const JOINS: &str = "varta_observer_joins_total";
const UNWATCHED: &str = "varta_observer_exit_watch_failed_total";

/// Descriptors that the observer keeps from its agents at least.
const RESERVE: usize = 8;

/// Not a test: what the agents run.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

#[test]
fn datagrams_of_other_lengths_are_counted_and_change_nothing() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let sender = observer.connect();
    let lengths = [0, 31, 33, 59, 61, 65, 4096];
    // From a stranger, and then from an agent.
    for nonce in [1, 2] {
        for length in lengths {
            let mut bytes = frame(nonce).to_vec();
            bytes.resize(length, 0);
            sender.send(&bytes).unwrap();
        }
        observer.wait_for_count(TRUNCATED, 7 * nonce);
        std::thread::sleep(DISTRUST);
        sender.send(&frame(nonce)).unwrap();
        observer.wait_for_count(BEATS, nonce);
    }
    let mut counters = observer.stop().counters;
    // What a busy machine adds.
    counters.retain(|series, _| !NOISE.iter().any(|noise| series.starts_with(noise)));
    let expected = [(BEATS, 2), (JOINS, 1), (TRUNCATED, 14)];
    let expected = expected.map(|(series, count)| (series.to_owned(), count));
    assert_eq!(counters, BTreeMap::from(expected), "and nothing else");
}

/// Waits until the observer has no more descriptors open than before.
fn wait_for_descriptors(observer: &Observer, before: usize) {
    let until = Instant::now() + PATIENCE;
    while observer.open_descriptors() > before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(observer.open_descriptors(), before);
}

#[test]
fn descriptors_that_come_with_a_beat_are_closed_and_the_beat_counts() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    observer.send(&frame(1));
    observer.wait_for(LogEvent::Join, |_| true);
    let before = observer.open_descriptors();
    let sender = observer.connect();
    let counts = [1, 4, 64, DESCRIPTORS_MAX];
    for (nonce, count) in (2..).zip(counts) {
        send_with_descriptors(&sender, &frame(nonce), count);
    }
    observer.wait_for_count(BEATS, 1 + counts.len() as u64);
    wait_for_descriptors(&observer, before);
    observer.stop().assert_counters(&[(CLOSED, 322), (CUT, 0)]);
}

#[test]
fn descriptors_that_come_with_a_first_beat_are_closed_and_the_beat_counts() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let before = observer.open_descriptors();
    send_with_descriptors(&observer.connect(), &frame(1), DESCRIPTORS_MAX);
    let join = observer.wait_for_pid(LogEvent::Join, std::process::id());
    assert_eq!(join.fields.nonce, Some(1));
    // One more than before: the agent is held.
    wait_for_descriptors(&observer, before + 1);
    let stopped = observer.stop();
    stopped.assert_counters(&[(CLOSED, DESCRIPTORS_MAX as u64), (CUT, 0), (UNWATCHED, 0)]);
}

#[test]
fn no_descriptor_of_a_sender_reaches_a_recovery_command() {
    let directory = tempfile::tempdir().unwrap();
    let list = |name: &str| directory.path().join(format!("open.{name}"));
    let script = directory.path().join("recover");
    let target = list("$1");
    fs::write(
        &script,
        format!("ls /proc/self/fd > {}\n", target.display()),
    )
    .unwrap();
    let exec = format!("sh {} {{pid}}", script.display());
    let flags = [
        "--threshold-ms=300",
        "--max-beat-rate=0",
        "--mass-stall-share=off",
        "--recovery-exec",
        &exec,
    ];
    let observer = Observer::start(&flags);
    let agents: Vec<_> = (0..8)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    for _ in &agents {
        observer.wait_for(LogEvent::Join, |_| true);
    }
    for agent in &agents {
        agent.signal(Signal::STOP);
    }
    // All the while the observer receives descriptors and starts commands, side by side.
    let sender = observer.connect();
    let until = Instant::now() + PATIENCE;
    let mut nonce = 0;
    while observer.count_within(LogEvent::Recover, Duration::ZERO) < 2 * agents.len() {
        assert!(Instant::now() < until, "not all were recovered");
        nonce += 1;
        send_with_descriptors(&sender, &frame(nonce), DESCRIPTORS_MAX);
    }
    let stopped = observer.stop();
    stopped.assert_counters(&[("varta_recovery_outcomes_total{outcome=\"reaped_zero\"}", 8)]);
    assert!(stopped.counter(CLOSED) > 0);
    for agent in &agents {
        let open = fs::read_to_string(list(&agent.pid().to_string())).unwrap();
        // Its streams and what it reads, whatever the observer itself was given.
        assert_eq!(open, "0\n1\n2\n3\n");
    }
}

/// An observer that has at most this many descriptors to spare.
fn short_of_descriptors(spare: usize, flags: &[&str]) -> Observer {
    let needed = Observer::start(&[]).open_descriptors();
    let directory = tempfile::tempdir().unwrap();
    Observer::start_in(directory, flags, with_descriptor_limit(needed + spare))
}

/// The kernel installs as many descriptors as there is room for and says that control data was cut short.
/// Credentials come first, so they were whole, but the rule is simple: what was cut is not believed.
#[test]
fn a_beat_whose_descriptors_find_no_room_is_refused_whole() {
    let observer = short_of_descriptors(6, &["--threshold-ms=60000"]);
    let sender = observer.connect();
    let before = observer.open_descriptors();
    // From a stranger, and then from an agent.
    for nonce in [1, 2] {
        send_with_descriptors(&sender, &frame(nonce), DESCRIPTORS_MAX);
        observer.wait_for_count(CUT, nonce);
        // Counters may be told before the line about the join that they count.
        assert!(observer.seen(LogEvent::Join) < nonce as usize);
        std::thread::sleep(DISTRUST);
        sender.send(&frame(nonce)).unwrap();
        observer.wait_for_count(BEATS, nonce);
    }
    wait_for_descriptors(&observer, before);
    let stopped = observer.stop();
    stopped.assert_counters(&[(CUT, 2), (JOINS, 1), (BEATS, 2)]);
    assert!(stopped.counter(CLOSED) > 0);
}

#[test]
fn without_descriptors_it_finds_every_exit_and_says_once_what_it_cannot_do() {
    let observer = short_of_descriptors(RESERVE, &["--threshold-ms=60000"]);
    let mut agents: Vec<_> = (0..8)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    for _ in &agents {
        observer.wait_for(LogEvent::Join, |_| true);
    }
    // Long before the threshold, whether anybody watched it or not.
    for agent in &mut agents {
        agent.leave(0);
        observer.wait_for_pid(LogEvent::Exit, agent.pid());
    }
    let stopped = observer.stop();
    assert_eq!(stopped.count(LogEvent::Exit), agents.len());
    assert_eq!(stopped.count(LogEvent::Stall), 0);
    let unwatched = stopped.counter(UNWATCHED);
    assert!((1..8).contains(&unwatched), "{unwatched}");
    let warned = |line: &&LogLine| line.msg.contains("limit on open files");
    assert_eq!(stopped.lines.iter().filter(warned).count(), 1);
}
