//! Hold-fire: fire is held when the host is certainly the suspect, and free when it cannot be; it is released no
//! sooner than a threshold after the cause is gone.

use std::collections::BTreeMap;

use varta_core::Locality;
use varta_core::engine::StepOrder;
use varta_core::hold::{HoldChange, HoldReason, Pressure, Scope};

use super::Oracle;
use crate::{MS, S};

/// Longest time between an examination of the host and an order. An examination takes time, so the next one comes
/// after twenty times as long as the last one took, and no later than this.
const LOOK_MAX_NS: u64 = S + 2 * MS;

/// The agents at the time of an examination of the host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Crowd {
    watched: u32,
    /// Upper bound of silent agents.
    silent_at_most: u32,
    /// Lower bound of agents that fell silent recently.
    fresh_at_least: u32,
    /// The longest threshold of a stalled agent.
    longest_ns: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Crowds {
    at_ns: u64,
    of: [Crowd; 2],
    users: BTreeMap<u32, Crowd>,
}

/// The causes of held fire for a locality.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cause {
    /// The last time of the cause, and the minimum time that fire is held after that.
    at_ns: u64,
    settle_ns: u64,
    /// Whether fire must be held after the examination of the host.
    must_hold: bool,
    is_mass: bool,
    /// Start of the mass stall that holds fire.
    mass_since_ns: u64,
}

impl Oracle {
    /// The engine examines the host.
    pub(crate) fn asked(&mut self) {
        self.is_asked = true;
        self.asked_ns = self.now.observer_ns;
        let at_ns = self.now.attention_ns;
        let mut crowds = Crowds {
            at_ns,
            ..Crowds::default()
        };
        for heard in self.silence.agents.values() {
            if at_ns < heard.paused_until_ns {
                continue;
            }
            let silence_ns = heard.silence_ns(at_ns);
            let count = |crowd: &mut Crowd| {
                crowd.watched += 1;
                let may_be = heard.told_stall || silence_ns >= heard.threshold_ns / 2;
                crowd.silent_at_most += u32::from(may_be);
                let is_sure =
                    heard.told_stall || silence_ns >= (heard.threshold_ns * 7).div_ceil(8);
                let is_fresh = is_sure && silence_ns < 2 * heard.threshold_ns;
                crowd.fresh_at_least += u32::from(is_fresh);
                if heard.told_stall {
                    crowd.longest_ns = crowd.longest_ns.max(heard.threshold_ns);
                }
            };
            let locality = heard.agent.locality();
            count(&mut crowds.of[locality as usize]);
            if locality == Locality::Local {
                count(crowds.users.entry(heard.uid).or_default());
            }
        }
        self.crowds = crowds;
    }

    /// The certain consequences of the answer about pressure.
    pub(super) fn note_causes(&mut self, pressure: Pressure) {
        let limits = &self.policy.limits;
        let is_over = |percent: Option<f64>, limit: Option<f64>| {
            percent
                .zip(limit)
                .is_some_and(|(percent, limit)| percent >= limit)
        };
        let is_starved = is_over(pressure.memory_percent, limits.memory_pressure)
            || is_over(pressure.io_percent, limits.io_pressure);
        let share = limits.mass_stall_share;
        for locality in Locality::ALL {
            let crowd = self.crowds.of[locality as usize];
            let are_all =
                crowd.fresh_at_least == crowd.watched && crowd.watched >= limits.mass_stall_min;
            let is_mass = are_all
                && share.is_some_and(|share| share < 1.0)
                && (locality == Locality::Remote || self.no_single_user_is_silent());
            let cause = &mut self.causes[locality as usize];
            cause.must_hold = is_starved || is_mass;
            cause.is_mass = is_mass && !is_starved;
            if cause.must_hold {
                cause.at_ns = self.crowds.at_ns;
                cause.settle_ns = crowd.longest_ns.min(10 * S);
            }
        }
    }

    /// Whether all are silent in a way that may be the mass stall of one user. Users without a mass stall of their own
    /// must have at least two agents.
    fn no_single_user_is_silent(&self) -> bool {
        let min = self.policy.limits.mass_stall_min;
        let others = self
            .crowds
            .users
            .values()
            .filter(|crowd| crowd.watched < min);
        let others: u32 = others.map(|crowd| crowd.watched).sum();
        others != 1
    }

    pub(super) fn check_causes(&mut self) {
        for locality in Locality::ALL {
            let cause = &mut self.causes[locality as usize];
            let must_hold = std::mem::take(&mut cause.must_hold);
            let is_held = self.held[locality as usize];
            assert!(
                !must_hold || is_held,
                "fire is not held: {locality:?} {:?}",
                self.crowds
            );
        }
    }

    pub(super) fn hold_changed(&mut self, scope: Scope, change: HoldChange) {
        let was_held = self.is_held_for(scope);
        match change {
            HoldChange::Held(reason) => {
                self.check_reason(scope, reason, was_held);
                if let (Scope::All(locality), HoldReason::MassStall { .. }) = (scope, reason) {
                    self.causes[locality as usize].mass_since_ns = self.crowds.at_ns;
                }
            }
            HoldChange::Resumed => {
                assert!(was_held, "resumed, and was not held: {scope:?}");
                if let Scope::All(locality) = scope {
                    let cause = self.causes[locality as usize];
                    let until_ns = cause.at_ns + cause.settle_ns;
                    assert!(
                        self.crowds.at_ns >= until_ns,
                        "resumed too early: {scope:?}"
                    );
                }
            }
            HoldChange::Expired => {
                assert!(was_held, "expired, and was not held: {scope:?}");
                let longest = self.policy.limits.mass_stall_hold;
                let longest_ns = longest.expect("expired without a limit").as_nanos() as u64;
                if let Scope::All(locality) = scope {
                    let cause = &mut self.causes[locality as usize];
                    let held_ns = self.crowds.at_ns - cause.mass_since_ns;
                    assert!(held_ns >= longest_ns, "expired too early: {scope:?}");
                    if cause.is_mass {
                        cause.must_hold = false;
                        cause.settle_ns = 0;
                    }
                }
            }
        }
        let is_held = matches!(change, HoldChange::Held(_));
        match scope {
            Scope::All(locality) => self.held[locality as usize] = is_held,
            Scope::User(uid) if is_held => drop(self.held_users.insert(uid)),
            Scope::User(uid) => drop(self.held_users.remove(&uid)),
        }
    }

    fn is_held_for(&self, scope: Scope) -> bool {
        match scope {
            Scope::All(locality) => self.held[locality as usize],
            Scope::User(uid) => self.held_users.contains(&uid),
        }
    }

    fn check_reason(&self, scope: Scope, reason: HoldReason, was_held: bool) {
        let limits = &self.policy.limits;
        let pressure = self
            .pressure
            .map(|(pressure, _)| pressure)
            .unwrap_or_default();
        let relief = if was_held { 0.8 } else { 1.0 };
        match reason {
            HoldReason::MassStall { silent, of } => {
                let crowd = match scope {
                    Scope::All(locality) => self.crowds.of[locality as usize],
                    Scope::User(uid) => self.crowds.users.get(&uid).copied().unwrap_or_default(),
                };
                let share = limits.mass_stall_share.expect("held without a share");
                assert!(silent <= crowd.silent_at_most, "held: {reason:?} {crowd:?}");
                assert!(of <= crowd.watched, "held: {reason:?} {crowd:?}");
                assert!(silent >= limits.mass_stall_min, "held: {reason:?}");
                assert!(
                    f64::from(silent) > share * f64::from(of),
                    "held: {reason:?}"
                );
                let users = self.crowds.users.len();
                assert!(
                    users > 1 || matches!(scope, Scope::All(_)),
                    "one user: {reason:?}"
                );
            }
            HoldReason::Memory(percent) => {
                let limit = limits.memory_pressure.expect("held without a limit");
                assert_eq!(pressure.memory_percent, Some(percent), "held: {reason:?}");
                assert!(percent >= relief * limit, "held: {reason:?}");
            }
            HoldReason::Io(percent) => {
                let limit = limits.io_pressure.expect("held without a limit");
                assert_eq!(pressure.io_percent, Some(percent), "held: {reason:?}");
                assert!(percent >= relief * limit, "held: {reason:?}");
            }
        }
    }

    /// The host is examined before a step is ordered.
    pub(super) fn check_pressure(&self, order: &StepOrder) {
        let (_, at_ns) = self.pressure.expect("ordered without a look at the host");
        assert!(
            !self.is_asked,
            "ordered before the answer about the host: {order:?}"
        );
        let age_ns = self.now.observer_ns - at_ns;
        let most_ns = (20 * self.look_took_ns + 2 * MS).min(LOOK_MAX_NS);
        assert!(age_ns <= most_ns, "the host was not looked at: {order:?}");
    }

    /// Replaces the limits: held fire is judged by the new ones.
    pub(super) fn replace_hold_limits(&mut self) {
        for cause in &mut self.causes {
            cause.settle_ns = 0;
        }
    }
}
