//! `varta beat`: beats for scripts.
//!
//! One beat, or one at every tick until it is requested to stop. The agent is this process; the observer watches it,
//! not the script that started it. A missed tick is skipped and not made up for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use varta_client::{BeatOutcome, DropReason, Status, Varta};

use crate::{Failure, ask, signals};

/// The shortest time between two beats: a typing error must not flood an observer.
const EVERY_MIN: Duration = Duration::from_millis(1);

/// The longest: an observer's threshold is a day at most, and an agent must beat more often.
const EVERY_MAX: Duration = Duration::from_secs(86_400);

/// Send a beat, or one at every tick, for scripts
///
/// Without --every it sends one beat and is gone: exit code 0 if the observer's socket took it, 1 if
/// not. With --every it beats until SIGTERM or Ctrl-C; it goes on while there is no observer and finds
/// its way back to one that was restarted. What the observer watches is this process, not its caller.
#[derive(Debug, Args)]
pub(crate) struct BeatArguments {
    /// Socket of the observer [default: $VARTA_SOCKET, else where varta-watch listens by
    /// default]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// How this agent is: ok, degraded or critical
    #[arg(long, default_value = "ok", value_parser = status)]
    status: Status,

    /// A number to send along, 0 to 4294967295; Varta only shows it
    #[arg(long, value_name = "N", default_value_t = 0)]
    payload: u32,

    /// Beat at this pace, such as 500ms, 2s or 1m, at least 1ms
    #[arg(long, value_name = "TIME", value_parser = every)]
    every: Option<Duration>,

    /// With --every, end after this many beats; exit code 0 if the last one was sent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn status(text: &str) -> Result<Status, &'static str> {
    match text {
        "ok" => Ok(Status::Ok),
        "degraded" => Ok(Status::Degraded),
        "critical" => Ok(Status::Critical),
        "stall" => {
            Err("a stall is the observer's verdict, not an agent's; say ok, degraded or critical")
        }
        _ => Err("say ok, degraded or critical"),
    }
}

fn every(text: &str) -> Result<Duration, &'static str> {
    match humantime::parse_duration(text) {
        Err(_) => Err("not a time; write a number and a unit, such as 500ms, 2s or 1m"),
        Ok(every) if every < EVERY_MIN => Err("too short; 1ms is the least"),
        Ok(every) if every > EVERY_MAX => Err("too long; 1day is the most"),
        Ok(every) => Ok(every),
    }
}

pub(crate) fn run(arguments: &BeatArguments) -> Result<(), Failure> {
    let socket = ask::beat_socket(arguments.socket.as_deref())?;
    match arguments.every {
        None if arguments.count.is_some() => Err(Failure::Usage(
            "--count needs --every: how much time is to be between the beats?".to_owned(),
        )),
        None => beat_once(&socket, arguments.status, arguments.payload),
        Some(every) => {
            let (stop, stopped) = channel();
            signals::on(&[signals::INTERRUPT, signals::TERMINATE], move |name| {
                let _ = stop.send(name);
            })
            .map_err(|error| Failure::Run(format!("cannot wait for signals: {error}")))?;
            beat_on(&socket, arguments, every, &stopped)
        }
    }
}

fn beat_once(socket: &Path, status: Status, payload: u32) -> Result<(), Failure> {
    let sent = Varta::connect(socket)
        .map_err(|error| why_not_connected(socket, &error))
        .and_then(|mut agent| why_not_sent(socket, agent.beat(status, payload)));
    sent.map_err(|why| Failure::Run(format!("no beat sent: {why}")))
}

/// Beats at every tick until a signal comes or all beats are done.
fn beat_on(
    socket: &Path,
    arguments: &BeatArguments,
    every: Duration,
    stopped: &Receiver<&'static str>,
) -> Result<(), Failure> {
    let mut agent = Varta::open(socket);
    let mut last = None;
    let mut lost: u64 = 0;
    let mut tick = Instant::now();
    for beat in 1.. {
        let result = why_not_sent(socket, agent.beat(arguments.status, arguments.payload));
        if last.as_ref() != Some(&result) {
            match &result {
                Ok(()) if lost > 0 => eprintln!(
                    "varta: beats reach {} again; {lost} were lost",
                    socket.display()
                ),
                Ok(()) => eprintln!(
                    "varta: a beat every {} to {}",
                    humantime::format_duration(every),
                    socket.display()
                ),
                Err(why) => eprintln!("varta: no beat sent, trying on: {why}"),
            }
        }
        lost = if result.is_ok() { 0 } else { lost + 1 };
        if arguments.count == Some(beat) {
            let last_of =
                |why| Failure::Run(format!("the last of {beat} beats was not sent: {why}"));
            return result.map_err(last_of);
        }
        last = Some(result);
        tick = tick_after(tick, Instant::now(), every);
        match stopped.recv_timeout(tick.saturating_duration_since(Instant::now())) {
            Ok(_) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            // The signal thread ends only with the process.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
    Ok(())
}

/// The first tick of the series that is in the future: missed ones are skipped.
fn tick_after(tick: Instant, now: Instant, every: Duration) -> Instant {
    let into_ns = now.saturating_duration_since(tick).as_nanos() % every.as_nanos();
    // Less than `every`, which is a day at most.
    now + every - Duration::from_nanos(into_ns as u64)
}

fn why_not_sent(socket: &Path, outcome: BeatOutcome) -> Result<(), String> {
    match outcome {
        BeatOutcome::Sent => Ok(()),
        BeatOutcome::Dropped(DropReason::NoObserver | DropReason::PeerGone) => {
            Err(no_observer(socket))
        }
        BeatOutcome::Dropped(DropReason::KernelQueueFull) => Err(format!(
            "the observer on {} does not keep up, its queue is full; 'varta status' shows how deep that \
             is and what helps",
            socket.display()
        )),
        BeatOutcome::Dropped(reason @ DropReason::StorageFull) => {
            Err(format!("{}: {reason}", socket.display()))
        }
        BeatOutcome::Failed(error) => Err(failed(socket, &error.to_io_error())),
    }
}

fn why_not_connected(socket: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => no_observer(socket),
        _ => failed(socket, error),
    }
}

fn no_observer(socket: &Path) -> String {
    format!(
        "no observer listens on {}; start varta-watch or name its socket with --socket",
        socket.display()
    )
}

fn failed(socket: &Path, error: &io::Error) -> String {
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "run as the observer's user, or open its socket with varta-watch --socket-mode"
        }
        _ => "check --socket",
    };
    format!("{}: {error}; {fix}", socket.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn ticks_keep_their_pace_whatever_a_beat_takes() {
        let start = Instant::now();
        assert_eq!(tick_after(start, start, EVERY), start + EVERY);
        assert_eq!(tick_after(start, start + ms(99), EVERY), start + EVERY);
    }

    #[test]
    fn a_pause_skips_ticks_and_makes_up_for_none() {
        let start = Instant::now();
        assert_eq!(tick_after(start, start + ms(1050), EVERY), start + ms(1100));
        assert_eq!(tick_after(start, start + ms(1100), EVERY), start + ms(1200));
    }

    #[test]
    fn times_need_a_unit_and_a_sane_length() {
        assert_eq!(every("500ms"), Ok(ms(500)));
        assert_eq!(every("1m"), Ok(ms(60_000)));
        for text in ["500", "", "999us", "0s", "25h", "99999999999999999999y"] {
            assert!(every(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_way_not_to_be_sent_names_the_socket() {
        let socket = Path::new("/s/varta.sock");
        for reason in [
            DropReason::NoObserver,
            DropReason::PeerGone,
            DropReason::KernelQueueFull,
            DropReason::StorageFull,
        ] {
            let why = why_not_sent(socket, BeatOutcome::Dropped(reason)).unwrap_err();
            assert!(why.contains("/s/varta.sock"), "{why}");
        }
        let denied = io::Error::from_raw_os_error(13);
        let why = why_not_connected(socket, &denied);
        assert!(
            why.contains("/s/varta.sock") && why.contains("--socket-mode"),
            "{why}"
        );
    }
}
