//! Every decision of the Varta observer.
//!
//! Nothing here reads a clock, a file or the environment, and the rooms of the beat path allocate nothing after
//! construction: `now` and everything that is known come in as arguments, decisions come out as values. The same calls
//! give the same answers (law 9), which is what lets a simulator replay a failure from its seed.
//!
//! A beat takes this way: [`admission`] says who is speaking, [`tracker`] credits the beat to a
//! [`slot`], [`wheel`] says when the slot must be looked at again, and [`attention`] supplies the
//! `now` that all of them are given.

#![forbid(unsafe_code)]

pub mod admission;
pub mod agent;
pub mod attention;
pub mod beat;
pub mod census;
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
pub mod slot;
pub mod tracker;
pub mod wheel;

pub use admission::{AllowedUsers, BeatLimit, Claims, LimitOptions, Limits, LocalGate, Rate};
pub use agent::{Agent, BeatOrigin, Credentials, ExitStatus, Locality, PerLocality, UID_UNKNOWN};
pub use attention::AttentionClock;
pub use beat::{AgentKey, Beat};
pub use census::{Census, Censuses, census};
pub use counters::{Counter, Counters, Gauge, Timing};
pub use event::{Event, EventKind, JoinedFrom, Sender};
pub use fact::{AgentRef, Fact};
pub use index::{BoundedIndex, PidIndex, ProbeExhausted};
pub use overflow::ReceiveQueue;
pub use refusal::{Limit, Refusal};
pub use replay::{Arrival, ReplayError, ReplayGuard, ReplayOptions, ReplayRefusal, SessionKey};
pub use slot::{Slot, SlotState, SlotTable};
pub use tracker::{DEFAULT_CAPACITY, MAX_CAPACITY};
pub use tracker::{Deadlines, EvictionPolicy, Tracker, TrackerOptions, Update};
pub use wheel::Wheel;
