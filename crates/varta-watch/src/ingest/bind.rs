//! Taking a place in the file system: binding the beat socket, and leaving again.
//!
//! A socket file is removed only if nobody listens behind it ("connection refused" is the only
//! proof of that) and only if it is still the file that was probed. On the way out it is removed
//! only if it is still ours. Credentials are switched on before the socket has a name, so no
//! datagram can come without them.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with, sockopt,
};

use crate::config::users::SocketAccess;

/// Longest socket path in bytes: the kernel's 108 less the final zero.
const PATH_MAX_BYTES: usize = 107;

/// Why the socket could not be bound. The text names the path and says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum BindError {
    PathTooLong(PathBuf),
    NoDirectory(PathBuf),
    Occupied(PathBuf),
    OtherService(PathBuf),
    NotASocket(PathBuf),
    ChangedMeanwhile(PathBuf),
    Denied(PathBuf),
    GroupDenied(PathBuf, u32),
    Io(PathBuf, &'static str, io::Error),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PathTooLong(path) => write!(
                f,
                "socket path {} is {} bytes long, the kernel takes {PATH_MAX_BYTES}; \
                 choose a shorter --socket",
                path.display(),
                path.as_os_str().len()
            ),
            Self::NoDirectory(path) => write!(
                f,
                "cannot listen on {}: its directory does not exist; create it or choose another \
                 --socket",
                path.display()
            ),
            Self::Occupied(path) => write!(
                f,
                "cannot listen on {}: another observer is running there; stop it or choose \
                 another --socket",
                path.display()
            ),
            Self::OtherService(path) => write!(
                f,
                "cannot listen on {}: another service listens there; choose another --socket",
                path.display()
            ),
            Self::NotASocket(path) => write!(
                f,
                "cannot listen on {}: something that is not a socket is in the way; move it or \
                 choose another --socket",
                path.display()
            ),
            Self::ChangedMeanwhile(path) => write!(
                f,
                "cannot listen on {}: the file changed while it was examined, somebody else is \
                 starting there; try again",
                path.display()
            ),
            Self::Denied(path) => write!(
                f,
                "cannot listen on {}: permission denied; make its directory writable for uid {} \
                 or choose another --socket",
                path.display(),
                rustix::process::geteuid()
            ),
            Self::GroupDenied(path, gid) => write!(
                f,
                "cannot give {} to group {gid}: uid {} is not a member of it; join the group, or say \
                 who may use the socket with --socket-mode",
                path.display(),
                rustix::process::geteuid()
            ),
            Self::Io(path, step, error) => {
                write!(f, "cannot listen on {}: {step}: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for BindError {}

/// A bound datagram socket that passes credentials. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    socket: OwnedFd,
    path: PathBuf,
    file: FileId,
}

/// What makes a file the same file.
type FileId = (u64, u64);

impl BoundSocket {
    /// Binds `path` with these permissions.
    pub(crate) fn bind(path: &Path, access: SocketAccess) -> Result<Self, BindError> {
        if path.as_os_str().len() > PATH_MAX_BYTES {
            return Err(BindError::PathTooLong(path.to_owned()));
        }
        let fail = |step| move |error: Errno| BindError::Io(path.to_owned(), step, error.into());
        let address = SocketAddrUnix::new(path).map_err(fail("socket path"))?;
        let socket = new_socket().map_err(fail("socket"))?;
        sockopt::set_socket_passcred(&socket, true).map_err(fail("SO_PASSCRED"))?;
        // The file takes its permissions from the socket, so it is never wider than asked for; nobody but
        // the owner may use it before it belongs to the right group.
        let SocketAccess { mode, gid } = access;
        let first_mode = gid.map_or(mode, |_| mode & 0o700);
        fchmod(&socket, Mode::from_bits_truncate(first_mode)).map_err(fail("permissions"))?;
        let taken = match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&socket, &address)
            }
            result => result,
        };
        taken.map_err(|errno| match errno {
            Errno::ADDRINUSE => BindError::ChangedMeanwhile(path.to_owned()),
            Errno::ACCESS | Errno::PERM | Errno::ROFS => BindError::Denied(path.to_owned()),
            Errno::NOENT | Errno::NOTDIR => BindError::NoDirectory(path.to_owned()),
            errno => BindError::Io(path.to_owned(), "bind", errno.into()),
        })?;
        let io_error = |step| move |error| BindError::Io(path.to_owned(), step, error);
        let metadata = fs::symlink_metadata(path).map_err(io_error("look at the new socket"))?;
        let bound = Self {
            socket,
            path: path.to_owned(),
            file: file_id(&metadata),
        };
        if let Some(gid) = gid {
            lchown(path, None, Some(gid))
                .map_err(|_| BindError::GroupDenied(path.to_owned(), gid))?;
        }
        if metadata.permissions().mode() & 0o777 != mode {
            // The umask took bits away that were asked for.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(io_error("permissions"))?;
        }
        Ok(bound)
    }
}

impl AsFd for BoundSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let still_ours = fs::symlink_metadata(&self.path).is_ok_and(|m| file_id(&m) == self.file);
        if still_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// Removes a socket file that nobody listens behind, and nothing else.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let Ok(before) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !before.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    let probe = new_socket().and_then(|probe| connect(&probe, address));
    match probe {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::PROTOTYPE) => return Err(BindError::OtherService(path.to_owned())),
        Err(Errno::ACCESS | Errno::PERM) => return Err(BindError::Denied(path.to_owned())),
        Ok(()) | Err(Errno::AGAIN) => return Err(BindError::Occupied(path.to_owned())),
        Err(errno) => {
            return Err(BindError::Io(path.to_owned(), "probe", errno.into()));
        }
    }
    match fs::symlink_metadata(path) {
        Ok(now) if file_id(&now) != file_id(&before) => {
            Err(BindError::ChangedMeanwhile(path.to_owned()))
        }
        Ok(_) => fs::remove_file(path)
            .map_err(|error| BindError::Io(path.to_owned(), "remove the stale socket", error)),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn bind(path: &Path, mode: u32) -> Result<BoundSocket, BindError> {
        BoundSocket::bind(path, SocketAccess { mode, gid: None })
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("varta.sock");
        (directory, path)
    }

    #[test]
    fn the_socket_has_exactly_the_mode_asked_for_and_leaves_no_file_behind() {
        for mode in [0o600, 0o660, 0o666] {
            let (_directory, path) = place();
            let bound = bind(&path, mode).unwrap();
            assert_eq!(mode_of(&path), mode, "{mode:o}");
            drop(bound);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_socket_for_a_group_belongs_to_it() {
        let own = rustix::process::getegid().as_raw();
        let gid = if rustix::process::geteuid().is_root() {
            4711
        } else {
            own
        };
        let (_directory, path) = place();
        let access = SocketAccess {
            mode: 0o660,
            gid: Some(gid),
        };
        let _bound = BoundSocket::bind(&path, access).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().gid(), gid);
        assert_eq!(mode_of(&path), 0o660);
    }

    #[test]
    fn a_live_observer_is_not_displaced() {
        let (_directory, path) = place();
        let first = bind(&path, 0o600).unwrap();
        let second = bind(&path, 0o600).unwrap_err();
        assert!(matches!(second, BindError::Occupied(_)), "{second}");
        assert!(second.to_string().contains("another observer is running"));
        assert_eq!(file_id(&fs::symlink_metadata(&path).unwrap()), first.file);
    }

    #[test]
    fn a_live_observer_with_a_full_queue_is_not_displaced_and_does_not_delay_us() {
        let (_directory, path) = place();
        let first = bind(&path, 0o600).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.send_to(&[0; 32], &path).is_ok() {}
        let second = bind(&path, 0o600).unwrap_err();
        assert!(matches!(second, BindError::Occupied(_)), "{second}");
        drop(first);
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let (_directory, path) = place();
        drop(UnixDatagram::bind(&path).unwrap());
        assert!(path.exists());
        bind(&path, 0o600).unwrap();
    }

    #[test]
    fn a_live_stream_socket_of_another_service_is_left_alone() {
        let (_directory, path) = place();
        let _service = UnixListener::bind(&path).unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert!(matches!(error, BindError::OtherService(_)), "{error}");
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_regular_file_in_the_way_is_kept_byte_for_byte() {
        let (_directory, path) = place();
        fs::write(&path, b"precious").unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_symbolic_link_in_the_way_is_not_followed() {
        let (directory, path) = place();
        let target = directory.path().join("target.sock");
        drop(UnixDatagram::bind(&target).unwrap());
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert!(target.exists());
    }

    #[test]
    fn dropping_leaves_somebody_elses_file_alone() {
        let (_directory, path) = place();
        let bound = bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let _successor = UnixDatagram::bind(&path).unwrap();
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn dropping_tolerates_a_missing_file() {
        let (_directory, path) = place();
        let bound = bind(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        drop(bound);
    }

    #[test]
    fn a_path_too_long_or_without_directory_is_named() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = bind(&long, 0o600).unwrap_err();
        assert!(error.to_string().contains("125 bytes long"), "{error}");
        let (directory, _) = place();
        let orphan = directory.path().join("missing/varta.sock");
        let error = bind(&orphan, 0o600).unwrap_err();
        assert!(matches!(error, BindError::NoDirectory(_)), "{error}");
    }

    #[test]
    fn credentials_come_with_the_very_first_datagram() {
        let (_directory, path) = place();
        let bound = bind(&path, 0o600).unwrap();
        UnixDatagram::unbound()
            .unwrap()
            .send_to(&[1; 32], &path)
            .unwrap();
        let mut batch = varta_sys::receive::DatagramBatch::new(1, 40);
        assert_eq!(batch.receive(bound.as_fd(), 1, drop).unwrap(), 1);
        let sender = batch.datagram(0).unwrap().credentials.unwrap();
        assert_eq!(sender.pid, std::process::id());
    }
}
