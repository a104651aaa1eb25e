//! Waiting for input or for a deadline, whichever comes first.
//!
//! One epoll instance watches the sockets, the stop signal, the updates of the control thread, a timer and one pidfd
//! per agent. The timer is a `timerfd` with an absolute time: it is exact to the microsecond where a timeout in
//! milliseconds would not be, costs a system call only when the deadline moves, and exists on every supported kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::clock::RawClock;

/// Ready descriptors fetched per call.
const EVENTS_PER_CALL: usize = 256;

/// Most calls per wait: the rest is still ready in the next turn.
const CALLS_PER_WAIT: usize = 64;

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

const TIMER: u64 = u64::MAX;
const STOP: u64 = u64::MAX - 1;
const SOCKET: u64 = u64::MAX - 2;
const UPDATES: u64 = u64::MAX - 3;

/// What is ready.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// The loop must end.
    pub(crate) stop: bool,
    /// The control thread has sent updates.
    pub(crate) updates: bool,
    /// Slots whose process may have ended; each is added once, and taken out when it was handled.
    pub(crate) exits: Vec<u32>,
}

/// Waits for the ingest thread.
pub(crate) struct Sleeper {
    epoll: OwnedFd,
    timer: OwnedFd,
    clock: RawClock,
    /// When the timer fires; `None` while it is off.
    armed_ns: Option<u64>,
}

/// Buffer for ready descriptors. Not part of [`Sleeper`] because it cannot change threads.
pub(crate) struct Fetched(Vec<epoll::Event>);

impl Fetched {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(EVENTS_PER_CALL))
    }
}

impl Sleeper {
    /// `agents` is the largest number of exits at once.
    pub(crate) fn new(
        socket: impl AsFd,
        stop: impl AsFd,
        updates: impl AsFd,
        clock: RawClock,
        agents: usize,
    ) -> io::Result<(Self, Ready)> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let sleeper = Self {
            epoll,
            timer,
            clock,
            armed_ns: None,
        };
        sleeper.add(socket, SOCKET, epoll::EventFlags::IN)?;
        sleeper.add(stop, STOP, epoll::EventFlags::IN)?;
        sleeper.add(updates, UPDATES, epoll::EventFlags::IN)?;
        sleeper.add(&sleeper.timer, TIMER, epoll::EventFlags::IN)?;
        let ready = Ready {
            stop: false,
            updates: false,
            exits: Vec::with_capacity(agents),
        };
        Ok((sleeper, ready))
    }

    /// Wakes for input on a further socket too.
    pub(crate) fn watch_input(&self, socket: impl AsFd) -> io::Result<()> {
        self.add(socket, SOCKET, epoll::EventFlags::IN)
    }

    /// Whether input on a watched socket wakes the thread.
    pub(crate) fn set_input_wakes(&self, socket: impl AsFd, wakes: bool) -> io::Result<()> {
        let flags = match wakes {
            true => epoll::EventFlags::IN,
            false => epoll::EventFlags::empty(),
        };
        let data = epoll::EventData::new_u64(SOCKET);
        Ok(epoll::modify(&self.epoll, socket, data, flags)?)
    }

    /// Watches the process in `slot` until its pidfd is closed. Its end is reported once, so that many ends at once
    /// are not reported repeatedly while they are fetched.
    pub(crate) fn watch_exit(&self, slot: u32, pidfd: impl AsFd) -> io::Result<()> {
        let once = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        self.add(pidfd, u64::from(slot), once)
    }

    /// Stops watching a process.
    pub(crate) fn unwatch(&self, pidfd: impl AsFd) {
        // The process may never have been watched.
        let _ = epoll::delete(&self.epoll, pidfd);
    }

    /// Ensures a wake-up at `ns` (observer clock) or earlier. A timer that fires earlier is left alone: waking early
    /// is harmless, and moving the timer would cost a system call per beat. Returns when the timer fires.
    pub(crate) fn wake_at(&mut self, now_ns: u64, ns: u64) -> io::Result<u64> {
        if let Some(armed_ns) = self.armed_ns
            && armed_ns > now_ns
            && armed_ns <= ns
        {
            return Ok(armed_ns);
        }
        // Zero would switch the timer off; a time in the past fires at once.
        self.set_timer(self.clock.timespec_at(ns.max(1)))?;
        self.armed_ns = Some(ns);
        Ok(ns)
    }

    /// Waits for input alone.
    pub(crate) fn wake_on_input_only(&mut self) -> io::Result<()> {
        if self.armed_ns.take().is_some() {
            self.set_timer(Timespec::default())?;
        }
        Ok(())
    }

    /// Sleeps until something is ready and returns that. Input on the socket is not reported: every turn reads the
    /// socket anyway.
    pub(crate) fn wait(&self, ready: &mut Ready, fetched: &mut Fetched) -> io::Result<()> {
        self.fetch(None, ready, fetched)
    }

    /// Returns what is ready now.
    pub(crate) fn poll(&self, ready: &mut Ready, fetched: &mut Fetched) -> io::Result<()> {
        self.fetch(Some(&AT_ONCE), ready, fetched)
    }

    fn fetch(
        &self,
        mut timeout: Option<&Timespec>,
        ready: &mut Ready,
        fetched: &mut Fetched,
    ) -> io::Result<()> {
        for _ in 0..CALLS_PER_WAIT {
            fetched.0.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut fetched.0), timeout) {
                Ok(_) => {}
                // The process was stopped meanwhile, and nothing was fetched.
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            for event in &fetched.0 {
                match event.data.u64() {
                    STOP => ready.stop = true,
                    UPDATES => ready.updates = true,
                    SOCKET | TIMER => {}
                    slot => ready.exits.push(slot as u32),
                }
            }
            if fetched.0.len() < EVENTS_PER_CALL {
                break;
            }
            timeout = Some(&AT_ONCE);
        }
        Ok(())
    }

    fn add(&self, fd: impl AsFd, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, flags)?)
    }

    fn set_timer(&self, at: Timespec) -> io::Result<()> {
        let never = Timespec::default();
        let setting = Itimerspec {
            it_interval: never,
            it_value: at,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting)?;
        Ok(())
    }
}
