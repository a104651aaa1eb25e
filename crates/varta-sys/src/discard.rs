//! Discards a datagram together with its attached descriptors, on a thread that may sleep.
//!
//! None of the descriptors is installed: the kernel drops them all when the receiving call returns. Dropping the last
//! reference to a file can take as long as its owner has arranged. A socket that lingers sleeps until its peer has
//! read what was written. It may be nested: attached to a datagram in the queue of an attached socket, where its
//! option cannot be changed. A signal to the thread ends such a sleep and skips all later ones in the same return. So
//! a timer signals the thread. A file system that does not answer (FUSE, NFS) cannot be interrupted: the thread hangs
//! until it answers.
//!
//! A thread that waits for the queue to advance does not wait for that. The kernel writes the length of a datagram when it
//! has left the queue, and drops the attached descriptors after that: [`Progress`] reads this length.

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

/// How long a sleep may last before it is interrupted, and the interval of further attempts: 10 ms. An operation
/// that ends by itself is faster, and no thread waits for it.
const PATIENCE: Duration = Duration::from_millis(10);

/// The length that means that the datagram is still in the queue. No datagram is that long.
const PENDING: u32 = u32::MAX;

/// Ignored by default, so a signal from another process, or a late one of the timer, does no harm.
const SIGNAL: libc::c_int = libc::SIGURG;

/// State shared by the discarding thread and the thread that waits for it.
struct Message {
    /// Written by the discarding thread and its calls alone, except the length, which is an atomic for all threads.
    header: UnsafeCell<libc::mmsghdr>,
    /// Error number of the last call, 0 for none. Set before the length.
    error: AtomicI32,
}

// SAFETY: the header points to nothing. It is written by the one thread that has the `Discarder`; other threads read
// its length only, which is an atomic for all of them.
unsafe impl Send for Message {}
// SAFETY: as above.
unsafe impl Sync for Message {}

impl Message {
    fn len(&self) -> &AtomicU32 {
        let header = self.header.get();
        // SAFETY: a field of a header that is valid as long as `self`; no reference to the header is ever made.
        let len = unsafe { &raw mut (*header).msg_len };
        // SAFETY: valid and aligned for as long as `self`, and Rust code has no other access to it.
        unsafe { AtomicU32::from_ptr(len) }
    }
}

/// Discards datagrams, one at a time.
pub struct Discarder(Arc<Message>);

impl fmt::Debug for Discarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discarder").finish_non_exhaustive()
    }
}

/// The progress of a [`Discarder`] with its datagram.
pub struct Progress(Arc<Message>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.outcome()).finish()
    }
}

impl Default for Discarder {
    fn default() -> Self {
        Self::new()
    }
}

impl Discarder {
    /// An idle one.
    pub fn new() -> Self {
        // SAFETY: plain data for which all zeroes is a valid value; it is not built field by field because musl has
        // private padding in it.
        let header = unsafe { std::mem::zeroed() };
        Self(Arc::new(Message {
            header: UnsafeCell::new(header),
            error: AtomicI32::new(0),
        }))
    }

    /// For use from another thread.
    pub fn progress(&self) -> Progress {
        Progress(Arc::clone(&self.0))
    }

    /// From now on [`Progress`] is about the next [`Self::discard`].
    pub fn begin(&mut self) {
        self.0.error.store(0, Ordering::Relaxed);
        self.0.len().store(PENDING, Ordering::Release);
    }

    /// Takes the next datagram from `socket` and discards it, without waiting for one. Sleeps until its descriptors
    /// are dropped.
    ///
    /// # Errors
    ///
    /// The error of the system call: the datagram is still in the queue, or there was none.
    pub fn discard(
        &mut self,
        socket: BorrowedFd<'_>,
        hurry: Option<&Interrupter>,
    ) -> io::Result<()> {
        self.begin();
        let header = self.0.header.get();
        // No buffers: no bytes, no name, no control data. SAFETY: plain data for which all zeroes is a valid
        // value.
        let no_room = unsafe { std::mem::zeroed() };
        // SAFETY: only this thread writes to this part of the header, which lives as long as `self`.
        unsafe { (*header).msg_hdr = no_room };
        if let Some(hurry) = hurry {
            hurry.start(PATIENCE);
        }
        let result = loop {
            // SAFETY: one header without buffers, so the kernel writes to the header only; the length in it is an
            // atomic for us. The timeout may be null.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    header,
                    1,
                    libc::MSG_DONTWAIT as _,
                    ptr::null_mut(),
                )
            };
            if count >= 0 {
                break Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                break Err(error);
            }
        };
        if let Some(hurry) = hurry {
            hurry.stop();
        }
        if let Err(error) = &result {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.0.error.store(errno, Ordering::Relaxed);
            self.0.len().store(0, Ordering::Release);
        }
        result
    }
}

impl Progress {
    /// `None` while the datagram is in the queue. `Some` when it has left the queue, although discarding it may
    /// continue, or when it could not be taken.
    pub fn outcome(&self) -> Option<io::Result<()>> {
        if self.0.len().load(Ordering::Acquire) == PENDING {
            return None;
        }
        Some(match self.0.error.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        })
    }
}

/// A timer that interrupts the sleeps of the thread that made it.
pub struct Interrupter {
    timer: libc::timer_t,
    /// It belongs to its thread.
    _not_send: PhantomData<*const ()>,
}

impl fmt::Debug for Interrupter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupter").finish_non_exhaustive()
    }
}

impl Interrupter {
    /// A timer for the calling thread. From the first one on this process handles `SIGURG` with an empty
    /// handler.
    ///
    /// # Errors
    ///
    /// The error of the kernel: `EAGAIN` if there are too many signals and timers already.
    pub fn new() -> io::Result<Self> {
        handle_signal();
        // SAFETY: plain data for which all zeroes is a valid value.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL;
        // SAFETY: takes no argument and touches no memory.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = ptr::null_mut();
        // SAFETY: the event is read, the timer's number written to a place of ours.
        let result =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        match result {
            0 => Ok(Self {
                timer,
                _not_send: PhantomData,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Interrupts the thread after this time, and then at the same interval.
    fn start(&self, every: Duration) {
        self.set(every);
    }

    fn stop(&self) {
        self.set(Duration::ZERO);
    }

    fn set(&self, every: Duration) {
        let time = libc::timespec {
            tv_sec: every.as_secs() as _,
            tv_nsec: every.subsec_nanos() as _,
        };
        let setting = libc::itimerspec {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: the timer is this object's, the setting is read, and the old one is not requested.
        unsafe { libc::timer_settime(self.timer, 0, &raw const setting, ptr::null_mut()) };
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: the timer is this object's, and it is not used after this.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// Installs an empty handler, because an ignored signal interrupts no system call.
fn handle_signal() {
    extern "C" fn do_nothing(_: libc::c_int) {}
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        // SAFETY: plain data for which all zeroes is a valid value: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = do_nothing as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the action is read; its handler takes a signal's number, as the flags say, and does nothing.
        unsafe { libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) };
    });
    // SAFETY: plain data that is filled in below.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: empties the set it is given.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: adds a valid signal to a set that was just emptied.
    unsafe { libc::sigaddset(&raw mut set, SIGNAL) };
    // SAFETY: reads the set; the old one is not requested. The parent process may have blocked it.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) };
}
