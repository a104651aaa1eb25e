//! Remote agents: sessions, order, and their limits against local agents.

use std::ops::ControlFlow;

use varta_vlp::{Frame, NONCE_TERMINAL, Status};

use super::*;
use crate::agent::BeatOrigin;
use crate::beat::Beat;
use crate::replay::Heard;
use crate::slot::Tier;

use Heard::{First, Newest, Overtaken};

const T: u64 = 64 << crate::wheel::TICK_SHIFT;

/// A tracker for this many local agents and as many remote ones.
fn tracker(capacity: usize, policy: EvictionPolicy) -> Tracker {
    let options = TrackerOptions {
        policy,
        local_capacity: capacity,
        remote_capacity: capacity,
        ..TrackerOptions::default()
    };
    Tracker::with_capacity(2 * capacity, options)
}

fn local(pid: u32) -> Beat {
    let frame = Frame::new(Status::Ok, pid, 1, 1, 0);
    Beat::new(AgentKey::process(pid, 1), frame, BeatOrigin::KernelAttested)
}

/// A beat over plain UDP.
fn plain(pid: u32, nonce: u64) -> Beat {
    Beat {
        key: AgentKey::Remote { source: 1, pid },
        frame: Frame::new(Status::Ok, pid, nonce, nonce, nonce as u32),
        origin: BeatOrigin::NetworkUnverified,
        ..local(pid)
    }
}

/// A beat over encrypted UDP that is no copy.
fn sealed(heard: Heard, nonce: u64) -> Beat {
    Beat {
        session: Some(heard),
        ..plain(100, nonce)
    }
}

fn last_frame(timestamp: u64) -> Beat {
    Beat {
        frame: Frame::new(Status::Critical, 100, timestamp, NONCE_TERMINAL, 0),
        ..sealed(First, 0)
    }
}

impl Tracker {
    fn hear(&mut self, beat: Beat, now_ns: u64) -> BeatOutcome {
        self.record(&beat, now_ns, T).outcome
    }

    fn facts(&self, pid: u32) -> Slot {
        self.get(&AgentKey::Remote { source: 1, pid }).unwrap()
    }

    /// Reports the silence of every agent and waits until all are reclaimable.
    fn let_all_become_reclaimable(&mut self, now_ns: u64) {
        for ns in [now_ns, now_ns + 11 * T] {
            self.drain_stalled_slots(ns, u32::MAX, |_| ControlFlow::Continue(()));
        }
    }
}

fn room(capacity: usize) -> Tracker {
    tracker(capacity, EvictionPolicy::Strict)
}

#[test]
fn an_overtaken_beat_counts_and_proves_no_life() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 10), 0);
    tracker.hear(sealed(Newest, 12), 1);
    assert_eq!(
        tracker.hear(sealed(Overtaken, 11), 5),
        BeatOutcome::Reordered
    );
    let facts = tracker.facts(100);
    assert_eq!((facts.beats, facts.last_ns), (3, 1));
    assert_eq!((facts.last_nonce, facts.payload), (Some(12), 12));
    assert_eq!(tracker.hear(sealed(Newest, 13), 6), BeatOutcome::Refreshed);
}

#[test]
fn an_overtaken_beat_does_not_end_a_stall() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 10), 0);
    tracker.drain_stalled_slots(T, u32::MAX, |_| ControlFlow::Continue(()));
    let recorded = tracker.record(&sealed(Overtaken, 9), T, T);
    assert_eq!(recorded.returned_after_ns, None);
    assert_eq!(tracker.latched(), 1);
    tracker.check_invariants();
}

#[test]
fn another_session_may_start_its_nonces_again_at_once() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 5_000), 0);
    let recorded = tracker.record(&sealed(First, 1), 1, T);
    assert!(recorded.new_session);
    assert_eq!(tracker.hear(sealed(Newest, 2), 2), BeatOutcome::Refreshed);
    assert_eq!(tracker.facts(100).session_restarts, 1);
}

#[test]
fn a_new_session_whose_nonces_go_on_is_not_counted_as_a_restart() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 5_000), 0);
    tracker.hear(sealed(First, 5_001), 1);
    assert_eq!(tracker.facts(100).session_restarts, 0);
}

#[test]
fn beats_over_two_sessions_by_turns_all_prove_life_and_count_as_one_restart() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 5_000), 0);
    tracker.hear(sealed(First, 1), 1);
    for turn in 1..100 {
        let nonce = [5_000 + turn, 1 + turn][turn as usize % 2];
        assert_eq!(
            tracker.hear(sealed(Newest, nonce), 1 + turn),
            BeatOutcome::Refreshed
        );
        let facts = tracker.facts(100);
        assert_eq!((facts.last_ns, facts.last_nonce), (1 + turn, Some(nonce)));
    }
    assert_eq!(tracker.facts(100).session_restarts, 1);
}

#[test]
fn a_last_frame_over_a_session_of_its_own_leaves_the_series_as_it_was() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 10), 0);
    assert_eq!(tracker.hear(last_frame(5), 1), BeatOutcome::Refreshed);
    assert_eq!(tracker.hear(sealed(Newest, 11), 2), BeatOutcome::Refreshed);
    assert_eq!(tracker.hear(last_frame(4), 3), BeatOutcome::Refreshed);
    assert_eq!(tracker.facts(100).last_nonce, Some(11));
    assert_eq!(tracker.facts(100).session_restarts, 0);
}

#[test]
fn a_last_frame_that_begins_a_session_must_be_newer_than_the_one_before() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 10), 0);
    let may_begin =
        |tracker: &Tracker, beat: Beat| tracker.facts(100).may_begin_session(&beat.frame);
    assert!(may_begin(&tracker, last_frame(1)));
    tracker.hear(last_frame(5), 1);
    assert!(!may_begin(&tracker, last_frame(5)));
    assert!(may_begin(&tracker, last_frame(6)));
    assert!(may_begin(&tracker, sealed(First, 1)), "no last frame");
}

#[test]
fn an_old_unattested_beat_is_refused_while_newer_ones_come() {
    let mut tracker = room(4);
    tracker.hear(plain(100, 50), 0);
    let early = Beat {
        frame: Frame::new(Status::Ok, 100, 0, 1, 0),
        ..plain(100, 1)
    };
    assert_eq!(tracker.hear(early, T / 4 - 1), BeatOutcome::OutOfOrder);
    assert_eq!(tracker.facts(100).last_ns, 0);
}

#[test]
fn an_unattested_process_may_start_over_once_it_has_been_quiet() {
    let mut tracker = room(4);
    tracker.hear(plain(100, 50), 0);
    assert_eq!(tracker.hear(plain(100, 50), T / 4), BeatOutcome::OutOfOrder);
    assert_eq!(tracker.hear(plain(100, 1), T / 4), BeatOutcome::Refreshed);
    assert_eq!(tracker.hear(plain(100, 2), T / 4), BeatOutcome::Refreshed);
}

#[test]
fn a_last_frame_of_a_restarted_process_is_newer_than_those_of_the_one_before() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 10), 0);
    tracker.hear(last_frame(60), 0);
    tracker.hear(sealed(Newest, 11), 1);
    assert!(!tracker.facts(100).may_begin_session(&last_frame(1).frame));
    tracker.hear(sealed(First, 12), 1);
    assert!(tracker.facts(100).may_begin_session(&last_frame(1).frame));
}

#[test]
fn a_last_frame_that_comes_late_does_not_move_the_mark_back() {
    let mut tracker = room(4);
    tracker.hear(sealed(First, 10), 0);
    tracker.hear(last_frame(60), 0);
    tracker.hear(last_frame(5), 0);
    assert_eq!(tracker.facts(100).terminal_timestamp, 60);
}

#[test]
fn neither_kind_of_agent_can_lock_out_the_other() {
    let mut tracker = room(4);
    for pid in 100..110 {
        let fits = pid < 104;
        let expected = match fits {
            true => BeatOutcome::Inserted,
            false => BeatOutcome::CapacityExceeded,
        };
        assert_eq!(tracker.may_have_room_for(None), fits);
        assert_eq!(tracker.hear(plain(pid, 1), 0), expected);
        assert_eq!(tracker.may_have_room_for(Some(local(pid).uid)), fits);
        assert_eq!(tracker.hear(local(pid), 0), expected);
    }
    assert_eq!(tracker.len(), 8);
    tracker.check_invariants();
    let key = plain(100, 1).key;
    let slot = tracker.slot_of(&key).unwrap();
    let agent = tracker.facts(100).agent(slot);
    tracker.retire(agent).unwrap();
    assert_eq!(tracker.hear(local(200), 0), BeatOutcome::CapacityExceeded);
    assert_eq!(tracker.hear(plain(200, 1), 0), BeatOutcome::Inserted);
    tracker.check_invariants();
}

#[test]
fn a_newcomer_takes_the_slot_of_its_own_kind_only() {
    for policy in [EvictionPolicy::Strict, EvictionPolicy::Balanced] {
        let mut tracker = tracker(1, policy);
        tracker.hear(local(100), 0);
        tracker.hear(plain(100, 1), 0);
        tracker.let_all_become_reclaimable(T);
        let recorded = tracker.record(&plain(101, 1), 100 * T, T);
        let displaced = recorded.displaced.unwrap().agent;
        assert_eq!(
            displaced.instance, 1,
            "{policy:?}: the source, not the process"
        );
        assert!(tracker.local_agent(100).is_some(), "{policy:?}");
        assert_eq!(tracker.hear(local(102), 100 * T), BeatOutcome::Inserted);
        assert_eq!(tracker.local_agent(100), None, "{policy:?}");
        assert!(tracker.get(&plain(101, 1).key).is_some(), "{policy:?}");
        tracker.check_invariants();
    }
}

#[test]
fn a_local_newcomer_without_a_quota_gets_the_slot_that_has_been_free_to_take_for_longest() {
    let mut tracker = Tracker::with_capacity(2, TrackerOptions::default());
    tracker.hear(plain(100, 1), 0);
    tracker.let_all_become_reclaimable(T);
    tracker.hear(local(101), 20 * T);
    tracker.let_all_become_reclaimable(22 * T);
    let recorded = tracker.record(&local(102), 100 * T, T);
    assert_eq!(recorded.displaced.unwrap().agent.pid, 100);
    let recorded = tracker.record(&local(103), 100 * T, T);
    assert_eq!(recorded.displaced.unwrap().agent.pid, 101);
}

fn stalls_at(tracker: &mut Tracker, now_ns: u64) -> Vec<bool> {
    let mut remote = Vec::new();
    tracker.drain_stalled_slots(now_ns, u32::MAX, |silence| {
        if silence.tier == Tier::Stalled {
            remote.push(silence.slot.locality == Locality::Remote);
        }
        ControlFlow::Continue(())
    });
    remote
}

#[test]
fn dropped_datagrams_put_off_the_stalls_of_remote_agents_only() {
    let mut tracker = room(2);
    tracker.hear(local(100), 0);
    tracker.hear(plain(100, 1), 0);
    tracker.restart_silence(Locality::Remote, T / 2, 16);
    assert_eq!(stalls_at(&mut tracker, T), [false], "the local one");
    assert_eq!(stalls_at(&mut tracker, T + T / 2 - 1), []);
    assert_eq!(stalls_at(&mut tracker, T + T / 2), [true]);
}

#[test]
fn no_flood_puts_off_a_stall_for_ever() {
    for (locality, beat) in [
        (Locality::Local, local(100)),
        (Locality::Remote, plain(100, 1)),
    ] {
        let mut tracker = room(2);
        tracker.hear(beat, 0);
        for tick in 1..=16 {
            tracker.restart_silence(locality, tick * T, 16);
            assert_eq!(stalls_at(&mut tracker, tick * T + T - 1), []);
        }
        tracker.restart_silence(locality, 17 * T, 16);
        assert_eq!(stalls_at(&mut tracker, 17 * T).len(), 1);
    }
}
