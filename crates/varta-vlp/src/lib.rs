//! The Varta wire format: what a health beat is, byte by byte.
//!
//! A beat is one 32-byte [`Frame`] in one datagram. This crate encodes and decodes frames and reports
//! precisely why bytes are not a frame. It opens no socket, keeps no state and does not identify senders: the
//! client and the observer do.
//!
//! No standard library, no allocator, no unsafe code, and by default no dependency. Every function takes a
//! bounded number of steps; only [`crc32c::compute`] and the key file parser accept input of any length.
//!
//! | feature | adds |
//! |---|---|
//! | `secure` | encrypted envelopes, keys and their derivation |
//! | `known-answers` | sealing under a chosen nonce, to compare with published vectors |
//!
//! ```
//! use varta_vlp::{FRAME_BYTES, Frame, Status};
//!
//! let frame = Frame::new(Status::Ok, 4242, 1_500_000_000, 1, 7);
//! let mut wire = [0; FRAME_BYTES];
//! frame.encode(&mut wire);
//! assert_eq!(Frame::decode(&wire), Ok(frame));
//! ```

#![no_std]
#![forbid(unsafe_code)]

pub mod crc32c;
pub mod error;
pub mod frame;
#[cfg(feature = "secure")]
pub mod secure;
pub mod status;

pub use error::DecodeError;
pub use frame::{FRAME_BYTES, Frame, MAGIC, NONCE_TERMINAL, PAYLOAD_GOODBYE, VERSION};
pub use status::Status;
