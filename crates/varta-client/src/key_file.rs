//! The file an agent has its key in, read by the same rules as the observer's (wire spec 9).
//!
//! Who may own and read the file is judged in `varta_sys::secret_file`, what a key looks like in
//! `varta_vlp::secure`.

use std::path::{Path, PathBuf};
use std::{error, fmt};

use varta_sys::secret_file::{self, SecretFileError};
use varta_vlp::secure::{Key, KeyTextError};

/// A thousand keys. A longer file is not one of keys, and must not fill the memory.
const MOST_BYTES: usize = 64 * 1024;

/// The one key in the file at `path`: 32 raw bytes, or a line of 64 hexadecimal digits, where blank lines
/// and lines that begin with `#` do not count. Only its owner may have permissions on the file.
///
/// # Errors
///
/// [`KeyFileError`], whose text names the file, what is wrong with it, and how to mend it.
pub fn key_from_file(path: impl AsRef<Path>) -> Result<Key, KeyFileError> {
    let path = path.as_ref();
    let content = secret_file::read(path, MOST_BYTES).map_err(KeyFileError::Unreadable)?;
    let mut first = None;
    let mut keys = 0;
    Key::each_in(&content, |key| {
        keys += 1;
        first.get_or_insert(key);
    })
    .map_err(|error| KeyFileError::NotAKey {
        path: path.to_owned(),
        error,
    })?;
    match first {
        Some(key) if keys == 1 => Ok(key),
        Some(_) => Err(KeyFileError::Several {
            path: path.to_owned(),
            keys,
        }),
        None => Err(KeyFileError::Empty {
            path: path.to_owned(),
        }),
    }
}

/// Why a file did not give a key.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It is not there, or not fit to hold a secret.
    Unreadable(SecretFileError),
    /// A line in it is not a key.
    NotAKey {
        /// The file.
        path: PathBuf,
        /// The line, and what is wrong with it.
        error: KeyTextError,
    },
    /// It holds no key.
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It holds more than one key.
    Several {
        /// The file.
        path: PathBuf,
        /// How many.
        keys: usize,
    },
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::NotAKey { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Empty { path } => write!(
                f,
                "{}: holds no key; it needs one line of 64 hexadecimal digits",
                path.display()
            ),
            Self::Several { path, keys } => write!(
                f,
                "{}: holds {keys} keys where one is wanted",
                path.display()
            ),
        }
    }
}

impl error::Error for KeyFileError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Unreadable(error) => error.source(),
            // Told in the text.
            Self::NotAKey { .. } | Self::Empty { .. } | Self::Several { .. } => None,
        }
    }
}
