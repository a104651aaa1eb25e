mod departure;
mod ownership;

use super::*;

use ReplayRefusal::{Full, Seen, TooMany};

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND_NS: u64 = 1_000_000_000;

/// Threshold of all agents; sessions are quiet after half of it.
const T: u64 = 10 * SECOND_NS;
const QUIET: u64 = T / 2;

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
        continues: false,
    }
}

/// A last frame of the agent `pid`.
fn farewell(pid: u32, prefix: u64, counter: u32) -> Arrival {
    Arrival {
        is_terminal: true,
        ..beat(pid, prefix, counter)
    }
}

impl ReplayGuard {
    fn hear(&mut self, arrival: &Arrival, now_ns: u64) -> Result<(), ReplayRefusal> {
        self.admit(arrival, T, now_ns).map(drop)
    }

    fn is_open(&self, arrival: &Arrival) -> bool {
        self.open.get(&self.hash(&arrival.session)).is_some()
    }

    fn close_session_of(&mut self, arrival: &Arrival) {
        let number = self.open.get(&self.hash(&arrival.session)).unwrap();
        self.close(number);
    }

    fn source(&self, session: &SessionKey) -> Option<u64> {
        self.look_up(session, 0).source
    }
}

/// Agent 1 has as many sessions as it may have, with prefixes from 0 on.
fn all_taken() -> ReplayGuard {
    let mut guard = guard();
    for prefix in 0..SESSIONS_PER_AGENT as u64 {
        guard.hear(&beat(1, prefix, 0), 0).unwrap();
    }
    guard
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
        assert_eq!(guard.hear(&beat(1, 1, 0), 0), Ok(()));
        assert_eq!(guard.hear(&beat(1, 1, 0), 0), Err(Seen));
    }

    #[test]
    fn a_datagram_would_open_a_session_that_is_new_or_closed_unless_it_was_heard() {
        let mut guard = guard();
        let opens =
            |guard: &ReplayGuard, counter| guard.look_up(&beat(1, 1, 0).session, counter).opens;
        assert!(opens(&guard, 5));
        guard.hear(&beat(1, 1, 5), 0).unwrap();
        assert!(!opens(&guard, 6));
        guard.close_session_of(&beat(1, 1, 5));
        assert!(!opens(&guard, 5));
        assert!(opens(&guard, 6));
    }

    #[test]
    fn a_copy_from_another_source_is_the_same_datagram() {
        let mut guard = guard();
        guard.hear(&beat(1, 1, 5), 0).unwrap();
        let copy = Arrival {
            source: 2,
            ..beat(1, 1, 5)
        };
        assert_eq!(guard.hear(&copy, 0), Err(Seen));
        assert_eq!(guard.hear(&farewell(1, 1, 5), 0), Err(Seen));
        assert_eq!(guard.hear(&beat(9, 1, 5), 0), Err(Seen));
    }

    #[test]
    fn a_copy_is_known_after_a_thousand_newer_ones() {
        let mut guard = guard();
        for counter in 0..=1024 {
            guard.hear(&beat(1, 1, counter), 0).unwrap();
        }
        for counter in 0..=1024 {
            assert_eq!(guard.hear(&beat(1, 1, counter), 0), Err(Seen));
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
        guard.hear(&one, 0).unwrap();
        for (pid, other) in (2..).zip(others) {
            assert_eq!(guard.hear(&Arrival { pid, ..other }, 0), Ok(()));
        }
        assert_eq!(guard.open(), 4);
    }

    #[test]
    fn a_late_datagram_within_the_window_is_accepted_once() {
        let mut guard = guard();
        guard.hear(&beat(1, 1, 100), 0).unwrap();
        for counter in 37..100 {
            assert_eq!(guard.hear(&beat(1, 1, counter), 0), Ok(()), "{counter}");
            assert_eq!(guard.hear(&beat(1, 1, counter), 0), Err(Seen), "{counter}");
        }
    }

    #[test]
    fn a_datagram_below_the_window_is_too_old() {
        let mut guard = guard();
        guard.hear(&beat(1, 1, 100), 0).unwrap();
        assert_eq!(guard.hear(&beat(1, 1, 36), 0), Err(Seen));
        assert_eq!(guard.hear(&beat(1, 1, 0), 0), Err(Seen));
    }

    #[test]
    fn what_was_heard_moves_with_the_window() {
        for step in [1, 2, 62, 63, 64, 65, 1 << 31] {
            let mut guard = guard();
            guard.hear(&beat(1, 1, 100), 0).unwrap();
            guard.hear(&beat(1, 1, 98), 0).unwrap();
            guard.hear(&beat(1, 1, 100 + step), 0).unwrap();
            for counter in [98, 100, 100 + step] {
                assert_eq!(guard.hear(&beat(1, 1, counter), 0), Err(Seen), "{step}");
            }
            let in_window = 99 + 64 > 100 + step;
            assert_eq!(guard.hear(&beat(1, 1, 99), 0).is_ok(), in_window, "{step}");
        }
    }

    #[test]
    fn a_session_may_begin_with_any_counter() {
        for counter in [0, 1, 2, 63, 64, 1 << 31, u32::MAX - 1, u32::MAX] {
            let mut guard = guard();
            assert_eq!(guard.hear(&beat(1, 1, counter), 0), Ok(()));
            assert_eq!(guard.hear(&beat(1, 1, counter), 0), Err(Seen));
        }
    }

    #[test]
    fn counters_do_not_wrap_and_a_new_prefix_goes_on() {
        let mut guard = guard();
        guard.hear(&beat(1, 1, u32::MAX), 0).unwrap();
        assert_eq!(guard.hear(&beat(1, 1, 0), 0), Err(Seen));
        assert_eq!(guard.hear(&beat(1, 2, 0), 0), Ok(()));
        assert_eq!(guard.hear(&beat(1, 1, u32::MAX), 0), Err(Seen));
    }

    #[test]
    fn a_datagram_is_told_where_it_stands_in_its_session() {
        let mut guard = guard();
        let mut place = |counter| guard.admit(&beat(1, 1, counter), T, 0).unwrap();
        let places = [5, 7, 6, 8].map(&mut place);
        use Heard::{First, Newest, Overtaken};
        assert_eq!(places, [First, Newest, Overtaken, Newest]);
    }
}

mod sessions {
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

    /// Closes a session without anybody having heard of it.
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

    /// Nobody can find two such sessions, so the index is told a lie.
    #[test]
    fn a_second_session_of_the_same_hash_is_refused() {
        let mut guard = guard();
        guard.hear(&beat(1, 1, 0), 0).unwrap();
        let twin = beat(2, 2, 7);
        let _ = guard.open.insert(guard.hash(&twin.session), 0);
        assert_eq!(guard.hear(&twin, 0), Err(Seen));
    }
}

mod room {
    use super::*;

    /// Four agents fill a table for four.
    fn full() -> ReplayGuard {
        let mut guard = ReplayGuard::on_heap(options(4, 16));
        for pid in 1..=4 {
            guard.hear(&beat(pid, u64::from(pid), 0), 0).unwrap();
        }
        guard
    }

    #[test]
    fn a_full_table_refuses_newcomers_and_keeps_the_live() {
        let mut guard = full();
        for pid in 100..300 {
            assert_eq!(guard.hear(&beat(pid, pid.into(), 0), LIVE_NS), Err(Full));
            assert_eq!(guard.hear(&farewell(1, pid.into(), 0), 0), Err(Full));
        }
        for pid in 1..=4 {
            assert_eq!(guard.hear(&beat(pid, pid.into(), 1), 1), Ok(()));
        }
    }

    #[test]
    fn a_full_table_has_room_for_another_session_of_an_agent_once_its_last_one_is_quiet() {
        let mut guard = full();
        assert_eq!(guard.hear(&beat(1, 99, 0), QUIET - 1), Err(Full));
        for turn in 1..100 {
            let now_ns = turn * QUIET;
            assert_eq!(guard.hear(&beat(1, 100 + turn, 0), now_ns), Ok(()));
        }
        assert_eq!((guard.open(), guard.closed()), (4, 16));
        for pid in 2..=4 {
            assert_eq!(guard.hear(&beat(pid, pid.into(), 1), 1), Ok(()));
        }
    }

    #[test]
    fn the_silent_give_way_and_are_closed() {
        let mut guard = full();
        let now_ns = LIVE_NS + 1;
        for pid in [1, 2, 4] {
            guard.hear(&beat(pid, pid.into(), 1), now_ns).unwrap();
        }
        assert_eq!(guard.hear(&beat(9, 9, 0), now_ns), Ok(()));
        assert!(!guard.is_open(&beat(3, 3, 1)));
        assert_eq!(guard.hear(&beat(10, 10, 0), now_ns), Err(Full));
    }

    #[test]
    fn ten_minutes_of_silence_are_not_too_long() {
        let mut guard = full();
        assert_eq!(guard.hear(&beat(9, 9, 0), LIVE_NS), Err(Full));
        assert_eq!(guard.hear(&beat(9, 9, 0), LIVE_NS + 1), Ok(()));
    }

    #[test]
    fn long_silence_keeps_the_session_while_there_is_room() {
        let mut guard = guard();
        guard.hear(&beat(1, 1, 5), 0).unwrap();
        let now_ns = 1_000 * LIVE_NS;
        guard.hear(&beat(2, 2, 0), now_ns).unwrap();
        assert_eq!(guard.hear(&beat(1, 1, 5), now_ns), Err(Seen));
        assert_eq!(guard.hear(&beat(1, 1, 6), now_ns), Ok(()));
    }

    #[test]
    fn a_refused_copy_does_not_end_a_silence() {
        let mut guard = full();
        assert_eq!(guard.hear(&beat(1, 1, 0), LIVE_NS), Err(Seen));
        assert_eq!(guard.hear(&beat(9, 9, 0), LIVE_NS + 1), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_makes_nobody_silent() {
        let mut guard = full();
        guard.hear(&beat(1, 1, 1), 2 * LIVE_NS).unwrap();
        for pid in 1..=4 {
            guard.hear(&beat(pid, pid.into(), 2), 0).unwrap();
        }
        assert_eq!(guard.hear(&beat(9, 9, 0), 0), Err(Full));
        for pid in 2..=4 {
            guard.hear(&beat(pid, pid.into(), 3), 3 * LIVE_NS).unwrap();
        }
        let now_ns = 3 * LIVE_NS;
        assert_eq!(
            guard.hear(&beat(9, 9, 0), now_ns),
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
            guard.hear(&beat(pid, pid.into(), 0), heard_ns).unwrap();
        }
        let newcomer = beat(5_000, 5_000, 0);
        let now_ns = LIVE_NS + 1;
        let refused = (0..20).take_while(|_| guard.hear(&newcomer, now_ns).is_err());
        assert_eq!(refused.count(), 900 / SCAN_RECORDS as usize);
    }

    #[test]
    fn silent_ones_side_by_side_are_found_one_by_one() {
        let sessions = 1_000;
        let mut guard = ReplayGuard::on_heap(options(sessions, 16));
        for pid in 0..sessions as u32 {
            let heard_ns = if pid < 10 { 0 } else { SECOND_NS };
            guard.hear(&beat(pid, pid.into(), 0), heard_ns).unwrap();
        }
        for pid in 5_000..5_010 {
            let newcomer = beat(pid, pid.into(), 0);
            assert_eq!(guard.hear(&newcomer, LIVE_NS + 1), Ok(()));
        }
    }

    #[test]
    fn agents_may_come_and_go_for_ever() {
        let mut guard = full();
        for round in 2..1_000 {
            let (pid, prefix) = (round as u32 * 2, round * 4);
            let now_ns = round * 2 * LIVE_NS;
            guard.hear(&farewell(pid, prefix, 0), now_ns).unwrap();
            guard.hear(&beat(pid, prefix, 1), now_ns).unwrap();
            guard.hear(&beat(pid + 1, prefix, 2), now_ns).unwrap();
            guard.hear(&beat(pid, prefix + 1, 0), now_ns).unwrap();
            guard.depart(1, pid);
            assert_eq!(guard.open(), 4, "{round}");
        }
        assert_eq!(guard.places.len(), guard.open());
    }

    #[test]
    fn sizes_of_zero_are_taken_for_one() {
        let mut guard = ReplayGuard::on_heap(options(0, 0));
        assert_eq!(guard.hear(&beat(1, 1, 0), 0), Ok(()));
        assert_eq!(guard.hear(&beat(2, 2, 0), 0), Err(Full));
        assert_eq!(guard.hear(&beat(1, 3, 0), QUIET), Ok(()));
        assert!(!guard.is_open(&beat(1, 1, 1)));
    }

    #[test]
    fn a_refusal_changes_no_word() {
        let mut guard = ReplayGuard::on_heap(options(SESSIONS_PER_AGENT + 1, 16));
        guard.hear(&beat(1, 10, 0), 0).unwrap();
        guard.close_session_of(&beat(1, 10, 0));
        for prefix in 0..SESSIONS_PER_AGENT as u64 {
            guard.hear(&beat(1, prefix, 0), 0).unwrap();
        }
        guard.hear(&beat(2, 20, 0), 0).unwrap();
        let refused = [
            (beat(1, 0, 0), Seen),
            (beat(1, 10, 0), Seen),
            (beat(1, 11, 0), TooMany),
            (beat(1, 10, 1), TooMany),
            (beat(9, 9, 0), Full),
            (farewell(1, 9, 0), Full),
        ];
        let before = words_of(&guard);
        for (arrival, refusal) in refused {
            assert_eq!(guard.hear(&arrival, SECOND_NS), Err(refusal));
            assert_eq!(words_of(&guard), before, "{refusal:?}");
        }
    }
}

mod memory_of_an_earlier_guard {
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
    fn everybody_counts_as_heard_at_the_restart() {
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
}
