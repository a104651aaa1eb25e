//! How many lines of the log one user may cause.
//!
//! Whoever may join can have agents join, end and report that they are critical without end. Beyond a rate such
//! lines are left out and counted by kind, and one line per second and user says how many there were. So they
//! crowd nothing out: not what is remembered of other agents, nor what a journal takes of the whole service.
//!
//! Stalls, returns, recoveries and what was given up are never left out. The event file has every row.
//! Bounded: [`OWNERS_MAX`] users and addresses have an account each, all others share one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use varta_core::Rate;
use varta_core::admission::TokenBucket;

/// Lines of one user: what a service of some hundred agents causes when it starts, and from then on one line in
/// 50 ms.
pub(crate) const USER: Rate = Rate {
    per_second: 20,
    burst: 500,
};

/// Lines of all users together: 5000 in 30 s, half of what journald takes of a service by default.
const ALL: Rate = Rate {
    per_second: 100,
    burst: 2000,
};

/// Lines that were left out are told of after this long: 1 s.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whoever causes no line for this long has a full bucket again, and need not be remembered: 30 s.
const IDLE: Duration = Duration::from_secs(30);

/// Users and addresses with an account of their own. Each may cause a line per second that tells what was left out.
const OWNERS_MAX: usize = 16;

/// Whose agent a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A user of this host, by kernel credentials.
    User(u32),
    /// Where an agent elsewhere sends from.
    Address(IpAddr),
    /// All that have no account of their own.
    Others,
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LineKind {
    Join,
    Exit,
    Critical,
    Late,
    /// A hook was run, or was not needed any more; not one that failed.
    Hook,
}

impl LineKind {
    /// As the `event` of the line that is left out.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Exit => "exit",
            Self::Critical => "critical",
            Self::Late => "late",
            Self::Hook => "hook",
        }
    }
}

/// The accounts.
#[derive(Debug)]
pub(crate) struct LineLimit {
    started: Instant,
    all: TokenBucket,
    accounts: HashMap<Owner, Account>,
}

#[derive(Debug)]
struct Account {
    lines: TokenBucket,
    last: Instant,
    left_out: Option<LeftOut>,
}

/// Lines that were left out within an interval.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) since: Instant,
    pub(crate) counts: BTreeMap<LineKind, u64>,
}

impl LineLimit {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            all: TokenBucket::full(ALL, 0),
            accounts: HashMap::new(),
        }
    }

    /// Whether a line is to be told now. If not it is counted, see [`Self::take_due`].
    pub(crate) fn admit(&mut self, owner: Owner, kind: LineKind, now: Instant) -> bool {
        let now_ns = self.nanoseconds(now);
        let owner = self.with_account(owner, now);
        let account = self.accounts.entry(owner).or_insert_with(|| Account {
            lines: TokenBucket::full(USER, now_ns),
            last: now,
            left_out: None,
        });
        account.last = now;
        if account.lines.take(USER, now_ns) && self.all.take(ALL, now_ns) {
            return true;
        }
        let left_out = account.left_out.get_or_insert_with(|| LeftOut {
            since: now,
            counts: BTreeMap::new(),
        });
        *left_out.counts.entry(kind).or_default() += 1;
        false
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whose account counts: the owner's own if it has one, or if there is room for another.
    fn with_account(&mut self, owner: Owner, now: Instant) -> Owner {
        if self.accounts.len() < OWNERS_MAX || self.accounts.contains_key(&owner) {
            return owner;
        }
        let is_idle = |account: &Account| {
            account.left_out.is_none() && now.saturating_duration_since(account.last) >= IDLE
        };
        self.accounts.retain(|_, account| !is_idle(account));
        match self.accounts.len() < OWNERS_MAX {
            true => owner,
            false => Owner::Others,
        }
    }

    /// What is to be told of by now.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<(Owner, LeftOut)> {
        let accounts = self.accounts.iter_mut();
        let due = accounts.filter_map(|(owner, account)| {
            let left_out = account
                .left_out
                .take_if(|left_out| left_out.since + INTERVAL <= now);
            Some((*owner, left_out?))
        });
        due.collect()
    }

    /// All that is left to be told, whether it is time or not.
    pub(crate) fn take_all(&mut self) -> Vec<(Owner, LeftOut)> {
        let accounts = self.accounts.iter_mut();
        accounts
            .filter_map(|(owner, account)| Some((*owner, account.left_out.take()?)))
            .collect()
    }

    /// When [`Self::take_due`] has something to take.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let left_out = self
            .accounts
            .values()
            .filter_map(|account| account.left_out.as_ref());
        left_out.map(|left_out| left_out.since + INTERVAL).min()
    }
}

#[cfg(test)]
mod tests {
    use super::LineKind::{Critical, Exit, Join};
    use super::*;

    const ALICE: Owner = Owner::User(1000);
    const BOB: Owner = Owner::User(1001);

    /// How many of so many lines at the same moment are told.
    fn told(limit: &mut LineLimit, owner: Owner, count: u32, now: Instant) -> u32 {
        (0..count)
            .map(|_| u32::from(limit.admit(owner, Join, now)))
            .sum()
    }

    #[test]
    fn beyond_the_burst_lines_are_counted_by_kind_and_told_of_after_the_interval() {
        let now = Instant::now();
        let mut limit = LineLimit::new(now);
        assert_eq!(told(&mut limit, ALICE, USER.burst, now), USER.burst);
        assert_eq!(limit.next_due(), None);
        for kind in [Join, Exit, Join, Critical] {
            assert!(!limit.admit(ALICE, kind, now));
        }
        assert_eq!(limit.next_due(), Some(now + INTERVAL));
        assert!(limit.take_due(now + INTERVAL / 2).is_empty());
        let due = limit.take_due(now + INTERVAL);
        let [(ALICE, left_out)] = &due[..] else {
            panic!("{due:?}");
        };
        let counts: Vec<_> = left_out.counts.clone().into_iter().collect();
        assert_eq!(counts, [(Join, 2), (Exit, 1), (Critical, 1)]);
        assert_eq!(limit.next_due(), None);
        let refilled = told(&mut limit, ALICE, USER.burst, now + INTERVAL);
        assert_eq!(refilled, USER.per_second);
    }

    #[test]
    fn nobody_pays_for_another_until_all_together_are_too_many() {
        let now = Instant::now();
        let mut limit = LineLimit::new(now);
        told(&mut limit, ALICE, 10 * USER.burst, now);
        assert_eq!(told(&mut limit, BOB, 1, now), 1);
        let mut users = (0..).map(Owner::User);
        let all: u32 = (0..2 * OWNERS_MAX)
            .map(|_| told(&mut limit, users.next().unwrap(), USER.burst, now))
            .sum();
        assert_eq!(all, ALL.burst - USER.burst - 1);
    }

    #[test]
    fn users_without_end_have_a_bounded_number_of_accounts() {
        let now = Instant::now();
        let mut limit = LineLimit::new(now);
        for uid in 0..100_000 {
            limit.admit(Owner::User(uid), Join, now);
        }
        assert!(limit.accounts.len() <= OWNERS_MAX + 1);
        let total: u64 = limit
            .take_all()
            .iter()
            .flat_map(|(_, left_out)| left_out.counts.values())
            .sum();
        assert!(total >= 100_000 - u64::from(ALL.burst));
        limit.admit(ALICE, Join, now + IDLE);
        assert!(limit.accounts.contains_key(&ALICE), "the others are idle");
        assert_eq!(limit.accounts.len(), 1);
    }
}
