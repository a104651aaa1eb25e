//! Silence: what the beat path must report, and when.
//!
//! Written from the laws and from "Attention" in `docs/design.md`: silence counts from the last beat, or from the end of
//! a pause; lateness of the observer beyond its set wake-up does not count for agents that do not tolerate it; a silence
//! is reported once, when it has reached the threshold, not before and no later than the next turn.

use std::collections::BTreeMap;

use varta_core::engine::AgentUpdate;
use varta_core::slot::{Slot, Tier};
use varta_core::tracker::{Recorded, Silence as Reported};
use varta_core::{Agent, AgentKey, Beat, BeatOrigin, BeatOutcome, Locality};
use varta_vlp::Status;

use super::allowance::Allowance;
use super::{Key, key};
use crate::{MS, TICK_NS};

/// An agent in the table.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) agent: Agent,
    pub(crate) uid: u32,
    pub(crate) origin: BeatOrigin,
    last_ns: u64,
    /// Silence counts from here if that is later.
    restarted_ns: u64,
    pub(crate) paused_until_ns: u64,
    pub(crate) threshold_ns: u64,
    pub(crate) late_ns: u64,
    pub(crate) told_late: bool,
    pub(crate) told_stall: bool,
    /// Its silence when its deadlines changed.
    changed_at_ns: u64,
    status: Status,
    pub(super) allowance: Allowance,
}

impl Heard {
    fn begins_ns(&self) -> u64 {
        self.last_ns
            .max(self.restarted_ns)
            .max(self.paused_until_ns)
    }

    pub(crate) fn silence_ns(&self, attention_ns: u64) -> u64 {
        attention_ns.saturating_sub(self.begins_ns())
    }
}

/// All agents, and the counted time.
#[derive(Default)]
pub(crate) struct Silence {
    pub(crate) agents: BTreeMap<Key, Heard>,
    /// Time that counts for no agent.
    unattended_ns: u64,
    raw_ns: u64,
    /// Lateness that counts for some agents: when it was over, and how long it was.
    lateness: Vec<(u64, u64)>,
    /// How late this turn is.
    late_ns: u64,
    /// By locality: beats may have been refused until then, and for how many thresholds that puts off a stall.
    restarts: [(u64, u64); 2],
    /// When the ring was last full, so that silences may be reported late.
    full_ns: Option<u64>,
}

impl Silence {
    pub(crate) fn begin(&mut self, now_ns: u64) {
        self.raw_ns = now_ns;
        self.unattended_ns = now_ns;
    }

    pub(crate) fn attention_ns(&self) -> u64 {
        self.raw_ns - self.unattended_ns
    }

    pub(crate) fn get(&self, agent: Agent) -> Option<&Heard> {
        self.agents.get(&key(agent))
    }

    pub(crate) fn look(&mut self, now_ns: u64, promised_ns: u64) {
        self.late_ns = now_ns.saturating_sub(promised_ns);
        self.raw_ns = now_ns;
        if self.late_ns > 100 * MS {
            self.unattended_ns += self.late_ns;
            self.late_ns = 0;
        } else if self.late_ns > MS {
            self.lateness.push((self.attention_ns(), self.late_ns));
        }
    }

    pub(crate) fn check_clock(&self, attention_ns: u64) {
        assert_eq!(attention_ns, self.attention_ns(), "attended time");
    }

    /// Beats of these agents may have been lost in a queue that was full.
    pub(crate) fn restart(&mut self, locality: Locality, thresholds: u64) {
        self.restarts[locality as usize] = (self.attention_ns(), thresholds);
    }

    /// An agent as it is judged: its silence begins after beats may have been lost, for a bounded number of thresholds.
    fn as_judged(&self, heard: &Heard) -> Heard {
        let (until_ns, thresholds) = self.restarts[heard.agent.locality() as usize];
        let most_ns = heard.last_ns + thresholds * heard.threshold_ns;
        let restarted_ns = match heard.told_stall {
            true => 0,
            false => until_ns.min(most_ns),
        };
        Heard {
            restarted_ns: heard.restarted_ns.max(restarted_ns),
            ..heard.clone()
        }
    }

    /// The counted silence.
    fn judged_ns(&self, heard: &Heard) -> u64 {
        let from_ns = heard.begins_ns();
        let tolerance_ns = (heard.threshold_ns / 8).clamp(MS, 100 * MS);
        let excused = self.lateness.iter().rev();
        let excused = excused.take_while(|(end_ns, _)| *end_ns > from_ns);
        let excused = excused.filter(|(_, late_ns)| *late_ns > tolerance_ns);
        let excused_ns: u64 = excused.map(|(_, late_ns)| late_ns).sum();
        heard
            .silence_ns(self.attention_ns())
            .saturating_sub(excused_ns)
    }

    /// A stall is put off: it would be one, but beats may have been lost.
    pub(crate) fn put_off(&self, silence: &Reported) {
        let heard = self
            .get(silence.agent)
            .expect("put off: the agent is unknown");
        assert!(
            !heard.told_stall,
            "put off after it was reported: {heard:?}"
        );
        let would_be = self.judged_ns(heard) >= heard.threshold_ns;
        let is_stall = self.judged_ns(&self.as_judged(heard)) >= heard.threshold_ns;
        assert!(would_be && !is_stall, "put off: {heard:?}");
        let silence_ns = self.attention_ns() - heard.last_ns;
        assert_eq!(
            silence.silence_ns, silence_ns,
            "length of a silence: {heard:?}"
        );
    }

    /// A silence is reported.
    pub(crate) fn reported(&mut self, silence: &Reported) {
        let heard = self
            .get(silence.agent)
            .expect("reported: the agent is unknown");
        let heard = self.as_judged(heard);
        let judged_ns = self.judged_ns(&heard);
        let is_paused = self.attention_ns() < heard.paused_until_ns;
        assert!(!is_paused, "reported while paused: {heard:?}");
        assert!(!heard.told_stall, "a silence is reported once: {heard:?}");
        assert_eq!(
            silence.silence_ns, judged_ns,
            "length of a silence: {heard:?}"
        );
        let is_late = silence.tier == Tier::Late;
        assert!(
            !is_late || !heard.told_late,
            "late once per silence: {heard:?}"
        );
        let due_ns = match is_late {
            true => heard.late_ns,
            false => heard.threshold_ns,
        };
        assert!(
            judged_ns >= due_ns,
            "reported too early: {heard:?} {judged_ns}"
        );
        let full_ns = self.full_ns.map_or(0, |full_ns| full_ns + 2 * MS);
        let in_time_ns = due_ns.max(heard.changed_at_ns) + 2 * TICK_NS + self.late_ns;
        let is_in_time = judged_ns <= in_time_ns || self.raw_ns <= full_ns;
        assert!(is_in_time, "reported too late: {heard:?} {judged_ns}");
        let told = Heard {
            told_late: heard.told_late || is_late,
            told_stall: !is_late,
            ..heard
        };
        self.agents.insert(key(silence.agent), told);
    }

    pub(crate) fn after_turn(&mut self, ring_was_full: bool) {
        if ring_was_full {
            self.full_ns = Some(self.raw_ns);
        }
        // A report that did not fit is due again after a tick.
        let is_free = self
            .full_ns
            .is_none_or(|full_ns| self.raw_ns > full_ns + 2 * TICK_NS);
        for heard in self.agents.values().filter(|_| is_free) {
            let heard = &self.as_judged(heard);
            let is_paused = self.attention_ns() < heard.paused_until_ns;
            if is_paused || heard.told_stall {
                continue;
            }
            let is_due = |after_ns: u64| {
                let silence_ns = heard.silence_ns(self.attention_ns());
                let excused_ns = silence_ns - self.judged_ns(heard);
                let due_ns = heard.begins_ns() + after_ns + excused_ns;
                self.attention_ns() >= due_ns.next_multiple_of(TICK_NS)
            };
            assert!(
                !is_due(heard.threshold_ns),
                "a stall is not reported: {heard:?}"
            );
            let is_late = heard.late_ns != 0 && is_due(heard.late_ns);
            assert!(
                heard.told_late || !is_late,
                "late is not reported: {heard:?}"
            );
        }
    }

    /// A beat of a known agent was let in, or refused as one too many.
    pub(crate) fn admitted(&mut self, agent: Agent, is_terminal: bool, is_in: bool) {
        let now_ns = self.raw_ns;
        let heard = self.agents.get_mut(&key(agent)).expect("is known");
        let may = heard.allowance.take(now_ns);
        assert!(is_terminal || is_in == may, "limit of beats: {heard:?}");
    }

    /// A beat was credited or refused.
    pub(crate) fn heard(
        &mut self,
        beat: &Beat,
        known: Option<&Slot>,
        recorded: &Recorded,
        threshold_ns: u64,
    ) {
        if let Some(displaced) = recorded.displaced {
            self.displaced(displaced.agent, displaced.evicted, beat);
        }
        let now_ns = self.attention_ns();
        let Some(agent) = recorded.agent else {
            let is_new = known.is_none() || recorded.displaced.is_some();
            let is_remote = matches!(beat.key, AgentKey::Remote { .. });
            let is_old = known.is_some_and(|known| {
                let restarts = !is_remote && beat.frame.timestamp < known.last_timestamp;
                known.last_nonce >= Some(beat.frame.nonce) && !restarts
            });
            let is_refused_rightly = is_new || is_old || beat.frame.is_terminal();
            assert!(
                is_refused_rightly,
                "a beat of a known process was refused: {recorded:?}"
            );
            return;
        };
        if recorded.outcome == BeatOutcome::Inserted {
            let other = self
                .agents
                .values()
                .find(|heard| heard.agent.slot == agent.slot);
            assert!(other.is_none(), "{agent:?} has the slot of {other:?}");
            let mut others = self.agents.values().map(|heard| heard.agent);
            let other = others.find(|other| {
                let are_local = !agent.is_remote() && !other.is_remote();
                are_local && other.pid == agent.pid
            });
            assert!(other.is_none(), "{agent:?} has the pid of {other:?}");
            let heard = Heard {
                agent,
                uid: beat.uid,
                origin: beat.origin,
                last_ns: now_ns,
                restarted_ns: 0,
                paused_until_ns: 0,
                threshold_ns,
                late_ns: 0,
                told_late: false,
                told_stall: false,
                changed_at_ns: 0,
                status: beat.frame.condition(),
                allowance: Allowance::of_newcomer(self.raw_ns),
            };
            let is_critical = heard.status == Status::Critical;
            assert_eq!(recorded.turned_critical, is_critical, "critical at first");
            self.agents.insert(key(agent), heard);
            return;
        }
        let heard = self
            .agents
            .get_mut(&key(agent))
            .expect("credited to nobody");
        let returned_ns = heard.told_stall.then(|| heard.silence_ns(now_ns));
        assert_eq!(recorded.returned_after_ns, returned_ns, "return: {heard:?}");
        let status = beat.frame.condition();
        let turned_critical = status == Status::Critical && heard.status != Status::Critical;
        assert_eq!(
            recorded.turned_critical, turned_critical,
            "critical: {heard:?}"
        );
        heard.status = status;
        heard.last_ns = now_ns;
        heard.changed_at_ns = 0;
        heard.told_late = false;
        heard.told_stall = false;
    }

    fn displaced(&mut self, agent: Agent, is_evicted: bool, beat: &Beat) {
        let heard = self
            .agents
            .remove(&key(agent))
            .expect("displaced: the agent is unknown");
        if is_evicted {
            let silence_ns = heard.silence_ns(self.attention_ns());
            assert!(
                silence_ns > 10 * heard.threshold_ns,
                "evicted too early: {heard:?}"
            );
            let is_remote = matches!(beat.key, AgentKey::Remote { .. });
            let takes_from_local = is_remote && agent.locality() == Locality::Local;
            assert!(
                !takes_from_local,
                "a remote agent took the slot of {heard:?}"
            );
        } else {
            let AgentKey::Local { pid, instance, .. } = beat.key else {
                panic!("a remote agent replaced {heard:?}");
            };
            let is_recycled = pid == agent.pid && instance != Some(agent.instance);
            assert!(is_recycled, "replaced by another pid: {heard:?}");
        }
    }

    pub(crate) fn left(&mut self, agent: Agent) {
        let heard = self.agents.remove(&key(agent));
        assert!(heard.is_some(), "left: nobody was there");
    }

    /// The beat path applies an update.
    pub(crate) fn apply(&mut self, update: AgentUpdate) {
        let now_ns = self.attention_ns();
        let (AgentUpdate::Deadlines(agent, _)
        | AgentUpdate::BeatLimit(agent, _)
        | AgentUpdate::Pause(agent, _)
        | AgentUpdate::Resume(agent)) = update;
        let Some(heard) = self.agents.get_mut(&key(agent)) else {
            return;
        };
        match update {
            AgentUpdate::BeatLimit(_, limit) => heard.allowance.replace(limit, self.raw_ns),
            AgentUpdate::Deadlines(_, deadlines) => {
                heard.threshold_ns = deadlines.threshold_ns;
                heard.late_ns = deadlines.late_ns;
                // A change alone makes no agent stall.
                if !heard.told_stall && heard.silence_ns(now_ns) >= heard.threshold_ns {
                    heard.restarted_ns = now_ns;
                }
                heard.changed_at_ns = heard.silence_ns(now_ns);
                let is_late = heard.late_ns != 0 && heard.silence_ns(now_ns) >= heard.late_ns;
                heard.told_late &= is_late;
            }
            AgentUpdate::Pause(_, time) => {
                heard.paused_until_ns = now_ns + time.as_nanos() as u64;
                heard.told_late = false;
                heard.told_stall = false;
            }
            AgentUpdate::Resume(_) => {
                if now_ns < heard.paused_until_ns {
                    heard.paused_until_ns = now_ns;
                }
            }
        }
    }

    /// A process that has ended is no agent.
    pub(crate) fn check_ended(&self, has_ended: impl Fn(Agent) -> bool) {
        let agents = self.agents.values().map(|heard| heard.agent);
        let mut local = agents.filter(|agent| !agent.is_remote());
        let ended = local.find(|agent| has_ended(*agent));
        assert!(
            ended.is_none(),
            "has ended, and is an agent still: {ended:?}"
        );
    }

    /// Checks that the table agrees.
    pub(crate) fn check_table(&self, read: impl Fn(u32) -> Option<Slot>, slots: u32) {
        let mut found = 0;
        for slot in 0..slots {
            let Some(facts) = read(slot) else {
                continue;
            };
            let heard = self
                .get(facts.agent(slot))
                .expect("in the table and never heard");
            assert_eq!(
                facts.state.is_latched(),
                heard.told_stall,
                "latched: {heard:?}"
            );
            assert_eq!(facts.status, heard.status, "status: {heard:?}");
            found += 1;
        }
        assert_eq!(found, self.agents.len(), "agents in the table");
    }
}
