//! Detects a fork of this process at the cost of one memory load.
//!
//! The state of an agent (sockets, counters, its pid) belongs to one process and is copied into every child.
//! Reading the pid before each beat costs a system call and misses a recycled pid. [`generation`] costs a
//! load and does not.
//!
//! On Linux the number is stored in a private page that the kernel wipes in every child (`MADV_WIPEONFORK`,
//! Linux 4.14), for any way of making the child; a raw `clone` is detected as well. On other systems, and
//! where the kernel refuses, a `pthread_atfork` handler counts, which a raw `clone` bypasses. A restored
//! snapshot of a process or of a machine is not a fork and is not detected.
//!
//! Bounds: one page or one registered handler per process, set up at first use and kept for ever; no
//! lock, no allocation.

/// A number that stays the same within a process and differs, in every process forked from it, from
/// all numbers that were seen before the fork. Never zero.
///
/// Where there is no fork (outside Unix) it is constant.
#[inline]
pub fn generation() -> u64 {
    #[cfg(unix)]
    let generation = unix::PROCESS.current();
    #[cfg(not(unix))]
    let generation = 1;
    generation
}

#[cfg(unix)]
mod unix {
    use std::ffi::c_int;
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> c_int;
    }

    /// What [`super::generation`] reads.
    pub(super) static PROCESS: Source = Source::new(|| wiped_word().or_else(counted_word));

    /// A generation, and the word it is kept in.
    pub(super) struct Source {
        /// Null until first use. The word itself is zero in a child that has not drawn its number.
        word: AtomicPtr<AtomicUsize>,
        /// The highest number drawn by this process or its ancestors. A fork copies it, so the next
        /// one is new to the child, and to whatever the child inherited.
        drawn: AtomicUsize,
        /// Returns the word; `None` when the system is out of resources.
        find_word: fn() -> Option<&'static AtomicUsize>,
    }

    impl Source {
        pub(super) const fn new(find_word: fn() -> Option<&'static AtomicUsize>) -> Self {
            Self {
                word: AtomicPtr::new(ptr::null_mut()),
                drawn: AtomicUsize::new(0),
                find_word,
            }
        }

        #[inline]
        pub(super) fn current(&self) -> u64 {
            match self.word().map(|word| word.load(Ordering::Relaxed)) {
                None | Some(0) => self.draw(),
                Some(generation) => generation as u64,
            }
        }

        #[inline]
        fn word(&self) -> Option<&'static AtomicUsize> {
            let word = self.word.load(Ordering::Acquire);
            // SAFETY: the pointer is null or was made from a `&'static AtomicUsize` in `draw`.
            unsafe { word.as_ref() }
        }

        /// First use in this process: makes the word if no ancestor has, and assigns a number.
        #[cold]
        fn draw(&self) -> u64 {
            let Some(word) = self.word().or_else(|| self.publish((self.find_word)()?)) else {
                // Without a word the pid serves: slower, and wrong for a recycled one.
                return u64::from(std::process::id());
            };
            let next = self.drawn.fetch_add(1, Ordering::Relaxed) + 1;
            match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => next as u64,
                Err(generation) => generation as u64,
            }
        }

        /// Publishes `word` for all threads, unless another thread was faster. The loser of that race leaves
        /// its page mapped; the race exists for the first use only.
        fn publish(&self, word: &'static AtomicUsize) -> Option<&'static AtomicUsize> {
            let _ = self.word.compare_exchange(
                ptr::null_mut(),
                ptr::from_ref(word).cast_mut(),
                Ordering::Release,
                Ordering::Relaxed,
            );
            self.word()
        }
    }

    /// A word that a handler changes in every child. `None` when the handler cannot be registered.
    fn counted_word() -> Option<&'static AtomicUsize> {
        static FORKS: AtomicUsize = AtomicUsize::new(1);

        extern "C" fn in_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }

        // SAFETY: the handler has the required signature, lives for ever, and only touches an
        // atomic, which is allowed in the child of a process with many threads.
        let error = unsafe { pthread_atfork(None, None, Some(in_child)) };
        (error == 0).then_some(&FORKS)
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn wiped_word() -> Option<&'static AtomicUsize> {
        None
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    use wiped_page::wiped_word;

    #[cfg(any(target_os = "linux", target_os = "android"))]
    mod wiped_page {
        use std::ffi::{c_int, c_void};
        use std::ptr;
        use std::sync::atomic::AtomicUsize;

        // The numbers of every architecture but mips, where they form an invalid request that is refused, so
        // that the handler serves.
        const PROT_READ_WRITE: c_int = 0x1 | 0x2;
        const MAP_PRIVATE_ANONYMOUS: c_int = 0x02 | 0x20;
        const MADV_WIPEONFORK: c_int = 18;

        /// The kernel rounds up to its page size.
        const LENGTH_BYTES: usize = size_of::<AtomicUsize>();

        /// musl has 64-bit offsets everywhere, the other libraries those of the machine.
        #[cfg(target_env = "musl")]
        type FileOffset = i64;
        #[cfg(not(target_env = "musl"))]
        type FileOffset = std::ffi::c_long;

        unsafe extern "C" {
            fn mmap(
                address: *mut c_void,
                length: usize,
                protection: c_int,
                flags: c_int,
                descriptor: c_int,
                offset: FileOffset,
            ) -> *mut c_void;
            fn munmap(address: *mut c_void, length: usize) -> c_int;
            fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
        }

        /// A word on a page of its own that reads as zero in every child until the child writes it. `None`
        /// when the kernel has no memory or does not support the advice.
        pub(super) fn wiped_word() -> Option<&'static AtomicUsize> {
            // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no
            // existing memory.
            let page = unsafe {
                mmap(
                    ptr::null_mut(),
                    LENGTH_BYTES,
                    PROT_READ_WRITE,
                    MAP_PRIVATE_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if page.addr() == usize::MAX {
                return None;
            }
            // SAFETY: the range is the mapping made above, which has no other user.
            if unsafe { madvise(page, LENGTH_BYTES, MADV_WIPEONFORK) } != 0 {
                // SAFETY: as above, and no reference into the page was ever made.
                unsafe { munmap(page, LENGTH_BYTES) };
                return None;
            }
            // SAFETY: page-aligned, readable and writable, zeroed, never unmapped from here on, and
            // only ever accessed as this atomic. The kernel zeroes it in a child before the child
            // runs, which to the program is no access at all.
            Some(unsafe { &*page.cast::<AtomicUsize>() })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        unsafe extern "C" {
            fn fork() -> c_int;
            fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
            fn _exit(status: c_int) -> !;
        }

        /// Runs `check` in a child made by `make_child`, which returns twice as `fork` does, and
        /// gives its answer.
        fn in_child_of(make_child: impl FnOnce() -> c_int, check: impl FnOnce() -> bool) -> bool {
            let pid = make_child();
            assert!(pid >= 0, "no child");
            if pid == 0 {
                let status = c_int::from(!check());
                // SAFETY: ends the child at once, without running code of the test harness.
                unsafe { _exit(status) }
            }
            let mut status = -1;
            // SAFETY: `pid` is a child of ours and `status` is writable.
            let waited = unsafe { waitpid(pid, &raw mut status, 0) };
            waited == pid && status == 0
        }

        fn in_fork(check: impl FnOnce() -> bool) -> bool {
            // SAFETY: the child runs the checks below, which only touch atomics, fork and wait.
            in_child_of(|| unsafe { fork() }, check)
        }

        /// The contract of [`super::super::generation`], for one source.
        fn assert_tells_generations_apart(source: &'static Source) {
            let own = source.current();
            assert_ne!(own, 0);

            assert!(
                in_fork(|| source.current() != own),
                "the child sees the number of its parent"
            );
            assert!(
                in_fork(|| in_fork(|| source.current() != own)),
                "the grandchild of a child that never asked sees the number of its grandparent"
            );
            assert!(
                in_fork(|| {
                    let child = source.current();
                    in_fork(|| ![own, child].contains(&source.current()))
                }),
                "the grandchild sees a number of an ancestor"
            );
            assert!(
                in_fork(|| {
                    let child = source.current();
                    in_fork(|| true) && source.current() == child
                }),
                "the number of a process changes because it forks"
            );
            assert_eq!(source.current(), own);
        }

        #[test]
        fn the_number_of_the_process_tells_generations_apart() {
            assert_tells_generations_apart(&PROCESS);
        }

        #[cfg(target_os = "linux")]
        #[test]
        fn the_wiped_page_tells_generations_apart() {
            static SOURCE: Source = Source::new(wiped_word);
            assert_tells_generations_apart(&SOURCE);
        }

        #[test]
        fn the_handler_tells_generations_apart() {
            static SOURCE: Source = Source::new(counted_word);
            assert_tells_generations_apart(&SOURCE);
        }

        #[test]
        fn the_pid_serves_when_nothing_else_can_be_had() {
            static SOURCE: Source = Source::new(|| None);
            assert_tells_generations_apart(&SOURCE);
        }

        #[cfg(all(
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        ))]
        #[test]
        fn the_wiped_page_notices_a_raw_clone() {
            use std::ffi::c_long;

            const SYS_CLONE: c_long = if cfg!(target_arch = "x86_64") {
                56
            } else {
                220
            };
            const SIGCHLD: c_long = 17;
            unsafe extern "C" {
                fn syscall(number: c_long, ...) -> c_long;
            }
            static SOURCE: Source = Source::new(wiped_word);

            let own = SOURCE.current();
            let raw_clone = || {
                const UNUSED: c_long = 0;
                // SAFETY: without flags this is a fork that skips the library's handlers; the child
                // only touches atomics.
                let pid = unsafe { syscall(SYS_CLONE, SIGCHLD, UNUSED, UNUSED, UNUSED, UNUSED) };
                pid as c_int
            };
            assert!(in_child_of(raw_clone, || SOURCE.current() != own));
        }

        #[test]
        fn threads_agree_on_the_number_they_draw_together() {
            static SOURCE: Source = Source::new(|| (PROCESS.find_word)());
            let numbers: Vec<u64> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| SOURCE.current())).collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("no panic"))
                    .collect()
            });
            assert!(
                numbers.iter().all(|&number| number == numbers[0]),
                "{numbers:?}"
            );
        }
    }
}
