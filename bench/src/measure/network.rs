//! The cost of a beat for the observer by its transport: Unix socket, UDP without encryption, UDP with a shared key,
//! UDP with a master key; compared to the least that any receiver pays for it.
//!
//! The load is bursts, like those of many agents whose clocks tick together: the receiver wakes up, reads what has
//! come, and sleeps again. A burst fits into the kernel's UDP queue, so every beat that was sent is accepted, which
//! the observer's own count confirms. The reference for UDP is a process that only calls `recvmmsg`; for encrypted
//! beats one bare AEAD open is added, measured in this program in the same run.

use std::hint::black_box;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key as CipherKey, Nonce, Tag};
use varta_client::{BeatOutcome, BeatTransport, DropReason, Key, Status, Varta};

use crate::observer::{Observer, WITHOUT_LIMIT};
use crate::procfs::cpu_ns;
use crate::receiver::{Receiver, UdpDrain};
use crate::report::{Figure, Report};
use crate::{Bench, Result};

/// Beats of a burst, half of what the kernel queues on a UDP socket by default, and the interval of bursts.
const BURST_BEATS: u32 = 128;
const BURST_PAUSE: Duration = Duration::from_millis(2);

/// No agent must stall.
const THRESHOLD: Duration = Duration::from_secs(60);
const CAPACITY: usize = 256;

/// Until all beats have been read, and the effects of a new agent are over.
const SETTLE: Duration = Duration::from_millis(100);

/// Opens per block when the cipher alone is timed.
const OPENS_PER_BLOCK: u32 = 1_000;

const BEATS: &str = "varta_observer_beats_total";

/// The keys of this bench, which protect nothing.
const SHARED_KEY: [u8; 32] = [1; 32];
const MASTER_KEY: [u8; 32] = [2; 32];

/// The contenders, measured round by round.
struct Contender<'a> {
    name: &'static str,
    pid: u32,
    burst: Box<dyn FnMut(Duration) -> Result<u64> + 'a>,
    /// CPU per beat, us.
    samples: Vec<f64>,
    sent: u64,
}

impl Contender<'_> {
    fn measure(&mut self, duration: Duration) -> Result<()> {
        let before_ns = cpu_ns(self.pid)?;
        let sent = (self.burst)(duration)?;
        sleep(SETTLE);
        let cpu_ns = cpu_ns(self.pid)? - before_ns;
        self.samples.push(cpu_ns as f64 / 1e3 / sent as f64);
        self.sent += sent;
        Ok(())
    }

    fn figure(&self) -> Figure {
        Figure::repeated(&self.samples)
    }
}

pub(crate) fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let in_clear = Observer::start_udp(bench, THRESHOLD, CAPACITY, &WITHOUT_LIMIT, &[])?;
    let keys = [
        ("--key-file", SHARED_KEY),
        ("--master-key-file", MASTER_KEY),
    ];
    let sealed = Observer::start_udp(bench, THRESHOLD, CAPACITY, &WITHOUT_LIMIT, &keys)?;
    let bare_unix = Receiver::bare()?;
    let bare_udp = UdpDrain::start()?;

    let address = sealed.udp()?;
    let key = Key::from_bytes(SHARED_KEY);
    let master = Key::from_bytes(MASTER_KEY);
    let mut contenders = [
        contender(
            "Unix",
            sealed.pid(),
            Varta::connect(sealed.receiver().socket())?,
        ),
        contender(
            "bare recv loop",
            bare_unix.pid(),
            Varta::connect(bare_unix.socket())?,
        ),
        contender("UDP", in_clear.pid(), Varta::connect_udp(in_clear.udp()?)?),
        contender(
            "bare recvmmsg loop",
            bare_udp.pid(),
            Varta::connect_udp(bare_udp.address())?,
        ),
        contender(
            "shared key",
            sealed.pid(),
            Varta::connect_secure_udp(address, key)?,
        ),
        contender(
            "master key",
            sealed.pid(),
            Varta::connect_secure_udp_with_master(address, master)?,
        ),
    ];
    let mut opens = Vec::new();
    let rounds = bench.plan.cpu_rounds;
    for round in 1..=rounds {
        bench.say(&format!("network: round {round} of {rounds}"));
        for contender in &mut contenders {
            contender.measure(bench.plan.flood)?;
        }
        opens.push(open_us(bench.plan.flood / 10)?);
    }

    let [unix, bare_recv, udp, bare_recvmmsg, shared, master] = &contenders;
    let opens = Figure::repeated(&opens);
    let floor = bare_recvmmsg.figure().plus(&opens);
    for (ours, name, against) in [
        (unix, bare_recv.name, bare_recv.figure()),
        (udp, bare_recvmmsg.name, bare_recvmmsg.figure()),
        (shared, "recvmmsg + AEAD", floor.clone()),
        (master, "recvmmsg + AEAD", floor),
    ] {
        let measure = format!("network, {}: CPU per beat", ours.name);
        report.compare(&measure, "us", ours.figure(), name, against);
    }
    report.row("network: bare AEAD open of a frame", "us", opens);
    let sent: u64 = [unix, udp, shared, master].iter().map(|c| c.sent).sum();
    let accepted = in_clear.counter(BEATS)? + sealed.counter(BEATS)?;
    let measure = "network: beats accepted";
    report.compare(measure, "beats", accepted as f64, "sent", sent as f64);
    report.note(format!(
        "network: bursts of {BURST_BEATS} beats every {BURST_PAUSE:?} from one agent; CPU time of all \
         threads of the receiver, median (least..most) of {rounds} rounds, receivers in turns; over the \
         Unix socket, whose queue is shorter, the sender tries again; recvmmsg + AEAD = the bare loop and \
         one bare open of ChaCha20-Poly1305, added up"
    ));
    Ok(())
}

fn contender<'a, T: BeatTransport + 'a>(
    name: &'static str,
    pid: u32,
    mut agent: Varta<T>,
) -> Contender<'a> {
    Contender {
        name,
        pid,
        burst: Box::new(move |duration| send_bursts(&mut agent, duration)),
        samples: Vec::new(),
        sent: 0,
    }
}

/// Returns how many beats the kernel accepted.
fn send_bursts<T: BeatTransport>(agent: &mut Varta<T>, duration: Duration) -> Result<u64> {
    let end = Instant::now() + duration;
    let mut sent = 0;
    let mut next = Instant::now();
    while next < end {
        for _ in 0..BURST_BEATS {
            loop {
                match agent.beat(Status::Ok, 0) {
                    BeatOutcome::Sent => break,
                    BeatOutcome::Dropped(DropReason::KernelQueueFull) => std::hint::spin_loop(),
                    lost => return Err(format!("a beat did not go out: {lost:?}").into()),
                }
            }
            sent += 1;
        }
        next = (next + BURST_PAUSE).max(Instant::now());
        sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(sent)
}

/// The time of the cipher alone to open a frame, us.
fn open_us(duration: Duration) -> Result<f64> {
    let key = CipherKey::from(SHARED_KEY);
    let nonce = Nonce::from([3; 12]);
    let mut sealed = [4_u8; 32];
    let tag = ChaCha20Poly1305::new(&key)
        .encrypt_inout_detached(&nonce, &[], sealed.as_mut_slice().into())
        .map_err(|_| "cannot seal")?;
    let end = Instant::now() + duration;
    let mut blocks = Vec::new();
    while Instant::now() < end {
        let start = Instant::now();
        for _ in 0..OPENS_PER_BLOCK {
            open(black_box(&key), &nonce, black_box(sealed), &tag)?;
        }
        blocks.push(start.elapsed().as_nanos() as f64 / 1e3 / f64::from(OPENS_PER_BLOCK));
    }
    blocks.sort_unstable_by(f64::total_cmp);
    Ok(blocks[blocks.len() / 2])
}

fn open(key: &CipherKey, nonce: &Nonce, mut frame: [u8; 32], tag: &Tag) -> Result<()> {
    ChaCha20Poly1305::new(key)
        .decrypt_inout_detached(nonce, &[], frame.as_mut_slice().into(), tag)
        .map_err(|_| "cannot open")?;
    black_box(frame);
    Ok(())
}
