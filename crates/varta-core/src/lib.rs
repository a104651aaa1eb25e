//! Every decision of the Varta observer.
//!
//! No module reads a clock, a file or the environment, and the modules of the beat path allocate nothing after
//! construction: `now` and all facts are arguments, decisions are return values. The same calls give the same answers
//! (law 9), which is what lets a simulator replay a failure from its seed.
//!
//! The path of a beat: [`admission`] identifies the sender, [`tracker`] credits the beat to a [`slot`],
//! [`wheel`] determines when the slot is due for judgement, and [`attention`] supplies the `now` of all of
//! them.
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use varta_core::{AgentKey, Beat, BeatOrigin, Tracker, BeatOutcome};
//! use varta_vlp::{Frame, Status};
//!
//! let threshold_ns = 5_000_000_000;
//! let mut tracker = Tracker::default();
//!
//! let frame = Frame::new(Status::Ok, 4242, 17, 1, 0);
//! let beat = Beat::new(AgentKey::local(4242), frame, BeatOrigin::KernelAttested);
//! let recorded = tracker.record(&beat, 0, threshold_ns);
//! assert_eq!(recorded.outcome, BeatOutcome::Inserted);
//!
//! let mut stalled = Vec::new();
//! let now_ns = threshold_ns + 1_000_000;
//! tracker.drain_stalled_slots(now_ns, u32::MAX, |silence| {
//!     stalled.push(silence.agent.pid);
//!     ControlFlow::Continue(())
//! });
//! assert_eq!(stalled, [4242]);
//! ```

#![forbid(unsafe_code)]

pub mod admission;
pub mod agent;
pub mod attention;
pub mod beat;
pub mod beat_events;
pub mod counters;
pub mod engine;
pub mod event;
pub mod fact;
mod fifo;
pub mod histogram;
pub mod hold;
pub mod index;
pub mod ladder;
pub mod overflow;
pub mod permits;
pub mod policy;
pub mod refusal;
pub mod replay;
pub mod rules;
mod seqlock;
pub mod silence_counts;
pub mod slot;
pub mod tracker;
pub mod wheel;

pub use admission::{AllowedUsers, BeatLimit, Claims, LimitOptions, Limits, LocalGate, Rate};
pub use agent::{Agent, BeatOrigin, Credentials, ExitStatus, Locality, PerLocality, UID_UNKNOWN};
pub use attention::AttentionClock;
pub use beat::{AgentKey, Beat};
pub use counters::{Counter, Counters, Gauge, Timing};
pub use event::{Event, EventKind, JoinedFrom, Sender};
pub use fact::{AgentRef, Fact};
pub use index::{BoundedIndex, PidIndex, ProbeExhausted};
pub use overflow::ReceiveQueue;
pub use refusal::{Limit, Refusal};
pub use replay::{Arrival, ReplayError, ReplayGuard, ReplayOptions, ReplayRefusal, SessionKey};
pub use silence_counts::{SilenceByGroup, SilenceCounts, count_silent};
pub use slot::{Leftover, Slot, SlotState, SlotTable, Tier};
pub use tracker::{BeatOutcome, Deadlines, Due, EvictionPolicy, Tracker, TrackerOptions};
pub use tracker::{DEFAULT_CAPACITY, DEFAULT_EVICTION_SCAN_WINDOW, MAX_CAPACITY};
pub use tracker::{Displaced, Recorded, Silence};
pub use tracker::{MAX_EVICTION_SCAN_WINDOW, MIN_EVICTION_SCAN_WINDOW};
pub use wheel::Wheel;
