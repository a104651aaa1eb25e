//! Opens what the observer needs before it starts: its sockets and files, in a fixed order.

use std::fs::DirBuilder;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use varta_core::BeatOrigin;
use varta_core::replay::ReplayOptions;

use super::failure::Failure;
use super::{random_number, slots};
use crate::beat_path_state::BeatPathState;
use crate::beat_queue::{self, Depth};
use crate::clock::RawClock;
use crate::http::Listeners;
use crate::ingest::UdpSource;
use crate::keys::KeyRing;
use crate::process_info::KernelFeatures;
use crate::replay_file;
use crate::report::event_file::EventFile;
use crate::report::log::Log;
use crate::settings::Settings;
use crate::settings::network::UdpSettings;
use crate::socket_file::{BoundSocket, Purpose};

/// Open sessions that are kept: as many as an agent may have ([`varta_core::replay::SESSIONS_PER_AGENT`]), one for
/// its last frames, and some of agents that have joined and left.
const SESSIONS_PER_AGENT: usize = 8;
const SESSIONS_MIN: usize = 16_384;

/// Closed sessions that are kept; an attacker that keeps a capture for longer can replay it once.
const CLOSED_PER_AGENT: usize = 16;
const CLOSED_MIN: usize = 65_536;

/// Everything that is open, with the findings on the way.
pub(super) struct Opened {
    pub(super) socket: BoundSocket,
    pub(super) queue: Depth,
    pub(super) kernel: KernelFeatures,
    pub(super) beat_path: Arc<BeatPathState>,
    pub(super) udp: Option<UdpSource>,
    pub(super) udp_address: Option<SocketAddr>,
    /// Log messages about UDP.
    pub(super) udp_notes: Vec<String>,
    pub(super) listeners: Listeners,
    pub(super) event_file: Option<EventFile>,
}

impl Opened {
    pub(super) fn open(settings: &Settings, log: &Log) -> Result<Self, Failure> {
        if settings.socket_is_default {
            create_directory(&settings.socket)?;
        }
        let (socket, queue) = beat_queue::make_socket(settings.queue_datagrams)
            .map_err(Failure::system("cannot make the beat socket"))?;
        let access = settings.socket_access;
        let socket = BoundSocket::bind_made(socket, &settings.socket, access, Purpose::Beats)
            .map_err(Failure::BeatSocket)?;
        let kernel = KernelFeatures::find(&socket);
        let beat_path = Arc::new(BeatPathState::new(RawClock::start()));
        let listening = settings.udp.as_ref();
        let listening =
            listening.map(|udp| listen(udp, settings.capacity, slots(settings), beat_path.raw()));
        let (udp, udp_notes) = listening.transpose()?.unzip();
        let listeners = Listeners::open(&settings.http).map_err(Failure::Listeners)?;
        // Last, so that an observer that cannot start has written to no event file.
        let event_file = settings.export_file.as_deref().map(|path| {
            let any = settings.allow_any_export_file;
            EventFile::open(path, any, log.clone()).map_err(Failure::EventFile)
        });
        Ok(Self {
            socket,
            queue,
            kernel,
            beat_path,
            udp_address: udp.as_ref().and_then(|udp| udp.address().ok()),
            udp,
            udp_notes: udp_notes.unwrap_or_default(),
            listeners,
            event_file: event_file.transpose()?,
        })
    }
}

/// Listens for remote agents. Returns the log messages about it as well.
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
    let failed = |error| Failure::Udp(udp.address, error);
    let socket = UdpSocket::bind(udp.address).map_err(failed)?;
    if udp.keys.is_empty() {
        let source = UdpSource::in_clear(socket, origin, random_number(), slots);
        return Ok((source, Vec::new()));
    }
    let ring = KeyRing::read(&udp.keys).map_err(Failure::Keys)?;
    let options = ReplayOptions {
        sessions: (capacity * SESSIONS_PER_AGENT).max(SESSIONS_MIN),
        closed: (capacity * CLOSED_PER_AGENT).max(CLOSED_MIN),
        seed: random_number(),
    };
    let replay =
        replay_file::open(&udp.replay_file, options, raw.now_ns()).map_err(Failure::ReplayFile)?;
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
    Ok((
        source.map_err(Failure::system("no memory for keys"))?,
        notices,
    ))
}

/// Creates the runtime directory: root's is readable by all users, a user's is private.
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
    created.map_err(|error| Failure::Directory(directory.to_owned(), error))
}
