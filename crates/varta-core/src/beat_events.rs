//! The events that follow from the answers of the tracker.
//!
//! No function decides about an agent. Bounds: a time per slot, reserved at construction.

use varta_vlp::Frame;

use crate::agent::Agent;
use crate::beat::Beat;
use crate::event::{EventKind, JoinedFrom};
use crate::refusal::Refusal;
use crate::slot::Tier;
use crate::tracker::{BeatOutcome, Recorded, Silence};

/// Minimum interval between reports that an agent is critical: 1 s. An agent whose status flickers would fill the
/// ring, and its trouble was reported already.
const CRITICAL_PAUSE_NS: u64 = 1_000_000_000;

/// Makes events from the outcomes of beats.
#[derive(Debug)]
pub struct BeatEvents {
    /// Whether every credited beat is an event, too.
    every_beat: bool,
    /// By slot: the earliest time of the next report that the agent is critical, raw time.
    critical_from_ns: Box<[u64]>,
}

impl BeatEvents {
    /// For a table with this many slots. With `every_beat` every credited beat is an event, too.
    pub fn new(slots: usize, every_beat: bool) -> Self {
        Self {
            every_beat,
            critical_from_ns: vec![0; slots].into_boxed_slice(),
        }
    }

    /// Emits the join of an agent with this frame.
    pub fn join(&mut self, agent: Agent, frame: &Frame, from: JoinedFrom) -> EventKind {
        self.critical_from_ns[agent.slot as usize] = 0;
        EventKind::Join {
            agent,
            from,
            nonce: frame.nonce,
            status: frame.condition(),
            payload: frame.payload,
        }
    }

    /// Emits what a credited beat changed about its agent, in the order of the reports.
    pub fn credited(
        &mut self,
        agent: Agent,
        beat: &Beat,
        recorded: &Recorded,
        raw_ns: u64,
        mut emit: impl FnMut(EventKind),
    ) {
        let Frame { payload, nonce, .. } = beat.frame;
        let status = beat.frame.condition();
        if recorded.new_session {
            emit(EventKind::Session {
                agent,
                nonce,
                status,
                payload,
            });
        }
        if let Some(silence_ns) = recorded.returned_after_ns {
            emit(EventKind::Return {
                agent,
                nonce,
                status,
                payload,
                silence_ns,
            });
        }
        if recorded.turned_critical && self.may_report_critical(agent, raw_ns) {
            emit(EventKind::Critical {
                agent,
                nonce,
                payload,
            });
        }
        if self.every_beat {
            emit(EventKind::Beat {
                agent,
                nonce,
                status: beat.frame.status,
                payload,
            });
        }
    }

    fn may_report_critical(&mut self, agent: Agent, raw_ns: u64) -> bool {
        let from_ns = &mut self.critical_from_ns[agent.slot as usize];
        let may = raw_ns >= *from_ns;
        if may {
            *from_ns = raw_ns.saturating_add(CRITICAL_PAUSE_NS);
        }
        may
    }
}

/// The refusal of a beat by the tracker.
pub fn refusal(recorded: &Recorded) -> Refusal {
    match recorded.outcome {
        BeatOutcome::OriginConflict => Refusal::OriginConflict,
        BeatOutcome::NamespaceConflict => Refusal::NamespaceConflict,
        BeatOutcome::CapacityExceeded => Refusal::CapacityExceeded,
        BeatOutcome::UserShareExceeded { uid } => Refusal::UserShareExceeded { uid },
        BeatOutcome::OutOfOrder
        | BeatOutcome::Inserted
        | BeatOutcome::Refreshed
        | BeatOutcome::Reordered => Refusal::OutOfOrder,
    }
}

/// A silence, with the number of datagrams of the agent that a limit refused since its last beat.
pub fn silence(silence: &Silence, refused: u32) -> EventKind {
    let agent = silence.agent;
    let last_nonce = silence.slot.last_nonce.unwrap_or(0);
    let silence_ns = silence.silence_ns;
    match silence.tier {
        Tier::Late => EventKind::Late {
            agent,
            last_nonce,
            silence_ns,
        },
        Tier::Stalled => EventKind::Stall {
            agent,
            last_nonce,
            silence_ns,
            threshold_ns: silence.slot.threshold_ns,
            refused,
        },
        Tier::PutOff => EventKind::PutOff { agent, silence_ns },
    }
}

#[cfg(test)]
mod tests {
    use varta_vlp::Status;

    use super::*;
    use crate::agent::BeatOrigin;
    use crate::beat::AgentKey;
    use crate::tracker::{Tracker, TrackerOptions};

    const T: u64 = 64 << crate::wheel::TICK_SHIFT;
    const SECOND: u64 = 1_000_000_000;

    struct World {
        tracker: Tracker,
        events: BeatEvents,
    }

    impl World {
        fn new(every_beat: bool) -> Self {
            Self {
                tracker: Tracker::with_capacity(2, TrackerOptions::default()),
                events: BeatEvents::new(2, every_beat),
            }
        }

        fn beat(&mut self, status: Status, timestamp: u64, nonce: u64, now_ns: u64) -> Vec<String> {
            let frame = Frame::new(status, 100, timestamp, nonce, 0);
            let beat = Beat::new(AgentKey::local(100), frame, BeatOrigin::KernelAttested);
            let recorded = self.tracker.record(&beat, now_ns, T);
            let agent = recorded.agent.expect("credited");
            let mut names = Vec::new();
            let emit = |event: EventKind| {
                let text = format!("{event:?}");
                names.extend(text.split(' ').next().map(str::to_owned));
            };
            self.events.credited(agent, &beat, &recorded, now_ns, emit);
            names
        }
    }

    #[test]
    fn a_beat_that_changes_nothing_is_no_event_unless_every_beat_is_one() {
        for (every_beat, expected) in [(false, vec![]), (true, vec!["Beat".to_owned()])] {
            let mut world = World::new(every_beat);
            assert_eq!(world.beat(Status::Ok, 1, 1, 0), expected);
            assert_eq!(world.beat(Status::Ok, 2, 2, 1), expected);
        }
    }

    #[test]
    fn a_new_session_a_return_and_a_turn_to_critical_come_in_this_order() {
        let mut world = World::new(true);
        world.beat(Status::Ok, 9, 9, 0);
        world
            .tracker
            .drain_stalled_slots(T, u32::MAX, |_| std::ops::ControlFlow::Continue(()));
        let events = world.beat(Status::Critical, 1, 1, 2 * T);
        assert_eq!(events, ["Session", "Return", "Critical", "Beat"]);
    }

    #[test]
    fn an_agent_whose_status_flickers_is_reported_once_a_second() {
        let mut world = World::new(false);
        let mut nonce = 0;
        let mut reported = |now_ns: u64| {
            nonce += 2;
            world.beat(Status::Ok, nonce, nonce, now_ns);
            !world
                .beat(Status::Critical, nonce + 1, nonce + 1, now_ns)
                .is_empty()
        };
        assert!(reported(0));
        assert!(!reported(SECOND - 1));
        assert!(reported(SECOND));
    }
}
