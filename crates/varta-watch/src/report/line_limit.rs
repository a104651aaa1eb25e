//! Limits the log lines that one user can cause.
//!
//! A user whose processes may join can have agents join, end and report that they are critical without end. Beyond a
//! rate such lines are dropped and counted by kind, and one line per second and user reports the number. So they
//! displace neither the events of other agents in the history nor other lines of the service in the journal.
//!
//! Stalls, returns, recoveries and abandoned recoveries are never dropped. The event file has every row. Bounds:
//! [`OWNERS_MAX`] users and addresses have an account each, all others share one.

use std::collections::{BTreeMap, HashMap};

use varta_core::admission::TokenBucket;
use varta_core::fact::{HookOutcome, LineKind, LineOwner};
use varta_core::{AgentRef, Fact, Rate};

/// Lines of one user: what a service of some hundred agents causes when it starts, and after that one line in 50 ms.
const USER: Rate = Rate {
    per_second: 20,
    burst: 500,
};

/// Lines of all users together: 5000 in 30 s, half of what journald accepts from a service by default.
const ALL: Rate = Rate {
    per_second: 100,
    burst: 2000,
};

/// Dropped lines are reported after this long: 1 s.
const INTERVAL_NS: u64 = 1_000_000_000;

/// An owner that causes no line for this long has a full bucket again, so its account can be removed: 30 s.
const IDLE_NS: u64 = 30_000_000_000;

/// Users and addresses with an account of their own. Each may cause one line per second that reports dropped lines.
const OWNERS_MAX: usize = 16;

/// The accounts. Times are those of the observer's clock.
#[derive(Debug)]
pub(super) struct LineLimit {
    all: TokenBucket,
    accounts: HashMap<LineOwner, Account>,
}

#[derive(Debug)]
struct Account {
    lines: TokenBucket,
    last_ns: u64,
    left_out: Option<LeftOut>,
}

/// Lines that were dropped within an interval.
#[derive(Debug)]
struct LeftOut {
    since_ns: u64,
    counts: BTreeMap<LineKind, u64>,
}

impl Default for LineLimit {
    fn default() -> Self {
        Self {
            all: TokenBucket::full(ALL, 0),
            accounts: HashMap::new(),
        }
    }
}

/// The subject of a line that may be dropped.
fn kind_of(fact: &Fact) -> Option<LineKind> {
    match fact {
        Fact::Joined { .. } => Some(LineKind::Join),
        Fact::Exited { .. } => Some(LineKind::Exit),
        Fact::Critical { .. } => Some(LineKind::Critical),
        Fact::Late { .. } => Some(LineKind::Late),
        Fact::HookRehearsed { .. }
        | Fact::HookWithdrawn { .. }
        | Fact::HookEnded {
            outcome: HookOutcome::Done { .. },
            ..
        } => Some(LineKind::Hook),
        _ => None,
    }
}

fn owner_of(agent: &AgentRef) -> LineOwner {
    let address = agent.address.map(LineOwner::Address);
    let user = agent.uid.map(LineOwner::User);
    address.or(user).unwrap_or(LineOwner::Others)
}

impl LineLimit {
    /// Whether the line of a fact must be written now. If not it is counted, see [`Self::take_due`].
    pub(super) fn admits(&mut self, fact: &Fact, now_ns: u64) -> bool {
        match (kind_of(fact), fact.agent()) {
            (Some(kind), Some(agent)) => self.admit(owner_of(agent), kind, now_ns),
            _ => true,
        }
    }

    fn admit(&mut self, owner: LineOwner, kind: LineKind, now_ns: u64) -> bool {
        let owner = self.with_account(owner, now_ns);
        let account = self.accounts.entry(owner).or_insert_with(|| Account {
            lines: TokenBucket::full(USER, now_ns),
            last_ns: now_ns,
            left_out: None,
        });
        account.last_ns = now_ns;
        if account.lines.take(USER, now_ns) && self.all.take(ALL, now_ns) {
            return true;
        }
        let left_out = account.left_out.get_or_insert_with(|| LeftOut {
            since_ns: now_ns,
            counts: BTreeMap::new(),
        });
        *left_out.counts.entry(kind).or_default() += 1;
        false
    }

    /// The account that is charged: the owner's own if it has one, or if another one fits.
    fn with_account(&mut self, owner: LineOwner, now_ns: u64) -> LineOwner {
        if self.accounts.len() < OWNERS_MAX || self.accounts.contains_key(&owner) {
            return owner;
        }
        let is_idle = |account: &Account| {
            account.left_out.is_none() && now_ns.saturating_sub(account.last_ns) >= IDLE_NS
        };
        self.accounts.retain(|_, account| !is_idle(account));
        match self.accounts.len() < OWNERS_MAX {
            true => owner,
            false => LineOwner::Others,
        }
    }

    /// The reports about dropped lines that are due.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Vec<Fact> {
        self.take_left_out(now_ns, INTERVAL_NS)
    }

    /// All reports about dropped lines, due or not.
    pub(super) fn take_all(&mut self, now_ns: u64) -> Vec<Fact> {
        self.take_left_out(now_ns, 0)
    }

    fn take_left_out(&mut self, now_ns: u64, age_ns: u64) -> Vec<Fact> {
        let is_due = |left_out: &mut LeftOut| left_out.since_ns.saturating_add(age_ns) <= now_ns;
        let accounts = self.accounts.iter_mut();
        let left_out = accounts.filter_map(|(owner, account)| {
            let LeftOut { since_ns, counts } = account.left_out.take_if(is_due)?;
            Some(Fact::LinesOverRate {
                owner: *owner,
                counts: counts.into_iter().collect(),
                within_ns: now_ns.saturating_sub(since_ns),
                per_second: USER.per_second,
            })
        });
        left_out.collect()
    }

    /// When [`Self::take_due`] has something to take.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        let accounts = self.accounts.values();
        let left_out = accounts.filter_map(|account| account.left_out.as_ref());
        left_out
            .map(|left_out| left_out.since_ns.saturating_add(INTERVAL_NS))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use varta_core::fact::LineKind::{Critical, Exit, Join};

    const ALICE: LineOwner = LineOwner::User(1000);
    const BOB: LineOwner = LineOwner::User(1001);

    /// How many of this many lines at the same moment are admitted.
    fn admitted(limit: &mut LineLimit, owner: LineOwner, count: u32, now_ns: u64) -> u32 {
        (0..count)
            .map(|_| u32::from(limit.admit(owner, Join, now_ns)))
            .sum()
    }

    #[test]
    fn beyond_the_burst_lines_are_counted_by_kind_and_reported_after_the_interval() {
        let mut limit = LineLimit::default();
        assert_eq!(admitted(&mut limit, ALICE, USER.burst, 5), USER.burst);
        assert_eq!(limit.next_due_ns(), None);
        for kind in [Join, Exit, Join, Critical] {
            assert!(!limit.admit(ALICE, kind, 5));
        }
        let due_ns = 5 + INTERVAL_NS;
        assert_eq!(limit.next_due_ns(), Some(due_ns));
        assert_eq!(limit.take_due(due_ns - 1), []);
        let left_out = Fact::LinesOverRate {
            owner: ALICE,
            counts: vec![(Join, 2), (Exit, 1), (Critical, 1)],
            within_ns: INTERVAL_NS,
            per_second: USER.per_second,
        };
        assert_eq!(limit.take_due(due_ns), [left_out]);
        assert_eq!(limit.next_due_ns(), None);
        let refilled = admitted(&mut limit, ALICE, USER.burst, due_ns);
        assert_eq!(refilled, USER.per_second);
    }

    #[test]
    fn nobody_pays_for_another_until_all_together_are_too_many() {
        let mut limit = LineLimit::default();
        admitted(&mut limit, ALICE, 10 * USER.burst, 5);
        assert_eq!(admitted(&mut limit, BOB, 1, 5), 1);
        let mut users = (0..).map(LineOwner::User);
        let all: u32 = (0..2 * OWNERS_MAX)
            .map(|_| admitted(&mut limit, users.next().unwrap(), USER.burst, 5))
            .sum();
        assert_eq!(all, ALL.burst - USER.burst - 1);
    }

    #[test]
    fn users_without_end_have_a_bounded_number_of_accounts() {
        let mut limit = LineLimit::default();
        for uid in 0..100_000 {
            limit.admit(LineOwner::User(uid), Join, 5);
        }
        assert!(limit.accounts.len() <= OWNERS_MAX + 1);
        let left_out = limit.take_all(5);
        let total: u64 = left_out
            .iter()
            .map(|fact| match fact {
                Fact::LinesOverRate { counts, .. } => counts[0].1,
                other => panic!("{other:?}"),
            })
            .sum();
        assert!(total >= 100_000 - u64::from(ALL.burst));
        limit.admit(ALICE, Join, 5 + IDLE_NS);
        assert!(limit.accounts.contains_key(&ALICE), "the others are idle");
        assert_eq!(limit.accounts.len(), 1);
    }
}
