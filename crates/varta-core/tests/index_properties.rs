//! The indexes against the standard map: below capacity no key is ever refused, for any keys and any length
//! of churn (`spec/observer.md` 2.4).

use std::collections::HashMap;

use proptest::prelude::*;
use varta_core::index::{BoundedIndex, IndexKey, OutOfRange, PID_LIMIT, PidIndex, ProbeExhausted};

const CAPACITIES: [usize; 5] = [1, 2, 3, 64, 256];

/// Keys that an attacker might choose: the n-th of a sequence.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Sequential,
    /// Multiples of a power of two.
    Strided(u32),
    /// From the top downwards.
    Descending,
}

impl Pattern {
    fn key(self, n: u64) -> u64 {
        match self {
            Self::Sequential => n,
            Self::Strided(shift) => n << shift,
            Self::Descending => u64::MAX - n,
        }
    }
}

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        Just(Pattern::Sequential),
        (1..56u32).prop_map(Pattern::Strided),
        Just(Pattern::Descending),
    ]
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u64, u32),
    Remove(u64),
    Get(u64),
    Clear,
}

/// Steps over a population somewhat larger than the capacity, so that tables fill up.
fn steps(capacity: usize) -> impl Strategy<Value = Vec<Step>> {
    let n = 0..2 * capacity as u64;
    let step = prop_oneof![
        60 => (n.clone(), any::<u32>()).prop_map(|(n, value)| Step::Insert(n, value)),
        30 => n.clone().prop_map(Step::Remove),
        10 => n.prop_map(Step::Get),
        1 => Just(Step::Clear),
    ];
    prop::collection::vec(step, 0..600)
}

fn capacity_and_steps() -> impl Strategy<Value = (usize, Vec<Step>)> {
    prop::sample::select(&CAPACITIES[..])
        .prop_flat_map(|capacity| (Just(capacity), steps(capacity)))
}

/// Runs the steps on a `BoundedIndex` and a map, keeping at most `capacity` keys live.
fn matches_the_model<K: IndexKey + std::hash::Hash + std::fmt::Debug>(
    capacity: usize,
    seed: u64,
    steps: &[Step],
    key_of: impl Fn(u64) -> K,
) {
    let mut index = BoundedIndex::with_capacity(capacity, seed);
    let mut model = HashMap::new();
    for step in steps {
        match *step {
            Step::Insert(n, value) => {
                let key = key_of(n);
                if model.len() < capacity || model.contains_key(&key) {
                    assert_eq!(index.insert(key, value), Ok(model.insert(key, value)));
                }
            }
            Step::Remove(n) => assert_eq!(index.remove(&key_of(n)), model.remove(&key_of(n))),
            Step::Get(n) => assert_eq!(index.get(&key_of(n)), model.get(&key_of(n)).copied()),
            Step::Clear => {
                index.clear();
                model.clear();
            }
        }
        assert_eq!(index.len(), model.len());
    }
    for (key, value) in &model {
        assert_eq!(index.get(key), Some(*value), "{key:?} is reachable");
    }
    let mut seen = HashMap::new();
    for (key, value) in index.iter() {
        assert_eq!(seen.insert(key, value), None, "{key:?} comes once");
    }
    assert_eq!(seen, model);
    assert_eq!(index.take_probe_exhausted(), 0);
}

proptest! {
    #[test]
    fn a_bounded_index_below_capacity_is_a_map(
        (capacity, steps) in capacity_and_steps(),
        pattern in pattern(),
        seed in prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
    ) {
        matches_the_model(capacity, seed, &steps, |n| pattern.key(n));
        matches_the_model(capacity, seed, &steps, |n| pattern.key(n) as u32 ^ n as u32);
        matches_the_model(capacity, seed, &steps, |n| (pattern.key(n), 1));
    }

    /// The worst possible hash: the structure must not depend on the quality of the hash.
    #[test]
    fn a_bounded_index_below_capacity_is_a_map_even_if_hashes_collide(
        (capacity, steps) in capacity_and_steps(),
        homes in 1..5u64,
    ) {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        struct Clumsy { n: u64, homes: u64 }
        impl IndexKey for Clumsy {
            fn hash(&self, _seed: u64) -> u64 {
                // At the end of the table, so that runs wrap around.
                u64::MAX - self.n % self.homes
            }
        }
        matches_the_model(capacity, 0, &steps, |n| Clumsy { n, homes });
    }

    /// Above capacity an insertion may be refused; then nothing has changed, and other calls still work.
    #[test]
    fn an_overfull_bounded_index_refuses_cleanly(
        capacity in prop::sample::select(&[0, 1, 2, 3, 64][..]),
        keys in prop::collection::vec((0..200u32, any::<bool>()), 0..600),
    ) {
        let mut index = BoundedIndex::with_capacity(capacity, 1);
        let mut model = HashMap::new();
        let mut refused = 0;
        for (key, insert) in keys {
            if !insert {
                prop_assert_eq!(index.remove(&key), model.remove(&key));
            } else if index.insert(key, key) == Err(ProbeExhausted) {
                prop_assert!(model.len() >= capacity && !model.contains_key(&key));
                refused += 1;
            } else {
                model.insert(key, key);
            }
            prop_assert_eq!(index.len(), model.len());
        }
        prop_assert_eq!(index.iter().collect::<HashMap<_, _>>(), model);
        prop_assert_eq!(index.take_probe_exhausted(), refused);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_pid_index_is_a_map(steps in steps(256), pattern in pattern()) {
        let mut index = PidIndex::new();
        let mut model = HashMap::new();
        for step in steps {
            let pid_of = |n| (pattern.key(n) % u64::from(PID_LIMIT + 64)) as u32;
            match step {
                Step::Insert(n, value) if pid_of(n) >= PID_LIMIT || value == u32::MAX => {
                    prop_assert!(index.insert(pid_of(n), value).is_err());
                }
                Step::Insert(n, value) => {
                    let pid = pid_of(n);
                    prop_assert_eq!(index.insert(pid, value), Ok(model.insert(pid, value)));
                }
                Step::Remove(n) => prop_assert_eq!(index.remove(pid_of(n)), model.remove(&pid_of(n))),
                // Clearing writes 16 MiB; unit tests cover it.
                Step::Get(_) | Step::Clear => (),
            }
            prop_assert_eq!(index.len(), model.len());
            prop_assert_eq!(index.is_empty(), model.is_empty());
        }
        for n in 0..512 {
            let pid = (pattern.key(n) % u64::from(PID_LIMIT + 64)) as u32;
            prop_assert_eq!(index.get(pid), model.get(&pid).copied());
        }
    }
}

/// The original refused every new key after about five capacities of churn, for ever.
#[test]
fn churn_at_capacity_does_not_wear_an_index_out() {
    const STEPS: u64 = 100_000;
    for capacity in [64, 256, 4096] {
        let mut index = BoundedIndex::with_capacity(capacity as usize, 7);
        let mut pids = PidIndex::new();
        for n in 0..STEPS + capacity {
            if n >= capacity {
                let oldest = n - capacity;
                assert_eq!(index.remove(&oldest), Some(oldest as u32));
                assert_eq!(pids.remove(oldest as u32), Some(oldest as u32));
            }
            assert_eq!(index.insert(n, n as u32), Ok(None));
            assert_eq!(pids.insert(n as u32, n as u32), Ok(None));
        }
        assert_eq!(
            (index.len(), pids.len()),
            (capacity as usize, capacity as usize)
        );
        for n in STEPS..STEPS + capacity {
            assert_eq!(index.get(&n), Some(n as u32));
            assert_eq!(pids.get(n as u32), Some(n as u32));
        }
        assert_eq!(index.get(&(STEPS - 1)), None);
        assert_eq!(index.take_probe_exhausted(), 0);
    }
}

#[test]
fn cyclic_churn_keeps_the_length_of_the_model() {
    let mut index = BoundedIndex::with_capacity(32, 1);
    let mut live = [false; 48];
    for step in 0..2000u32 {
        let key = step * 7 % 48;
        let slot = &mut live[key as usize];
        if *slot {
            assert_eq!(index.remove(&key), Some(key));
            *slot = false;
        } else if index.len() < 32 {
            assert_eq!(index.insert(key, key), Ok(None));
            *slot = true;
        }
        assert_eq!(index.len(), live.iter().filter(|live| **live).count());
    }
    assert_eq!(index.take_probe_exhausted(), 0);
}

#[test]
fn iteration_is_complete_and_repeatable() {
    let mut index = BoundedIndex::with_capacity(16, 1);
    for key in 0..16u32 {
        index.insert(key, key * 2).unwrap();
    }
    let once = index.iter().collect::<Vec<_>>();
    assert_eq!(once, index.clone().iter().collect::<Vec<_>>());
    let mut sorted = once;
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        (0..16).map(|key| (key, key * 2)).collect::<Vec<_>>()
    );
}

#[test]
fn a_cleared_table_is_empty_and_usable() {
    let mut index = BoundedIndex::with_capacity(16, 1);
    for key in 0..16u32 {
        index.insert(key, key).unwrap();
    }
    index.clear();
    assert!(index.is_empty());
    assert_eq!((index.iter().count(), index.get(&3)), (0, None));
    index.insert(3, 4).unwrap();
    assert_eq!((index.get(&3), index.capacity()), (Some(4), 16));
}

#[test]
fn a_pid_index_maps_the_pids_the_kernel_can_hand_out() {
    let mut index = PidIndex::new();
    assert!(index.is_empty());
    for pid in [0, 1, PID_LIMIT - 1] {
        assert_eq!(index.insert(pid, 5), Ok(None));
        assert_eq!(index.insert(pid, 0), Ok(Some(5)));
        assert_eq!(index.get(pid), Some(0));
    }
    assert_eq!(index.len(), 3);
    assert_eq!((index.remove(1), index.remove(1)), (Some(0), None));
    assert_eq!((index.get(1), index.len()), (None, 2));
    index.clear();
    assert_eq!((index.get(0), index.len()), (None, 0));
}

#[test]
fn a_pid_index_refuses_what_it_cannot_hold() {
    let mut index = PidIndex::default();
    for pid in [PID_LIMIT, u32::MAX] {
        assert_eq!(index.insert(pid, 1), Err(OutOfRange));
        assert_eq!((index.get(pid), index.remove(pid)), (None, None));
    }
    assert_eq!(index.insert(1, u32::MAX), Err(OutOfRange));
    assert!(index.is_empty());
    assert_eq!(index.insert(1, u32::MAX - 1), Ok(None));
    assert_eq!(index.get(1), Some(u32::MAX - 1));
}

/// `MAX_PROBE` is about how far any entry stands from its home, the ones pushed aside included; it is
/// not about the number of cells an insertion walks over.
#[test]
fn above_capacity_no_entry_is_pushed_beyond_the_bound() {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Homed(u64, u32);
    impl IndexKey for Homed {
        fn hash(&self, _seed: u64) -> u64 {
            self.0
        }
    }
    // 128 cells. The second group begins where the first ends, or is pushed there.
    let fill = |second_home, first_count| {
        let mut index = BoundedIndex::with_capacity(64, 0);
        for n in 0..first_count {
            index.insert(Homed(0, n), n).unwrap();
        }
        for n in 0..60 {
            index.insert(Homed(second_home, n), n).unwrap();
        }
        index
    };
    let mut walk_of_120_cells = fill(60, 60);
    assert_eq!(walk_of_120_cells.insert(Homed(0, 60), 0), Ok(None));
    let mut sixty_fifth_of_its_home = fill(62, 64);
    assert_eq!(
        sixty_fifth_of_its_home.insert(Homed(0, 64), 0),
        Err(ProbeExhausted)
    );
}
