//! A small cache with expiry: 64 entries, one second each.

/// Entries; the oldest is overwritten.
const CAPACITY: usize = 64;

/// How long an entry lives: 1 s.
const TTL_NS: u64 = 1_000_000_000;

/// Keys, values, and when each entry expires.
#[derive(Debug)]
pub struct TtlCache<K, V> {
    entries: [Option<(K, u64, V)>; CAPACITY],
    next: usize,
}

impl<K: Copy + PartialEq, V: Copy> Default for TtlCache<K, V> {
    fn default() -> Self {
        Self {
            entries: [None; CAPACITY],
            next: 0,
        }
    }
}

impl<K: Copy + PartialEq, V: Copy> TtlCache<K, V> {
    /// Enters a value; an earlier one of the same key is replaced.
    pub fn insert(&mut self, key: K, value: V, now_ns: u64) {
        let is_it = |entry: &Option<(K, u64, V)>| entry.is_some_and(|(known, ..)| known == key);
        let position = self.entries.iter().position(is_it).unwrap_or_else(|| {
            self.next = (self.next + 1) % CAPACITY;
            self.next
        });
        self.entries[position] = Some((key, now_ns.saturating_add(TTL_NS), value));
    }

    /// The value of a key, until it expires.
    pub fn get(&self, key: K, now_ns: u64) -> Option<V> {
        let entries = self.entries.iter().flatten();
        let mut fresh = entries.filter(|(known, until_ns, _)| *known == key && now_ns < *until_ns);
        fresh.next().map(|(.., value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_expires() {
        let mut cache = TtlCache::default();
        cache.insert(7, 'a', 5);
        assert_eq!(cache.get(7, TTL_NS + 4), Some('a'));
        assert_eq!(cache.get(7, TTL_NS + 5), None);
        assert_eq!(cache.get(8, 5), None);
    }

    #[test]
    fn a_key_that_is_entered_again_and_again_takes_one_place() {
        let mut cache = TtlCache::default();
        cache.insert(7, (), 0);
        for now_ns in 0..1_000 {
            cache.insert(8, (), now_ns);
        }
        assert!(cache.get(7, 5).is_some());
        assert!(cache.get(8, TTL_NS + 998).is_some());
    }
}
