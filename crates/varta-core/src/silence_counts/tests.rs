//! SilenceByGroup of agents with known rhythms.

use varta_vlp::{Frame, Status};

use super::*;
use crate::agent::{BeatOrigin, UID_UNKNOWN};
use crate::beat::{AgentKey, Beat};
use crate::tracker::{Tracker, TrackerOptions};

/// The threshold: a whole number of the wheel's ticks, and of the parts that these tests use.
const T: u64 = 1000 << crate::wheel::TICK_SHIFT;

/// Agents that beat at times that grow.
struct Agents {
    tracker: Tracker,
    table: std::sync::Arc<SlotTable>,
}

impl Agents {
    fn new(capacity: usize) -> Self {
        let table = std::sync::Arc::new(SlotTable::on_heap(capacity));
        let options = TrackerOptions::default();
        let tracker = Tracker::new(std::sync::Arc::clone(&table), Default::default(), options);
        Self { tracker, table }
    }

    fn beat(&mut self, pid: u32, now_ns: u64) -> crate::Agent {
        let frame = Frame::new(Status::Ok, pid, now_ns, now_ns + 1, 0);
        let beat = Beat::new(AgentKey::local(pid), frame, BeatOrigin::KernelAttested);
        self.tracker.record(&beat, now_ns, T).agent.unwrap()
    }

    /// Beats of one agent from `first_ns` on, up to but not including `until_ns`.
    fn beats(&mut self, pid: u32, first_ns: u64, interval_ns: u64, until_ns: u64) {
        let mut now_ns = first_ns;
        while now_ns < until_ns {
            self.beat(pid, now_ns);
            now_ns += interval_ns;
        }
    }

    fn judge(&mut self, now_ns: u64) -> u32 {
        let mut stalls = 0;
        self.tracker.drain_stalled_slots(now_ns, u32::MAX, |_| {
            stalls += 1;
            std::ops::ControlFlow::Continue(())
        });
        stalls
    }

    fn counts(&self, now_ns: u64) -> SilenceCounts {
        let groups = count_silent(&self.table, now_ns);
        assert_eq!(groups.remote, SilenceCounts::default());
        let of_user = groups.users.get(&UID_UNKNOWN).copied();
        assert_eq!(of_user.unwrap_or_default(), groups.local);
        groups.local
    }
}

#[test]
fn an_empty_table_has_no_agent() {
    assert_eq!(Agents::new(16).counts(T), SilenceCounts::default());
    assert_eq!(Agents::new(0).counts(T), SilenceCounts::default());
}

#[test]
fn silence_counts_from_half_a_threshold_and_from_what_is_unusual() {
    let mut agents = Agents::new(4);
    agents.beats(2, 0, T / 10, T);
    agents.beats(3, 0, T * 8 / 10, 2 * T);
    let last_ns = T * 9 / 10;
    assert_eq!(agents.counts(last_ns + T / 2 - 1).silent, 0);
    assert_eq!(agents.counts(last_ns + T / 2).silent, 1);
    let last_ns = T * 8 / 10 * 2;
    let unusual_ns = T * 7 / 8;
    assert_eq!(agents.counts(last_ns + unusual_ns - 1).silent, 1);
    assert_eq!(agents.counts(last_ns + unusual_ns).silent, 2);
}

#[test]
fn an_outage_makes_no_silence_usual() {
    let mut agents = Agents::new(4);
    agents.beats(2, 0, T / 10, T);
    let back_ns = 1_000 * T;
    agents.judge(back_ns);
    agents.beat(2, back_ns);
    assert_eq!(agents.counts(back_ns + T * 7 / 8 - 1).silent, 0);
    assert_eq!(agents.counts(back_ns + T * 7 / 8).silent, 1);
}

#[test]
fn of_an_agent_heard_once_half_a_threshold_is_all_that_is_known() {
    let mut agents = Agents::new(4);
    agents.beat(2, 0);
    assert_eq!(agents.counts(T / 2 - 1).silent, 0);
    assert_eq!(agents.counts(T / 2).silent, 1);
}

#[test]
fn a_stalled_agent_is_silent_whatever_its_rhythm_and_fresh_for_two_thresholds() {
    let mut agents = Agents::new(4);
    agents.beats(2, 0, 3 * T / 2, 2 * T);
    let last_ns = 3 * T / 2;
    assert_eq!(agents.judge(last_ns + T), 1);
    let stalled = SilenceCounts {
        watched: 1,
        silent: 1,
        fresh: 1,
        latched: 1,
        threshold_ns: T,
    };
    assert_eq!(agents.counts(last_ns + T), stalled);
    assert_eq!(agents.counts(last_ns + 2 * T - 1), stalled);
    let old = SilenceCounts {
        fresh: 0,
        ..stalled
    };
    assert_eq!(agents.counts(last_ns + 2 * T), old);
}

#[test]
fn a_paused_agent_is_not_counted_until_the_pause_is_over() {
    let mut agents = Agents::new(4);
    let agent = agents.beat(2, 0);
    agents.judge(T);
    agents.tracker.pause(agent, 5 * T, T);
    assert_eq!(agents.counts(5 * T - 1), SilenceCounts::default());
    let after = agents.counts(5 * T);
    assert_eq!((after.watched, after.silent), (1, 0));
    assert_eq!(agents.counts(5 * T + T / 2).silent, 1);
}

#[test]
fn at_the_first_stall_of_a_mass_stall_most_are_silent_already() {
    let interval_ns = T * 45 / 100;
    let (count, end_ns) = (1000, 20 * T);
    let mut agents = Agents::new(count as usize);
    for pid in 0..count {
        let phase_ns = interval_ns * u64::from(pid) / u64::from(count);
        agents.beats(2 + pid, phase_ns, interval_ns, end_ns);
    }
    let mut now_ns = end_ns;
    while agents.judge(now_ns) == 0 {
        now_ns += T / 1000;
    }
    let counts = agents.counts(now_ns);
    assert_eq!(counts.watched, count);
    assert!(counts.latched < 10, "only the first: {counts:?}");
    assert!(counts.silent > count * 9 / 10, "{counts:?}");
    assert_eq!(counts.fresh, counts.silent);
}

/// A number below `bound` that is the same in every run.
fn drawn(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound
}

/// The largest part of 200 agents that is silent at any of many counts, while all of them beat with this mean
/// interval, each beat early or late by up to a fifth of it.
fn most_silent_of_healthy(interval_ns: u64) -> f64 {
    let count = 200;
    let mut agents = Agents::new(count as usize);
    let mut seed = 0x9E37_79B9_7F4A_7C15;
    let mut next: Vec<u64> = (0..count).map(|_| drawn(&mut seed, interval_ns)).collect();
    let mut most = 0;
    // Three intervals until each has shown its rhythm.
    let (warm_ns, end_ns) = (4 * interval_ns, 60 * interval_ns);
    for now_ns in (0..end_ns).step_by((interval_ns / 50) as usize) {
        for (pid, next_ns) in (2..).zip(&mut next) {
            while *next_ns <= now_ns {
                agents.beat(pid, *next_ns);
                *next_ns += interval_ns * 8 / 10 + drawn(&mut seed, interval_ns * 4 / 10);
            }
        }
        if now_ns > warm_ns {
            most = most.max(agents.counts(now_ns).silent);
        }
    }
    f64::from(most) / f64::from(count)
}

#[test]
fn healthy_agents_alone_never_look_like_a_mass_stall() {
    // At 0.45 thresholds and a fifth more an interval is 0.54: a few are beyond the half now and then, less
    // than one in 13. At 0.7 no agent is silent for 1.25 intervals, which are at most 1.2 of the mean, except
    // agents whose mean over the first few is off. At 0.9 some are beyond the threshold itself now and then.
    assert!(most_silent_of_healthy(T * 45 / 100) < 0.1);
    assert!(most_silent_of_healthy(T * 7 / 10) < 0.1);
    assert!(most_silent_of_healthy(T * 9 / 10) < 0.3);
}
