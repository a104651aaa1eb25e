//! State that all sources of beats share: the tracker, the limits, the clock, the held processes, and the rings to
//! the control thread.
//!
//! A source receives a beat and identifies its sender; the recorder applies and reports the consequences. Local
//! senders are judged in [`super::local`].

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use varta_core::admission::LocalSenders;
use varta_core::attention::{AttentionClock, Gap, tolerance_ns};
use varta_core::beat_events::{self, BeatEvents};
use varta_core::tracker::{Displaced, Recorded};
use varta_core::{
    Agent, Beat, Counter, Counters, Event, EventKind, ExitStatus, JoinedFrom, Limits, Locality,
    Refusal, Sender, Tier, Tracker,
};
use varta_vlp::Frame;

use super::processes::HeldProcesses;
use super::sleep::Sleeper;
use crate::beat_path_state::BeatPathState;
use crate::clock::RawClock;
use crate::handoff::EventSender;
use crate::process_info::KernelFeatures;

/// The raw clock and the attention clock.
pub(super) struct Clock {
    pub(super) raw: RawClock,
    pub(super) attention: AttentionClock,
}

impl Clock {
    pub(super) fn start(raw: RawClock) -> Self {
        Self {
            raw,
            attention: AttentionClock::new(raw.now_ns()),
        }
    }

    /// Attention time of the last reading.
    pub(super) fn now_ns(&self) -> u64 {
        self.attention.now_ns()
    }

    /// Raw time of the last reading.
    pub(super) fn raw_ns(&self) -> u64 {
        self.attention.raw_now_ns()
    }
}

/// Settings of the start, and those that the control thread changes.
pub(super) struct RecorderOptions {
    pub(super) kernel: KernelFeatures,
    /// The limits for new agents.
    pub(super) threshold_ns: u64,
}

pub(super) struct Recorder {
    pub(super) options: RecorderOptions,
    pub(super) tracker: Tracker,
    pub(super) limits: Limits,
    pub(super) senders: LocalSenders,
    pub(super) processes: HeldProcesses,
    pub(super) clock: Clock,
    pub(super) sleeper: Sleeper,
    pub(super) beat_events: BeatEvents,
    pub(super) events: EventSender,
    /// The state of the beat path that other threads read.
    pub(super) state: Arc<BeatPathState>,
    pub(super) counters: Arc<Counters>,
    /// Datagrams refused so far.
    pub(super) refusals: u64,
}

impl Recorder {
    /// Reads the clock, reports a gap, and returns the raw time.
    pub(super) fn read_clock(&mut self) -> u64 {
        let raw_ns = self.clock.raw.now_ns();
        if let Some(gap) = self.clock.attention.advance_to(raw_ns) {
            self.note_gap(gap);
        }
        raw_ns
    }

    pub(super) fn note_gap(&mut self, gap: Gap) {
        let gap_ns = gap.gap_ns;
        if !gap.is_off_the_clock {
            self.tracker.excuse(self.clock.now_ns(), gap_ns);
        }
        if gap_ns > tolerance_ns(self.shortest_threshold_ns()) {
            self.counters.count(Counter::Gaps);
            self.counters.add(Counter::GapNanoseconds, gap_ns);
            self.send(EventKind::Gap { gap_ns });
        }
    }

    /// The shortest threshold of any agent, new ones included.
    pub(super) fn shortest_threshold_ns(&self) -> u64 {
        let shortest_ns = self.tracker.shortest_threshold_ns();
        shortest_ns.unwrap_or(self.options.threshold_ns)
    }

    /// Beats may have been lost until now: that silence does not count.
    pub(super) fn restart_silence(&mut self, locality: Locality, thresholds: u64) {
        let now_ns = self.clock.now_ns();
        self.tracker.restart_silence(locality, now_ns, thresholds);
    }

    pub(super) fn record(&mut self, beat: &Beat) -> Recorded {
        let threshold_ns = self.options.threshold_ns;
        self.tracker.record(beat, self.clock.now_ns(), threshold_ns)
    }

    /// Reports the changes that a beat made.
    pub(super) fn report(&mut self, sender: Sender, beat: &Beat, recorded: &Recorded) {
        let Some(agent) = recorded.agent else {
            return self.report_refused(sender, recorded);
        };
        let Self {
            beat_events,
            events,
            clock,
            ..
        } = self;
        beat_events.credited(agent, beat, recorded, clock.raw_ns(), |kind| {
            let observer_ns = clock.raw.now_ns();
            events.send(Event { observer_ns, kind }, None);
        });
    }

    /// Reports a new agent.
    pub(super) fn report_join(&mut self, agent: Agent, frame: &Frame, from: JoinedFrom) {
        let kind = self.beat_events.join(agent, frame, from);
        self.send(kind);
    }

    /// Reports a beat that the tracker has refused and counted.
    pub(super) fn report_refused(&mut self, sender: Sender, recorded: &Recorded) {
        self.refusals += 1;
        self.send(EventKind::Refused {
            sender,
            reason: beat_events::refusal(recorded),
        });
    }

    /// Refuses a datagram before it reaches the tracker.
    pub(super) fn refuse(&mut self, sender: Sender, reason: Refusal) {
        self.counters.count(reason.counter());
        self.refusals += 1;
        self.send(EventKind::Refused { sender, reason });
    }

    /// Reports the agents that left because of a new agent: one that was evicted, or those of a process whose pid has
    /// a new owner.
    pub(super) fn report_displaced(&mut self, recorded: &Recorded) {
        let mut next = recorded.displaced;
        while let Some(displaced) = next {
            let Displaced {
                agent, last_nonce, ..
            } = displaced;
            if displaced.evicted {
                drop(self.release(agent));
                self.send(EventKind::Evicted { agent });
            } else {
                self.report_exit(agent, last_nonce, ExitStatus::Unknown, None);
            }
            next = self.tracker.take_displaced();
        }
    }

    /// A local process has ended: all its streams leave. `process` is its pidfd, if it was not held.
    pub(super) fn retire_process(&mut self, agent: Agent, mut process: Option<OwnedFd>) {
        while let Some((agent, facts)) = self.tracker.retire_next(agent.pid, agent.instance) {
            let last_nonce = facts.last_nonce.unwrap_or(0);
            self.report_exit(agent, last_nonce, ExitStatus::Unknown, process.take());
        }
    }

    /// Retires an agent that has departed. False if it has left already.
    pub(super) fn retire_after_goodbye(&mut self, agent: Agent) -> bool {
        let Some(facts) = self.tracker.retire(agent) else {
            return false;
        };
        let last_nonce = facts.last_nonce.unwrap_or(0);
        self.report_exit(agent, last_nonce, ExitStatus::Goodbye, None);
        true
    }

    /// The control thread, which gets the pidfd with the event, determines how the process ended.
    fn report_exit(
        &mut self,
        agent: Agent,
        last_nonce: u64,
        status: ExitStatus,
        process: Option<OwnedFd>,
    ) {
        let process = self.release(agent).or(process);
        let observer_ns = self.clock.raw.now_ns();
        if status == ExitStatus::Unknown && !agent.is_remote() {
            self.senders
                .note_end(agent.pid, agent.instance, observer_ns);
        }
        let event = Event {
            observer_ns,
            kind: EventKind::Exit {
                agent,
                last_nonce,
                status,
            },
        };
        self.events.send(event, process);
    }

    /// Releases a process; while another descriptor of it is open, it must be removed from epoll explicitly.
    fn release(&mut self, agent: Agent) -> Option<OwnedFd> {
        let pidfd = self.processes.release(agent)?;
        self.sleeper.unwatch(&pidfd);
        Some(pidfd)
    }

    /// Judges silence, with a budget of timers. `refused` is the number of an agent's datagrams that a limit refused.
    /// False if a silence found the ring full.
    pub(super) fn judge(
        &mut self,
        heard_ns: u64,
        mut budget: u32,
        refused: impl Fn(Agent) -> u32,
    ) -> bool {
        let observer_ns = self.clock.raw.now_ns();
        let Self {
            tracker, events, ..
        } = self;
        // No source has a later beat than the table: each has recorded everything it received.
        while let Some(due) = tracker.pop_due(heard_ns, &mut budget) {
            let taken = tracker.judge(due, heard_ns, |silence| {
                let event = Event {
                    observer_ns,
                    kind: beat_events::silence(silence, refused(silence.agent)),
                };
                if silence.tier == Tier::PutOff {
                    // It will be postponed again, or be a stall.
                    events.send(event, None);
                    return ControlFlow::Continue(());
                }
                events.offer(event)
            });
            if taken.is_break() {
                return false;
            }
        }
        true
    }

    pub(super) fn send(&mut self, kind: EventKind) {
        let observer_ns = self.clock.raw.now_ns();
        self.events.send(Event { observer_ns, kind }, None);
    }

    /// Announces the next turn. Readers can distinguish a beat path that sleeps from one that hangs.
    pub(super) fn promise(&mut self, raw_ns: u64) {
        self.clock.attention.promise(raw_ns);
        self.state.set_next_turn(raw_ns);
    }

    /// Publishes how much time counts against no agent.
    pub(super) fn publish_lag(&self, now_ns: u64) {
        let lag_ns = now_ns.saturating_sub(self.clock.now_ns());
        self.state.set_attention_lag(lag_ns);
    }
}
