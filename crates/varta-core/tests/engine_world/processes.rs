//! The processes of the simulation: services whose processes beat, hang, end and restart, sometimes under the pid of
//! another one that has ended.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use varta_core::admission::{ProcessInfo, SenderQuery, SenderReply};
use varta_core::agent::{NO_KEY, remote_source};
use varta_core::engine::ProcessFacts;
use varta_core::fact::ProcessDescription;
use varta_core::{Agent, Claims, ExitStatus};
use varta_vlp::{FRAME_BYTES, Frame, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status};

use crate::random::Random;
use crate::{MS, S};

/// Pids of this host: few, so that they are reused soon.
const PIDS: std::ops::Range<u32> = 100..130;

/// How often a process beats that is never late.
const PUNCTUAL_INTERVAL_NS: u64 = 150 * MS;

/// The pids that processes in a container claim.
const INNER_PID: u32 = 2;

/// The common properties of a service's processes.
#[derive(Clone, Copy)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) unit: Option<&'static str>,
    pub(crate) uid: u32,
    /// Whether they run in a container.
    pub(crate) is_foreign: bool,
    pub(crate) remote: Option<Remote>,
}

/// The transport of a remote agent.
#[derive(Clone, Copy)]
pub(crate) struct Remote {
    pub(crate) address: SocketAddr,
    pub(crate) is_sealed: bool,
    /// Whether the operator declared the listener trusted.
    pub(crate) is_attested: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Beats,
    Hangs,
}

pub(crate) struct Process {
    pub(crate) service: Service,
    pub(crate) pid: u32,
    pub(crate) instance: u64,
    pub(crate) name: String,
    pub(crate) life: Life,
    pub(crate) status: Status,
    /// The pid it claims: another one in a container, or a lie.
    claims: u32,
    interval_ns: u64,
    pub(crate) next_beat_ns: u64,
    nonce: u64,
    handle_since_ns: u64,
    /// Extra beats that it sends each time.
    pub(crate) flood: u64,
}

/// A sent datagram, with the kernel's facts about its sender.
#[derive(Clone, Copy)]
pub(crate) struct Datagram {
    pub(crate) pid: u32,
    pub(crate) instance: u64,
    pub(crate) uid: u32,
    pub(crate) remote: Option<Remote>,
    pub(crate) bytes: [u8; FRAME_BYTES],
}

/// A place for a process of a service.
pub(crate) struct Seat {
    service: Service,
    pub(crate) process: Option<Process>,
    starts_ns: u64,
}

pub(crate) struct Processes {
    pub(crate) seats: Vec<Seat>,
    instances: u64,
    ended: BTreeMap<(u32, u64), ExitStatus>,
    /// No process is usually late.
    pub(crate) are_punctual: bool,
    /// Local processes that have ended since the last turn.
    pub(crate) just_ended: Vec<(u32, u64)>,
}

impl Processes {
    pub(crate) fn new(random: &mut Random, now_ns: u64) -> Self {
        let local = |name, unit, uid| Service {
            name,
            unit,
            uid,
            is_foreign: false,
            remote: None,
        };
        let web = local("web-1", Some("web.service"), 500);
        let boxed = Service {
            is_foreign: true,
            ..local("boxed", None, 503)
        };
        let far = |host, is_sealed, is_attested| Service {
            remote: Some(Remote {
                address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)), 9),
                is_sealed,
                is_attested,
            }),
            ..local("", None, varta_core::UID_UNKNOWN)
        };
        let services = [
            web,
            web,
            local("web-2", Some("web.service"), 500),
            local("db", Some("db.service"), 501),
            local("db", Some("db.service"), 501),
            local("job-1", None, 502),
            local("job-1", None, 502),
            local("job-2", None, 502),
            local("job-2", None, 502),
            local("root", None, 0),
            local("own", None, 1000),
            boxed,
            boxed,
            far(1, false, true),
            far(1, false, true),
            far(2, true, true),
            far(3, false, false),
            far(4, true, false),
            far(5, true, true),
        ];
        let seats = services.into_iter().map(|service| Seat {
            service,
            process: None,
            starts_ns: now_ns + random.below(3 * S),
        });
        Self {
            seats: seats.collect(),
            instances: 0,
            ended: BTreeMap::new(),
            are_punctual: false,
            just_ended: Vec::new(),
        }
    }

    /// When the next process starts or beats.
    pub(crate) fn next_ns(&self) -> u64 {
        let times = self.seats.iter().map(|seat| match &seat.process {
            None => seat.starts_ns,
            Some(process) if process.life == Life::Beats => process.next_beat_ns,
            Some(_) => u64::MAX,
        });
        times.min().unwrap_or(u64::MAX)
    }

    /// The datagrams sent until now.
    pub(crate) fn send(&mut self, random: &mut Random, now_ns: u64, sent: &mut Vec<Datagram>) {
        for place in 0..self.seats.len() {
            if self.seats[place].process.is_none() && self.seats[place].starts_ns <= now_ns {
                let process = self.start(place, random, now_ns);
                self.seats[place].process = Some(process);
            }
            let Some(process) = &mut self.seats[place].process else {
                continue;
            };
            if process.life == Life::Beats && process.next_beat_ns <= now_ns {
                for _ in 0..=process.flood {
                    sent.push(process.beat(now_ns));
                }
                process.next_beat_ns = now_ns + process.interval_ns;
            }
        }
    }

    fn start(&mut self, place: usize, random: &mut Random, now_ns: u64) -> Process {
        let service = self.seats[place].service;
        let (pid, instance) = match service.remote {
            Some(remote) => {
                let pid = 7 + random.below(2) as u32 + 2 * place as u32;
                let key = if remote.is_sealed { 1 } else { NO_KEY };
                (pid, remote_source(key, &remote.address, 7))
            }
            None => {
                self.instances += 1;
                (self.free_pid(random), self.instances)
            }
        };
        let is_renamed = random.one_in(8) && service.remote.is_none();
        let claims = match service.is_foreign {
            true => INNER_PID,
            // A process that claims a wrong pid.
            false if random.one_in(40) => pid + 1,
            false => pid,
        };
        Process {
            service,
            pid,
            instance,
            name: match is_renamed {
                true => format!("{}-renamed", service.name),
                false => service.name.to_owned(),
            },
            life: Life::Beats,
            status: Status::Ok,
            claims,
            interval_ns: match self.are_punctual {
                true => PUNCTUAL_INTERVAL_NS,
                false => random.between(60, 350) * MS,
            },
            next_beat_ns: now_ns + random.below(50 * MS),
            nonce: random.below(3),
            handle_since_ns: now_ns,
            flood: 0,
        }
    }

    fn free_pid(&self, random: &mut Random) -> u32 {
        let is_taken = |pid| {
            let processes = self.seats.iter().filter_map(|seat| seat.process.as_ref());
            let mut local = processes.filter(|process| process.service.remote.is_none());
            local.any(|process| process.pid == pid)
        };
        loop {
            let pid = random.between(u64::from(PIDS.start), u64::from(PIDS.end)) as u32;
            if !is_taken(pid) {
                return pid;
            }
        }
    }

    /// A process ends; another one takes its place after a while.
    pub(crate) fn end(&mut self, place: usize, how: ExitStatus, random: &mut Random, now_ns: u64) {
        let seat = &mut self.seats[place];
        let Some(process) = seat.process.take() else {
            return;
        };
        let longest_ns = random.one_of(&[20 * MS, S, 8 * S]);
        seat.starts_ns = now_ns + MS + random.below(longest_ns);
        if process.service.remote.is_none() {
            self.ended.insert((process.pid, process.instance), how);
            self.just_ended.push((process.pid, process.instance));
        }
    }

    /// The place of an agent's process, while it runs.
    pub(crate) fn place_of(&self, agent: Agent) -> Option<usize> {
        let is_it =
            |process: &Process| process.pid == agent.pid && process.instance == agent.instance;
        let mut seats = self.seats.iter();
        seats.position(|seat| seat.process.as_ref().is_some_and(is_it))
    }

    pub(crate) fn process(&mut self, place: usize) -> Option<&mut Process> {
        self.seats[place].process.as_mut()
    }

    /// How a local process ended.
    pub(crate) fn exit_status(&self, agent: Agent) -> ExitStatus {
        let status = self.ended.get(&(agent.pid, agent.instance));
        status.copied().unwrap_or(ExitStatus::Unknown)
    }

    /// The facts of a sender for the beat path.
    pub(crate) fn reply_to(&self, query: &SenderQuery) -> SenderReply {
        let instance = query.instance.expect("its process came along");
        let mut processes = self.seats.iter().filter_map(|seat| seat.process.as_ref());
        let process =
            processes.find(|process| process.pid == query.pid && process.instance == instance);
        let info = process.map_or_else(ProcessInfo::default, |process| {
            let pids = [process.pid, INNER_PID];
            let is_foreign = process.service.is_foreign;
            ProcessInfo {
                claims: Some(Claims::from_pids(&pids[..1 + usize::from(is_foreign)])),
                pid_ns: None,
                is_foreign,
            }
        });
        SenderReply {
            instance,
            proved: true,
            info,
        }
    }

    /// The facts of a local agent's process that can be read.
    pub(crate) fn facts(&self, agent: Agent) -> ProcessFacts {
        let place = self.place_of(agent);
        let process = place.and_then(|place| self.seats[place].process.as_ref());
        let Some(process) = process else {
            return ProcessFacts::default();
        };
        ProcessFacts {
            name: process.name.clone(),
            is_foreign: Some(process.service.is_foreign),
            process: ProcessDescription {
                unit: process.service.unit.map(str::to_owned),
                ..ProcessDescription::default()
            },
        }
    }
}

impl Process {
    pub(crate) fn beat(&mut self, now_ns: u64) -> Datagram {
        self.nonce += 1;
        // Agents count from the start of their handle, and never from 0.
        let timestamp = now_ns - self.handle_since_ns + 1;
        self.datagram(Frame::new(
            self.status,
            self.claims,
            timestamp,
            self.nonce,
            0,
        ))
    }

    /// Its last frame: it leaves in order, or crashes.
    pub(crate) fn last_frame(&self, is_goodbye: bool, now_ns: u64) -> Datagram {
        let timestamp = now_ns - self.handle_since_ns + 1;
        let payload = if is_goodbye { PAYLOAD_GOODBYE } else { 0 };
        self.datagram(Frame::new(
            Status::Critical,
            self.claims,
            timestamp,
            NONCE_TERMINAL,
            payload,
        ))
    }

    fn datagram(&self, frame: Frame) -> Datagram {
        let mut bytes = [0; FRAME_BYTES];
        frame.encode(&mut bytes);
        Datagram {
            pid: self.pid,
            instance: self.instance,
            uid: self.service.uid,
            remote: self.service.remote,
            bytes,
        }
    }

    /// It runs another program, or opens its handle again.
    pub(crate) fn begin_session(&mut self, name: Option<String>, now_ns: u64) {
        // A handle that is younger than the last beat of the previous one could not be distinguished from it.
        if now_ns - self.handle_since_ns < S {
            return;
        }
        self.nonce = 0;
        self.handle_since_ns = now_ns;
        self.name = name.unwrap_or_else(|| std::mem::take(&mut self.name));
    }

    /// Ends its faults.
    pub(crate) fn heal(&mut self) {
        self.flood = 0;
        self.status = Status::Ok;
        self.interval_ns = PUNCTUAL_INTERVAL_NS;
    }

    pub(crate) fn wake_up(&mut self, now_ns: u64) {
        if self.life == Life::Hangs {
            self.life = Life::Beats;
            self.next_beat_ns = now_ns + MS;
        }
    }
}
