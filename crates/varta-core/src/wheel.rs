//! Deadlines: which slot is due next, and when (DESIGN section 5, "Wheel").
//!
//! A hierarchical timing wheel. Arming and cancelling touch one bucket, expiring moves a timer at most once
//! per level, for any number of timers and any mix of deadlines. It reads no clock, calls nothing back and
//! gives a timer no meaning beyond its slot number; there is one timer per slot. Bounds: memory is 24 bytes
//! per slot plus 9 KiB, reserved by [`Wheel::new`]; any `u64` of nanoseconds is a legal deadline; work per
//! call of [`Wheel::pop_due`] is bounded by the caller's budget. A timer never fires early, and becomes due
//! less than one tick (16.4 us) after its deadline.

/// A tick is 2^14 ns = 16.4 us: well below the millisecond within which a stall is to be noticed, so rounding
/// is invisible, and coarse enough that nine levels cover every possible time. A longer tick adds lateness, a
/// shorter one adds levels and with them moves per timer.
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
    /// Never later than the earliest deadline rounded up to its tick, and exactly that unless the cancelling
    /// or moving of a timer left a bound that is too early. That costs a sleeper one needless wake-up, which
    /// sorts the bucket again, exactly. If a timer was armed in the past, or the last call ran out of budget,
    /// it is a time that has passed.
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
    /// Timers come in the order of their ticks, and in the order of arming within a tick; one that was armed
    /// in the past comes after the bucket being emptied, so that re-arming in the past cannot delay other
    /// timers.
    ///
    /// Examining a timer, to fire it or to sort it more finely, takes 1 from `budget`. `None` with budget
    /// left means that nothing more is due; `None` without, that the next call continues.
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
mod tests;
