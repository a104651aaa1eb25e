//! Whom user and group ids stand for in this process's user namespace.
//!
//! A user namespace may map some ids only. All others are shown as one number, the overflow id (65534 unless the host
//! says otherwise), so a process or a file that has it there may be anybody's, and uid 0 is not root but whoever the
//! namespace maps to it. Elsewhere than on Linux every id is what it is.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The kernel's own default.
const OVERFLOW_ID: u32 = 65_534;

/// What a map says that has every id there is, each as itself: first id inside, first id outside, how many.
const WHOLE_MAP: [&str; 3] = ["0", "0", "4294967295"];

unsafe extern "C" {
    // SAFETY: POSIX: it takes nothing, touches no memory of the caller's and cannot fail.
    safe fn geteuid() -> u32;
}

/// The effective user of this process.
pub fn effective_uid() -> u32 {
    geteuid()
}

/// Whether this process runs as the root of the host, not only of a user namespace.
pub fn is_root() -> bool {
    geteuid() == 0 && maps_all(Path::new("/proc/self/uid_map"))
}

/// The uid that is nobody's: the number of every user that a namespace does not map.
pub fn overflow_uid() -> u32 {
    overflow_id("/proc/sys/kernel/overflowuid")
}

/// The same for groups.
pub fn overflow_gid() -> u32 {
    overflow_id("/proc/sys/kernel/overflowgid")
}

/// Whether a user id may be anybody's, since this process's namespace does not map every user.
pub fn is_unmapped_uid(uid: u32) -> bool {
    uid == overflow_uid() && !maps_all(Path::new("/proc/self/uid_map"))
}

/// The same for a group id.
pub fn is_unmapped_gid(gid: u32) -> bool {
    gid == overflow_gid() && !maps_all(Path::new("/proc/self/gid_map"))
}

/// A user id for people: with what it means where it means nothing.
pub fn shown_uid(uid: u32) -> String {
    match is_unmapped_uid(uid) {
        true => format!("uid {uid}, any user that this user namespace does not map"),
        false => format!("uid {uid}"),
    }
}

/// A namespace can only map what the one around it maps, so this holds for all of them. Without `/proc` nothing is
/// known, and then not all ids are taken for mapped.
fn maps_all(map: &Path) -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    match fs::read_to_string(map) {
        Ok(text) => text.split_ascii_whitespace().eq(WHOLE_MAP),
        // A kernel without user namespaces has no such file.
        Err(error) => {
            let has_process = map.parent().is_some_and(Path::exists);
            error.kind() == ErrorKind::NotFound && has_process
        }
    }
}

fn overflow_id(file: &str) -> u32 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(OVERFLOW_ID)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn maps_all_ids(map: &str) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uid_map");
        fs::write(&path, map).unwrap();
        maps_all(&path)
    }

    #[test]
    fn only_a_map_of_the_whole_range_maps_every_user() {
        assert!(maps_all_ids("         0          0 4294967295\n"));
        for map in [
            "",
            "0 1000 1\n",
            "0 0 65536\n",
            "0 0 4294967294\n",
            "1 1 4294967294\n",
            "0 1000 1\n1 100000 65536\n",
            "0 0 4294967295\n0 0 1\n",
        ] {
            assert!(!maps_all_ids(map), "{map:?}");
        }
    }

    #[test]
    fn a_kernel_without_namespaces_maps_all_and_without_proc_nobody_knows() {
        let directory = tempfile::tempdir().unwrap();
        assert!(maps_all(&directory.path().join("uid_map")));
        assert!(!maps_all(&directory.path().join("self/uid_map")));
    }

    #[test]
    fn the_effective_user_is_the_one_that_files_are_made_with() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        assert_eq!(effective_uid(), file.metadata().unwrap().uid());
    }

    #[test]
    fn the_overflow_ids_are_the_kernels() {
        for (file, id) in [
            ("overflowuid", overflow_uid()),
            ("overflowgid", overflow_gid()),
        ] {
            match fs::read_to_string(format!("/proc/sys/kernel/{file}")) {
                Ok(text) => assert_eq!(text.trim(), id.to_string()),
                Err(_) => assert_eq!(id, OVERFLOW_ID),
            }
        }
        assert_eq!(overflow_id("/nowhere"), OVERFLOW_ID);
    }

    #[test]
    fn an_id_that_is_not_the_overflow_id_is_always_what_it_is() {
        assert!(!is_unmapped_uid(overflow_uid() - 1));
        assert!(!is_unmapped_gid(overflow_gid() - 1));
        assert_eq!(shown_uid(1), "uid 1");
    }
}
