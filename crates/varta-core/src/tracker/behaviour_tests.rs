//! Behaviour that the original tracker lacks: refusals, terminal frames, sessions, pids that pass on, gaps.

use std::ops::ControlFlow;

use varta_vlp::{Frame, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

use super::tests::*;
use super::*;
use crate::agent::BeatOrigin;
use crate::beat::Beat;
use crate::counters::Counter;
use crate::slot::Tier;

#[test]
fn a_refused_beat_changes_nothing_at_all() {
    let mut tracker = strict(1);
    tracker.update(in_namespace(beat(100, 10), Some(1)), 5);
    tracker.update(in_namespace(terminal(100, 50), Some(1)), 6);
    let before = tracker.get(&key(100));
    let refused = [
        in_namespace(beat(100, 10), Some(1)),
        in_namespace(beat(100, 11), Some(2)),
        beat(100, 11),
        with_origin(
            in_namespace(beat(100, 11), Some(1)),
            BeatOrigin::SocketModeOnly,
        ),
        in_namespace(terminal(100, 50), Some(1)),
        beat(101, 1),
    ];
    for beat in refused {
        let recorded = tracker.record(&beat, 100, T);
        assert_eq!(recorded, Recorded::refused(recorded.outcome), "{beat:?}");
        assert_eq!(tracker.get(&key(100)), before, "{beat:?}");
        assert_eq!(tracker.len(), 1);
    }
}

#[test]
fn an_unknown_namespace_is_not_learnt_from_a_refused_beat() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 10), 0);
    let old = in_namespace(beat(100, 10), Some(3));
    assert_eq!(tracker.update(old, 1), BeatOutcome::OutOfOrder);
    assert_eq!(tracker.get(&key(100)).unwrap().ns_inode, None);
}

#[test]
fn a_terminal_frame_does_not_touch_the_nonce_mark() {
    let mut tracker = strict(1);
    let far = (1 << 20) + 5;
    tracker.update(beat(100, far), 0);
    assert_eq!(tracker.update(terminal(100, 9), 1), BeatOutcome::Refreshed);
    assert_eq!(tracker.get(&key(100)).unwrap().status, Status::Critical);
    assert_eq!(tracker.get(&key(100)).unwrap().last_nonce, Some(far));
    assert_eq!(
        tracker.update(beat(100, far + 1), 2),
        BeatOutcome::Refreshed
    );
    assert_eq!(tracker.counted(Counter::NonceWraps), 0);
    assert_eq!(tracker.counted(Counter::SessionRestarts), 0);
}

#[test]
fn terminal_frames_are_ordered_by_their_own_timestamps() {
    let mut tracker = strict(1);
    for (timestamp, update) in [
        (7, BeatOutcome::Inserted),
        (8, BeatOutcome::Refreshed),
        (8, BeatOutcome::OutOfOrder),
        (3, BeatOutcome::OutOfOrder),
    ] {
        assert_eq!(tracker.update(terminal(100, timestamp), 0), update);
    }
    assert_eq!(tracker.update(beat(100, 1), 1), BeatOutcome::Refreshed);
}

#[test]
fn an_attested_agent_that_starts_over_is_a_new_session() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 3_000_000), 0);
    tracker.update(terminal(100, 77), 0);
    let fresh = tracker.record(&beat(100, 1), 1, T);
    assert_eq!(fresh.outcome, BeatOutcome::Refreshed);
    assert!(fresh.new_session);
    assert_eq!(tracker.counted(Counter::SessionRestarts), 1);
    assert_eq!(tracker.update(beat(100, 2), 2), BeatOutcome::Refreshed);
    assert_eq!(tracker.update(terminal(100, 5), 3), BeatOutcome::Refreshed);
}

#[test]
fn of_two_handles_the_older_is_out_of_order_only_while_the_newer_speaks() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 50), 0);
    let mut older = beat(100, 1);
    older.frame.timestamp = 51;
    assert_eq!(tracker.update(older, T / 4 - 1), BeatOutcome::OutOfOrder);
    let session = tracker.record(&older, T / 4, T);
    assert_eq!(session.outcome, BeatOutcome::Refreshed);
    assert!(session.new_session);
    older.frame.nonce = 2;
    assert_eq!(tracker.update(older, T / 2), BeatOutcome::Refreshed);
    assert_eq!(tracker.counted(Counter::SessionRestarts), 1);
}

#[test]
fn the_same_frame_again_stays_refused_however_long_the_silence() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 50), 0);
    assert_eq!(
        tracker.update(beat(100, 50), T / 2),
        BeatOutcome::OutOfOrder
    );
}

#[test]
fn a_process_with_a_new_handle_for_every_beat_is_heard() {
    let mut tracker = strict(1);
    let mut first = beat(100, 1);
    for (timestamp, now_ns) in [(9, 0), (7, T / 8), (8, T / 2), (7, T)] {
        first.frame.timestamp = timestamp;
        assert!(
            tracker.record(&first, now_ns, T).agent.is_some(),
            "at {now_ns}"
        );
    }
    assert_eq!(tracker.counted(Counter::SessionRestarts), 3);
}

#[test]
fn a_namespace_is_learnt_once() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 1), 0);
    let agent = tracker.local_agent(100).unwrap();
    tracker.learn_namespace(agent, 5);
    tracker.learn_namespace(agent, 6);
    assert_eq!(tracker.get(&key(100)).unwrap().ns_inode, Some(5));
    let other = Agent {
        instance: agent.instance + 1,
        ..agent
    };
    tracker.learn_namespace(other, 7);
    assert_eq!(tracker.get(&key(100)).unwrap().ns_inode, Some(5));
}

#[test]
fn network_agents_never_meet_local_ones_nor_each_other() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 10), 0);
    for source in [1, 2] {
        let mut remote = with_origin(beat(100, 99), BeatOrigin::NetworkUnverified);
        remote.key = AgentKey::Remote { source, pid: 100 };
        assert_eq!(tracker.update(remote, 1), BeatOutcome::Inserted);
    }
    assert_eq!(tracker.get(&key(100)).unwrap().last_nonce, Some(10));
    assert_eq!(tracker.len(), 3);
    tracker.check_invariants();
}

#[test]
fn a_recycled_pid_is_a_new_agent_at_once() {
    let instance = |pid, nonce, instance| Beat {
        key: AgentKey::process(pid, instance),
        ..beat(pid, nonce)
    };
    let mut tracker = strict(1);
    tracker.update(instance(100, 5_000, 1), 0);
    tracker.drain(T);
    assert_eq!(tracker.latched(), 1);
    let successor = tracker.record(&instance(100, 1, 2), 2 * T, T);
    assert_eq!(successor.outcome, BeatOutcome::Inserted);
    let predecessor = successor.displaced.unwrap();
    assert!(!predecessor.evicted);
    assert_eq!(predecessor.agent.instance, 1);
    assert_eq!(tracker.latched(), 0);
    assert_eq!(
        tracker.update(instance(100, 2, 2), 3 * T),
        BeatOutcome::Refreshed
    );
    assert_eq!(tracker.update(beat(100, 3), 3 * T), BeatOutcome::Refreshed);
    assert_eq!(tracker.retire(predecessor.agent), None, "already gone");
    tracker.check_invariants();
}

#[test]
fn a_retired_agent_leaves_no_trace_and_frees_its_slot() {
    let mut tracker = strict(1);
    let agent = tracker.record(&beat(100, 9), 0, T).agent.unwrap();
    tracker.drain(T);
    assert_eq!(tracker.retire(agent).unwrap().last_nonce, Some(9));
    assert_eq!((tracker.len(), tracker.latched()), (0, 0));
    assert_eq!(tracker.stalled_pids(100 * T), []);
    assert_eq!(tracker.update(beat(100, 1), 100 * T), BeatOutcome::Inserted);
    tracker.check_invariants();
}

#[test]
fn a_silence_that_is_not_taken_is_offered_again() {
    let mut tracker = strict(4);
    tracker.fill(3, 0);
    let mut offered = 0;
    tracker.drain_stalled_slots(2 * T, u32::MAX, |_| {
        offered += 1;
        if offered == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!((offered, tracker.latched()), (2, 1));
    tracker.check_invariants();
    assert!(tracker.next_deadline_ns().unwrap() <= 2 * T);
    assert_eq!(tracker.drain(2 * T).len(), 2);
}

#[test]
fn a_drain_within_its_budget_goes_on_where_it_stopped() {
    let mut tracker = strict(64);
    tracker.fill(64, 0);
    let mut found = 0;
    let mut turns = 0;
    while found < 64 {
        tracker.drain_stalled_slots(2 * T, 10, |_| {
            found += 1;
            ControlFlow::Continue(())
        });
        turns += 1;
        assert!(turns < 100);
    }
    assert!(turns >= 7, "10 timers a turn at most");
}

#[test]
fn each_agent_is_judged_by_its_own_threshold() {
    let mut tracker = strict(4);
    tracker.record(&beat(100, 1), 0, 10 * T);
    tracker.record(&beat(101, 1), 0, 2 * T);
    assert_eq!(tracker.shortest_threshold_ns(), Some(2 * T));
    assert_eq!(tracker.stalled_pids(3 * T), [101]);
    assert_eq!(tracker.stalled_pids(9 * T), []);
    assert_eq!(tracker.stalled_pids(11 * T), [100]);
}

#[test]
fn the_soft_tier_is_reported_before_the_stall() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, 4 * T).agent.unwrap();
    tracker.set_deadlines(agent, deadlines(4 * T, 2 * T), 0);
    let tiers = |found: Vec<Silence>| found.iter().map(|s| s.tier).collect::<Vec<_>>();
    assert_eq!(tiers(tracker.drain(3 * T)), [Tier::Late]);
    assert_eq!(tiers(tracker.drain(3 * T)), []);
    assert_eq!(tracker.latched(), 0, "late is not stalled");
    assert_eq!(tiers(tracker.drain(5 * T)), [Tier::Stalled]);
    let back = tracker.record(&beat(100, 2), 6 * T, 4 * T);
    assert_eq!(back.returned_after_ns, Some(6 * T));
    assert_eq!(tiers(tracker.drain(9 * T)), [Tier::Late], "armed again");
}

#[test]
fn a_late_agent_that_speaks_did_not_return_from_a_stall() {
    let mut tracker = strict(4);
    let agent = tracker.record(&beat(100, 1), 0, 4 * T).agent.unwrap();
    tracker.set_deadlines(agent, deadlines(4 * T, 2 * T), 0);
    tracker.drain(3 * T);
    let back = tracker.record(&beat(100, 2), 3 * T, 4 * T);
    assert_eq!(back.returned_after_ns, None);
    tracker.check_invariants();
}

#[test]
fn turning_critical_is_noticed_and_staying_critical_is_not() {
    let mut tracker = strict(4);
    let mut says = |nonce, status| {
        let frame = Frame::new(status, 100, nonce, nonce, 0);
        let beat = Beat {
            frame,
            ..beat(100, nonce)
        };
        tracker.record(&beat, 0, T).turned_critical
    };
    assert!(says(1, Status::Critical), "its first word");
    assert!(!says(2, Status::Critical));
    assert!(!says(3, Status::Degraded));
    assert!(says(4, Status::Critical));
    assert!(!says(4, Status::Critical), "refused");
    assert!(!says(5, Status::Ok));
}

#[test]
fn a_goodbye_is_not_critical_and_a_last_frame_without_one_is() {
    for (payload, is_critical) in [(PAYLOAD_GOODBYE, false), (1, true)] {
        let last = |pid| Beat {
            frame: Frame::new(Status::Critical, pid, 9, NONCE_TERMINAL, payload),
            ..beat(pid, 9)
        };
        let mut tracker = strict(4);
        tracker.update(beat(100, 1), 0);
        for (pid, what) in [(100, "its last word"), (101, "its first word")] {
            let recorded = tracker.record(&last(pid), 0, T);
            assert_eq!(recorded.turned_critical, is_critical, "{what}");
            let slot = recorded.agent.unwrap().slot;
            let shown = tracker.facts_in(slot).unwrap().status;
            assert_eq!(shown == Status::Critical, is_critical, "{what}");
        }
    }
}

#[test]
fn silence_that_is_restarted_counts_from_there_and_a_reported_stall_stays_reported() {
    let mut tracker = strict(4);
    tracker.update(beat(100, 1), 0);
    tracker.update(beat(101, 1), T / 2);
    assert_eq!(tracker.stalled_pids(T), [100]);
    tracker.restart_silence(Locality::Local, T, 16);
    assert_eq!(tracker.stalled_pids(2 * T - 1), []);
    assert_eq!(tracker.stalled_pids(2 * T), [101]);
    assert_eq!(tracker.latched(), 2);
    tracker.check_invariants();
}

#[test]
fn a_gap_is_excused_only_for_agents_that_do_not_tolerate_it() {
    let mut tracker = strict(4);
    let ms = 1_000_000;
    tracker.record(&beat(100, 1), 0, 80 * ms);
    tracker.record(&beat(101, 1), 0, 800 * ms);
    tracker.excuse(50 * ms, 20 * ms);
    assert_eq!(tracker.stalled_pids(99 * ms), [], "10 ms are tolerated");
    assert_eq!(tracker.stalled_pids(101 * ms), [100]);
    assert_eq!(tracker.stalled_pids(799 * ms), []);
    assert_eq!(tracker.stalled_pids(801 * ms), [101]);
    tracker.check_invariants();
}

#[test]
fn a_gap_before_the_last_beat_excuses_nothing() {
    let mut tracker = strict(4);
    let ms = 1_000_000;
    tracker.record(&beat(100, 1), 0, 80 * ms);
    tracker.excuse(50 * ms, 20 * ms);
    tracker.record(&beat(100, 2), 50 * ms, 80 * ms);
    assert_eq!(tracker.stalled_pids(131 * ms), [100]);
}

#[test]
fn a_stall_that_a_full_queue_puts_off_is_offered_as_such_and_counted() {
    let mut tracker = strict(4);
    tracker.update(beat(100, 1), 0);
    tracker.restart_silence(Locality::Local, T / 2, 16);
    let offered = tracker.drain(T);
    let [silence] = offered.as_slice() else {
        panic!("{offered:?}");
    };
    assert_eq!((silence.tier, silence.silence_ns), (Tier::PutOff, T));
    assert_eq!(tracker.get(&key(100)).unwrap().silence_ns(T), T, "as shown");
    assert_eq!(tracker.counters.get(Counter::StallsPutOff), 1);
    assert_eq!(tracker.stalled_pids(T + T / 2 - 1), []);
    assert_eq!(tracker.stalled_pids(T + T / 2), [100]);
    assert_eq!(tracker.counters.get(Counter::StallsPutOff), 1);
    tracker.check_invariants();
}

#[test]
fn a_hundred_thousand_evictions_leave_every_slot_reachable() {
    let mut tracker = strict(64);
    let mut now_ns = 0;
    for pid in 0..100_000_u32 {
        now_ns += T;
        tracker.drain(now_ns);
        tracker.update(beat(2 + pid, 1), now_ns);
    }
    assert!(tracker.counted(Counter::Evictions) > 50_000);
    assert_eq!(tracker.counted(Counter::ProbeExhausted), 0);
    assert_eq!(tracker.counted(Counter::InvariantViolations), 0);
    tracker.check_invariants();
}
