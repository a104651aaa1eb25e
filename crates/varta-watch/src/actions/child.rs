//! A running program: started for one process, watched until its end, ended together with everything it started.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use varta_core::engine::Subject;
use varta_core::fact::{ExitCause, Force, ProgramExit, StartFailure};
use varta_core::policy::RunStep;
use varta_sys::child::{Child, Program};

use super::cgroup::{ChildCgroup, Delegated};
use super::failure::os_error;
use super::output::{Collector, LeftOpen, Output};
use super::target;
use super::{Runner, command, environment};
use crate::process_info;
use crate::settings::children::Children;

/// Interval of the check whether a group without a leader has ended. The kernel sends no notification of that.
const GROUP_PAUSE: Duration = Duration::from_millis(10);

/// A running program. Dropping it, or its [`wait`](Running::wait), kills the program and its group.
pub(crate) struct Running {
    pub(crate) pid: u32,
    group: Group,
    started: Instant,
    timeout: Option<Duration>,
    grace: Duration,
    stop: watch::Receiver<Option<Duration>>,
    collector: Collector,
    left_open: LeftOpen,
}

/// A program that has ended and was reaped.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) exit: ProgramExit,
    /// From its start to its own end; processes it left behind do not count.
    pub(crate) duration: Duration,
    pub(crate) output: Output,
}

impl Runner {
    /// Starts the program of a step for the intended process, or returns the reason why not. For a remote process the
    /// program itself must find that process.
    ///
    /// Must be called within the runtime.
    pub(crate) fn start(
        &self,
        step: &RunStep,
        children: &Children,
        subject: &Subject,
    ) -> Result<Running, StartFailure> {
        let failed = |error| StartFailure::Spawn {
            program: step.called(),
            error: os_error(error),
        };
        let (reader, writer) = io::pipe().map_err(failed)?;
        let collector = Collector::new(reader, children.capture_bytes).map_err(failed)?;
        let own = std::env::vars_os();
        let environment = environment::for_child(children, subject, own);
        let cgroup = self.delegated.as_ref().and_then(Delegated::make);
        let (cgroup, procs) = cgroup.unzip();
        let program = program(step, subject, environment, writer.into(), procs);
        let program = program.map_err(failed)?;
        let is_aimed = subject.is_target && !subject.agent.is_remote();
        let _target = match is_aimed {
            true => Some(target::hold(subject.agent, self.kernel, failed)?),
            false => None,
        };
        let started = Instant::now();
        let child = program.start().map_err(failed)?;
        let pid = child.pid;
        let group = Group::new(child, cgroup).map_err(failed)?;
        Ok(Running {
            pid,
            group,
            started,
            timeout: step.timeout,
            grace: children.grace,
            stop: self.stop.subscribe(),
            collector,
            left_open: self.left_open.clone(),
        })
    }
}

impl Running {
    /// Waits for the end, or ends the program when its time is up or the observer stops.
    pub(crate) async fn wait(mut self) -> Ended {
        let life = live(&mut self.group, self.timeout, self.grace, &mut self.stop);
        let (cause, end) = tokio::select! {
            biased;
            ended = life => ended,
            never = self.collector.collect() => match never {},
        };
        let status = self.group.reap().await;
        self.group.is_over = true;
        Ended {
            exit: ProgramExit {
                status: status.map_err(os_error),
                cause,
            },
            duration: end - self.started,
            output: self.collector.finish(&self.left_open),
        }
    }
}

#[cfg(test)]
impl Running {
    pub(super) fn outlives_leader(&self) -> bool {
        self.group.outlives_leader
    }

    pub(super) fn before_linux_6_9(mut self) -> Self {
        self.group.outlives_leader = false;
        self
    }
}

/// How and when the leader of a group has ended.
async fn live(
    group: &mut Group,
    timeout: Option<Duration>,
    grace: Duration,
    stop: &mut watch::Receiver<Option<Duration>>,
) -> (ExitCause, Instant) {
    tokio::select! {
        biased;
        end = group.leader_end() => return (ExitCause::Itself, end),
        () = sleep(timeout.unwrap_or(Duration::MAX)) => {}
        grace = stop_requested(stop) => {
            let (force, end) = group.end(grace).await;
            return (ExitCause::ObserverStops(force), end);
        }
    }
    let (force, end) = group.end(grace).await;
    (ExitCause::TimedOut(force), end)
}

/// The grace for children when the observer stops.
async fn stop_requested(stop: &mut watch::Receiver<Option<Duration>>) -> Duration {
    let request = stop.wait_for(Option::is_some).await;
    match request.ok().and_then(|grace| *grace) {
        Some(grace) => grace,
        None => future::pending().await,
    }
}

/// A child and the processes it started. Killed when dropped, unless it has ended.
struct Group {
    /// The leader.
    pidfd: AsyncFd<OwnedFd>,
    /// The leader's wait status, once it was reaped.
    status: Option<i32>,
    /// The number of the group, and of its session. Another group may get it once the leader was reaped.
    number: Option<Pid>,
    /// The group can be reached through the pidfd, even when its leader was reaped (Linux 6.9).
    outlives_leader: bool,
    cgroup: Option<ChildCgroup>,
    /// The leader was reaped, and the processes it left behind may stay.
    is_over: bool,
}

impl Group {
    fn new(leader: Child, cgroup: Option<ChildCgroup>) -> io::Result<Self> {
        let number = Pid::from_raw(leader.pid.cast_signed());
        #[allow(
            deprecated,
            reason = "its successor is unsafe because a type may lie about its descriptor; an \
                      OwnedFd does not"
        )]
        let pidfd = AsyncFd::with_interest(leader.pidfd, Interest::READABLE);
        let pidfd = pidfd.inspect_err(|_| {
            // Without its pidfd the child could not be waited for.
            kill_unreaped(number, Signal::KILL);
            reap_aside(number);
        })?;
        let probe = varta_sys::process::signal_group(pidfd.as_fd(), 0);
        Ok(Self {
            outlives_leader: probe.map_or_else(|error| process_info::is_gone(&error), |()| true),
            pidfd,
            status: None,
            number,
            cgroup: cgroup.filter(ChildCgroup::is_populated),
            is_over: false,
        })
    }

    /// Returns when the leader has ended. The leader is not reaped.
    async fn leader_end(&self) -> Instant {
        // Fails only when the runtime shuts down, which drops this future too.
        let _ = self.pidfd.readable().await;
        Instant::now()
    }

    /// The leader's wait status. The leader has ended, but the kernel reports that to a tracer first.
    async fn reap(&mut self) -> io::Result<i32> {
        const ENDED: WaitIdOptions = WaitIdOptions::EXITED.union(WaitIdOptions::NOHANG);
        if let Some(status) = self.status {
            return Ok(status);
        }
        loop {
            let leader = WaitId::PidFd(self.pidfd.get_ref().as_fd());
            match waitid(leader, ENDED) {
                Ok(Some(ended)) => return Ok(*self.status.insert(wait_status(&ended))),
                Ok(None) => sleep(GROUP_PAUSE).await,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// TERM, `grace`, KILL, for every process in the group. Returns how and when the leader ended.
    async fn end(&mut self, grace: Duration) -> (Force, Instant) {
        let signalled_at = Instant::now();
        self.signal(Signal::TERM);
        // A stopped process handles no TERM.
        self.signal(Signal::CONT);
        let Ok(end) = timeout(grace, self.leader_end()).await else {
            self.signal(Signal::KILL);
            return (Force::Kill, self.leader_end().await);
        };
        // The other members get the rest of the grace, where the kernel can distinguish them from the zombie of the
        // leader.
        if self.outlives_leader {
            let rest = grace.saturating_sub(signalled_at.elapsed());
            let _ = timeout(rest, async {
                let _ = self.reap().await;
                self.emptied().await;
            })
            .await;
        }
        self.signal(Signal::KILL);
        (Force::Term, end)
    }

    /// Returns when the group is empty. The leader was reaped.
    async fn emptied(&self) {
        while varta_sys::process::signal_group(self.pidfd.as_fd(), 0).is_ok() {
            sleep(GROUP_PAUSE).await;
        }
    }

    /// TERM goes to the process group. KILL also reaches processes that left the group, where the child has a control
    /// group of its own.
    fn signal(&self, signal: Signal) {
        if self.outlives_leader {
            let _ = varta_sys::process::signal_group(self.pidfd.as_fd(), signal.as_raw());
        } else {
            kill_unreaped(self.number, signal);
        }
        if signal == Signal::KILL
            && let Some(cgroup) = &self.cgroup
        {
            cgroup.kill();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.is_over {
            self.signal(Signal::KILL);
            if self.status.is_none() {
                reap_aside(self.number);
            }
        }
    }
}

/// Reaps a child that was killed, however long the kernel takes to end it.
fn reap_aside(leader: Option<Pid>) {
    if let Some(leader) = leader {
        // Without a thread it stays a zombie until the observer ends.
        let _ = std::thread::Builder::new()
            .spawn(move || waitid(WaitId::Pid(leader), WaitIdOptions::EXITED));
    }
}

/// The program to start, filled in for one process.
fn program(
    step: &RunStep,
    subject: &Subject,
    environment: Vec<(OsString, OsString)>,
    output: OwnedFd,
    procs: Option<File>,
) -> io::Result<Program> {
    let arguments = step
        .arguments
        .iter()
        .map(|argument| command::fill(subject, argument));
    // The last value of a name applies.
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    let variables = environment.into_iter().map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        string(variable)
    });
    Ok(Program {
        path: string(step.program.clone())?,
        arguments: arguments.map(string).collect::<io::Result<_>>()?,
        environment: variables.collect::<io::Result<_>>()?,
        input: File::open("/dev/null")?,
        output,
        procs,
    })
}

/// No argument or variable of a program can have a zero byte in it.
fn string(text: impl Into<OsString>) -> io::Result<CString> {
    CString::new(text.into().into_vec()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// As the kernel encodes it.
fn wait_status(ended: &WaitIdStatus) -> i32 {
    const CORE_DUMPED: i32 = 0x80;
    let code = ended.exit_status().map(|code| (code & 0xFF) << 8);
    let signal = ended.terminating_signal();
    let core = if ended.dumped() { CORE_DUMPED } else { 0 };
    code.or(signal).unwrap_or_default() | core
}

/// Signals a group by its number, which is its own until its leader is reaped.
fn kill_unreaped(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        let _ = kill_process_group(group, signal);
    }
}
