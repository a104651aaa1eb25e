//! A file mapped as words in memory that outlive the process.
//!
//! What is stored in the words is in the page cache at once: it survives any end of the process. It survives
//! a crash of the machine only as far as the kernel has written it to disk, which syncing the file waits for.
//! Whole words are never torn, except by a crash of the machine; the users of the words maintain any order
//! among several of them.
//!
//! **For files that no other user can write.** A process that can write the file can change every word at any
//! time, and one that truncates it ends this process: touching a page beyond the end of the file raises
//! `SIGBUS`. The same happens when the file has holes and the disk is full, or when the disk fails.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// The first words of a file, shared with every other mapping of it. Unmapped on drop; the file keeps the
/// stored words.
#[derive(Debug)]
pub struct SharedWords {
    mapping: NonNull<[AtomicU64]>,
}

// SAFETY: the mapping belongs to this value and to no thread.
unsafe impl Send for SharedWords {}
// SAFETY: a shared reference gives access to atomics only.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `words` words of 8 bytes each, in the byte order of the machine.
    ///
    /// The file must be open for reading and writing, and may be closed afterwards. See the module for
    /// suitable files.
    ///
    /// # Errors
    ///
    /// Invalid input: `words` is 0 or beyond the address space, or the file is shorter than that. Otherwise
    /// the error of the kernel: `EACCES` if the file is not open for both, `ENODEV` if its file system has no
    /// shared mappings.
    pub fn map(file: &File, words: usize) -> io::Result<Self> {
        let invalid = |why: &'static str| io::Error::new(io::ErrorKind::InvalidInput, why);
        if words == 0 {
            return Err(invalid("no words to map"));
        }
        let length = words
            .checked_mul(size_of::<AtomicU64>())
            .filter(|&length| isize::try_from(length).is_ok())
            .ok_or_else(|| invalid("more words than memory can hold"))?;
        if file.metadata()?.len() < length as u64 {
            return Err(invalid("the file is shorter than the words to map"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(address.cast::<AtomicU64>())
            .ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self {
            mapping: NonNull::slice_from_raw_parts(first, words),
        })
    }

    fn range(&self) -> (*mut libc::c_void, usize) {
        let length = self.mapping.len() * size_of::<AtomicU64>();
        (self.mapping.as_ptr().cast(), length)
    }
}

impl AsRef<[AtomicU64]> for SharedWords {
    #[inline]
    fn as_ref(&self) -> &[AtomicU64] {
        // SAFETY: page-aligned, readable and writable, mapped until this value is dropped, and every bit
        // pattern is a valid word. Another process with the file mapped may change the words, which atomics
        // allow.
        unsafe { self.mapping.as_ref() }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let (address, length) = self.range();
        // SAFETY: the range is the mapping of this value, and no reference into it outlives the value.
        unsafe { libc::munmap(address, length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::sync::atomic::Ordering::Relaxed;
    use tempfile::NamedTempFile;

    /// Names the file that the child of a test writes to.
    const FILE_OF_CHILD: &str = "VARTA_TEST_MAPPED_FILE";

    fn file_of(bytes: usize) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes as u64).unwrap();
        file
    }

    fn words_in(path: &Path) -> Vec<u64> {
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() % 8, 0);
        bytes
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    fn refusal(file: &File, words: usize) -> io::ErrorKind {
        SharedWords::map(file, words).unwrap_err().kind()
    }

    #[test]
    fn what_is_stored_is_seen_by_another_mapping_and_stays_in_the_file() {
        let file = file_of(24);
        let one = SharedWords::map(file.as_file(), 3).unwrap();
        let other = SharedWords::map(file.as_file(), 2).unwrap();
        assert_eq!(other.as_ref().len(), 2);
        one.as_ref()[1].store(7, Relaxed);
        one.as_ref()[2].store(u64::MAX, Relaxed);
        assert_eq!(other.as_ref()[1].load(Relaxed), 7);
        drop(one);
        assert_eq!(words_in(file.path()), [0, 7, u64::MAX]);
        assert_eq!(other.as_ref()[1].load(Relaxed), 7);
    }

    #[test]
    fn what_is_in_the_file_is_seen_and_the_descriptor_is_not_needed() {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), 42_u64.to_ne_bytes()).unwrap();
        let own = OpenOptions::new()
            .read(true)
            .write(true)
            .open(file.path())
            .unwrap();
        let words = SharedWords::map(&own, 1).unwrap();
        drop(own);
        assert_eq!(words.as_ref()[0].load(Relaxed), 42);
    }

    #[test]
    fn another_thread_may_store_and_drop() {
        let file = file_of(8);
        let words = SharedWords::map(file.as_file(), 1).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| words.as_ref()[0].store(1, Relaxed));
        });
        std::thread::spawn(move || drop(words)).join().unwrap();
        assert_eq!(words_in(file.path()), [1]);
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        assert_eq!(
            refusal(file_of(15).as_file(), 2),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(
            refusal(file_of(16).as_file(), usize::MAX / 8),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn no_words_are_refused() {
        assert_eq!(
            refusal(file_of(8).as_file(), 0),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn a_file_that_is_open_for_reading_only_is_refused() {
        let file = file_of(8);
        let read_only = File::open(file.path()).unwrap();
        assert_eq!(refusal(&read_only, 1), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_was_stored_survives_a_killed_process() {
        let file = file_of(16);
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "map::tests::stores_and_is_killed_as_a_child"])
            .env(FILE_OF_CHILD, file.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert_eq!(words_in(file.path()), [0, 11]);
    }

    /// The child of the test above; nothing when run as a test of its own.
    #[test]
    fn stores_and_is_killed_as_a_child() {
        let Some(path) = std::env::var_os(FILE_OF_CHILD) else {
            return;
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let words = SharedWords::map(&file, 2).unwrap();
        words.as_ref()[1].store(11, Relaxed);
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap();
    }
}
