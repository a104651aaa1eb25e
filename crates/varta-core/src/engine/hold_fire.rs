//! When the host is examined, and the consequence: no step is ordered while the host is the suspect.
//!
//! [`Holds`] decides whether it is; this module decides when to examine it: before a step is ordered, but at bounded
//! intervals, because the examination takes time.

use super::Engine;
use super::effect::Effect;
use super::rule_assignments::nanoseconds;
use crate::agent::{Agent, Locality};
use crate::fact::Fact;
use crate::hold::{HoldChange, HoldOptions, Holds, Pressure, Scope};
use crate::policy::Policy;
use crate::silence_counts::{SilenceByGroup, count_silent};

/// Interval at which held fire is examined for release.
const HELD_PAUSE_NS: u64 = 100_000_000;

/// Time between two looks at the host, as a multiple of how long the look itself took.
const LOOK_PARTS: u64 = 20;

/// Bounds of that: an observer that was stopped in the middle of a look must not go on for long without another.
const LOOK_PAUSE_MIN_NS: u64 = 1_000_000;
const LOOK_PAUSE_MAX_NS: u64 = 1_000_000_000;

/// State of the host.
#[derive(Debug)]
pub(super) struct HostWatch {
    holds: Holds,
    /// The earliest time of the next examination, on the observer's clock.
    next_look_ns: u64,
    /// The pressure figures are being read; the agents were counted at these times.
    asked: Option<(super::Now, SilenceByGroup)>,
}

impl HostWatch {
    pub(super) fn new(policy: &Policy, now_ns: u64) -> Self {
        Self {
            holds: Holds::new(hold_options(policy)),
            next_look_ns: now_ns,
            asked: None,
        }
    }

    /// Replaces the limits; held fire stays held until it is judged by the new ones.
    pub(super) fn replace_policy(&mut self, policy: &Policy) {
        self.holds.set_options(hold_options(policy));
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn is_any_held(&self) -> bool {
        self.holds.is_any_held()
    }

    /// Whether fire is held for all agents of a locality.
    pub(super) fn is_held(&self, locality: Locality) -> bool {
        self.holds.is_held(locality)
    }

    /// Whether fire is held for the agents of a user.
    pub(super) fn is_held_for(&self, uid: u32) -> bool {
        self.holds.is_held_for(uid)
    }

    pub(super) fn held_users(&self) -> impl Iterator<Item = u32> {
        self.holds.users()
    }

    /// The next time at which held fire is examined for release.
    pub(super) fn next_held_look_ns(&self) -> Option<u64> {
        let next_ns = self.next_look_ns.saturating_add(HELD_PAUSE_NS);
        (self.is_any_held() && !self.is_asked()).then_some(next_ns)
    }
}

impl Engine {
    /// Requests the pressure figures of the host, if a step is due or fire is held, and the minimum time has
    /// passed.
    pub(super) fn look_at_host(&mut self) {
        let now_ns = self.now.observer_ns;
        let is_due = self.next_order_ns().is_some_and(|due_ns| due_ns <= now_ns);
        let look_ns = match is_due {
            true => Some(self.host.next_look_ns),
            false => self.host.next_held_look_ns(),
        };
        if !self.host.is_asked() && look_ns.is_some_and(|look_ns| look_ns <= now_ns) {
            let groups = count_silent(&self.table, self.now.attention_ns);
            self.host.asked = Some((self.now, groups));
            self.effects.push_back(Effect::ReadPressure);
        }
    }

    pub(super) fn on_pressure(&mut self, pressure: Pressure) {
        let Some((then, groups)) = self.host.asked.take() else {
            return;
        };
        let changes = self.host.holds.judge(&groups, pressure, then.attention_ns);
        for (scope, change) in changes {
            let is_held = matches!(change, HoldChange::Held(_));
            if let Some(ladders) = &mut self.ladders {
                match scope {
                    Scope::All(locality) => ladders.hold(locality, is_held),
                    Scope::User(uid) => ladders.hold_user(uid, is_held),
                }
            }
            self.publish(Fact::Hold { scope, change });
        }
        let now_ns = self.now.observer_ns;
        let took_ns = now_ns.saturating_sub(then.observer_ns);
        let pause_ns = took_ns.saturating_mul(LOOK_PARTS);
        let pause_ns = pause_ns.clamp(LOOK_PAUSE_MIN_NS, LOOK_PAUSE_MAX_NS);
        self.host.next_look_ns = now_ns.saturating_add(pause_ns);
    }

    /// Whether fire is held for an agent now.
    pub(super) fn is_fire_held(&self, agent: Agent, uid: Option<u32>) -> bool {
        self.host.is_held(agent.locality()) || uid.is_some_and(|uid| self.host.is_held_for(uid))
    }
}

fn hold_options(policy: &Policy) -> HoldOptions {
    let limits = &policy.limits;
    HoldOptions {
        share: limits.mass_stall_share,
        min: limits.mass_stall_min,
        mass_max_ns: limits.mass_stall_hold.map(nanoseconds),
        memory_percent: limits.memory_pressure,
        io_percent: limits.io_pressure,
    }
}
