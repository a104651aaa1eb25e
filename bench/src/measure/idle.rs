//! The cost of an observer while little or nothing happens: CPU and wake-ups with 256 agents that are healthy and
//! slow, and with 256 that are silent within a long threshold. A published observer is measured in the same seconds
//! with agents of its own, so that noise affects both alike.

use std::thread::sleep;
use std::time::Duration;

use crate::agents::Agents;
use crate::observer::Observer;
use crate::procfs::{cpu_ns, resident_kib, sleeps};
use crate::receiver::{PEER_WITHOUT_LIMITS, Receiver};
use crate::report::Report;
use crate::{Bench, Result};

const AGENTS: usize = 256;

/// Until the start of the agents has no effect any more.
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
        let observer = Observer::start(bench, load.threshold, AGENTS, &[])?;
        let peer = Receiver::peer(bench, load.threshold, AGENTS, &PEER_WITHOUT_LIMITS)?;
        let receivers: Vec<&Receiver> = std::iter::once(observer.receiver()).chain(&peer).collect();
        let costs = costs(bench, &receivers, &load)?;
        let (ours, peer) = (&costs[0], costs.get(1));
        let mut row = |what, unit, value: fn(&Cost) -> f64| {
            let measure = format!("{}: {what}", load.name);
            match peer {
                Some(peer) => report.compare(&measure, unit, value(ours), "0.2.0", value(peer)),
                None => report.row(&measure, unit, value(ours)),
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

/// The cost of each receiver with agents of its own.
fn costs(bench: &Bench, receivers: &[&Receiver], load: &Load) -> Result<Vec<Cost>> {
    let start = |receiver: &&Receiver| Agents::start(receiver.socket(), AGENTS, load.interval);
    let _agents = receivers.iter().map(start).collect::<Result<Vec<_>>>()?;
    sleep(SETTLE);
    let used = |receiver: &&Receiver| Ok((cpu_ns(receiver.pid())?, sleeps(receiver.pid())?));
    let before = receivers.iter().map(used).collect::<Result<Vec<_>>>()?;
    sleep(bench.plan.idle);
    let after = receivers.iter().map(used).collect::<Result<Vec<_>>>()?;
    let seconds = bench.plan.idle.as_secs_f64();
    let mut costs = Vec::new();
    for (receiver, (before, after)) in receivers.iter().zip(before.iter().zip(after)) {
        costs.push(Cost {
            cpu_percent: (after.0 - before.0) as f64 / 1e7 / seconds,
            wake_ups_per_second: (after.1 - before.1) as f64 / seconds,
            resident_kib: resident_kib(receiver.pid())? as f64,
        });
    }
    Ok(costs)
}
