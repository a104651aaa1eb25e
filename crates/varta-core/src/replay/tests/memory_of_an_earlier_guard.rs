//! A guard that takes over the memory of an earlier one.

use super::*;

/// Agent 1 has two current sessions, a farewell session and a closed one, 2 has a session with a gap.
fn old() -> ReplayGuard {
    let mut guard = guard();
    guard.hear(&beat(1, 1, 7), 5).unwrap();
    guard.close_session_of(&beat(1, 1, 7));
    guard.hear(&beat(1, 11, 3), 6).unwrap();
    guard.hear(&beat(1, 13, 9), 6).unwrap();
    guard.hear(&farewell(1, 12, 1), 6).unwrap();
    guard.hear(&beat(2, 2, 50), 7).unwrap();
    guard.hear(&beat(2, 2, 48), 8).unwrap();
    guard
}

fn assert_remembers(mut guard: ReplayGuard) {
    assert_eq!(guard.source(&beat(1, 1, 0).session), Some(1));
    for heard in [
        beat(1, 1, 7),
        beat(1, 1, 6),
        beat(1, 11, 3),
        beat(1, 13, 9),
        farewell(1, 12, 1),
        beat(2, 2, 50),
        beat(2, 2, 48),
    ] {
        assert_eq!(guard.hear(&heard, 0), Err(Seen), "{heard:?}");
    }
    for next in [
        beat(2, 2, 49),
        beat(1, 12, 2),
        beat(1, 11, 4),
        beat(1, 13, 10),
    ] {
        assert_eq!(guard.hear(&next, 0), Ok(()), "{next:?}");
    }
}

#[test]
fn windows_and_closed_sessions_are_taken_over() {
    let words = words_of(&old());
    assert_eq!(ReplayGuard::seed_of(&words), Ok(SEED));
    let new = restored(&words, options(8, 16), 0);
    assert_eq!((new.open(), new.closed()), (4, 1));
    let again = restored(&words_of(&new), options(8, 16), 0);
    assert_remembers(new);
    assert_remembers(again);
}

#[test]
fn another_size_takes_over_what_it_has_room_for() {
    let words = words_of(&old());
    for options in [options(4, 16), options(100, 1_000), options(5, 3)] {
        assert_remembers(restored(&words, options, 0));
    }
}

#[test]
fn a_smaller_table_closes_those_silent_for_longest() {
    let mut guard = guard();
    for pid in 1..=8 {
        guard.hear(&beat(pid, pid.into(), 0), 0).unwrap();
    }
    guard.hear(&beat(3, 3, 1), 1).unwrap();
    guard.hear(&beat(6, 6, 1), 2).unwrap();
    let mut small = ReplayGuard::on_heap(options(2, 16));
    small.restore(&words_of(&guard), 9).unwrap();
    for pid in 1..=8 {
        let is_kept = pid == 3 || pid == 6;
        assert_eq!(small.is_open(&beat(pid, pid.into(), 2)), is_kept, "{pid}");
        assert_eq!(small.hear(&beat(pid, pid.into(), 0), 9), Err(Seen), "{pid}");
    }
}

#[test]
fn a_smaller_ring_forgets_the_oldest() {
    let mut guard = guard();
    for prefix in 0..10 {
        guard.hear(&beat(1, prefix, 0), 0).unwrap();
        guard.close_session_of(&beat(1, prefix, 0));
    }
    let mut small = restored(&words_of(&guard), options(8, 2), 0);
    assert_eq!(small.closed(), 2);
    assert_eq!(small.hear(&beat(1, 9, 0), 0), Err(Seen));
    assert_eq!(small.hear(&beat(1, 8, 0), 0), Err(Seen));
    assert_eq!(small.hear(&beat(1, 7, 0), 0), Ok(()));
}

/// Its records have a number in the state word, its ring nothing but hashes.
#[test]
fn what_version_1_remembered_is_refused_and_its_open_sessions_go_on() {
    let guard = old();
    let words = words_of(&guard);
    let records_end = 8 + 8 * 8;
    let mut older = words[..records_end].to_vec();
    older[0] -= 1;
    for record in older[8..]
        .chunks_exact_mut(8)
        .filter(|record| record[0] != 0)
    {
        record[0] |= 77 << 2;
    }
    older.extend((0..16).map(|entry| words[records_end + 3 * entry]));
    assert_eq!(ReplayGuard::seed_of(&older), Ok(SEED));
    let mut guard = restored(&older, options(8, 16), 0);
    for counter in [6, 7, 8, u32::MAX] {
        assert_eq!(guard.hear(&beat(1, 1, counter), 0), Err(Seen));
    }
    assert_eq!(guard.hear(&beat(1, 11, 3), 0), Err(Seen));
    assert_eq!(guard.hear(&beat(1, 11, 4), 0), Ok(()));
    assert_eq!(guard.hear(&beat(2, 2, 49), 0), Ok(()));
    assert_eq!(guard.open(), 4);
    older.pop();
    let too_short = ReplayError::TooShort {
        needed: records_end + 16,
        given: records_end + 15,
    };
    assert_eq!(ReplayGuard::seed_of(&older), Err(too_short));
}

#[test]
fn all_open_sessions_count_as_active_at_the_restart() {
    let mut guard = ReplayGuard::on_heap(options(2, 4));
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    guard.hear(&beat(2, 2, 0), u64::MAX).unwrap();
    let start_ns = 5 * LIVE_NS;
    let mut guard = restored(&words_of(&guard), options(2, 4), start_ns);
    let end_ns = start_ns + LIVE_NS;
    assert_eq!(guard.hear(&beat(9, 9, 0), end_ns), Err(Full));
    assert_eq!(guard.hear(&beat(8, 8, 0), end_ns + 1), Ok(()));
    assert_eq!(guard.hear(&beat(9, 9, 0), end_ns + 1), Ok(()));
}

#[test]
fn words_of_something_else_are_an_error() {
    let words = words_of(&old());
    let mut guard = guard();
    let mut refuses = |words: &[u64], error: ReplayError| {
        assert_eq!(guard.restore(words, 0), Err(error));
        assert_eq!((guard.open(), guard.closed()), (0, 0));
        ReplayGuard::seed_of(words)
    };
    let fresh = [0; 1_000];
    let nothing = Err(ReplayError::NotAReplayMemory);
    assert_eq!(refuses(&fresh, ReplayError::NotAReplayMemory), nothing);
    let too_short = |needed, given| ReplayError::TooShort { needed, given };
    refuses(&[], too_short(8, 0)).unwrap_err();
    let (needed, given) = (words.len(), words.len() - 1);
    refuses(&words[..given], too_short(needed, given)).unwrap_err();
    let mut newer = words.clone();
    newer[0] += 1;
    refuses(&newer, ReplayError::UnknownVersion(3)).unwrap_err();
    let mut other = words.clone();
    other[2] += 1;
    assert_eq!(refuses(&other, ReplayError::OtherSeed), Ok(SEED + 1));
}

#[test]
fn a_guard_at_work_takes_nothing_over() {
    let words = words_of(&old());
    let mut guard = guard();
    guard.hear(&beat(3, 3, 0), 0).unwrap();
    assert_eq!(guard.restore(&words, 0), Err(ReplayError::InUse));
}

#[test]
fn too_few_words_are_an_error_and_more_do_no_harm() {
    let needed = ReplayGuard::words_needed(options(2, 3));
    assert_eq!(needed, 8 + 2 * 8 + 3 * 3);
    let words = |count| -> Box<[AtomicU64]> { (0..count).map(|_| AtomicU64::new(0)).collect() };
    let given = needed - 1;
    let error = ReplayGuard::new(words(given), options(2, 3)).unwrap_err();
    assert_eq!(error, ReplayError::TooShort { needed, given });
    let mut guard = ReplayGuard::new(words(needed + 5), options(2, 3)).unwrap();
    guard.hear(&beat(1, 1, 0), 0).unwrap();
    assert_eq!(restored(&words_of(&guard), options(2, 3), 0).open(), 1);
}

#[test]
fn requests_beyond_reason_are_clamped() {
    let words = ReplayGuard::words_needed(options(usize::MAX, usize::MAX));
    assert_eq!(words, 8 + 11 * MAX_SESSIONS);
}
