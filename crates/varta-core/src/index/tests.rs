//! Both indexes, full and empty.

use super::*;

const SEED: u64 = 0x5eed;

fn index<K: IndexKey>(capacity: usize) -> BoundedIndex<K> {
    BoundedIndex::with_capacity(capacity, SEED)
}

fn round_trip<K: IndexKey + fmt::Debug>(key: K, other: K) {
    let mut index = index(4);
    assert_eq!(index.insert(key, 7), Ok(None));
    assert_eq!(index.get(&key), Some(7));
    assert_eq!(index.get(&other), None, "{other:?} is not {key:?}");
    assert_eq!(index.remove(&other), None);
    assert_eq!(index.remove(&key), Some(7));
    assert_eq!(index.get(&key), None);
}

/// The probe sequence of each entry ends in its own cell, and `len` counts the entries.
/// Returns the longest sequence and the sum of all.
fn probe_statistics<K: IndexKey>(index: &BoundedIndex<K>) -> (u32, u64) {
    let mut longest = 0;
    let mut total = 0;
    let mut count = 0;
    for (cell, entry) in index.cells.iter().enumerate() {
        let Some(entry) = entry else { continue };
        let distance = entry.probes.get() as usize - 1;
        let mask = index.cells.len() - 1;
        assert_eq!(cell, (index.home(&entry.key) + distance) & mask);
        longest = longest.max(entry.probes.get());
        total += u64::from(entry.probes.get());
        count += 1;
    }
    assert_eq!(count, index.len());
    (longest, total)
}

#[test]
fn insert_get_update_in_place_remove() {
    let mut index = index(8);
    assert!(index.is_empty());
    assert_eq!(index.insert(42u32, 1), Ok(None));
    assert_eq!(index.get(&42), Some(1));
    assert_eq!(index.insert(42, 2), Ok(Some(1)));
    assert_eq!((index.get(&42), index.len()), (Some(2), 1));
    assert_eq!(index.remove(&42), Some(2));
    assert_eq!((index.get(&42), index.len()), (None, 0));
    assert_eq!(index.remove(&42), None);
}

#[test]
fn half_of_the_keys_can_be_replaced() {
    let mut index = index(64);
    for key in 0..32u32 {
        index.insert(key, key).unwrap();
    }
    for key in (0..32).step_by(2) {
        assert_eq!(index.remove(&key), Some(key));
    }
    for key in (0..32).step_by(2) {
        assert_eq!(index.insert(key, key + 100), Ok(None));
    }
    for key in 0..32 {
        let expected = if key % 2 == 0 { key + 100 } else { key };
        assert_eq!(index.get(&key), Some(expected));
    }
}

#[test]
fn a_table_for_four_refuses_the_ninth_key_and_counts_it() {
    let mut index = index(4);
    for key in 0..8u32 {
        assert_eq!(index.insert(key, key), Ok(None));
    }
    assert_eq!(index.insert(8, 8), Err(ProbeExhausted));
    assert_eq!(index.take_probe_exhausted(), 1);
    assert_eq!(index.take_probe_exhausted(), 0);
    assert_eq!(index.insert(3, 33), Ok(Some(3)), "an update needs no room");
    assert_eq!(
        (index.get(&8), index.remove(&8), index.len()),
        (None, None, 8)
    );
    for key in 0..8 {
        assert!(index.remove(&key).is_some());
        probe_statistics(&index);
    }
}

#[test]
fn a_key_can_come_back() {
    let mut index = index(4);
    index.insert(9u32, 1).unwrap();
    assert_eq!(index.len(), 1);
    index.remove(&9);
    assert_eq!(index.len(), 0);
    index.insert(9, 2).unwrap();
    assert_eq!((index.len(), index.get(&9)), (1, Some(2)));
}

#[test]
fn every_key_and_every_value_is_legal() {
    round_trip(0u32, 1);
    round_trip(u32::MAX, u32::MAX - 1);
    round_trip(u32::MAX - 1, u32::MAX);
    round_trip(SEED, 0);
    round_trip(u64::MAX, SEED);
    let mut index = index(2);
    index.insert(0u32, u32::MAX).unwrap();
    assert_eq!(index.get(&0), Some(u32::MAX));
}

#[test]
fn every_part_of_a_key_counts() {
    round_trip((1u64, 2u32), (2, 1));
    round_trip((1u64, 2u32), (1, 3));
    round_trip(Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED);
    round_trip(Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
    let addresses = [
        "10.0.0.1:80",
        "10.0.0.1:81",
        "[::1]:80",
        "[::1]:81",
        "[::1%1]:80",
    ];
    let addresses = addresses.map(|text| text.parse::<SocketAddr>().unwrap());
    for (i, one) in addresses.iter().enumerate() {
        for other in &addresses[i + 1..] {
            assert_ne!(one.hash(SEED), other.hash(SEED), "{one} and {other}");
            round_trip(*one, *other);
            round_trip(*other, *one);
        }
    }
}

#[test]
fn an_overfull_table_refuses_and_stays_whole() {
    let mut index = index(256);
    let refused = (0..10_000u32)
        .filter(|key| index.insert(*key, *key).is_err())
        .count();
    assert_eq!(index.take_probe_exhausted(), refused as u64);
    assert_eq!(index.len(), 10_000 - refused);
    assert!((256..=512).contains(&index.len()));
    assert!(probe_statistics(&index).0 <= MAX_PROBE);
    let kept = index.iter().collect::<Vec<_>>();
    for (key, value) in kept {
        assert_eq!(index.remove(&key), Some(value));
    }
    assert!(index.is_empty());
}

/// Keys that all share one home: below capacity even they are taken, above it `MAX_PROBE` holds.
#[test]
fn colliding_keys_are_refused_only_above_capacity() {
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Colliding(u32);
    impl IndexKey for Colliding {
        fn hash(&self, _seed: u64) -> u64 {
            u64::MAX
        }
    }
    for (capacity, admitted) in [(100, 100), (32, 64), (50, 64)] {
        let mut index = index(capacity);
        let inserted = (0..1000).take_while(|n| index.insert(Colliding(*n), *n).is_ok());
        assert_eq!(inserted.count(), admitted);
        for n in 0..admitted as u32 {
            assert_eq!(index.get(&Colliding(n)), Some(n));
        }
        for n in 0..admitted as u32 {
            assert_eq!(index.remove(&Colliding(n)), Some(n));
            probe_statistics(&index);
        }
    }
}

/// A change here breaks recorded runs: a seed must replay a failure exactly.
#[test]
fn hashing_is_the_same_in_every_run_and_depends_on_the_seed() {
    assert_eq!(1u32.hash(0), 0x905e_0b52_1efe_2d61);
    assert_eq!((1u64, 2u32).hash(SEED), 0x5da7_543c_18ef_c5c3);
    assert_ne!(1u32.hash(0), 1u32.hash(1));
    assert_ne!(1u32.hash(0), 1u32.hash(1 << 63));
}

#[test]
fn a_cell_costs_a_key_a_value_and_a_probe_count() {
    assert_eq!(size_of::<Option<Entry<u32>>>(), 12);
    assert_eq!(size_of::<Option<Entry<(u64, u32)>>>(), 24);
}

#[test]
fn a_million_keys_stay_within_few_probes() {
    const COUNT: u32 = 1 << 20;
    // A power of two, so that the load is exactly one half: the worst there is.
    let mut index = index(COUNT as usize);
    for n in 0..COUNT {
        index.insert((u64::from(n) << 32, n % 1000), n).unwrap();
    }
    let (longest, total) = probe_statistics(&index);
    assert!(longest <= 24, "longest probe sequence {longest}");
    assert!(total < u64::from(COUNT) * 2, "{total} probes for all keys");
}

#[test]
fn no_stride_of_keys_and_no_seed_gives_long_probes() {
    for shift in (0..52).step_by(4) {
        for seed in [0, 1, 1 << 32, u64::MAX, SEED] {
            let mut index = BoundedIndex::with_capacity(1 << 10, seed);
            for n in 0..1u64 << 10 {
                index.insert(n << shift, 0).unwrap();
            }
            let longest = probe_statistics(&index).0;
            assert!(longest <= 20, "shift {shift} seed {seed:#x}: {longest}");
        }
    }
}
