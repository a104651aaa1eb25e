//! The meaning of user and group ids in this process's user namespace.
//!
//! A user namespace may map some ids only. All others are shown as one number, the overflow id (65534 by default), so
//! the owner of a process or a file with that id is unknown, and uid 0 is not the host's root but the user that the
//! namespace maps to it. On other systems than Linux every id is mapped to itself.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The kernel's own default.
const OVERFLOW_ID: u32 = 65_534;

/// The map of every id to itself: first id inside, first id outside, how many.
const WHOLE_MAP: [&str; 3] = ["0", "0", "4294967295"];

unsafe extern "C" {
    // SAFETY: POSIX: it takes no argument, touches no memory of the caller and cannot fail.
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

/// The uid of all unmapped users, if this process's namespace does not map every user; `None` if it does.
pub fn unmapped_uid() -> Option<u32> {
    let may_be_any = !maps_all(Path::new("/proc/self/uid_map"));
    may_be_any.then(|| overflow_id("/proc/sys/kernel/overflowuid"))
}

/// The same for groups.
pub fn unmapped_gid() -> Option<u32> {
    let may_be_any = !maps_all(Path::new("/proc/self/gid_map"));
    may_be_any.then(|| overflow_id("/proc/sys/kernel/overflowgid"))
}

/// A user id for display, with a note if it stands for any unmapped user.
pub fn shown_uid(uid: u32) -> String {
    match unmapped_uid() == Some(uid) {
        true => format!("uid {uid}, any user that this user namespace does not map"),
        false => format!("uid {uid}"),
    }
}

/// A namespace can only map what the one around it maps, so this holds for all of them. Without `/proc` the maps
/// are unknown, and the ids do not count as mapped.
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
    fn a_kernel_without_namespaces_maps_all_and_without_proc_the_maps_are_unknown() {
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
    fn only_where_not_every_user_is_mapped_an_id_may_be_any_users() {
        let maps_all = maps_all(Path::new("/proc/self/uid_map"));
        assert_eq!(unmapped_uid().is_none(), maps_all);
        let overflow_uid = overflow_id("/proc/sys/kernel/overflowuid");
        assert!(maps_all || unmapped_uid() == Some(overflow_uid));
        assert_eq!(overflow_id("/nowhere"), OVERFLOW_ID);
        assert_eq!(shown_uid(1), "uid 1");
    }
}
