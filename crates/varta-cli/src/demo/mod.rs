//! `varta demo`: an observer and six agents, all real processes, for some seconds.
//!
//! The demo starts them, follows the observer's log and event file, shows their content, and ends everything again.
//! It invents nothing: it shows events as the observer detected them. It also checks that it has shown everything:
//! exit code 0 means that all of it was seen.

pub(crate) mod agent;
pub(crate) mod observer;
mod screen;
mod seen;
mod show;
mod words;
mod workplace;

use std::io;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use varta_api::log_line::{Level, LogLine};

use crate::{Failure, signals};
use agent::Role;
use observer::{EventFile, Observer};
use seen::Record;
use show::Show;
use workplace::{Agents, Workplace};

/// The silence that makes an agent of the demo stalled.
const THRESHOLD: Duration = Duration::from_secs(1);

/// Agents start at this interval, so that each join can be seen.
const START_GAP: Duration = Duration::from_millis(150);

/// How often the event file is read and the table drawn.
const TICK: Duration = Duration::from_millis(50);

/// How long the observer may take until it listens.
const LISTEN_WAIT: Duration = Duration::from_secs(10);

/// On a busy machine the demo may take this much longer than requested.
const GRACE: Duration = Duration::from_secs(10);

/// Longest time until all agents have left, and until the observer has stopped. A moment, unless the machine is busy.
const END_WAIT: Duration = Duration::from_secs(10);

/// See it at work: a real observer and six real processes, for ten seconds
///
/// Starts an observer on a private socket and six processes that beat: two stay healthy, one hangs and
/// is healed, one hangs beyond help until the observer gives up on it, one crashes, one leaves in
/// order. Shows what the observer notices and does, and when. It is a self-test too: exit code 0 if all
/// of this was seen, 1 if something was missed. It leaves nothing behind.
#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// How long to go on, in seconds, 6 to 3600
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = seconds)]
    seconds: u64,

    /// Print one JSON object per event, as the observer logs it, and a summary as the last one
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<u64, &'static str> {
    match text.parse() {
        Ok(seconds @ 6..=3600) => Ok(seconds),
        Ok(0..6) => Err("too short to hang, to be noticed and to come back; 6 is the least"),
        Ok(_) => Err("too long; 3600 is the most"),
        Err(_) => Err("say a whole number of seconds from 6 to 3600"),
    }
}

/// What the demo waits for.
enum Input {
    /// A line of the observer's log.
    Log(String),
    /// The observer has ended.
    LogEnded,
    /// The demo is requested to end.
    Signal(&'static str),
}

/// The observer's recovery command in the demo: wakes a stopped process.
pub(crate) fn heal(pid: i32) -> ExitCode {
    let target = Pid::from_raw(pid).filter(|_| pid > 0);
    match target.map(|target| kill_process(target, Signal::CONT)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

pub(crate) fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    let (sender, inputs) = channel();
    let on_signal = sender.clone();
    let ends = [signals::INTERRUPT, signals::TERMINATE, signals::HANGUP];
    signals::on(&ends, move |name| {
        let _ = on_signal.send(Input::Signal(name));
    })
    .map_err(io_failure("wait for signals"))?;
    // Dropped last, when no process uses it any more.
    let place = Workplace::create()?;
    let show = Show::open(arguments.json);
    let start = Instant::now();
    let mut demo = Demo {
        agents: Agents::default(),
        observer: Observer::start(&place, arguments.seconds, sender)?,
        events: EventFile::at(place.event_file()),
        seen: Record::default(),
        inputs,
        start,
        length: Duration::from_secs(arguments.seconds),
        signal: None,
        log_ended: false,
        last_error: None,
        show,
    };
    demo.play(&place)
}

/// All parts of the demo. Dropping it ends the agents, then the observer.
struct Demo {
    agents: Agents,
    observer: Observer,
    events: EventFile,
    seen: Record,
    inputs: Receiver<Input>,
    start: Instant,
    length: Duration,
    signal: Option<&'static str>,
    log_ended: bool,
    /// The last error in the observer's log, or a line that is no log line.
    last_error: Option<String>,
    show: Show,
}

impl Demo {
    fn play(&mut self, place: &Workplace) -> Result<(), Failure> {
        self.show.print(words::title(self.length))?;
        self.follow(LISTEN_WAIT, |demo| demo.seen.listening)?;
        self.check_observer()?;
        for role in Role::ALL {
            if self.signal.is_some() {
                break;
            }
            let pid = self.agents.start(place, role, self.length.as_secs())?;
            self.seen.expect(role, pid);
            self.follow(START_GAP, |demo| demo.signal.is_some())?;
        }
        self.follow(self.length + GRACE, |demo| {
            let is_time = demo.start.elapsed() >= demo.length;
            let played = demo.seen.missing().is_empty() && !demo.seen.somebody_is_stalled();
            (is_time && played) || demo.signal.is_some()
        })?;
        self.check_observer()?;

        let end = words::end(self.signal, self.start.elapsed());
        self.show.print(vec![end])?;
        self.agents.dismiss();
        self.follow(END_WAIT, |demo| demo.seen.everybody_has_ended())?;
        let cpu_time = self.observer.cpu_time();
        self.observer.stop();
        self.follow(END_WAIT, |demo| demo.log_ended)?;
        self.read_events();
        self.show.end(&self.seen, self.start.elapsed(), cpu_time)?;
        self.verdict()
    }

    /// Shows the events until `done` or the time is up.
    fn follow(&mut self, timeout: Duration, done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let until = Instant::now() + timeout;
        let mut next_tick = Instant::now();
        while !done(self) && !self.log_ended && Instant::now() < until {
            if Instant::now() >= next_tick {
                self.read_events();
                let left = self.length.saturating_sub(self.start.elapsed());
                let cpu_time = self.observer.cpu_time();
                self.show.refresh(&self.seen, left, cpu_time)?;
                next_tick = Instant::now() + TICK;
            }
            let wait = next_tick.min(until) - Instant::now().min(next_tick.min(until));
            match self.inputs.recv_timeout(wait) {
                Ok(Input::Log(line)) => self.take_log_line(&line)?,
                Ok(Input::LogEnded) => self.log_ended = true,
                Ok(Input::Signal(name)) => self.signal = Some(name),
                Err(RecvTimeoutError::Timeout) => {}
                // Both senders exist as long as the process.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    fn take_log_line(&mut self, raw: &str) -> Result<(), Failure> {
        let Ok(line) = serde_json::from_str::<LogLine>(raw) else {
            self.last_error = Some(raw.to_owned());
            return Ok(());
        };
        if line.level == Level::Error {
            self.last_error = Some(line.msg.clone());
        }
        self.seen.take(&line);
        self.show.log_line(raw, &line, self.start.elapsed())
    }

    fn read_events(&mut self) {
        let now = Instant::now();
        self.events.read_new(|row| self.seen.take_row(row, now));
    }

    /// An error if the observer ends before the demo does, or never starts.
    fn check_observer(&self) -> Result<(), Failure> {
        if self.seen.listening && !self.log_ended {
            return Ok(());
        }
        let what = if self.seen.listening {
            "the observer ended before its time"
        } else if let Some(signal) = self.signal {
            return Err(Failure::Run(format!("ended by {signal}")));
        } else {
            "the observer did not start"
        };
        let why = self.last_error.as_ref();
        let why = why.map_or(String::new(), |error| format!(": {error}"));
        Err(Failure::Run(format!("{what}{why}")))
    }

    fn verdict(&self) -> Result<(), Failure> {
        let missing = self.seen.missing();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::Run(match self.signal {
            Some(signal) => format!("ended by {signal} before everything promised was seen"),
            None => format!("the demo failed, not seen: {}", missing.join(", ")),
        }))
    }
}

/// An error of the system as a failure: the attempted action, and the reason.
fn io_failure(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Run(format!("cannot {what}: {error}"))
}
