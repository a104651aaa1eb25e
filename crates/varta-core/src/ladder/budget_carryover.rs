//! The spent budget of a service, kept from the end of one process until its successor joins.
//!
//! A process that is restarted is a new agent, but the same service. Without the carryover a service that hangs after
//! every start would be restarted for ever. Each carryover goes to one successor, so that the workers of a pool, which
//! share a lineage, do not pay for each other. Bounds: [`CARRYOVERS`]; beyond that the oldest is dropped.

use super::action_history::ActionHistory;

/// The identity of a service across its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    /// The facts that make two processes the same service to an operator, including the name; 0 for none.
    pub service: u64,
    /// The facts its user cannot choose: the user itself, and the unit of the system's service manager; 0 for
    /// none. A service that comes back under another name takes over a carryover that no exact successor has
    /// taken.
    pub kin: u64,
    /// The user of a local agent.
    pub user: Option<u32>,
}

/// Carryovers kept: about 300 KiB.
const CARRYOVERS: usize = 1024;

#[derive(Clone, Copy, Debug)]
pub(super) struct BudgetCarryover {
    /// The service; the place is free if it has none.
    pub(super) lineage: Lineage,
    pub(super) escalations: u32,
    pub(super) left_ns: u64,
    pub(super) history: ActionHistory,
}

#[derive(Debug)]
pub(super) struct BudgetCarryovers {
    carryovers: Box<[BudgetCarryover]>,
    /// The place of the next one.
    cursor: usize,
    len: usize,
}

impl BudgetCarryovers {
    pub(super) fn new() -> Self {
        let free = BudgetCarryover {
            lineage: Lineage::default(),
            escalations: 0,
            left_ns: 0,
            history: ActionHistory::NONE,
        };
        Self {
            carryovers: vec![free; CARRYOVERS].into_boxed_slice(),
            cursor: 0,
            len: 0,
        }
    }

    pub(super) fn leave(&mut self, carryover: BudgetCarryover) {
        if carryover.lineage.service == 0 {
            return;
        }
        let place = &mut self.carryovers[self.cursor];
        self.len += usize::from(place.lineage.service == 0);
        *place = carryover;
        self.cursor = (self.cursor + 1) % CARRYOVERS;
    }

    /// Removes all actions since `since_ns`.
    pub(super) fn forget_starts(&mut self, since_ns: u64) {
        for carryover in &mut self.carryovers {
            carryover.history.forget_since(since_ns);
            carryover.escalations = carryover.escalations.min(carryover.history.count());
        }
    }

    /// Takes the newest carryover of a service, else the newest one of its kin.
    pub(super) fn take(&mut self, lineage: Lineage) -> Option<BudgetCarryover> {
        if lineage.service == 0 || self.len == 0 {
            return None;
        }
        let of = |place: usize| self.carryovers[place].lineage;
        let mut newest_first =
            (1..=CARRYOVERS).map(|back| (self.cursor + CARRYOVERS - back) % CARRYOVERS);
        let own = newest_first
            .clone()
            .find(|place| of(*place).service == lineage.service);
        let is_kin = |place: &usize| of(*place).service != 0 && of(*place).kin == lineage.kin;
        let place = own.or_else(|| match lineage.kin {
            0 => None,
            _ => newest_first.find(is_kin),
        })?;
        let carryover = self.carryovers[place];
        self.carryovers[place].lineage = Lineage::default();
        self.len -= 1;
        Some(carryover)
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

    fn carryover(number: u64, escalations: u32) -> BudgetCarryover {
        let lineage = service(number);
        let mut history = ActionHistory::NONE;
        history.add(u64::from(escalations));
        BudgetCarryover {
            lineage,
            escalations,
            left_ns: 1,
            history,
        }
    }

    #[test]
    fn each_carryover_goes_to_one_successor_of_its_lineage() {
        let mut carryovers = BudgetCarryovers::new();
        carryovers.leave(carryover(7, 1));
        carryovers.leave(carryover(8, 2));
        carryovers.leave(carryover(7, 3));
        let carryover = carryovers.take(service(7)).unwrap();
        assert_eq!((carryover.escalations, carryover.history.last_ns()), (3, 3));
        assert_eq!(carryovers.take(service(7)).unwrap().escalations, 1);
        assert!(carryovers.take(service(7)).is_none());
        assert!(carryovers.take(service(8)).is_some());
        assert!(carryovers.take(service(0)).is_none());
    }

    #[test]
    fn an_agent_under_another_name_takes_over_a_carryover_without_an_exact_successor() {
        let lineage = |service, kin| Lineage {
            service,
            kin,
            user: None,
        };
        let mut carryovers = BudgetCarryovers::new();
        for (escalations, (service, kin)) in (1..).zip([(7, 1), (8, 1), (9, 2)]) {
            carryovers.leave(BudgetCarryover {
                lineage: lineage(service, kin),
                ..carryover(service, escalations)
            });
        }
        assert_eq!(
            carryovers.take(lineage(7, 1)).unwrap().escalations,
            1,
            "its own"
        );
        assert_eq!(
            carryovers.take(lineage(70, 1)).unwrap().escalations,
            2,
            "of its kin"
        );
        assert!(carryovers.take(lineage(71, 1)).is_none());
        assert!(carryovers.take(lineage(72, 0)).is_none());
        assert_eq!(carryovers.take(lineage(73, 2)).unwrap().escalations, 3);
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut carryovers = BudgetCarryovers::new();
        for lineage in 1..=CARRYOVERS as u64 + 1 {
            carryovers.leave(carryover(lineage, 1));
        }
        assert!(carryovers.take(service(1)).is_none());
        assert!(carryovers.take(service(2)).is_some());
        assert!(carryovers.take(service(CARRYOVERS as u64 + 1)).is_some());
    }
}
