//! The effect of recovery on the detection of stalls when a crowd falls silent together.
//!
//! A crowd and some other agents beat. The crowd is stopped at once; the others are stopped one by one meanwhile,
//! continued when their stall was reported, and stopped again once they were back. This is done with observers that
//! differ in their reaction, one after the other, round by round: none; a ladder with hold-fire; a ladder without
//! hold-fire, at the default rate and without a limit. A child sleeps for 10 ms.
//!
//! Each has its own agents, all of which have the ladder. The bare timer has the priority of a beat path without real
//! time, where this user may set it: the children take the same cores from both.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use varta_api::LogEvent;
use varta_api::log_line::{Outcome, Recover};

use super::lateness::{Found, INTERVAL_THRESHOLDS, STALLS, note_stall, oversleep_ms};
use crate::agents::Agents;
use crate::observer::{Line, Observer};
use crate::procfs::control_thread_cpu_ns;
use crate::report::{Figure, Report};
use crate::{Bench, Result};

const THRESHOLD: Duration = Duration::from_secs(1);

/// Between two stops of the others; 100 per second, of which each stays away for little more than a threshold.
const PACE: Duration = Duration::from_millis(10);

/// Least time for which the others are stopped: the stalls of the crowd, and as long again.
const WINDOW: Duration = Duration::from_secs(3);

/// Longest time to act on all of the crowd, at 100 per second and more.
const PATIENCE: Duration = Duration::from_secs(60);

/// Without any report for this long, no more will come. Others come back within an interval.
const SETTLE: Duration = Duration::from_secs(1);

/// The priority of a beat path that may not run in real time.
const HIGH_PRIORITY: i32 = -10;

const SPAWNED: &str = "varta_recovery_outcomes_total{outcome=\"spawned\"}";
const REAPED_ZERO: &str = "varta_recovery_outcomes_total{outcome=\"reaped_zero\"}";

/// Acts on every agent once, and waits very long for the result.
const LADDER: [&str; 2] = ["--recovery-exec=/bin/sleep 0.01", "--recovery-wait=1h"];

/// Nothing holds fire, whatever else this machine is doing.
const FREE_FIRE: [&str; 3] = [
    "--mass-stall-share=off",
    "--memory-pressure=off",
    "--io-pressure=off",
];

const NO_RATE: &str = "--recovery-starts-per-second=0";

/// An observer with a reaction of its own to silence, over all rounds.
struct Contender {
    name: &'static str,
    flags: Vec<&'static str>,
    /// It must act on each of the crowd.
    acts: bool,
    crowd: Found,
    others: Found,
    oversleep_ms: Vec<f64>,
    /// CPU time of the control thread, and the time over which it was measured, s in all rounds.
    control_s: f64,
    watched_s: f64,
    /// From the first child of the crowd to the end of the last, s per round.
    took_s: Vec<f64>,
    /// How long children ran.
    child_ms: Vec<f64>,
    most_in_flight: usize,
    stalls: u64,
    spawned: u64,
    reaped: u64,
    left_out: usize,
}

impl Contender {
    fn new(name: &'static str, acts: bool, flags: &[&[&'static str]]) -> Self {
        Self {
            name,
            flags: flags.concat(),
            acts,
            crowd: Found::default(),
            others: Found::default(),
            oversleep_ms: Vec::new(),
            control_s: 0.0,
            watched_s: 0.0,
            took_s: Vec::new(),
            child_ms: Vec::new(),
            most_in_flight: 0,
            stalls: 0,
            spawned: 0,
            reaped: 0,
            left_out: 0,
        }
    }

    /// CPU time of the control thread, in percent of a core.
    fn control_percent(&self) -> f64 {
        self.control_s / self.watched_s * 100.0
    }

    /// CPU time of the control thread for each child, us, beyond its time without any.
    fn control_us_per_child(&self, quiet: &Self) -> f64 {
        let without_s = quiet.control_percent() / 100.0 * self.watched_s;
        (self.control_s - without_s) * 1e6 / self.spawned as f64
    }

    fn made(&self) -> usize {
        self.crowd.noticed_ms.len() + self.others.noticed_ms.len()
    }
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut contenders = [
        Contender::new("no recovery", false, &[]),
        Contender::new("holding fire", false, &[&LADDER]),
        Contender::new("free fire, 100/s", true, &[&LADDER, &FREE_FIRE]),
        Contender::new(
            "free fire, no rate",
            true,
            &[&LADDER, &FREE_FIRE, &[NO_RATE]],
        ),
    ];
    let rounds = bench.plan.restraint.rounds;
    for round in 1..=rounds {
        for contender in &mut contenders {
            bench.say(&format!(
                "restraint, {}: round {round} of {rounds}",
                contender.name
            ));
            measure_round(bench, contender)?;
        }
    }
    let [quiet, acting @ ..] = &contenders;
    for contender in &contenders {
        tell_lateness(report, contender, quiet);
    }
    tell_children(report, quiet, acting);
    report.note(format!(
        "restraint: {} agents stopped together and {} others one by one, every {PACE:?}; threshold \
         {THRESHOLD:?}; {rounds} rounds, in turns; a child sleeps for 10 ms; bare timer at nice \
         {HIGH_PRIORITY}, in the same seconds",
        bench.plan.restraint.crowd, bench.plan.restraint.others
    ));
    Ok(())
}

fn measure_round(bench: &Bench, contender: &mut Contender) -> Result<()> {
    let sizes = &bench.plan.restraint;
    let observer = Observer::start(
        bench,
        THRESHOLD,
        sizes.crowd + sizes.others,
        &contender.flags,
    )?;
    let interval = THRESHOLD.mul_f64(INTERVAL_THRESHOLDS);
    let socket = observer.receiver().socket();
    let mut round = Round {
        crowd: Agents::start(socket, sizes.crowd, interval)?,
        others: Agents::start(socket, sizes.others, interval)?,
        observer: &observer,
        contender,
        crowd_places: HashMap::new(),
        places: HashMap::new(),
        free: VecDeque::new(),
        stopped: HashSet::new(),
        waiting: HashSet::new(),
        in_flight: 0,
        first_ns: None,
        last_ns: 0,
    };
    // Agents may have been silent while they were being started.
    round.settle()?;
    let stalls_at_start = observer.counter(STALLS)?;
    let spawned_at_start = observer.counter(SPAWNED)?;
    let reaped_at_start = observer.counter(REAPED_ZERO)?;
    let control_ns = control_thread_cpu_ns(observer.pid())?;
    let begun = Instant::now();

    let stop = AtomicBool::new(false);
    let (result, oversleep_ms) = scope(|threads| {
        let timer = threads.spawn(|| {
            let _ = rustix::process::setpriority_process(None, HIGH_PRIORITY);
            oversleep_ms(&stop)
        });
        let result = round.run();
        stop.store(true, Ordering::Relaxed);
        (result, timer.join())
    });
    result?;
    let control_ns = control_thread_cpu_ns(observer.pid())? - control_ns;
    let watched = begun.elapsed();
    round.settle()?;
    let left_out = round.waiting.len();
    let took_s = round
        .first_ns
        .map(|first_ns| (round.last_ns - first_ns) as f64 / 1e9);

    let oversleep_ms = oversleep_ms.map_err(|_| "the bare timer panicked")??;
    contender.oversleep_ms.extend(oversleep_ms);
    contender.control_s += control_ns as f64 / 1e9;
    contender.watched_s += watched.as_secs_f64();
    contender.took_s.extend(took_s);
    contender.left_out += left_out;
    contender.stalls += observer.counter(STALLS)? - stalls_at_start;
    contender.spawned += observer.counter(SPAWNED)? - spawned_at_start;
    contender.reaped += observer.counter(REAPED_ZERO)? - reaped_at_start;
    Ok(())
}

/// One observer, its agents, and their states.
struct Round<'a> {
    crowd: Agents,
    others: Agents,
    observer: &'a Observer,
    contender: &'a mut Contender,
    /// Numbers by pid.
    crowd_places: HashMap<u32, usize>,
    places: HashMap<u32, usize>,
    /// Others that beat, the one that has beaten for longest first.
    free: VecDeque<usize>,
    /// Pids whose stall is expected.
    stopped: HashSet<u32>,
    /// Pids of the crowd that recovery must act on.
    waiting: HashSet<u32>,
    in_flight: usize,
    /// The first child of the crowd, and the end of the last one.
    first_ns: Option<u64>,
    last_ns: u64,
}

impl Round<'_> {
    fn run(&mut self) -> Result<()> {
        self.free.extend(0..self.others.len());
        self.places = places(&self.others);
        self.crowd_places = places(&self.crowd);
        self.stopped.extend(self.crowd_places.keys());
        if self.contender.acts {
            self.waiting.extend(self.crowd_places.keys());
        }
        let begun = Instant::now();
        for index in 0..self.crowd.len() {
            self.crowd.signal(index, Signal::STOP)?;
        }
        let mut next = Instant::now();
        while begun.elapsed() < WINDOW || (!self.waiting.is_empty() && begun.elapsed() < PATIENCE) {
            if next <= Instant::now() {
                next += PACE;
                self.stop_another()?;
            }
            let left = next.saturating_duration_since(Instant::now());
            if let Some(line) = self.observer.next_line(left) {
                self.take(&line)?;
            }
        }
        // Those whose stall is still expected.
        while let Some(line) = self.observer.next_line(2 * THRESHOLD) {
            self.take(&line)?;
            if self.stopped.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn stop_another(&mut self) -> Result<()> {
        let Some(index) = self.free.pop_front() else {
            return Ok(());
        };
        self.stopped.insert(self.others.pid(index));
        self.others.signal(index, Signal::STOP)
    }

    fn take(&mut self, line: &Line) -> Result<()> {
        let Some(agent) = line.log.event.agent() else {
            return Ok(());
        };
        let pid = agent.pid;
        match &line.log.event {
            LogEvent::Stall(_) if self.stopped.remove(&pid) => {
                if let Some(index) = self.crowd_places.get(&pid) {
                    let found = &mut self.contender.crowd;
                    return note_stall(found, &self.crowd, THRESHOLD, *index, line);
                }
                let index = self.places[&pid];
                let found = &mut self.contender.others;
                note_stall(found, &self.others, THRESHOLD, index, line)?;
                self.others.signal(index, Signal::CONT)?;
            }
            LogEvent::Return(_) => self.free.extend(self.places.get(&pid)),
            LogEvent::Recover(recover) => self.take_child(recover, line.read_ns),
            _ => {}
        }
        Ok(())
    }

    fn take_child(&mut self, recover: &Recover, read_ns: u64) {
        let pid = recover.agent.pid;
        let is_of_crowd = self.crowd_places.contains_key(&pid);
        let contender = &mut self.contender;
        match recover.outcome {
            Outcome::Spawned => {
                self.in_flight += 1;
                contender.most_in_flight = contender.most_in_flight.max(self.in_flight);
                if is_of_crowd {
                    self.first_ns.get_or_insert(read_ns);
                }
            }
            Outcome::ReapedZero => {
                self.in_flight = self.in_flight.saturating_sub(1);
                contender.child_ms.extend(recover.duration_ms);
                if self.waiting.remove(&pid) {
                    self.last_ns = read_ns;
                }
            }
            _ => {}
        }
    }

    /// Waits until no more events come.
    fn settle(&mut self) -> Result<()> {
        while let Some(line) = self.observer.next_line(SETTLE) {
            self.take(&line)?;
        }
        Ok(())
    }
}

fn places(agents: &Agents) -> HashMap<u32, usize> {
    (0..agents.len())
        .map(|index| (agents.pid(index), index))
        .collect()
}

fn tell_lateness(report: &mut Report, contender: &Contender, quiet: &Contender) {
    let name = contender.name;
    let is_quiet = std::ptr::eq(contender, quiet);
    for (whose, found, baseline) in [
        ("together", &contender.crowd, &quiet.crowd),
        ("one by one", &contender.others, &quiet.others),
    ] {
        let noticed = Figure::percentiles(&found.noticed_ms);
        let measure = format!("restraint, {name}: noticed, silent {whose}");
        let timer = Figure::percentiles(&contender.oversleep_ms);
        report.compare(&measure, "ms", noticed.clone(), "bare timer", timer);
        if !is_quiet {
            let baseline = Figure::percentiles(&baseline.noticed_ms);
            report.compare(&measure, "ms", noticed, quiet.name, baseline);
        }
    }
    let mut told = contender.crowd.told_ms.clone();
    told.extend(&contender.others.told_ms);
    let mut told_quiet = quiet.crowd.told_ms.clone();
    told_quiet.extend(&quiet.others.told_ms);
    let measure = format!("restraint, {name}: told");
    let told = Figure::percentiles(&told);
    if is_quiet {
        report.row(&measure, "ms", told);
    } else {
        let told_quiet = Figure::percentiles(&told_quiet);
        report.compare(&measure, "ms", told, quiet.name, told_quiet);
    }
    report.compare(
        &format!("restraint, {name}: stalls told"),
        "stalls",
        contender.stalls as f64,
        "made",
        contender.made() as f64,
    );
}

fn tell_children(report: &mut Report, quiet: &Contender, acting: &[Contender]) {
    for contender in acting {
        let name = contender.name;
        let spawned = contender.spawned as f64;
        let measure = format!("restraint, {name}: children");
        report.compare(
            &measure,
            "children",
            spawned,
            "reaped",
            contender.reaped as f64,
        );
        report.compare(
            &format!("restraint, {name}: CPU of the control thread"),
            "% of a core",
            contender.control_percent(),
            quiet.name,
            quiet.control_percent(),
        );
        if !contender.acts {
            continue;
        }
        report.row(
            &format!("restraint, {name}: CPU of the control thread per child"),
            "us",
            contender.control_us_per_child(quiet),
        );
        report.row(
            &format!("restraint, {name}: at a time, at most"),
            "children",
            contender.most_in_flight as f64,
        );
        report.row(
            &format!("restraint, {name}: of the crowd, left out"),
            "agents",
            contender.left_out as f64,
        );
        report.row(
            &format!("restraint, {name}: until the crowd was acted on"),
            "s",
            Figure::repeated(&contender.took_s),
        );
        report.row(
            &format!("restraint, {name}: a child ran, p50/p99/max"),
            "ms",
            Figure::percentiles(&contender.child_ms),
        );
    }
}
