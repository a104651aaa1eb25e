//! The library that an agent links to send its beats.
//!
//! A handle sends 32-byte beats to the local observer and returns for each what the kernel did with it. It
//! never waits, never panics, and after construction allocates nothing. It survives a restart of the observer
//! and a fork of the process by itself. It does not beat on its own: a beat proves progress only where the
//! work is done.
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
//! A process that stops in order calls [`Varta::leave`], and its silence is not reported.
//!
//! Default build: no dependency outside this project, one Unix datagram socket per handle.
//!
//! | feature | adds |
//! |---|---|
//! | `udp` | `Varta::connect_udp`: beats to an observer on another machine, in clear |
//! | `secure-udp` | `Varta::connect_secure_udp` and two more: the same, encrypted; `key_from_file`. Implies `udp`; Unix only; brings in the ciphers of the RustCrypto project |
//! | `panic-handler` | a panic hook that sends one last frame, over each of the transports |
//!
//! The feature `accept-degraded-entropy` of 0.2.0 is left out on purpose: a salt that is not random
//! breaks the key, so without entropy there is no secure handle and no secure hook.

#![forbid(unsafe_code)]

pub mod client;
#[cfg(all(unix, feature = "secure-udp"))]
mod key_file;
mod outcome;
#[cfg(all(unix, feature = "panic-handler"))]
pub mod panic;
mod reconnect;
#[cfg(all(unix, feature = "secure-udp"))]
pub mod secure_transport;
mod terminal;
#[cfg(all(unix, feature = "panic-handler"))]
mod terminal_clock;
mod timeline;
pub mod transport;

pub use client::Varta;
#[cfg(all(unix, feature = "secure-udp"))]
pub use key_file::{KeyFileError, key_from_file};
pub use outcome::{BeatError, BeatOutcome, DropReason, UNKNOWN_ERRNO, classify_send_error};
#[cfg(all(unix, feature = "panic-handler", feature = "udp"))]
pub use panic::install_udp as install_panic_handler_udp;
#[cfg(all(unix, feature = "panic-handler", feature = "secure-udp"))]
pub use panic::{
    PanicInstallError, install_secure_udp as install_panic_handler_secure_udp,
    install_secure_udp_with_agent_key as install_panic_handler_secure_udp_with_agent_key,
    install_secure_udp_with_master as install_panic_handler_secure_udp_with_master,
};
#[cfg(all(unix, feature = "panic-handler"))]
pub use panic::{install as install_panic_handler, install_lazy as install_panic_handler_lazy};
#[cfg(all(unix, feature = "secure-udp"))]
pub use secure_transport::{ForeignKey, SecureUdpTransport};
pub use transport::BeatTransport;
#[cfg(feature = "udp")]
pub use transport::UdpTransport;
#[cfg(unix)]
pub use transport::UdsTransport;
#[cfg(all(unix, feature = "secure-udp"))]
pub use varta_sys::secret_file::SecretFileError;
#[cfg(all(unix, feature = "secure-udp"))]
pub use varta_vlp::secure::{AgentKey, Fingerprint, Key, KeyError, KeyTextError};
pub use varta_vlp::{DecodeError, Frame, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

/// The README's Rust is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// And so is that of the guide to remote agents.
#[cfg(all(doctest, unix, feature = "secure-udp"))]
#[doc = include_str!("../../../docs/network.md")]
struct NetworkGuide;
