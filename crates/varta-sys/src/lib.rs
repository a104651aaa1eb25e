//! The few system calls of Varta that need `unsafe`, and nothing else.
//!
//! Every other crate of the workspace forbids unsafe code. Each block documents why it is sound, and each
//! module has tests. Without features the crate has no dependency and holds what an agent needs; the feature
//! `observer` adds what only the observer needs, `secrets` reading and writing of secret files, `testing`
//! what only tests need.

#![allow(unsafe_code)]

#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod child;
pub mod counting_alloc;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod deep_socket;
#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod denial;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod discard;
#[cfg(unix)]
pub mod entropy;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod filter;
pub mod fork;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod map;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod process;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod receive;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod sched;
#[cfg(all(feature = "secrets", unix))]
pub mod secret_file;
#[cfg(all(feature = "observer", target_os = "linux"))]
mod socket_option;
#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod spawn;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod udp;
#[cfg(all(feature = "observer", target_os = "linux"))]
pub mod undumped;
#[cfg(unix)]
pub mod users;
