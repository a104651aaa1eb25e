//! What an agent that was acted on leaves to its successor: how often it was, and when.
//!
//! A process that is restarted is a new agent, but the same service. Without this a service that hangs
//! after every start would be restarted for ever. Each estate goes to one successor, so that the workers of
//! a pool, which share a lineage, do not pay for each other.

use super::starts::Starts;

/// Estates that are remembered; with more the oldest is forgotten.
const ESTATES: usize = 1024;

#[derive(Clone, Copy, Debug)]
pub(super) struct Estate {
    /// Whose; 0 for nobody's.
    pub(super) lineage: u64,
    pub(super) climbs: u32,
    pub(super) left_ns: u64,
    pub(super) starts: Starts,
}

#[derive(Debug)]
pub(super) struct Estates {
    estates: Box<[Estate]>,
    /// Where the next one goes.
    cursor: usize,
    len: usize,
}

impl Estates {
    pub(super) fn new() -> Self {
        let nobodys = Estate {
            lineage: 0,
            climbs: 0,
            left_ns: 0,
            starts: Starts::NONE,
        };
        Self {
            estates: vec![nobodys; ESTATES].into_boxed_slice(),
            cursor: 0,
            len: 0,
        }
    }

    pub(super) fn leave(&mut self, estate: Estate) {
        if estate.lineage == 0 {
            return;
        }
        let place = &mut self.estates[self.cursor];
        self.len += usize::from(place.lineage == 0);
        *place = estate;
        self.cursor = (self.cursor + 1) % ESTATES;
    }

    /// What was started since `since_ns` is no debt.
    pub(super) fn forget_starts(&mut self, since_ns: u64) {
        for estate in &mut self.estates {
            estate.starts.forget_since(since_ns);
            estate.climbs = estate.climbs.min(estate.starts.count());
        }
    }

    /// Gives away the newest estate of a lineage.
    pub(super) fn take(&mut self, lineage: u64) -> Option<Estate> {
        if lineage == 0 || self.len == 0 {
            return None;
        }
        let newest_first = (1..=ESTATES).map(|back| (self.cursor + ESTATES - back) % ESTATES);
        let place = newest_first
            .into_iter()
            .find(|place| self.estates[*place].lineage == lineage)?;
        let estate = self.estates[place];
        self.estates[place].lineage = 0;
        self.len -= 1;
        Some(estate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estate(lineage: u64, climbs: u32) -> Estate {
        let mut starts = Starts::NONE;
        starts.add(u64::from(climbs));
        Estate {
            lineage,
            climbs,
            left_ns: 1,
            starts,
        }
    }

    #[test]
    fn each_estate_goes_to_one_successor_of_its_lineage() {
        let mut estates = Estates::new();
        estates.leave(estate(7, 1));
        estates.leave(estate(8, 2));
        estates.leave(estate(7, 3));
        let estate = estates.take(7).unwrap();
        assert_eq!((estate.climbs, estate.starts.last_ns()), (3, 3));
        assert_eq!(estates.take(7).unwrap().climbs, 1);
        assert!(estates.take(7).is_none());
        assert!(estates.take(8).is_some());
        assert!(estates.take(0).is_none());
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut estates = Estates::new();
        for lineage in 1..=ESTATES as u64 + 1 {
            estates.leave(estate(lineage, 1));
        }
        assert!(estates.take(1).is_none());
        assert!(estates.take(2).is_some());
        assert!(estates.take(ESTATES as u64 + 1).is_some());
    }
}
