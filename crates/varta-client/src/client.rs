//! The handle through which an agent beats (client spec 2 to 5).
//!
//! One handle is one series of beats from one process; two handles of a process are one agent to the
//! observer. A beat is a clock read, a load that notices forks, 32 bytes encoded in place and one
//! non-blocking send.

use std::io::{self, Write};
#[cfg(feature = "udp")]
use std::net::SocketAddr;
#[cfg(unix)]
use std::path::Path;
use std::time::Instant;

use varta_sys::fork;
#[cfg(all(unix, feature = "secure-udp"))]
use varta_vlp::secure::{AgentKey, Key};
use varta_vlp::{FRAME_BYTES, Frame, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

#[cfg(all(unix, feature = "secure-udp"))]
use crate::SecureUdpTransport;
#[cfg(feature = "udp")]
use crate::UdpTransport;
#[cfg(unix)]
use crate::UdsTransport;
use crate::reconnect::Reconnect;
use crate::terminal::TERMINAL;
use crate::timeline::Timeline;
use crate::{BeatError, BeatOutcome, BeatTransport, UNKNOWN_ERRNO, classify_send_error};

#[cfg(test)]
mod tests;

/// Sends the beats of this process over the transport `T`.
#[derive(Debug)]
pub struct Varta<#[cfg(unix)] T = UdsTransport, #[cfg(not(unix))] T> {
    transport: T,
    reconnect: Reconnect,
    timeline: Timeline,
    /// Nonce of the last beat; 0 before the first.
    nonce: u64,
    /// The process of this handle: its [`fork::generation`] and its pid.
    generation: u64,
    pid: u32,
    fork_recoveries: u64,
    /// The frame being sent. Owned, so that a resend after a reconnect is the same bytes.
    frame: [u8; FRAME_BYTES],
}

#[cfg(unix)]
impl Varta<UdsTransport> {
    /// Connects to the observer listening at `path`, for programs that refuse to run unwatched.
    ///
    /// # Errors
    ///
    /// The first system call that failed: not found when there is no such path, connection refused when no
    /// process listens there.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        UdsTransport::connect(path).map(Self::from_transport)
    }

    /// A handle for the observer at `path`, which may start later. Until it appears beats are dropped for
    /// [`NoObserver`](crate::DropReason::NoObserver), which is also the outcome for a path that can never
    /// work; [`reconnect`](Self::reconnect) returns the real reason.
    pub fn open(path: impl AsRef<Path>) -> Self {
        Self::from_transport(UdsTransport::open(path))
    }
}

#[cfg(feature = "udp")]
impl Varta<UdpTransport> {
    /// A handle for the observer at `addr`, which may start later; frames are not encrypted.
    ///
    /// While no process listens there, about every third beat is dropped for
    /// [`NoObserver`](crate::DropReason::NoObserver) and the rest appear as sent: the kernel learns of a
    /// refusal after the beat has left. Where the network or the other end returns no error, all beats appear
    /// as sent.
    ///
    /// The handle does not reconnect by itself, because its socket survives a restart of the observer.
    /// See [`set_reconnect_after`](Self::set_reconnect_after) for networks in which a fresh one helps.
    ///
    /// # Errors
    ///
    /// The first system call that failed, for example because there is no route.
    pub fn connect_udp(addr: SocketAddr) -> io::Result<Self> {
        UdpTransport::connect(addr).map(Self::without_reconnect)
    }
}

#[cfg(all(unix, feature = "secure-udp"))]
impl Varta<SecureUdpTransport> {
    /// As [`connect_udp`](Varta::connect_udp), encrypted under a key that all agents share. Only the observer
    /// and the agents can read the beats, and each agent can send beats in the name of any other one.
    ///
    /// Reads entropy, and may wait for it early at boot; beats do not.
    ///
    /// # Errors
    ///
    /// The first system call that failed, for the socket or for entropy.
    pub fn connect_secure_udp(addr: SocketAddr, key: Key) -> io::Result<Self> {
        SecureUdpTransport::connect(addr, key).map(Self::without_reconnect)
    }

    /// As [`connect_secure_udp`](Self::connect_secure_udp), under a key of this process alone, which the
    /// handle derives from the master key. It keeps the master key, and derives another key in a forked
    /// child.
    ///
    /// # Errors
    ///
    /// As [`connect_secure_udp`](Self::connect_secure_udp).
    pub fn connect_secure_udp_with_master(addr: SocketAddr, master: Key) -> io::Result<Self> {
        SecureUdpTransport::connect_with_master(addr, master).map(Self::without_reconnect)
    }

    /// As [`connect_secure_udp_with_master`](Self::connect_secure_udp_with_master), without the master key in
    /// the agent: the operator has derived the key for the pid of this process (`varta key derive`). In a
    /// forked child beats fail and nothing is sent.
    ///
    /// # Errors
    ///
    /// Invalid input, with both pids in its text, if the key is for another pid; else as
    /// [`connect_secure_udp`](Self::connect_secure_udp).
    pub fn connect_secure_udp_with_agent_key(addr: SocketAddr, key: AgentKey) -> io::Result<Self> {
        SecureUdpTransport::connect_with_agent_key(addr, key).map(Self::without_reconnect)
    }
}

impl<T: BeatTransport> Varta<T> {
    /// A handle over a custom transport. Its timestamps count from now, its first nonce is 1.
    pub fn from_transport(transport: T) -> Self {
        Self {
            transport,
            reconnect: Reconnect::BACK_OFF,
            timeline: Timeline::starting_at(Instant::now()),
            nonce: 0,
            generation: fork::generation(),
            pid: std::process::id(),
            fork_recoveries: 0,
            frame: [0; FRAME_BYTES],
        }
    }

    /// For transports that survive their observer: a new connection cannot help them.
    #[cfg(feature = "udp")]
    fn without_reconnect(transport: T) -> Self {
        Self {
            reconnect: Reconnect::Off,
            ..Self::from_transport(transport)
        }
    }

    /// Sends one beat: never waits, never panics, does not allocate.
    ///
    /// `payload` is sent unchanged. [`Status::Stall`] is reserved for the observer and is refused as invalid
    /// input. In a forked child the handle first adopts the child: new connection, own pid, nonce 1; if the
    /// connection fails, so does the beat, and the next one tries again.
    ///
    /// A nonce is used up by every attempt, so the observer sees gaps where beats were dropped.
    pub fn beat(&mut self, status: Status, payload: u32) -> BeatOutcome {
        if status == Status::Stall {
            let refused = BeatOutcome::Failed(BeatError {
                errno: UNKNOWN_ERRNO,
                kind: io::ErrorKind::InvalidInput,
            });
            self.reconnect.settle(refused);
            return refused;
        }
        self.beat_at(fork::generation(), Instant::now(), status, payload)
    }

    /// [`beat`](Self::beat) in the process of this generation, at this time.
    fn beat_at(
        &mut self,
        generation: u64,
        now: Instant,
        status: Status,
        payload: u32,
    ) -> BeatOutcome {
        if let Err(failed) = self.follow_fork(generation, now) {
            return failed;
        }
        self.nonce = nonce_after(self.nonce);
        let timestamp_ns = self.timeline.timestamp_ns(now);
        Frame::new(status, self.pid, timestamp_ns, self.nonce, payload).encode(&mut self.frame);
        self.deliver(timestamp_ns)
    }

    /// Sends a goodbye: this process continues, or ends, unobserved. Like a beat it never waits, never
    /// panics, does not allocate, adopts a forked child, and tries one new connection by the same rule. It
    /// uses up no nonce.
    ///
    /// The observer retires the process at once: it *left*, and its silence is not reported. Later beats,
    /// through this or another handle of the process, are those of a new agent. An observer of 0.2.0 treats
    /// the goodbye as a last Critical beat, and accepts no further beat from a handle that has made more than
    /// a million.
    ///
    /// ```
    /// use varta_client::{Status, Varta};
    ///
    /// # fn jobs() -> std::ops::Range<u32> { 0..3 }
    /// let mut agent = Varta::open("/run/varta/varta.sock");
    /// for job in jobs() {
    ///     // ... one unit of work ...
    ///     let _ = agent.beat(Status::Ok, job);
    /// }
    /// // Nothing more to do for now, and no beat until there is.
    /// let _ = agent.leave();
    /// ```
    pub fn leave(&mut self) -> BeatOutcome {
        self.leave_at(fork::generation(), Instant::now())
    }

    /// [`leave`](Self::leave) in the process of this generation, at this time.
    fn leave_at(&mut self, generation: u64, now: Instant) -> BeatOutcome {
        if let Err(failed) = self.follow_fork(generation, now) {
            return failed;
        }
        let timestamp_ns = self.timeline.timestamp_ns(now);
        Frame::new(
            Status::Critical,
            self.pid,
            TERMINAL.at_least(timestamp_ns),
            NONCE_TERMINAL,
            PAYLOAD_GOODBYE,
        )
        .encode(&mut self.frame);
        self.deliver(timestamp_ns)
    }

    /// Adopts the process of this generation, if it is another one; the outcome on failure.
    #[inline]
    fn follow_fork(&mut self, generation: u64, now: Instant) -> Result<(), BeatOutcome> {
        if generation == self.generation {
            return Ok(());
        }
        self.recover_from_fork(generation, now)
            .map_err(|error| BeatOutcome::Failed(BeatError::from_io(&error)))
    }

    /// Sends the frame, and once more over a new connection if that can help.
    #[inline]
    fn deliver(&mut self, now_ns: u64) -> BeatOutcome {
        let mut outcome = self.send();
        if let BeatOutcome::Dropped(reason) = outcome
            && self.reconnect.is_due(reason, now_ns)
            && self.transport.reconnect().is_ok()
        {
            outcome = self.send();
        }
        self.reconnect.settle(outcome);
        outcome
    }

    /// Replaces the connection by a new one now. Nonces and timestamps continue. In a forked child the handle
    /// adopts the child, which does not count as a recovery.
    ///
    /// # Errors
    ///
    /// Why the connection failed; the old one stays.
    pub fn reconnect(&mut self) -> io::Result<()> {
        self.transport.reconnect()?;
        self.adopt(fork::generation());
        Ok(())
    }

    /// Replaces the default rule for reconnecting, which is: at once when the observer is missing, then with
    /// growing delays up to 2 s; and never for the handles over UDP.
    ///
    /// With 0 the handle never reconnects by itself. With `n` it does on each beat dropped because there is
    /// no observer, from the `n`-th in a row on (client spec 4.2). A full queue does not count.
    pub fn set_reconnect_after(&mut self, n: u32) {
        self.reconnect = Reconnect::after_drops(n);
    }

    /// How often the clock stepped back; metric `varta_client_clock_regression_total`.
    pub fn clock_regressions(&self) -> u64 {
        self.timeline.regressions()
    }

    /// How often the handle recovered from a fork; metric `varta_client_fork_recoveries_total`.
    pub fn fork_recoveries(&self) -> u64 {
        self.fork_recoveries
    }

    fn send(&mut self) -> BeatOutcome {
        match self.transport.send(&self.frame) {
            Ok(_) => BeatOutcome::Sent,
            Err(error) => classify_send_error(&error),
        }
    }

    /// Restarts the series in a child (client spec 5). All or nothing: the connection first, because only
    /// that can fail.
    #[cold]
    fn recover_from_fork(&mut self, generation: u64, now: Instant) -> io::Result<()> {
        self.transport.reconnect()?;
        self.adopt(generation);
        self.timeline.restart_at(now);
        self.reconnect.restart();
        self.nonce = 0;
        self.fork_recoveries = self.fork_recoveries.saturating_add(1);
        Ok(())
    }

    fn adopt(&mut self, generation: u64) {
        self.generation = generation;
        self.pid = std::process::id();
    }
}

/// Regular nonces wrap around and skip the terminal one (wire spec 3.4).
fn nonce_after(nonce: u64) -> u64 {
    if nonce < NONCE_TERMINAL - 1 {
        nonce + 1
    } else {
        wrapped_nonce()
    }
}

/// The published client writes this line; a failed write has no effect.
#[cold]
fn wrapped_nonce() -> u64 {
    let _ = io::stderr().write_all(b"[varta-client] nonce exhausted; wrapping to 0\n");
    0
}
