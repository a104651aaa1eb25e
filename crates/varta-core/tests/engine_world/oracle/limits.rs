//! Common limits: running programs, starts per second, starts per user.

use varta_core::{Agent, Locality};

use super::{OWN_UID, Oracle};
use crate::S;

/// A bucket of starts: a burst, and one more after each interval.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    empty_until_ns: u64,
}

impl Bucket {
    /// Whether it holds a start now, or will within `soon_ns`.
    fn has_one(self, starts: u32, interval_ns: u64, now_ns: u64, soon_ns: u64) -> bool {
        let debt_ns = self.empty_until_ns.saturating_sub(now_ns + soon_ns);
        debt_ns <= interval_ns * u64::from(starts.max(1) - 1)
    }

    fn take(&mut self, interval_ns: u64, now_ns: u64) {
        self.empty_until_ns = self.empty_until_ns.max(now_ns) + interval_ns;
    }
}

impl Oracle {
    /// Whether one more program may run. Remote agents have at most half of the permits; hooks of either locality
    /// have half of those that the other locality cannot take from it.
    pub(super) fn has_place(&self, locality: Locality, is_hook: bool) -> bool {
        let most = self.policy.limits.max_in_flight.max(1);
        let remote = most.div_ceil(2);
        let runs = self.flights.values().filter(|flight| flight.is_run);
        let here = runs
            .clone()
            .filter(|flight| flight.agent.locality() == locality);
        let hooks = here.clone().filter(|flight| flight.hook.is_some()).count();
        let (most_here, own) = match locality {
            Locality::Local => (most, most - remote),
            Locality::Remote => (remote, remote),
        };
        let most_hooks = own.div_ceil(2).max(1);
        runs.count() < most && here.count() < most_here && (!is_hook || hooks < most_hooks)
    }

    /// Whether an action may be started this second.
    pub(super) fn may_start(&self) -> bool {
        let per_second = self.policy.limits.starts_per_second;
        let interval_ns = S.checked_div(u64::from(per_second)).unwrap_or(0);
        per_second == 0
            || self
                .starts
                .has_one(per_second, interval_ns, self.now.observer_ns, 0)
    }

    pub(super) fn count_start(&mut self) {
        let per_second = u64::from(self.policy.limits.starts_per_second);
        let interval_ns = S.checked_div(per_second).unwrap_or(0);
        self.starts.take(interval_ns, self.now.observer_ns);
    }

    fn user_budget(&self, uid: Option<u32>) -> Option<(u32, u32, u64)> {
        let uid = uid.filter(|uid| *uid != 0 && *uid != OWN_UID)?;
        let starts = self.policy.limits.user_budget;
        let window_ns = self.policy.limits.user_window.as_nanos() as u64;
        (starts > 0).then(|| (uid, starts, window_ns / u64::from(starts)))
    }

    /// Whether an action may be started for agents of a user, now or within `soon_ns`.
    pub(super) fn may_start_for(&self, uid: Option<u32>, soon_ns: u64) -> bool {
        let Some((uid, starts, interval_ns)) = self.user_budget(uid) else {
            return true;
        };
        let bucket = self.users.get(&uid).copied().unwrap_or_default();
        bucket.has_one(starts, interval_ns, self.now.observer_ns, soon_ns)
    }

    /// When an action may be started for agents of a user.
    pub(super) fn free_for_user_ns(&self, uid: Option<u32>) -> u64 {
        let Some((uid, starts, interval_ns)) = self.user_budget(uid) else {
            return 0;
        };
        let bucket = self.users.get(&uid).copied().unwrap_or_default();
        bucket
            .empty_until_ns
            .saturating_sub(interval_ns * u64::from(starts - 1))
    }

    pub(super) fn count_start_for(&mut self, uid: Option<u32>) {
        if let Some((uid, _, interval_ns)) = self.user_budget(uid) {
            let now_ns = self.now.observer_ns;
            self.users.entry(uid).or_default().take(interval_ns, now_ns);
        }
    }

    /// A step starts: it must be within all limits.
    pub(super) fn check_start(&mut self, agent: Agent, is_run: bool, is_hook: bool) {
        if is_run {
            assert!(
                self.has_place(agent.locality(), is_hook),
                "places: {agent:?} has none, {:?}",
                self.flights
            );
        }
        if is_run || !is_hook {
            assert!(
                self.may_start(),
                "starts per second: too many, for {agent:?}"
            );
            self.count_start();
        }
    }
}
