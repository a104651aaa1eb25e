//! Datagrams with more than a frame, and agents for which there are no descriptors.

mod support;

use std::collections::BTreeMap;

use support::LogLine;
use support::agents::AgentProcess;
use support::network::{NOISE, TRUNCATED};
use support::{BEATS, DISTRUST, Observer, frame, with_descriptor_limit};

const JOINS: &str = "varta_observer_joins_total";
const UNWATCHED: &str = "varta_observer_exit_watch_failed_total";

/// Least number of descriptors that the observer keeps from its agents.
const RESERVE: usize = 8;

/// Not a test: the program of the agents.
#[test]
fn agent_process() {
    support::agents::be_an_agent_if_told();
}

#[test]
fn datagrams_of_other_lengths_are_counted_and_change_nothing() {
    let observer = Observer::start(&["--threshold-ms=60000"]);
    let sender = observer.connect();
    let lengths = [0, 31, 33, 59, 61, 65, 4096];
    // From an unknown sender, and then from an agent.
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
    // A margin for a busy machine.
    counters.retain(|series, _| !NOISE.iter().any(|noise| series.starts_with(noise)));
    let expected = [(BEATS, 2), (JOINS, 1), (TRUNCATED, 14)];
    let expected = expected.map(|(series, count)| (series.to_owned(), count));
    assert_eq!(counters, BTreeMap::from(expected), "and nothing else");
}

/// An observer that has at most this many descriptors to spare.
fn short_of_descriptors(spare: usize, flags: &[&str]) -> Observer {
    let needed = Observer::start(&[]).open_descriptors();
    let directory = tempfile::tempdir().unwrap();
    Observer::start_in(directory, flags, with_descriptor_limit(needed + spare))
}

#[test]
fn without_descriptors_it_finds_every_exit_and_says_once_what_it_cannot_do() {
    let observer = short_of_descriptors(RESERVE, &["--threshold-ms=60000"]);
    let mut agents: Vec<_> = (0..8)
        .map(|_| AgentProcess::start(&observer.socket))
        .collect();
    for _ in &agents {
        observer.wait_for("join", |_| true);
    }
    // Long before the threshold, whether its exit was watched or not.
    for agent in &mut agents {
        agent.leave(0);
        observer.wait_for_pid("exit", agent.pid());
    }
    let stopped = observer.stop();
    assert_eq!(stopped.count("exit"), agents.len());
    assert_eq!(stopped.count("stall"), 0);
    let unwatched = stopped.counter(UNWATCHED);
    assert!((1..8).contains(&unwatched), "{unwatched}");
    let warned = |line: &&LogLine| line.msg.contains("limit on open files");
    assert_eq!(stopped.lines.iter().filter(warned).count(), 1);
}
