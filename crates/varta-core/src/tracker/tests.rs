//! The tracker's behaviours: the tests of the original tracker document (observer spec 1.10, the
//! number of each is given), the boundaries it did not test, and ours.

use std::ops::ControlFlow;

use proptest::prelude::*;
use varta_vlp::{Frame, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

use super::*;
use crate::beat::Beat;
use crate::slot::Tier;

/// The threshold, a whole number of the wheel's ticks: a deadline is noticed at the first tick at or
/// after it, so boundaries can be tested to the nanosecond only where the two coincide.
pub(super) const T: u64 = 64 << crate::wheel::TICK_SHIFT;

fn tracker(capacity: usize, policy: EvictionPolicy) -> Tracker {
    let options = TrackerOptions {
        policy,
        ..TrackerOptions::default()
    };
    Tracker::with_capacity(capacity, options)
}

pub(super) fn strict(capacity: usize) -> Tracker {
    tracker(capacity, EvictionPolicy::Strict)
}

pub(super) fn key(pid: u32) -> AgentKey {
    AgentKey::local(pid)
}

/// A kernel-attested beat whose own timestamp grows with its nonce.
pub(super) fn beat(pid: u32, nonce: u64) -> Beat {
    let frame = Frame::new(Status::Ok, pid, nonce, nonce, 0);
    Beat::new(key(pid), frame, BeatOrigin::KernelAttested)
}

fn with_origin(beat: Beat, origin: BeatOrigin) -> Beat {
    Beat { origin, ..beat }
}

fn in_namespace(beat: Beat, ns_inode: Option<u64>) -> Beat {
    Beat { ns_inode, ..beat }
}

fn terminal(pid: u32, timestamp: u64) -> Beat {
    Beat {
        frame: Frame::new(Status::Critical, pid, timestamp, NONCE_TERMINAL, 0),
        ..beat(pid, 0)
    }
}

pub(super) fn deadlines(threshold_ns: u64, late_ns: u64) -> Deadlines {
    Deadlines {
        threshold_ns,
        late_ns,
    }
}

impl Tracker {
    pub(super) fn update(&mut self, beat: Beat, now_ns: u64) -> BeatOutcome {
        self.record(&beat, now_ns, T).outcome
    }

    pub(super) fn drain(&mut self, now_ns: u64) -> Vec<Silence> {
        let mut found = Vec::new();
        self.drain_stalled_slots(now_ns, u32::MAX, |silence| {
            found.push(*silence);
            ControlFlow::Continue(())
        });
        found
    }

    pub(super) fn stalled_pids(&mut self, now_ns: u64) -> Vec<u32> {
        let stalls = self.drain(now_ns).into_iter();
        let stalls = stalls.filter(|silence| silence.tier == Tier::Stalled);
        stalls.map(|silence| silence.agent.pid).collect()
    }

    fn fill(&mut self, count: u32, now_ns: u64) {
        for pid in 0..count {
            assert_eq!(
                self.update(beat(100 + pid, 1), now_ns),
                BeatOutcome::Inserted
            );
        }
    }
}

/// The sequence the original document draws its random operations from.
struct Xorshift(u64);

impl Xorshift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

// --- the tests of the original document -------------------------------------------------------

#[test]
fn doc_01_while_nothing_is_latched_strict_refuses_without_a_scan_and_balanced_scans() {
    for (policy, update, cursor) in [
        (EvictionPolicy::Strict, BeatOutcome::CapacityExceeded, 0),
        (EvictionPolicy::Balanced, BeatOutcome::Inserted, 1),
    ] {
        let mut tracker = tracker(8, policy);
        tracker.fill(8, 0);
        assert_eq!(tracker.update(beat(999, 1), 100 * T), update);
        assert_eq!(tracker.scan_cursor, cursor, "{policy:?}");
    }
}

#[test]
fn doc_02_a_latched_agent_silent_for_twenty_thresholds_gives_way() {
    let mut tracker = strict(8);
    tracker.fill(8, 0);
    assert_eq!(tracker.drain(20 * T).len(), 8);
    assert_eq!(tracker.latched(), 8);
    assert_eq!(tracker.update(beat(999, 1), 20 * T), BeatOutcome::Inserted);
    assert_eq!(tracker.latched(), 7);
    assert_eq!(tracker.take_evictions(), 1);
    tracker.check_invariants();
}

#[test]
fn doc_03_a_larger_nonce_brings_a_latched_agent_back() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    assert_eq!(tracker.drain(T).len(), 1);
    let back = tracker.record(&beat(100, 2), T + 5, T);
    assert_eq!(back.outcome, BeatOutcome::Refreshed);
    assert_eq!(back.returned_after_ns, Some(T + 5));
    assert_eq!(tracker.latched(), 0);
}

#[test]
fn doc_04_one_evicting_insert_looks_at_no_more_than_a_window() {
    let mut latched = tracker(4096, EvictionPolicy::Balanced);
    latched.fill(4096, 0);
    assert_eq!(latched.drain(20 * T).len(), 4096);
    assert_eq!(latched.update(beat(9999, 1), 20 * T), BeatOutcome::Inserted);
    assert!(latched.scan_cursor <= DEFAULT_EVICTION_SCAN_WINDOW);

    let mut heard = tracker(4096, EvictionPolicy::Balanced);
    heard.fill(4096, 20 * T);
    let refused = heard.update(beat(9999, 1), 20 * T);
    assert_eq!(refused, BeatOutcome::CapacityExceeded);
    assert_eq!(heard.scan_cursor, DEFAULT_EVICTION_SCAN_WINDOW);
}

#[test]
fn doc_05_the_configured_window_is_the_one_used() {
    let options = TrackerOptions {
        policy: EvictionPolicy::Balanced,
        scan_window: 4,
        ..TrackerOptions::default()
    };
    let mut tracker = Tracker::with_capacity(16, options);
    tracker.fill(16, 0);
    assert_eq!(
        tracker.update(beat(999, 1), T),
        BeatOutcome::CapacityExceeded
    );
    assert_eq!(tracker.scan_cursor, 4);
}

#[test]
fn doc_06_fruitless_scans_leave_the_cursor_inside_the_table() {
    let mut tracker = tracker(4, EvictionPolicy::Balanced);
    tracker.fill(4, 0);
    for _ in 0..10 {
        assert_eq!(
            tracker.update(beat(999, 1), T),
            BeatOutcome::CapacityExceeded
        );
        assert!(tracker.scan_cursor < 4);
    }
}

#[test]
fn doc_07_the_latched_count_always_equals_a_recount() {
    let mut random = Xorshift(0x00C0_FFEE);
    let mut tracker = tracker(32, EvictionPolicy::Balanced);
    let mut now_ns = 0;
    for step in 0..2_000_u64 {
        now_ns += random.next() % (2 * T);
        let pid = 1 + (random.next() % 64) as u32;
        if random.next().is_multiple_of(4) {
            tracker.drain(now_ns);
        } else {
            tracker.update(beat(pid, step + 1), now_ns);
        }
        tracker.check_invariants();
    }
}

#[test]
fn doc_08_a_fruitless_search_for_a_victim_is_counted_once() {
    let mut tracker = strict(32);
    tracker.fill(32, 0);
    assert_eq!(
        tracker.update(beat(999, 1), T),
        BeatOutcome::CapacityExceeded
    );
    assert_eq!(tracker.take_eviction_scan_truncated(), 1);
    assert_eq!(tracker.take_eviction_scan_truncated(), 0);
}

#[test]
fn doc_09_another_origin_for_a_known_agent_is_a_conflict_that_changes_nothing() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 5), 10);
    let before = tracker.get(&key(100));
    let other = with_origin(beat(100, 6), BeatOrigin::SocketModeOnly);
    assert_eq!(tracker.update(other, 20), BeatOutcome::OriginConflict);
    assert_eq!(tracker.get(&key(100)), before);
    assert_eq!(tracker.take_origin_conflicts(), 1);
    assert_eq!(tracker.take_origin_conflicts(), 0);
    assert_eq!(tracker.update(beat(100, 6), 30), BeatOutcome::Refreshed);
}

#[test]
fn doc_10_churn_through_a_small_table_never_exhausts_the_index() {
    let mut tracker = tracker(32, EvictionPolicy::Balanced);
    for pid in 0..4096_u32 {
        tracker.record(&beat(100 + pid, 1), u64::from(pid), 1);
    }
    assert_eq!(tracker.take_probe_exhausted(), 0);
    tracker.check_invariants();
}

#[test]
fn doc_11_random_use_violates_no_invariant() {
    let mut random = Xorshift(0xDEAD_BEEF);
    let mut tracker = strict(32);
    let mut now_ns = 0;
    for step in 0..4_000_u64 {
        now_ns += random.next() % T;
        let pid = 1 + (random.next() % 96) as u32;
        match random.next() % 8 {
            0 => drop(tracker.drain(now_ns)),
            1 => drop(tracker.last_ns_of(&key(pid))),
            _ => drop(tracker.update(beat(pid, step + 1), now_ns)),
        }
    }
    assert_eq!(tracker.take_invariant_violations(), 0);
    assert_eq!(tracker.take_probe_exhausted(), 0);
}

#[test]
fn doc_12_each_stall_carries_the_origin_of_its_own_agent() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    let mut remote = with_origin(beat(100, 1), BeatOrigin::NetworkUnverified);
    remote.key = AgentKey::Remote {
        source: 7,
        pid: 100,
    };
    tracker.update(remote, 0);
    let mut origins: Vec<_> = tracker.drain(T).iter().map(|s| s.slot.origin).collect();
    origins.sort_by_key(|origin| *origin as u8);
    assert_eq!(
        origins,
        [BeatOrigin::KernelAttested, BeatOrigin::NetworkUnverified]
    );
}

#[test]
fn doc_13_another_namespace_for_a_known_agent_is_a_conflict() {
    let mut tracker = strict(8);
    tracker.update(in_namespace(beat(100, 1), Some(1)), 0);
    let other = in_namespace(beat(100, 2), Some(2));
    assert_eq!(tracker.update(other, 1), BeatOutcome::NamespaceConflict);
    assert_eq!(tracker.pid_ns_inode_of(&key(100)), Some(Some(1)));
    assert_eq!(tracker.take_namespace_conflicts(), 1);
    assert_eq!(tracker.take_namespace_conflicts(), 0);
}

#[test]
fn doc_14_the_same_namespace_again_is_a_refresh() {
    let mut tracker = strict(8);
    for nonce in 1..=2 {
        tracker.update(in_namespace(beat(100, nonce), Some(1)), nonce);
    }
    assert_eq!(tracker.last_ns_of(&key(100)), Some(2));
    assert_eq!(tracker.take_namespace_conflicts(), 0);
}

#[test]
fn doc_15_a_known_namespace_cannot_become_unknown() {
    let mut tracker = strict(8);
    tracker.update(in_namespace(beat(100, 1), Some(1)), 0);
    assert_eq!(
        tracker.update(beat(100, 2), 1),
        BeatOutcome::NamespaceConflict
    );
    assert_eq!(tracker.take_namespace_conflicts(), 1);
}

#[test]
fn doc_16_an_unknown_namespace_may_become_known() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    let known = in_namespace(beat(100, 2), Some(1));
    assert_eq!(tracker.update(known, 1), BeatOutcome::Refreshed);
    assert_eq!(tracker.pid_ns_inode_of(&key(100)), Some(Some(1)));
    assert_eq!(tracker.take_namespace_conflicts(), 0);
}

#[test]
fn doc_17_unknown_twice_is_a_refresh() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    assert_eq!(tracker.update(beat(100, 2), 1), BeatOutcome::Refreshed);
    assert_eq!(tracker.pid_ns_inode_of(&key(100)), Some(None));
    assert_eq!(tracker.take_namespace_conflicts(), 0);
}

// --- boundaries ---------------------------------------------------------------------------------

#[test]
fn silence_of_exactly_the_threshold_is_a_stall_and_one_nanosecond_less_is_not() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    assert_eq!(tracker.stalled_pids(T - 1), []);
    assert_eq!(tracker.stalled_pids(T), [100]);
}

#[test]
fn a_deadline_between_two_ticks_is_noticed_at_the_later_one() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 1);
    assert_eq!(tracker.stalled_pids(T + 1), []);
    let tick_later = T + (1 << crate::wheel::TICK_SHIFT);
    assert_eq!(tracker.next_deadline_ns(), Some(tick_later));
    assert_eq!(tracker.stalled_pids(tick_later), [100]);
}

#[test]
fn a_silence_is_reported_once_until_the_agent_speaks_again() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    assert_eq!(tracker.stalled_pids(2 * T), [100]);
    assert_eq!(tracker.stalled_pids(5 * T), []);
    tracker.update(beat(100, 2), 5 * T);
    assert_eq!(tracker.stalled_pids(7 * T), [100]);
    assert_eq!(tracker.get(&key(100)).unwrap().stalls, 2);
}

#[test]
fn only_more_than_ten_thresholds_of_silence_make_a_victim() {
    for (now_ns, update) in [
        (10 * T, BeatOutcome::CapacityExceeded),
        (10 * T + 1, BeatOutcome::Inserted),
    ] {
        let mut tracker = tracker(1, EvictionPolicy::Balanced);
        tracker.update(beat(100, 1), 0);
        assert_eq!(tracker.update(beat(101, 1), now_ns), update, "{now_ns}");
    }
}

#[test]
fn the_victim_is_the_agent_that_became_reclaimable_first() {
    let mut tracker = strict(3);
    for (pid, now_ns) in [(100, 2 * T), (101, 0), (102, T)] {
        tracker.update(beat(pid, 1), now_ns);
    }
    for tick in 1..20 {
        tracker.drain(tick * T);
    }
    for victim in [101, 102, 100] {
        assert_eq!(
            tracker.update(beat(200 + victim, 1), 20 * T),
            BeatOutcome::Inserted
        );
        assert_eq!(tracker.take_evicted_pid(), Some(victim));
        tracker.drain(20 * T);
    }
}

#[test]
fn a_reclaimable_agent_that_speaks_again_is_no_victim() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 1), 0);
    tracker.drain(30 * T);
    tracker.update(beat(100, 2), 30 * T);
    assert_eq!(
        tracker.update(beat(101, 1), 30 * T),
        BeatOutcome::CapacityExceeded
    );
    tracker.check_invariants();
}

#[test]
fn nonce_wrap_is_accepted_only_between_the_two_ends_of_the_range() {
    let far = 1_u64 << 20;
    let top = u64::MAX - far;
    for (last, new, update) in [
        (top, far - 1, BeatOutcome::Refreshed),
        (top, 0, BeatOutcome::Refreshed),
        (top, far, BeatOutcome::OutOfOrder),
        (top - 1, 0, BeatOutcome::OutOfOrder),
        (7, 7, BeatOutcome::OutOfOrder),
        (7, 6, BeatOutcome::OutOfOrder),
    ] {
        let mut tracker = strict(1);
        let mut first = beat(100, last);
        first.frame.timestamp = 0;
        tracker.update(first, 0);
        assert_eq!(
            tracker.update(beat(100, new), 1),
            update,
            "{last} then {new}"
        );
        let wraps = u64::from(update == BeatOutcome::Refreshed);
        assert_eq!(tracker.take_nonce_wraps(), wraps);
        assert_eq!(tracker.take_out_of_order(), 1 - wraps);
    }
}

#[test]
fn capacity_zero_admits_nobody_and_capacity_one_admits_one() {
    let mut none = tracker(0, EvictionPolicy::Balanced);
    assert_eq!(none.update(beat(100, 1), 0), BeatOutcome::CapacityExceeded);
    assert_eq!(none.take_eviction_scan_truncated(), 1);
    assert_eq!(none.drain(T), []);
    let mut one = strict(1);
    assert_eq!(one.update(beat(100, 1), 0), BeatOutcome::Inserted);
    assert_eq!(one.update(beat(101, 1), 0), BeatOutcome::CapacityExceeded);
    assert_eq!(one.len(), 1);
}

#[test]
fn a_request_beyond_the_largest_capacity_is_clamped() {
    assert_eq!(strict(2 * MAX_CAPACITY + 1).capacity(), 2 * MAX_CAPACITY);
}

#[test]
fn a_pid_beyond_what_any_kernel_gives_is_refused() {
    let mut tracker = strict(1);
    assert_eq!(
        tracker.update(beat(u32::MAX, 1), 0),
        BeatOutcome::CapacityExceeded
    );
    assert_eq!(tracker.update(beat(100, 1), 0), BeatOutcome::Inserted);
}

// --- ours ---------------------------------------------------------------------------------------

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
    assert_eq!(tracker.pid_ns_inode_of(&key(100)), Some(None));
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
    assert_eq!(tracker.take_nonce_wraps(), 0);
    assert_eq!(tracker.take_session_restarts(), 0);
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
    assert_eq!(tracker.take_session_restarts(), 1);
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
    assert_eq!(tracker.take_session_restarts(), 1);
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
    assert_eq!(tracker.take_session_restarts(), 3);
}

#[test]
fn a_namespace_is_learnt_once() {
    let mut tracker = strict(1);
    tracker.update(beat(100, 1), 0);
    let agent = tracker.local_agent(100).unwrap();
    tracker.learn_namespace(agent, 5);
    tracker.learn_namespace(agent, 6);
    assert_eq!(tracker.pid_ns_inode_of(&key(100)), Some(Some(5)));
    let other = Agent {
        instance: agent.instance + 1,
        ..agent
    };
    tracker.learn_namespace(other, 7);
    assert_eq!(tracker.pid_ns_inode_of(&key(100)), Some(Some(5)));
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
fn a_gap_is_given_back_to_those_that_do_not_tolerate_it_and_to_nobody_else() {
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
    assert!(tracker.take_evictions() > 50_000);
    assert_eq!(tracker.take_probe_exhausted(), 0);
    assert_eq!(tracker.take_invariant_violations(), 0);
    tracker.check_invariants();
}

#[derive(Clone, Debug)]
enum Op {
    Beat {
        pid: u32,
        instance: Option<u64>,
        stream: u16,
        nonce: u64,
    },
    Terminal {
        pid: u32,
        timestamp: u64,
    },
    Remote {
        source: u64,
        pid: u32,
        nonce: u64,
    },
    Drain {
        budget: u32,
        take: bool,
    },
    Retire {
        pid: u32,
    },
    Amend {
        pid: u32,
        threshold: u64,
        late: u64,
    },
    Pause {
        pid: u32,
        for_ns: u64,
    },
    Resume {
        pid: u32,
    },
    Wait {
        ns: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let pid = 2..40_u32;
    prop_oneof![
        6 => (pid.clone(), prop::option::weighted(0.2, 1..3_u64), 0..3_u16, 0..50_u64)
            .prop_map(|(pid, instance, stream, nonce)| Op::Beat { pid, instance, stream, nonce }),
        1 => (pid.clone(), 0..9_u64).prop_map(|(pid, timestamp)| Op::Terminal { pid, timestamp }),
        2 => (0..3_u64, pid.clone(), 0..50_u64)
            .prop_map(|(source, pid, nonce)| Op::Remote { source, pid, nonce }),
        3 => (0..40_u32, prop::bool::weighted(0.9)).prop_map(|(budget, take)| Op::Drain { budget, take }),
        1 => pid.clone().prop_map(|pid| Op::Retire { pid }),
        1 => (pid.clone(), 1..5_u64, 0..5_u64)
            .prop_map(|(pid, threshold, late)| Op::Amend { pid, threshold: threshold * T, late: late * T / 2 }),
        1 => (pid.clone(), 0..30 * T).prop_map(|(pid, for_ns)| Op::Pause { pid, for_ns }),
        1 => pid.prop_map(|pid| Op::Resume { pid }),
        4 => (0..4 * T).prop_map(|ns| Op::Wait { ns }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_sequence_of_calls_keeps_the_invariants(
        balanced in any::<bool>(),
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let policy = if balanced { EvictionPolicy::Balanced } else { EvictionPolicy::Strict };
        let mut tracker = tracker(16, policy);
        let mut now_ns = 0;
        for op in ops {
            match op {
                Op::Beat { pid, instance, stream, nonce } => {
                    let key = AgentKey::Local { pid, instance, stream };
                    tracker.record(&Beat { key, ..beat(pid, nonce) }, now_ns, T);
                }
                Op::Terminal { pid, timestamp } => {
                    tracker.update(terminal(pid, timestamp), now_ns);
                }
                Op::Remote { source, pid, nonce } => {
                    let key = AgentKey::Remote { source, pid };
                    let remote = with_origin(beat(pid, nonce), BeatOrigin::NetworkUnverified);
                    tracker.record(&Beat { key, ..remote }, now_ns, 2 * T);
                }
                Op::Drain { budget, take } => tracker.drain_stalled_slots(now_ns, budget, |silence| {
                    assert!(silence.silence_ns >= silence.slot.late_ns.min(silence.slot.threshold_ns));
                    assert!(now_ns >= silence.slot.paused_until_ns, "told of during a pause");
                    if take { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                }),
                Op::Retire { pid } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.retire(agent).is_some());
                    }
                }
                Op::Amend { pid, threshold, late } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.set_deadlines(agent, deadlines(threshold, late), now_ns));
                    }
                }
                Op::Pause { pid, for_ns } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.pause(agent, now_ns + for_ns, now_ns));
                    }
                }
                Op::Resume { pid } => {
                    if let Some(agent) = tracker.local_agent(pid) {
                        prop_assert!(tracker.resume(agent, now_ns));
                    }
                }
                Op::Wait { ns } => now_ns += ns,
            }
            tracker.check_invariants();
        }
        prop_assert_eq!(tracker.take_invariant_violations(), 0);
        prop_assert_eq!(tracker.take_probe_exhausted(), 0);
    }
}
