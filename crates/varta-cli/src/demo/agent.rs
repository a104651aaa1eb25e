//! The agents of the demo: the behaviour of each process.
//!
//! Each is a real process that beats through the agent library at its own pace. One hangs and can be woken, one hangs
//! for good, one crashes, one leaves on schedule. None outlives the demo: standard input is a pipe from it, whose end
//! makes an agent leave, and the kernel kills an agent, stopped or not, whose demo has died.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{
    Resource, Rlimit, Signal, getpid, kill_process, set_parent_process_death_signal, setrlimit,
};
use varta_client::{Status, Varta};

/// The length of the schedule, if there is time for it.
const STORY_SECONDS: f64 = 10.0;

/// Time that a hang takes to be detected and healed, with a margin.
const HANG_TAKES: Duration = Duration::from_secs(2);

/// The role of an agent in the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Beats fast.
    Web,
    /// Beats slowly.
    Worker,
    /// Stops itself, repeatedly as time allows.
    Hang,
    /// Stops beating for good, while its process still runs.
    Stuck,
    /// Gets worse and aborts.
    Crash,
    /// Exits cleanly.
    Leave,
}

impl Role {
    pub(super) const ALL: [Self; 6] = [
        Self::Web,
        Self::Worker,
        Self::Hang,
        Self::Stuck,
        Self::Crash,
        Self::Leave,
    ];

    /// The command name of the process, which the observer shows.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Web => "demo-web",
            Self::Worker => "demo-worker",
            Self::Hang => "demo-hang",
            Self::Stuck => "demo-stuck",
            Self::Crash => "demo-crash",
            Self::Leave => "demo-leave",
        }
    }

    fn from_name(name: &str) -> Result<Self, &'static str> {
        let mut roles = Self::ALL.into_iter();
        roles.find(|role| role.name() == name).ok_or("no such role")
    }

    /// What will happen to it.
    pub(super) const fn plan(self) -> &'static str {
        match self {
            Self::Web => "beats every 100 ms",
            Self::Worker => "beats every 250 ms",
            Self::Hang => "is going to hang",
            Self::Stuck => "is going to hang for good",
            Self::Crash => "is going to crash",
            Self::Leave => "is going to leave",
        }
    }

    const fn pace(self) -> Duration {
        Duration::from_millis(match self {
            Self::Web => 100,
            Self::Worker => 250,
            Self::Hang | Self::Stuck | Self::Crash => 200,
            Self::Leave => 300,
        })
    }
}

/// One agent of the demo, a process of its own.
#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    #[arg(value_parser = Role::from_name)]
    role: Role,
    socket: PathBuf,
    /// Length of the demo.
    seconds: u64,
}

/// The schedule, counted from the start of the agent.
struct Timetable {
    leave: Duration,
    degrade: Duration,
    stick: Duration,
    crash: Duration,
    hang: Duration,
    hang_again_after: Duration,
    end: Duration,
}

impl Timetable {
    fn of_demo(seconds: u64) -> Self {
        let unit = (seconds as f64).min(STORY_SECONDS) / STORY_SECONDS;
        let at = |seconds: f64| Duration::from_secs_f64(seconds * unit);
        Self {
            leave: at(1.5),
            degrade: at(1.7),
            stick: at(2.2),
            crash: at(2.7),
            hang: at(3.5),
            hang_again_after: at(2.0),
            end: Duration::from_secs(seconds),
        }
    }
}

/// Beats until the role or the demo is over.
pub(crate) fn run(arguments: &AgentArguments) -> ExitCode {
    let start = Instant::now();
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return ExitCode::FAILURE;
    }
    let curtain = end_of_standard_input();
    let times = Timetable::of_demo(arguments.seconds);
    let mut agent = Varta::open(&arguments.socket);
    let mut next_hang = times.hang;
    let mut has_hung = false;
    let mut work_done = 0;
    loop {
        work_done += 1;
        let now = start.elapsed();
        match arguments.role {
            Role::Crash if now >= times.crash => {
                let _ = agent.beat(Status::Critical, work_done);
                crash();
            }
            Role::Crash if now >= times.degrade => {
                let _ = agent.beat(Status::Degraded, work_done);
            }
            Role::Leave if now >= times.leave => return ExitCode::SUCCESS,
            // Like a thread that waits for a lock that is never released. No signal helps.
            Role::Stuck if now >= times.stick => {}
            // The first hang always happens: on a slow machine it comes late, and the demo waits for it.
            Role::Hang if now >= next_hang && (!has_hung || now + HANG_TAKES <= times.end) => {
                has_hung = true;
                let _ = agent.beat(Status::Ok, work_done);
                // As silent as a deadlock, but one that a demo can heal.
                let _ = kill_process(getpid(), Signal::STOP);
                let _ = agent.beat(Status::Ok, work_done);
                next_hang = start.elapsed() + times.hang_again_after;
            }
            _ => {
                let _ = agent.beat(Status::Ok, work_done);
            }
        }
        match curtain.recv_timeout(arguments.role.pace()) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return ExitCode::SUCCESS,
        }
    }
}

/// Disconnects when standard input ends.
fn end_of_standard_input() -> Receiver<()> {
    let (open, curtain) = channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(open);
    });
    curtain
}

fn crash() -> ! {
    // One byte, not none: only that also keeps a crash collector behind a pipe from starting.
    let no_core = Rlimit {
        current: Some(1),
        maximum: Some(1),
    };
    let _ = setrlimit(Resource::Core, no_core);
    std::process::abort();
}
