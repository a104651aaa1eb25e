//! What is told and kept: the log and its history, the event file, and the words of both.
//!
//! Nothing here decides anything or waits for a reader; every queue is bounded, and what finds no room is counted.

pub(crate) mod event_file;
pub(crate) mod history;
pub(crate) mod line_limit;
pub(crate) mod log;
pub(crate) mod log_throttle;
pub(crate) mod messages;
