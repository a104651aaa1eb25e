//! From nothing to watching, and back: the order in which things start and stop.
//!
//! Start: signals, limits, recovery command, socket, listeners, event file, beat path. Whatever fails is one clear
//! line and exit code 1, before the first beat is taken. Stop: beat path, socket, children, listeners, event
//! file, log; each of them is waited for no longer than a bound.

use std::fmt::Display;
use std::fs::DirBuilder;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::oneshot;
use tokio::time::timeout;
use varta_api::exact_duration;
use varta_core::policy::{Mode, Policy};
use varta_core::replay::ReplayOptions;
use varta_core::{
    AllowedUsers, BeatOrigin, Counters, Fact, Limits, LocalGate, SlotTable, Tracker, TrackerOptions,
};
use varta_sys::users;

use crate::actions::{self, SOURCE_PLACEHOLDER};
use crate::beat_path_state::BeatPathState;
use crate::beat_queue::{self, Depth};
use crate::clock::RawClock;
use crate::config::Config;
use crate::control::{Control, ControlConfig, Signals, StopReason};
use crate::handoff::{self, StopSignal, command};
use crate::http::{Listeners, Places};
use crate::ingest::{Channels, Ingest, IngestConfig, Sockets, UdpSource};
use crate::keys::KeyRing;
use crate::process_info::{self, KernelFeatures};
use crate::replay_file;
use crate::report::Report;
use crate::report::event_file::EventFile;
use crate::report::log::Log;
use crate::settings::network::{KeyFiles, UdpSettings};
use crate::settings::{ExportEvents, Settings};
use crate::snapshot::view::{About, View};
use crate::socket_file::{BoundSocket, Purpose};

/// With fewer beats per threshold one that comes late is one too few.
const BEATS_PER_THRESHOLD_LOW: f64 = 2.0;

/// Descriptors not given to agents: an eighth of the limit within these bounds.
const DESCRIPTOR_RESERVE_MIN: usize = 8;
const DESCRIPTOR_RESERVE_MAX: usize = 2048;

/// Open sessions that are remembered: as many as an agent may have ([`varta_core::replay::SESSIONS_PER_AGENT`]), one
/// for its last frames, and some of agents that have come and gone.
const SESSIONS_PER_AGENT: usize = 8;
const SESSIONS_MIN: usize = 16_384;

/// Closed sessions that are remembered; who keeps a capture for longer can replay it once.
const CLOSED_PER_AGENT: usize = 16;
const CLOSED_MIN: usize = 65_536;

/// How long the beat path may take to end, 2 s. It takes microseconds; one that takes longer hangs, and must not
/// keep the observer from ending.
const BEAT_PATH_WAIT: Duration = Duration::from_secs(2);

/// What is said then.
const HANGS: &str = "the beat path hangs: it did not end within 2 s and was not waited for any longer; its socket \
                     file is left behind, the next observer takes it over";

/// What the runtime opens: a poller, a bell, a pair of sockets for signals and a copy of one of them; twice that, so that
/// there is something left to say so with.
const RUNTIME_DESCRIPTORS: usize = 10;

/// As a nice value: 0 is everybody's.
const LOWEST_PRIORITY: i32 = 19;

/// Something that keeps the observer from starting or running; exit code 1.
pub(crate) type Failure = String;

fn failure(what: &str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| format!("{what}: {error}")
}

/// A number that differs between any two runs.
pub(crate) fn random_number() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Puts the calling thread behind every other one that has something to do.
fn give_way() {
    // Without it pages are rendered all the same.
    let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
}

/// Opens and waits once for what the runtime needs, since that panics where it may not.
fn probe_runtime() -> std::io::Result<()> {
    mio::Poll::new()?.poll(&mut mio::Events::with_capacity(1), Some(Duration::ZERO))?;
    let pairs = (0..RUNTIME_DESCRIPTORS / 2).map(|_| UnixStream::pair());
    pairs.collect::<Result<Vec<_>, _>>().map(drop)
}

/// Runs the observer until it is told to stop.
pub(crate) fn run(config: &Config, log: &Log) -> Result<(), Failure> {
    let settings = &config.settings;
    raise_descriptor_limit();
    probe_runtime().map_err(|error| {
        format!(
            "cannot start: {error}; what it takes first is room for {RUNTIME_DESCRIPTORS} more open files (ulimit -n, \
             LimitNOFILE=), epoll, and socket pairs"
        )
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // The threads that render pages: whoever asks a lot must not keep the beat path from its core.
        .on_thread_start(give_way)
        .build()
        .map_err(failure("cannot set up the control thread"))?;
    let signals = {
        let _inside = runtime.enter();
        Signals::install().map_err(failure("cannot answer signals"))?
    };
    if settings.socket_is_default {
        create_directory(&settings.socket)?;
    }
    let (socket, queue) = beat_queue::make_socket(settings.queue_datagrams)
        .map_err(failure("cannot make the beat socket"))?;
    let access = settings.socket_access;
    let socket = BoundSocket::bind_made(socket, &settings.socket, access, Purpose::Beats)
        .map_err(|error| error.to_string())?;
    let kernel = KernelFeatures::find(&socket);
    let raw = RawClock::start();
    let beat_path = Arc::new(BeatPathState::new(raw));
    let listening = settings.udp.as_ref();
    let listening = listening.map(|udp| listen(udp, settings.capacity, slots(settings), raw));
    let (udp, udp_notes) = listening.transpose()?.unzip();
    let udp_address = udp.as_ref().and_then(|udp| udp.address().ok());
    let listeners = Listeners::open(&settings.http)?;
    // Last, so that an observer that cannot start has written to no event file.
    let event_file = match &settings.export_file {
        Some(path) => {
            let any = settings.allow_any_export_file;
            Some(EventFile::open(path, any, log.clone())?)
        }
        None => None,
    };

    let counters = Arc::new(Counters::default());
    let slots = slots(settings);
    let table = Arc::new(SlotTable::on_heap(slots));
    let options = TrackerOptions {
        policy: settings.eviction_policy,
        scan_window: settings.eviction_scan_window,
        seed: random_number(),
        local_capacity: settings.capacity,
        user_capacity: settings.agents_per_user,
        remote_capacity: settings.capacity,
    };
    let tracker = Tracker::new(Arc::clone(&table), Arc::clone(&counters), options);
    let stop = StopSignal::new().map_err(|errno| format!("cannot create an eventfd: {errno}"))?;
    let (sender, receiver) = handoff::channel(Arc::clone(&counters))
        .map_err(|errno| format!("cannot create an eventfd: {errno}"))?;
    let (update_sender, update_receiver) =
        handoff::updates().map_err(|errno| format!("cannot create an eventfd: {errno}"))?;
    let gate = LocalGate {
        users: settings.users.clone(),
        nobody: users::unmapped_uid(),
        pid_max: process_info::pid_max(),
    };
    let limits = Limits::new(slots, settings.limits, raw.now_ns());
    let ingest_config = IngestConfig {
        gate,
        kernel,
        threshold_ns: nanoseconds(settings.threshold),
        every_beat: event_file.is_some() && settings.export_events == ExportEvents::All,
        refuse_foreign: settings.refuse_foreign,
        real_time: settings.real_time,
        queue_datagrams: queue.datagrams,
        descriptor_budget: descriptor_budget(),
    };
    let channels = Channels {
        state: Arc::clone(&beat_path),
        events: sender,
        updates: update_receiver,
        stop: stop.clone(),
    };
    let sockets = Sockets { local: socket, udp };
    let ingest = Ingest::new(
        sockets,
        ingest_config,
        tracker,
        limits,
        Arc::clone(&counters),
        channels,
    )
    .map_err(failure("cannot set up the beat path"))?;

    let directory = Arc::default();
    let no_room = Arc::default();
    let control_state = Arc::default();
    let view = View {
        about: About {
            session_id: log.session_id().to_owned(),
            started: SystemTime::now(),
            capacity: settings.capacity,
            agents_per_user: settings.agents_per_user,
            socket: settings.socket.display().to_string(),
            udp: udp_address.map(|address| address.to_string()),
            queue: queue.clone(),
        },
        table: Arc::clone(&table),
        directory: Arc::clone(&directory),
        no_room: Arc::clone(&no_room),
        counters: Arc::clone(&counters),
        probe: update_sender.liveness_probe(Arc::clone(&beat_path)),
        beat_path: Arc::clone(&beat_path),
        control: Arc::clone(&control_state),
    };
    let (command_sender, commands) = command::channel();
    let mut control = Control::new(ControlConfig {
        events: receiver,
        updates: update_sender,
        commands,
        report: Report::new(log.clone(), event_file, Arc::clone(&counters), raw),
        config: config.clone(),
        seed: random_number(),
        keys: key_files(settings),
        table,
        token: listeners.token(),
        directory,
        no_room,
        counters: Arc::clone(&counters),
        beat_path,
        state: control_state,
        kernel,
    });

    let places = listeners.places();
    let ended = runtime.block_on(async {
        let history = log.history();
        let server = listeners
            .serve(
                view,
                &history,
                &command_sender,
                &settings.http,
                descriptor_reserve(),
            )
            .map_err(failure("cannot answer questions"))?;
        let (ingest_failed, mut ingest_end) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("varta-ingest".to_owned())
            .spawn(move || {
                if let Err(error) = ingest.run() {
                    let _ = ingest_failed.send(error);
                }
            })
            .map_err(failure("cannot start the beat path"))?;
        show_address(settings, &places);
        control.publish(&started(settings, udp_address, &places));
        places.notices.iter().for_each(|notice| log.warn(notice));
        config.notices.iter().for_each(|notice| log.info(notice));
        config.warnings.iter().for_each(|warning| log.warn(warning));
        notices(settings, log, queue, kernel);
        udp_notices(settings, log, udp_notes.unwrap_or_default());
        let reason = control
            .run(signals, settings.shutdown_after, &mut ingest_end)
            .await;
        server.say_stopping();
        stop.stop();
        let hangs =
            !ingest_end.is_terminated() && timeout(BEAT_PATH_WAIT, ingest_end).await.is_err();
        if !hangs {
            // The thread drops the socket, which removes its file.
            let _ = thread.join();
        }
        control.finish().await;
        server.close().await;
        control.close();
        let reason = reason.map_err(failure("the control thread cannot wait"))?;
        let cause = match reason {
            StopReason::Told(cause) => cause,
            StopReason::IngestFailed(error) => {
                return Err(format!("the beat path cannot wait for beats: {error}"));
            }
        };
        let counters = counters.nonzero();
        control.publish(&Fact::Stopped { cause, counters });
        match hangs {
            true => Err(HANGS.to_owned()),
            false => Ok(()),
        }
    });
    // Nobody is left to read what is being worked on.
    runtime.shutdown_background();
    ended
}

/// Slots of the table: as many for remote agents on top, so that they take no room from local ones.
fn slots(settings: &Settings) -> usize {
    settings.capacity * (1 + usize::from(settings.udp.is_some()))
}

/// Listens for remote agents. What must be said about it comes along.
fn listen(
    udp: &UdpSettings,
    capacity: usize,
    slots: usize,
    raw: RawClock,
) -> Result<(UdpSource, Vec<String>), Failure> {
    let origin = match udp.vouched_for {
        true => BeatOrigin::OperatorAttestedTransport,
        false => BeatOrigin::NetworkUnverified,
    };
    let failed = |error| format!("cannot listen on UDP {} (--udp-port): {error}", udp.address);
    let socket = UdpSocket::bind(udp.address).map_err(failed)?;
    if udp.keys.is_empty() {
        let source = UdpSource::in_clear(socket, origin, random_number(), slots);
        return Ok((source, Vec::new()));
    }
    let ring = KeyRing::read(&udp.keys).map_err(|error| error.to_string())?;
    let options = ReplayOptions {
        sessions: (capacity * SESSIONS_PER_AGENT).max(SESSIONS_MIN),
        closed: (capacity * CLOSED_PER_AGENT).max(CLOSED_MIN),
        seed: random_number(),
    };
    let replay = replay_file::open(&udp.replay_file, options, raw.now_ns())
        .map_err(|error| error.to_string())?;
    let shown = udp.replay_file.display();
    let mut notices = Vec::new();
    if replay.is_new {
        notices.push(format!(
            "{shown} did not exist: nothing is known of what was heard before, so what was captured before now \
             can be heard once"
        ));
    }
    if !replay.is_in_memory {
        notices.push(format!(
            "{shown} is on a disk: beats may have to wait for it; a file in /run or another tmpfs makes nobody \
             wait (--replay-file)"
        ));
    }
    let source = UdpSource::sealed(socket, origin, ring, capacity, slots, replay.guard);
    Ok((source.map_err(failure("no memory for keys"))?, notices))
}

fn key_files(settings: &Settings) -> Option<KeyFiles> {
    let keys = settings.udp.as_ref().map(|udp| udp.keys.clone());
    keys.filter(|keys| !keys.is_empty())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Each watched agent costs a descriptor. Not fatal: what cannot be watched is counted.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// Descriptors that agents may be held by: what is left of the limit, less a reserve for recovery
/// commands, for whoever asks questions, for looking into `/proc`, for processes on the way between the threads, and for descriptors
/// that come attached to datagrams.
fn descriptor_budget() -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    descriptor_limit().saturating_sub(open + descriptor_reserve())
}

/// What agents leave to everything that comes and goes.
fn descriptor_reserve() -> usize {
    (descriptor_limit() / 8).clamp(DESCRIPTOR_RESERVE_MIN, DESCRIPTOR_RESERVE_MAX)
}

fn descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// Creates the runtime directory: open to look into for root's, private for a user's.
fn create_directory(socket: &Path) -> Result<(), Failure> {
    let Some(directory) = socket.parent() else {
        return Ok(());
    };
    let mode = if rustix::process::geteuid().is_root() {
        0o755
    } else {
        0o700
    };
    let mut builder = DirBuilder::new();
    let created = builder.recursive(true).mode(mode).create(directory);
    created.map_err(|error| {
        format!(
            "cannot create {}: {error}; create it or say where to listen with --socket",
            directory.display()
        )
    })
}

/// Writes an address that the system has chosen to standard output.
fn show_address(settings: &Settings, answers: &Places) {
    let tcp = settings.http.tcp.as_ref();
    if let Some(address) = answers.tcp
        && tcp.is_some_and(|tcp| tcp.at.port() == 0)
    {
        // For whoever has started us and has to find out. A closed standard output is its choice.
        let _ = writeln!(std::io::stdout(), "{address}");
    }
}

/// Where the observer listens and what it will do.
fn started(settings: &Settings, udp: Option<SocketAddr>, answers: &Places) -> Fact {
    let on_stall = on_stall(&settings.policy);
    let elsewhere = match (&settings.udp, udp) {
        (Some(settings), Some(address)) if settings.keys.is_empty() => format!(
            "\nWARNING: plain UDP on {address}: whoever can reach it can speak for any agent elsewhere"
        ),
        (Some(settings), Some(address)) => format!(
            "\nencrypted UDP on {address}; what was heard is remembered in {}",
            settings.replay_file.display()
        ),
        _ => String::new(),
    };
    let banner = format!(
        "varta-watch {} listens on {} (mode {:04o}, processes of {}){elsewhere}\nstalled: silent for {}; \
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

/// What is done about stalls, for a person.
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

/// Whose processes may speak, for a person.
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

/// Says what this system or these settings make worse than it could be, each in one line.
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

/// Says what is to be known about agents elsewhere, each in one line.
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
