//! Answers: metrics, the JSON API and health, through one router with two doors, TCP and the control socket.
//!
//! Everything is read from what the other rooms put up ([`view`]); the beat path is not asked and does not
//! notice. Both doors are served by the control thread's runtime.

pub(crate) mod metrics;
pub(crate) mod view;
