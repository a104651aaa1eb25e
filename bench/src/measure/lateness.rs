//! The lateness of a detected stall, with few and with many agents tracked.
//!
//! Agents beat at random phases, well within the threshold. In rounds, a few at a time are stopped with SIGSTOP until
//! the observer has reported each of them, then continued until each has been reported back. Lateness is measured
//! twice:
//!
//! - *noticed*: the observer's own figure, from the deadline by its own clock (the last beat was read, plus the
//!   threshold) to the check that found the silence;
//!
//! - *told*: from the last beat's sending plus the threshold, by the agent's own record, to the moment this program
//!   has read the line. It includes the transport of the beat to the observer and that of the line out of it. A stall
//!   whose last nonce is not the one that the agent recorded is ignored: the agent was stopped between sending and
//!   recording.
//!
//! The reference is the lateness of the machine itself: a bare timer in this program, over the same seconds. A stall
//! in the observer's own count that the bench did not cause is a false one, whatever its reason: an agent whose beats
//! repeatedly found the kernel's queue full is silent to the observer, so beats lost that way are counted too. While
//! thousands of agents are being started that does happen where the queue holds 11; such stalls are counted
//! separately.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use varta_api::LogEvent;

use crate::agents::{Agents, scattered};
use crate::observer::{Line, Observer};
use crate::plan::LatenessCase;
use crate::procfs::{now_ns, resident_kib};
use crate::report::{Figure, Report};
use crate::{Bench, Result};

/// Time between beats, in thresholds: an agent may lose two beats in a row and is still in time.
pub(super) const INTERVAL_THRESHOLDS: f64 = 0.3;

/// Least number of slots of the observer: its default.
const CAPACITY_MIN: usize = 256;

/// Thresholds after which a stall or a return that was not reported counts as missed.
const PATIENCE: u32 = 3;

pub(super) const STALLS: &str = "varta_observer_stalls_total";

/// Interval of the bare timer, scattered up to twice as far, nanoseconds.
const TIMER_NS: u64 = 20_000_000;

#[derive(Default)]
pub(super) struct Found {
    pub(super) noticed_ms: Vec<f64>,
    pub(super) told_ms: Vec<f64>,
    missed: usize,
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    for case in &bench.plan.lateness {
        measure_case(bench, case, report)?;
    }
    report.note(
        "lateness: noticed = by the observer's own account; told = from the sending of the last \
         beat plus the threshold to the stall line read by this program; bare timer = what a \
         timerfd oversleeps in the same seconds",
    );
    Ok(())
}

fn measure_case(bench: &Bench, case: &LatenessCase, report: &mut Report) -> Result<()> {
    bench.say(&format!("lateness, agents: {}; starting them", case.agents));
    let capacity = case.agents.max(CAPACITY_MIN);
    let observer = Observer::start(bench, case.threshold, capacity, &[])?;
    let interval = case.threshold.mul_f64(INTERVAL_THRESHOLDS);
    let agents = Agents::start(observer.receiver().socket(), case.agents, interval)?;
    sleep(case.threshold);
    let tracked = observer.counter("varta_observer_joins_total")?;
    if let Some(error) = &agents.refused {
        report.note(format!("only {tracked} of {} agents: {error}", case.agents));
    }

    let stalls_at_start = observer.counter(STALLS)?;
    if stalls_at_start > 0 {
        report.note(format!(
            "stalls while {tracked} agents were being started, before the measurement: \
             {stalls_at_start}"
        ));
    }
    let before = agents.tally()?;

    let stop = AtomicBool::new(false);
    let (found, oversleep_ms) = scope(|threads| {
        let timer = threads.spawn(|| oversleep_ms(&stop));
        let found = rounds(bench, case, &observer, &agents);
        stop.store(true, Ordering::Relaxed);
        (found, timer.join())
    });
    let found = found?;
    let oversleep_ms = oversleep_ms.map_err(|_| "the bare timer panicked")??;

    let after = agents.tally()?;
    let stalls = observer.counter(STALLS)? - stalls_at_start;
    let agents_tracked = match tracked {
        1 => "1 agent".to_owned(),
        n => format!("{n} agents"),
    };
    let quantiles = "p50/p99/max";
    report.compare(
        &format!("lateness, {agents_tracked}: noticed, {quantiles}"),
        "ms",
        Figure::percentiles(&found.noticed_ms),
        "bare timer",
        Figure::percentiles(&oversleep_ms),
    );
    report.row(
        &format!("lateness, {agents_tracked}: told, {quantiles}"),
        "ms",
        Figure::percentiles(&found.told_ms),
    );
    report.compare(
        &format!("lateness, {agents_tracked}: stalls reported"),
        "stalls",
        found.noticed_ms.len() as f64,
        "made",
        (found.noticed_ms.len() + found.missed) as f64,
    );
    report.row(
        &format!("lateness, {agents_tracked}: false stalls"),
        "stalls",
        stalls.saturating_sub(found.noticed_ms.len() as u64) as f64,
    );
    let tried = after.tried - before.tried;
    let lost = tried - (after.sent - before.sent);
    report.compare(
        &format!("lateness, {agents_tracked}: beats lost, queue full"),
        "beats",
        lost as f64,
        "of",
        tried as f64,
    );
    let resident_kib = resident_kib(observer.receiver().pid())?;
    report.row(
        &format!("resident memory, {agents_tracked}"),
        "KiB",
        resident_kib as f64,
    );
    Ok(())
}

pub(super) fn rounds(
    bench: &Bench,
    case: &LatenessCase,
    observer: &Observer,
    agents: &Agents,
) -> Result<Found> {
    let mut found = Found::default();
    for round in 0..case.rounds {
        if round % case.rounds.div_ceil(8) == 0 {
            bench.say(&format!(
                "lateness, agents: {}; stalls: {} of {}",
                agents.len(),
                round * case.victims,
                case.rounds * case.victims
            ));
        }
        // A run of neighbours from a random start: all agents are equivalent.
        let first = scattered(round as u64) as usize % agents.len();
        let victims = (0..case.victims.min(agents.len())).map(|i| (first + i) % agents.len());
        let victims: HashMap<u32, usize> = victims.map(|i| (agents.pid(i), i)).collect();
        for victim in victims.values() {
            agents.signal(*victim, Signal::STOP)?;
        }
        found.missed += await_each(is_stall, &victims, case, observer, &mut found, {
            |found, index, line| note_stall(found, agents, case.threshold, index, line)
        })?;
        for victim in victims.values() {
            agents.signal(*victim, Signal::CONT)?;
        }
        await_each(is_return, &victims, case, observer, &mut found, {
            |_, _, _| Ok(())
        })?;
    }
    Ok(found)
}

fn is_stall(event: &LogEvent) -> bool {
    matches!(event, LogEvent::Stall(_))
}

fn is_return(event: &LogEvent) -> bool {
    matches!(event, LogEvent::Return(_))
}

/// Reads lines until each victim has had its event or the timeout is over; returns how many had not.
fn await_each(
    is_it: fn(&LogEvent) -> bool,
    victims: &HashMap<u32, usize>,
    case: &LatenessCase,
    observer: &Observer,
    found: &mut Found,
    mut note: impl FnMut(&mut Found, usize, &Line) -> Result<()>,
) -> Result<usize> {
    let mut waiting = victims.clone();
    let end = Instant::now() + case.threshold * PATIENCE;
    while !waiting.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        let Some(line) = observer.next_line(left) else {
            break;
        };
        let agent = line.log.event.agent().filter(|_| is_it(&line.log.event));
        if let Some(index) = agent.and_then(|agent| waiting.remove(&agent.pid)) {
            note(found, index, &line)?;
        }
    }
    Ok(waiting.len())
}

pub(super) fn note_stall(
    found: &mut Found,
    agents: &Agents,
    threshold: Duration,
    index: usize,
    line: &Line,
) -> Result<()> {
    let LogEvent::Stall(stall) = &line.log.event else {
        return Err("not the line of a stall".into());
    };
    found.noticed_ms.push(stall.lateness_ms);
    let last = agents.record(index)?;
    if stall.nonce == last.nonce {
        let due_ns = last.sent_ns as f64 + threshold.as_nanos() as f64;
        found.told_ms.push((line.read_ns as f64 - due_ns) / 1e6);
    }
    Ok(())
}

/// The lateness of a bare timer, measured repeatedly until it is stopped.
pub(super) fn oversleep_ms(stop: &AtomicBool) -> std::io::Result<Vec<f64>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let mut late_ms = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let due_ns = now_ns() + TIMER_NS + scattered(number) % TIMER_NS;
        wait_until(&timer, due_ns)?;
        late_ms.push((now_ns() - due_ns) as f64 / 1e6);
    }
    Ok(late_ms)
}

fn wait_until(timer: &OwnedFd, due_ns: u64) -> std::io::Result<()> {
    let setting = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec {
            tv_sec: (due_ns / 1_000_000_000) as _,
            tv_nsec: (due_ns % 1_000_000_000) as _,
        },
    };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &setting)?;
    rustix::io::read(timer, &mut [0; 8])?;
    Ok(())
}
