//! The key file of an agent, read by the same rules as the observer's (wire spec 9).
//!
//! `varta_sys::secret_file` checks owner and permissions of the file, `varta_vlp::secure` parses the key.

use std::path::{Path, PathBuf};
use std::{error, fmt};

use varta_sys::secret_file::{self, SecretFileError};
use varta_vlp::secure::{Key, KeyTextError};

/// A thousand keys. A longer file is no key file, and must not fill the memory.
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

/// Why no key could be read from a file.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It does not exist, or is unfit to hold a secret.
    Unreadable(SecretFileError),
    /// A line in it is not a key.
    NotAKey {
        /// The file.
        path: PathBuf,
        /// The line, and its error.
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
        /// Number of keys.
        keys: usize,
    },
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::NotAKey { path, error } => write!(
                f,
                "{}: {error}; write those, or 32 raw bytes and nothing else",
                path.display()
            ),
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
            // Part of the text.
            Self::NotAKey { .. } | Self::Empty { .. } | Self::Several { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    /// The result of reading a file with this content, and the file's name.
    fn read(content: &[u8]) -> (Result<Key, KeyFileError>, String) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        secret_file::create(&path, content).expect("a file");
        (key_from_file(&path), path.display().to_string())
    }

    #[test]
    fn one_key_is_found_however_it_is_written() {
        let raw: [u8; 32] = std::array::from_fn(|i| i as u8);
        let text = format!("# the key\n\n  {}\r\n", HEX.to_uppercase());
        for content in [HEX.as_bytes(), text.as_bytes(), &raw] {
            let key = read(content).0.expect("a key");
            assert_eq!(&*key.to_hex(), HEX.as_bytes());
        }
    }

    #[test]
    fn a_file_that_holds_no_single_key_is_named_with_what_is_wrong() {
        for (content, wrong) in [
            (
                "# later\n".to_owned(),
                "holds no key; it needs one line of 64 hexadecimal digits",
            ),
            (
                format!("{HEX}\n{HEX}\n{HEX}\n"),
                "holds 3 keys where one is wanted",
            ),
            (
                format!("# one\n{HEX}\nabc\n"),
                "line 3: 3 characters where a key has 64 hexadecimal digits; write those, or 32 raw \
                 bytes and nothing else",
            ),
        ] {
            let (result, path) = read(content.as_bytes());
            let error = result.expect_err("no single key");
            assert_eq!(error.to_string(), format!("{path}: {wrong}"));
        }
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_no_key_file_at_all_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        secret_file::create(&path, HEX.as_bytes()).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("an own file");
        let error = key_from_file(&path).expect_err("the group may read it");
        assert!(matches!(
            error,
            KeyFileError::Unreadable(SecretFileError::Mode { .. })
        ));

        let (result, _) = read(&[b'\n'; MOST_BYTES + 1]);
        let error = result.expect_err("too long");
        assert!(matches!(
            error,
            KeyFileError::Unreadable(SecretFileError::TooLong { .. })
        ));
    }
}
