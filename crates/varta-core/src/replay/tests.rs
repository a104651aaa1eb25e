mod departure;
mod ownership;

use super::*;

use ReplayRefusal::{Closed, Full, Seen};

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND_NS: u64 = 1_000_000_000;

fn options(sessions: usize, closed: usize) -> ReplayOptions {
    ReplayOptions {
        sessions,
        closed,
        seed: SEED,
    }
}

fn guard() -> ReplayGuard {
    ReplayGuard::on_heap(options(8, 16))
}

/// A beat of the agent `pid`, sealed under a shared key.
fn beat(pid: u32, prefix: u64, counter: u32) -> Arrival {
    Arrival {
        session: SessionKey {
            key: 0xfeed,
            pid: 0,
            prefix: prefix.to_le_bytes(),
        },
        counter,
        source: 1,
        pid,
        is_terminal: false,
    }
}

/// A last frame of the agent `pid`.
fn farewell(pid: u32, prefix: u64, counter: u32) -> Arrival {
    Arrival {
        is_terminal: true,
        ..beat(pid, prefix, counter)
    }
}

fn words_of(guard: &ReplayGuard) -> Vec<u64> {
    guard.memory.copy()
}

fn restored(words: &[u64], options: ReplayOptions, now_ns: u64) -> ReplayGuard {
    let mut guard = ReplayGuard::on_heap(options);
    guard.restore(words, now_ns).unwrap();
    guard
}

mod window {
    use super::*;

    #[test]
    fn a_datagram_is_heard_once() {
        let mut guard = guard();
        assert_eq!(guard.admit(&beat(1, 1, 0), 0), Ok(()));
        assert_eq!(guard.admit(&beat(1, 1, 0), 0), Err(Seen));
    }

    #[test]
    fn sessions_are_known_while_they_are_open_and_after() {
        let mut guard = guard();
        assert!(!guard.knows(&beat(1, 1, 0).session));
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        assert!(guard.knows(&beat(1, 1, 7).session));
        guard.admit(&beat(1, 2, 0), 0).unwrap();
        assert!(guard.knows(&beat(1, 1, 0).session));
        assert!(!guard.knows(&beat(1, 3, 0).session));
    }

    #[test]
    fn a_copy_from_another_source_is_the_same_datagram() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 5), 0).unwrap();
        let copy = Arrival {
            source: 2,
            ..beat(1, 1, 5)
        };
        assert_eq!(guard.admit(&copy, 0), Err(Seen));
        assert_eq!(guard.admit(&farewell(1, 1, 5), 0), Err(Seen));
        assert_eq!(guard.admit(&beat(9, 1, 5), 0), Err(Seen));
    }

    #[test]
    fn a_copy_is_known_after_a_thousand_newer_ones() {
        let mut guard = guard();
        for counter in 0..=1024 {
            guard.admit(&beat(1, 1, counter), 0).unwrap();
        }
        for counter in 0..=1024 {
            assert_eq!(guard.admit(&beat(1, 1, counter), 0), Err(Seen));
        }
    }

    #[test]
    fn every_part_of_the_session_key_tells_sessions_apart() {
        let mut guard = guard();
        let one = beat(1, 1, 0);
        let mut others = [one; 3];
        others[0].session.key = 1;
        others[1].session.pid = 1;
        others[2].session.prefix[7] = 1;
        guard.admit(&one, 0).unwrap();
        for (pid, other) in (2..).zip(others) {
            assert_eq!(guard.admit(&Arrival { pid, ..other }, 0), Ok(()));
        }
        assert_eq!(guard.open(), 4);
    }

    #[test]
    fn a_late_datagram_within_the_window_is_accepted_once() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 100), 0).unwrap();
        for counter in 37..100 {
            assert_eq!(guard.admit(&beat(1, 1, counter), 0), Ok(()), "{counter}");
            assert_eq!(guard.admit(&beat(1, 1, counter), 0), Err(Seen), "{counter}");
        }
    }

    #[test]
    fn a_datagram_below_the_window_is_too_old() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 100), 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 1, 36), 0), Err(Seen));
        assert_eq!(guard.admit(&beat(1, 1, 0), 0), Err(Seen));
    }

    #[test]
    fn what_was_heard_moves_with_the_window() {
        for step in [1, 2, 62, 63, 64, 65, 1 << 31] {
            let mut guard = guard();
            guard.admit(&beat(1, 1, 100), 0).unwrap();
            guard.admit(&beat(1, 1, 98), 0).unwrap();
            guard.admit(&beat(1, 1, 100 + step), 0).unwrap();
            for counter in [98, 100, 100 + step] {
                assert_eq!(guard.admit(&beat(1, 1, counter), 0), Err(Seen), "{step}");
            }
            let in_window = 99 + 64 > 100 + step;
            assert_eq!(guard.admit(&beat(1, 1, 99), 0).is_ok(), in_window, "{step}");
        }
    }

    #[test]
    fn a_session_may_begin_with_any_counter() {
        for counter in [0, 1, 2, 63, 64, 1 << 31, u32::MAX - 1, u32::MAX] {
            let mut guard = guard();
            assert_eq!(guard.admit(&beat(1, 1, counter), 0), Ok(()));
            assert_eq!(guard.admit(&beat(1, 1, counter), 0), Err(Seen));
        }
    }

    #[test]
    fn counters_do_not_wrap_and_a_new_prefix_goes_on() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, u32::MAX), 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 1, 0), 0), Err(Seen));
        assert_eq!(guard.admit(&beat(1, 2, 0), 0), Ok(()));
        assert_eq!(guard.admit(&beat(1, 1, u32::MAX), 0), Err(Closed));
    }
}

mod sessions {
    use super::*;

    #[test]
    fn an_older_session_is_closed_for_counters_never_heard_too() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 10), 0).unwrap();
        guard.admit(&beat(1, 2, 0), 0).unwrap();
        for counter in [9, 10, 11, u32::MAX] {
            assert_eq!(guard.admit(&beat(1, 1, counter), 0), Err(Closed));
            assert_eq!(guard.admit(&farewell(1, 1, counter), 0), Err(Closed));
        }
        assert_eq!((guard.open(), guard.closed()), (1, 1));
    }

    #[test]
    fn agents_with_one_pid_at_two_sources_close_nothing_of_each_other() {
        let mut guard = guard();
        let elsewhere = Arrival {
            source: 2,
            ..beat(1, 2, 0)
        };
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        guard.admit(&elsewhere, 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 1, 1), 0), Ok(()));
    }

    #[test]
    fn a_last_frame_closes_no_session_and_the_survivor_goes_on() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        guard.admit(&farewell(1, 2, 0), 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 1, 1), 0), Ok(()));
        assert_eq!(guard.admit(&farewell(1, 1, 2), 0), Ok(()), "same prefix");
        assert_eq!(guard.admit(&beat(1, 1, 3), 0), Ok(()));
        assert_eq!(guard.admit(&farewell(1, 2, 0), 0), Err(Seen));
    }

    #[test]
    fn many_prefixes_of_last_frames_take_one_record() {
        let mut guard = ReplayGuard::on_heap(options(2, 64));
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        for prefix in 2..40 {
            assert_eq!(guard.admit(&farewell(1, prefix, 0), 0), Ok(()));
            assert!(guard.admit(&farewell(1, prefix - 1, 0), 0).is_err());
        }
        assert_eq!(guard.open(), 2);
        assert_eq!(guard.admit(&beat(1, 1, 1), 0), Ok(()));
    }

    #[test]
    fn a_beat_over_a_farewell_session_makes_it_the_current_one() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        guard.admit(&farewell(1, 2, 0), 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 2, 1), 0), Ok(()));
        assert_eq!(guard.admit(&beat(1, 1, 1), 0), Err(Closed));
        guard.admit(&farewell(1, 3, 0), 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 2, 2), 0), Ok(()), "no farewell now");
    }

    #[test]
    fn a_beat_over_a_farewell_session_older_than_the_current_one_is_refused() {
        let mut guard = guard();
        guard.admit(&farewell(1, 1, 0), 0).unwrap();
        guard.admit(&beat(1, 2, 0), 0).unwrap();
        assert_eq!(guard.admit(&beat(1, 1, 1), 0), Err(Closed));
        assert_eq!(guard.admit(&farewell(1, 1, 1), 0), Ok(()));
        assert_eq!(guard.admit(&beat(1, 2, 1), 0), Ok(()));
    }

    #[test]
    fn the_closed_sessions_remembered_are_the_latest() {
        let mut guard = ReplayGuard::on_heap(options(8, 4));
        for prefix in 0..10 {
            guard.admit(&beat(1, prefix, 0), 0).unwrap();
        }
        assert_eq!(guard.closed(), 4);
        for prefix in 5..9 {
            assert_eq!(guard.admit(&beat(1, prefix, 1), 0), Err(Closed));
        }
        assert_eq!(guard.admit(&beat(1, 4, 1), 0), Ok(()), "forgotten");
    }

    #[test]
    fn a_hash_of_zero_is_remembered_and_an_empty_entry_is_none() {
        let mut guard = ReplayGuard::on_heap(options(8, 3));
        assert_eq!(guard.closed.get(&SessionHash(0)), None);
        guard.remember(SessionHash(0));
        guard.remember(SessionHash(7));
        let mut guard = restored(&words_of(&guard), options(8, 3), 0);
        assert_eq!(guard.closed.get(&SessionHash(0)), Some(0));
        assert_eq!(guard.closed(), 2);
        guard.remember(SessionHash(8));
        guard.remember(SessionHash(9));
        assert_eq!(guard.closed.get(&SessionHash(0)), None);
    }

    #[test]
    fn a_session_closed_twice_is_remembered_as_long_as_the_later_time_allows() {
        let mut guard = ReplayGuard::on_heap(options(8, 3));
        for hash in [1, 2, 1, 3] {
            guard.remember(SessionHash(hash));
        }
        assert_eq!(guard.closed.get(&SessionHash(1)), Some(2));
        guard.remember(SessionHash(4));
        assert!(guard.closed.get(&SessionHash(1)).is_some());
        guard.remember(SessionHash(5));
        assert_eq!(guard.closed.get(&SessionHash(1)), None);
    }

    /// Nobody can find two such sessions, so the index is told a lie.
    #[test]
    fn a_second_session_of_the_same_hash_is_refused() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        let twin = beat(2, 2, 7);
        let _ = guard.open.insert(guard.hash(&twin.session), 0);
        assert_eq!(guard.admit(&twin, 0), Err(Closed));
    }
}

mod room {
    use super::*;

    /// Four agents fill a table for four.
    fn full() -> ReplayGuard {
        let mut guard = ReplayGuard::on_heap(options(4, 16));
        for pid in 1..=4 {
            guard.admit(&beat(pid, u64::from(pid), 0), 0).unwrap();
        }
        guard
    }

    #[test]
    fn a_full_table_refuses_newcomers_and_keeps_the_live() {
        let mut guard = full();
        for pid in 100..300 {
            assert_eq!(guard.admit(&beat(pid, pid.into(), 0), LIVE_NS), Err(Full));
            assert_eq!(guard.admit(&farewell(1, pid.into(), 0), 0), Err(Full));
        }
        for pid in 1..=4 {
            assert_eq!(guard.admit(&beat(pid, pid.into(), 1), 1), Ok(()));
        }
    }

    #[test]
    fn a_new_session_of_a_known_agent_needs_no_room() {
        let mut guard = full();
        for prefix in 100..200 {
            assert_eq!(guard.admit(&beat(1, prefix, 0), 0), Ok(()));
        }
        assert_eq!((guard.open(), guard.closed()), (4, 16));
        for pid in 2..=4 {
            assert_eq!(guard.admit(&beat(pid, pid.into(), 1), 1), Ok(()));
        }
    }

    #[test]
    fn the_silent_give_way_and_are_closed() {
        let mut guard = full();
        let now_ns = LIVE_NS + 1;
        for pid in [1, 2, 4] {
            guard.admit(&beat(pid, pid.into(), 1), now_ns).unwrap();
        }
        assert_eq!(guard.admit(&beat(9, 9, 0), now_ns), Ok(()));
        assert_eq!(guard.admit(&beat(3, 3, 1), now_ns), Err(Closed));
        assert_eq!(guard.admit(&beat(10, 10, 0), now_ns), Err(Full));
    }

    #[test]
    fn ten_minutes_of_silence_are_not_too_long() {
        let mut guard = full();
        assert_eq!(guard.admit(&beat(9, 9, 0), LIVE_NS), Err(Full));
        assert_eq!(guard.admit(&beat(9, 9, 0), LIVE_NS + 1), Ok(()));
    }

    #[test]
    fn long_silence_keeps_the_session_while_there_is_room() {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 5), 0).unwrap();
        let now_ns = 1_000 * LIVE_NS;
        guard.admit(&beat(2, 2, 0), now_ns).unwrap();
        assert_eq!(guard.admit(&beat(1, 1, 5), now_ns), Err(Seen));
        assert_eq!(guard.admit(&beat(1, 1, 6), now_ns), Ok(()));
    }

    #[test]
    fn a_refused_copy_does_not_end_a_silence() {
        let mut guard = full();
        assert_eq!(guard.admit(&beat(1, 1, 0), LIVE_NS), Err(Seen));
        assert_eq!(guard.admit(&beat(9, 9, 0), LIVE_NS + 1), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_makes_nobody_silent() {
        let mut guard = full();
        guard.admit(&beat(1, 1, 1), 2 * LIVE_NS).unwrap();
        for pid in 1..=4 {
            guard.admit(&beat(pid, pid.into(), 2), 0).unwrap();
        }
        assert_eq!(guard.admit(&beat(9, 9, 0), 0), Err(Full));
        for pid in 2..=4 {
            guard.admit(&beat(pid, pid.into(), 3), 3 * LIVE_NS).unwrap();
        }
        let now_ns = 3 * LIVE_NS;
        assert_eq!(
            guard.admit(&beat(9, 9, 0), now_ns),
            Err(Full),
            "heard at 2 x LIVE"
        );
    }

    #[test]
    fn a_silent_one_in_a_large_table_is_found_within_a_few_attempts() {
        let sessions = 1_000;
        let mut guard = ReplayGuard::on_heap(options(sessions, 16));
        for pid in 0..sessions as u32 {
            let heard_ns = if pid == 900 { 0 } else { SECOND_NS };
            guard.admit(&beat(pid, pid.into(), 0), heard_ns).unwrap();
        }
        let newcomer = beat(5_000, 5_000, 0);
        let now_ns = LIVE_NS + 1;
        let refused = (0..20).take_while(|_| guard.admit(&newcomer, now_ns).is_err());
        assert_eq!(refused.count(), 900 / SCAN_RECORDS as usize);
    }

    #[test]
    fn silent_ones_side_by_side_are_found_one_by_one() {
        let sessions = 1_000;
        let mut guard = ReplayGuard::on_heap(options(sessions, 16));
        for pid in 0..sessions as u32 {
            let heard_ns = if pid < 10 { 0 } else { SECOND_NS };
            guard.admit(&beat(pid, pid.into(), 0), heard_ns).unwrap();
        }
        for pid in 5_000..5_010 {
            let newcomer = beat(pid, pid.into(), 0);
            assert_eq!(guard.admit(&newcomer, LIVE_NS + 1), Ok(()));
        }
    }

    #[test]
    fn agents_may_come_and_go_for_ever() {
        let mut guard = full();
        for round in 2..1_000 {
            let (pid, prefix) = (round as u32 * 2, round * 4);
            let now_ns = round * 2 * LIVE_NS;
            guard.admit(&farewell(pid, prefix, 0), now_ns).unwrap();
            guard.admit(&beat(pid, prefix, 1), now_ns).unwrap();
            guard.admit(&beat(pid + 1, prefix, 2), now_ns).unwrap();
            guard.admit(&beat(pid, prefix + 1, 0), now_ns).unwrap();
            guard.depart(1, pid);
            let older = beat(pid, prefix, 3);
            assert_eq!(guard.admit(&older, now_ns), Err(Closed), "{round}");
        }
        assert_eq!(guard.owners.len(), guard.open());
    }

    #[test]
    fn sizes_of_zero_are_taken_for_one() {
        let mut guard = ReplayGuard::on_heap(options(0, 0));
        assert_eq!(guard.admit(&beat(1, 1, 0), 0), Ok(()));
        assert_eq!(guard.admit(&beat(2, 2, 0), 0), Err(Full));
        assert_eq!(guard.admit(&beat(1, 3, 0), 0), Ok(()));
        assert_eq!(guard.admit(&beat(1, 1, 1), 0), Err(Closed));
    }

    #[test]
    fn a_refusal_changes_no_word() {
        let mut guard = full();
        guard.admit(&beat(1, 11, 0), 0).unwrap();
        let refused = [
            (beat(1, 11, 0), Seen),
            (beat(1, 1, 1), Closed),
            (beat(9, 9, 0), Full),
            (farewell(1, 9, 0), Full),
        ];
        let before = words_of(&guard);
        for (arrival, refusal) in refused {
            assert_eq!(guard.admit(&arrival, SECOND_NS), Err(refusal));
            assert_eq!(words_of(&guard), before, "{refusal:?}");
        }
    }
}

mod memory_of_an_earlier_guard {
    use super::*;

    /// Agent 1 has a current and a farewell session and closed one, 2 has a session with a gap.
    fn old() -> ReplayGuard {
        let mut guard = guard();
        guard.admit(&beat(1, 1, 7), 5).unwrap();
        guard.admit(&beat(1, 11, 3), 6).unwrap();
        guard.admit(&farewell(1, 12, 1), 6).unwrap();
        guard.admit(&beat(2, 2, 50), 7).unwrap();
        guard.admit(&beat(2, 2, 48), 8).unwrap();
        guard
    }

    fn assert_remembers(mut guard: ReplayGuard) {
        assert_eq!(guard.admit(&beat(1, 1, 8), 0), Err(Closed));
        assert_eq!(guard.admit(&beat(1, 11, 3), 0), Err(Seen));
        assert_eq!(guard.admit(&farewell(1, 12, 1), 0), Err(Seen));
        assert_eq!(guard.admit(&beat(2, 2, 50), 0), Err(Seen));
        assert_eq!(guard.admit(&beat(2, 2, 48), 0), Err(Seen));
        assert_eq!(guard.admit(&beat(2, 2, 49), 0), Ok(()));
        assert_eq!(guard.admit(&beat(1, 12, 2), 0), Ok(()), "newer than 11");
        assert_eq!(guard.admit(&beat(1, 11, 4), 0), Err(Closed));
        assert_eq!(guard.admit(&beat(2, 20, 0), 0), Ok(()));
        assert_eq!(guard.admit(&beat(2, 2, 51), 0), Err(Closed));
    }

    #[test]
    fn windows_closed_sessions_and_their_order_are_taken_over() {
        let words = words_of(&old());
        assert_eq!(ReplayGuard::seed_of(&words), Ok(SEED));
        let new = restored(&words, options(8, 16), 0);
        assert_eq!((new.open(), new.closed()), (3, 1));
        let again = restored(&words_of(&new), options(8, 16), 0);
        assert_remembers(new);
        assert_remembers(again);
    }

    #[test]
    fn another_size_takes_over_what_it_has_room_for() {
        let words = words_of(&old());
        for options in [options(3, 16), options(100, 1_000), options(4, 3)] {
            assert_remembers(restored(&words, options, 0));
        }
    }

    #[test]
    fn a_smaller_table_closes_those_silent_for_longest() {
        let mut guard = guard();
        for pid in 1..=8 {
            guard.admit(&beat(pid, pid.into(), 0), 0).unwrap();
        }
        guard.admit(&beat(3, 3, 1), 1).unwrap();
        guard.admit(&beat(6, 6, 1), 2).unwrap();
        let mut small = ReplayGuard::on_heap(options(2, 16));
        assert_eq!(small.restore(&words_of(&guard), 9), Ok(6));
        for pid in 1..=8 {
            let is_kept = pid == 3 || pid == 6;
            let expected = if is_kept { Ok(()) } else { Err(Closed) };
            assert_eq!(small.admit(&beat(pid, pid.into(), 2), 9), expected, "{pid}");
        }
    }

    #[test]
    fn a_smaller_ring_forgets_the_oldest() {
        let mut guard = guard();
        for prefix in 0..10 {
            guard.admit(&beat(1, prefix, 0), 0).unwrap();
        }
        let mut small = restored(&words_of(&guard), options(8, 2), 0);
        assert_eq!(small.closed(), 2);
        assert_eq!(small.admit(&beat(1, 8, 1), 0), Err(Closed));
        assert_eq!(small.admit(&beat(1, 7, 1), 0), Err(Closed));
        assert_eq!(small.admit(&beat(1, 6, 1), 0), Ok(()));
    }

    #[test]
    fn everybody_counts_as_heard_at_the_restart() {
        let mut guard = ReplayGuard::on_heap(options(2, 4));
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        guard.admit(&beat(2, 2, 0), u64::MAX).unwrap();
        let start_ns = 5 * LIVE_NS;
        let mut guard = restored(&words_of(&guard), options(2, 4), start_ns);
        let end_ns = start_ns + LIVE_NS;
        assert_eq!(guard.admit(&beat(9, 9, 0), end_ns), Err(Full));
        assert_eq!(guard.admit(&beat(8, 8, 0), end_ns + 1), Ok(()));
        assert_eq!(guard.admit(&beat(9, 9, 0), end_ns + 1), Ok(()));
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
        refuses(&newer, ReplayError::UnknownVersion(2)).unwrap_err();
        let mut other = words.clone();
        other[2] += 1;
        assert_eq!(refuses(&other, ReplayError::OtherSeed), Ok(SEED + 1));
    }

    #[test]
    fn a_guard_at_work_takes_nothing_over() {
        let words = words_of(&old());
        let mut guard = guard();
        guard.admit(&beat(3, 3, 0), 0).unwrap();
        assert_eq!(guard.restore(&words, 0), Err(ReplayError::InUse));
    }

    #[test]
    fn too_few_words_are_an_error_and_more_do_no_harm() {
        let needed = ReplayGuard::words_needed(options(2, 3));
        assert_eq!(needed, 8 + 2 * 8 + 3);
        let words = |count| -> Box<[AtomicU64]> { (0..count).map(|_| AtomicU64::new(0)).collect() };
        let given = needed - 1;
        let error = ReplayGuard::new(words(given), options(2, 3)).unwrap_err();
        assert_eq!(error, ReplayError::TooShort { needed, given });
        let mut guard = ReplayGuard::new(words(needed + 5), options(2, 3)).unwrap();
        guard.admit(&beat(1, 1, 0), 0).unwrap();
        assert_eq!(restored(&words_of(&guard), options(2, 3), 0).open(), 1);
    }

    #[test]
    fn requests_beyond_reason_are_clamped() {
        let words = ReplayGuard::words_needed(options(usize::MAX, usize::MAX));
        assert_eq!(words, 8 + 9 * MAX_SESSIONS);
    }
}
