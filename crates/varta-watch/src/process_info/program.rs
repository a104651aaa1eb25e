//! The file that a process runs, and whether it is the file that the observer finds at that path.
//!
//! `/proc/PID/exe` gives a path in the mount namespace in which the file was opened. Any user may make such a
//! namespace and mount any file over any path there, so the path alone proves nothing. This module proves which file
//! a process was started from, never which code it runs now: its user can inject code (`LD_PRELOAD`, `ptrace`).
//!
//! The agent chooses the path from `/proc/PID/exe`, and a lookup of it may start a mount, or wait for a file system
//! that does not answer. The caller looks up only paths that the operator has named.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};

/// Suffix that the kernel adds to the path of an unlinked file.
const UNLINKED: &[u8] = b" (deleted)";

/// The file that a process runs.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its current or former path, in the mount namespace in which it was opened.
    pub(crate) path: PathBuf,
    /// `None` if the observer may not access it, such as a file that only its user may see (FUSE).
    file: Option<Statx>,
    /// It was unlinked or replaced since, so it is no longer at its path.
    is_unlinked: bool,
}

impl Program {
    /// The program of the process that has `pid`.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let shown = fs::read_link(&link).ok()?;
        let file = look_at(&link);
        // Otherwise the process runs another program now, or its file has another name.
        let is_same = fs::read_link(&link).is_ok_and(|again| again == shown);
        // A file with links left may really have such a name.
        let has_no_link = file.is_some_and(|file| file.stx_nlink == 0);
        let former = shown.as_os_str().as_bytes().strip_suffix(UNLINKED);
        let former = former.filter(|_| has_no_link);
        let former = former.map(|path| std::ffi::OsString::from_vec(path.to_owned()).into());
        is_same.then_some(Self {
            is_unlinked: former.is_some(),
            path: former.unwrap_or(shown),
            file,
        })
    }

    /// Whether its path leads the observer to this file, too: this very file is there, or was there before it was
    /// unlinked. Looks the path up.
    fn is_here(&self) -> bool {
        let Some(file) = &self.file else {
            return false;
        };
        match self.is_unlinked {
            true => has_mount(file),
            false => look_at(&self.path).is_some_and(|there| is_same_file(&there, file)),
        }
    }
}

/// Whether the process that has `pid` runs the file that is at `path`, or was there before it was replaced. Looks the
/// path up.
pub(crate) fn runs(pid: u32, path: &Path) -> bool {
    // The file may be replaced between the reading of the process and that of the path, but hardly twice.
    let is_found =
        || Program::of(pid).is_some_and(|program| program.path == path && program.is_here());
    is_found() || is_found()
}

/// The metadata of a file, without a request to another machine where that can be avoided.
fn look_at(path: &Path) -> Option<Statx> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::INO | StatxFlags::NLINK | StatxFlags::MNT_ID;
    statx(CWD, path, flags, wanted).ok()
}

fn is_same_file(one: &Statx, other: &Statx) -> bool {
    let file = |file: &Statx| (file.stx_dev_major, file.stx_dev_minor, file.stx_ino);
    file(one) == file(other)
}

/// Whether a file was opened through a mount of the observer's own namespace. The file is checked and not the
/// process: a process in this namespace can receive a file that was opened in another one, and run that.
fn has_mount(file: &Statx) -> bool {
    let is_known = file.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mut ids = mounts.split(|byte| *byte == b'\n').filter_map(|mount| {
        let id = mount.split(|byte| *byte == b' ').next()?;
        std::str::from_utf8(id).ok()?.parse().ok()
    });
    is_known && ids.any(|id: u64| id == file.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A process that runs a copy of `sleep` of its own.
    struct Sleeper {
        directory: tempfile::TempDir,
        path: PathBuf,
        child: Child,
    }

    impl Sleeper {
        fn called(name: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let directory_path = directory.path().canonicalize().unwrap();
            let path = directory_path.join(name);
            copy(&path);
            let child = Command::new(&path).arg("60").spawn().unwrap();
            Self {
                directory,
                path,
                child,
            }
        }

        fn runs(&self, path: &Path) -> bool {
            runs(self.child.id(), path)
        }

        fn path(&self) -> PathBuf {
            Program::of(self.child.id()).unwrap().path
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// By another process: a descriptor that is open for writing in this process could be inherited by the child of
    /// another test.
    fn copy(to: &Path) {
        let sleep = ["/bin/sleep", "/usr/bin/sleep"];
        let sleep = sleep.iter().find(|path| Path::new(path).exists()).unwrap();
        // A multi-call binary would go by its name.
        let copied = Command::new("cp").arg("-L").arg(sleep).arg(to).status();
        assert!(copied.unwrap().success());
    }

    #[test]
    fn a_process_runs_the_file_it_was_started_from_and_no_other() {
        let sleeper = Sleeper::called("program");
        assert_eq!(sleeper.path(), sleeper.path);
        assert!(sleeper.runs(&sleeper.path));
        assert!(!sleeper.runs(Path::new("/bin/sh")));
        assert!(!sleeper.runs(&sleeper.directory.path().join("other")));
        assert!(!runs(u32::MAX, &sleeper.path));
    }

    #[test]
    fn a_program_that_was_replaced_or_unlinked_is_still_called_after_its_path() {
        let sleeper = Sleeper::called("program");
        let next = sleeper.path.with_extension("next");
        copy(&next);
        fs::rename(&next, &sleeper.path).unwrap();
        assert_eq!(sleeper.path(), sleeper.path);
        assert!(sleeper.runs(&sleeper.path));
        fs::remove_file(&sleeper.path).unwrap();
        assert!(sleeper.runs(&sleeper.path));
    }

    #[test]
    fn a_file_that_is_really_called_deleted_is_called_so() {
        let sleeper = Sleeper::called("program (deleted)");
        let short = sleeper.path.with_file_name("program");
        assert!(sleeper.runs(&sleeper.path));
        assert!(!sleeper.runs(&short));
        fs::remove_file(&sleeper.path).unwrap();
        assert!(sleeper.runs(&sleeper.path));
        assert!(!sleeper.runs(&short));
    }

    #[test]
    fn an_unlinked_file_with_another_link_is_not_taken_for_the_one_at_its_path() {
        let sleeper = Sleeper::called("program");
        fs::hard_link(&sleeper.path, sleeper.path.with_extension("link")).unwrap();
        fs::remove_file(&sleeper.path).unwrap();
        assert!(!sleeper.runs(&sleeper.path));
    }

    #[test]
    fn a_file_in_memory_has_no_path_here() {
        use rustix::fs::{MemfdFlags, memfd_create};
        let memory = memfd_create("bin/program", MemfdFlags::empty()).unwrap();
        let file = Program {
            path: PathBuf::from("/memfd:bin/program"),
            file: statx(&memory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok(),
            is_unlinked: true,
        };
        assert!(file.file.is_some() && !file.is_here());
        let hidden = Program { file: None, ..file };
        assert!(!hidden.is_here());
    }
}
