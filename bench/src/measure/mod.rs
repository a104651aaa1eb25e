//! The sections of a run, one per file; each adds its rows and notes to the report.

pub(crate) mod client;
pub(crate) mod cpu;
pub(crate) mod exits;
pub(crate) mod idle;
pub(crate) mod lateness;
pub(crate) mod neighbour;
pub(crate) mod network;
pub(crate) mod restraint;
pub(crate) mod scrape;
