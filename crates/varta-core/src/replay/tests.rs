mod departure;
mod memory_of_an_earlier_guard;
mod ownership;
mod sessions;

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
    fn the_position_of_a_datagram_in_its_session_is_returned() {
        let mut guard = guard();
        let mut place = |counter| guard.admit(&beat(1, 1, counter), T, 0).unwrap();
        let places = [5, 7, 6, 8].map(&mut place);
        use Heard::{First, Newest, Overtaken};
        assert_eq!(places, [First, Newest, Overtaken, Newest]);
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
    fn a_clock_that_goes_back_makes_no_session_silent() {
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
