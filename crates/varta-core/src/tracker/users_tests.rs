//! Shares: no user takes every slot, and no other user is affected.

use std::collections::HashMap;

use super::tests::{T, beat};
use super::*;
use crate::agent::BeatOrigin;
use crate::beat::Beat;
use crate::counters::Counter;

const SLOTS: usize = 16;
const SHARE: usize = 6;

fn tracker_with(policy: EvictionPolicy) -> Tracker {
    let options = TrackerOptions {
        policy,
        local_capacity: SLOTS,
        user_capacity: SHARE,
        remote_capacity: 4,
        ..TrackerOptions::default()
    };
    Tracker::with_capacity(SLOTS + 4, options)
}

fn of_user(uid: u32, pid: u32, nonce: u64) -> Beat {
    Beat {
        uid,
        ..beat(pid, nonce)
    }
}

fn remote(pid: u32, nonce: u64) -> Beat {
    Beat {
        key: AgentKey::Remote { source: 1, pid },
        origin: BeatOrigin::NetworkUnverified,
        ..beat(pid, nonce)
    }
}

#[test]
fn one_user_takes_no_more_than_its_share_and_the_rest_is_for_the_others() {
    let mut tracker = tracker_with(EvictionPolicy::Strict);
    for pid in 1..=SHARE as u32 {
        assert!(tracker.may_have_room_for(Some(7)));
        assert_eq!(tracker.update(of_user(7, pid, 1), 0), BeatOutcome::Inserted);
    }
    assert!(!tracker.may_have_room_for(Some(7)));
    let refused = tracker.update(of_user(7, 100, 1), 0);
    assert_eq!(refused, BeatOutcome::UserShareExceeded { uid: 7 });
    assert_eq!(tracker.counters.get(Counter::UserShareExceeded), 1);
    assert_eq!(tracker.update(of_user(7, 1, 2), 0), BeatOutcome::Refreshed);
    for pid in 200..200 + (SLOTS - SHARE) as u32 {
        assert!(tracker.may_have_room_for(Some(0)));
        assert_eq!(
            tracker.update(of_user(0, pid, 1), 0),
            BeatOutcome::Inserted,
            "root"
        );
    }
    assert_eq!(
        tracker.update(of_user(8, 300, 1), 0),
        BeatOutcome::CapacityExceeded
    );
    tracker.check_invariants();
}

#[test]
fn a_user_with_its_share_takes_the_place_of_its_own_silent_agents_only() {
    for policy in [EvictionPolicy::Strict, EvictionPolicy::Balanced] {
        let mut tracker = tracker_with(policy);
        tracker.update(of_user(8, 50, 1), 0);
        for pid in 1..=SHARE as u32 {
            tracker.update(of_user(7, pid, 1), 1);
        }
        tracker.drain(T + 1);
        for pid in 2..=SHARE as u32 {
            tracker.update(of_user(7, pid, 2), 11 * T);
        }
        tracker.drain(12 * T);
        let recorded = tracker.record(&of_user(7, 100, 1), 12 * T, T);
        assert_eq!(recorded.outcome, BeatOutcome::Inserted);
        assert_eq!(recorded.displaced.unwrap().agent.pid, 1, "not user 8's");
        let refused = tracker.update(of_user(7, 101, 1), 12 * T);
        assert_eq!(refused, BeatOutcome::UserShareExceeded { uid: 7 });
        tracker.check_invariants();
    }
}

#[test]
fn a_user_whose_agent_leaves_may_have_another() {
    let mut tracker = tracker_with(EvictionPolicy::Strict);
    for pid in 1..=SHARE as u32 {
        tracker.update(of_user(7, pid, 1), 0);
    }
    let agent = tracker.local_agent(3).unwrap();
    tracker.retire(agent).unwrap();
    assert_eq!(tracker.update(of_user(7, 100, 1), 0), BeatOutcome::Inserted);
    tracker.check_invariants();
}

/// A number below `bound` that is the same in every run.
fn drawn(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) % bound
}

#[test]
fn whatever_happens_no_user_exceeds_its_share_and_none_is_refused_below_it() {
    for (policy, seed) in [(EvictionPolicy::Strict, 1), (EvictionPolicy::Balanced, 2)] {
        let mut tracker = tracker_with(policy);
        let mut state = seed;
        let mut now_ns = 0;
        for nonce in 1..8_000 {
            now_ns += drawn(&mut state, T / 2);
            let pid = 1 + drawn(&mut state, 40) as u32;
            // A pid that comes back may belong to another user.
            let uid = drawn(&mut state, 5) as u32;
            let instance = u64::from(uid) + 1;
            let before = count(&tracker);
            match drawn(&mut state, 16) {
                0 => {
                    tracker.drain(now_ns);
                }
                1 => {
                    let agent = tracker.local_agent(pid);
                    agent.map(|agent| tracker.retire(agent));
                }
                2 => {
                    let agent = tracker.local_agent(pid);
                    agent.map(|agent| tracker.pause(agent, now_ns + T, now_ns));
                }
                3 => {
                    tracker.update(remote(pid, nonce), now_ns);
                }
                _ => {
                    let key = AgentKey::process(pid, instance);
                    let beat = Beat {
                        key,
                        ..of_user(uid, pid, nonce)
                    };
                    let recorded = tracker.record(&beat, now_ns, T);
                    if let BeatOutcome::UserShareExceeded { uid: refused } = recorded.outcome {
                        assert_eq!(refused, uid);
                        assert_eq!(before[&uid], SHARE, "below its share");
                    }
                    let is_full = uid != 0 && before.get(&uid) == Some(&SHARE);
                    if recorded.outcome == BeatOutcome::Inserted && is_full {
                        let own = recorded.displaced.unwrap().agent;
                        assert_eq!(own.instance, instance, "one of its own");
                    }
                }
            }
            let counted = count(&tracker);
            assert!(
                counted
                    .iter()
                    .all(|(uid, agents)| *uid == 0 || *agents <= SHARE),
                "{counted:?}"
            );
            tracker.check_invariants();
        }
    }
}

/// Local agents by user.
fn count(tracker: &Tracker) -> HashMap<u32, usize> {
    let mut counted = HashMap::new();
    for slot in 0..tracker.capacity() as u32 {
        let facts = tracker
            .facts_in(slot)
            .filter(|facts| facts.locality == Locality::Local);
        if let Some(facts) = facts {
            *counted.entry(facts.uid).or_default() += 1;
        }
    }
    counted
}
