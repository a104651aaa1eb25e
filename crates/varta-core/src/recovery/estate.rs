//! What an agent that was acted on leaves to its successor: how often it was, and when.
//!
//! A process that is restarted is a new agent, but the same service. Without this a service that hangs
//! after every start would be restarted for ever. Each estate goes to one successor, so that the workers of
//! a pool, which share a lineage, do not pay for each other.

use super::starts::Starts;

/// What an agent has in common with those before and after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Whatever makes two processes the same service to an operator, its name among it; 0 for none.
    pub service: u64,
    /// What its user cannot choose: the user itself, and the unit of the system's service manager; 0 for none.
    /// A service that comes back under another name takes over the debts that its own successor has not.
    pub kin: u64,
    /// The user of an agent of this host.
    pub user: Option<u32>,
}

/// Estates that are remembered; with more the oldest is forgotten.
const ESTATES: usize = 1024;

#[derive(Clone, Copy, Debug)]
pub(super) struct Estate {
    /// Whose; nobody's if it has no service.
    pub(super) lineage: Lineage,
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
            lineage: Lineage::default(),
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
        if estate.lineage.service == 0 {
            return;
        }
        let place = &mut self.estates[self.cursor];
        self.len += usize::from(place.lineage.service == 0);
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

    /// Gives away the newest estate of a service, else the newest one of its kin.
    pub(super) fn take(&mut self, lineage: Lineage) -> Option<Estate> {
        if lineage.service == 0 || self.len == 0 {
            return None;
        }
        let of = |place: usize| self.estates[place].lineage;
        let mut newest_first = (1..=ESTATES).map(|back| (self.cursor + ESTATES - back) % ESTATES);
        let own = newest_first
            .clone()
            .find(|place| of(*place).service == lineage.service);
        let is_kin = |place: &usize| of(*place).service != 0 && of(*place).kin == lineage.kin;
        let place = own.or_else(|| match lineage.kin {
            0 => None,
            _ => newest_first.find(is_kin),
        })?;
        let estate = self.estates[place];
        self.estates[place].lineage = Lineage::default();
        self.len -= 1;
        Some(estate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(service: u64) -> Lineage {
        Lineage {
            service,
            ..Lineage::default()
        }
    }

    fn estate(number: u64, climbs: u32) -> Estate {
        let lineage = service(number);
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
        let estate = estates.take(service(7)).unwrap();
        assert_eq!((estate.climbs, estate.starts.last_ns()), (3, 3));
        assert_eq!(estates.take(service(7)).unwrap().climbs, 1);
        assert!(estates.take(service(7)).is_none());
        assert!(estates.take(service(8)).is_some());
        assert!(estates.take(service(0)).is_none());
    }

    #[test]
    fn who_comes_under_another_name_takes_over_what_the_right_successor_has_not() {
        let lineage = |service, kin| Lineage {
            service,
            kin,
            user: None,
        };
        let mut estates = Estates::new();
        for (climbs, (service, kin)) in (1..).zip([(7, 1), (8, 1), (9, 2)]) {
            estates.leave(Estate {
                lineage: lineage(service, kin),
                ..estate(service, climbs)
            });
        }
        assert_eq!(estates.take(lineage(7, 1)).unwrap().climbs, 1, "its own");
        assert_eq!(
            estates.take(lineage(70, 1)).unwrap().climbs,
            2,
            "of its kin"
        );
        assert!(estates.take(lineage(71, 1)).is_none());
        assert!(estates.take(lineage(72, 0)).is_none());
        assert_eq!(estates.take(lineage(73, 2)).unwrap().climbs, 3);
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut estates = Estates::new();
        for lineage in 1..=ESTATES as u64 + 1 {
            estates.leave(estate(lineage, 1));
        }
        assert!(estates.take(service(1)).is_none());
        assert!(estates.take(service(2)).is_some());
        assert!(estates.take(service(ESTATES as u64 + 1)).is_some());
    }
}
