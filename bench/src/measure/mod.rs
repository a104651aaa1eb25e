//! The sections of a run, one per file; each adds its rows and notes to the report.

pub(crate) mod client;
pub(crate) mod cpu;
pub(crate) mod idle;
pub(crate) mod lateness;
