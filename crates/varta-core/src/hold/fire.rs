//! Hold-fire: when many agents fall silent together, or the host lacks memory or I/O, the host is the suspect and not
//! the agents. Then no agent is acted on until that is over, and for a threshold more: when half of them are back, the
//! rest may be on their way back and not stuck.

use std::mem::discriminant;

use crate::silence_counts::SilenceCounts;

/// A pressure is over below this part of its limit, so that a figure at the limit does not flicker.
const RELIEF: f64 = 0.8;

/// Longest time that fire is held after the cause is gone, 10 s: one agent with a threshold of hours must not
/// delay the recovery of other agents.
const SETTLE_MAX_NS: u64 = 10_000_000_000;

/// The limits beyond which the host is the suspect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HoldOptions {
    /// More than this part of all agents; `None`: never.
    pub share: Option<f64>,
    /// Fewer silent agents than this are never too many.
    pub min: u32,
    /// Longest time that a mass stall holds fire: an agent that is silent by then is stuck, and must not block the
    /// recovery of other agents for ever. `None`: no limit.
    pub mass_max_ns: Option<u64>,
    /// Limit in percent of the last 10 s in which all tasks were stalled for lack of memory; `None`: no
    /// limit.
    pub memory_percent: Option<f64>,
    /// The same for I/O.
    pub io_percent: Option<f64>,
}

/// The kernel's pressure-stall figures: percent of the last 10 s in which all tasks were stalled. `None`
/// where the kernel has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// For lack of memory.
    pub memory_percent: Option<f64>,
    /// Waiting for I/O.
    pub io_percent: Option<f64>,
}

/// Why fire is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldReason {
    /// Too many agents fell silent together.
    MassStall {
        /// Agents that fell silent.
        silent: u32,
        /// Agents that were not silent before.
        of: u32,
    },
    /// Tasks are stalled for lack of memory, percent.
    Memory(f64),
    /// Tasks are stalled waiting for I/O, percent.
    Io(f64),
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldChange {
    /// Fire is held from now on, or is held on, for this reason.
    Held(HoldReason),
    /// Fire is free again.
    Resumed,
    /// The mass stall continues, but the longest time to hold fire has passed.
    Expired,
}

/// Whether fire is held.
#[derive(Debug)]
pub struct HoldFire {
    options: HoldOptions,
    reason: Option<HoldReason>,
    /// Agents that were silent before the mass stall.
    silent_before: u32,
    /// End of the time in which agents that were silent with the cause may come back.
    settled_ns: u64,
    /// Start of the mass stall that holds fire.
    mass_since_ns: u64,
}

impl HoldFire {
    /// Fire is free.
    pub fn new(options: HoldOptions) -> Self {
        Self {
            options,
            reason: None,
            silent_before: 0,
            settled_ns: 0,
            mass_since_ns: 0,
        }
    }

    /// Replaces the options; held fire stays held until it is judged by the new ones.
    pub fn set_options(&mut self, options: HoldOptions) {
        self.options = options;
        self.settled_ns = 0;
    }

    /// Why fire is held, if it is.
    pub fn reason(&self) -> Option<HoldReason> {
        self.reason
    }

    /// Judges the agents and the host, `now_ns` in attention time. A mass stall that does not count holds no
    /// fire.
    pub fn judge(
        &mut self,
        counts: &SilenceCounts,
        mass_counts: bool,
        pressure: Pressure,
        now_ns: u64,
    ) -> Option<HoldChange> {
        let is_mass = matches!(self.reason, Some(HoldReason::MassStall { .. }));
        if !is_mass {
            self.mass_since_ns = now_ns;
        }
        self.silent_before = self.silent_before(counts);
        let mass = self.mass_stall(counts).filter(|_| mass_counts);
        let mass_ns = now_ns.saturating_sub(self.mass_since_ns);
        let is_old = |max_ns| is_mass && mass_ns >= max_ns;
        if mass.is_some() && self.options.mass_max_ns.is_some_and(is_old) {
            // The host may lack memory or I/O all the same.
            self.reason = self.starved(pressure);
            return Some(self.reason.map_or(HoldChange::Expired, HoldChange::Held));
        }
        let cause = mass.or_else(|| self.starved(pressure));
        if cause.is_some() {
            self.settled_ns = now_ns.saturating_add(counts.threshold_ns.min(SETTLE_MAX_NS));
        }
        let is_settled = now_ns >= self.settled_ns;
        let now = cause.or_else(|| self.reason.filter(|_| !is_settled));
        let before = std::mem::replace(&mut self.reason, now);
        match (before, now) {
            (None, Some(reason)) => Some(HoldChange::Held(reason)),
            (Some(old), Some(new)) if discriminant(&old) != discriminant(&new) => {
                Some(HoldChange::Held(new))
            }
            (Some(_), None) => Some(HoldChange::Resumed),
            _ => None,
        }
    }

    /// Agents that were silent before the mass stall: fixed while it holds fire.
    fn silent_before(&self, counts: &SilenceCounts) -> u32 {
        match self.reason {
            Some(HoldReason::MassStall { .. }) => self.silent_before,
            _ => counts.silent.saturating_sub(counts.fresh),
        }
    }

    /// Whether too many agents fell silent together. Once fire is held, every agent that fell silent with the others
    /// counts, for however long it has been silent.
    pub(super) fn mass_stall(&self, counts: &SilenceCounts) -> Option<HoldReason> {
        let share = self.options.share?;
        let silent_before = self.silent_before(counts);
        let silent = counts.silent.saturating_sub(silent_before);
        let of = counts.watched.saturating_sub(silent_before);
        let too_many = silent >= self.options.min && f64::from(silent) > share * f64::from(of);
        too_many.then_some(HoldReason::MassStall { silent, of })
    }

    fn starved(&self, pressure: Pressure) -> Option<HoldReason> {
        let limit = |limit: f64, is_held: bool| if is_held { limit * RELIEF } else { limit };
        let is_over = |percent: Option<f64>, most: Option<f64>, is_held| {
            let percent = percent?;
            (percent >= limit(most?, is_held)).then_some(percent)
        };
        let memory_held = matches!(self.reason, Some(HoldReason::Memory(_)));
        let io_held = matches!(self.reason, Some(HoldReason::Io(_)));
        let options = &self.options;
        is_over(pressure.memory_percent, options.memory_percent, memory_held)
            .map(HoldReason::Memory)
            .or_else(|| {
                is_over(pressure.io_percent, options.io_percent, io_held).map(HoldReason::Io)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold() -> HoldFire {
        HoldFire::new(HoldOptions {
            share: Some(0.5),
            min: 5,
            mass_max_ns: Some(100),
            memory_percent: Some(20.0),
            io_percent: Some(60.0),
        })
    }

    fn crowd(watched: u32, silent: u32, fresh: u32) -> SilenceCounts {
        SilenceCounts {
            watched,
            silent,
            fresh,
            latched: 0,
            threshold_ns: 0,
        }
    }

    const CALM: Pressure = Pressure {
        memory_percent: Some(0.0),
        io_percent: None,
    };

    #[test]
    fn more_than_the_share_falling_silent_together_holds_fire_until_they_are_back() {
        let mut hold = hold();
        assert_eq!(
            hold.judge(&crowd(100, 50, 50), true, CALM, 0),
            None,
            "just half"
        );
        let reason = HoldReason::MassStall {
            silent: 51,
            of: 100,
        };
        let held = hold.judge(&crowd(100, 51, 51), true, CALM, 0);
        assert_eq!(held, Some(HoldChange::Held(reason)));
        assert_eq!(hold.judge(&crowd(100, 100, 40), true, CALM, 0), None);
        assert_eq!(
            hold.judge(&crowd(100, 100, 0), true, CALM, 0),
            None,
            "long silent now"
        );
        assert!(hold.reason().is_some());
        assert_eq!(
            hold.judge(&crowd(100, 50, 0), true, CALM, 0),
            Some(HoldChange::Resumed)
        );
    }

    #[test]
    fn when_the_cause_is_gone_the_rest_have_a_threshold_to_come_back_and_no_more_than_ten_seconds()
    {
        const S: u64 = 1_000_000_000;
        for (threshold_ns, settle_ns) in [(2 * S, 2 * S), (3_600 * S, 10 * S)] {
            let crowd = |silent| SilenceCounts {
                threshold_ns,
                ..crowd(100, silent, silent)
            };
            let mut hold = hold();
            hold.options.mass_max_ns = None;
            assert!(hold.judge(&crowd(60), true, CALM, S).is_some());
            assert_eq!(hold.judge(&crowd(51), true, CALM, 5 * S), None);
            assert_eq!(
                hold.judge(&crowd(50), true, CALM, 5 * S + settle_ns - 1),
                None
            );
            let resumed = hold.judge(&crowd(1), true, CALM, 5 * S + settle_ns);
            assert_eq!(resumed, Some(HoldChange::Resumed));
        }
    }

    #[test]
    fn a_cause_that_comes_again_before_all_are_back_is_the_same_cause() {
        let crowd = |silent| SilenceCounts {
            threshold_ns: 10,
            ..crowd(100, silent, silent)
        };
        let mut hold = hold();
        assert!(hold.judge(&crowd(60), true, CALM, 100).is_some());
        assert_eq!(hold.judge(&crowd(40), true, CALM, 105), None);
        assert_eq!(hold.judge(&crowd(60), true, CALM, 109), None);
        assert_eq!(hold.judge(&crowd(40), true, CALM, 115), None);
        assert_eq!(
            hold.judge(&crowd(40), true, CALM, 119),
            Some(HoldChange::Resumed)
        );
    }

    #[test]
    fn agents_that_stay_silent_hold_fire_for_a_bounded_time() {
        let mut hold = hold();
        let since_ns = 1_000;
        assert!(
            hold.judge(&crowd(100, 60, 60), true, CALM, since_ns)
                .is_some()
        );
        assert_eq!(
            hold.judge(&crowd(100, 60, 0), true, CALM, since_ns + 99),
            None
        );
        let expired = hold.judge(&crowd(100, 60, 0), true, CALM, since_ns + 100);
        assert_eq!(expired, Some(HoldChange::Expired));
        assert_eq!(
            hold.judge(&crowd(100, 60, 0), true, CALM, since_ns + 101),
            None
        );
        assert_eq!(hold.reason(), None);
        let again = hold.judge(&crowd(100, 85, 25), true, CALM, since_ns + 102);
        assert!(again.is_some(), "25 of the other 40");
    }

    #[test]
    fn a_mass_stall_that_has_lasted_too_long_frees_no_fire_on_a_host_that_starves() {
        let starving = Pressure {
            memory_percent: Some(50.0),
            ..CALM
        };
        let mut hold = hold();
        assert!(
            hold.judge(&crowd(100, 60, 60), true, starving, 1_000)
                .is_some()
        );
        let starved = HoldChange::Held(HoldReason::Memory(50.0));
        let switched = hold.judge(&crowd(100, 60, 0), true, starving, 1_100);
        assert_eq!(switched, Some(starved));
        let resumed = hold.judge(&crowd(100, 60, 0), true, CALM, 1_200);
        assert_eq!(resumed, Some(HoldChange::Resumed));
    }

    #[test]
    fn another_reason_to_hold_fire_is_reported_once() {
        let mut hold = hold();
        let starving = Pressure {
            memory_percent: Some(50.0),
            ..CALM
        };
        assert!(hold.judge(&crowd(100, 60, 60), true, CALM, 0).is_some());
        let starved = HoldChange::Held(HoldReason::Memory(50.0));
        let few = crowd(100, 1, 1);
        assert_eq!(hold.judge(&few, true, starving, 1), Some(starved));
        assert_eq!(hold.judge(&few, true, starving, 2), None);
    }

    #[test]
    fn a_mass_stall_that_is_over_is_not_said_to_last() {
        let mut hold = hold();
        let crowd = |silent| SilenceCounts {
            threshold_ns: 50,
            ..crowd(100, silent, silent)
        };
        assert!(hold.judge(&crowd(60), true, CALM, 1_000).is_some());
        assert_eq!(hold.judge(&crowd(60), true, CALM, 1_090), None);
        assert_eq!(hold.judge(&crowd(10), true, CALM, 1_110), None, "settles");
        let resumed = hold.judge(&crowd(10), true, CALM, 1_140);
        assert_eq!(resumed, Some(HoldChange::Resumed));
    }

    #[test]
    fn other_options_count_at_once() {
        let mut hold = hold();
        let crowd = SilenceCounts {
            threshold_ns: 10,
            ..crowd(100, 60, 60)
        };
        assert!(hold.judge(&crowd, true, CALM, 100).is_some());
        hold.set_options(HoldOptions {
            share: None,
            ..hold.options
        });
        let resumed = hold.judge(&crowd, true, CALM, 101);
        assert_eq!(resumed, Some(HoldChange::Resumed));
    }

    #[test]
    fn few_agents_are_never_a_mass() {
        assert_eq!(hold().judge(&crowd(4, 4, 4), true, CALM, 0), None);
        assert!(hold().judge(&crowd(5, 5, 5), true, CALM, 0).is_some());
    }

    #[test]
    fn agents_that_were_silent_before_count_on_neither_side() {
        let mut hold = hold();
        assert_eq!(hold.judge(&crowd(100, 80, 0), true, CALM, 0), None);
        assert!(hold.judge(&crowd(100, 91, 11), true, CALM, 0).is_some());
        assert_eq!(
            hold.judge(&crowd(100, 90, 0), true, CALM, 0),
            Some(HoldChange::Resumed)
        );
    }

    #[test]
    fn a_starving_host_holds_fire_and_a_figure_at_the_limit_does_not_flicker() {
        let mut hold = hold();
        let memory = |percent| Pressure {
            memory_percent: Some(percent),
            ..CALM
        };
        let few = crowd(10, 1, 1);
        assert_eq!(hold.judge(&few, true, memory(19.9), 0), None);
        let held = HoldChange::Held(HoldReason::Memory(20.0));
        assert_eq!(hold.judge(&few, true, memory(20.0), 0), Some(held));
        assert_eq!(hold.judge(&few, true, memory(16.1), 0), None);
        assert_eq!(
            hold.judge(&few, true, memory(15.9), 0),
            Some(HoldChange::Resumed)
        );
        let io = Pressure {
            io_percent: Some(60.0),
            ..CALM
        };
        let held = HoldChange::Held(HoldReason::Io(60.0));
        assert_eq!(hold.judge(&few, true, io, 0), Some(held));
    }

    #[test]
    fn what_is_off_holds_nothing() {
        let mut hold = HoldFire::new(HoldOptions {
            share: None,
            min: 5,
            mass_max_ns: None,
            memory_percent: None,
            io_percent: None,
        });
        let pressure = Pressure {
            memory_percent: Some(100.0),
            io_percent: Some(100.0),
        };
        assert_eq!(hold.judge(&crowd(100, 100, 100), true, pressure, 0), None);
    }
}
