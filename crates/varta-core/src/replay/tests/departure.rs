//! Agents that have left, and the sessions that this frees.

use super::*;

/// Agent 1 with a current and a farewell session, and agents 2 and 3 fill a table for four.
fn full() -> ReplayGuard {
    let mut guard = ReplayGuard::on_heap(options(4, 16));
    for pid in 1..=3 {
        guard.hear(&beat(pid, u64::from(pid), 0), 0).unwrap();
    }
    guard.hear(&farewell(1, 10, 0), 0).unwrap();
    guard
}

#[test]
fn a_departed_agents_session_makes_room_at_once() {
    let mut guard = full();
    assert_eq!(guard.hear(&beat(9, 9, 0), 0), Err(Full));
    guard.depart(1, 2);
    assert_eq!(guard.hear(&beat(9, 9, 0), 0), Ok(()));
    assert!(!guard.is_open(&beat(2, 2, 1)));
    assert_eq!(guard.hear(&beat(8, 8, 0), 0), Err(Full));
}

#[test]
fn a_departed_agent_leaves_both_its_sessions() {
    let mut guard = full();
    guard.depart(1, 1);
    assert_eq!(guard.hear(&beat(8, 8, 0), 0), Ok(()));
    assert_eq!(guard.hear(&beat(9, 9, 0), 0), Ok(()));
    assert!(!guard.is_open(&beat(1, 1, 1)));
    assert!(!guard.is_open(&farewell(1, 10, 1)));
}

#[test]
fn while_there_is_room_a_departed_agent_may_go_on_over_its_sessions() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 5), 0).unwrap();
    guard.hear(&farewell(1, 2, 0), 0).unwrap();
    guard.depart(1, 1);
    guard.hear(&beat(3, 3, 0), 9 * LIVE_NS).unwrap();
    assert_eq!(guard.hear(&beat(1, 1, 5), 9 * LIVE_NS), Err(Seen));
    assert_eq!(guard.hear(&beat(1, 1, 6), 9 * LIVE_NS), Ok(()));
    assert_eq!(guard.hear(&beat(1, 2, 1), 9 * LIVE_NS), Ok(()));
}

#[test]
fn a_departed_agent_that_goes_on_is_live_again() {
    let mut guard = full();
    guard.depart(1, 2);
    guard.hear(&beat(2, 2, 1), 0).unwrap();
    assert_eq!(guard.hear(&beat(9, 9, 0), LIVE_NS), Err(Full));
    assert_eq!(guard.hear(&beat(2, 2, 2), LIVE_NS), Ok(()));
}

#[test]
fn a_refused_copy_brings_no_departed_agent_back() {
    let mut guard = full();
    guard.depart(1, 2);
    assert_eq!(guard.hear(&beat(2, 2, 0), 0), Err(Seen));
    assert_eq!(guard.hear(&beat(9, 9, 0), 0), Ok(()));
}

#[test]
fn a_departed_agent_gives_way_before_a_silent_one() {
    let mut guard = full();
    let now_ns = 2 * LIVE_NS;
    guard.hear(&beat(3, 3, 1), now_ns).unwrap();
    guard.depart(1, 3);
    assert_eq!(guard.hear(&beat(9, 9, 0), now_ns), Ok(()));
    assert!(!guard.is_open(&beat(3, 3, 2)));
    assert_eq!(guard.hear(&beat(1, 1, 1), now_ns), Ok(()));
}

#[test]
fn no_other_agent_departs_with_an_agent() {
    let mut guard = full();
    guard.depart(2, 2);
    guard.depart(1, 7);
    assert_eq!(guard.hear(&beat(9, 9, 0), LIVE_NS), Err(Full));
}

#[test]
fn departure_survives_a_restart() {
    let mut guard = full();
    guard.depart(1, 2);
    let once = restored(&words_of(&guard), options(4, 16), 5 * LIVE_NS);
    let mut twice = restored(&words_of(&once), options(4, 16), 0);
    assert_eq!(twice.hear(&beat(9, 9, 0), 0), Ok(()));
    assert!(!twice.is_open(&beat(2, 2, 1)));
    assert_eq!(twice.hear(&beat(8, 8, 0), LIVE_NS), Err(Full));
}

#[test]
fn a_smaller_table_closes_the_departed_first() {
    let mut guard = guard();
    for pid in 1..=4 {
        let heard_ns = u64::from(pid) - 1;
        guard.hear(&beat(pid, pid.into(), 0), heard_ns).unwrap();
    }
    guard.depart(1, 4);
    let mut small = ReplayGuard::on_heap(options(3, 16));
    small.restore(&words_of(&guard), 0).unwrap();
    assert!(!small.is_open(&beat(4, 4, 1)));
    assert_eq!(small.hear(&beat(1, 1, 1), 0), Ok(()));
}
