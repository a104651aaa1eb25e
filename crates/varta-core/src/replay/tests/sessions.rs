//! Sessions of an agent: side by side, quiet, departed, closed.

use super::*;

#[test]
fn the_sessions_of_an_agent_are_open_side_by_side() {
    let mut guard = guard();
    for counter in 0..100 {
        for prefix in 0..SESSIONS_PER_AGENT as u64 {
            assert_eq!(guard.hear(&beat(1, prefix, counter), 0), Ok(()));
            assert_eq!(guard.hear(&beat(1, prefix, counter), 0), Err(Seen));
        }
    }
    assert_eq!((guard.open(), guard.closed()), (SESSIONS_PER_AGENT, 0));
}

#[test]
fn another_session_closes_none_that_is_in_use() {
    let mut guard = all_taken();
    assert_eq!(guard.hear(&beat(1, 9, 0), QUIET - 1), Err(TooMany));
    for prefix in 0..SESSIONS_PER_AGENT as u64 {
        assert_eq!(guard.hear(&beat(1, prefix, 1), QUIET - 1), Ok(()));
    }
    assert_eq!(guard.hear(&beat(1, 9, 0), QUIET), Err(TooMany));
}

#[test]
fn another_session_closes_the_one_that_is_quiet_for_longest() {
    let mut guard = all_taken();
    guard.hear(&beat(1, 0, 1), 2).unwrap();
    guard.hear(&beat(1, 2, 1), 1).unwrap();
    guard.hear(&beat(1, 3, 1), 1 + QUIET).unwrap();
    assert_eq!(guard.hear(&beat(1, 8, 0), 1 + QUIET), Ok(()));
    assert!(!guard.is_open(&beat(1, 1, 0)));
    assert_eq!(guard.hear(&beat(1, 9, 0), 1 + QUIET), Ok(()));
    assert!(!guard.is_open(&beat(1, 2, 0)));
    assert_eq!(guard.hear(&beat(1, 10, 0), 1 + QUIET), Err(TooMany));
    assert_eq!(guard.hear(&beat(1, 0, 2), 1 + QUIET), Ok(()));
}

#[test]
fn a_closed_session_refuses_what_it_may_have_heard_and_is_opened_by_what_is_newer() {
    let mut guard = all_taken();
    guard.hear(&beat(1, 0, 10), 1).unwrap();
    guard.close_session_of(&beat(1, 0, 10));
    for counter in [0, 9, 10] {
        assert_eq!(guard.hear(&beat(1, 0, counter), 2), Err(Seen), "{counter}");
    }
    assert_eq!(guard.admit(&beat(1, 0, 13), T, 2), Ok(Heard::Newest));
    for counter in [0, 9, 10, 13] {
        assert_eq!(guard.hear(&beat(1, 0, counter), 2), Err(Seen), "{counter}");
    }
    assert_eq!(guard.hear(&beat(1, 0, 12), 2), Ok(()), "overtaken");
    assert_eq!(guard.hear(&beat(1, 0, 14), 2), Ok(()));
}

#[test]
fn a_session_that_is_closed_again_is_remembered_by_what_it_has_heard_since() {
    let mut guard = guard();
    for counter in [3, 7, 20] {
        guard.hear(&beat(1, 1, counter), 0).unwrap();
        guard.close_session_of(&beat(1, 1, 0));
        let mut next = restored(&words_of(&guard), options(8, 16), 0);
        assert_eq!(next.hear(&beat(1, 1, counter), 0), Err(Seen));
        assert_eq!(next.hear(&beat(1, 1, counter + 1), 0), Ok(()));
    }
}

#[test]
fn a_handle_too_many_is_heard_half_a_threshold_after_another_one_has_ended() {
    let mut guard = all_taken();
    for (counter, now_ns) in (0..).zip((0..=4 * QUIET).step_by(SECOND_NS as usize)) {
        for prefix in 1..SESSIONS_PER_AGENT as u64 {
            guard.hear(&beat(1, prefix, counter + 1), now_ns).unwrap();
        }
        let expected = if now_ns < QUIET { Err(TooMany) } else { Ok(()) };
        assert_eq!(guard.hear(&beat(1, 9, counter), now_ns), expected);
    }
}

#[test]
fn a_session_that_goes_on_where_another_one_ended_takes_its_place_at_once() {
    let mut guard = all_taken();
    guard.hear(&beat(1, 2, 1), 1).unwrap();
    let renewed = |prefix| Arrival {
        continues: true,
        ..beat(1, prefix, 0)
    };
    for prefix in 10..30 {
        assert_eq!(guard.hear(&renewed(prefix), 1), Ok(()));
    }
    for prefix in [0, 1, 3, 29] {
        assert!(guard.is_open(&beat(1, prefix, 0)), "{prefix}");
    }
    assert_eq!(guard.live_sessions(1, 1, 0), SESSIONS_PER_AGENT);
}

#[test]
fn a_session_that_was_taken_for_ended_and_is_heard_again_lives() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    let renewed = Arrival {
        continues: true,
        ..beat(1, 2, 0)
    };
    guard.hear(&renewed, 1).unwrap();
    assert_eq!(guard.live_sessions(1, 1, 0), 1);
    guard.hear(&beat(1, 1, 1), 2).unwrap();
    assert_eq!(guard.live_sessions(1, 1, 0), 2);
    assert_eq!(guard.live_sessions(1, 1, 2), 1);
    assert_eq!(guard.live_sessions(2, 1, 0), 0);
}

#[test]
fn a_refused_continuation_ends_nothing() {
    let mut guard = ReplayGuard::on_heap(options(2, 16));
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    guard.hear(&beat(2, 2, 0), 0).unwrap();
    let before = words_of(&guard);
    let renewed = Arrival {
        continues: true,
        ..beat(3, 3, 0)
    };
    assert_eq!(guard.hear(&renewed, 0), Err(Full));
    assert_eq!(words_of(&guard), before);
}

#[test]
fn agents_with_one_pid_at_two_sources_close_nothing_of_each_other() {
    let mut guard = guard();
    let elsewhere = Arrival {
        source: 2,
        ..beat(1, 2, 0)
    };
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    guard.hear(&elsewhere, 0).unwrap();
    assert_eq!(guard.hear(&beat(1, 1, 1), 0), Ok(()));
}

#[test]
fn a_last_frame_closes_no_session_and_the_survivor_goes_on() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    guard.hear(&farewell(1, 2, 0), 0).unwrap();
    assert_eq!(guard.hear(&beat(1, 1, 1), 0), Ok(()));
    assert_eq!(guard.hear(&farewell(1, 1, 2), 0), Ok(()), "same prefix");
    assert_eq!(guard.hear(&beat(1, 1, 3), 0), Ok(()));
    assert_eq!(guard.hear(&farewell(1, 2, 0), 0), Err(Seen));
}

#[test]
fn many_prefixes_of_last_frames_take_one_record() {
    let mut guard = ReplayGuard::on_heap(options(2, 64));
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    for prefix in 2..40 {
        assert_eq!(guard.hear(&farewell(1, prefix, 0), 0), Ok(()));
        assert!(guard.hear(&farewell(1, prefix - 1, 0), 0).is_err());
    }
    assert_eq!(guard.open(), 2);
    assert_eq!(guard.hear(&beat(1, 1, 1), 0), Ok(()));
}

#[test]
fn a_beat_over_a_farewell_session_makes_it_a_current_one() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    guard.hear(&farewell(1, 2, 0), 0).unwrap();
    assert_eq!(guard.live_sessions(1, 1, 0), 1);
    assert_eq!(guard.hear(&beat(1, 2, 1), 0), Ok(()));
    assert_eq!(guard.live_sessions(1, 1, 0), 2);
    guard.hear(&farewell(1, 3, 0), 0).unwrap();
    assert_eq!(guard.hear(&beat(1, 2, 2), 0), Ok(()), "no farewell now");
    assert_eq!(guard.hear(&beat(1, 1, 1), 0), Ok(()));
}

#[test]
fn a_farewell_session_becomes_a_current_one_only_if_there_is_a_place() {
    let mut guard = all_taken();
    guard.hear(&farewell(1, 9, 0), 0).unwrap();
    let before = words_of(&guard);
    assert_eq!(guard.hear(&beat(1, 9, 1), QUIET - 1), Err(TooMany));
    assert_eq!(words_of(&guard), before);
    assert_eq!(guard.hear(&beat(1, 9, 1), QUIET), Ok(()));
    assert!(!guard.is_open(&beat(1, 0, 0)));
    assert_eq!(guard.places.len(), guard.open());
}

/// Closes a session that was never open.
fn remember(guard: &mut ReplayGuard, hash: u64) {
    guard.remember(&Closed {
        hash,
        top: 0,
        source: 1,
    });
}

#[test]
fn the_closed_sessions_remembered_are_the_latest() {
    let mut guard = ReplayGuard::on_heap(options(8, 4));
    for prefix in 0..10 {
        guard.hear(&beat(1, prefix, 0), 0).unwrap();
        guard.close_session_of(&beat(1, prefix, 0));
    }
    assert_eq!(guard.closed(), 4);
    for prefix in 6..10 {
        assert_eq!(guard.hear(&beat(1, prefix, 0), 0), Err(Seen));
    }
    assert_eq!(guard.hear(&beat(1, 5, 0), 0), Ok(()), "forgotten");
}

#[test]
fn a_hash_of_zero_is_remembered_and_an_empty_entry_is_none() {
    let mut guard = ReplayGuard::on_heap(options(8, 3));
    assert_eq!(guard.closed.get(&SessionHash(0)), None);
    remember(&mut guard, 0);
    remember(&mut guard, 7);
    let mut guard = restored(&words_of(&guard), options(8, 3), 0);
    assert_eq!(guard.closed.get(&SessionHash(0)), Some(0));
    assert_eq!(guard.closed(), 2);
    remember(&mut guard, 8);
    remember(&mut guard, 9);
    assert_eq!(guard.closed.get(&SessionHash(0)), None);
}

#[test]
fn a_session_closed_twice_is_remembered_as_long_as_the_later_time_allows() {
    let mut guard = ReplayGuard::on_heap(options(8, 3));
    for hash in [1, 2, 1, 3] {
        remember(&mut guard, hash);
    }
    assert_eq!(guard.closed.get(&SessionHash(1)), Some(2));
    remember(&mut guard, 4);
    assert!(guard.closed.get(&SessionHash(1)).is_some());
    remember(&mut guard, 5);
    assert_eq!(guard.closed.get(&SessionHash(1)), None);
}

/// Two such sessions cannot be found, so the test falsifies the index.
#[test]
fn a_second_session_of_the_same_hash_is_refused() {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    let twin = beat(2, 2, 7);
    let _ = guard.open.insert(guard.hash(&twin.session), 0);
    assert_eq!(guard.hear(&twin, 0), Err(Seen));
}
