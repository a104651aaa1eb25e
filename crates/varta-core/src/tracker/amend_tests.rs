//! Rules that change and pauses.

use super::tests::{T, beat, deadlines, key, strict};
use super::*;

#[test]
fn a_new_threshold_counts_from_the_last_beat() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, 10 * T).agent.unwrap();
    assert!(tracker.set_deadlines(agent, deadlines(3 * T, 0), 0));
    assert_eq!(tracker.stalled_pids(2 * T), []);
    assert_eq!(tracker.stalled_pids(4 * T), [100]);
}

#[test]
fn a_rule_that_would_have_made_a_stall_by_now_counts_from_its_coming() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, 10 * T).agent.unwrap();
    assert!(tracker.set_deadlines(agent, deadlines(3 * T, T), 5 * T));
    assert_eq!(tracker.drain(5 * T).len(), 0);
    assert_eq!(tracker.drain(8 * T - 1).len(), 1, "late at 6 T");
    assert_eq!(tracker.stalled_pids(8 * T), [100]);
    tracker.check_invariants();
}

#[test]
fn a_stall_that_was_reported_stays_so_under_any_rule() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
    for now_ns in [T, 30 * T] {
        tracker.drain(now_ns);
        assert!(tracker.set_deadlines(agent, deadlines(100 * T, 0), now_ns));
        assert_eq!(tracker.latched(), 1);
        assert_eq!(tracker.stalled_pids(now_ns), []);
        assert!(tracker.set_deadlines(agent, deadlines(T, 0), now_ns));
        assert_eq!(tracker.stalled_pids(now_ns), []);
        tracker.check_invariants();
    }
}

#[test]
fn a_late_agent_is_reported_once_however_often_its_rule_changes() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, 4 * T).agent.unwrap();
    tracker.set_deadlines(agent, deadlines(4 * T, T), 0);
    assert_eq!(tracker.drain(2 * T).len(), 1);
    tracker.set_deadlines(agent, deadlines(5 * T, T), 2 * T);
    assert_eq!(tracker.drain(2 * T).len(), 0);
    tracker.set_deadlines(agent, deadlines(9 * T, 3 * T), 2 * T);
    assert_eq!(tracker.drain(3 * T).len(), 1, "late by the new rule");
}

#[test]
fn a_pause_counts_no_silence_and_ends_by_itself() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
    assert!(tracker.pause(agent, 50 * T, 0));
    assert_eq!(tracker.stalled_pids(50 * T), []);
    assert_eq!(tracker.stalled_pids(51 * T - 1), []);
    assert_eq!(tracker.stalled_pids(52 * T), [100]);
}

#[test]
fn a_pause_ends_a_stall_and_the_next_one_needs_a_full_threshold_after_it() {
    for silent_ns in [T, 30 * T] {
        let mut tracker = strict(1);
        let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
        assert_eq!(tracker.stalled_pids(silent_ns), [100]);
        tracker.drain(silent_ns);
        let until_ns = silent_ns + 5 * T;
        assert!(tracker.pause(agent, until_ns, silent_ns));
        assert_eq!(tracker.latched(), 0);
        tracker.check_invariants();
        let nobody_gives_way = tracker.update(beat(999, 1), until_ns - 1);
        assert_eq!(nobody_gives_way, BeatOutcome::CapacityExceeded);
        assert_eq!(tracker.stalled_pids(until_ns + T - 1), []);
        assert_eq!(tracker.stalled_pids(until_ns + T), [100]);
        assert_eq!(tracker.get(&key(100)).unwrap().stalls, 2);
    }
}

#[test]
fn a_beat_during_a_pause_is_no_return_and_does_not_end_it() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
    tracker.drain(T);
    tracker.pause(agent, 50 * T, T);
    let back = tracker.record(&beat(100, 2), 2 * T, T);
    assert_eq!(back.returned_after_ns, None);
    assert_eq!(tracker.stalled_pids(51 * T - 1), []);
    assert_eq!(tracker.stalled_pids(51 * T), [100]);
}

#[test]
fn a_pause_of_many_days_ends_as_one_of_a_moment_does() {
    let mut tracker = strict(4);
    let month_ns = (30 * 86_400 * 1_000_000_000_u64).next_multiple_of(T);
    let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
    tracker.pause(agent, month_ns, 0);
    assert_eq!(tracker.stalled_pids(month_ns), []);
    assert_eq!(tracker.stalled_pids(month_ns + 2 * T), [100]);
}

#[test]
fn a_resumed_agent_has_a_full_threshold_and_one_that_was_not_paused_does_not() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
    tracker.pause(agent, 50 * T, 0);
    assert!(tracker.resume(agent, 7 * T));
    assert_eq!(tracker.stalled_pids(8 * T - 1), []);
    assert!(tracker.resume(agent, 8 * T - 1), "not paused");
    assert_eq!(tracker.stalled_pids(8 * T), [100]);
    assert!(tracker.resume(agent, 9 * T));
    assert_eq!(tracker.latched(), 1);
    tracker.check_invariants();
}

#[test]
fn rules_and_pauses_are_of_one_agent_and_not_of_the_next_one_in_its_slot() {
    let mut tracker = strict(1);
    let agent = tracker.record(&beat(100, 1), 0, T).agent.unwrap();
    tracker.retire(agent);
    assert!(!tracker.pause(agent, 9 * T, 0));
    tracker.update(beat(101, 1), 0);
    assert!(!tracker.pause(agent, 9 * T, 0));
    assert!(!tracker.resume(agent, 0));
    assert!(!tracker.set_deadlines(agent, deadlines(9 * T, 0), 0));
    assert_eq!(tracker.stalled_pids(T), [101]);
}
