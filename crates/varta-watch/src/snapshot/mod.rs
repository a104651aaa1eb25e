//! What readers see of the observer: consistent copies, taken when somebody asks, and the small things that the threads
//! put up for them.
//!
//! Whoever has a question reads here; neither the beat path nor the control thread is asked. Nothing here knows how an
//! answer is sent or what the log says.

pub(crate) mod control_state;
pub(crate) mod directory;
pub(crate) mod no_room;
pub(crate) mod receive_trouble;
pub(crate) mod view;
