//! The cost of an agent that floods for another one, which beats slowly and is healthy.
//!
//! All agents share one socket, and with it the kernel's short queue. While it is full the kernel refuses the beats
//! of the healthy agent as well; if it loses all its beats for a threshold, it is silent to the observer, and its
//! stall is a false one. The observer has its default flags except for the threshold. A published observer has the
//! same load right afterwards.

use std::fs::read_to_string;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use varta_api::LogEvent;

use crate::agents::{Agents, Flooder};
use crate::observer::Observer;
use crate::procfs::cpu_ns;
use crate::receiver::Receiver;
use crate::report::Report;
use crate::{Bench, Result};

const THRESHOLD: Duration = Duration::from_secs(1);
const CAPACITY: usize = 256;

/// Time between beats of the healthy agent.
const INTERVAL: Duration = Duration::from_millis(50);

/// Until the healthy agent beats at its pace, and until the last line of the log has come. Well within the threshold:
/// the flooding agent is silent by then.
const SETTLE: Duration = Duration::from_millis(200);

/// Both agents after a flood, still alive, so that the effects of their end are not part of it.
struct Flooded {
    healthy: Agents,
    flooder: Flooder,
    tried: u64,
    sent: u64,
    longest_refused: u64,
    cpu_percent: f64,
    flood_per_second: f64,
}

/// A flood and its stalls.
struct Outcome {
    flooded: Flooded,
    false_stalls: usize,
    flooder_stalls: usize,
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.say("neighbour: a flood beside a healthy agent");
    let ours = ours(bench)?;
    let peer = match peer(bench) {
        Ok(peer) => peer,
        Err(error) => {
            report.note(format!("neighbour: nothing of 0.2.0: {error}"));
            None
        }
    };

    let measure = |what| format!("neighbour of a flood: {what}");
    report.compare(
        &measure("healthy beats taken by the kernel"),
        "beats",
        ours.flooded.sent as f64,
        "tried",
        ours.flooded.tried as f64,
    );
    let mut row = |what, unit, value: fn(&Outcome) -> f64| match &peer {
        Some(peer) => report.compare(&measure(what), unit, value(&ours), "0.2.0", value(peer)),
        None => report.row(&measure(what), unit, value(&ours)),
    };
    row("healthy beats refused by the kernel", "beats", |outcome| {
        (outcome.flooded.tried - outcome.flooded.sent) as f64
    });
    row("longest run of refused beats", "beats", |outcome| {
        outcome.flooded.longest_refused as f64
    });
    row("false stalls", "stalls", |outcome| {
        outcome.false_stalls as f64
    });
    row("stalls of the flooding agent", "stalls", |outcome| {
        outcome.flooder_stalls as f64
    });
    row("observer CPU", "% of a core", |outcome| {
        outcome.flooded.cpu_percent
    });
    row("rate of the flood", "beats/s", |outcome| {
        outcome.flooded.flood_per_second
    });
    report.note(format!(
        "neighbour: a healthy agent with a beat per {INTERVAL:?} and one that floods for {:?}, \
         threshold {THRESHOLD:?}, otherwise default flags; a silence is one stall, however long; \
         rate of the flood: beats that the kernel took",
        bench.plan.neighbour
    ));
    Ok(())
}

fn ours(bench: &Bench) -> Result<Outcome> {
    let observer = Observer::start(bench, THRESHOLD, CAPACITY, &[])?;
    let flooded = Flooded::by(observer.receiver(), bench.plan.neighbour)?;
    let stalled = stalled_by_log(&observer);
    Ok(flooded.outcome(&stalled))
}

fn peer(bench: &Bench) -> Result<Option<Outcome>> {
    let directory = TempDir::new()?;
    let export = directory.path().join("events.tsv");
    let path = export.to_str().ok_or("the temporary path is no text")?;
    let flags = ["--export-file", path];
    let Some(receiver) = Receiver::peer(bench, THRESHOLD, CAPACITY, &flags)? else {
        return Ok(None);
    };
    bench.say("neighbour: the same with 0.2.0");
    let flooded = Flooded::by(&receiver, bench.plan.neighbour)?;
    // It writes the last rows when it ends, and has no row for the end of an agent.
    receiver.stop()?;
    let stalled = stalled_by_export(&export)?;
    Ok(Some(flooded.outcome(&stalled)))
}

impl Flooded {
    fn by(receiver: &Receiver, duration: Duration) -> Result<Self> {
        let healthy = Agents::start(receiver.socket(), 1, INTERVAL)?;
        sleep(SETTLE);
        let start = Instant::now();
        let (before, ns_before) = (healthy.record(0)?, cpu_ns(receiver.pid())?);
        let mut flooder = Flooder::start(receiver.socket(), duration)?;
        let flood = flooder.wait_until_over()?;
        let (after, ns_after) = (healthy.record(0)?, cpu_ns(receiver.pid())?);
        let seconds = start.elapsed().as_secs_f64();
        Ok(Self {
            tried: after.tried - before.tried,
            sent: after.sent - before.sent,
            longest_refused: after.longest_refused,
            cpu_percent: (ns_after - ns_before) as f64 / 1e7 / seconds,
            flood_per_second: flood as f64 / duration.as_secs_f64(),
            healthy,
            flooder,
        })
    }

    fn outcome(self, stalled: &[u32]) -> Outcome {
        let stalls_of = |wanted| stalled.iter().filter(|pid| **pid == wanted).count();
        Outcome {
            false_stalls: stalls_of(self.healthy.pid(0)),
            flooder_stalls: stalls_of(self.flooder.pid()),
            flooded: self,
        }
    }
}

/// The pid of each stall that the measured observer has reported.
fn stalled_by_log(observer: &Observer) -> Vec<u32> {
    let end = Instant::now() + SETTLE;
    let mut stalled = Vec::new();
    while let Some(line) = observer.next_line(end.saturating_duration_since(Instant::now())) {
        if let LogEvent::Stall(stall) = &line.log.event {
            stalled.push(stall.agent.pid);
        }
    }
    stalled
}

/// The pid of each stall in an event file of 0.2.0: columns `observer_ns`, `kind`, `pid` and more.
fn stalled_by_export(path: &Path) -> Result<Vec<u32>> {
    let mut stalled = Vec::new();
    for row in read_to_string(path)?.lines() {
        let mut columns = row.split('\t').skip(1);
        if columns.next() == Some("stall") {
            let pid = columns.next().and_then(|pid| pid.parse().ok());
            stalled.push(pid.ok_or("a stall row of 0.2.0 without a pid")?);
        }
    }
    Ok(stalled)
}
