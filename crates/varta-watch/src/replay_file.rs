//! The file in which the record of received encrypted datagrams outlives the observer.
//!
//! Without it a capture could be replayed to an observer that was restarted. The file is mapped, so the beat path
//! writes to it by storing words, and what was stored remains after `kill -9`. It belongs on a tmpfs: on another file
//! system a store may wait for the disk (law 4), and a process that truncates the file ends the observer. Each start
//! reads the old file as a whole and replaces it with a new one by one rename, so a file is never half written.
//!
//! One observer at a time may use a file. A file of another format is left alone.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use rustix::fs::{FlockOperation, OFlags, flock, fstatfs};
use rustix::io::Errno;
use varta_core::replay::{ReplayError, ReplayGuard, ReplayOptions};
use varta_sys::map::SharedWords;

use crate::own_file::{self, OwnFileError};

/// Suffix of the file that will replace the current one.
const NEXT_SUFFIX: &str = ".next";

/// The file system that is memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Larger than any replay file can be.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The words of the file, locked against other observers.
#[derive(Debug)]
pub(crate) struct ReplayWords {
    words: SharedWords,
    locked: File,
}

impl ReplayWords {
    /// The file is on a tmpfs, so that a store never waits for a disk.
    fn is_in_memory(&self) -> bool {
        fstatfs(&self.locked).is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC)
    }
}

impl AsRef<[AtomicU64]> for ReplayWords {
    fn as_ref(&self) -> &[AtomicU64] {
        self.words.as_ref()
    }
}

/// The replay memory, and its origin.
pub(crate) struct Opened {
    pub(crate) guard: ReplayGuard<ReplayWords>,
    /// There was no file: what was received before is unknown.
    pub(crate) is_new: bool,
    /// It is on a tmpfs.
    pub(crate) is_in_memory: bool,
}

/// A replay file that cannot be used. The text names the flag, the file and the fix.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum ReplayFileError {
    Io(PathBuf, &'static str, io::Error),
    InUse(PathBuf),
    NotOurs(PathBuf, String),
    Content(PathBuf, ReplayError),
}

impl fmt::Display for ReplayFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(path, what, error) => write!(
                f,
                "cannot {what} the replay file {}: {error}; say where it may be with --replay-file",
                path.display()
            ),
            Self::InUse(path) => write!(
                f,
                "another observer uses the replay file {}; give this one its own with --replay-file",
                path.display()
            ),
            Self::NotOurs(path, why) => write!(
                f,
                "the replay file {} cannot be used: {why}; move it away, or name another with --replay-file",
                path.display()
            ),
            Self::Content(path, error) => write!(f, "the replay file {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for ReplayFileError {}

/// Takes over the file at `path`, or creates it. `options.seed` is for a new one. Time starts with the observer:
/// `now_ns`.
pub(crate) fn open(
    path: &Path,
    options: ReplayOptions,
    now_ns: u64,
) -> Result<Opened, ReplayFileError> {
    // Locked first, so that of two observers that start at once one fails here.
    let next = Next::hold(path)?;
    let old = read_old(path)?;
    let content = |error| ReplayFileError::Content(path.to_owned(), error);
    let seed = match &old {
        Some(old) => ReplayGuard::seed_of(&old.words).map_err(content)?,
        None => options.seed,
    };
    let options = ReplayOptions { seed, ..options };
    let words = next.map(ReplayGuard::words_needed(options))?;
    let is_in_memory = words.is_in_memory();
    let mut guard = ReplayGuard::new(words, options).map_err(content)?;
    if let Some(old) = &old {
        guard.restore(&old.words, now_ns).map_err(content)?;
    }
    next.take_its_place()?;
    Ok(Opened {
        guard,
        is_new: old.is_none(),
        is_in_memory,
    })
}

/// The file of an earlier observer. Its lock is held until the new file has replaced it.
struct Old {
    words: Vec<u64>,
    _locked: File,
}

fn read_old(path: &Path) -> Result<Option<Old>, ReplayFileError> {
    let failed = |error| ReplayFileError::Io(path.to_owned(), "read", error);
    let not_ours = |why: &str| Err(ReplayFileError::NotOurs(path.to_owned(), why.to_owned()));
    let mut file = match own_file::open(path, OFlags::RDONLY, 0) {
        Ok(file) => file,
        Err(OwnFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(path, "read", error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.permissions().mode() & 0o022 != 0 {
        return not_ours("it may be written by others");
    }
    if metadata.len() > FILE_BYTES_MAX {
        return not_ours("it is too large for one");
    }
    lock(&file, path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(failed)?;
    let (words, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return not_ours("it is no replay file");
    }
    Ok(Some(Old {
        words: words.iter().map(|word| u64::from_ne_bytes(*word)).collect(),
        _locked: file,
    }))
}

/// The file that will replace the old one. It is removed with the value if it does not.
struct Next<'a> {
    path: &'a Path,
    next_path: PathBuf,
    file: File,
}

impl<'a> Next<'a> {
    /// Creates it and locks it. The leftover of a start that was killed is removed first: it may have other names, or
    /// have been opened while other users could write to it.
    fn hold(path: &'a Path) -> Result<Self, ReplayFileError> {
        let next_path = next_to(path);
        let create = || own_file::open(&next_path, CREATE_NEW, 0o600);
        let created = match create() {
            Err(OwnFileError::Io(error)) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove_leftover(path, &next_path)?;
                create()
            }
            created => created,
        };
        let file = created.map_err(|error| refused(&next_path, "create", error))?;
        lock(&file, path)?;
        // Another start may have removed it as a leftover before it was locked.
        if !is_at(&file, &next_path) {
            return Err(ReplayFileError::InUse(path.to_owned()));
        }
        Ok(Self {
            path,
            next_path,
            file,
        })
    }

    /// Extends it by this many words, all zero. They are written rather than left as a hole: a full disk is an error
    /// now and not a fault later.
    fn map(&self, words: usize) -> Result<ReplayWords, ReplayFileError> {
        let failed = |what| move |error| ReplayFileError::Io(self.path.to_owned(), what, error);
        let bytes = 8 * words as u64;
        self.file
            .set_len(0)
            .and_then(|()| io::copy(&mut io::repeat(0).take(bytes), &mut &self.file))
            .map_err(failed("make room for"))?;
        Ok(ReplayWords {
            words: SharedWords::map(&self.file, words).map_err(failed("map"))?,
            locked: self.file.try_clone().map_err(failed("keep"))?,
        })
    }

    /// Synced to the disk before it replaces the old one: a power cut leaves one of the two.
    fn take_its_place(self) -> Result<(), ReplayFileError> {
        let failed = |error| ReplayFileError::Io(self.path.to_owned(), "replace", error);
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.next_path, self.path).map_err(failed)
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        // It has this name no more if it has replaced the old one.
        let _ = fs::remove_file(&self.next_path);
    }
}

/// A file that did not exist before.
const CREATE_NEW: OFlags = OFlags::RDWR.union(OFlags::CREATE).union(OFlags::EXCL);

/// Removes the name of the leftover of a start that was killed. No other process uses it then.
fn remove_leftover(path: &Path, next_path: &Path) -> Result<(), ReplayFileError> {
    let failed = |error| ReplayFileError::Io(next_path.to_owned(), "replace", error);
    let leftover = match own_file::open(next_path, OFlags::RDONLY, 0) {
        // It may have further names: this one is removed, and its content stays as it is.
        Err(OwnFileError::Names(_)) => return fs::remove_file(next_path).map_err(failed),
        Err(OwnFileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|error| refused(next_path, "replace", error))?,
    };
    lock(&leftover, path)?;
    match is_at(&leftover, next_path) {
        true => fs::remove_file(next_path).map_err(failed),
        false => Err(ReplayFileError::InUse(path.to_owned())),
    }
}

/// Whether an open file still has this name.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(opened), Ok(named)) => id(opened) == id(named),
        _ => false,
    }
}

fn refused(path: &Path, what: &'static str, error: OwnFileError) -> ReplayFileError {
    match error {
        OwnFileError::Io(error) => ReplayFileError::Io(path.to_owned(), what, error),
        error => ReplayFileError::NotOurs(path.to_owned(), error.to_string()),
    }
}

fn lock(file: &File, path: &Path) -> Result<(), ReplayFileError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(ReplayFileError::InUse(path.to_owned())),
        Err(errno) => Err(ReplayFileError::Io(path.to_owned(), "lock", errno.into())),
    }
}

fn next_to(path: &Path) -> PathBuf {
    let mut next = path.as_os_str().to_owned();
    next.push(NEXT_SUFFIX);
    PathBuf::from(next)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use varta_core::replay::{Arrival, Heard, ReplayRefusal, SessionKey};

    use super::*;

    const OPTIONS: ReplayOptions = ReplayOptions {
        sessions: 16,
        closed: 16,
        seed: 7,
    };

    /// Threshold of all agents.
    const T: u64 = 1_000_000_000;

    fn arrival(counter: u32) -> Arrival {
        Arrival {
            session: SessionKey {
                key: 1,
                pid: 0,
                prefix: [3; 8],
            },
            counter,
            source: 5,
            pid: 42,
            is_terminal: false,
            continues: false,
        }
    }

    /// Opens a file that an observer had a moment ago. Its lock lasts until every process that another test has
    /// forked meanwhile runs its program.
    fn open_next(path: &Path, options: ReplayOptions) -> Opened {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            match open(path, options, 0) {
                Err(ReplayFileError::InUse(_)) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn error_of(path: &Path) -> String {
        let error = open(path, OPTIONS, 0).err().expect("an error").to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        error
    }

    #[test]
    fn what_was_heard_is_known_to_the_next_observer_whatever_its_seed_and_size() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        let mut first = open(&path, OPTIONS, 0).unwrap();
        assert!(first.is_new);
        assert_eq!(first.guard.admit(&arrival(5), T, 0), Ok(Heard::First));
        drop(first);
        let options = ReplayOptions {
            sessions: 64,
            closed: 8,
            seed: 99,
        };
        let mut second = open_next(&path, options);
        assert!(!second.is_new);
        assert_eq!(second.guard.seed(), 7);
        let refused = Err(ReplayRefusal::Seen);
        assert_eq!(second.guard.admit(&arrival(5), T, 0), refused);
        assert_eq!(second.guard.admit(&arrival(6), T, 0), Ok(Heard::Newest));
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(!next_to(&path).exists());
    }

    #[test]
    fn a_file_in_use_is_not_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        let mut first = open(&path, OPTIONS, 0).unwrap();
        first.guard.admit(&arrival(1), T, 0).unwrap();
        assert!(error_of(&path).contains("another observer"));
        drop(first);
        let mut second = open_next(&path, OPTIONS);
        assert!(second.guard.admit(&arrival(1), T, 0).is_err());
    }

    #[test]
    fn of_two_that_start_at_once_one_has_the_file_and_the_other_gives_up() {
        for _ in 0..20 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("replay");
            let start = || open(&path, OPTIONS, 0).ok();
            let mut opened = std::thread::scope(|scope| {
                let both = [scope.spawn(start), scope.spawn(start)];
                both.map(|thread| thread.join().unwrap())
            });
            let first = opened.iter_mut().flatten().next().expect("one of the two");
            let guard = &mut first.guard;
            guard.admit(&arrival(1), T, 0).unwrap();
            assert_eq!(opened.iter().flatten().count(), 1);
            drop(opened);
            let mut next = open_next(&path, OPTIONS);
            assert!(next.guard.admit(&arrival(1), T, 0).is_err(), "remembered");
        }
    }

    #[test]
    fn a_start_that_fails_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        fs::write(&path, b"a letter").unwrap();
        error_of(&path);
        assert!(!next_to(&path).exists());
    }

    #[test]
    fn what_is_not_ours_is_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        for (content, mode) in [
            (&b"a letter"[..], 0o600),
            (b"not even words", 0o600),
            (b"", 0o600),
            (b"12345678", 0o622),
        ] {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            error_of(&path);
            assert_eq!(fs::read(&path).unwrap(), content);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(error_of(&path).contains("not a regular file"));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        error_of(&link);
    }

    #[test]
    fn what_a_killed_start_has_left_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        fs::write(next_to(&path), b"half").unwrap();
        assert!(open(&path, OPTIONS, 0).is_ok());
    }

    #[test]
    fn the_successor_is_a_new_file_whatever_has_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        let precious = directory.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        let wide = directory.path().join("wide");
        fs::write(&wide, "half").unwrap();
        fs::set_permissions(&wide, fs::Permissions::from_mode(0o666)).unwrap();
        // A user that opened it while it could would be able to truncate it.
        let held = File::options().write(true).open(&wide).unwrap();
        for leftover in [&precious, &wide] {
            fs::hard_link(leftover, next_to(&path)).unwrap();
            if leftover == &wide {
                fs::remove_file(&wide).unwrap();
            }
            let opened = open_next(&path, OPTIONS);
            drop(opened);
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.nlink(), metadata.mode() & 0o7777), (1, 0o600));
        }
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        held.set_len(0).unwrap();
        assert_ne!(fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn a_link_in_place_of_the_successor_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("replay");
        let victim = directory.path().join("victim");
        std::os::unix::fs::symlink(&victim, next_to(&path)).unwrap();
        assert!(error_of(&path).contains("it is a symbolic link"));
        assert!(!victim.exists());
    }

    #[test]
    fn a_place_that_does_not_exist_is_named() {
        let error = error_of(Path::new("/nowhere/at/all"));
        assert!(error.contains("--replay-file"), "{error}");
    }
}
