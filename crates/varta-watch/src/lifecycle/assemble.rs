//! The parts of the observer, made from what is open and tied to each other. Nothing runs yet.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use varta_core::{Counters, Limits, LocalGate, SlotTable, Tracker, TrackerOptions};
use varta_sys::users;

use super::failure::Failure;
use super::open::Opened;
use super::{descriptors, nanoseconds, random_number, slots};
use crate::config::Config;
use crate::control::{Control, ControlConfig};
use crate::handoff::command::{self, CommandRequest};
use crate::handoff::{self, StopSignal};
use crate::http::Listeners;
use crate::ingest::{Channels, Ingest, IngestConfig, Sockets};
use crate::process_info;
use crate::report::Report;
use crate::report::log::Log;
use crate::settings::network::KeyFiles;
use crate::settings::{ExportEvents, Settings};
use crate::snapshot::view::{About, View};

const NO_EVENTFD: &str = "cannot create an eventfd";

/// An observer that is ready to start.
pub(super) struct Parts {
    pub(super) ingest: Ingest,
    /// Stops the beat path.
    pub(super) stop: StopSignal,
    pub(super) control: Control,
    pub(super) listeners: Listeners,
    pub(super) view: View,
    /// From the listeners to the control thread.
    pub(super) commands: mpsc::Sender<CommandRequest>,
    pub(super) counters: Arc<Counters>,
}

pub(super) fn assemble(config: &Config, log: &Log, opened: Opened) -> Result<Parts, Failure> {
    let settings = &config.settings;
    let counters = Arc::new(Counters::default());
    let slots = slots(settings);
    let raw = opened.beat_path.raw();
    let table = Arc::new(SlotTable::on_heap(slots));
    let stop = StopSignal::new().map_err(Failure::system(NO_EVENTFD))?;
    let (events, event_receiver) =
        handoff::channel(Arc::clone(&counters)).map_err(Failure::system(NO_EVENTFD))?;
    let (update_sender, updates) = handoff::updates().map_err(Failure::system(NO_EVENTFD))?;
    let (command_sender, commands) = command::channel();
    let (directory, no_room, control_state) = (Arc::default(), Arc::default(), Arc::default());
    let view = View {
        about: About {
            session_id: log.session_id().to_owned(),
            started: SystemTime::now(),
            capacity: settings.capacity,
            agents_per_user: settings.agents_per_user,
            socket: settings.socket.display().to_string(),
            udp: opened.udp_address.map(|address| address.to_string()),
            queue: opened.queue.clone(),
        },
        table: Arc::clone(&table),
        directory: Arc::clone(&directory),
        no_room: Arc::clone(&no_room),
        counters: Arc::clone(&counters),
        probe: update_sender.liveness_probe(Arc::clone(&opened.beat_path)),
        beat_path: Arc::clone(&opened.beat_path),
        control: Arc::clone(&control_state),
    };
    let ingest_config = ingest_config(settings, &opened);
    let channels = Channels {
        state: Arc::clone(&opened.beat_path),
        events,
        updates,
        stop: stop.clone(),
    };
    let control = Control::new(ControlConfig {
        events: event_receiver,
        updates: update_sender,
        commands,
        report: Report::new(log.clone(), opened.event_file, Arc::clone(&counters), raw),
        config: config.clone(),
        seed: random_number(),
        keys: key_files(settings),
        table: Arc::clone(&table),
        token: opened.listeners.token(),
        directory,
        no_room,
        counters: Arc::clone(&counters),
        beat_path: opened.beat_path,
        state: control_state,
        kernel: opened.kernel,
    });
    let sockets = Sockets {
        local: opened.socket,
        udp: opened.udp,
    };
    let ingest = Ingest::new(
        sockets,
        ingest_config,
        tracker(settings, table, &counters),
        Limits::new(slots, settings.limits, raw.now_ns()),
        Arc::clone(&counters),
        channels,
    );
    Ok(Parts {
        ingest: ingest.map_err(Failure::system("cannot set up the beat path"))?,
        stop,
        control,
        listeners: opened.listeners,
        view,
        commands: command_sender,
        counters,
    })
}

fn tracker(settings: &Settings, table: Arc<SlotTable>, counters: &Arc<Counters>) -> Tracker {
    let options = TrackerOptions {
        policy: settings.eviction_policy,
        scan_window: settings.eviction_scan_window,
        seed: random_number(),
        local_capacity: settings.capacity,
        user_capacity: settings.agents_per_user,
        remote_capacity: settings.capacity,
    };
    Tracker::new(table, Arc::clone(counters), options)
}

fn ingest_config(settings: &Settings, opened: &Opened) -> IngestConfig {
    IngestConfig {
        gate: LocalGate {
            users: settings.users.clone(),
            nobody: users::unmapped_uid(),
            pid_max: process_info::pid_max(),
        },
        kernel: opened.kernel,
        threshold_ns: nanoseconds(settings.threshold),
        every_beat: opened.event_file.is_some() && settings.export_events == ExportEvents::All,
        refuse_foreign: settings.refuse_foreign,
        real_time: settings.real_time,
        queue_datagrams: opened.queue.datagrams,
        descriptor_budget: descriptors::for_agents(),
    }
}

fn key_files(settings: &Settings) -> Option<KeyFiles> {
    let keys = settings.udp.as_ref().map(|udp| udp.keys.clone());
    keys.filter(|keys| !keys.is_empty())
}
