//! The owner of a session, which datagrams of other agents do not change.

use super::*;

/// The sources of the agents in these tests: [`beat`]s come from `A`.
const A: u64 = 1;
const B: u64 = 2;

fn from(source: u64, arrival: Arrival) -> Arrival {
    Arrival { source, ..arrival }
}

#[test]
fn a_session_belongs_for_good_to_the_agent_that_opened_it() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    guard.hear(&from(B, beat(1, 1, 1)), 0).unwrap();
    guard.hear(&beat(2, 1, 2), 0).unwrap();
    assert_eq!(guard.source(&beat(1, 1, 0).session), Some(A));
    assert_eq!(guard.live_sessions(A, 1, 0), 1);
    assert_eq!(guard.live_sessions(B, 1, 0), 0);
    assert_eq!(guard.live_sessions(A, 2, 0), 0);
    guard.close_session_of(&beat(1, 1, 0));
    assert_eq!(guard.source(&beat(1, 1, 0).session), Some(A));
}

#[test]
fn a_copy_from_another_agents_address_takes_nothing_from_that_agent() {
    for copy_of in [beat as fn(u32, u64, u32) -> Arrival, farewell] {
        let mut guard = guard();
        guard.hear(&beat(7, 1, 0), 0).unwrap();
        guard.hear(&from(B, beat(7, 2, 0)), 0).unwrap();
        let copy = from(B, copy_of(7, 1, 1));
        assert_eq!(guard.hear(&copy, 0), Ok(()));
        assert_eq!(guard.hear(&copy_of(7, 1, 1), 0), Err(Seen), "the original");
        assert_eq!(guard.hear(&from(B, beat(7, 2, 1)), 0), Ok(()));
        assert_eq!(guard.hear(&beat(7, 1, 2), 0), Ok(()));
        assert_eq!((guard.open(), guard.closed()), (2, 0));
    }
}

/// Each agent has a current and a farewell session, and of each datagram a copy comes from the other
/// address, before it or after it.
#[test]
fn the_sessions_of_two_agents_with_equal_pids_stay_apart_whatever_order_copies_come_in() {
    for order in 0..1_u32 << 8 {
        let mut guard = guard();
        for (source, prefix) in [(A, 1), (B, 2)] {
            guard.hear(&from(source, beat(7, prefix, 0)), 0).unwrap();
            let last = from(source, farewell(7, 10 + prefix, 0));
            guard.hear(&last, 0).unwrap();
        }
        for turn in 0..8 {
            let (own, other, prefix) = if turn & 1 == 0 { (A, B, 1) } else { (B, A, 2) };
            let next = match turn / 2 {
                2 => farewell(7, 10 + prefix, 1),
                counter => beat(7, prefix, 1 + counter),
            };
            let (first, second) = if order >> turn & 1 == 0 {
                (own, other)
            } else {
                (other, own)
            };
            assert_eq!(guard.hear(&from(first, next), 0), Ok(()), "{order:b}");
            assert_eq!(guard.hear(&from(second, next), 0), Err(Seen));
            assert_eq!(guard.source(&next.session), Some(own), "{order:b}");
        }
        assert_eq!((guard.open(), guard.closed()), (4, 0), "{order:b}");
    }
}

#[test]
fn a_beat_of_another_agent_does_not_make_a_farewell_session_current() {
    let mut guard = guard();
    guard.hear(&farewell(7, 3, 0), 0).unwrap();
    assert_eq!(guard.hear(&from(B, beat(7, 3, 1)), 0), Ok(()));
    assert_eq!(guard.live_sessions(A, 7, 0), 0);
    assert_eq!(guard.live_sessions(B, 7, 0), 0);
    guard.hear(&farewell(7, 4, 0), 0).unwrap();
    assert!(!guard.is_open(&beat(7, 3, 2)), "a farewell");
}

#[test]
fn sessions_that_were_heard_have_a_source() {
    let mut guard = guard();
    let session = beat(1, 1, 0).session;
    assert_eq!(guard.source(&session), None);
    guard.hear(&from(B, farewell(1, 1, 0)), 0).unwrap();
    assert_eq!(guard.source(&session), Some(B));
    guard.hear(&from(B, farewell(1, 2, 0)), 0).unwrap();
    assert!(!guard.is_open(&farewell(1, 1, 0)));
    assert_eq!(guard.source(&session), Some(B), "closed");
}

#[test]
fn the_source_of_a_session_survives_a_restart() {
    let mut guard = guard();
    guard.hear(&from(B, beat(1, 1, 0)), 0).unwrap();
    let guard = restored(&words_of(&guard), options(8, 16), 0);
    assert_eq!(guard.source(&beat(1, 1, 0).session), Some(B));
}

/// Two such sessions cannot be found, so the test falsifies the index.
#[test]
fn a_second_session_of_the_same_hash_has_no_source() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    let twin = beat(2, 2, 7).session;
    let _ = guard.open.insert(guard.hash(&twin), 0);
    assert_eq!(guard.source(&twin), None);
}
