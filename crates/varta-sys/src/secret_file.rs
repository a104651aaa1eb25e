//! Reading and writing files that hold a secret, by the same rules everywhere.
//!
//! A file is read only if it is a regular file, belongs to root or to the effective user, and gives no
//! permission to group or others. These rules are checked on the open descriptor. The type of the file at the
//! path is checked before that, so no FIFO makes the caller wait and no device is opened.
//!
//! Symbolic links are followed, because secrets are handed to containers through chains of them (`key ->
//! ..data/key`, `..data -> ..2026_01`), but only where no other user could have changed one: then every link,
//! and every directory on the way from `/` or the current directory, must belong to root or the effective
//! user, and no such directory may be writable by group or others unless it is sticky. In such a directory no
//! other user can replace a file of root or the effective user, so the checked file is the opened one.
//!
//! Without links the directories are not checked: a user who can write to one of them can choose which of the
//! files that pass the rules is read, but cannot make one that passes.
//!
//! The bytes of a secret are in one buffer, which is never moved while it is filled and is wiped when
//! dropped. This module does not interpret the bytes.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use zeroize::Zeroizing;

use crate::users::{self, effective_uid};

/// Links that the kernel follows at most. More is a loop.
const MOST_LINKS: usize = 40;

const GROUP_AND_OTHERS: u32 = 0o077;
const WRITABLE_BY_GROUP_OR_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Fail if the last component has become a symbolic link.
const O_NOFOLLOW: i32 = if cfg!(not(any(target_os = "linux", target_os = "android"))) {
    0x100
} else if cfg!(any(
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "m68k",
    target_arch = "powerpc",
    target_arch = "powerpc64"
)) {
    0x8000
} else {
    0x2_0000
};

/// Do not wait for the other end of a FIFO.
const O_NONBLOCK: i32 = if cfg!(not(any(target_os = "linux", target_os = "android"))) {
    0x4
} else if cfg!(any(
    target_arch = "mips",
    target_arch = "mips32r6",
    target_arch = "mips64",
    target_arch = "mips64r6"
)) {
    0x80
} else if cfg!(any(target_arch = "sparc", target_arch = "sparc64")) {
    0x4000
} else {
    0x800
};

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_vendor = "apple",
    target_os = "dragonfly",
    target_os = "freebsd",
    target_os = "netbsd",
    target_os = "openbsd"
)))]
compile_error!("the numbers of O_NOFOLLOW and O_NONBLOCK of this system are not known");

/// Why a secret file was not read. The text names the path as it was given and how to mend it.
#[derive(Debug)]
#[non_exhaustive]
pub enum SecretFileError {
    /// The system refused, for example because there is no such file.
    Io {
        /// The path as it was given.
        path: PathBuf,
        /// The path at the time of the error, with its links resolved.
        at: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// More than 40 symbolic links.
    TooManyLinks {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A symbolic link belongs to another user.
    LinkOwner {
        /// The path as it was given.
        path: PathBuf,
        /// The link.
        link: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A symbolic link was followed, and a directory on the way belongs to another user.
    DirectoryOwner {
        /// The path as it was given.
        path: PathBuf,
        /// The first link.
        link: PathBuf,
        /// The directory.
        directory: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// A symbolic link was followed, and group or others may write to a directory on the way.
    DirectoryMode {
        /// The path as it was given.
        path: PathBuf,
        /// The first link.
        link: PathBuf,
        /// The directory.
        directory: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The path leads to something else than a regular file.
    NotRegular {
        /// The path as it was given.
        path: PathBuf,
        /// The type of what is there.
        kind: &'static str,
    },
    /// The file belongs to another user.
    Owner {
        /// The path as it was given.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Group or others have a permission.
    Mode {
        /// The path as it was given.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file is longer than the caller's limit.
    TooLong {
        /// The path as it was given.
        path: PathBuf,
        /// The caller's limit.
        max_bytes: usize,
    },
    /// The file was replaced or written to during the read.
    Changed {
        /// The path as it was given.
        path: PathBuf,
    },
}

impl fmt::Display for SecretFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own_uid = effective_uid();
        let whose = users::shown_uid;
        write!(f, "{}: ", self.path().display())?;
        match self {
            Self::Io { path, at, source } if path == at => write!(f, "{source}"),
            Self::Io { at, source, .. } => write!(f, "leads to {}: {source}", at.display()),
            Self::TooManyLinks { .. } => write!(
                f,
                "leads through more than {MOST_LINKS} symbolic links; remove the loop"
            ),
            Self::LinkOwner { link, uid, .. } => write!(
                f,
                "the symbolic link {} belongs to {}, not to root or uid {own_uid}; chown -h it",
                link.display(),
                whose(*uid)
            ),
            Self::DirectoryOwner {
                link,
                directory,
                uid,
                ..
            } => write!(
                f,
                "the symbolic link {} could have been changed by another user: directory {} \
                 belongs to {}, not to root or uid {own_uid}; chown it, or name the file \
                 without symbolic links",
                link.display(),
                directory.display(),
                whose(*uid)
            ),
            Self::DirectoryMode {
                link,
                directory,
                mode,
                ..
            } => write!(
                f,
                "the symbolic link {} could have been changed by another user: directory {} is \
                 writable by {} (mode {mode:04o}); chmod go-w it, or name the file without symbolic \
                 links",
                link.display(),
                directory.display(),
                if mode & 0o002 == 0 { "group" } else { "others" }
            ),
            Self::NotRegular { kind, .. } => write!(f, "is {kind}, not a regular file"),
            Self::Owner { uid, .. } => write!(
                f,
                "belongs to {}, not to root or uid {own_uid}; chown it",
                whose(*uid)
            ),
            Self::Mode { mode, .. } => write!(
                f,
                "group or others may {} it (mode {mode:04o}); chmod 600 it",
                match mode {
                    _ if mode & 0o044 != 0 => "read",
                    _ if mode & 0o022 != 0 => "write",
                    _ => "execute",
                }
            ),
            Self::TooLong { max_bytes, .. } => {
                write!(f, "is longer than {max_bytes} bytes; is it the right file?")
            }
            Self::Changed { .. } => f.write_str("was changed while it was read; try again"),
        }
    }
}

impl SecretFileError {
    fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::TooManyLinks { path }
            | Self::LinkOwner { path, .. }
            | Self::DirectoryOwner { path, .. }
            | Self::DirectoryMode { path, .. }
            | Self::NotRegular { path, .. }
            | Self::Owner { path, .. }
            | Self::Mode { path, .. }
            | Self::TooLong { path, .. }
            | Self::Changed { path } => path,
        }
    }
}

impl std::error::Error for SecretFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Reads a file that holds a secret of at most `max_bytes`, by the rules of this module.
///
/// Waits for the disk only. Do not append to the buffer: growing it would leave a copy behind that is not
/// wiped.
///
/// # Errors
///
/// The first rule that the file or the path to it violates.
pub fn read(path: &Path, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let (found, seen) = resolve(path)?;
    judge(path, &seen)?;
    let failed = |source| SecretFileError::Io {
        path: path.to_owned(),
        at: found.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(&found)
        .map_err(failed)?;
    let opened = file.metadata().map_err(failed)?;
    judge(path, &opened)?;
    let changed = || SecretFileError::Changed {
        path: path.to_owned(),
    };
    if (seen.dev(), seen.ino()) != (opened.dev(), opened.ino()) {
        return Err(changed());
    }
    let length = usize::try_from(opened.len())
        .ok()
        .filter(|&length| length <= max_bytes)
        .ok_or_else(|| SecretFileError::TooLong {
            path: path.to_owned(),
            max_bytes,
        })?;
    read_whole(file, length)
        .map_err(failed)?
        .ok_or_else(changed)
}

/// Writes a new file that holds a secret, and waits until it is on disk.
///
/// Only the owner can open it at any moment, with any umask. It is removed again if it could not be written.
/// A process that dies in between leaves an incomplete file behind.
///
/// # Errors
///
/// The error of the system; `AlreadyExists` if there is anything at the path, even a dangling link, which is
/// left unchanged.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    create_with(path, |file| file.write_all(content))
}

fn create_with(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // The umask can only have taken permissions away.
    let created = file
        .set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| write(&mut file))
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_directory_of(path));
    if created.is_err() {
        // The caller needs the error of the write, not that of the removal.
        let _ = fs::remove_file(path);
    }
    created
}

/// Waits until the name of a file is on disk, too.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Exactly `length` bytes, or `None` if there are fewer or more.
fn read_whole(mut file: impl Read, length: usize) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    // One byte more, to notice a file that has grown.
    let mut bytes = Zeroizing::new(vec![0; length + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if filled != length {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}

/// Whether the file may hold a secret.
fn judge(path: &Path, metadata: &Metadata) -> Result<(), SecretFileError> {
    let path = || path.to_owned();
    if !metadata.is_file() {
        let kind = kind(metadata);
        return Err(SecretFileError::NotRegular { path: path(), kind });
    }
    if !is_trusted(metadata.uid()) {
        let uid = metadata.uid();
        return Err(SecretFileError::Owner { path: path(), uid });
    }
    if metadata.mode() & GROUP_AND_OTHERS != 0 {
        let mode = permission_bits(metadata);
        return Err(SecretFileError::Mode { path: path(), mode });
    }
    Ok(())
}

/// The file type for an error text: `a directory`, `a FIFO`, ...
pub fn kind(metadata: &Metadata) -> &'static str {
    match metadata.file_type() {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() => "a block device",
        kind if kind.is_char_device() => "a character device",
        _ => "something unknown",
    }
}

fn is_trusted(uid: u32) -> bool {
    users::unmapped_uid() != Some(uid) && (uid == 0 || uid == effective_uid())
}

fn permission_bits(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// Resolves a path to one without links. Links are followed by the rules of this module: only where no other
/// user could have changed one.
///
/// # Errors
///
/// As [`read`] for the way; the file at its end is not checked.
pub fn follow(path: &Path) -> Result<PathBuf, SecretFileError> {
    resolve(path).map(|(found, _)| found)
}

/// Follows a path to its end, a file that is no link, and returns it with its type.
///
/// The components are examined one after the other. Each directory is checked before the metadata of its
/// entries are used.
fn resolve(path: &Path) -> Result<(PathBuf, Metadata), SecretFileError> {
    let mut way = Way::default();
    let mut at = start_of(path, Path::new("."));
    let mut rest: Vec<OsString> = names_last_first(path).collect();
    loop {
        let failed = |source| SecretFileError::Io {
            path: path.to_owned(),
            at: at.clone(),
            source,
        };
        let metadata = fs::symlink_metadata(&at).map_err(failed)?;
        if metadata.is_symlink() {
            way.follow(path, &at, &metadata)?;
            let target = fs::read_link(&at).map_err(failed)?;
            at.pop();
            at = start_of(&target, &at);
            rest.extend(names_last_first(&target));
        } else if let Some(name) = rest.pop() {
            way.enter(path, &at, &metadata)?;
            at.push(name);
        } else {
            return Ok((at, metadata));
        }
    }
}

/// The directory in which `path` starts.
fn start_of(path: &Path, current: &Path) -> PathBuf {
    if path.is_absolute() {
        "/".into()
    } else {
        current.into()
    }
}

/// The components that change the position. The kernel resolves `..`.
fn names_last_first(path: &Path) -> impl Iterator<Item = OsString> {
    path.components()
        .rev()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
}

/// What the way to a file has passed.
#[derive(Default)]
struct Way {
    links: usize,
    first_link: Option<PathBuf>,
    /// The first directory in which another user could have changed something.
    changeable: Option<(PathBuf, Metadata)>,
}

impl Way {
    fn follow(
        &mut self,
        path: &Path,
        link: &Path,
        metadata: &Metadata,
    ) -> Result<(), SecretFileError> {
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(SecretFileError::TooManyLinks {
                path: path.to_owned(),
            });
        }
        if !is_trusted(metadata.uid()) {
            return Err(SecretFileError::LinkOwner {
                path: path.to_owned(),
                link: link.to_owned(),
                uid: metadata.uid(),
            });
        }
        self.first_link.get_or_insert_with(|| link.to_owned());
        self.judge(path)
    }

    fn enter(
        &mut self,
        path: &Path,
        directory: &Path,
        metadata: &Metadata,
    ) -> Result<(), SecretFileError> {
        let mode = metadata.mode();
        let is_closed = mode & WRITABLE_BY_GROUP_OR_OTHERS == 0 || mode & STICKY != 0;
        if !(is_closed && is_trusted(metadata.uid())) && self.changeable.is_none() {
            self.changeable = Some((directory.to_owned(), metadata.clone()));
        }
        self.judge(path)
    }

    /// A link and a directory that another user can change are refused together, in either order.
    fn judge(&self, path: &Path) -> Result<(), SecretFileError> {
        let (Some(link), Some((directory, metadata))) = (&self.first_link, &self.changeable) else {
            return Ok(());
        };
        let (path, link, directory) = (path.to_owned(), link.clone(), directory.clone());
        if is_trusted(metadata.uid()) {
            let mode = permission_bits(metadata);
            Err(SecretFileError::DirectoryMode {
                path,
                link,
                directory,
                mode,
            })
        } else {
            let uid = metadata.uid();
            Err(SecretFileError::DirectoryOwner {
                path,
                link,
                directory,
                uid,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;

    #[test]
    fn the_flags_have_the_numbers_of_this_system() {
        assert_eq!(OFlags::NOFOLLOW.bits().cast_signed(), O_NOFOLLOW);
        assert_eq!(OFlags::NONBLOCK.bits().cast_signed(), O_NONBLOCK);
    }

    #[test]
    fn a_file_that_changes_its_length_while_it_is_read_is_not_taken() {
        let read = |length| read_whole(&b"secret"[..], length).unwrap();
        assert!(read(5).is_none());
        assert!(read(7).is_none());
        assert_eq!(read(6).unwrap().as_slice(), b"secret");
    }

    #[test]
    fn the_buffer_is_the_one_that_was_allocated_first() {
        let bytes = read_whole(&b"secret"[..], 6).unwrap().unwrap();
        assert_eq!(bytes.capacity(), 7);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_removed_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let error = create_with(&path, |file| {
            file.write_all(b"sec")?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!path.exists());
    }
}
