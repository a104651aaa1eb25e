//! Token buckets: how much a sender may send.
//!
//! A bucket holds up to a burst of tokens and fills at a rate; every admitted beat takes one. Tokens are
//! counted in billionths, so that a rate of `r` per second is `r` billionths per nanosecond and no remainder
//! is lost: over any time, at most `burst + rate * time` beats pass and, if enough beats arrive, exactly as
//! many.
//!
//! [`Limits`] combines them: one bucket per agent, one shared bucket, and reserves for what a flood must not
//! displace: terminal frames and first contacts. The excess of an agent is refused from its own bucket before
//! it reaches the shared one, so no agent pays for the flood of another agent.

use crate::agent::{Locality, PerLocality};
use crate::refusal::Limit;

/// Billionths of a token in a token; equals nanoseconds in a second, so that a rate needs no scaling.
const TOKEN: u64 = 1_000_000_000;

/// Interval at which a terminal frame is admitted although its agent's bucket is empty: 1 s, one crash of the
/// process per second.
const TERMINAL_PAUSE_NS: u64 = 1_000_000_000;

/// First contacts per second beyond the burst. One costs about 20 us, so this is a fifth of a core.
const NEWCOMER_RATE: u32 = 10_000;

/// First contacts of remote agents per second. No kernel attests them; they are few, and each may cost the memory of
/// a session.
const REMOTE_NEWCOMER_RATE: u32 = 100;

/// Sessions that an agent may open: it opens one when it starts and when it reconnects. Each may evict a
/// closed session of another agent.
const SESSIONS: Rate = Rate {
    per_second: 1,
    burst: 100,
};

/// Smallest burst of first contacts; with a larger table it is the capacity.
const NEWCOMER_BURST_MIN: u32 = 10_000;

/// Rate and burst of processes that join again directly after a goodbye: enough for a process that restarts itself.
const COMEBACKS: Rate = Rate {
    per_second: 10,
    burst: 100,
};

/// A rate and its burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second; at least 1.
    pub per_second: u32,
    /// Tokens the bucket holds; at least 1.
    pub burst: u32,
}

/// The level of one bucket. Its rate is an argument, so that buckets of one rate do not each store it.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket {
    /// Billionths of a token.
    level: u64,
    /// When the level was right.
    at_ns: u64,
}

impl TokenBucket {
    /// A full bucket.
    pub fn full(rate: Rate, now_ns: u64) -> Self {
        Self {
            level: u64::from(rate.burst.max(1)) * TOKEN,
            at_ns: now_ns,
        }
    }

    /// Takes a token; false, and nothing changes, if there is none.
    pub fn take(&mut self, rate: Rate, now_ns: u64) -> bool {
        let elapsed_ns = now_ns.saturating_sub(self.at_ns);
        let gained = elapsed_ns.saturating_mul(u64::from(rate.per_second));
        let capacity = u64::from(rate.burst.max(1)) * TOKEN;
        let level = self.level.saturating_add(gained).min(capacity);
        if level < TOKEN {
            return false;
        }
        self.level = level - TOKEN;
        self.at_ns = self.at_ns.max(now_ns);
        true
    }
}

/// The limits in force. `None` means no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitOptions {
    /// Beats of one agent.
    pub agent: Option<Rate>,
    /// Beats of all agents together.
    pub global: Option<Rate>,
}

/// How many beats of one agent are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BeatLimit {
    /// The default limit: [`LimitOptions::agent`].
    #[default]
    Common,
    /// A limit of its own.
    Own(Rate),
    /// No limit.
    Unlimited,
}

#[derive(Clone, Copy, Debug, Default)]
struct Budget {
    limit: BeatLimit,
    beats: TokenBucket,
    /// From this time the reserve admits a terminal frame although the agent's bucket is empty.
    terminal_from_ns: u64,
    sessions: TokenBucket,
}

impl Budget {
    /// The limit in force, given the default limit.
    fn rate(&self, common: Option<Rate>) -> Option<Rate> {
        match self.limit {
            BeatLimit::Common => common,
            BeatLimit::Own(rate) => Some(rate),
            BeatLimit::Unlimited => None,
        }
    }
}

/// The buckets of all agents, by slot, and the shared buckets.
#[derive(Debug)]
pub struct Limits {
    agent: Option<Rate>,
    global: Option<Rate>,
    newcomers: PerLocality<Rate>,
    budgets: Box<[Budget]>,
    shared: PerLocality<Shared>,
}

/// The shared buckets. Remote and local agents have separate ones, so a remote agent cannot use up the tokens
/// of a local one (law 3).
#[derive(Debug)]
struct Shared {
    global: TokenBucket,
    newcomers: TokenBucket,
    comebacks: TokenBucket,
}

impl Shared {
    fn full(global: Option<Rate>, newcomers: Rate, now_ns: u64) -> Self {
        Self {
            global: global
                .map_or_else(TokenBucket::default, |rate| TokenBucket::full(rate, now_ns)),
            newcomers: TokenBucket::full(newcomers, now_ns),
            comebacks: TokenBucket::full(COMEBACKS, now_ns),
        }
    }
}

impl Limits {
    /// For a tracker with `capacity` slots; all buckets are full.
    pub fn new(capacity: usize, options: LimitOptions, now_ns: u64) -> Self {
        let burst = u32::try_from(capacity)
            .unwrap_or(u32::MAX)
            .max(NEWCOMER_BURST_MIN);
        let newcomers = |per_second| Rate { per_second, burst };
        let newcomers = PerLocality {
            local: newcomers(NEWCOMER_RATE),
            remote: newcomers(REMOTE_NEWCOMER_RATE),
        };
        let shared = |rate| Shared::full(options.global, rate, now_ns);
        Self {
            agent: options.agent,
            global: options.global,
            newcomers,
            budgets: vec![Budget::default(); capacity].into_boxed_slice(),
            shared: PerLocality {
                local: shared(newcomers.local),
                remote: shared(newcomers.remote),
            },
        }
    }

    /// The default limit of one agent.
    pub fn agent_rate(&self) -> Option<Rate> {
        self.agent
    }

    /// Replaces the limits; limits of single agents stay. Buckets keep their tokens, up to their new burst.
    pub fn replace(&mut self, options: LimitOptions) {
        self.agent = options.agent;
        self.global = options.global;
    }

    /// Gives an agent a limit of its own, with a full bucket, until its slot passes to another agent.
    pub fn set_agent_limit(&mut self, slot: u32, limit: BeatLimit, now_ns: u64) {
        let Some(budget) = self.budgets.get_mut(slot as usize) else {
            return;
        };
        budget.limit = limit;
        if let Some(rate) = budget.rate(self.agent) {
            budget.beats = TokenBucket::full(rate, now_ns);
        }
    }

    /// Whether an unknown sender may be examined; costs a token of the reserve for first contacts.
    pub fn admit_newcomer(&mut self, locality: Locality, now_ns: u64) -> Result<(), Limit> {
        let rate = self.newcomers[locality];
        let is_in = self.shared[locality].newcomers.take(rate, now_ns);
        if is_in { Ok(()) } else { Err(Limit::Newcomers) }
    }

    /// Whether a process may join again directly after its goodbye. It joins with a full bucket each time, so
    /// without this limit it could evade its own.
    pub fn admit_comeback(&mut self, locality: Locality, now_ns: u64) -> Result<(), Limit> {
        let is_in = self.shared[locality].comebacks.take(COMEBACKS, now_ns);
        if is_in { Ok(()) } else { Err(Limit::Comebacks) }
    }

    /// Whether a known agent may open another session. An agent without a limit on its beats has none on its
    /// sessions. The token is spent when the session opens, so a handle that is refused for another reason
    /// spends nothing.
    pub fn may_begin_session(&self, slot: u32, now_ns: u64) -> Result<(), Limit> {
        let Some(budget) = self.budgets.get(slot as usize) else {
            return Ok(());
        };
        let mut sessions = budget.sessions;
        let is_in = budget.rate(self.agent).is_none() || sessions.take(SESSIONS, now_ns);
        if is_in { Ok(()) } else { Err(Limit::Sessions) }
    }

    /// A known agent opened another session.
    pub fn begin_session(&mut self, slot: u32, now_ns: u64) {
        if let Some(budget) = self.budgets.get_mut(slot as usize) {
            budget.sessions.take(SESSIONS, now_ns);
        }
    }

    /// Resets the bucket of a slot for a new agent without a limit of its own: full, less its first beat.
    pub fn note_join(&mut self, slot: u32, now_ns: u64) {
        let Some(budget) = self.budgets.get_mut(slot as usize) else {
            return;
        };
        *budget = Budget {
            sessions: TokenBucket::full(SESSIONS, now_ns),
            ..Budget::default()
        };
        if let Some(rate) = self.agent {
            budget.beats = TokenBucket::full(rate, now_ns);
            budget.beats.take(rate, now_ns);
        }
    }

    /// Whether a beat of a known agent may be credited. The token is spent even if a later check refuses the
    /// beat. Terminal frames have a reserve and do not count against the shared limit.
    pub fn admit_beat(
        &mut self,
        slot: u32,
        locality: Locality,
        terminal: bool,
        now_ns: u64,
    ) -> Result<(), Limit> {
        if let Some(budget) = self.budgets.get_mut(slot as usize)
            && let Some(rate) = budget.rate(self.agent)
            && !budget.beats.take(rate, now_ns)
        {
            if !terminal || now_ns < budget.terminal_from_ns {
                return Err(Limit::Agent);
            }
            budget.terminal_from_ns = now_ns.saturating_add(TERMINAL_PAUSE_NS);
        }
        let global = self.global.filter(|_| !terminal);
        let is_in = global.is_none_or(|rate| self.shared[locality].global.take(rate, now_ns));
        if is_in { Ok(()) } else { Err(Limit::Global) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Locality::{Local, Remote};

    const SECOND: u64 = 1_000_000_000;

    fn rate(per_second: u32, burst: u32) -> Rate {
        Rate { per_second, burst }
    }

    /// How many of `asked` beats, evenly spread over `time_ns`, pass.
    fn passed(rate: Rate, asked: u64, time_ns: u64) -> u64 {
        let mut bucket = TokenBucket::full(rate, 0);
        (1..=asked)
            .filter(|i| bucket.take(rate, time_ns / asked * i))
            .count() as u64
    }

    #[test]
    fn over_any_time_a_burst_and_the_rate_pass_and_nothing_more() {
        for (per_second, burst) in [(10, 10), (3, 1), (7, 100), (100, 1), (999, 5)] {
            let expected = u64::from(burst) + 5 * u64::from(per_second);
            let passed = passed(rate(per_second, burst), 50_000, 5 * SECOND);
            assert!(
                passed == expected || passed == expected - 1,
                "{per_second}/s, burst {burst}: {passed}, not {expected}"
            );
        }
    }

    #[test]
    fn a_sender_at_the_rate_loses_no_beat_despite_jitter() {
        let rate = rate(100, 2);
        let mut bucket = TokenBucket::full(rate, 0);
        for i in 0..10_000_u64 {
            let jitter_ns = if i % 2 == 0 { 0 } else { 9_000_000 };
            assert!(bucket.take(rate, i * 10_000_000 + jitter_ns), "beat {i}");
        }
    }

    #[test]
    fn a_refusal_costs_nothing_and_a_clock_that_goes_back_gains_nothing() {
        let rate = rate(1, 1);
        let mut bucket = TokenBucket::full(rate, 10 * SECOND);
        assert!(bucket.take(rate, 10 * SECOND));
        for _ in 0..1_000 {
            assert!(!bucket.take(rate, 10 * SECOND + SECOND / 2));
            assert!(!bucket.take(rate, 0));
        }
        assert!(bucket.take(rate, 11 * SECOND));
    }

    #[test]
    fn extreme_rates_and_times_neither_overflow_nor_lock() {
        let rate = rate(u32::MAX, u32::MAX);
        let mut bucket = TokenBucket::full(rate, 0);
        assert!(bucket.take(rate, 0));
        assert!(bucket.take(rate, u64::MAX));
        assert!(bucket.take(rate, u64::MAX));
    }

    fn limits(agent: Option<Rate>, global: Option<Rate>) -> Limits {
        let mut limits = Limits::new(4, LimitOptions { agent, global }, 0);
        for slot in 0..4 {
            limits.note_join(slot, 0);
        }
        limits
    }

    #[test]
    fn a_flood_spends_its_own_tokens_before_the_common_ones() {
        let mut limits = limits(Some(rate(10, 5)), Some(rate(10, 10)));
        let flood: Vec<_> = (0..100)
            .map(|_| limits.admit_beat(0, Local, false, 0))
            .collect();
        assert_eq!(flood.iter().filter(|passed| passed.is_ok()).count(), 4);
        assert_eq!(flood[99], Err(Limit::Agent));
        for _ in 0..4 {
            assert_eq!(limits.admit_beat(1, Local, false, 0), Ok(()));
        }
    }

    #[test]
    fn the_common_limit_holds_for_all_agents_together() {
        let mut limits = limits(None, Some(rate(1, 6)));
        let mut let_in = |slot| limits.admit_beat(slot, Local, false, 0);
        assert!((0..6).all(|i| let_in(i % 4).is_ok()));
        assert_eq!(let_in(3), Err(Limit::Global));
    }

    #[test]
    fn a_crash_is_heard_in_the_midst_of_its_own_flood_and_a_flood_of_crashes_is_not() {
        let mut limits = limits(Some(rate(1, 1)), Some(rate(1, 1)));
        assert_eq!(limits.admit_beat(0, Local, false, 0), Err(Limit::Agent));
        assert_eq!(limits.admit_beat(0, Local, true, 0), Ok(()));
        assert_eq!(limits.admit_beat(0, Local, true, 1), Err(Limit::Agent));
        assert_eq!(limits.admit_beat(0, Local, true, SECOND), Ok(()));
    }

    #[test]
    fn first_contacts_have_a_reserve_that_no_agent_can_spend() {
        let mut limits = limits(None, Some(rate(1, 1)));
        while limits.admit_beat(0, Local, false, 0).is_ok() {}
        for _ in 0..NEWCOMER_BURST_MIN {
            assert_eq!(limits.admit_newcomer(Local, 0), Ok(()));
        }
        assert_eq!(limits.admit_newcomer(Local, 0), Err(Limit::Newcomers));
    }

    #[test]
    fn leaving_and_coming_back_is_no_way_around_the_limit() {
        let mut limits = limits(Some(rate(1, 1)), None);
        let back = |limits: &mut Limits, now_ns| limits.admit_comeback(Local, now_ns).is_ok();
        assert_eq!((0..1_000).filter(|_| back(&mut limits, 0)).count(), 100);
        assert!(back(&mut limits, SECOND));
    }

    #[test]
    fn without_limits_everything_passes() {
        let mut limits = limits(None, None);
        assert!((0..100_000).all(|_| limits.admit_beat(0, Local, false, 0).is_ok()));
    }

    #[test]
    fn remote_agents_do_not_use_up_the_tokens_of_local_ones() {
        let options = LimitOptions {
            agent: None,
            global: Some(rate(10, 10)),
        };
        let mut limits = Limits::new(2, options, 0);
        while limits.admit_beat(0, Remote, false, 0).is_ok() {}
        while limits.admit_newcomer(Remote, 0).is_ok() {}
        while limits.admit_comeback(Remote, 0).is_ok() {}
        assert_eq!(limits.admit_beat(1, Local, false, 0), Ok(()));
        assert_eq!(limits.admit_newcomer(Local, 0), Ok(()));
        assert_eq!(limits.admit_comeback(Local, 0), Ok(()));
    }

    #[test]
    fn sessions_begin_one_per_second_and_a_hundred_at_once() {
        let options = LimitOptions {
            agent: Some(rate(10, 10)),
            global: None,
        };
        let mut limits = Limits::new(2, options, 0);
        limits.note_join(0, 0);
        limits.note_join(1, 0);
        let begun = |limits: &mut Limits, slot, now_ns| {
            (0..1000)
                .filter(|_| {
                    let may = limits.may_begin_session(slot, now_ns).is_ok();
                    if may {
                        limits.begin_session(slot, now_ns);
                    }
                    may
                })
                .count()
        };
        assert_eq!(begun(&mut limits, 0, 0), 100);
        assert_eq!(begun(&mut limits, 0, 3 * SECOND), 3);
        assert_eq!(begun(&mut limits, 1, 0), 100, "another agent");
        let mut unlimited = Limits::new(1, LimitOptions::default(), 0);
        unlimited.note_join(0, 0);
        assert_eq!(begun(&mut unlimited, 0, 0), 1000);
    }

    /// How many of ten beats that come at once from the agent in a slot pass.
    fn of_ten(limits: &mut Limits, slot: u32, now_ns: u64) -> usize {
        let passes = |_: &i32| limits.admit_beat(slot, Local, false, now_ns).is_ok();
        (0..10).filter(passes).count()
    }

    #[test]
    fn an_agent_may_have_a_limit_of_its_own_until_its_slot_changes_hands() {
        let agent = Some(rate(1, 2));
        let mut limits = Limits::new(
            2,
            LimitOptions {
                agent,
                global: None,
            },
            SECOND,
        );
        (0..2).for_each(|slot| limits.note_join(slot, SECOND));
        limits.set_agent_limit(0, BeatLimit::Own(rate(1, 5)), SECOND);
        assert_eq!(of_ten(&mut limits, 0, SECOND), 5);
        assert_eq!(of_ten(&mut limits, 1, SECOND), 1);
        limits.set_agent_limit(0, BeatLimit::Unlimited, SECOND);
        assert_eq!(of_ten(&mut limits, 0, SECOND), 10);
        limits.set_agent_limit(0, BeatLimit::Common, SECOND);
        assert_eq!(of_ten(&mut limits, 0, SECOND), 2);
        limits.set_agent_limit(0, BeatLimit::Unlimited, SECOND);
        limits.note_join(0, 9 * SECOND);
        assert_eq!(of_ten(&mut limits, 0, 9 * SECOND), 1);
        limits.set_agent_limit(7, BeatLimit::Unlimited, 0);
    }

    #[test]
    fn one_agent_can_be_limited_where_others_are_not() {
        let mut limits = Limits::new(2, LimitOptions::default(), SECOND);
        limits.set_agent_limit(1, BeatLimit::Own(rate(1, 3)), SECOND);
        assert_eq!(of_ten(&mut limits, 0, SECOND), 10);
        assert_eq!(of_ten(&mut limits, 1, SECOND), 3);
    }

    #[test]
    fn limits_that_are_replaced_hold_at_once_and_agents_keep_their_own() {
        let mut limits = Limits::new(3, LimitOptions::default(), SECOND);
        (0..3).for_each(|slot| limits.note_join(slot, SECOND));
        limits.set_agent_limit(1, BeatLimit::Own(rate(1, 4)), SECOND);
        let agent = Some(rate(1, 3));
        limits.replace(LimitOptions {
            agent,
            global: None,
        });
        assert_eq!(of_ten(&mut limits, 0, 9 * SECOND), 3);
        assert_eq!(of_ten(&mut limits, 1, 9 * SECOND), 4);
        let global = Some(rate(1, 2));
        limits.replace(LimitOptions {
            agent: None,
            global,
        });
        assert_eq!(of_ten(&mut limits, 2, 99 * SECOND), 2);
    }
}
