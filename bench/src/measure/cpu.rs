//! The cost of a beat for the observer: CPU time of its whole process, divided by the number of beats it was sent.
//!
//! There are two loads. In a *flood* one sender beats as fast as the receiver accepts it, so the receiver hardly
//! sleeps and the figure is the cost of receiving and crediting. *Paced* beats come one at a time, so the figure is
//! mostly the cost of a wake-up, which on a virtual machine is many times the other. The same loads go to a process
//! that only calls `recv`, and to a published observer if there is one, in turns. All of them accept as many beats
//! from one agent as it sends.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::agents::{Agents, Flooder};
use crate::observer::{Observer, WITHOUT_LIMIT};
use crate::procfs::cpu_ns;
use crate::receiver::{PEER_WITHOUT_LIMITS, Receiver};
use crate::report::{Figure, Report};
use crate::{Bench, Result};

/// Agents of the paced load: 8 with 250 beats/s each.
const PACED_AGENTS: usize = 8;
const PACED_INTERVAL: Duration = Duration::from_millis(4);

/// No agent must stall.
const THRESHOLD: Duration = Duration::from_secs(60);
const CAPACITY: usize = 256;

/// Until all beats have been read, and the effects of a new agent are over.
const SETTLE: Duration = Duration::from_millis(100);

const BEATS: &str = "varta_observer_beats_total";

struct Contender<'a> {
    name: &'static str,
    receiver: &'a Receiver,
}

#[derive(Clone, Copy)]
struct Sample {
    beats: u64,
    cpu_ns: u64,
    seconds: f64,
}

impl Sample {
    fn us_per_beat(&self) -> f64 {
        self.cpu_ns as f64 / 1e3 / self.beats as f64
    }

    fn beats_per_second(&self) -> f64 {
        self.beats as f64 / self.seconds
    }
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let observer = Observer::start(bench, THRESHOLD, CAPACITY, &WITHOUT_LIMIT)?;
    let bare = Receiver::bare()?;
    let peer = Receiver::peer(bench, THRESHOLD, CAPACITY, &PEER_WITHOUT_LIMITS)?;
    let contender = |name, receiver| Contender { name, receiver };
    let mut contenders = vec![
        contender("ours", observer.receiver()),
        contender("bare recv loop", &bare),
    ];
    contenders.extend(peer.as_ref().map(|peer| contender("0.2.0", peer)));

    let flood = |receiver: &Receiver| flood(receiver, bench.plan.flood);
    let samples = in_turns(bench, "flood", &contenders, flood)?;
    compare(
        report,
        "flood: CPU per beat",
        "us",
        &contenders,
        &samples,
        Sample::us_per_beat,
    );
    compare(
        report,
        "flood: rate",
        "beats/s",
        &contenders,
        &samples,
        Sample::beats_per_second,
    );
    let sent: u64 = samples[0].iter().map(|sample| sample.beats).sum();
    let credited = observer.counter(BEATS)?;
    let measure = "observer, flood: beats credited";
    report.compare(measure, "beats", credited as f64, "sent", sent as f64);

    let paced = |receiver: &Receiver| paced(receiver, bench.plan.paced);
    let samples = in_turns(bench, "paced", &contenders, paced)?;
    compare(
        report,
        "paced: CPU per beat",
        "us",
        &contenders,
        &samples,
        Sample::us_per_beat,
    );

    report.note(format!(
        "observer CPU: time on a core of all its threads, from /proc/PID/task/*/schedstat; median \
         (least..most) of {} rounds, receivers in turns",
        bench.plan.cpu_rounds
    ));
    report.note(format!(
        "observer, flood: one sender that tries again while the queue is full; paced: {PACED_AGENTS} \
         agents, each a beat per {PACED_INTERVAL:?}, so that nearly every beat wakes the receiver"
    ));
    Ok(())
}

/// Puts a load on each contender, round by round; returns the samples of each.
fn in_turns(
    bench: &Bench,
    load: &str,
    contenders: &[Contender<'_>],
    sample: impl Fn(&Receiver) -> Result<Sample>,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); contenders.len()];
    let rounds = bench.plan.cpu_rounds;
    for round in 1..=rounds {
        bench.say(&format!("observer CPU: {load}, round {round} of {rounds}"));
        for (contender, samples) in contenders.iter().zip(&mut samples) {
            samples.push(sample(contender.receiver)?);
        }
    }
    Ok(samples)
}

/// Reports the first contender against each other one.
fn compare(
    report: &mut Report,
    measure: &str,
    unit: &'static str,
    contenders: &[Contender<'_>],
    samples: &[Vec<Sample>],
    value: impl Fn(&Sample) -> f64,
) {
    let figure = |samples: &[Sample]| {
        let values: Vec<f64> = samples.iter().map(&value).collect();
        Figure::repeated(&values)
    };
    for (other, theirs) in contenders.iter().zip(samples).skip(1) {
        let measure = format!("observer, {measure}");
        report.compare(
            &measure,
            unit,
            figure(&samples[0]),
            other.name,
            figure(theirs),
        );
    }
}

fn flood(receiver: &Receiver, duration: Duration) -> Result<Sample> {
    let before_ns = cpu_ns(receiver.pid())?;
    let beats = Flooder::start(receiver.socket(), duration)?.wait_until_over()?;
    sleep(SETTLE);
    let after_ns = cpu_ns(receiver.pid())?;
    Ok(Sample {
        beats,
        cpu_ns: after_ns - before_ns,
        seconds: duration.as_secs_f64(),
    })
}

fn paced(receiver: &Receiver, duration: Duration) -> Result<Sample> {
    let agents = Agents::start(receiver.socket(), PACED_AGENTS, PACED_INTERVAL)?;
    sleep(SETTLE);
    let start = Instant::now();
    let (beats_before, ns_before) = (agents.tally()?.sent, cpu_ns(receiver.pid())?);
    sleep(duration);
    let (beats_after, ns_after) = (agents.tally()?.sent, cpu_ns(receiver.pid())?);
    Ok(Sample {
        beats: beats_after - beats_before,
        cpu_ns: ns_after - ns_before,
        seconds: start.elapsed().as_secs_f64(),
    })
}
