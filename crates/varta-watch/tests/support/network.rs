//! Remote agents: their datagrams without encryption or sealed, made by the test itself and sent over UDP. An
//! observer's keys are the bytes [`SHARED`] and [`MASTER`] 32 times each.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use rustix::process::Signal;
use tempfile::TempDir;
use varta_client::{Frame, Status};
use varta_vlp::NONCE_TERMINAL;
use varta_vlp::secure::known_answers::{seal_agent, seal_shared};
use varta_vlp::secure::{AgentKey, Key};

use super::LogLine;
use super::{BEATS, Observer, PATIENCE, frame_of};

pub(crate) const JOINS: &str = "varta_observer_joins_total";
pub(crate) const STALLS: &str = "varta_observer_stalls_total";
pub(crate) const RETURNS: &str = "varta_observer_returns_total";
pub(crate) const LEFT: &str = "varta_observer_exits_total{how=\"left\"}";
pub(crate) const SESSIONS: &str = "varta_session_restarts_total";
pub(crate) const UNDECRYPTABLE: &str = "varta_frame_decrypt_failures_total";
pub(crate) const REPLAYED: &str = "varta_secure_replay_refused_total";
pub(crate) const SENDERS_FULL: &str = "varta_sender_state_full_total";
pub(crate) const TRUNCATED: &str = "varta_truncated_datagrams_total";
pub(crate) const OUT_OF_ORDER: &str = "varta_frame_out_of_order_total";
pub(crate) const TABLE_FULL: &str = "varta_tracker_capacity_exceeded_total";
const CROWDED: &str = "varta_frame_identity_refused_total{reason=\"crowded\"}";

/// The outcomes of a datagram from a network: it is counted in exactly one of these.
const JUDGEMENTS: [&str; 10] = [
    BEATS,
    UNDECRYPTABLE,
    REPLAYED,
    SENDERS_FULL,
    TRUNCATED,
    OUT_OF_ORDER,
    TABLE_FULL,
    CROWDED,
    "varta_rate_limited_total",
    "varta_decode_errors_total",
];

/// Series that grow by themselves on a busy machine.
pub(crate) const NOISE: [&str; 2] = ["varta_observer_gap", "varta_observer_queue_full"];

/// Datagrams sent at once: fewer than the smallest queue of a UDP socket holds.
const AT_ONCE: usize = 100;

/// How often an agent beats: 20 times a second.
pub(crate) const PERIOD: Duration = Duration::from_millis(50);

/// No agent stalls, however long a test takes.
pub(crate) const PATIENT: &str = "--threshold-ms=3600000";

/// The pid of a remote agent. No process of this host is examined, whichever has this pid.
pub(crate) const PID: u32 = 4242;

/// The byte that the observer's shared key is made of.
pub(crate) const SHARED: u8 = 0x51;

/// The byte that its master key is made of.
pub(crate) const MASTER: u8 = 0xa7;

/// Names of the files in the observer's directory that hold them.
pub(crate) const SHARED_FILE: &str = "shared.key";
pub(crate) const MASTER_FILE: &str = "master.key";

pub(crate) type Counts = BTreeMap<String, u64>;

pub(crate) fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

/// The secret itself.
pub(crate) fn bytes_of(key: &Key) -> [u8; 32] {
    let hex = key.to_hex();
    let digits = std::str::from_utf8(&*hex).unwrap();
    std::array::from_fn(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
}

/// A key as it is written to files.
pub(crate) fn hex(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// A key file as it should be.
pub(crate) fn write_key(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A flag and the file it names.
pub(crate) fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// An observer that listens without encryption on any free port.
pub(crate) fn start_in_clear(flags: &[&str]) -> Observer {
    let all = [&["--udp-port=0", "--i-accept-plaintext-udp"], flags].concat();
    Observer::start(&all)
}

/// An observer that accepts the shared and the master key.
pub(crate) fn start_sealed(flags: &[&str]) -> Observer {
    start_sealed_in(tempfile::tempdir().unwrap(), flags)
}

/// The same with a directory made before, where it leaves and finds its files.
pub(crate) fn start_sealed_in(directory: TempDir, flags: &[&str]) -> Observer {
    let keys = key_flags(directory.path());
    let keys = keys.each_ref().map(String::as_str);
    let all = [&["--udp-port=0"], &keys[..], flags].concat();
    Observer::start_in(directory, &all, |command| command)
}

/// Writes the key files of an observer, and names them.
pub(crate) fn key_flags(directory: &Path) -> [String; 2] {
    let shared = write_key(directory, SHARED_FILE, hex(SHARED));
    let master = write_key(directory, MASTER_FILE, hex(MASTER));
    [
        flag("--key-file", &shared),
        flag("--master-key-file", &master),
    ]
}

/// A socket of this address and any free port.
pub(crate) fn socket_at(address: &str) -> UdpSocket {
    UdpSocket::bind((address, 0)).unwrap()
}

/// A socket of this host.
pub(crate) fn socket() -> UdpSocket {
    socket_at("127.0.0.1")
}

impl Observer {
    /// Its UDP address.
    pub(crate) fn udp(&self) -> SocketAddr {
        let start = self.told("start", |_| true);
        let mut address: SocketAddr = start.text("udp").unwrap().parse().unwrap();
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        address
    }

    /// A line that matches, possibly one that has been read.
    pub(crate) fn told(&self, event: &str, fits: impl Fn(&LogLine) -> bool) -> LogLine {
        let told = self.lines_told(|line| line.event == event && fits(line));
        match told.into_iter().next() {
            Some(line) => line,
            None => self.wait_for(event, fits),
        }
    }

    /// The lines read so far that match.
    pub(crate) fn lines_told(&self, fits: impl Fn(&LogLine) -> bool) -> Vec<LogLine> {
        let seen = self.seen.borrow();
        seen.iter().filter(|line| fits(line)).cloned().collect()
    }

    /// Ends it with a signal, and starts another one with the same files and these flags.
    pub(crate) fn replaced(mut self, signal: Signal, flags: &[&str]) -> Self {
        self.signal(signal);
        self.child.wait().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        start_sealed_in(std::mem::replace(&mut self.directory, elsewhere), flags)
    }

    /// Sends datagrams, not faster than they are judged.
    pub(crate) fn hear_all<'a>(
        &self,
        from: &UdpSocket,
        datagrams: impl IntoIterator<Item = &'a Vec<u8>>,
    ) {
        let to = self.udp();
        let datagrams: Vec<_> = datagrams.into_iter().collect();
        for some in datagrams.chunks(AT_ONCE) {
            let before = judged(&self.counters());
            for bytes in some {
                from.send_to(bytes, to).unwrap();
            }
            self.until(|counters| judged(counters) >= before + some.len() as u64);
        }
    }

    /// Sends one datagram and waits until it has been judged.
    pub(crate) fn hear(&self, from: &UdpSocket, bytes: &[u8]) {
        self.hear_all(from, [&bytes.to_vec()]);
    }

    /// Waits until the counters have these values.
    pub(crate) fn until(&self, mut fits: impl FnMut(&Counts) -> bool) {
        let until = Instant::now() + PATIENCE;
        loop {
            let counters = self.counters();
            if fits(&counters) {
                return;
            }
            assert!(Instant::now() < until, "not so: {counters:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Fails unless since `before` these counters have grown by this much, and no other one has.
    pub(crate) fn assert_gained(&self, before: &Counts, expected: &[(&str, u64)]) {
        let mut gained = self.counters();
        for (series, count) in &mut gained {
            *count -= before.get(series).copied().unwrap_or(0);
        }
        gained.retain(|series, count| {
            let is_noise = NOISE.iter().any(|noise| series.starts_with(noise));
            *count > 0 && !is_noise
        });
        let expected = expected.iter().filter(|(_, count)| *count > 0);
        let expected: Counts = expected
            .map(|(series, count)| ((*series).to_owned(), *count))
            .collect();
        assert_eq!(gained, expected, "and nothing else");
    }
}

/// Datagrams that have been judged.
fn judged(counters: &Counts) -> u64 {
    let is_one = |series: &str| JUDGEMENTS.iter().any(|name| series.starts_with(name));
    let all = counters.iter().filter(|(series, _)| is_one(series));
    all.map(|(_, count)| count).sum()
}

/// The proof in a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seal {
    Clear,
    /// The shared key of this byte.
    Shared(u8),
    /// The key that the master key of this byte gives the agent.
    Master(u8),
}

/// Every kind that the observer of [`start_sealed`] opens.
pub(crate) const SEALS: [Seal; 2] = [Seal::Shared(SHARED), Seal::Master(MASTER)];

/// A series of beats of one agent, over one session.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) seal: Seal,
    pub(crate) pid: u32,
    pub(crate) prefix: [u8; 8],
    /// Counter of the last datagram.
    pub(crate) counter: u32,
    /// Nonce of the last beat.
    pub(crate) nonce: u64,
}

impl Series {
    /// Starts with counter and nonce 1. The session has the name `name`.
    pub(crate) fn new(seal: Seal, pid: u32, name: &str) -> Self {
        let mut prefix = [0; 8];
        prefix[..name.len()].copy_from_slice(name.as_bytes());
        Self {
            seal,
            pid,
            prefix,
            counter: 0,
            nonce: 0,
        }
    }

    /// The next beat.
    pub(crate) fn beat(&mut self) -> Vec<u8> {
        self.nonce += 1;
        self.put(&frame_of(self.pid, self.nonce))
    }

    /// The next so many beats.
    pub(crate) fn beats(&mut self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.beat()).collect()
    }

    /// The terminal frame of a process, as its next datagram.
    pub(crate) fn last(&mut self, payload: u32, timestamp: u64) -> Vec<u8> {
        self.put(&last_frame(self.pid, payload, timestamp))
    }

    /// Any frame as the next datagram.
    pub(crate) fn put(&mut self, frame: &[u8; 32]) -> Vec<u8> {
        self.counter = self.counter.wrapping_add(1);
        self.at(self.counter, frame)
    }

    /// A frame at any position of the session.
    pub(crate) fn at(&self, counter: u32, frame: &[u8; 32]) -> Vec<u8> {
        let envelope = match self.seal {
            Seal::Clear => return frame.to_vec(),
            Seal::Shared(byte) => seal_shared(&key(byte), self.prefix, counter, frame),
            Seal::Master(byte) => {
                let key = AgentKey::derive(&key(byte), self.pid);
                seal_agent(&key, self.prefix, counter, frame)
            }
        };
        envelope.unwrap().as_bytes().to_vec()
    }
}

/// The terminal frame of a remote process.
pub(crate) fn last_frame(pid: u32, payload: u32, timestamp: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    Frame::new(Status::Critical, pid, timestamp, NONCE_TERMINAL, payload).encode(&mut bytes);
    bytes
}

/// Seals frames that the library refuses to seal: prefix, counter, ciphertext and tag.
pub(crate) fn sealed_by_hand(
    key: &Key,
    associated: &[u8],
    prefix: [u8; 8],
    counter: u32,
    frame: &[u8; 32],
) -> Vec<u8> {
    let bytes = bytes_of(key);
    let nonce = [&prefix[..], &counter.to_le_bytes()].concat();
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    let mut sealed = *frame;
    let tag = ChaCha20Poly1305::new(&bytes.into())
        .encrypt_inout_detached(&nonce.into(), associated, sealed.as_mut_slice().into())
        .unwrap();
    [&nonce[..], &sealed, tag.as_slice()].concat()
}

/// A remote agent that beats 20 times per second until it is stopped.
pub(crate) struct Beating {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Series>>,
}

impl Beating {
    pub(crate) fn start(observer: &Observer, from: &UdpSocket, mut series: Series) -> Self {
        let (from, to) = (from.try_clone().unwrap(), observer.udp());
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                from.send_to(&series.beat(), to).unwrap();
                std::thread::sleep(PERIOD);
            }
            series
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }

    /// Stops beating; returns the series in its last state.
    pub(crate) fn stop(mut self) -> Series {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// The record of a recovery command about the agent it was started for, after a stall of one agent; `None` if none
/// was started. Also the observer's line about it.
pub(crate) fn recovery_of(
    start: impl Fn(&[&str]) -> Observer,
    flags: &[&str],
    beat: &[u8],
) -> (Option<String>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    let script = directory.path().join("recover");
    fs::write(&script, format!("echo \"$*\" > {}\n", target.display())).unwrap();
    let exec = format!("sh {} {{pid}} {{source}}", script.display());
    let common = ["--threshold-ms=300", "--recovery-exec", &exec];
    let observer = start(&[&common[..], flags].concat());
    observer.hear(&socket(), beat);
    let is_last = |line: &LogLine| line.text("outcome") != Some("spawned");
    observer.told("recover", is_last);
    let outcomes = observer.lines_told(|line| line.event == "recover");
    let outcomes = outcomes.iter().filter_map(|line| line.text("outcome"));
    let text = fs::read_to_string(&target).ok();
    let outcomes = outcomes.map(str::to_owned).collect();
    observer.stop();
    (text.map(|text| text.trim_end().to_owned()), outcomes)
}
