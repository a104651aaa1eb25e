//! Boundaries of the wheel, and its invariant under any calls.

use super::*;

const TICK: u64 = 1 << TICK_SHIFT;

/// Every timer that is due at `now_ns`, in order.
fn drain(wheel: &mut Wheel, now_ns: u64) -> Vec<u32> {
    let mut budget = u32::MAX;
    let fired = std::iter::from_fn(|| wheel.pop_due(now_ns, &mut budget)).collect();
    check(wheel);
    fired
}

/// The invariant of [`Wheel`], checked timer by timer.
fn check(wheel: &Wheel) {
    let mut armed = 0;
    for (list, bounds) in wheel.lists.iter().enumerate() {
        let level = list / BUCKETS;
        let bit = list % BUCKETS;
        if list != DUE {
            let occupied = wheel.occupied[level] >> bit & 1 == 1;
            assert_eq!(occupied, bounds.head != NONE, "bitmap of list {list}");
        }
        let (mut slot, mut previous) = (bounds.head, NONE);
        while slot != NONE {
            let timer = wheel.timers[slot as usize];
            assert_eq!((timer.list as usize, timer.previous), (list, previous));
            assert!(timer.tick >= bounds.earliest);
            if list == DUE {
                assert!(timer.tick <= wheel.elapsed);
            } else {
                let shift = DIGIT_BITS * level as u32;
                assert!(timer.tick >= wheel.elapsed, "a timer was left behind");
                assert_eq!(timer.tick >> shift & 63, bit as u64);
                let difference = timer.tick ^ wheel.elapsed;
                assert_eq!(difference >> shift >> DIGIT_BITS, 0, "wrong level");
                assert_eq!(difference >> shift == 0, list == wheel.open);
            }
            armed += 1;
            previous = slot;
            slot = timer.next;
        }
        assert_eq!(bounds.tail, previous);
    }
    let marked = wheel.timers.iter().filter(|timer| timer.list != IDLE);
    assert_eq!((armed, marked.count()), (wheel.len, wheel.len));
}

#[test]
fn a_timer_fires_at_its_tick_and_not_a_nanosecond_earlier() {
    for (deadline_ns, fires_ns) in [
        (1, TICK),
        (TICK - 1, TICK),
        (TICK, TICK),
        (TICK + 1, 2 * TICK),
        (1_000_000_000, 1_000_000_000_u64.next_multiple_of(TICK)),
    ] {
        let mut wheel = Wheel::new(1);
        wheel.arm(0, deadline_ns);
        assert_eq!(wheel.next_deadline_ns(), Some(fires_ns));
        assert_eq!(drain(&mut wheel, fires_ns - 1), []);
        assert!(wheel.is_armed(0));
        assert_eq!(drain(&mut wheel, fires_ns), [0]);
        assert!(!wheel.is_armed(0) && wheel.is_empty());
        assert_eq!(wheel.next_deadline_ns(), None);
    }
}

#[test]
fn every_boundary_between_levels_is_exact() {
    let boundaries = (1..LEVELS as u32).map(|level| 1_u64 << (DIGIT_BITS * level));
    let ticks = boundaries.flat_map(|tick| [tick - 1, tick, tick + 1]);
    let ticks = ticks.collect::<Vec<_>>();
    for start in [0, 1, 63, 64, 4095, 4096, 1 << 30] {
        let mut wheel = Wheel::new(ticks.len());
        drain(&mut wheel, start * TICK);
        for (slot, tick) in ticks.iter().enumerate() {
            wheel.arm(slot as u32, (start + tick) * TICK);
        }
        for (slot, tick) in ticks.iter().enumerate() {
            let due_ns = (start + tick) * TICK;
            assert_eq!(wheel.next_deadline_ns(), Some(due_ns));
            assert_eq!(
                drain(&mut wheel, due_ns - 1),
                [],
                "start {start} tick {tick}"
            );
            assert_eq!(wheel.next_deadline_ns(), Some(due_ns));
            assert_eq!(drain(&mut wheel, due_ns), [slot as u32]);
        }
    }
}

#[test]
fn one_jump_over_all_levels_fires_everything_in_order() {
    let mut wheel = Wheel::new(LEVELS);
    for level in (0..LEVELS as u32).rev() {
        wheel.arm(level, TICK << (DIGIT_BITS * level));
    }
    assert_eq!(wheel.len(), LEVELS);
    assert_eq!(
        drain(&mut wheel, u64::MAX),
        (0..LEVELS as u32).collect::<Vec<_>>()
    );
}

#[test]
fn timers_of_one_tick_fire_in_the_order_of_arming() {
    let mut wheel = Wheel::new(8);
    for slot in [3, 1, 4, 0] {
        wheel.arm(slot, 5000 * TICK);
    }
    drain(&mut wheel, 4995 * TICK);
    for slot in [5, 2] {
        wheel.arm(slot, 5000 * TICK);
    }
    assert_eq!(drain(&mut wheel, 5000 * TICK), [3, 1, 4, 0, 5, 2]);
}

#[test]
fn a_cancelled_timer_never_fires() {
    let mut wheel = Wheel::new(3);
    for slot in 0..3 {
        wheel.arm(slot, 100 * TICK);
    }
    assert!(wheel.cancel(1));
    assert!(!wheel.cancel(1));
    assert_eq!(wheel.len(), 2);
    assert_eq!(drain(&mut wheel, u64::MAX), [0, 2]);
}

#[test]
fn arming_again_moves_a_timer_earlier_and_later() {
    let mut wheel = Wheel::new(2);
    wheel.arm(0, 1000 * TICK);
    wheel.arm(1, 500 * TICK);
    wheel.arm(0, 10 * TICK);
    assert_eq!(
        (wheel.len(), wheel.next_deadline_ns()),
        (2, Some(10 * TICK))
    );
    wheel.arm(0, 100_000 * TICK);
    assert_eq!(
        (wheel.len(), wheel.next_deadline_ns()),
        (2, Some(500 * TICK))
    );
    assert_eq!(drain(&mut wheel, 99_999 * TICK), [1]);
    assert_eq!(drain(&mut wheel, 100_000 * TICK), [0]);
}

#[test]
fn a_deadline_in_the_past_is_due_at_once() {
    let mut wheel = Wheel::new(3);
    drain(&mut wheel, 1000 * TICK + 5);
    wheel.arm(2, 1000 * TICK);
    wheel.arm(0, 0);
    wheel.arm(1, 1000 * TICK + 1);
    assert_eq!(wheel.next_deadline_ns(), Some(1000 * TICK));
    assert_eq!(drain(&mut wheel, 1000 * TICK + 5), [2, 0]);
    assert_eq!(wheel.next_deadline_ns(), Some(1001 * TICK));
}

#[test]
fn rearming_in_the_past_delays_no_other_timer() {
    let mut wheel = Wheel::new(3);
    for slot in 0..3 {
        wheel.arm(slot, 100 * TICK);
    }
    let mut budget = 1000;
    let mut order = Vec::new();
    for _ in 0..5 {
        let slot = wheel.pop_due(100 * TICK, &mut budget).unwrap();
        order.push(slot);
        if slot == 0 {
            wheel.arm(0, 0);
        }
    }
    assert_eq!(order, [0, 1, 2, 0, 0]);
}

#[test]
fn a_budget_of_one_resumes_without_loss() {
    let mut wheel = Wheel::new(100);
    for slot in 0..100 {
        wheel.arm(slot, (5000 + u64::from(slot) % 3) * TICK);
    }
    let mut fired = Vec::new();
    let mut calls = 0;
    while fired.len() < 100 {
        let mut budget = 1;
        fired.extend(wheel.pop_due(6000 * TICK, &mut budget));
        assert_eq!(budget, 0, "every call does its work");
        calls += 1;
        check(&wheel);
    }
    assert!(calls <= 100 * LEVELS, "{calls} steps for 100 timers");
    let by_tick = (0..3).flat_map(|tick| (tick..100).step_by(3));
    assert_eq!(fired, by_tick.collect::<Vec<u32>>());
    let mut budget = 1;
    assert_eq!((wheel.pop_due(6000 * TICK, &mut budget), budget), (None, 1));
}

#[test]
fn timers_armed_and_cancelled_while_a_bucket_is_half_sorted_are_kept_right() {
    let mut wheel = Wheel::new(20);
    for slot in 0..10 {
        wheel.arm(slot, (64 * 64 + 1 + u64::from(slot)) * TICK);
    }
    let now_ns = 64 * 64 * TICK;
    assert_eq!(wheel.pop_due(now_ns, &mut 3), None);
    check(&wheel);
    assert_eq!(wheel.next_deadline_ns(), Some(now_ns), "work is left over");
    wheel.arm(10, (64 * 64 + 2) * TICK);
    wheel.arm(11, 7);
    wheel.arm(12, (64 * 64 * 2) * TICK);
    assert!(wheel.cancel(9) && wheel.cancel(0));
    check(&wheel);
    assert_eq!(drain(&mut wheel, now_ns), [11]);
    assert_eq!(wheel.next_deadline_ns(), Some(now_ns + 2 * TICK));
    assert_eq!(
        drain(&mut wheel, now_ns * 2 - 1),
        [1, 10, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(drain(&mut wheel, now_ns * 2), [12]);
}

#[test]
fn time_running_backwards_changes_nothing() {
    let mut wheel = Wheel::new(2);
    drain(&mut wheel, 5000 * TICK);
    wheel.arm(0, 5001 * TICK);
    assert_eq!(drain(&mut wheel, 0), []);
    assert_eq!(drain(&mut wheel, 5000 * TICK), []);
    wheel.arm(1, 4000 * TICK);
    assert_eq!(drain(&mut wheel, 0), [1]);
    assert_eq!(drain(&mut wheel, 5001 * TICK), [0]);
}

#[test]
fn the_end_of_time_is_a_deadline_like_any_other() {
    let mut wheel = Wheel::new(3);
    wheel.arm(0, u64::MAX);
    wheel.arm(1, u64::MAX - TICK + 1);
    assert_eq!(drain(&mut wheel, u64::MAX - TICK + 1), [1]);
    assert_eq!(wheel.next_deadline_ns(), Some(u64::MAX));
    assert_eq!(drain(&mut wheel, u64::MAX - 1), []);
    assert_eq!(drain(&mut wheel, u64::MAX), [0]);
    wheel.arm(2, u64::MAX);
    assert_eq!(drain(&mut wheel, u64::MAX), [2]);
}

#[test]
fn a_slot_beyond_the_capacity_is_ignored() {
    for capacity in [0, 1] {
        let mut wheel = Wheel::new(capacity);
        for slot in [1, u32::MAX] {
            wheel.arm(slot, 5);
            assert!(!wheel.is_armed(slot) && !wheel.cancel(slot));
        }
        assert_eq!((wheel.len(), wheel.capacity()), (0, capacity));
        assert_eq!(wheel.next_deadline_ns(), None);
        assert_eq!(drain(&mut wheel, u64::MAX), []);
    }
}

#[test]
fn a_slot_costs_24_bytes() {
    assert_eq!(size_of::<Timer>(), 24);
    assert!((DUE + 1) * size_of::<List>() <= 10 << 10);
}

/// Any sequence of calls keeps the invariant; what comes out is compared with a model in
/// `tests/wheel_properties.rs`.
#[test]
fn random_calls_keep_the_invariant() {
    let mut state = 0x5eed_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let mut wheel = Wheel::new(32);
    let mut now_ns = 0;
    for _ in 0..20_000 {
        let slot = random(33) as u32;
        let span_ns = random(64) << random(40);
        match random(4) {
            0 | 1 => wheel.arm(slot, (now_ns + span_ns).saturating_sub(random(TICK * 64))),
            2 => drop(wheel.cancel(slot)),
            _ => {
                now_ns += span_ns;
                let mut budget = random(20) as u32;
                while wheel.pop_due(now_ns, &mut budget).is_some() {}
            }
        }
        check(&wheel);
    }
}
