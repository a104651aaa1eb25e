//! The time of a scrape, and the effect of scrapes without pause on the detection of stalls.
//!
//! The metrics are fetched over the control socket, which has no limit on requests, each time over a connection of
//! its own. First the lateness of the largest case is measured twice with the same observer and the same agents:
//! quiet, and while one thread scrapes without pause. Then a table is filled with agents that have no process, over
//! UDP without encryption, to measure a scrape of very many agents.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use varta_vlp::{FRAME_BYTES, Frame, Status};

use super::lateness::{INTERVAL_THRESHOLDS, rounds};
use crate::agents::Agents;
use crate::observer::Observer;
use crate::report::{Figure, Report};
use crate::{Bench, Result};

/// Scrapes of the large table.
const SCRAPES: usize = 15;

/// Beats sent at once to fill the large table, and the pause after them: none must be dropped.
const FILL_AT_ONCE: u32 = 200;
const FILL_PAUSE: Duration = Duration::from_millis(2);

/// No agent must stall.
const THRESHOLD: Duration = Duration::from_secs(600);

const JOINS: &str = "varta_observer_joins_total";

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    lateness_under_scrapes(bench, report)?;
    scrapes_of_many(bench, report)?;
    report.note(
        "scrape: GET /metrics over the control socket, from connecting to the last byte; without pause = one \
         thread of the lowest priority, one scrape after the other; quiet and scraped are the same observer and agents, one after \
         the other",
    );
    Ok(())
}

fn lateness_under_scrapes(bench: &Bench, report: &mut Report) -> Result<()> {
    let case = bench.plan.lateness.last().ok_or("no case")?;
    bench.say(&format!("scrape, agents: {}; starting them", case.agents));
    let observer = Observer::start(bench, case.threshold, case.agents, &[])?;
    let interval = case.threshold.mul_f64(INTERVAL_THRESHOLDS);
    let agents = Agents::start(observer.receiver().socket(), case.agents, interval)?;
    sleep(case.threshold);
    let tracked = observer.counter(JOINS)?;
    let control = varta_api::control_socket_beside(observer.receiver().socket());

    let quiet = rounds(bench, case, &observer, &agents)?;
    let stop = AtomicBool::new(false);
    let (scraped, scrapes_ms) = scope(|threads| {
        let scraper = threads.spawn(|| scrape_until(&control, &stop));
        let scraped = rounds(bench, case, &observer, &agents);
        stop.store(true, Ordering::Relaxed);
        (scraped, scraper.join())
    });
    let scraped = scraped?;
    let scrapes_ms = scrapes_ms.map_err(|_| "the scraper panicked")??;

    for (what, under_load, quiet) in [
        ("noticed", &scraped.noticed_ms, &quiet.noticed_ms),
        ("told", &scraped.told_ms, &quiet.told_ms),
    ] {
        report.compare(
            &format!("lateness, {tracked} agents, scraped without pause: {what}, p50/p99/max"),
            "ms",
            Figure::percentiles(under_load),
            "quiet",
            Figure::percentiles(quiet),
        );
    }
    report.row(
        &format!("scrape of {tracked} agents that beat, without pause: p50/p99/max"),
        "ms",
        Figure::percentiles(&scrapes_ms),
    );
    Ok(())
}

fn scrapes_of_many(bench: &Bench, report: &mut Report) -> Result<()> {
    let wanted = bench.plan.scraped_agents;
    bench.say(&format!("scrape, agents without a process: {wanted}"));
    let flags = ["--max-beat-rate", "0"];
    let observer = Observer::start_udp(bench, THRESHOLD, wanted as usize, &flags, &[])?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(observer.udp()?)?;
    for pid in 0..wanted {
        let mut frame = [0; FRAME_BYTES];
        Frame::new(Status::Ok, pid + 2, 0, 1, pid).encode(&mut frame);
        socket.send(&frame)?;
        if pid % FILL_AT_ONCE == 0 {
            sleep(FILL_PAUSE);
        }
    }
    sleep(Duration::from_secs(1));
    let tracked = observer.counter(JOINS)?;
    let control = varta_api::control_socket_beside(observer.receiver().socket());
    let mut scrapes_ms = Vec::new();
    let mut bytes = 0;
    for _ in 0..SCRAPES {
        let start = Instant::now();
        bytes = scrape(&control)?;
        scrapes_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    report.row(
        &format!("scrape of {tracked} agents: p50/p99/max"),
        "ms",
        Figure::percentiles(&scrapes_ms),
    );
    report.row(
        &format!("scrape of {tracked} agents: size"),
        "KiB",
        bytes as f64 / 1024.0,
    );
    Ok(())
}

fn scrape_until(control: &Path, stop: &AtomicBool) -> std::io::Result<Vec<f64>> {
    // Like a Prometheus on another machine: it takes no core from the measured processes.
    rustix::process::setpriority_process(None, 19)?;
    let mut scrapes_ms = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        scrape(control)?;
        scrapes_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(scrapes_ms)
}

/// Fetches the metrics; returns the number of bytes.
fn scrape(control: &Path) -> std::io::Result<usize> {
    let mut stream = UnixStream::connect(control)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        let head = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        return Err(std::io::Error::other(format!("no metrics: {head}")));
    }
    Ok(answer.len())
}
