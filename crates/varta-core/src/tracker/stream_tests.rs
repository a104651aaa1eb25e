//! Processes with several streams of beats.

use std::ops::ControlFlow;

use super::tests::{T, beat, deadlines, key, strict};
use super::*;
use crate::beat::Beat;
use crate::counters::Counter;

/// A beat of a stream of a process that is examined.
fn stream(pid: u32, instance: u64, stream: u16, nonce: u64) -> Beat {
    Beat {
        key: AgentKey::process(pid, instance).with_stream(stream),
        ..beat(pid, nonce)
    }
}

fn join(tracker: &mut Tracker, beat: Beat, now_ns: u64) -> Agent {
    let recorded = tracker.record(&beat, now_ns, T);
    assert_eq!(recorded.outcome, BeatOutcome::Inserted);
    tracker.check_invariants();
    recorded.agent.unwrap()
}

#[test]
fn two_streams_of_a_process_are_judged_apart() {
    let mut tracker = strict(4);
    let first = join(&mut tracker, stream(100, 1, 0, 1), 0);
    let second = join(&mut tracker, stream(100, 1, 7, 1), 0);
    assert_eq!((first.pid, first.instance), (second.pid, second.instance));
    assert_eq!((first.stream, second.stream), (0, 7));
    tracker.record(&stream(100, 1, 0, 2), T / 2, T);
    let stalled = |found: Vec<Silence>| found.iter().map(|s| s.agent).collect::<Vec<_>>();
    assert_eq!(stalled(tracker.drain(T)), [second]);
    assert_eq!(stalled(tracker.drain(T + T / 2)), [first]);
    let back = tracker.record(&stream(100, 1, 7, 2), 2 * T, T);
    assert_eq!(back.agent, Some(second));
    assert_eq!(back.returned_after_ns, Some(2 * T));
    tracker.check_invariants();
}

#[test]
fn datagrams_find_stream_0_whichever_came_first() {
    let mut tracker = strict(4);
    join(&mut tracker, stream(100, 1, 3, 1), 0);
    assert_eq!(tracker.local_agent(100), None, "no datagram came yet");
    let datagrams = join(&mut tracker, beat(100, 1), 0);
    assert_eq!((datagrams.instance, datagrams.stream), (1, 0));
    assert_eq!(tracker.streams.first(100), Some(datagrams.slot));
    assert_eq!(tracker.local_agent(100), Some(datagrams));
    assert_eq!(tracker.update(beat(100, 2), 0), BeatOutcome::Refreshed);
}

#[test]
fn the_end_of_a_process_retires_all_its_streams_and_no_other_process() {
    let mut tracker = strict(8);
    for number in [0, 1, 2] {
        join(&mut tracker, stream(100, 1, number, 1), 0);
    }
    let other = join(&mut tracker, stream(101, 1, 0, 1), 0);
    tracker.drain(T);
    assert_eq!(tracker.retire_next(100, 2), None, "another instance");
    let mut gone = Vec::new();
    while let Some((agent, facts)) = tracker.retire_next(100, 1) {
        assert_eq!((facts.pid, facts.stream), (100, agent.stream));
        gone.push(agent.stream);
        tracker.check_invariants();
    }
    gone.sort_unstable();
    assert_eq!(gone, [0, 1, 2]);
    assert_eq!((tracker.len(), tracker.latched()), (1, 1));
    assert_eq!(tracker.local_agent(101), Some(other));
}

#[test]
fn one_stream_leaves_and_the_others_stay() {
    let mut tracker = strict(4);
    let agents = [0, 1, 2].map(|number| join(&mut tracker, stream(100, 1, number, 1), 0));
    assert!(tracker.retire(agents[0]).is_some());
    tracker.check_invariants();
    for agent in &agents[1..] {
        let of_stream = key(100).with_stream(agent.stream);
        assert_eq!(tracker.slot_of(&of_stream), Some(agent.slot));
    }
    let back = join(&mut tracker, beat(100, 9), 0);
    assert_eq!(back.instance, 1, "the same process");
}

#[test]
fn eviction_takes_one_stream_and_leaves_the_others_of_its_process() {
    let mut tracker = strict(2);
    let silent = join(&mut tracker, stream(100, 1, 0, 1), 0);
    let beating = join(&mut tracker, stream(100, 1, 1, 1), 0);
    for tick in 1..=12 {
        tracker.record(&stream(100, 1, 1, 1 + tick), tick * T, T);
        tracker.drain(tick * T);
    }
    // A third stream of the same process takes the place of the first.
    let recorded = tracker.record(&stream(100, 1, 2, 1), 12 * T, T);
    assert_eq!(recorded.displaced.unwrap().agent, silent);
    tracker.check_invariants();
    assert_eq!(tracker.slot_of(&key(100)), None);
    assert_eq!(
        tracker.slot_of(&key(100).with_stream(1)),
        Some(beating.slot)
    );
    assert_eq!(tracker.slot_of(&key(100).with_stream(2)), Some(silent.slot));
}

#[test]
fn a_pid_that_passes_to_another_process_takes_all_streams_of_the_earlier_one_along() {
    let mut tracker = strict(4);
    let mut left = [0, 1, 2].map(|number| join(&mut tracker, stream(100, 1, number, 1), 0));
    let recorded = tracker.record(&stream(100, 2, 5, 1), T, T);
    assert_eq!(recorded.outcome, BeatOutcome::Inserted);
    let mut displaced = vec![recorded.displaced.unwrap()];
    displaced.extend(std::iter::from_fn(|| tracker.take_displaced()));
    assert!(displaced.iter().all(|displaced| !displaced.evicted));
    let mut displaced = displaced.iter().map(|d| d.agent).collect::<Vec<_>>();
    displaced.sort_by_key(|agent| agent.stream);
    left.sort_by_key(|agent| agent.stream);
    assert_eq!(displaced, left);
    assert_eq!(tracker.len(), 1);
    tracker.check_invariants();
}

#[test]
fn a_process_has_so_many_streams_and_no_more() {
    let mut tracker = strict(MAX_STREAMS_PER_PROCESS + 2);
    for number in 0..MAX_STREAMS_PER_PROCESS as u16 {
        join(&mut tracker, stream(100, 1, number, 1), 0);
    }
    let one_more = stream(100, 1, MAX_STREAMS_PER_PROCESS as u16, 1);
    assert_eq!(tracker.update(one_more, 0), BeatOutcome::CapacityExceeded);
    assert_eq!(tracker.counted(Counter::ProbeExhausted), 0);
    tracker.check_invariants();
    join(&mut tracker, stream(101, 1, 0, 1), 0);
}

#[test]
fn a_pause_is_one_of_the_process_and_deadlines_are_those_of_a_stream() {
    let mut tracker = strict(4);
    let first = join(&mut tracker, stream(100, 1, 0, 1), 0);
    let second = join(&mut tracker, stream(100, 1, 1, 1), 0);
    assert!(tracker.set_deadlines(second, deadlines(3 * T, 0), 0));
    assert!(tracker.pause(second, 10 * T, 0));
    let late_comer = join(&mut tracker, stream(100, 1, 2, 1), T);
    assert_eq!(tracker.drain(11 * T - 1), []);
    let found = tracker
        .drain(11 * T)
        .iter()
        .map(|s| s.agent)
        .collect::<Vec<_>>();
    assert_eq!(found.len(), 2);
    assert!(found.contains(&first) && found.contains(&late_comer));
    assert_eq!(tracker.drain(13 * T)[0].agent, second);
    tracker.pause(first, 30 * T, 13 * T);
    assert!(tracker.resume(second, 14 * T));
    assert_eq!(tracker.stalled_pids(15 * T), [100, 100]);
    tracker.check_invariants();
}

#[test]
fn a_later_beat_that_a_source_knows_of_is_recorded_before_the_slot_is_judged() {
    let mut tracker = strict(4);
    join(&mut tracker, beat(100, 1), 0);
    join(&mut tracker, beat(101, 1), 0);
    let mut stalled = Vec::new();
    let mut budget = u32::MAX;
    while let Some(due) = tracker.pop_due(T, &mut budget) {
        let agent = tracker.agent_in(due.slot()).unwrap();
        if agent.pid == 100 {
            tracker.record(&beat(100, 2), T - 1, T);
        }
        let _ = tracker.judge(due, T, |silence| {
            stalled.push(silence.agent.pid);
            ControlFlow::Continue(())
        });
        tracker.check_invariants();
    }
    assert_eq!(stalled, [101]);
    assert_eq!(tracker.stalled_pids(2 * T), [100]);
}
