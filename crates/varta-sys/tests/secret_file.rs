//! The files accepted for a secret, and the errors of all other files.

#![cfg(all(feature = "secrets", unix))]

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use varta_sys::secret_file::{self, SecretFileError};

const SECRET: &[u8] = b"correct horse";
const MAX_BYTES: usize = 64;
/// Neither root nor the user that runs the tests.
const STRANGER: u32 = 54321;

/// A directory for one test, which only its owner can enter.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .unwrap();
        file.write_all(SECRET).unwrap();
        set_mode(&path, mode);
        path
    }

    fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        set_mode(&path, mode);
        path
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let status = Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(status.success());
        path
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) -> PathBuf {
        let path = self.path(name);
        symlink(target, &path).unwrap();
        path
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Gives `path` to another user, which only root can do.
fn given_away(path: &Path) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        lchown(path, Some(STRANGER), None).unwrap();
    } else {
        println!("skipped: only root can give a file away");
    }
    is_root
}

#[track_caller]
fn assert_read(path: &Path) {
    assert_eq!(
        secret_file::read(path, MAX_BYTES).unwrap().as_slice(),
        SECRET
    );
}

/// The error, which must begin with the path and contain all of `parts`.
#[track_caller]
fn refusal(path: &Path, parts: &[&str]) -> SecretFileError {
    let error = secret_file::read(path, MAX_BYTES).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("{}: ", path.display())), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    error
}

#[test]
fn a_file_that_only_its_owner_can_open_is_read() {
    let place = Place::new();
    assert_read(&place.file("usual", 0o600));
    assert_read(&place.file("read-only", 0o400));
}

#[test]
fn a_permission_of_group_or_others_is_refused() {
    let place = Place::new();
    for (mode, said) in [
        (0o640, "may read it (mode 0640)"),
        (0o604, "may read it (mode 0604)"),
        (0o620, "may write it (mode 0620)"),
        (0o601, "may execute it (mode 0601)"),
    ] {
        let path = place.file(&format!("{mode:o}"), mode);
        let error = refusal(&path, &["group or others", said, "chmod 600"]);
        assert!(matches!(error, SecretFileError::Mode { mode: seen, .. } if seen == mode));
    }
}

#[test]
fn a_file_of_another_user_is_refused() {
    let place = Place::new();
    let path = place.file("key", 0o600);
    if given_away(&path) {
        let error = refusal(&path, &["belongs to uid 54321", "not to root", "chown"]);
        assert!(matches!(
            error,
            SecretFileError::Owner { uid: STRANGER, .. }
        ));
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let socket = place.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let directory = place.directory("directory", 0o700);
    for (path, said) in [
        (fifo.as_path(), "is a FIFO, not a regular file"),
        (&socket, "is a socket, not"),
        (&directory, "is a directory, not"),
        (Path::new("/dev/zero"), "is a character device, not"),
        (Path::new("/"), "is a directory, not"),
        (Path::new(""), "is a directory, not"),
    ] {
        let error = refusal(path, &[said]);
        assert!(matches!(error, SecretFileError::NotRegular { .. }));
    }
}

#[test]
fn a_fifo_behind_a_link_is_refused_without_waiting() {
    let place = Place::new();
    place.fifo("fifo");
    refusal(&place.link("key", "fifo"), &["is a FIFO"]);
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let place = Place::new();
    let error = refusal(&place.path("none/key"), &["none", "No such file"]);
    assert!(
        matches!(error, SecretFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    );
}

#[test]
fn a_dangling_link_is_refused_and_its_end_is_named() {
    let place = Place::new();
    let end = place.path("gone");
    let said = format!("leads to {}: ", end.display());
    refusal(&place.link("key", "gone"), &[&said]);
}

#[test]
fn a_loop_of_links_is_refused() {
    let place = Place::new();
    place.link("a", "b");
    let error = refusal(&place.link("b", "a"), &["more than 40 symbolic links"]);
    assert!(matches!(error, SecretFileError::TooManyLinks { .. }));
}

#[test]
fn as_many_links_as_the_kernel_follows_are_followed() {
    let place = Place::new();
    place.file("0", 0o600);
    for i in 1..=41 {
        place.link(&i.to_string(), (i - 1).to_string());
    }
    assert_read(&place.path("40"));
    refusal(&place.path("41"), &["more than 40 symbolic links"]);
}

/// The layout of a secret in Kubernetes: `key -> ..data/key`, `..data -> ..2026_01`.
fn kubernetes_volume(place: &Place, mode: u32) -> PathBuf {
    place.directory("volume", mode);
    place.directory("volume/..2026_01", 0o755);
    place.file("volume/..2026_01/key", 0o400);
    place.link("volume/..data", "..2026_01");
    place.link("volume/key", "..data/key")
}

#[test]
fn a_chain_of_links_in_a_sticky_directory_is_followed() {
    let place = Place::new();
    assert_read(&kubernetes_volume(&place, 0o1777));
}

#[test]
fn a_chain_of_links_in_a_directory_that_others_can_write_is_refused() {
    for (mode, who) in [(0o777, "others (mode 0777)"), (0o770, "group (mode 0770)")] {
        let place = Place::new();
        let key = kubernetes_volume(&place, mode);
        let said = format!(
            "the symbolic link {} could have been changed by another user: directory {} is \
             writable by {who}; chmod go-w it",
            key.display(),
            place.path("volume").display()
        );
        let error = refusal(&key, &[&said]);
        assert!(matches!(error, SecretFileError::DirectoryMode { .. }));
    }
}

#[test]
fn a_directory_that_others_can_write_counts_before_and_behind_a_link() {
    let place = Place::new();
    let open = place.directory("open", 0o777);
    place.directory("open/inner", 0o700);
    place.file("open/inner/key", 0o600);
    place.file("key", 0o600);
    let said = format!("directory {} is writable", open.display());
    refusal(&place.link("behind", "open/inner/key"), &[&said]);
    refusal(&place.link("open/inner/before", "../../key"), &[&said]);
    place.link("absolute", place.path("open/inner"));
    refusal(&place.path("absolute/key"), &[&said]);
    refusal(&place.link("through", "open/inner/../../key"), &[&said]);
}

#[test]
fn without_links_directories_are_not_judged() {
    let place = Place::new();
    place.directory("open", 0o777);
    assert_read(&place.file("open/key", 0o600));
    assert_read(&place.path("open/../open/./key"));
}

#[test]
fn a_link_to_an_absolute_path_is_followed() {
    let place = Place::new();
    let file = place.file("file", 0o600);
    assert_read(&place.link("key", file));
}

#[test]
fn a_link_of_another_user_is_refused() {
    let place = Place::new();
    place.file("file", 0o600);
    let key = place.link("key", "file");
    if given_away(&key) {
        let said = format!("the symbolic link {} belongs to uid 54321", key.display());
        let error = refusal(&key, &[&said, "chown -h"]);
        assert!(matches!(
            error,
            SecretFileError::LinkOwner { uid: STRANGER, .. }
        ));
    }
}

#[test]
fn a_link_through_a_directory_of_another_user_is_refused() {
    let place = Place::new();
    let key = kubernetes_volume(&place, 0o1777);
    let directory = place.path("volume/..2026_01");
    if given_away(&directory) {
        let said = format!("directory {} belongs to uid 54321", directory.display());
        let error = refusal(&key, &["could have been changed", &said]);
        assert!(matches!(
            error,
            SecretFileError::DirectoryOwner { uid: STRANGER, .. }
        ));
    }
}

#[test]
fn a_file_as_long_as_allowed_is_read_and_a_longer_one_is_not() {
    let place = Place::new();
    let path = place.file("key", 0o600);
    assert!(secret_file::read(&path, SECRET.len()).is_ok());
    let error = secret_file::read(&path, SECRET.len() - 1).unwrap_err();
    assert!(matches!(error, SecretFileError::TooLong { .. }));
    assert!(error.to_string().contains("longer than 12 bytes"));
}

#[test]
fn an_empty_file_is_read() {
    let place = Place::new();
    let path = place.path("key");
    secret_file::create(&path, b"").unwrap();
    assert!(secret_file::read(&path, 0).unwrap().is_empty());
}

#[test]
fn what_was_created_can_be_read() {
    let place = Place::new();
    let path = place.path("key");
    secret_file::create(&path, SECRET).unwrap();
    assert_read(&path);
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let place = Place::new();
    let file = place.file("file", 0o600);
    let link = place.link("link", "gone");
    for path in [&file, &link] {
        let error = secret_file::create(path, b"other").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }
    assert_read(&file);
    assert!(link.is_symlink());
    assert!(!place.path("gone").exists());
}
