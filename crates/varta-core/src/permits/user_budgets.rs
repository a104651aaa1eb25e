//! The limit of actions for the agents of one user, under any names.
//!
//! A budget per agent does not bound the actions that a user can cause: it can start process after process,
//! each under another name. So each user has a bucket of starts that refills within a window. Bounds:
//! [`USERS`] buckets; with more users the bucket that is full, or will be first, is dropped.

/// Users whose starts are kept.
const USERS: usize = 1024;

/// Root can start any program anyway.
const ROOT: u32 = 0;

/// The bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserBudget {
    /// Burst of starts, and as many again within each window; 0 for no bound.
    pub starts: u32,
    /// The window.
    pub window_ns: u64,
    /// The observer's own user, which can start what it likes as this user anyway; neither it nor root has a bound.
    pub exempt: u32,
}

#[derive(Debug)]
pub(crate) struct UserBudgets {
    budget: UserBudget,
    /// Users with the time at which their bucket is full again; 0 for a free place.
    full_at_ns: Box<[(u32, u64)]>,
}

impl UserBudgets {
    pub(crate) fn new(budget: UserBudget) -> Self {
        Self {
            budget,
            full_at_ns: vec![(ROOT, 0); USERS].into_boxed_slice(),
        }
    }

    pub(crate) fn set_budget(&mut self, budget: UserBudget) {
        self.budget = budget;
    }

    /// Forgets all starts.
    pub(crate) fn forget(&mut self) {
        self.full_at_ns.fill((ROOT, 0));
    }

    /// When an action may be started for an agent of this user; in the past if now.
    pub(crate) fn start_at_ns(&self, user: Option<u32>) -> u64 {
        let known = self.bounded(user).and_then(|user| self.place_of(user));
        known.map_or(0, |place| {
            let (_, full_at_ns) = self.full_at_ns[place];
            (full_at_ns + self.interval_ns()).saturating_sub(self.budget.window_ns)
        })
    }

    /// Records a start.
    pub(crate) fn add(&mut self, user: Option<u32>, now_ns: u64) {
        let Some(user) = self.bounded(user) else {
            return;
        };
        let interval_ns = self.interval_ns();
        let fullest = || {
            let places = self.full_at_ns.iter().enumerate();
            let fullest = places.min_by_key(|(_, (_, full_at_ns))| *full_at_ns);
            fullest.map(|(place, _)| place)
        };
        if let Some(place) = self.place_of(user).or_else(fullest) {
            let (owner, full_at_ns) = &mut self.full_at_ns[place];
            let since_ns = if *owner == user { *full_at_ns } else { 0 };
            *owner = user;
            *full_at_ns = since_ns.max(now_ns) + interval_ns;
        }
    }

    /// The user, if the bound applies to it.
    fn bounded(&self, user: Option<u32>) -> Option<u32> {
        user.filter(|user| self.budget.starts > 0 && *user != ROOT && *user != self.budget.exempt)
    }

    fn place_of(&self, user: u32) -> Option<usize> {
        let is_users = |(owner, full_at_ns): &(u32, u64)| *owner == user && *full_at_ns != 0;
        self.full_at_ns.iter().position(is_users)
    }

    fn interval_ns(&self) -> u64 {
        self.budget.window_ns / u64::from(self.budget.starts.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: UserBudget = UserBudget {
        starts: 4,
        window_ns: 400,
        exempt: 7,
    };

    /// Starts as often as allowed.
    fn start_all(starts: &mut UserBudgets, user: u32, now_ns: u64) -> u32 {
        let mut count = 0;
        while count < 100 && starts.start_at_ns(Some(user)) <= now_ns {
            starts.add(Some(user), now_ns);
            count += 1;
        }
        count
    }

    #[test]
    fn a_user_has_its_budget_at_once_and_then_again_within_a_window() {
        let mut starts = UserBudgets::new(BUDGET);
        assert_eq!(start_all(&mut starts, 5, 1_000), 4);
        assert_eq!(starts.start_at_ns(Some(5)), 1_100);
        assert_eq!(start_all(&mut starts, 5, 1_099), 0);
        assert_eq!(start_all(&mut starts, 5, 1_200), 2);
        assert_eq!(start_all(&mut starts, 6, 1_200), 4, "another user");
        assert_eq!(start_all(&mut starts, 5, 2_000), 4);
        starts.forget();
        assert_eq!(start_all(&mut starts, 5, 2_000), 4);
    }

    #[test]
    fn the_bound_exempts_root_the_observers_user_and_remote_agents() {
        let mut starts = UserBudgets::new(BUDGET);
        assert_eq!(start_all(&mut starts, 0, 1_000), 100);
        assert_eq!(start_all(&mut starts, 7, 1_000), 100);
        starts.add(None, 1_000);
        assert_eq!(starts.start_at_ns(None), 0);
        starts.set_budget(UserBudget::default());
        assert_eq!(start_all(&mut starts, 5, 1_000), 100);
    }

    #[test]
    fn of_too_many_users_the_one_that_has_started_least_is_forgotten() {
        let mut starts = UserBudgets::new(BUDGET);
        assert_eq!(start_all(&mut starts, 9, 1_000), 4);
        for user in 10..10 + USERS as u32 {
            starts.add(Some(user), 1_000);
        }
        assert_eq!(start_all(&mut starts, 9, 1_000), 0, "has started most");
    }
}
