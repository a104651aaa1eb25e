//! The observer's state for readers: consistent copies, taken on request, and the small states that the threads
//! publish.
//!
//! Requests read these copies; they query neither the beat path nor the control thread. This module does not know how
//! an answer is sent, nor the text of the log.

pub(crate) mod control_state;
pub(crate) mod directory;
pub(crate) mod no_room;
pub(crate) mod receive_trouble;
pub(crate) mod view;
