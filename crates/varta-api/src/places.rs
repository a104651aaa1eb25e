//! The default addresses of the observer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// File name of the beat socket inside the runtime directory.
pub const SOCKET_NAME: &str = "varta.sock";

/// Suffix of the control socket's name after that of the beat socket.
pub const CONTROL_SOCKET_SUFFIX: &str = ".control";

/// Longest path of a socket in bytes: the kernel's 108 less the final zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Default TCP address of the observer's HTTP API, on loopback.
pub const HTTP_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8278);

/// The control socket of the observer whose beat socket is `socket`: next to it, so that two observers in one
/// directory have two.
pub fn control_socket_beside(socket: &Path) -> PathBuf {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(CONTROL_SOCKET_SUFFIX);
    socket.with_file_name(name)
}

/// Default beat socket: in `$RUNTIME_DIRECTORY` (set by a service manager), else in `/run/varta` for root, else in
/// `$XDG_RUNTIME_DIR/varta`. `None` if a user has no runtime directory.
pub fn default_socket_path() -> Option<PathBuf> {
    default_runtime_directory().map(|directory| directory.join(SOCKET_NAME))
}

/// The directory part of [`default_socket_path`].
pub fn default_runtime_directory() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(directories) = variable("RUNTIME_DIRECTORY") {
        // A service manager separates several directories by colons; the observer uses the first one.
        return std::env::split_paths(&directories).next();
    }
    if rustix::process::getuid().is_root() {
        return Some(PathBuf::from("/run/varta"));
    }
    Some(PathBuf::from(variable("XDG_RUNTIME_DIR")?).join("varta"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_socket_is_named_after_the_beat_socket() {
        for (socket, control) in [
            ("/run/varta/varta.sock", "/run/varta/varta.sock.control"),
            ("s", "s.control"),
        ] {
            assert_eq!(control_socket_beside(Path::new(socket)), Path::new(control));
        }
    }
}
