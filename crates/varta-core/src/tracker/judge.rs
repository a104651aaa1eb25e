//! Judging silence: which slots are due, and which tier the silence of each has reached.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;

use super::{Silence, Tracker};
use crate::agent::Locality;
use crate::counters::{Counter, Timing};
use crate::slot::{Slot, SlotState, Tier};

/// A due slot, no longer armed in the wheel. The argument of [`Tracker::judge`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is due and not judged is never due again"]
pub struct Due {
    slot: u32,
}

impl Due {
    /// The slot that is due.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl<W: AsRef<[AtomicU64]>> Tracker<W> {
    /// The next slot that is due at `now_ns`; each timer that is examined costs one of `budget`. Slots beyond the
    /// budget are due at the next call.
    ///
    /// A source that may have a later beat of the agent than the table records it before the slot is judged.
    pub fn pop_due(&mut self, now_ns: u64, budget: &mut u32) -> Option<Due> {
        let slot = self.wheel.pop_due(now_ns, budget)?;
        Some(Due { slot })
    }

    /// Judges the silence of a slot that is due. An unreported silence is passed to `hand_over`. On `Break` the
    /// silence stays unreported and the slot is due again at once. On `Continue` the silence counts as reported,
    /// until the next accepted beat. Returns the answer, or `Continue` without a call.
    ///
    /// Stalls use `silence >= threshold`.
    ///
    /// A stall that is put off because a full queue may have refused the agent's beats is passed as
    /// [`Tier::PutOff`], for information: each time that it would otherwise be due.
    pub fn judge(
        &mut self,
        Due { slot }: Due,
        now_ns: u64,
        hand_over: impl FnOnce(&Silence) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(mut facts) = self.table.load(slot) else {
            self.counters.count(Counter::InvariantViolations);
            return ControlFlow::Continue(());
        };
        if let Some(silence) = self.silence_in(slot, &mut facts, now_ns) {
            if hand_over(&silence).is_break() {
                self.wheel.arm(slot, now_ns);
                return ControlFlow::Break(());
            }
            self.latch(slot, &mut facts, &silence);
        } else if facts.state == SlotState::Stalled && facts.is_reclaimable(now_ns) {
            facts.state = SlotState::Reclaimable;
            self.table.store(slot, &facts);
            self.enqueue_reclaimable(slot, &facts);
            return ControlFlow::Continue(());
        }
        let excused_ns = now_ns - self.judged_ns(&facts, now_ns);
        let look_ns = facts.next_look_ns().saturating_add(excused_ns);
        self.wheel.arm(slot, look_ns);
        ControlFlow::Continue(())
    }

    /// Judges every slot that is due at `now_ns`, until `hand_over` answers `Break` or `budget` timers were
    /// examined: [`Self::pop_due`] and [`Self::judge`] for callers whose sources never have a later beat.
    pub fn drain_stalled_slots(
        &mut self,
        now_ns: u64,
        mut budget: u32,
        mut hand_over: impl FnMut(&Silence) -> ControlFlow<()>,
    ) {
        while let Some(due) = self.pop_due(now_ns, &mut budget) {
            if self.judge(due, now_ns, &mut hand_over).is_break() {
                return;
            }
        }
    }

    /// The silence of an agent, if it is to be reported.
    fn silence_in(&self, slot: u32, facts: &mut Slot, now_ns: u64) -> Option<Silence> {
        let unbelieved = facts.due_tier(self.judged_ns(facts, now_ns));
        let is_restarted = self.restart(facts);
        let judged_ns = self.judged_ns(facts, now_ns);
        let due = facts.due_tier(judged_ns);
        let is_put_off =
            is_restarted && unbelieved == Some(Tier::Stalled) && due != Some(Tier::Stalled);
        if is_put_off {
            self.counters.count(Counter::StallsPutOff);
        }
        let tier = due.or(is_put_off.then_some(Tier::PutOff))?;
        Some(Silence {
            agent: facts.agent(slot),
            tier,
            silence_ns: match tier {
                Tier::PutOff => now_ns.saturating_sub(facts.last_ns),
                Tier::Late | Tier::Stalled => facts.silence_ns(judged_ns),
            },
            slot: *facts,
        })
    }

    /// Records that a silence was reported.
    fn latch(&mut self, slot: u32, facts: &mut Slot, silence: &Silence) {
        match silence.tier {
            Tier::PutOff => {}
            Tier::Late => {
                facts.state = SlotState::Late;
                self.table.store(slot, facts);
            }
            Tier::Stalled => {
                facts.state = SlotState::Stalled;
                facts.stalls = facts.stalls.saturating_add(1);
                self.table.store(slot, facts);
                self.latched += 1;
                self.counters.count(Counter::Stalls);
                let lateness_ns = silence.silence_ns.saturating_sub(facts.threshold_ns);
                self.counters.observe(Timing::Lateness, lateness_ns);
            }
        }
    }

    /// Records that the observer woke up at `now_ns`, late by `gap_ns`. The gap does not count for agents that do
    /// not tolerate it ([`crate::attention::tolerance_ns`]). For gaps that are on the attention clock.
    pub fn excuse(&mut self, now_ns: u64, gap_ns: u64) {
        self.gaps.push(now_ns, gap_ns);
    }

    /// Restarts the silence of these agents at `now_ns`, because a full queue may have refused their beats
    /// before: at most until the given number of thresholds after an agent's last beat, because a flood may keep
    /// a queue full without end. Stalls that were reported stay reported.
    pub fn restart_silence(&mut self, locality: Locality, now_ns: u64, thresholds: u64) {
        let restart = &mut self.restarts[locality];
        restart.at_ns = restart.at_ns.max(now_ns);
        restart.thresholds = thresholds;
    }

    /// Moves the start of an agent's silence to where a full queue restarted it. True if that is later than
    /// before.
    fn restart(&self, facts: &mut Slot) -> bool {
        let from_ns = self.restarts[facts.locality].for_agent(facts);
        let is_later = from_ns > facts.heard_ns() && !facts.state.is_latched();
        if is_later {
            facts.paused_until_ns = from_ns;
        }
        is_later
    }

    /// The time by which an agent's silence is judged: now, less the excused time.
    fn judged_ns(&self, facts: &Slot, now_ns: u64) -> u64 {
        let excused_ns = match facts.state.is_latched() {
            true => 0,
            false => self.gaps.excused_ns(facts.heard_ns(), facts.threshold_ns),
        };
        now_ns.saturating_sub(excused_ns)
    }
}
