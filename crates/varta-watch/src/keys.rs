//! The keys that the observer accepts: read from files, at the start and again on each reload.
//!
//! All files are read before anything changes, so a reload is complete or has no effect. [`varta_sys::secret_file`]
//! decides the form and the owner of the files; [`varta_vlp::secure`] decides the meaning of their content.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use varta_sys::secret_file::{self, SecretFileError};
use varta_sys::undumped::Undumped;
use varta_vlp::secure::{Key, KeyTextError};

use crate::settings::network::KeyFiles;

/// Most keys in use at the same time. Every datagram is tried with each of them, at about 0.4 us a trial, and
/// rotation needs two.
const SHARED_KEYS_MAX: usize = 16;

/// Size of a key file with this many keys, each with a long comment.
const FILE_BYTES_MAX: usize = 64 * 1024;

/// A key, and its number.
#[derive(Debug)]
pub(crate) struct NamedKey {
    pub(crate) key: Undumped<Key>,
    pub(crate) id: u64,
}

/// The keys in force. Each has a single location, which no core dump contains, from the moment it was read, so that
/// no copy of a key remains when the ring changes its owner.
#[derive(Debug)]
pub(crate) struct KeyRing {
    /// In the order in which they are tried.
    pub(crate) shared: Vec<NamedKey>,
    pub(crate) master: Option<NamedKey>,
}

/// A key file that cannot be used. The text names the flag, the file and the fix.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum KeyFileError {
    Unreadable(&'static str, SecretFileError),
    NotAKey(&'static str, PathBuf, KeyTextError),
    NoPlace(&'static str, io::Error),
    NotOneKey(&'static str, PathBuf, usize),
    TooMany(PathBuf, usize),
    None(PathBuf),
}

const KEY_FILE: &str = "--key-file";
const ACCEPTED_KEY_FILE: &str = "--accepted-key-file";
const MASTER_KEY_FILE: &str = "--master-key-file";

/// All reasons why the files cannot be used.
pub(crate) fn problems(files: &KeyFiles) -> Vec<KeyFileError> {
    let one = |flag, path: &Option<PathBuf>| only_key(flag, path.as_ref()?).err();
    let any = |flag, path: &Option<PathBuf>| keys(flag, path.as_ref()?).err();
    let each = [
        one(KEY_FILE, &files.shared),
        any(ACCEPTED_KEY_FILE, &files.accepted),
        one(MASTER_KEY_FILE, &files.master),
    ];
    let mut problems: Vec<KeyFileError> = each.into_iter().flatten().collect();
    // The limits across files are checked once each file is valid.
    if problems.is_empty() {
        problems.extend(KeyRing::read(files).err());
    }
    problems
}

impl KeyRing {
    /// Reads every file; the first that cannot be used is the error.
    pub(crate) fn read(files: &KeyFiles) -> Result<Self, KeyFileError> {
        let mut read = Vec::new();
        if let Some(path) = &files.shared {
            read.push(only_key(KEY_FILE, path)?);
        }
        if let Some(path) = &files.accepted {
            read.extend(keys(ACCEPTED_KEY_FILE, path)?);
        }
        let master = match &files.master {
            Some(path) => Some(only_key(MASTER_KEY_FILE, path)?),
            None => None,
        };
        // Only that file may hold no key, and only it may hold more than one.
        let accepted = || files.accepted.clone().unwrap_or_default();
        if read.is_empty() && master.is_none() {
            return Err(KeyFileError::None(accepted()));
        }
        let mut shared: Vec<NamedKey> = Vec::new();
        for named in read {
            // The same key in two files is one key.
            if !shared.iter().any(|known| known.id == named.id) {
                shared.push(named);
            }
        }
        if shared.len() > SHARED_KEYS_MAX {
            return Err(KeyFileError::TooMany(accepted(), shared.len()));
        }
        Ok(Self {
            shared,
            master: master.map(|mut named| {
                // The same bytes in another role are another key.
                named.id = !named.id;
                named
            }),
        })
    }
}

impl fmt::Display for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = match self.shared.len() {
            0 => None,
            1 => Some("1 shared key".to_owned()),
            count => Some(format!("{count} shared keys")),
        };
        let master = self.master.as_ref().map(|_| "a master key".to_owned());
        let all: Vec<String> = shared.into_iter().chain(master).collect();
        f.write_str(&all.join(" and "))
    }
}

fn only_key(flag: &'static str, path: &Path) -> Result<NamedKey, KeyFileError> {
    let mut keys = keys(flag, path)?;
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (last, others) => {
            let count = others + usize::from(last.is_some());
            Err(KeyFileError::NotOneKey(flag, path.to_owned(), count))
        }
    }
}

fn keys(flag: &'static str, path: &Path) -> Result<Vec<NamedKey>, KeyFileError> {
    let content = secret_file::read(path, FILE_BYTES_MAX)
        .map_err(|error| KeyFileError::Unreadable(flag, error))?;
    let mut keys = Vec::new();
    let mut keep = |key: Key| {
        let id = key.fingerprint().0;
        keys.push(Undumped::new(key).map(|key| NamedKey { key, id }));
    };
    Key::each_in(&content, &mut keep)
        .map_err(|error| KeyFileError::NotAKey(flag, path.to_owned(), error))?;
    let keys: io::Result<_> = keys.into_iter().collect();
    keys.map_err(|error| KeyFileError::NoPlace(flag, error))
}

impl fmt::Display for KeyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(flag, error) => write!(f, "{flag}: {error}"),
            Self::NotAKey(flag, path, error) => write!(
                f,
                "{flag}: {}: {error}; write one key per line, 64 hexadecimal digits, or 32 raw bytes and \
                 nothing else ('varta key new' makes one)",
                path.display()
            ),
            Self::NoPlace(flag, error) => write!(
                f,
                "{flag}: no memory for a key that core dumps leave out: {error}"
            ),
            Self::NotOneKey(flag, path, 0) => write!(
                f,
                "{flag}: {}: holds no key ('varta key new' makes one)",
                path.display()
            ),
            Self::NotOneKey(flag, path, count) => write!(
                f,
                "{flag}: {}: holds {count} keys where one is wanted; further ones belong into an \
                 {ACCEPTED_KEY_FILE}",
                path.display()
            ),
            Self::TooMany(path, count) => write!(
                f,
                "{ACCEPTED_KEY_FILE}: {}: {count} shared keys, and {SHARED_KEYS_MAX} is the most, since \
                 every datagram is tried with each; take out those that no agent uses any more",
                path.display()
            ),
            Self::None(path) => write!(
                f,
                "{ACCEPTED_KEY_FILE}: {}: holds no key, and there is no other key file",
                path.display()
            ),
        }
    }
}

impl std::error::Error for KeyFileError {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Option<PathBuf> {
            let path = self.0.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            Some(path)
        }
    }

    fn error_of(files: &KeyFiles) -> String {
        KeyRing::read(files).unwrap_err().to_string()
    }

    #[test]
    fn keys_are_tried_in_the_order_of_the_files_and_each_once() {
        let files = Files::new();
        let keys = KeyFiles {
            shared: files.write("shared", hex(1)),
            accepted: files.write("accepted", format!("{}\n{}\n{}\n", hex(2), hex(1), hex(3))),
            master: files.write("master", hex(1)),
        };
        let ring = KeyRing::read(&keys).unwrap();
        let hexes = ring.shared.iter().map(|named| named.key.to_hex());
        let hexes: Vec<_> = hexes
            .map(|hex| String::from_utf8_lossy(&*hex).into_owned())
            .collect();
        assert_eq!(hexes, [hex(1), hex(2), hex(3)]);
        assert_ne!(ring.master.as_ref().unwrap().id, ring.shared[0].id);
        assert_eq!(ring.to_string(), "3 shared keys and a master key");
    }

    #[test]
    fn accepted_keys_are_enough() {
        let files = Files::new();
        let accepted = files.write("accepted", [7; 32]);
        let keys = KeyFiles {
            accepted,
            ..KeyFiles::default()
        };
        assert_eq!(KeyRing::read(&keys).unwrap().shared.len(), 1);
    }

    #[test]
    fn a_file_for_one_key_holds_one() {
        let files = Files::new();
        for (content, words) in [
            (String::new(), "holds no key"),
            (format!("{}\n{}", hex(1), hex(2)), "holds 2 keys"),
            ("# only a comment".to_owned(), "holds no key"),
        ] {
            let path = files.write("key", content);
            let shared = KeyFiles {
                shared: path.clone(),
                ..KeyFiles::default()
            };
            let master = KeyFiles {
                master: path,
                ..KeyFiles::default()
            };
            for (keys, flag) in [(shared, KEY_FILE), (master, MASTER_KEY_FILE)] {
                let error = error_of(&keys);
                assert!(error.contains(words) && error.contains(flag), "{error}");
            }
        }
    }

    #[test]
    fn no_key_at_all_and_too_many_are_errors() {
        let files = Files::new();
        let with = |accepted| KeyFiles {
            accepted,
            ..KeyFiles::default()
        };
        assert!(error_of(&with(files.write("none", "\n"))).contains("holds no key"));
        let many: Vec<String> = (0..=SHARED_KEYS_MAX).map(|byte| hex(byte as u8)).collect();
        let error = error_of(&with(files.write("many", many.join("\n"))));
        assert!(error.contains("17 shared keys"), "{error}");
    }

    #[test]
    fn a_check_names_every_file_that_cannot_be_used() {
        let files = Files::new();
        let missing = || Some(files.0.path().join("missing"));
        let all = KeyFiles {
            shared: missing(),
            accepted: missing(),
            master: missing(),
        };
        let problems: Vec<String> = super::problems(&all)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
        for (problem, flag) in problems
            .iter()
            .zip([KEY_FILE, ACCEPTED_KEY_FILE, MASTER_KEY_FILE])
        {
            assert!(problem.starts_with(flag), "{problem}");
        }
        let accepted = files.write("none", "\n");
        let alone = KeyFiles {
            accepted: accepted.clone(),
            ..KeyFiles::default()
        };
        assert_eq!(super::problems(&alone).len(), 1);
        let with_another = KeyFiles {
            shared: files.write("key", hex(1)),
            accepted,
            ..KeyFiles::default()
        };
        assert!(super::problems(&with_another).is_empty());
    }

    #[test]
    fn an_unusable_file_is_named_with_its_flag() {
        let files = Files::new();
        let shared = Some(files.0.path().join("missing"));
        let error = error_of(&KeyFiles {
            shared,
            ..KeyFiles::default()
        });
        assert!(
            error.contains("--key-file") && error.contains("missing"),
            "{error}"
        );
        let shared = files.write("text", format!("# a key\n{}x\n", hex(1)));
        let error = error_of(&KeyFiles {
            shared,
            ..KeyFiles::default()
        });
        assert!(error.contains("line 2: 65 characters"), "{error}");
        assert!(!error.contains(&hex(1)), "{error}");
    }
}
