//! The cost of a beat for the agent, compared to a bare `send(2)` of 32 bytes on the same kind of socket.
//!
//! Both run in this process and in turns, in blocks that fit the shortest queue of any kernel, which is emptied
//! between the blocks. No process waits on the other end: waking a sleeping receiver costs the sender several times
//! as much as the call, for a beat and a bare send alike.

use std::hint::black_box;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use tempfile::TempDir;
use varta_client::{BeatOutcome, BeatTransport, Status, Varta};

use crate::report::{Figure, Report};
use crate::{Bench, Result};

/// Calls per block; the kernel's own queue limit of 10 admits 11.
const BLOCK: u32 = 8;

/// Calls per block where there is no queue.
const BLOCK_WITHOUT_IO: u32 = 1000;

/// A transport that sends nothing: the remaining cost is that of the client itself.
struct Nowhere;

impl BeatTransport for Nowhere {
    fn send(&mut self, frame: &[u8; 32]) -> io::Result<usize> {
        Ok(black_box(frame).len())
    }

    fn reconnect(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    bench.say("client: beats against bare sends");
    let directory = TempDir::new()?;
    let path = directory.path().join("client.sock");
    let receiver = UnixDatagram::bind(&path)?;
    rustix::net::sockopt::set_socket_passcred(&receiver, true)?;
    receiver.set_nonblocking(true)?;

    let mut agent = Varta::connect(&path)?;
    let bare = UnixDatagram::unbound()?;
    bare.set_nonblocking(true)?;
    bare.connect(&path)?;
    let frame = [7; 32];

    let mut beats_ns = Vec::with_capacity(bench.plan.client_pairs);
    let mut sends_ns = Vec::with_capacity(bench.plan.client_pairs);
    let mut added_ns = Vec::with_capacity(bench.plan.client_pairs);
    for pair in 0..bench.plan.client_pairs {
        let mut beat = || {
            let ns = per_call_ns(BLOCK, || is_sent(agent.beat(Status::Ok, 0)));
            drained(&receiver, ns)
        };
        let send = || {
            let ns = per_call_ns(BLOCK, || bare.send(&frame).is_ok());
            drained(&receiver, ns)
        };
        // The second one finds warmer caches, so they alternate in that too.
        let (beat_ns, send_ns) = if pair % 2 == 0 {
            let beat_ns = beat()?;
            (beat_ns, send()?)
        } else {
            let send_ns = send()?;
            (beat()?, send_ns)
        };
        beats_ns.push(beat_ns);
        sends_ns.push(send_ns);
        added_ns.push(beat_ns - send_ns);
    }

    let mut agent = Varta::from_transport(Nowhere);
    let mut without_io_ns = Vec::new();
    for _ in 0..bench.plan.client_pairs / 50 {
        let one = || is_sent(agent.beat(Status::Ok, black_box(0)));
        without_io_ns.push(per_call_ns(BLOCK_WITHOUT_IO, one)?);
    }

    let median = |samples: &[f64]| Figure::from(middle(samples));
    report.compare(
        "client: one beat",
        "ns",
        median(&beats_ns),
        "bare send(2)",
        median(&sends_ns),
    );
    report.row("client: beat beyond its send", "ns", median(&added_ns));
    report.row("client: beat without I/O", "ns", median(&without_io_ns));
    report.note(format!(
        "client: medians of {} blocks of {BLOCK} calls each, in turns; nobody sleeps on the socket",
        bench.plan.client_pairs
    ));
    Ok(())
}

fn middle(samples: &[f64]) -> f64 {
    crate::stats::median_min_max(samples).map_or(f64::NAN, |[median, _, _]| median)
}

fn is_sent(outcome: BeatOutcome) -> bool {
    outcome == BeatOutcome::Sent
}

/// Time per call. A call that does not succeed would be a wrong figure.
fn per_call_ns(calls: u32, mut call: impl FnMut() -> bool) -> Result<f64> {
    let mut all_good = true;
    let start = Instant::now();
    for _ in 0..calls {
        all_good &= call();
    }
    let elapsed = start.elapsed();
    if !all_good {
        return Err("a send of the client section failed".into());
    }
    Ok(elapsed.as_nanos() as f64 / f64::from(calls))
}

/// Empties the queue and passes `ns` through.
fn drained(receiver: &UnixDatagram, ns: Result<f64>) -> Result<f64> {
    while receiver.recv(&mut [0; 33]).is_ok() {}
    ns
}
