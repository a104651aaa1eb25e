//! A short memory of who did something: a few of them, for a second.

/// How many are remembered, and for how long.
const REMEMBERED_MAX: usize = 64;
const REMEMBERED_NS: u64 = 1_000_000_000;

/// Who, what is remembered of each, and until when; the oldest is overwritten.
#[derive(Debug)]
pub(super) struct Remembered<K, T> {
    entries: [Option<(K, u64, T)>; REMEMBERED_MAX],
    next: usize,
}

impl<K: Copy + PartialEq, T: Copy> Remembered<K, T> {
    pub(super) fn new() -> Self {
        Self {
            entries: [None; REMEMBERED_MAX],
            next: 0,
        }
    }

    pub(super) fn add(&mut self, who: K, what: T, now_ns: u64) {
        let is_it = |entry: &Option<(K, u64, T)>| entry.is_some_and(|(known, ..)| known == who);
        let position = self.entries.iter().position(is_it).unwrap_or_else(|| {
            self.next = (self.next + 1) % REMEMBERED_MAX;
            self.next
        });
        self.entries[position] = Some((who, now_ns.saturating_add(REMEMBERED_NS), what));
    }

    pub(super) fn get(&self, who: K, now_ns: u64) -> Option<T> {
        let entries = self.entries.iter().flatten();
        let mut fresh = entries.filter(|(known, until_ns, _)| *known == who && now_ns < *until_ns);
        fresh.next().map(|(.., what)| *what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_did_is_forgotten_after_a_while() {
        let mut remembered = Remembered::new();
        remembered.add(7, 'a', 5);
        assert_eq!(remembered.get(7, REMEMBERED_NS + 4), Some('a'));
        assert_eq!(remembered.get(7, REMEMBERED_NS + 5), None);
        assert_eq!(remembered.get(8, 5), None);
    }

    #[test]
    fn who_does_it_again_and_again_takes_one_place() {
        let mut remembered = Remembered::new();
        remembered.add(7, (), 0);
        for now_ns in 0..1_000 {
            remembered.add(8, (), now_ns);
        }
        assert!(remembered.get(7, 5).is_some());
        assert!(remembered.get(8, REMEMBERED_NS + 998).is_some());
    }
}
