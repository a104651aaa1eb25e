//! The token that requests over TCP must present: read from a file, and read again on each reload.
//!
//! [`varta_sys::secret_file`] decides the owner and the permissions of the file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use subtle::ConstantTimeEq;
use varta_sys::secret_file::{self, SecretFileError};
use varta_sys::undumped::Undumped;
use zeroize::Zeroizing;

/// Shorter ones could be guessed: at the 20 tries per second that are answered, 16 hexadecimal digits take longer
/// than the age of the universe.
const BYTES_MIN: usize = 16;

/// A quarter of the limit for the head of a request.
const BYTES_MAX: usize = 4096;

/// Room for a token and white space around it.
const FILE_BYTES_MAX: usize = 2 * BYTES_MAX;

const FLAG: &str = "--http-token-file";

/// Why a token file cannot be used. The text names the flag, the file and the fix.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum TokenError {
    Unreadable(SecretFileError),
    Length(PathBuf, usize),
    NotSendable(PathBuf),
    NoPlace(io::Error),
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) if is_missing(error) => write!(
                f,
                "{FLAG}: {error}; check the path, or make a file there: 'openssl rand -hex 32 | install -m 600 \
                 /dev/stdin PATH'"
            ),
            Self::Unreadable(error) => write!(f, "{FLAG}: {error}"),
            Self::Length(path, bytes) => write!(
                f,
                "{FLAG}: {}: the token is {bytes} bytes long; write one of {BYTES_MIN} to {BYTES_MAX}, such as \
                 'openssl rand -hex 32' makes",
                path.display()
            ),
            Self::NotSendable(path) => write!(
                f,
                "{FLAG}: {}: the token has white space or other characters in it that a request cannot carry; \
                 write letters and digits",
                path.display()
            ),
            Self::NoPlace(error) => write!(
                f,
                "{FLAG}: no memory for a token that core dumps leave out: {error}"
            ),
        }
    }
}

fn is_missing(error: &SecretFileError) -> bool {
    matches!(error, SecretFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

impl std::error::Error for TokenError {}

/// A secret whose comparison does not reveal how much of a guess was right. No core dump contains it.
pub(crate) struct Token {
    /// The content of the file; the rest is zero.
    content: Undumped<Zeroizing<[u8; FILE_BYTES_MAX]>>,
    length: usize,
}

impl Token {
    /// Reads a token file; white space around the token is ignored.
    pub(crate) fn read(path: &Path) -> Result<Self, TokenError> {
        let content = secret_file::read(path, FILE_BYTES_MAX).map_err(TokenError::Unreadable)?;
        let mut token = Self {
            content: Undumped::new(Zeroizing::new([0; FILE_BYTES_MAX]))
                .map_err(TokenError::NoPlace)?,
            length: content.len(),
        };
        token.content[..content.len()].copy_from_slice(&content);
        let bytes = token.bytes();
        if !(BYTES_MIN..=BYTES_MAX).contains(&bytes.len()) {
            return Err(TokenError::Length(path.to_owned(), bytes.len()));
        }
        if !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::NotSendable(path.to_owned()));
        }
        Ok(token)
    }

    fn bytes(&self) -> &[u8] {
        self.content[..self.length].trim_ascii()
    }

    /// Takes as long for any guess of the right length.
    fn is(&self, guess: &[u8]) -> bool {
        self.bytes().ct_eq(guess).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The token in force and the file it comes from.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    current: RwLock<Token>,
}

impl TokenFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TokenError> {
        Ok(Self {
            path: path.to_owned(),
            current: RwLock::new(Token::read(path)?),
        })
    }

    /// The content of the file now; nothing changes yet.
    pub(crate) fn read(&self) -> Result<Token, TokenError> {
        Token::read(&self.path)
    }

    /// Replaces the token in force.
    pub(crate) fn replace(&self, token: Token) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Whether a guess is the token in force.
    pub(crate) fn is(&self, guess: &[u8]) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.is(guess)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_token_is_what_is_in_the_file_without_the_white_space_around_it() {
        let (_directory, path) = file(b"\n 0123456789abcdef\r\n");
        let token = TokenFile::open(&path).unwrap();
        assert!(token.is(b"0123456789abcdef"));
        for guess in [&b"0123456789abcdeF"[..], b"0123456789abcde", b"", b"\n"] {
            assert!(!token.is(guess));
        }
    }

    #[test]
    fn any_length_from_16_to_4096_will_do() {
        for length in [16, 4096] {
            let (_directory, path) = file(&vec![b'x'; length]);
            assert!(Token::read(&path).is_ok());
        }
        for length in [0, 15, 4097, FILE_BYTES_MAX + 1] {
            let (_directory, path) = file(&vec![b'x'; length]);
            let error = Token::read(&path).unwrap_err().to_string();
            assert!(error.contains(FLAG) && error.contains("token"), "{error}");
        }
    }

    #[test]
    fn a_token_that_no_request_can_carry_is_an_error_that_does_not_tell_it() {
        for content in [
            &b"0123456789abcdef ghi"[..],
            b"0123456789abcdef\0",
            b"0123456789abcde\xff",
        ] {
            let (_directory, path) = file(content);
            let error = Token::read(&path).unwrap_err().to_string();
            assert!(error.contains("cannot carry"), "{error}");
            assert!(!error.contains("0123"), "{error}");
        }
    }

    #[test]
    fn a_token_file_that_is_missing_is_told_with_the_way_to_make_one() {
        let (_directory, path) = file(b"0123456789abcdef");
        std::fs::remove_file(&path).unwrap();
        let error = Token::read(&path).unwrap_err().to_string();
        assert!(error.contains(FLAG), "{error}");
        assert!(error.contains("openssl rand -hex 32"), "{error}");
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let (_directory, path) = file(b"0123456789abcdef");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Token::read(&path).unwrap_err().to_string();
        assert!(error.contains(FLAG), "{error}");
    }

    #[test]
    fn a_new_token_replaces_the_old_one_at_once() {
        let (_directory, path) = file(b"0123456789abcdef");
        let token = TokenFile::open(&path).unwrap();
        std::fs::write(&path, b"fedcba9876543210").unwrap();
        let new = token.read().unwrap();
        assert!(token.is(b"0123456789abcdef"));
        token.replace(new);
        assert!(token.is(b"fedcba9876543210") && !token.is(b"0123456789abcdef"));
    }
}
