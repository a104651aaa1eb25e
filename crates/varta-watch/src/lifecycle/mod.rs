//! Start and stop: the order in which the parts of the observer start and end.
//!
//! Start: signals, limits, recovery command, socket, listeners, event file, beat path. A failure is one clear line
//! and exit code 1, before the first beat is received. Stop: beat path, socket, children, listeners, event file, log;
//! the wait for each is bounded.

mod assemble;
mod descriptors;
mod failure;
mod open;

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::timeout;
use varta_api::exact_duration;
use varta_core::policy::{Mode, Policy};
use varta_core::{AllowedUsers, Fact};
use varta_sys::users;

use crate::actions::{self, SOURCE_PLACEHOLDER};
use crate::beat_queue::Depth;
use crate::config::Config;
use crate::control::{Signals, StopReason};
use crate::http::Places;
use crate::process_info::KernelFeatures;
use crate::report::log::Log;
use crate::settings::Settings;
use assemble::{Parts, assemble};
use descriptors::RUNTIME_DESCRIPTORS;
use failure::Failure;
use open::Opened;

/// With fewer beats per threshold a single late beat makes a stall.
const BEATS_PER_THRESHOLD_LOW: f64 = 2.0;

/// How long the beat path may take to end, 2 s. It takes microseconds; one that takes longer hangs, and must not
/// keep the observer from ending.
const BEAT_PATH_WAIT: Duration = Duration::from_secs(2);

/// As a nice value: 0 is the default of all processes.
const LOWEST_PRIORITY: i32 = 19;

/// A number that differs between any two runs.
pub(crate) fn random_number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Gives the calling thread a lower priority than every other runnable one.
fn give_way() {
    // If that fails, pages are rendered at the default priority.
    let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
}

/// Opens and polls once what the runtime opens later, because the runtime panics where that fails.
fn probe_runtime() -> std::io::Result<()> {
    mio::Poll::new()?.poll(&mut mio::Events::with_capacity(1), Some(Duration::ZERO))?;
    let pairs = (0..RUNTIME_DESCRIPTORS / 2).map(|_| UnixStream::pair());
    pairs.collect::<Result<Vec<_>, _>>().map(drop)
}

/// Runs the observer until it is requested to stop.
pub(crate) fn run(config: &Config, log: &Log) -> Result<(), Failure> {
    descriptors::raise_limit();
    let runtime = runtime()?;
    let signals = {
        let _inside = runtime.enter();
        Signals::install().map_err(Failure::system("cannot answer signals"))?
    };
    let opened = Opened::open(&config.settings, log)?;
    let said = Said {
        queue: opened.queue.clone(),
        kernel: opened.kernel,
        udp_address: opened.udp_address,
        udp_notes: opened.udp_notes.clone(),
    };
    let parts = assemble(config, log, opened)?;
    let ended = runtime.block_on(watch(config, log, parts, signals, said));
    // No reader is left for the pages that are being rendered.
    runtime.shutdown_background();
    ended
}

fn runtime() -> Result<Runtime, Failure> {
    probe_runtime().map_err(Failure::Runtime)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // The threads that render pages: a client with many requests must not keep the beat path from its core.
        .on_thread_start(give_way)
        .build()
        .map_err(Failure::system("cannot set up the control thread"))
}

/// Findings of the start that are logged once.
struct Said {
    queue: Depth,
    kernel: KernelFeatures,
    udp_address: Option<SocketAddr>,
    udp_notes: Vec<String>,
}

/// From the first beat to the last line.
async fn watch(
    config: &Config,
    log: &Log,
    parts: Parts,
    signals: Signals,
    said: Said,
) -> Result<(), Failure> {
    let settings = &config.settings;
    let Parts {
        ingest,
        stop,
        mut control,
        listeners,
        view,
        commands,
        counters,
    } = parts;
    let places = listeners.places();
    let (history, reserve) = (log.history(), descriptors::reserve());
    let server = listeners
        .serve(view, &history, &commands, &settings.http, reserve)
        .map_err(Failure::system("cannot answer questions"))?;
    let (ingest_failed, mut ingest_end) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("varta-ingest".to_owned())
        .spawn(move || {
            if let Err(error) = ingest.run() {
                let _ = ingest_failed.send(error);
            }
        })
        .map_err(Failure::system("cannot start the beat path"))?;
    show_address(settings, &places);
    control.publish(&started(settings, said.udp_address, &places));
    places.notices.iter().for_each(|notice| log.warn(notice));
    config.notices.iter().for_each(|notice| log.info(notice));
    config.warnings.iter().for_each(|warning| log.warn(warning));
    notices(settings, log, said.queue, said.kernel);
    udp_notices(settings, log, said.udp_notes);
    let reason = control
        .run(signals, settings.shutdown_after, &mut ingest_end)
        .await;
    server.set_stopping();
    stop.stop();
    let hangs = !ingest_end.is_terminated() && timeout(BEAT_PATH_WAIT, ingest_end).await.is_err();
    if !hangs {
        // The thread drops the socket, which removes its file.
        let _ = thread.join();
    }
    control.finish().await;
    server.close().await;
    control.close();
    let cause = match reason.map_err(Failure::system("the control thread cannot wait"))? {
        StopReason::Requested(cause) => cause,
        StopReason::IngestFailed(error) => {
            return Err(Failure::System(
                "the beat path cannot wait for beats",
                error,
            ));
        }
    };
    let counters = counters.nonzero();
    control.publish(&Fact::Stopped { cause, counters });
    match hangs {
        true => Err(Failure::BeatPathHangs),
        false => Ok(()),
    }
}

/// Slots of the table: those for remote agents are added, so that remote agents take none from local ones.
fn slots(settings: &Settings) -> usize {
    settings.capacity * (1 + usize::from(settings.udp.is_some()))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes an address that the system has chosen to standard output.
fn show_address(settings: &Settings, answers: &Places) {
    let tcp = settings.http.tcp.as_ref();
    if let Some(address) = answers.tcp
        && tcp.is_some_and(|tcp| tcp.at.port() == 0)
    {
        // For a parent process that needs to learn it. If standard output is closed, the parent does not need it.
        let _ = writeln!(std::io::stdout(), "{address}");
    }
}

/// Logs where the observer listens and what it will do.
fn started(settings: &Settings, udp: Option<SocketAddr>, answers: &Places) -> Fact {
    let on_stall = on_stall(&settings.policy);
    let remote = match (&settings.udp, udp) {
        (Some(udp), Some(address)) if udp.keys.is_empty() => format!(
            "\nWARNING: plain UDP on {address}: whoever can reach it can speak for any agent elsewhere"
        ),
        (Some(udp), Some(address)) => format!(
            "\nencrypted UDP on {address}; what was heard is remembered in {}",
            udp.replay_file.display()
        ),
        _ => String::new(),
    };
    let banner = format!(
        "varta-watch {} listens on {} (mode {:04o}, processes of {}){remote}\nstalled: silent for {}; \
         room for {} agents\n{answers}\non stall: {on_stall}",
        env!("CARGO_PKG_VERSION"),
        settings.socket.display(),
        settings.socket_access.mode,
        Whose(&settings.users),
        exact_duration(nanoseconds(settings.threshold)),
        settings.capacity,
    );
    Fact::Started {
        pid: std::process::id(),
        socket: settings.socket.clone(),
        udp,
        http: answers.tcp,
        control: answers.control.clone(),
        threshold_ns: nanoseconds(settings.threshold),
        banner,
    }
}

/// The reaction to stalls, as readable text.
fn on_stall(policy: &Policy) -> String {
    let steps = policy.default_ladder.map(|ladder| {
        let steps = &policy.ladders[ladder].steps;
        let shown: Vec<String> = steps.iter().map(actions::shown_step).collect();
        shown.join(", then ")
    });
    let rules = match policy.rules.len() {
        0 => "",
        _ => ", unless a rule says otherwise",
    };
    match (policy.mode, steps) {
        (Mode::Observe, _) => "report it, nothing else (--recovery-mode observe)".to_owned(),
        (Mode::DryRun, Some(steps)) => format!("only say that this would be done: {steps}{rules}"),
        (Mode::Enforce, Some(steps)) => format!("{steps}{rules}"),
        (Mode::DryRun | Mode::Enforce, None) if rules.is_empty() => {
            "report it, nothing else (--recovery-exec runs a command)".to_owned()
        }
        (Mode::DryRun | Mode::Enforce, None) => format!("report it{rules}"),
    }
}

/// The users whose processes may send beats, as readable text.
struct Whose<'a>(&'a AllowedUsers);

impl Display for Whose<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AllowedUsers::Only { uids, gids } = self.0 else {
            return f.write_str("every user");
        };
        let uids = uids.iter().map(|uid| format!("uid {uid}"));
        let gids = gids.iter().map(|gid| format!("gid {gid}"));
        let all: Vec<String> = uids.chain(gids).collect();
        f.write_str(&all.join(", "))
    }
}

/// Logs what this system or these settings make worse than it could be, each in one line.
fn notices(settings: &Settings, log: &Log, queue: Depth, kernel: KernelFeatures) {
    let say = |text: String| log.info(text);
    if users::effective_uid() == 0 && !users::is_root() {
        say(
            "uid 0 is not the root of this host but an ordinary user here (/proc/self/uid_map is not the whole range \
             or cannot be read): unless --allow-uid or --allow-gid says otherwise, only its own processes may join"
                .to_owned(),
        );
    }
    if let Some(shallow) = queue.shallow {
        say(shallow);
    }
    if !kernel.proc {
        say("/proc shows another pid namespace than this observer's: agents have no names, and those \
             in containers that call themselves by an inner pid are refused; mount /proc anew"
            .to_owned());
    }
    if !kernel.sender_pidfd {
        say("this kernel cannot hand over the sender of a beat (Linux 6.5 can): a pid that changes \
             hands between the first beat of an agent and its reading goes unnoticed"
            .to_owned());
    }
    if let Some(rate) = settings.limits.agent
        && f64::from(rate.per_second) * settings.threshold.as_secs_f64() < BEATS_PER_THRESHOLD_LOW
    {
        say(format!(
            "--max-beat-rate {} lets an agent be heard less than twice per threshold: those that beat \
             more often will be called stalled",
            rate.per_second
        ));
    }
}

/// Logs notes about remote agents, each in one line.
fn udp_notices(settings: &Settings, log: &Log, mut notices: Vec<String>) {
    let Some(udp) = &settings.udp else {
        return;
    };
    let in_clear = udp.keys.is_empty();
    let command = settings.recovery_exec.as_deref();
    match command {
        Some(_) if !udp.vouched_for => {
            let flag = match in_clear {
                true => "--allow-recovery-over-plain-udp",
                false => "--allow-recovery-over-secure-udp",
            };
            notices.push(format!(
                "stalls of agents heard over UDP are told, recovery does not act on them ({flag})"
            ));
        }
        _ => {}
    }
    notices.iter().for_each(|notice| log.info(notice));
    let warn = |text: &str| log.warn(text);
    if let Some(command) = command.filter(|_| udp.vouched_for) {
        if in_clear {
            warn(
                "recovery acts on agents heard over plain UDP: anybody who can reach the port can have it \
                 act",
            );
        }
        if !command.contains(SOURCE_PLACEHOLDER) {
            warn(
                "--recovery-exec gets the pids of agents heard over UDP but not their address ({source}): if \
                 it acts on this host's processes it acts on the wrong ones",
            );
        }
    }
}
