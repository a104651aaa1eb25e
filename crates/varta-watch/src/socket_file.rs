//! Socket files: binds the beat socket or the control socket, and removes its file at the end.
//!
//! A socket file is removed only if no process listens behind it ("connection refused" is the only proof of that) and
//! only if it is still the file that was probed. At the end it is removed only if it still is the observer's own.
//! Credentials are switched on before the socket has a name, so no datagram can come without them.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    sockopt,
};
use varta_api::SOCKET_PATH_BYTES_MAX;

use crate::settings::SocketAccess;

/// Connections that may wait to be accepted at the control socket.
const CONNECTIONS_WAITING: i32 = 64;

/// The purpose of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Receives beats: datagrams with credentials.
    Beats,
    /// Answers requests: connections.
    Questions,
}

impl Purpose {
    /// The flag that sets its path.
    const fn flag(self) -> &'static str {
        match self {
            Self::Beats => "--socket",
            Self::Questions => "--control-socket",
        }
    }

    const fn socket_type(self) -> SocketType {
        match self {
            Self::Beats => SocketType::DGRAM,
            Self::Questions => SocketType::STREAM,
        }
    }
}

/// Why a socket could not be bound. The text names the path and the fix.
#[derive(Debug)]
pub(crate) struct BindError {
    purpose: Purpose,
    path: PathBuf,
    problem: BindProblem,
}

#[derive(Debug)]
#[non_exhaustive]
enum BindProblem {
    PathTooLong,
    NoDirectory,
    Occupied,
    OtherService,
    NotASocket,
    ChangedMeanwhile,
    Denied,
    GroupDenied(u32),
    Io(&'static str, io::Error),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, flag) = (self.path.display(), self.purpose.flag());
        let own_uid = rustix::process::geteuid();
        match &self.problem {
            BindProblem::PathTooLong => write!(
                f,
                "socket path {path} is {} bytes long, the kernel takes {SOCKET_PATH_BYTES_MAX}; choose a shorter {flag}",
                self.path.as_os_str().len()
            ),
            BindProblem::NoDirectory => write!(
                f,
                "cannot listen on {path}: its directory does not exist; create it or choose another {flag}"
            ),
            BindProblem::Occupied => write!(
                f,
                "cannot listen on {path}: another observer is running there; stop it or choose another {flag}"
            ),
            BindProblem::OtherService => write!(
                f,
                "cannot listen on {path}: another service listens there; choose another {flag}"
            ),
            BindProblem::NotASocket => write!(
                f,
                "cannot listen on {path}: something that is not a socket is in the way; move it or choose \
                 another {flag}"
            ),
            BindProblem::ChangedMeanwhile => write!(
                f,
                "cannot listen on {path}: the file changed while it was examined, somebody else is starting \
                 there; try again"
            ),
            BindProblem::Denied => write!(
                f,
                "cannot listen on {path}: permission denied; make its directory writable for uid {own_uid} or \
                 choose another {flag}"
            ),
            BindProblem::GroupDenied(gid) => write!(
                f,
                "cannot give {path} to group {gid}: uid {own_uid} is not a member of it; join the group, or \
                 say who may use the socket with --socket-mode"
            ),
            BindProblem::Io(step, error) => {
                write!(f, "cannot listen on {path}: {step}: {error}")
            }
        }
    }
}

impl std::error::Error for BindError {}

/// A bound socket: of datagrams with credentials, or of connections. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    socket: OwnedFd,
    path: PathBuf,
    file: FileId,
    refuses_descriptors: bool,
}

/// The identity of a file.
type FileId = (u64, u64);

impl BoundSocket {
    /// Binds `path` with these permissions.
    pub(crate) fn bind(
        path: &Path,
        access: SocketAccess,
        purpose: Purpose,
    ) -> Result<Self, BindError> {
        let socket = new_socket(purpose).map_err(|errno| BindError {
            purpose,
            path: path.to_owned(),
            problem: BindProblem::Io("socket", errno.into()),
        })?;
        Self::bind_made(socket, path, access, purpose)
    }

    /// The same with a socket that was made for this path.
    pub(crate) fn bind_made(
        socket: OwnedFd,
        path: &Path,
        access: SocketAccess,
        purpose: Purpose,
    ) -> Result<Self, BindError> {
        Self::take(socket, path, access, purpose).map_err(|problem| BindError {
            purpose,
            path: path.to_owned(),
            problem,
        })
    }

    fn take(
        socket: OwnedFd,
        path: &Path,
        access: SocketAccess,
        purpose: Purpose,
    ) -> Result<Self, BindProblem> {
        if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(BindProblem::PathTooLong);
        }
        let fail = |step| move |error: Errno| BindProblem::Io(step, error.into());
        let address = SocketAddrUnix::new(path).map_err(fail("socket path"))?;
        if purpose == Purpose::Beats {
            sockopt::set_socket_passcred(&socket, true).map_err(fail("SO_PASSCRED"))?;
        }
        // Before it has a name, so that no datagram with descriptors is queued.
        let refuses_descriptors = varta_sys::receive::refuse_descriptors(socket.as_fd()).is_ok();
        // The file takes its permissions from the socket, so they are never wider than requested; only the owner may
        // use it before it belongs to the right group.
        let SocketAccess { mode, gid } = access;
        let first_mode = gid.map_or(mode, |_| mode & 0o700);
        fchmod(&socket, Mode::from_bits_truncate(first_mode)).map_err(fail("permissions"))?;
        let taken = match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address, purpose)?;
                bind(&socket, &address)
            }
            result => result,
        };
        taken.map_err(|errno| match errno {
            Errno::ADDRINUSE => BindProblem::ChangedMeanwhile,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => BindProblem::Denied,
            Errno::NOENT | Errno::NOTDIR => BindProblem::NoDirectory,
            errno => BindProblem::Io("bind", errno.into()),
        })?;
        let io_error = |step| move |error| BindProblem::Io(step, error);
        let metadata = fs::symlink_metadata(path).map_err(io_error("look at the new socket"))?;
        let bound = Self {
            socket,
            path: path.to_owned(),
            file: file_id(&metadata),
            refuses_descriptors,
        };
        if purpose == Purpose::Questions {
            listen(&bound.socket, CONNECTIONS_WAITING).map_err(fail("listen"))?;
        }
        if let Some(gid) = gid {
            lchown(path, None, Some(gid)).map_err(|_| BindProblem::GroupDenied(gid))?;
        }
        if metadata.permissions().mode() & 0o777 != mode {
            // The umask removed bits that were requested.
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .map_err(io_error("permissions"))?;
        }
        Ok(bound)
    }

    /// A sender of descriptors gets an error, and nothing arrives (Linux 6.16).
    pub(crate) fn refuses_descriptors(&self) -> bool {
        self.refuses_descriptors
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

/// Makes a socket without a name.
pub(crate) fn new_socket(purpose: Purpose) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, purpose.socket_type(), flags, None)
}

fn file_id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// Removes a socket file without a listener, and nothing else.
fn remove_stale(
    path: &Path,
    address: &SocketAddrUnix,
    purpose: Purpose,
) -> Result<(), BindProblem> {
    let Ok(before) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !before.file_type().is_socket() {
        return Err(BindProblem::NotASocket);
    }
    let probe = new_socket(purpose).and_then(|probe| connect(&probe, address));
    match probe {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::PROTOTYPE) => return Err(BindProblem::OtherService),
        Err(Errno::ACCESS | Errno::PERM) => return Err(BindProblem::Denied),
        Ok(()) | Err(Errno::AGAIN) => return Err(BindProblem::Occupied),
        Err(errno) => return Err(BindProblem::Io("probe", errno.into())),
    }
    match fs::symlink_metadata(path) {
        Ok(now) if file_id(&now) != file_id(&before) => Err(BindProblem::ChangedMeanwhile),
        Ok(_) => {
            fs::remove_file(path).map_err(|error| BindProblem::Io("remove the stale socket", error))
        }
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    fn bind(path: &Path, mode: u32) -> Result<BoundSocket, BindError> {
        BoundSocket::bind(path, SocketAccess { mode, gid: None }, Purpose::Beats)
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
        let _bound = BoundSocket::bind(&path, access, Purpose::Beats).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().gid(), gid);
        assert_eq!(mode_of(&path), 0o660);
    }

    #[test]
    fn a_live_observer_is_not_displaced() {
        let (_directory, path) = place();
        let first = bind(&path, 0o600).unwrap();
        let second = bind(&path, 0o600).unwrap_err();
        assert!(matches!(second.problem, BindProblem::Occupied), "{second}");
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
        assert!(matches!(second.problem, BindProblem::Occupied), "{second}");
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
        assert!(
            matches!(error.problem, BindProblem::OtherService),
            "{error}"
        );
        assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_regular_file_in_the_way_is_kept_byte_for_byte() {
        let (_directory, path) = place();
        fs::write(&path, b"precious").unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert!(matches!(error.problem, BindProblem::NotASocket), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_symbolic_link_in_the_way_is_not_followed() {
        let (directory, path) = place();
        let target = directory.path().join("target.sock");
        drop(UnixDatagram::bind(&target).unwrap());
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = bind(&path, 0o600).unwrap_err();
        assert!(matches!(error.problem, BindProblem::NotASocket), "{error}");
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

    fn bind_for_questions(path: &Path) -> Result<BoundSocket, BindError> {
        let access = SocketAccess {
            mode: 0o600,
            gid: None,
        };
        BoundSocket::bind(path, access, Purpose::Questions)
    }

    #[test]
    fn a_control_socket_takes_connections_and_replaces_a_stale_one_but_no_living_one() {
        let (_directory, path) = place();
        drop(UnixListener::bind(&path).unwrap());
        let bound = bind_for_questions(&path).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        let error = bind_for_questions(&path).unwrap_err();
        assert!(matches!(error.problem, BindProblem::Occupied), "{error}");
        assert!(error.to_string().contains("--control-socket"), "{error}");
        drop(bound);
        assert!(!path.exists());
        let _beats = bind(&path, 0o600).unwrap();
        let error = bind_for_questions(&path).unwrap_err();
        assert!(
            matches!(error.problem, BindProblem::OtherService),
            "{error}"
        );
    }

    #[test]
    fn a_path_too_long_or_without_directory_is_named() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = bind(&long, 0o600).unwrap_err();
        assert!(error.to_string().contains("125 bytes long"), "{error}");
        let (directory, _) = place();
        let orphan = directory.path().join("missing/varta.sock");
        let error = bind(&orphan, 0o600).unwrap_err();
        assert!(matches!(error.problem, BindProblem::NoDirectory), "{error}");
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
        assert_eq!(batch.receive(bound.as_fd(), 1).unwrap(), 1);
        let sender = batch.datagram(0).unwrap().credentials.unwrap();
        assert_eq!(sender.pid, std::process::id());
    }
}
