//! What an agent links to say "I am making progress".
//!
//! A handle sends 32-byte beats to the local observer and says for each what the kernel did with it.
//! It never waits, never panics, and after construction allocates nothing. It survives a restart of
//! the observer and a fork of the process by itself. It does not beat on its own: a beat is worth
//! something only where the work is done.
//!
//! ```no_run
//! use varta_client::{Status, Varta};
//!
//! let mut agent = Varta::open("/run/varta/varta.sock");
//! loop {
//!     // ... one unit of work ...
//!     let _ = agent.beat(Status::Ok, 0);
//! }
//! ```
//!
//! A process that stops working in order says so with [`Varta::leave`], and nobody is alarmed.
//!
//! Default build: no dependency outside this project, one Unix datagram socket per handle.
//!
//! | feature | adds |
//! |---|---|
//! | `panic-handler` | a panic hook that sends one last frame |

#![forbid(unsafe_code)]

pub mod client;
mod outcome;
#[cfg(all(unix, feature = "panic-handler"))]
pub mod panic;
mod reconnect;
mod timeline;
pub mod transport;

pub use client::Varta;
pub use outcome::{BeatError, BeatOutcome, DropReason, UNKNOWN_ERRNO, classify_send_error};
#[cfg(all(unix, feature = "panic-handler"))]
pub use panic::{install as install_panic_handler, install_lazy as install_panic_handler_lazy};
pub use transport::BeatTransport;
#[cfg(unix)]
pub use transport::UdsTransport;
pub use varta_vlp::{DecodeError, Frame, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

/// The README's Rust is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
