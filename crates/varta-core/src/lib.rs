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
pub mod attention;
pub mod census;
pub mod counters;
pub mod event;
pub mod fact;
mod fifo;
pub mod histogram;
pub mod index;
pub mod overflow;
pub mod recovery;
pub mod replay;
pub mod rules;
pub mod slot;
pub mod tracker;
pub mod wheel;

pub use admission::{AllowedUsers, Claims, Credentials, Limit, LimitOptions, Limits, LocalGate};
pub use admission::{BeatLimit, Rate, Reach, Refusal};
pub use attention::AttentionClock;
pub use census::{Census, Censuses, census};
pub use counters::{Counter, Counters, Gauge, Timing};
pub use event::{Agent, Event, EventKind, ExitStatus, Home, Sender};
pub use fact::{AgentRef, Fact};
pub use index::{BoundedIndex, PidIndex, ProbeExhausted};
pub use overflow::ReceiveQueue;
pub use replay::{Arrival, ReplayError, ReplayGuard, ReplayOptions, ReplayRefusal, SessionKey};
pub use slot::{BeatOrigin, Slot, SlotState, SlotTable};
pub use tracker::{DEFAULT_CAPACITY, MAX_CAPACITY};
pub use tracker::{EvictionPolicy, Patience, Tracker, TrackerOptions, Update};
pub use wheel::Wheel;
