//! Whose a session is, and that nobody else's datagrams change it.

use super::*;

/// Where the agents of these tests live: [`beat`]s come from `A`.
const A: u64 = 1;
const B: u64 = 2;

fn from(source: u64, arrival: Arrival) -> Arrival {
    Arrival { source, ..arrival }
}

#[test]
fn a_session_belongs_for_good_to_the_agent_that_opened_it() {
    let mut guard = guard();
    guard.admit(&beat(1, 1, 0), 0).unwrap();
    guard.admit(&from(B, beat(1, 1, 1)), 0).unwrap();
    guard.admit(&beat(2, 1, 2), 0).unwrap();
    assert_eq!(guard.source_of(&beat(1, 1, 0).session), Some(A));
    guard.admit(&from(B, beat(1, 2, 0)), 0).unwrap();
    guard.admit(&beat(2, 3, 0), 0).unwrap();
    assert_eq!(guard.admit(&beat(1, 1, 3), 0), Ok(()), "not the others'");
    guard.admit(&beat(1, 4, 0), 0).unwrap();
    assert_eq!(guard.admit(&beat(2, 1, 4), 0), Err(Closed), "the opener's");
}

#[test]
fn a_copy_from_another_agents_address_takes_nothing_from_that_agent() {
    for copy_of in [beat as fn(u32, u64, u32) -> Arrival, farewell] {
        let mut guard = guard();
        guard.admit(&beat(7, 1, 0), 0).unwrap();
        guard.admit(&from(B, beat(7, 2, 0)), 0).unwrap();
        let copy = from(B, copy_of(7, 1, 1));
        assert_eq!(guard.admit(&copy, 0), Ok(()));
        assert_eq!(guard.admit(&copy_of(7, 1, 1), 0), Err(Seen), "the original");
        assert_eq!(guard.admit(&from(B, beat(7, 2, 1)), 0), Ok(()));
        assert_eq!(guard.admit(&beat(7, 1, 2), 0), Ok(()));
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
            guard.admit(&from(source, beat(7, prefix, 0)), 0).unwrap();
            let last = from(source, farewell(7, 10 + prefix, 0));
            guard.admit(&last, 0).unwrap();
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
            assert_eq!(guard.admit(&from(first, next), 0), Ok(()), "{order:b}");
            assert_eq!(guard.admit(&from(second, next), 0), Err(Seen));
            assert_eq!(guard.source_of(&next.session), Some(own), "{order:b}");
        }
        assert_eq!((guard.open(), guard.closed()), (4, 0), "{order:b}");
    }
}

#[test]
fn a_beat_of_another_agent_over_a_farewell_session_makes_it_nobodys_current_one() {
    let mut guard = guard();
    guard.admit(&beat(7, 1, 0), 0).unwrap();
    guard.admit(&from(B, beat(7, 2, 0)), 0).unwrap();
    guard.admit(&farewell(7, 3, 0), 0).unwrap();
    assert_eq!(guard.admit(&from(B, beat(7, 3, 1)), 0), Ok(()));
    assert_eq!(guard.admit(&beat(7, 1, 1), 0), Ok(()));
    assert_eq!(guard.admit(&from(B, beat(7, 2, 1)), 0), Ok(()));
    assert_eq!(guard.admit(&farewell(7, 4, 0), 0), Ok(()));
    assert_eq!(guard.admit(&beat(7, 3, 2), 0), Err(Closed), "a farewell");
}

#[test]
fn only_open_sessions_have_a_source() {
    let mut guard = guard();
    let session = beat(1, 1, 0).session;
    assert_eq!(guard.source_of(&session), None);
    guard.admit(&from(B, farewell(1, 1, 0)), 0).unwrap();
    assert_eq!(guard.source_of(&session), Some(B));
    guard.admit(&from(B, farewell(1, 2, 0)), 0).unwrap();
    assert_eq!(guard.source_of(&session), None, "closed");
}

#[test]
fn the_source_of_a_session_survives_a_restart() {
    let mut guard = guard();
    guard.admit(&from(B, beat(1, 1, 0)), 0).unwrap();
    let guard = restored(&words_of(&guard), options(8, 16), 0);
    assert_eq!(guard.source_of(&beat(1, 1, 0).session), Some(B));
}

/// Nobody can find two such sessions, so the index is told a lie.
#[test]
fn a_second_session_of_the_same_hash_has_no_source() {
    let mut guard = guard();
    guard.admit(&beat(1, 1, 0), 0).unwrap();
    let twin = beat(2, 2, 7).session;
    let _ = guard.open.insert(guard.hash(&twin), 0);
    assert_eq!(guard.source_of(&twin), None);
}
