//! Limits for all actions together: how many at a time, how many per second, how many for the agents of one user.
//! An action that is done at once takes no permit.
//!
//! Bounds: a few numbers, and 1024 users.

mod user_budgets;

use crate::agent::{Locality, PerLocality};

pub use user_budgets::UserBudget;
pub(crate) use user_budgets::UserBudgets;

/// Part of the actions in flight that remote agents may have.
const REMOTE_PART: usize = 2;

/// Part of the permits of a locality that its hooks may have, so that ladders have the rest.
const HOOK_PART: usize = 2;

/// The purpose of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A step of a ladder.
    Ladder,
    /// A step of a hook.
    Hook,
}

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitLimits {
    /// Most actions in flight together; at least 1.
    pub max_in_flight: usize,
    /// Most actions started per second, and their burst; 0 for no limit.
    pub starts_per_second: u32,
    /// Most actions started for the agents of one user.
    pub user_budget: UserBudget,
}

/// Permits that are out for agents of one locality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct InFlight {
    ladders: usize,
    hooks: usize,
}

impl InFlight {
    fn of(&mut self, purpose: Purpose) -> &mut usize {
        match purpose {
            Purpose::Ladder => &mut self.ladders,
            Purpose::Hook => &mut self.hooks,
        }
    }

    fn all(self) -> usize {
        self.ladders + self.hooks
    }
}

#[derive(Debug)]
pub(crate) struct Permits {
    limits: PermitLimits,
    in_flight: PerLocality<InFlight>,
    /// When the bucket of starts will be full again.
    full_at_ns: u64,
}

impl Permits {
    pub(crate) fn new(limits: PermitLimits) -> Self {
        Self {
            limits,
            in_flight: PerLocality::default(),
            full_at_ns: 0,
        }
    }

    pub(crate) fn set_limits(&mut self, limits: PermitLimits) {
        self.limits = limits;
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.local.all() + self.in_flight.remote.all()
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&mut self, locality: Locality, purpose: Purpose, now_ns: u64) -> bool {
        let has_room = self.free_at_ns(locality, purpose).is_some();
        let is_taken = has_room && self.start(now_ns);
        if is_taken {
            *self.in_flight[locality].of(purpose) += 1;
        }
        is_taken
    }

    pub(crate) fn give_back(&mut self, locality: Locality, purpose: Purpose) {
        let in_flight = self.in_flight[locality].of(purpose);
        *in_flight = in_flight.saturating_sub(1);
    }

    /// Counts a start that takes no permit, if it may be now.
    pub(crate) fn start(&mut self, now_ns: u64) -> bool {
        let may_start = self.start_at_ns() <= now_ns;
        if may_start {
            self.full_at_ns = self.full_at_ns.max(now_ns) + self.interval_ns();
        }
        may_start
    }

    /// When something may be started, if there is a permit.
    pub(crate) fn start_at_ns(&self) -> u64 {
        if self.limits.starts_per_second == 0 {
            return 0;
        }
        let bucket_ns = self.interval_ns() * u64::from(self.limits.starts_per_second);
        (self.full_at_ns + self.interval_ns()).saturating_sub(bucket_ns)
    }

    /// When a permit is available; `None` while as many as allowed are in flight.
    pub(crate) fn free_at_ns(&self, locality: Locality, purpose: Purpose) -> Option<u64> {
        let most = self.limits.max_in_flight.max(1);
        let in_flight = self.in_flight[locality];
        let most_remote = most.div_ceil(REMOTE_PART);
        // What a locality can have, and what the other locality cannot take from it.
        let (most_in_locality, own) = match locality {
            Locality::Local => (most, most - most_remote),
            Locality::Remote => (most_remote, most_remote),
        };
        let most_hooks = own.div_ceil(HOOK_PART).max(1);
        let has_room = self.in_flight() < most
            && in_flight.all() < most_in_locality
            && (purpose == Purpose::Ladder || in_flight.hooks < most_hooks);
        has_room.then(|| self.start_at_ns())
    }

    fn interval_ns(&self) -> u64 {
        match self.limits.starts_per_second {
            0 => 0,
            per_second => 1_000_000_000 / u64::from(per_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn permits(max_in_flight: usize, starts_per_second: u32) -> Permits {
        Permits::new(PermitLimits {
            max_in_flight,
            starts_per_second,
            user_budget: UserBudget::default(),
        })
    }

    #[test]
    fn no_more_than_the_limit_are_out_and_half_of_them_remote() {
        let mut permits = permits(4, 0);
        assert!(
            permits.take(Locality::Remote, Purpose::Ladder, 0)
                && permits.take(Locality::Remote, Purpose::Ladder, 0)
        );
        assert!(!permits.take(Locality::Remote, Purpose::Ladder, 0));
        assert!(
            permits.take(Locality::Local, Purpose::Ladder, 0)
                && permits.take(Locality::Local, Purpose::Ladder, 0)
        );
        assert!(!permits.take(Locality::Local, Purpose::Ladder, 0));
        assert_eq!(permits.free_at_ns(Locality::Local, Purpose::Ladder), None);
        permits.give_back(Locality::Remote, Purpose::Ladder);
        assert!(permits.take(Locality::Local, Purpose::Ladder, 0));
    }

    #[test]
    fn hooks_have_half_of_what_is_their_localitys_own_and_leave_ladders_the_rest() {
        let mut permits = permits(8, 0);
        let mut taken = |locality| {
            let tries = (0..8).filter(|_| permits.take(locality, Purpose::Hook, 0));
            tries.count()
        };
        assert_eq!((taken(Locality::Remote), taken(Locality::Local)), (2, 2));
        assert_eq!(permits.free_at_ns(Locality::Local, Purpose::Hook), None);
        for locality in Locality::ALL {
            for _ in 0..2 {
                assert!(permits.take(locality, Purpose::Ladder, 0), "{locality:?}");
            }
        }
        permits.give_back(Locality::Local, Purpose::Hook);
        assert!(permits.take(Locality::Local, Purpose::Hook, 0));
    }

    #[test]
    fn a_single_permit_is_for_both_localities() {
        let mut permits = permits(1, 0);
        assert!(permits.take(Locality::Remote, Purpose::Ladder, 0));
        assert!(!permits.take(Locality::Local, Purpose::Ladder, 0));
    }

    #[test]
    fn starts_come_at_their_rate_after_a_burst_of_one_second() {
        let mut permits = permits(usize::MAX, 10);
        let mut now_ns = 100 * S;
        for _ in 0..10 {
            assert!(permits.take(Locality::Local, Purpose::Ladder, now_ns));
        }
        for _ in 0..5 {
            assert!(!permits.take(Locality::Local, Purpose::Ladder, now_ns));
            assert_eq!(
                permits.free_at_ns(Locality::Local, Purpose::Ladder),
                Some(now_ns + S / 10)
            );
            now_ns += S / 10;
            assert!(permits.take(Locality::Local, Purpose::Ladder, now_ns));
        }
    }
}
