//! Keys: 32 secret bytes, their text form in files, and fingerprints that do not reveal them.
//!
//! No function copies or prints a key: no `Clone`, no `Display`, a `Debug` that hides the bytes, wiped when
//! dropped. This module reads no files.

use core::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::KEY_BYTES;

/// Hex digits of a key.
const HEX_BYTES: usize = 2 * KEY_BYTES;

/// A secret key: shared by all agents, a master key, or one derived from it.
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// The key with these bytes. The caller wipes its own copy.
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key written as 64 hexadecimal digits of either case.
    ///
    /// # Errors
    ///
    /// [`KeyError`] when it is anything else.
    pub fn from_hex(text: &[u8]) -> Result<Self, KeyError> {
        if text.len() != HEX_BYTES {
            return Err(KeyError::InvalidLength(text.len()));
        }
        let mut key = Self([0; KEY_BYTES]);
        for (position, digit) in text.iter().enumerate() {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                b'A'..=b'F' => digit - b'A' + 10,
                _ => return Err(KeyError::InvalidCharacter(position)),
            };
            let byte = &mut key.0[position / 2];
            *byte = *byte << 4 | value;
        }
        Ok(key)
    }

    /// Reads the content of a key file and passes on each key in it, in order: a file of exactly 32 bytes is
    /// one raw key; any other one is text with a key in hexadecimal per line, where blank lines, lines that
    /// begin with `#` and white space around keys do not count.
    ///
    /// # Errors
    ///
    /// [`KeyTextError`] for the first line that is no key; the keys before it have been passed on.
    pub fn each_in(content: &[u8], mut take: impl FnMut(Self)) -> Result<(), KeyTextError> {
        if let Ok(raw) = content.try_into() {
            take(Self(raw));
            return Ok(());
        }
        for (number, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let key = Self::from_hex(line).map_err(|error| KeyTextError {
                line: number + 1,
                error,
            })?;
            take(key);
        }
        Ok(())
    }

    /// The key as 64 lower-case hexadecimal digits, wiped when dropped.
    pub fn to_hex(&self) -> Zeroizing<[u8; HEX_BYTES]> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = Zeroizing::new([0; HEX_BYTES]);
        for (digits, byte) in hex.chunks_exact_mut(2).zip(&self.0) {
            digits[0] = DIGITS[usize::from(byte >> 4)];
            digits[1] = DIGITS[usize::from(byte & 15)];
        }
        hex
    }

    /// The secret itself, for the ciphers of this module.
    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// A key that belongs to one pid. Only the holder of the master key can make one, and only a receiver
/// with the master key can check what it seals.
#[derive(Debug)]
pub struct AgentKey {
    pid: u32,
    key: Key,
}

impl AgentKey {
    /// A key that a holder of the master key has derived for `pid`.
    pub const fn from_derived(key: Key, pid: u32) -> Self {
        Self { pid, key }
    }

    /// The pid it is for.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The key alone, as it is written to files.
    pub const fn key(&self) -> &Key {
        &self.key
    }
}

/// Eight bytes derived from a key that identify it and do not reveal it: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a text is not a key (wire spec 9). Neither variant contains the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The text has this many characters, not 64.
    InvalidLength(usize),
    /// The character at this position, counted from 0, is no hexadecimal digit.
    InvalidCharacter(usize),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidLength(length) => {
                write!(
                    f,
                    "{length} characters where a key has 64 hexadecimal digits"
                )
            }
            Self::InvalidCharacter(position) => {
                write!(f, "character {} is not a hexadecimal digit", position + 1)
            }
        }
    }
}

impl core::error::Error for KeyError {}

/// The first invalid line of a key file, and its error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTextError {
    /// Counted from 1.
    pub line: usize,
    /// Its error.
    pub error: KeyError,
}

impl fmt::Display for KeyTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.error)
    }
}

impl core::error::Error for KeyTextError {}
