//! Datagrams that bring descriptors, discarded outside the beat path.
//!
//! Where the kernel cannot refuse them (before Linux 6.16), the beat path detects them when it peeks at the next
//! datagram. It leaves them in the queue, and one of these threads takes them out. They are refused, whatever else
//! they contain, as newer kernels refuse them. Closing a descriptor can hang for as long as its sender has arranged
//! ([`varta_sys::discard`]). The beat path continues when the datagram has left the queue.
//!
//! A spare thread is started while there are fewer than [`DISCARD_THREADS_MAX`]. If all of them hang, none can take
//! the next datagram out of the queue, and the datagrams behind it wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use varta_sys::discard::{Discarder, Interrupter, Progress};

use crate::beat_path_state::DISCARD_THREADS_MAX;
use crate::clock::RawClock;

const STACK_BYTES: usize = 64 * 1024;

/// A thread that takes longer than this for a datagram hangs: 1 s. Sleeps end after a hundredth of that.
const HANGS_NS: u64 = 1_000_000_000;

/// Value in place of a thread's number.
const NOBODY: usize = usize::MAX;

/// The beat path's end.
pub(super) struct Discards(Arc<Shared>);

struct Shared {
    socket: OwnedFd,
    /// A semaphore: posted once for each datagram, or once for each thread when all must end.
    jobs: OwnedFd,
    ends: AtomicBool,
    /// Wakes the beat path.
    bell: Arc<OwnedFd>,
    clock: RawClock,
    threads: Box<[Thread]>,
    /// Threads that were not started.
    spare: Mutex<Vec<usize>>,
    idle: AtomicUsize,
    /// The thread that took the last job.
    taken_by: AtomicUsize,
}

struct Thread {
    /// Held until the thread starts.
    discarder: Mutex<Option<Discarder>>,
    progress: Progress,
    /// Since when it works on a datagram; 0 while it is idle.
    since_ns: AtomicU64,
}

impl Discards {
    /// For the datagrams of `socket`; `bell` is rung when a thread is done with one.
    pub(super) fn start(
        socket: impl AsFd,
        bell: Arc<OwnedFd>,
        clock: RawClock,
    ) -> io::Result<Self> {
        let threads = (0..DISCARD_THREADS_MAX).map(|_| {
            let discarder = Discarder::new();
            Thread {
                progress: discarder.progress(),
                discarder: Mutex::new(Some(discarder)),
                since_ns: AtomicU64::new(0),
            }
        });
        let shared = Arc::new(Shared {
            socket: socket.as_fd().try_clone_to_owned()?,
            jobs: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::SEMAPHORE)?,
            ends: AtomicBool::new(false),
            bell,
            clock,
            threads: threads.collect(),
            spare: Mutex::new((0..DISCARD_THREADS_MAX).rev().collect()),
            idle: AtomicUsize::new(0),
            taken_by: AtomicUsize::new(NOBODY),
        });
        start_another(&shared)?;
        Ok(Self(shared))
    }

    /// Requests that the next datagram is taken out of the queue. The socket must not be read until [`Self::outcome`]
    /// reports the result.
    pub(super) fn take_next(&self) {
        self.0.taken_by.store(NOBODY, Ordering::Relaxed);
        post(&self.0.jobs, 1);
    }

    /// The result for the last datagram: it has left the queue, or could not be taken. `None` while it is in the
    /// queue.
    pub(super) fn outcome(&self) -> Option<io::Result<()>> {
        let thread = self.0.taken_by.load(Ordering::Acquire);
        self.0.threads.get(thread)?.progress.outcome()
    }

    /// Threads at work.
    pub(super) fn at_work(&self) -> usize {
        self.since_ns().count()
    }

    /// Threads that hang.
    pub(super) fn hanging(&self, now_ns: u64) -> usize {
        let hang = |since_ns: &u64| now_ns.saturating_sub(*since_ns) > HANGS_NS;
        self.since_ns().filter(hang).count()
    }

    fn since_ns(&self) -> impl Iterator<Item = u64> {
        let threads = self.0.threads.iter();
        threads
            .map(|thread| thread.since_ns.load(Ordering::Relaxed))
            .filter(|since_ns| *since_ns != 0)
    }
}

impl Drop for Discards {
    /// Threads that hang end with the process.
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::Relaxed);
        post(&self.0.jobs, DISCARD_THREADS_MAX as u64);
    }
}

fn post(semaphore: &OwnedFd, count: u64) {
    // Fails only after 2^64 posts.
    let _ = rustix::io::write(semaphore, &count.to_ne_bytes());
}

/// Starts a thread, unless the limit is reached.
fn start_another(shared: &Arc<Shared>) -> io::Result<()> {
    let mut spare = lock(&shared.spare);
    let Some(number) = spare.pop() else {
        return Ok(());
    };
    let started = Builder::new()
        .name("varta-discard".to_owned())
        .stack_size(STACK_BYTES)
        .spawn({
            let shared = Arc::clone(shared);
            move || work(&shared, number)
        });
    if started.is_err() {
        spare.push(number);
    }
    started.map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Arc<Shared>, number: usize) {
    let thread = &shared.threads[number];
    let Some(mut discarder) = lock(&thread.discarder).take() else {
        return;
    };
    // Without it a sleep lasts as long as its sender has arranged.
    let hurry = Interrupter::new().ok();
    loop {
        shared.idle.fetch_add(1, Ordering::Relaxed);
        while let Err(errno) = rustix::io::read(&shared.jobs, &mut [0; 8]) {
            if errno != Errno::INTR {
                return;
            }
        }
        let was_last = shared.idle.fetch_sub(1, Ordering::Relaxed) == 1;
        if shared.ends.load(Ordering::Relaxed) {
            return;
        }
        if was_last {
            // Fails for want of memory or threads; the next job tries it again.
            let _ = start_another(shared);
        }
        let since_ns = shared.clock.now_ns().max(1);
        thread.since_ns.store(since_ns, Ordering::Relaxed);
        discarder.begin();
        shared.taken_by.store(number, Ordering::Release);
        // The progress shows it to the beat path.
        let _ = discarder.discard(shared.socket.as_fd(), hurry.as_ref());
        thread.since_ns.store(0, Ordering::Relaxed);
        post(&shared.bell, 1);
    }
}
