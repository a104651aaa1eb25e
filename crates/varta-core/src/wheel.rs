//! Deadlines: which slot must be looked at next, and when (DESIGN section 5, "Wheel").
//!
//! A hierarchical timing wheel. Arming and cancelling touch one bucket, expiring moves a timer at most
//! once per level, whatever the number of timers and however mixed their deadlines. It reads no clock,
//! calls nobody back and gives a timer no meaning beyond its slot number; there is one timer per slot.
//! Bounds: memory is 24 bytes per slot plus 9 KiB, reserved by [`Wheel::new`]; any `u64` of nanoseconds
//! is a legal deadline; work per call of [`Wheel::pop_due`] is bounded by the caller's budget. A timer
//! never fires early, and becomes due less than one tick (16.4 us) after its deadline.

/// A tick is 2^14 ns = 16.4 us: well below the millisecond within which a stall is to be noticed, so
/// rounding is invisible, and coarse enough that nine levels cover every time there is. A longer tick
/// adds lateness, a shorter one adds levels and with them moves per timer.
pub const TICK_SHIFT: u32 = 14;

/// Bits of a tick that choose the bucket within a level: 64 buckets, one bit each in a `u64`.
const DIGIT_BITS: u32 = 6;

/// Buckets per level.
const BUCKETS: usize = 1 << DIGIT_BITS;

/// Enough for any tick a `u64` of nanoseconds can give (51 bits), so nothing wraps or overflows.
const LEVELS: usize = (u64::BITS - TICK_SHIFT).div_ceil(DIGIT_BITS) as usize;
const _: () = assert!(LEVELS * DIGIT_BITS as usize > (u64::BITS - TICK_SHIFT) as usize);

/// The list of timers that were due when they were armed; it stands behind the buckets.
const DUE: usize = LEVELS * BUCKETS;

/// No neighbour in a list; not a legal slot.
const NONE: u32 = u32::MAX;

/// The `list` of a timer that is not armed.
const IDLE: u16 = u16::MAX;

/// One timer per slot, ordered by deadline.
///
/// # Structure
///
/// Written in base 64, a tick has nine digits. A timer lies at the level of the highest digit in which
/// its tick differs from `elapsed`, the tick up to which the wheel has been read, in the bucket that
/// digit names. Since all higher digits agree, every timer at a level is due before any at a higher
/// level, and the next bucket is the lowest one occupied at the lowest level occupied.
///
/// Expiry sets `elapsed` to the start of that bucket and *opens* it: its timers are taken one by one,
/// and fire if their tick has come or go to a lower level. The invariant that nothing is left behind:
///
/// - a timer in the open bucket has a tick at or after `elapsed`, and no timer enters that bucket,
///   because its digit no longer differs from `elapsed`;
/// - every other timer in a bucket agrees with `elapsed` in all digits above its level, and has a
///   greater digit at its level;
/// - `elapsed` moves only when the open bucket is empty, and then at most to the start of the next
///   one, which changes no digit above that bucket's level.
#[derive(Debug)]
pub struct Wheel {
    timers: Box<[Timer]>,
    /// The buckets, level by level, then the list `DUE`.
    lists: Box<[List]>,
    /// Per level, one bit for each bucket that is not empty.
    occupied: [u64; LEVELS],
    /// The list being emptied: the open bucket, or `DUE` while no bucket is open.
    open: usize,
    /// The tick up to which the wheel has been read.
    elapsed: u64,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    tick: u64,
    next: u32,
    previous: u32,
    list: u16,
}

/// First in, first out, linked through the timers.
#[derive(Clone, Copy, Debug)]
struct List {
    /// No timer in the list has an earlier tick. Exact until a timer is cancelled, then possibly too
    /// early until the list is next empty.
    earliest: u64,
    head: u32,
    tail: u32,
}

const EMPTY: List = List {
    earliest: u64::MAX,
    head: NONE,
    tail: NONE,
};

impl Wheel {
    /// A wheel for slots below `capacity`, at time zero and with no timer armed.
    pub fn new(capacity: usize) -> Self {
        let idle = Timer {
            tick: 0,
            next: NONE,
            previous: NONE,
            list: IDLE,
        };
        Self {
            timers: vec![idle; capacity].into_boxed_slice(),
            lists: vec![EMPTY; DUE + 1].into_boxed_slice(),
            occupied: [0; LEVELS],
            open: DUE,
            elapsed: 0,
            len: 0,
        }
    }

    /// Arms the timer of `slot`, or moves it if it is armed. A deadline in the past is due at once. A
    /// slot not below the capacity is ignored.
    pub fn arm(&mut self, slot: u32, deadline_ns: u64) {
        self.cancel(slot);
        if let Some(timer) = self.timers.get_mut(slot as usize) {
            timer.tick = tick_at_or_after(deadline_ns);
            self.place(slot);
            self.len += 1;
        }
    }

    /// Disarms the timer of `slot`; false if it was not armed.
    pub fn cancel(&mut self, slot: u32) -> bool {
        let armed = self.is_armed(slot);
        if armed {
            self.unlink(slot);
            self.len -= 1;
        }
        armed
    }

    /// Whether the timer of `slot` is armed.
    pub fn is_armed(&self, slot: u32) -> bool {
        self.timers
            .get(slot as usize)
            .is_some_and(|timer| timer.list != IDLE)
    }

    /// Timers armed.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is armed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Slots below this number have a timer.
    pub fn capacity(&self) -> usize {
        self.timers.len()
    }

    /// When to call [`Self::pop_due`] next, in nanoseconds; `None` if no timer is armed.
    ///
    /// Never later than the earliest deadline rounded up to its tick, and exactly that unless the
    /// cancelling or moving of a timer left a bound behind that is too early. That costs a sleeper one
    /// vain awakening, which sorts the bucket anew, exactly. If a timer was armed in the past, or the
    /// last call ran out of budget, it is a time that has passed.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        let waiting = self.lists[self.open].head != NONE || self.lists[DUE].head != NONE;
        let tick = if waiting {
            self.elapsed
        } else {
            self.lists[self.next_bucket()?].earliest
        };
        Some(tick.saturating_mul(1 << TICK_SHIFT))
    }

    /// Takes one timer whose tick is not after `now_ns`, and disarms it. A `now_ns` before an earlier
    /// one counts as that earlier one.
    ///
    /// Timers come in the order of their ticks, and in the order of arming within a tick; one that was
    /// armed in the past comes when those of the bucket being emptied are through, so that re-arming in
    /// the past cannot hold others up.
    ///
    /// Looking at a timer, to fire it or to sort it more finely, takes 1 from `budget`. `None` with
    /// budget left means that nothing more is due; `None` without, that the next call goes on from here.
    pub fn pop_due(&mut self, now_ns: u64, budget: &mut u32) -> Option<u32> {
        let now = tick_at_or_before(now_ns).max(self.elapsed);
        while *budget > 0 {
            if let Some(slot) = self.take_first(self.open) {
                *budget -= 1;
                if self.timers[slot as usize].tick <= self.elapsed {
                    self.len -= 1;
                    return Some(slot);
                }
                self.place(slot);
            } else if let Some(slot) = self.take_first(DUE) {
                *budget -= 1;
                self.len -= 1;
                return Some(slot);
            } else if !self.open_next(now) {
                return None;
            }
        }
        None
    }

    /// Opens the next bucket if it starts at or before `now`; otherwise advances to `now`. The open
    /// bucket must be empty.
    fn open_next(&mut self, now: u64) -> bool {
        debug_assert!(self.lists[self.open].head == NONE);
        if let Some(list) = self.next_bucket() {
            let start = self.start_of(list);
            debug_assert!(start > self.elapsed && start <= self.lists[list].earliest);
            if start <= now {
                self.elapsed = start;
                self.open = list;
                return true;
            }
        }
        self.elapsed = now;
        self.open = DUE;
        false
    }

    /// The bucket with the earliest timers, the open one aside, which must be empty.
    fn next_bucket(&self) -> Option<usize> {
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        Some(level * BUCKETS + self.occupied[level].trailing_zeros() as usize)
    }

    /// The first tick of a bucket that is not open: the digits of `elapsed` above its level, its own
    /// digit, then zeros.
    fn start_of(&self, list: usize) -> u64 {
        let shift = DIGIT_BITS * (list / BUCKETS) as u32;
        let above = shift + DIGIT_BITS;
        self.elapsed >> above << above | ((list % BUCKETS) as u64) << shift
    }

    /// Puts a timer that is in no list where its tick belongs.
    fn place(&mut self, slot: u32) {
        let tick = self.timers[slot as usize].tick;
        if tick <= self.elapsed {
            return self.append(DUE, slot);
        }
        let level = (tick ^ self.elapsed).ilog2() / DIGIT_BITS;
        let digit = tick >> (DIGIT_BITS * level) & (BUCKETS as u64 - 1);
        let list = level as usize * BUCKETS + digit as usize;
        debug_assert!(list != self.open);
        self.append(list, slot);
        self.occupied[level as usize] |= 1 << digit;
    }

    fn append(&mut self, list: usize, slot: u32) {
        let List { earliest, tail, .. } = self.lists[list];
        let timer = &mut self.timers[slot as usize];
        timer.list = list as u16;
        timer.next = NONE;
        timer.previous = tail;
        self.lists[list].earliest = earliest.min(timer.tick);
        self.lists[list].tail = slot;
        match tail {
            NONE => self.lists[list].head = slot,
            tail => self.timers[tail as usize].next = slot,
        }
    }

    fn take_first(&mut self, list: usize) -> Option<u32> {
        let slot = self.lists[list].head;
        if slot == NONE {
            return None;
        }
        self.unlink(slot);
        Some(slot)
    }

    /// Takes an armed timer out of its list.
    fn unlink(&mut self, slot: u32) {
        let timer = &mut self.timers[slot as usize];
        let list = timer.list as usize;
        let (previous, next) = (timer.previous, timer.next);
        timer.list = IDLE;
        match previous {
            NONE => self.lists[list].head = next,
            previous => self.timers[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[list].tail = previous,
            next => self.timers[next as usize].previous = previous,
        }
        if self.lists[list].head == NONE {
            self.lists[list] = EMPTY;
            if list != DUE {
                self.occupied[list / BUCKETS] &= !(1 << (list % BUCKETS));
            }
        }
    }
}

/// The tick at which a deadline has passed.
fn tick_at_or_after(deadline_ns: u64) -> u64 {
    deadline_ns.div_ceil(1 << TICK_SHIFT)
}

/// The last tick that has begun at `now_ns`. The end of time completes the tick it falls into: no
/// deadline lies beyond it.
fn tick_at_or_before(now_ns: u64) -> u64 {
    match now_ns {
        u64::MAX => tick_at_or_after(now_ns),
        _ => now_ns >> TICK_SHIFT,
    }
}

#[cfg(test)]
mod tests {
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
    fn rearming_in_the_past_holds_nobody_up() {
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
}
