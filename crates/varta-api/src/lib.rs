//! The output of the observer for other programs: the lines of its log, the rows of its event file, the answers of
//! its HTTP API, the ids of its agents, and its default addresses.
//!
//! Types and text only: this crate opens no socket and no file, and decides nothing.

#![forbid(unsafe_code)]

mod agent_id;
mod human;
pub mod log_line;
mod messages;
mod places;
mod row;
pub mod v1;

pub use agent_id::{AgentId, NotAnId};
pub use human::{human_line, printable};
pub use log_line::{LogEvent, LogLine};
pub use messages::{exact_duration, hanging_threads, os_error, transport_name};
pub use places::{
    CONTROL_SOCKET_SUFFIX, HTTP_ADDRESS, SOCKET_NAME, SOCKET_PATH_BYTES_MAX, control_socket_beside,
    default_runtime_directory, default_socket_path,
};
pub use row::{append_row, begins_a_row};
