//! The Varta wire format: what a health beat is, byte by byte.
//!
//! A beat is one 32-byte [`Frame`] in one datagram. This crate turns frames into bytes and back and
//! says precisely why bytes are not a frame. It opens no socket, keeps no state and knows nothing of
//! who sent what: those questions belong to the client and to the observer.
//!
//! No standard library, no allocator, no dependency, no unsafe code. Every function takes a bounded
//! number of steps; only [`crc32c::compute`] accepts input of any length.
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
pub mod status;

pub use error::DecodeError;
pub use frame::{FRAME_BYTES, Frame, MAGIC, NONCE_TERMINAL, PAYLOAD_GOODBYE, VERSION};
pub use status::Status;
