//! A minimal beat path: [`LocalSenders`] and [`Limits`] identify senders, a tracker and an attention clock judge
//! silence; it connects a queue of datagrams to a ring of events. Work takes no time. The queue never refuses a
//! datagram, but drops are reported at times.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use varta_core::admission::{LocalSenders, SenderQuery, SenderReply};
use varta_core::attention::{AttentionClock, longest_sleep_ns, tolerance_ns};
use varta_core::engine::AgentUpdate;
use varta_core::{
    AllowedUsers, Claims, Event, EventKind, EvictionPolicy, ExitStatus, LimitOptions, Limits,
    LocalGate, Locality, Rate, SlotTable, Tier, Tracker, TrackerOptions, beat_events,
};

use crate::MS;
use crate::oracle::Oracle;
use crate::processes::Datagram;

/// Slots: at times a few less than agents.
pub(crate) const SLOTS: usize = 20;

/// What each agent may send unless its rule says otherwise.
pub(crate) const COMMON_RATE: Rate = Rate {
    per_second: 20,
    burst: 40,
};

/// Capacity of the ring, and the parts of it reserved for stalls and exits, and withheld from new agents.
const RING: usize = 64;
const KEPT_FOR_AGENTS: usize = 16;
const KEPT_FROM_NEWCOMERS: usize = 12;

/// Updates from control to the beat path.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    Update(AgentUpdate),
    /// The deadlines of new agents.
    Threshold(u64),
    /// The answer to a query about a sender.
    Reply(u64, SenderReply),
}

pub(crate) struct BeatPath {
    pub(crate) clock: AttentionClock,
    pub(crate) tracker: Tracker,
    pub(crate) senders: LocalSenders,
    pub(crate) limits: Limits,
    pub(crate) inbox: VecDeque<Datagram>,
    pub(crate) ended: VecDeque<(u32, u64)>,
    pub(crate) told: VecDeque<Told>,
    pub(crate) ring: VecDeque<Event>,
    pub(crate) queries: VecDeque<SenderQuery>,
    /// Whose beats may have been lost, and for how many thresholds that counts.
    pub(crate) drops: VecDeque<(Locality, u64)>,
    ring_was_full: bool,
    pub(crate) threshold_ns: u64,
    /// The latest time of its next turn.
    pub(crate) promised_ns: u64,
    /// Processes that have ended.
    pub(crate) dead: BTreeSet<(u32, u64)>,
    /// The pids that each agent may claim, where known.
    pub(crate) claims: [Option<Claims>; SLOTS],
    pub(crate) critical_from_ns: [u64; SLOTS],
    pub(crate) now_ns: u64,
}

impl BeatPath {
    pub(crate) fn new(
        table: Arc<SlotTable>,
        threshold_ns: u64,
        is_strict: bool,
        now_ns: u64,
    ) -> Self {
        let options = TrackerOptions {
            policy: match is_strict {
                true => EvictionPolicy::Strict,
                false => EvictionPolicy::Balanced,
            },
            local_capacity: 13,
            user_capacity: 6,
            remote_capacity: 6,
            ..TrackerOptions::default()
        };
        let limit_options = LimitOptions {
            agent: Some(COMMON_RATE),
            global: None,
        };
        let gate = LocalGate {
            users: AllowedUsers::Everyone,
            nobody: Some(65_534),
            pid_max: 32_768,
        };
        Self {
            clock: AttentionClock::new(now_ns),
            tracker: Tracker::new(table, Arc::default(), options),
            senders: LocalSenders::new(gate, false),
            limits: Limits::new(SLOTS, limit_options, now_ns),
            inbox: VecDeque::new(),
            ended: VecDeque::new(),
            told: VecDeque::new(),
            ring: VecDeque::new(),
            queries: VecDeque::new(),
            drops: VecDeque::new(),
            ring_was_full: false,
            threshold_ns,
            promised_ns: now_ns,
            dead: BTreeSet::new(),
            claims: [None; SLOTS],
            critical_from_ns: [0; SLOTS],
            now_ns,
        }
    }

    pub(crate) fn has_input(&self) -> bool {
        !self.inbox.is_empty() || !self.told.is_empty() || !self.ended.is_empty()
    }

    /// The attention clock as other threads read it: it advances until the set wake-up.
    pub(crate) fn attention_at(&self, now_ns: u64) -> u64 {
        let lag_ns = self.clock.raw_now_ns() - self.clock.now_ns();
        now_ns.min(self.promised_ns.max(self.clock.raw_now_ns())) - lag_ns
    }

    pub(crate) fn turn(&mut self, now_ns: u64, oracle: &mut Oracle) {
        self.now_ns = now_ns;
        oracle.silence.look(now_ns, self.promised_ns);
        if let Some(gap) = self.clock.advance_to(now_ns) {
            if !gap.is_off_the_clock {
                self.tracker.excuse(self.clock.now_ns(), gap.gap_ns);
            }
            let shortest_ns = self.tracker.shortest_threshold_ns();
            if gap.gap_ns > tolerance_ns(shortest_ns.unwrap_or(self.threshold_ns)) {
                self.send(EventKind::Gap { gap_ns: gap.gap_ns }, oracle);
            }
        }
        oracle.silence.check_clock(self.clock.now_ns());
        self.dead.extend(&self.ended);
        while let Some(told) = self.told.pop_front() {
            self.apply(told, oracle);
        }
        while let Some(datagram) = self.inbox.pop_front() {
            self.hear(&datagram, oracle);
        }
        while self.ring.len() < RING
            && let Some((pid, instance)) = self.ended.pop_front()
        {
            let agent = self.tracker.local_agent(pid);
            if let Some(agent) = agent.filter(|agent| agent.instance == instance) {
                self.retire(agent, ExitStatus::Unknown, oracle);
            }
        }
        self.note_drops(oracle);
        self.judge(oracle);
        oracle.silence.after_turn(self.ring_was_full);
        self.promise();
    }

    fn promise(&mut self) {
        let now_ns = self.now_ns;
        let deadline_ns = self.tracker.next_deadline_ns();
        let mut wake_ns =
            deadline_ns.map_or(u64::MAX, |deadline_ns| self.clock.raw_at(deadline_ns));
        if self.ring_was_full || !self.ended.is_empty() {
            wake_ns = now_ns + MS;
        } else if deadline_ns.is_some() {
            let shortest_ns = self.tracker.shortest_threshold_ns();
            let shortest_ns = shortest_ns.unwrap_or(self.threshold_ns);
            wake_ns = wake_ns.min(now_ns + longest_sleep_ns(shortest_ns));
        }
        self.promised_ns = wake_ns.max(now_ns);
        self.clock.promise(wake_ns);
    }

    fn apply(&mut self, told: Told, oracle: &mut Oracle) {
        let now_ns = self.clock.now_ns();
        match told {
            Told::Threshold(threshold_ns) => self.threshold_ns = threshold_ns,
            Told::Reply(ticket, reply) => self.take_reply(ticket, &reply, oracle),
            Told::Update(update) => {
                oracle.silence.apply(update);
                oracle.applied(update);
                match update {
                    AgentUpdate::Deadlines(agent, deadlines) => {
                        self.tracker.set_deadlines(agent, deadlines, now_ns);
                    }
                    AgentUpdate::BeatLimit(agent, limit) => {
                        if self.tracker.agent_in(agent.slot) == Some(agent) {
                            self.limits.set_agent_limit(agent.slot, limit, self.now_ns);
                        }
                    }
                    AgentUpdate::Pause(agent, time) => {
                        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                        self.tracker
                            .pause(agent, now_ns.saturating_add(time_ns), now_ns);
                    }
                    AgentUpdate::Resume(agent) => {
                        self.tracker.resume(agent, now_ns);
                    }
                }
            }
        }
    }

    fn judge(&mut self, oracle: &mut Oracle) {
        let mut ring_was_full = false;
        let mut budget = u32::MAX;
        let attention_ns = self.clock.now_ns();
        while let Some(due) = self.tracker.pop_due(attention_ns, &mut budget) {
            let mut event = None;
            let has_room = self.ring.len() < RING;
            let judged = self.tracker.judge(due, attention_ns, |silence| {
                if silence.tier == Tier::PutOff {
                    oracle.silence.put_off(silence);
                } else if has_room {
                    oracle.silence.reported(silence);
                } else {
                    return ControlFlow::Break(());
                }
                event = Some(beat_events::silence(silence, 0));
                ControlFlow::Continue(())
            });
            if let Some(kind) = event {
                self.send(kind, oracle);
            }
            if judged.is_break() {
                ring_was_full = true;
                break;
            }
        }
        self.ring_was_full = ring_was_full;
    }

    /// Beats may have been lost since the last turn.
    fn note_drops(&mut self, oracle: &mut Oracle) {
        let now_ns = self.clock.now_ns();
        while let Some((locality, thresholds)) = self.drops.pop_front() {
            self.tracker.restart_silence(locality, now_ns, thresholds);
            oracle.silence.restart(locality, thresholds);
            if locality == Locality::Remote {
                self.send(EventKind::NetworkDrops { count: thresholds }, oracle);
            }
        }
    }

    /// Whether the ring has room for the events of a new agent.
    pub(crate) fn has_room_for_join(&self) -> bool {
        self.ring.len() + KEPT_FROM_NEWCOMERS < RING
    }

    /// Pushes an event, unless the ring is full.
    pub(crate) fn send(&mut self, kind: EventKind, oracle: &mut Oracle) {
        let is_expendable = matches!(kind, EventKind::Session { .. });
        let most = if is_expendable {
            RING - KEPT_FOR_AGENTS
        } else {
            RING
        };
        if self.ring.len() >= most {
            return oracle.lost(&kind);
        }
        self.ring.push_back(Event {
            observer_ns: self.now_ns,
            kind,
        });
    }
}
