//! Agents: copies of the test program that beat by themselves or follow orders.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio, exit};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use varta_client::{Frame, Status, Varta};
use varta_vlp::{NONCE_TERMINAL, PAYLOAD_GOODBYE};

use super::{Observer, frame_of, signal_pid, wrapped};

/// Makes a copy of the test program an agent; holds the socket's path.
const SOCKET: &str = "VARTA_TEST_AGENT_SOCKET";

/// Orders for a puppet, separated by semicolons. An agent without orders beats by itself.
const ORDERS: &str = "VARTA_TEST_AGENT_ORDERS";

/// What makes the test program nothing but an agent.
const ARGUMENTS: [&str; 4] = [
    "--exact",
    "agent_process",
    "--nocapture",
    "--test-threads=1",
];

/// The test itself, as an agent that beats on order.
pub(crate) fn me() -> u32 {
    std::process::id()
}

/// A process that has beaten once.
pub(crate) fn joined(observer: &Observer) -> Puppet {
    let mut puppet = Puppet::start(&observer.socket);
    puppet.tell("beat self 1");
    observer.wait_for_pid("join", puppet.pid);
    puppet
}

/// The agent's side: has no effect in the test program itself.
pub(crate) fn be_an_agent_if_told() {
    let Some(socket) = std::env::var_os(SOCKET) else {
        return;
    };
    match std::env::var(ORDERS) {
        Ok(orders) => obey(Path::new(&socket), &orders),
        Err(_) => beat_until_told_to_end(&socket),
    }
}

/// Ends with the exit code that it reads from its standard input, or when the test has ended.
fn beat_until_told_to_end(socket: &OsStr) {
    std::thread::spawn(|| {
        let mut line = String::new();
        let _ = std::io::stdin().read_line(&mut line);
        exit(line.trim().parse().unwrap_or(9));
    });
    let mut varta = Varta::open(PathBuf::from(socket));
    loop {
        let _ = varta.beat(Status::Ok, 7);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Follows the orders of the environment, then those on standard input, one per line, and answers each by a line on
/// standard error. The end of the input ends the process, with code 0.
fn obey(socket: &Path, orders: &str) {
    let mut agent = Agent {
        sender: UnixDatagram::unbound().unwrap(),
        socket,
    };
    agent.sender.connect(socket).unwrap();
    let mut rest = orders;
    while !rest.is_empty() {
        let (order, later) = rest.split_once(';').unwrap_or((rest, ""));
        agent.follow(order, later);
        rest = later;
    }
    let answer = || {
        // The pid of this process in `/proc`: its pid in the namespace of the test.
        let outer = fs::read_link("/proc/self").unwrap();
        eprintln!("{} {}", outer.display(), std::process::id());
    };
    answer();
    for order in std::io::stdin().lines() {
        agent.follow(&order.unwrap(), "");
        answer();
    }
    exit(0);
}

/// A puppet at work.
struct Agent<'a> {
    sender: UnixDatagram,
    socket: &'a Path,
}

impl Agent<'_> {
    /// Follows one order:
    ///
    /// - `beat CLAIM FIRST [LAST]`: beats with these nonces that claim to be of pid CLAIM, or `self`;
    /// - `flood KIND MS`: sends as fast as it can for so long: beats of its `own`, beats in the name of a
    ///   `stranger` or of process KIND, `junk`, or the `last` frames of a process that panics;
    /// - `turnstile TIMES`: beats and departs, repeatedly;
    /// - `crash`: the terminal frame of a process that panics;
    /// - `leave`: the terminal frame of a process that departs;
    /// - `move GROUP`: moves into this process group;
    /// - `adopt`: beats through the socket that is standard input from here on;
    /// - `exec PROGRAM`: becomes another program, which gets the `later` orders;
    /// - `nap MS`: waits;
    /// - `stay`: does nothing any more;
    /// - `exit CODE`.
    fn follow(&mut self, order: &str, later: &str) {
        let words: Vec<&str> = order.split_whitespace().collect();
        match *words.as_slice() {
            ["beat", claim, first] => self.beat(claim, first, first),
            ["beat", claim, first, last] => self.beat(claim, first, last),
            ["flood", kind, ms] => self.flood(kind, Duration::from_millis(ms.parse().unwrap())),
            ["turnstile", times] => {
                for nonce in 1..=times.parse().unwrap() {
                    self.sender
                        .send(&frame_of(std::process::id(), nonce))
                        .unwrap();
                    self.end(PAYLOAD_GOODBYE);
                }
            }
            ["crash"] => self.end(0),
            ["leave"] => self.end(PAYLOAD_GOODBYE),
            ["move", group] => {
                let group = Pid::from_raw(group.parse().unwrap());
                rustix::process::setpgid(None, group).unwrap();
            }
            ["adopt"] => {
                let stdin = std::io::stdin();
                let stdin = stdin.as_fd().try_clone_to_owned().unwrap();
                self.sender = UnixDatagram::from(stdin);
            }
            ["exec", program] => {
                let mut command = agent_command_of(Path::new(program), self.socket, later);
                let error = command.stdin(Stdio::inherit()).exec();
                panic!("cannot become {program}: {error}");
            }
            ["nap", ms] => std::thread::sleep(Duration::from_millis(ms.parse().unwrap())),
            ["stay"] => loop {
                std::thread::park();
            },
            ["exit", code] => exit(code.parse().unwrap()),
            _ => panic!("no order: {order}"),
        }
    }

    fn end(&self, payload: u32) {
        self.sender.send(&last_frame(payload, 1)).unwrap();
    }

    fn flood(&self, kind: &str, time: Duration) {
        self.sender.set_nonblocking(true).unwrap();
        let until = Instant::now() + time;
        let own = std::process::id();
        for number in 1.. {
            let bytes = match kind {
                "own" => frame_of(own, number),
                "stranger" => frame_of(own + 1, number),
                "last" => last_frame(0, number),
                "junk" => [7; 32],
                pid => frame_of(pid.parse().unwrap(), number),
            };
            // A flood expects a full queue.
            let _ = self.sender.send(&bytes);
            if number % 256 == 0 && Instant::now() > until {
                return;
            }
        }
    }

    fn beat(&self, claim: &str, first: &str, last: &str) {
        let claim = match claim {
            "self" => std::process::id(),
            number => number.parse().unwrap(),
        };
        for nonce in first.parse().unwrap()..=last.parse().unwrap() {
            self.sender.send(&frame_of(claim, nonce)).unwrap();
        }
    }
}

/// The terminal frame of this process.
fn last_frame(payload: u32, timestamp: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    let pid = std::process::id();
    Frame::new(Status::Critical, pid, timestamp, NONCE_TERMINAL, payload).encode(&mut bytes);
    bytes
}

/// A process that beats every 50 ms until it is requested to end.
pub(crate) struct AgentProcess {
    child: Child,
}

impl AgentProcess {
    pub(crate) fn start(socket: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(ARGUMENTS)
            .env(SOCKET, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.pid(), signal);
    }

    /// Lets the process end by itself with this exit code.
    pub(crate) fn leave(&mut self, code: u8) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{code}").unwrap();
        self.child.wait().unwrap();
    }

    /// Kills it and reaps it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that follows orders only, see [`Agent::follow`].
pub(crate) struct Puppet {
    child: Child,
    answers: BufReader<ChildStderr>,
    /// Its pid in the namespace of the test.
    pub(crate) pid: u32,
    /// Its pid in its own namespace.
    pub(crate) inner_pid: u32,
}

impl Puppet {
    pub(crate) fn start(socket: &Path) -> Self {
        Self::start_under(&[], &std::env::current_exe().unwrap(), socket)
    }

    /// The last of these words start the program; it is a copy of the test program.
    pub(crate) fn start_under(wrapper: &[&str], program: &Path, socket: &Path) -> Self {
        let mut child = wrapped(wrapper, &agent_command_of(program, socket, ""))
            .env(SOCKET, socket)
            .env(ORDERS, "")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut puppet = Self {
            answers: BufReader::new(child.stderr.take().unwrap()),
            child,
            pid: 0,
            inner_pid: 0,
        };
        (puppet.pid, puppet.inner_pid) = puppet.answer();
        puppet
    }

    fn answer(&mut self) -> (u32, u32) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let numbers = line.trim().split_once(' ');
        let (outer, inner) = numbers.unwrap_or_else(|| panic!("no answer: {line:?}"));
        (outer.parse().unwrap(), inner.parse().unwrap())
    }

    /// Sends an order, and waits until it was followed.
    pub(crate) fn tell(&mut self, order: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{order}").unwrap();
        self.answer();
    }

    /// Lets it end by itself with this exit code, and reaps it.
    pub(crate) fn leave(&mut self, code: u8) -> ExitStatus {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "exit {code}").unwrap();
        self.child.wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_pid(self.pid, signal);
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A puppet with all its orders, and an empty input.
pub(crate) fn agent_command(socket: &Path, orders: &str) -> Command {
    agent_command_of(&std::env::current_exe().unwrap(), socket, orders)
}

fn agent_command_of(program: &Path, socket: &Path, orders: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(ARGUMENTS)
        .env(SOCKET, socket)
        .env(ORDERS, orders)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Starts a puppet with all its orders under a pid of the caller's choice. Its standard input is that of
/// this program.
pub(crate) fn spawn_agent_as(pid: u32, socket: &Path, orders: &str) {
    let text = |text: &OsStr| CString::new(text.as_bytes()).unwrap();
    let program = text(std::env::current_exe().unwrap().as_os_str());
    let arguments = ARGUMENTS.map(|argument| text(argument.as_ref()));
    let arguments = arguments.each_ref().map(CString::as_c_str);
    let environment = [
        text(format!("{SOCKET}={}", socket.display()).as_ref()),
        text(format!("{ORDERS}={orders}").as_ref()),
    ];
    let environment = environment.each_ref().map(CString::as_c_str);
    varta_sys::spawn::spawn_as(pid, &program, &arguments, &environment).unwrap();
}

/// Waits for a child that was started under a chosen pid; its exit code if it has one.
pub(crate) fn wait_for_pid(pid: u32) -> Option<i32> {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status()
}
