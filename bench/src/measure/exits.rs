//! The time until the end of a process is reported.
//!
//! Batches of agents start, beat, and end at random phases: every other one is killed with SIGKILL, the rest leave by
//! themselves with code 0. An exit starts with the time recorded right before the kill, or by the agent itself right
//! before it leaves. The observer's threshold is very long, so that only the exit can cause a report. Two times are
//! measured from that start:
//!
//! - *told*: until this program has read the observer's exit line for that pid;
//!
//! - *bare pidfd*: until a thread of this program returns that only polls a pidfd of the same process.
//!
//! Both include the kernel's time to end a process. No agent is reaped before its batch is over.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::thread::{ScopedJoinHandle, scope, sleep};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::Signal;
use varta_api::LogEvent;
use varta_api::log_line::How;

use crate::agents::{Agents, scattered};
use crate::observer::{Line, Observer};
use crate::procfs::now_ns;
use crate::report::{Figure, Report};
use crate::{Bench, Result};

/// No agent must stall.
const THRESHOLD: Duration = Duration::from_secs(60);
const CAPACITY: usize = 256;

/// Time between beats of an agent; within it, those that were requested to leave have left.
const INTERVAL: Duration = Duration::from_millis(250);

/// Batches per observer: its log drops lines of a user that causes more than 500 at once, and each agent causes two.
const BATCHES_PER_OBSERVER: usize = 4;

/// Kills of a batch come up to this far apart, nanoseconds.
const KILL_GAP_NS: u64 = 20_000_000;

/// After this time an exit without a report counts as missed.
const PATIENCE: Duration = Duration::from_secs(5);

const SIGKILL: u8 = 9;

/// The way in which an agent ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Left,
}

impl End {
    fn of(index: usize) -> Self {
        if index.is_multiple_of(2) {
            Self::Killed
        } else {
            Self::Left
        }
    }

    fn is_told_by(self, event: &LogEvent) -> bool {
        let LogEvent::Exit(exit) = event else {
            return false;
        };
        let told = (exit.how, exit.code, exit.signal);
        told == match self {
            Self::Killed => (How::Died, None, Some(SIGKILL)),
            Self::Left => (How::Left, Some(0), None),
        }
    }
}

/// An agent that has ended.
struct Exit {
    end: End,
    begun_ns: u64,
    /// When the bare pidfd became readable.
    polled_ns: u64,
    told: Option<Line>,
}

impl Exit {
    fn polled_ms(&self) -> f64 {
        since_ms(self.begun_ns, self.polled_ns)
    }

    fn told_ms(&self) -> Option<f64> {
        let told = self.told.as_ref()?;
        Some(since_ms(self.begun_ns, told.read_ns))
    }
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let start = || Observer::start(bench, THRESHOLD, CAPACITY, &[]);
    let mut observer = start()?;
    let (batches, per_batch) = (bench.plan.exit_batches, bench.plan.exits_per_batch);
    let mut exits = Vec::with_capacity(batches * per_batch);
    for batch in 0..batches {
        if batch > 0 && batch % BATCHES_PER_OBSERVER == 0 {
            observer = start()?;
        }
        if batch % batches.div_ceil(4) == 0 {
            let wanted = batches * per_batch;
            bench.say(&format!("exits: {} of {wanted}", exits.len()));
        }
        let agents = Agents::start(observer.receiver().socket(), per_batch, INTERVAL)?;
        if let Some(error) = &agents.refused {
            let started = agents.len();
            report.note(format!(
                "exits: only {started} of {per_batch} agents: {error}"
            ));
        }
        sleep(INTERVAL);
        exits.extend(end_all(&agents, &observer)?);
    }

    let told_ms: Vec<f64> = exits.iter().filter_map(Exit::told_ms).collect();
    let polled_ms: Vec<f64> = exits.iter().map(Exit::polled_ms).collect();
    let beyond = |exit: &Exit| Some(exit.told_ms()? - exit.polled_ms());
    let beyond_ms: Vec<f64> = exits.iter().filter_map(beyond).collect();
    report.compare(
        "exit: told, p50/p99/max",
        "ms",
        Figure::percentiles(&told_ms),
        "bare pidfd",
        Figure::percentiles(&polled_ms),
    );
    report.row(
        "exit: told beyond its bare pidfd, p50/p99/max",
        "ms",
        Figure::percentiles(&beyond_ms),
    );
    for (end, measure) in [
        (End::Killed, "exit: told as died by signal 9"),
        (End::Left, "exit: told as left with code 0"),
    ] {
        let made = exits.iter().filter(|exit| exit.end == end);
        let told = made.clone().filter(|exit| {
            let told = exit.told.as_ref();
            told.is_some_and(|line| end.is_told_by(&line.log.event))
        });
        let (told, made) = (told.count() as f64, made.count() as f64);
        report.compare(measure, "exits", told, "made", made);
    }
    report.note(format!(
        "exits: {batches} batches of {per_batch} agents, in turns killed with SIGKILL and leaving by \
         themselves, at random phases; told = from right before the kill or the leaving to the exit \
         line read by this program; bare pidfd = to the return of a poll of the same process by \
         this program"
    ));
    Ok(())
}

/// Ends every agent in its way and receives both reports.
fn end_all(agents: &Agents, observer: &Observer) -> Result<Vec<Exit>> {
    let indices = 0..agents.len();
    let pidfds = indices.clone().map(|index| agents.pidfd(index));
    let pidfds = pidfds.collect::<Result<Vec<_>>>()?;
    let (killed_ns, polled_ns) = scope(|threads| {
        let wait = |pidfd| threads.spawn(move || wait_for_end(pidfd));
        let waits: Vec<_> = pidfds.iter().map(wait).collect();
        let killed_ns = begin_all(agents);
        let polled_ns: Result<Vec<u64>> = waits.into_iter().map(joined).collect();
        (killed_ns, polled_ns)
    });
    let (killed_ns, polled_ns) = (killed_ns?, polled_ns?);
    let mut lines = exit_lines(agents, observer);
    indices
        .map(|index| {
            let end = End::of(index);
            let begun_ns = match end {
                End::Killed => killed_ns.get(&index).copied(),
                End::Left => agents.left_ns(index)?,
            };
            Ok(Exit {
                end,
                begun_ns: begun_ns.ok_or("an agent ended that should not have")?,
                polled_ns: polled_ns[index],
                told: lines.remove(&agents.pid(index)),
            })
        })
        .collect()
}

/// Requests half of the agents to leave, each at its own phase, and kills the others one by one in the meantime;
/// returns when each was killed, by index.
fn begin_all(agents: &Agents) -> Result<HashMap<usize, u64>> {
    let with = |end| (0..agents.len()).filter(move |index| End::of(*index) == end);
    for index in with(End::Left) {
        agents.ask_to_leave(index)?;
    }
    let mut killed_ns = HashMap::new();
    for index in with(End::Killed) {
        sleep(Duration::from_nanos(scattered(now_ns()) % KILL_GAP_NS));
        killed_ns.insert(index, now_ns());
        agents.signal(index, Signal::KILL)?;
    }
    Ok(killed_ns)
}

/// Returns when the process has ended, in a thread that only waits for that.
fn wait_for_end(pidfd: &OwnedFd) -> io::Result<u64> {
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let ready = retry_on_intr(|| poll(&mut fds, Some(&patience)))?;
    let polled_ns = now_ns();
    if ready == 0 {
        return Err(io::Error::other("an agent does not end"));
    }
    Ok(polled_ns)
}

fn joined(thread: ScopedJoinHandle<'_, io::Result<u64>>) -> Result<u64> {
    Ok(thread.join().map_err(|_| "a polling thread panicked")??)
}

/// The exit line of each agent by pid, as far as they come.
fn exit_lines(agents: &Agents, observer: &Observer) -> HashMap<u32, Line> {
    let end = Instant::now() + PATIENCE;
    let mut lines = HashMap::new();
    while lines.len() < agents.len() {
        let left = end.saturating_duration_since(Instant::now());
        let Some(line) = observer.next_line(left) else {
            break;
        };
        if let LogEvent::Exit(exit) = &line.log.event {
            lines.insert(exit.agent.pid, line);
        }
    }
    lines
}

fn since_ms(begun_ns: u64, ns: u64) -> f64 {
    (ns as f64 - begun_ns as f64) / 1e6
}
