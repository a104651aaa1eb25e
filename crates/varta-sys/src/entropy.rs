//! Random bytes from the kernel, fit for keys and nonces.
//!
//! They come through the C library's `getentropy`, which calls the kernel each time and keeps nothing in the
//! process: a fork, or a restored snapshot of the process, draws bytes of its own. The kernel reseeds its
//! generator in the clone of a machine, where the host reports the cloning (`vmgenid`); bytes that were drawn
//! before are the same in both.
//!
//! Each call enters the kernel, and early at boot it waits until the kernel has gathered enough randomness.
//! So call it where a process starts or a fork is detected, and never on a path that sends beats.

use std::ffi::{c_int, c_void};
use std::io;

/// Limit of one call of `getentropy`, bytes.
const MOST_AT_ONCE_BYTES: usize = 256;

unsafe extern "C" {
    fn getentropy(buffer: *mut c_void, length: usize) -> c_int;
}

/// Fills `bytes` with random ones. May wait early at boot.
///
/// # Errors
///
/// The error of the kernel: a sandbox forbids the call, or the kernel is too old to have it. Some of the
/// bytes may have been filled by then; use none of them.
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    for chunk in bytes.chunks_mut(MOST_AT_ONCE_BYTES) {
        // SAFETY: the chunk is writable for the stated length, and any bytes are valid in it.
        let result = unsafe { getentropy(chunk.as_mut_ptr().cast(), chunk.len()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_long_buffer_is_filled() {
        // 16 zeroes in a row come by chance once in 2^128.
        let mut bytes = [0; 3 * MOST_AT_ONCE_BYTES + 16];
        fill(&mut bytes).unwrap();
        assert!(bytes.chunks(16).all(|part| part != [0; 16]));
    }

    #[test]
    fn two_fills_differ() {
        let mut both = [[0; 32]; 2];
        for bytes in &mut both {
            fill(bytes).unwrap();
        }
        assert_ne!(both[0], both[1]);
    }

    #[test]
    fn filling_nothing_succeeds() {
        fill(&mut []).unwrap();
    }
}
