//! Opens the files that the observer writes: evidence, and state that must outlive the observer.
//!
//! A path can lead anywhere: a user that may write to its directory can put a link, a FIFO or a file of its own
//! there. So a file is used only if it is a regular file of this user, under one name, and if the path to it contains
//! no link that another user could have made. The caller validates the content.

use std::fmt;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use varta_sys::secret_file::{self, SecretFileError};
use varta_sys::users;

/// Why a file is not used. The text follows the name of the file.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum OwnFileError {
    /// The system refused.
    Io(io::Error),
    /// Another user could have changed a link on the way to it.
    Way(SecretFileError),
    /// There is a symbolic link.
    Link,
    /// Not a regular file.
    Kind(&'static str),
    /// It belongs to this user.
    Owner(u32),
    /// It has this many names (hard links).
    Names(u64),
}

impl fmt::Display for OwnFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Way(error) => write!(f, "its directory {error}"),
            Self::Link => f.write_str("it is a symbolic link"),
            Self::Kind(kind) => write!(f, "it is {kind}, not a regular file"),
            Self::Owner(uid) => write!(
                f,
                "it belongs to {}, not to uid {}",
                users::shown_uid(*uid),
                users::effective_uid()
            ),
            Self::Names(names) => write!(f, "it has {names} names (hard links)"),
        }
    }
}

impl std::error::Error for OwnFileError {}

/// Opens a file of this user's; `mode` is for one that is created, less the umask.
///
/// Never waits for the other end of a FIFO.
pub(crate) fn open(path: &Path, flags: OFlags, mode: u32) -> Result<File, OwnFileError> {
    let Some(name) = path.file_name() else {
        return Err(OwnFileError::Kind("a directory"));
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let place = secret_file::follow(directory).map_err(|error| match error {
        SecretFileError::Io { source, .. } => OwnFileError::Io(source),
        error => OwnFileError::Way(error),
    })?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open_without_links(&place.join(name), flags, Mode::from_bits_truncate(mode));
    let file = File::from(file.map_err(|errno| match errno {
        Errno::LOOP => OwnFileError::Link,
        errno => OwnFileError::Io(errno.into()),
    })?);
    judge(&file)?;
    Ok(file)
}

/// The path was checked; no link may have appeared in it since.
fn open_without_links(
    place: &Path,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<std::os::fd::OwnedFd> {
    match openat2(CWD, place, flags, mode, ResolveFlags::NO_SYMLINKS) {
        // A sandbox may not support the call. The last part of the path is not followed in either case.
        Err(Errno::NOSYS | Errno::PERM) => openat(CWD, place, flags, mode),
        opened => opened,
    }
}

fn judge(file: &File) -> Result<(), OwnFileError> {
    let metadata = file.metadata().map_err(OwnFileError::Io)?;
    if !metadata.is_file() {
        return Err(OwnFileError::Kind(secret_file::kind(&metadata)));
    }
    let is_own = metadata.uid() == users::effective_uid();
    if !is_own || users::unmapped_uid() == Some(metadata.uid()) {
        return Err(OwnFileError::Owner(metadata.uid()));
    }
    match metadata.nlink() {
        1 => Ok(()),
        names => Err(OwnFileError::Names(names)),
    }
}

/// Removes all permissions from a file but those in `mode`. Returns the former ones if there were more.
pub(crate) fn narrow(file: &File, mode: u32) -> io::Result<Option<u32>> {
    let had = file.metadata()?.permissions().mode() & 0o7777;
    if had & !mode == 0 {
        return Ok(None);
    }
    file.set_permissions(Permissions::from_mode(had & mode))?;
    Ok(Some(had))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{lchown, symlink};
    use std::path::PathBuf;

    use super::*;

    const FLAGS: OFlags = OFlags::RDWR.union(OFlags::CREATE);

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        (directory, path)
    }

    fn error_of(path: &Path) -> String {
        open(path, FLAGS, 0o600).unwrap_err().to_string()
    }

    fn is_root() -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            println!("skipped: only root can give a file away");
        }
        is_root
    }

    #[test]
    fn a_file_of_ours_is_created_and_opened_again() {
        let (_directory, path) = place();
        for _ in 0..2 {
            let file = open(&path, FLAGS, 0o640).unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o7777 & !0o640, 0);
        }
    }

    #[test]
    fn no_link_is_followed_and_none_of_its_targets_touched() {
        let (directory, path) = place();
        let victim = directory.path().join("victim");
        symlink(&victim, &path).unwrap();
        assert_eq!(error_of(&path), "it is a symbolic link");
        assert!(!victim.exists(), "created through the link");
        fs::write(&victim, "precious").unwrap();
        assert_eq!(error_of(&path), "it is a symbolic link");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&victim, &path).unwrap();
        assert_eq!(error_of(&path), "it has 2 names (hard links)");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let (directory, path) = place();
        assert!(error_of(directory.path()).contains("directory"));
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        assert_eq!(error_of(&path), "it is a FIFO, not a regular file");
        assert!(error_of(Path::new("/dev/null")).contains("a character device"));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        if !is_root() {
            return;
        }
        let (_directory, path) = place();
        fs::write(&path, "").unwrap();
        lchown(&path, Some(4711), None).unwrap();
        assert!(error_of(&path).contains("belongs to uid 4711"));
    }

    #[test]
    fn a_linked_directory_is_entered_only_if_no_other_user_could_have_linked_it() {
        let (directory, _) = place();
        let (real, linked) = (
            directory.path().join("real"),
            directory.path().join("linked"),
        );
        fs::create_dir(&real).unwrap();
        symlink(&real, &linked).unwrap();
        open(&linked.join("file"), FLAGS, 0o600).unwrap();
        if !is_root() {
            return;
        }
        lchown(&linked, Some(4711), None).unwrap();
        let error = error_of(&linked.join("other"));
        assert!(error.contains("linked belongs to uid 4711"), "{error}");
        assert!(!real.join("other").exists());
    }

    #[test]
    fn permissions_are_taken_and_never_given() {
        let (_directory, path) = place();
        let file = open(&path, FLAGS, 0o600).unwrap();
        for (before, told, after) in [
            (0o600, None, 0o600),
            (0o640, None, 0o640),
            (0o666, Some(0o666), 0o640),
            (0o4755, Some(0o4755), 0o640),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            assert_eq!(narrow(&file, 0o640).unwrap(), told);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, after);
        }
    }
}
