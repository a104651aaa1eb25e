//! The tests of the original tracker document (observer spec 1.10, the number of each is given), and the boundaries
//! that it did not test.

use std::ops::ControlFlow;

use varta_vlp::{Frame, NONCE_TERMINAL, Status};

use super::*;
use crate::agent::BeatOrigin;
use crate::beat::Beat;
use crate::counters::Counter;
use crate::slot::Tier;

/// The threshold, a whole number of the wheel's ticks: a deadline is noticed at the first tick at or
/// after it, so boundaries can be tested to the nanosecond only where the two coincide.
pub(super) const T: u64 = 64 << crate::wheel::TICK_SHIFT;

pub(super) fn tracker(capacity: usize, policy: EvictionPolicy) -> Tracker {
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

pub(super) fn with_origin(beat: Beat, origin: BeatOrigin) -> Beat {
    Beat { origin, ..beat }
}

pub(super) fn in_namespace(beat: Beat, ns_inode: Option<u64>) -> Beat {
    Beat { ns_inode, ..beat }
}

pub(super) fn terminal(pid: u32, timestamp: u64) -> Beat {
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

    pub(super) fn counted(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    pub(super) fn fill(&mut self, count: u32, now_ns: u64) {
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
    assert_eq!(tracker.counted(Counter::Evictions), 1);
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
    assert_eq!(tracker.counted(Counter::EvictionScanTruncated), 1);
}

#[test]
fn doc_09_another_origin_for_a_known_agent_is_a_conflict_that_changes_nothing() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 5), 10);
    let before = tracker.get(&key(100));
    let other = with_origin(beat(100, 6), BeatOrigin::SocketModeOnly);
    assert_eq!(tracker.update(other, 20), BeatOutcome::OriginConflict);
    assert_eq!(tracker.get(&key(100)), before);
    assert_eq!(tracker.counted(Counter::OriginConflicts), 1);
    assert_eq!(tracker.update(beat(100, 6), 30), BeatOutcome::Refreshed);
}

#[test]
fn doc_10_churn_through_a_small_table_never_exhausts_the_index() {
    let mut tracker = tracker(32, EvictionPolicy::Balanced);
    for pid in 0..4096_u32 {
        tracker.record(&beat(100 + pid, 1), u64::from(pid), 1);
    }
    assert_eq!(tracker.counted(Counter::ProbeExhausted), 0);
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
            1 => drop(tracker.get(&key(pid))),
            _ => drop(tracker.update(beat(pid, step + 1), now_ns)),
        }
    }
    assert_eq!(tracker.counted(Counter::InvariantViolations), 0);
    assert_eq!(tracker.counted(Counter::ProbeExhausted), 0);
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
    assert_eq!(tracker.get(&key(100)).unwrap().ns_inode, Some(1));
    assert_eq!(tracker.counted(Counter::NamespaceConflicts), 1);
}

#[test]
fn doc_14_the_same_namespace_again_is_a_refresh() {
    let mut tracker = strict(8);
    for nonce in 1..=2 {
        tracker.update(in_namespace(beat(100, nonce), Some(1)), nonce);
    }
    assert_eq!(tracker.get(&key(100)).unwrap().last_ns, 2);
    assert_eq!(tracker.counted(Counter::NamespaceConflicts), 0);
}

#[test]
fn doc_15_a_known_namespace_cannot_become_unknown() {
    let mut tracker = strict(8);
    tracker.update(in_namespace(beat(100, 1), Some(1)), 0);
    assert_eq!(
        tracker.update(beat(100, 2), 1),
        BeatOutcome::NamespaceConflict
    );
    assert_eq!(tracker.counted(Counter::NamespaceConflicts), 1);
}

#[test]
fn doc_16_an_unknown_namespace_may_become_known() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    let known = in_namespace(beat(100, 2), Some(1));
    assert_eq!(tracker.update(known, 1), BeatOutcome::Refreshed);
    assert_eq!(tracker.get(&key(100)).unwrap().ns_inode, Some(1));
    assert_eq!(tracker.counted(Counter::NamespaceConflicts), 0);
}

#[test]
fn doc_17_unknown_twice_is_a_refresh() {
    let mut tracker = strict(8);
    tracker.update(beat(100, 1), 0);
    assert_eq!(tracker.update(beat(100, 2), 1), BeatOutcome::Refreshed);
    assert_eq!(tracker.get(&key(100)).unwrap().ns_inode, None);
    assert_eq!(tracker.counted(Counter::NamespaceConflicts), 0);
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
        let recorded = tracker.record(&beat(200 + victim, 1), 20 * T, T);
        assert_eq!(recorded.outcome, BeatOutcome::Inserted);
        assert_eq!(recorded.displaced.unwrap().agent.pid, victim);
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
        assert_eq!(tracker.counted(Counter::NonceWraps), wraps);
        assert_eq!(tracker.counted(Counter::OutOfOrder), 1 - wraps);
    }
}

#[test]
fn capacity_zero_admits_no_agent_and_capacity_one_admits_one() {
    let mut none = tracker(0, EvictionPolicy::Balanced);
    assert_eq!(none.update(beat(100, 1), 0), BeatOutcome::CapacityExceeded);
    assert_eq!(none.counted(Counter::EvictionScanTruncated), 1);
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
