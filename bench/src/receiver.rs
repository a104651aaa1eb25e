//! Processes that receive beats: each has a pid, a private socket, and ends with the bench.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;
use varta_sys::udp::UdpBatch;

use crate::{Bench, Result};

/// How long a receiver may take until it listens.
const START_WAIT: Duration = Duration::from_secs(10);

/// An observer ends by itself after this many seconds, should the bench be killed before it can end
/// it. Longer than any run.
pub(crate) const LIFETIME_SECONDS: u32 = 900;

/// Flags of 0.2.0 for a load above the default limits, of one agent and of all together.
pub(crate) const PEER_WITHOUT_LIMITS: [&str; 4] =
    ["--max-beat-rate", "0", "--global-beat-rate", "0"];

/// How long a receiver may take to end on request.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// The same sizes as in the observer.
const UDP_BATCH: usize = 64;
const UDP_DATAGRAM_BYTES: usize = 65;

/// A running receiver.
pub(crate) struct Receiver {
    child: Child,
    socket: PathBuf,
    _directory: TempDir,
}

impl Receiver {
    /// The least a receiver can do: `recv` in a loop, on a socket with credentials as the
    /// observer's.
    pub(crate) fn bare() -> Result<Self> {
        Self::start(&std::env::current_exe()?, |command, socket| {
            command.arg("__drain").arg(socket).stderr(Stdio::null());
        })
    }

    /// The published 0.2.0 observer, if one was given. `flags` are added to those that every section needs.
    pub(crate) fn peer(
        bench: &Bench,
        threshold: Duration,
        capacity: usize,
        flags: &[&str],
    ) -> Result<Option<Self>> {
        let Some(program) = &bench.peer else {
            return Ok(None);
        };
        let peer = Self::start(program, |command, socket| {
            command.arg("--socket").arg(socket).stderr(Stdio::null());
            for (flag, value) in [
                ("--threshold-ms", threshold.as_millis()),
                ("--tracker-capacity", capacity as u128),
                ("--shutdown-after-secs", u128::from(LIFETIME_SECONDS)),
            ] {
                command.arg(flag).arg(value.to_string());
            }
            command.args(flags);
        })?;
        Ok(Some(peer))
    }

    /// Starts `program` with the arguments that `prepare` adds for a socket path, and waits until it
    /// listens there.
    pub(crate) fn start(program: &Path, prepare: impl FnOnce(&mut Command, &Path)) -> Result<Self> {
        let directory = TempDir::new()?;
        let socket = directory.path().join("varta.sock");
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        prepare(&mut command, &socket);
        let child = command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let mut receiver = Self {
            child,
            socket,
            _directory: directory,
        };
        let end = Instant::now() + START_WAIT;
        while UnixDatagram::unbound()?.connect(&receiver.socket).is_err() {
            if let Some(status) = receiver.child.try_wait()? {
                return Err(format!("{} ended: {status}", program.display()).into());
            }
            if Instant::now() > end {
                return Err(format!("{} does not listen", program.display()).into());
            }
            sleep(Duration::from_millis(1));
        }
        Ok(receiver)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Lets it end cleanly, with all its output written.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let end = Instant::now() + STOP_WAIT;
        while Instant::now() < end {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("it ended: {status}").into()),
                None => sleep(Duration::from_millis(1)),
            }
        }
        Err("it does not end when asked to".into())
    }

    /// Its standard error, if that was made a pipe; once.
    pub(crate) fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Receives and does nothing else.
pub(crate) fn drain_forever(socket: &Path) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let socket = UnixDatagram::bind(socket)?;
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    loop {
        socket.recv(&mut [0; 33])?;
    }
}

/// A process that receives from a UDP socket and does nothing else. It ends with the value.
pub(crate) struct UdpDrain {
    child: Child,
    address: SocketAddr,
}

impl UdpDrain {
    pub(crate) fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("__drain-udp")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("it prints nothing")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address)?;
        let address = address.trim().parse();
        let address = address.map_err(|_| "it does not say where it listens")?;
        Ok(Self { child, address })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for UdpDrain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Receives in batches and does nothing else; sleeps as the observer does.
pub(crate) fn drain_udp_forever() -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", socket.local_addr()?);
    let mut batch = UdpBatch::new(UDP_BATCH, UDP_DATAGRAM_BYTES);
    loop {
        poll(&mut [PollFd::new(&socket, PollFlags::IN)], None)?;
        while batch.receive(socket.as_fd())? == UDP_BATCH {}
    }
}
