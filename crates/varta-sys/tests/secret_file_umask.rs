//! The mode of a new secret file does not depend on the umask, which belongs to the whole process: the
//! only test here, so that it disturbs no other.

#![cfg(all(feature = "secrets", unix))]

use std::os::unix::fs::MetadataExt;

use rustix::fs::Mode;
use varta_sys::secret_file;

#[test]
fn a_new_file_is_for_its_owner_alone_whatever_the_umask() {
    let directory = tempfile::tempdir().unwrap();
    for umask in [0o000, 0o022, 0o777] {
        let path = directory.path().join(format!("{umask:o}"));
        rustix::process::umask(Mode::from_raw_mode(umask));
        secret_file::create(&path, b"secret").unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o600, "umask {umask:o}");
    }
}
