//! What an observer costs while little or nothing happens: CPU and awakenings with 256 agents that
//! are healthy and slow, and with 256 that are silent within a long threshold.

use std::thread::sleep;
use std::time::Duration;

use crate::agents::Agents;
use crate::observer::Observer;
use crate::procfs::{cpu_ns, resident_kib, sleeps};
use crate::receiver::Receiver;
use crate::report::Report;
use crate::{Bench, Result};

const AGENTS: usize = 256;

/// Until the start of the agents is forgotten.
const SETTLE: Duration = Duration::from_secs(1);

struct Load {
    name: &'static str,
    threshold: Duration,
    interval: Duration,
}

const LOADS: [Load; 2] = [
    Load {
        name: "256 agents, a beat per s each",
        threshold: Duration::from_secs(4),
        interval: Duration::from_secs(1),
    },
    Load {
        name: "256 agents, all silent",
        threshold: Duration::from_secs(3600),
        interval: Duration::from_secs(3600),
    },
];

struct Cost {
    cpu_percent: f64,
    wake_ups_per_second: f64,
    resident_kib: f64,
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    for load in LOADS {
        bench.say(&format!("idle: {}", load.name));
        let observer = Observer::start(bench, load.threshold, AGENTS)?;
        let ours = cost(bench, observer.receiver(), &load)?;
        let peer = match Receiver::peer(bench, load.threshold, AGENTS)? {
            Some(peer) => Some(cost(bench, &peer, &load)?),
            None => None,
        };
        let mut row = |what, unit, value: fn(&Cost) -> f64| {
            let measure = format!("{}: {what}", load.name);
            match &peer {
                Some(peer) => report.compare(&measure, unit, value(&ours), "0.2.0", value(peer)),
                None => report.row(&measure, unit, value(&ours)),
            }
        };
        row("CPU", "% of a core", |cost| cost.cpu_percent);
        row("wake-ups", "/s", |cost| cost.wake_ups_per_second);
        row("resident memory", "KiB", |cost| cost.resident_kib);
    }
    report.note(format!(
        "wake-ups: voluntary context switches of all threads of the observer, over {:?}",
        bench.plan.idle
    ));
    Ok(())
}

fn cost(bench: &Bench, receiver: &Receiver, load: &Load) -> Result<Cost> {
    let _agents = Agents::start(receiver.socket(), AGENTS, load.interval)?;
    sleep(SETTLE);
    let pid = receiver.pid();
    let (ns_before, sleeps_before) = (cpu_ns(pid)?, sleeps(pid)?);
    sleep(bench.plan.idle);
    let (ns_after, sleeps_after) = (cpu_ns(pid)?, sleeps(pid)?);
    let seconds = bench.plan.idle.as_secs_f64();
    Ok(Cost {
        cpu_percent: (ns_after - ns_before) as f64 / 1e7 / seconds,
        wake_ups_per_second: (sleeps_after - sleeps_before) as f64 / seconds,
        resident_kib: resident_kib(pid)? as f64,
    })
}
