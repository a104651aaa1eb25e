//! The timing wheel against a sorted map: every timer fires once, in order, never early, and in the
//! first call after its tick, with deadlines from microseconds to days mixed in one wheel.

use std::collections::BTreeMap;

use proptest::prelude::*;
use varta_core::wheel::{TICK_SHIFT, Wheel};

const SLOTS: u32 = 32;
const MS: u64 = 1_000_000;
const HOUR: u64 = 3_600_000 * MS;

/// The most moves one timer can need: nine levels.
const LEVELS: u32 = 9;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Slot and nanoseconds from now; negative is the past.
    Arm(u32, i64),
    Cancel(u32),
    Advance(u64),
}

/// From less than a tick to two weeks, each order of magnitude as likely as any other.
fn span_ns() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..51u32, any::<u64>()).prop_map(|(bits, n)| n % (1 << bits)),
        1 => prop::sample::select(&[10 * MS, 100 * MS, 1_000 * MS, 30_000 * MS, 10 * HOUR][..]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..SLOTS, span_ns()).prop_map(|(slot, ns)| Step::Arm(slot, ns as i64)),
        1 => (0..SLOTS, span_ns()).prop_map(|(slot, ns)| Step::Arm(slot, -(ns as i64))),
        3 => (0..SLOTS).prop_map(Step::Cancel),
        5 => span_ns().prop_map(Step::Advance),
    ]
}

/// Steps of a test, and their start time.
fn history() -> impl Strategy<Value = (u64, Vec<Step>)> {
    (span_ns(), prop::collection::vec(step(), 0..200))
}

fn tick_of(deadline_ns: u64) -> u64 {
    deadline_ns.div_ceil(1 << TICK_SHIFT)
}

/// What is armed, in the order in which it must fire: by tick, and by order of arming within a tick.
/// What is armed in the past counts as armed for the present tick.
#[derive(Default)]
struct Model {
    queue: BTreeMap<(u64, u64), u32>,
    place: [Option<(u64, u64)>; SLOTS as usize],
    armed: u64,
    now_tick: u64,
}

impl Model {
    fn arm(&mut self, slot: u32, tick: u64) {
        self.cancel(slot);
        let place = (tick.max(self.now_tick), self.armed);
        self.armed += 1;
        self.place[slot as usize] = Some(place);
        self.queue.insert(place, slot);
    }

    fn cancel(&mut self, slot: u32) -> bool {
        let place = self.place[slot as usize].take();
        place.is_some_and(|place| self.queue.remove(&place).is_some())
    }

    fn earliest(&self) -> Option<u64> {
        self.queue.keys().next().map(|(tick, _)| *tick)
    }

    fn pop_due(&mut self) -> Option<u32> {
        let entry = self.queue.first_entry()?;
        if entry.key().0 > self.now_tick {
            return None;
        }
        let slot = entry.remove();
        self.place[slot as usize] = None;
        Some(slot)
    }
}

proptest! {
    #[test]
    fn timers_fire_in_the_order_of_the_model((mut now_ns, steps) in history()) {
        let mut wheel = Wheel::new(SLOTS as usize);
        let mut model = Model::default();
        // The bound on the next deadline is exact until a timer is cancelled or moved.
        let mut exact = true;
        for step in steps.into_iter().chain([Step::Advance(u64::MAX / 2)]) {
            match step {
                Step::Arm(slot, ns) => {
                    let deadline_ns = now_ns.saturating_add_signed(ns);
                    exact &= !wheel.is_armed(slot);
                    wheel.arm(slot, deadline_ns);
                    model.arm(slot, tick_of(deadline_ns));
                }
                Step::Cancel(slot) => {
                    let armed = wheel.cancel(slot);
                    exact &= !armed;
                    prop_assert_eq!(armed, model.cancel(slot));
                }
                Step::Advance(ns) => {
                    now_ns = now_ns.saturating_add(ns);
                    model.now_tick = now_ns >> TICK_SHIFT;
                    let mut budget = u32::MAX;
                    while let Some(slot) = wheel.pop_due(now_ns, &mut budget) {
                        prop_assert_eq!(Some(slot), model.pop_due());
                    }
                    prop_assert_eq!(None, model.pop_due());
                    prop_assert!(u32::MAX - budget <= SLOTS * LEVELS);
                }
            }
            prop_assert_eq!(wheel.len(), model.queue.len());
            for slot in 0..SLOTS {
                prop_assert_eq!(wheel.is_armed(slot), model.place[slot as usize].is_some());
            }
            let next_tick = wheel.next_deadline_ns().map(|ns| ns >> TICK_SHIFT);
            prop_assert_eq!(next_tick.is_some(), model.earliest().is_some());
            prop_assert!(next_tick <= model.earliest());
            if exact {
                prop_assert_eq!(next_tick, model.earliest());
            }
        }
        prop_assert!(wheel.is_empty());
    }

    /// With small budgets timers may fire late, but none early, none twice, and none is lost.
    #[test]
    fn small_budgets_lose_nothing(
        (mut now_ns, steps) in history(),
        budgets in prop::collection::vec(0..12u32, 1..20),
    ) {
        let mut wheel = Wheel::new(SLOTS as usize);
        let mut ticks = [None; SLOTS as usize];
        let mut budgets = budgets.into_iter().cycle();
        for step in steps {
            match step {
                Step::Arm(slot, ns) => {
                    let deadline_ns = now_ns.saturating_add_signed(ns);
                    wheel.arm(slot, deadline_ns);
                    ticks[slot as usize] = Some(tick_of(deadline_ns));
                }
                Step::Cancel(slot) => {
                    prop_assert_eq!(wheel.cancel(slot), ticks[slot as usize].take().is_some());
                }
                Step::Advance(ns) => {
                    now_ns += ns;
                    let mut budget = budgets.next().unwrap();
                    let now_tick = now_ns >> TICK_SHIFT;
                    while let Some(slot) = wheel.pop_due(now_ns, &mut budget) {
                        let tick = ticks[slot as usize].take();
                        prop_assert!(tick.is_some_and(|tick| tick <= now_tick));
                    }
                    if budget > 0 {
                        prop_assert!(ticks.iter().flatten().all(|tick| *tick > now_tick));
                    }
                }
            }
            let armed = ticks.iter().flatten();
            prop_assert_eq!(wheel.len(), armed.clone().count());
            let next_tick = wheel.next_deadline_ns().map(|ns| ns >> TICK_SHIFT);
            prop_assert_eq!(next_tick.is_some(), armed.clone().count() > 0);
            let now_tick = now_ns >> TICK_SHIFT;
            let earliest = armed.map(|tick| (*tick).max(now_tick)).min();
            prop_assert!(next_tick <= earliest);
        }
    }

    /// A caller that always sleeps until the next deadline fires every timer at its exact tick, and never has
    /// two needless wake-ups in a row, whatever was cancelled.
    #[test]
    fn a_sleeper_meets_every_deadline_at_its_tick(
        deadlines in prop::collection::vec((0..20 * HOUR, any::<bool>()), 1..SLOTS as usize),
    ) {
        let mut wheel = Wheel::new(deadlines.len());
        for (slot, (deadline_ns, _)) in deadlines.iter().enumerate() {
            wheel.arm(slot as u32, *deadline_ns);
        }
        for (slot, _) in deadlines.iter().enumerate().filter(|(_, (_, cancelled))| *cancelled) {
            prop_assert!(wheel.cancel(slot as u32));
        }
        let mut in_vain = 0;
        while let Some(now_ns) = wheel.next_deadline_ns() {
            let mut budget = u32::MAX;
            in_vain += 1;
            while let Some(slot) = wheel.pop_due(now_ns, &mut budget) {
                let (deadline_ns, cancelled) = deadlines[slot as usize];
                prop_assert!(!cancelled);
                prop_assert_eq!(tick_of(deadline_ns) << TICK_SHIFT, now_ns);
                in_vain = 0;
            }
            prop_assert!(in_vain <= 1);
        }
    }
}

/// A million timers from 10 ms to 10 h, time advancing in jumps of any size: each fires once, in the
/// first call after its tick.
#[test]
fn a_million_timers_fire_once_and_on_time() {
    const COUNT: u32 = 1_000_000;
    let mut state = 0x5eed_u64;
    let mut random = |bits: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 20) % (1 << bits)
    };
    let mut wheel = Wheel::new(COUNT as usize);
    let mut ticks = Vec::with_capacity(COUNT as usize);
    for slot in 0..COUNT {
        let deadline_ns = 10 * MS + random(24 + u64::from(slot) % 21) % (10 * HOUR);
        wheel.arm(slot, deadline_ns);
        ticks.push(tick_of(deadline_ns));
    }
    assert_eq!(wheel.len(), COUNT as usize);

    let (mut now_ns, mut fired, mut work) = (0, 0, 0_u64);
    while !wheel.is_empty() {
        let read_tick = now_ns >> TICK_SHIFT;
        now_ns += 1 + random(14 + fired % 27);
        let now_tick = now_ns >> TICK_SHIFT;
        let mut budget = u32::MAX;
        while let Some(slot) = wheel.pop_due(now_ns, &mut budget) {
            let tick = std::mem::replace(&mut ticks[slot as usize], u64::MAX);
            assert!(tick > read_tick, "slot {slot} is late");
            assert!(tick <= now_tick, "slot {slot} is early, or came twice");
            fired += 1;
        }
        work += u64::from(u32::MAX - budget);
    }
    assert_eq!(fired, u64::from(COUNT));
    assert!(work <= 5 * fired, "{work} steps for {fired} timers");
}

/// The wake-up sorts the remaining timer down through all levels at once.
#[test]
fn a_cancelled_timer_costs_a_sleeper_one_awakening() {
    let deadline_ns = ((1 << 49) - 1) << TICK_SHIFT;
    let mut wheel = Wheel::new(2);
    wheel.arm(0, (1 << 48) << TICK_SHIFT);
    wheel.arm(1, deadline_ns);
    wheel.cancel(0);
    let mut awakenings = Vec::new();
    while !wheel.is_empty() {
        let now_ns = wheel.next_deadline_ns().unwrap();
        awakenings.push(now_ns);
        let mut budget = u32::MAX;
        while wheel.pop_due(now_ns, &mut budget).is_some() {}
    }
    assert_eq!(awakenings, [(1 << 48) << TICK_SHIFT, deadline_ns]);
}
