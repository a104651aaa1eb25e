//! The agent that a beat is credited to, in a simulated host: processes that end at any moment, pids that are reused
//! at once, a queue that fills, datagrams taken one by one or in batches, replies that come late, and containers.
//!
//! Each datagram carries the instance of its real sender. The oracle does not use the rules that judge senders. Its
//! rules:
//!
//! 1. A beat is credited to the process that sent it, or to none. There is one exception, which no fact can detect: in
//!    a batch, a beat of a process that succeeded the agent's and has ended, too, counts as a last one of the agent,
//!    which leaves in the same turn.
//! 2. A datagram that is refused, or waits, changes nothing in the table.
//! 3. Every datagram is credited, refused or waits, and none waits for ever.
//! 4. A process whose end was reported does not become an agent again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use varta_core::admission::{
    AttestedFrame, Datagram, FoundProcess, Hold, KnownSender, LocalSenders, ProcessInfo, Room,
    SendTimeBound, SenderQuery, SenderReply, Verdict, is_successor,
};
use varta_core::agent::UNIDENTIFIED;
use varta_core::{
    Agent, AgentKey, AllowedUsers, Beat, BeatOrigin, Claims, Credentials, LimitOptions, Limits,
    LocalGate, Slot, Tracker, TrackerOptions,
};
use varta_vlp::{FRAME_BYTES, Frame, Status};

const SEEDS: u64 = 10;
const STEPS: usize = 10_000;
const PIDS: u64 = 6;
const QUEUE: usize = 8;
const MS: u64 = 1_000_000;
const THRESHOLD_NS: u64 = 1_000 * MS;

const ROOM: Room = Room {
    in_table: true,
    for_events: true,
};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

#[derive(Clone, Copy)]
struct Process {
    instance: u64,
    started_ns: u64,
    nonce: u64,
}

impl Process {
    /// Every second process runs in a container, where it has another pid.
    fn inner_pid(self, pid: u32) -> u32 {
        match self.instance % 2 {
            0 => pid,
            _ => pid + 1_000,
        }
    }
}

#[derive(Clone, Copy)]
struct Sent {
    pid: u32,
    instance: u64,
    bytes: [u8; FRAME_BYTES],
}

/// The host: processes by pid, and the kernel's queue.
struct Host {
    random: Random,
    now_ns: u64,
    processes: BTreeMap<u32, Process>,
    instances: u64,
    queue: VecDeque<Sent>,
}

impl Host {
    /// A random event: a process starts, ends, or sends.
    fn step(&mut self) {
        self.now_ns += MS;
        let pid = 2 + self.random.below(PIDS) as u32;
        let Some(process) = self.processes.get_mut(&pid) else {
            self.instances += 1;
            let process = Process {
                instance: self.instances,
                started_ns: self.now_ns,
                nonce: 0,
            };
            self.processes.insert(pid, process);
            return;
        };
        if self.random.one_in(12) {
            self.processes.remove(&pid);
            return;
        }
        process.nonce += 1;
        let claimed = process.inner_pid(pid);
        let instance = process.instance;
        let truth = instance as u32;
        let frame = Frame::new(Status::Ok, claimed, self.now_ns, process.nonce, truth);
        let mut bytes = [0; FRAME_BYTES];
        frame.encode(&mut bytes);
        if self.queue.len() < QUEUE {
            self.queue.push_back(Sent {
                pid,
                instance,
                bytes,
            });
        }
    }

    fn owner(&self, pid: u32) -> Option<u64> {
        self.processes.get(&pid).map(|process| process.instance)
    }

    fn is_running(&self, pid: u32, instance: u64) -> bool {
        self.owner(pid) == Some(instance)
    }
}

struct Observer {
    host: Host,
    tracker: Tracker,
    senders: LocalSenders,
    limits: Limits,
    sent: SendTimeBound,
    /// Whether the kernel passes the process of a sender.
    attaches: bool,
    /// The facts of the agent in a slot, and whether its end was seen.
    held: BTreeMap<u32, (Option<Claims>, bool)>,
    queries: VecDeque<(SenderQuery, Option<u64>)>,
    ended: BTreeSet<u64>,
    heard: u64,
    waiting: u64,
    credited: u64,
    joined: u64,
    refused: u64,
    unproved: u64,
    credited_late: u64,
}

impl Observer {
    fn new(seed: u64, attaches: bool) -> Self {
        let gate = LocalGate {
            users: AllowedUsers::Everyone,
            nobody: None,
            pid_max: 32_768,
        };
        Self {
            host: Host {
                random: Random(seed),
                now_ns: 10_000 * MS,
                processes: BTreeMap::new(),
                instances: 0,
                queue: VecDeque::new(),
            },
            tracker: Tracker::with_capacity(16, TrackerOptions::default()),
            senders: LocalSenders::new(gate, false),
            limits: Limits::new(16, LimitOptions::default(), 0),
            sent: SendTimeBound::new(QUEUE),
            attaches,
            held: BTreeMap::new(),
            queries: VecDeque::new(),
            ended: BTreeSet::new(),
            heard: 0,
            waiting: 0,
            credited: 0,
            joined: 0,
            refused: 0,
            unproved: 0,
            credited_late: 0,
        }
    }

    fn turn(&mut self) {
        for _ in 0..self.host.random.below(3) {
            if let Some((query, attached)) = self.queries.pop_front() {
                self.reply(query, attached);
            }
        }
        match self.attaches && self.host.random.below(3) > 0 {
            true => self.take_one_by_one(),
            false => self.take_batch(),
        }
        if self.host.random.one_in(2) {
            self.see_exits();
        }
    }

    /// Takes each datagram after examining its sender; random events may happen between the two.
    fn take_one_by_one(&mut self) {
        let looked_ns = self.host.now_ns;
        loop {
            let Some(head) = self.host.queue.front().copied() else {
                self.sent.saw_empty(looked_ns);
                return;
            };
            let wants_process = match self.tracker.slot_of(&AgentKey::local(head.pid)) {
                Some(slot) => {
                    let instance = self.tracker.facts_in(slot).unwrap().instance;
                    !self.host.is_running(head.pid, instance)
                }
                None => self
                    .senders
                    .wants_process(credentials(head.pid), ROOM, self.host.now_ns),
            };
            if self.host.random.one_in(4) {
                self.host.step();
            }
            let taken = self.host.queue.pop_front().unwrap();
            self.hear(taken, wants_process);
            if self.host.random.one_in(6) {
                return;
            }
        }
    }

    /// Takes several datagrams at once, then checks which processes have ended.
    fn take_batch(&mut self) {
        let looked_ns = self.host.now_ns;
        let count = (1 + self.host.random.below(4) as usize).min(self.host.queue.len());
        let batch: Vec<Sent> = self.host.queue.drain(..count).collect();
        let was_emptied = self.host.queue.is_empty();
        for _ in 0..self.host.random.below(3) {
            self.host.step();
        }
        for (slot, (_, has_ended)) in &mut self.held {
            let agent = self.tracker.agent_in(*slot).unwrap();
            *has_ended |= !self.host.is_running(agent.pid, agent.instance);
        }
        if self.host.random.one_in(4) {
            self.host.step();
        }
        for sent in batch {
            self.hear(sent, false);
        }
        match was_emptied {
            true => self.sent.saw_empty(looked_ns),
            false => self.sent.has_read(count, looked_ns),
        }
    }

    fn see_exits(&mut self) {
        let slots: Vec<u32> = self.held.keys().copied().collect();
        for slot in slots {
            if let Some(agent) = self.tracker.agent_in(slot)
                && !self.host.is_running(agent.pid, agent.instance)
            {
                self.retire(agent);
            }
        }
    }

    fn retire(&mut self, agent: Agent) {
        while let Some((agent, _)) = self.tracker.retire_next(agent.pid, agent.instance) {
            self.held.remove(&agent.slot);
        }
        self.senders
            .note_end(agent.pid, agent.instance, self.host.now_ns);
        self.ended.insert(agent.instance);
    }

    fn table(&self) -> Vec<Option<Slot>> {
        let slots = 0..self.tracker.capacity() as u32;
        slots.map(|slot| self.tracker.facts_in(slot)).collect()
    }

    fn known(&self, pid: u32) -> Option<KnownSender> {
        let agent = self.tracker.local_agent(pid)?;
        let (claims, has_ended) = self.held[&agent.slot];
        Some(KnownSender {
            agent,
            last_nonce: self.tracker.facts_in(agent.slot)?.last_nonce,
            claims,
            hold: if has_ended { Hold::Ended } else { Hold::Held },
        })
    }

    fn hear(&mut self, sent: Sent, is_attached: bool) {
        self.heard += 1;
        let datagram = Datagram {
            bytes: &sent.bytes,
            truncated: false,
            control_truncated: false,
            credentials: Some(credentials(sent.pid)),
        };
        let now_ns = self.host.now_ns;
        let beat = self.senders.admit(&datagram, is_attached, now_ns).unwrap();
        let attached = is_attached.then_some(sent.instance);
        let mut known = self.known(sent.pid);
        if let (Some(sender), Some(_)) = (known, attached)
            && is_successor(sender.agent, attached, || false)
        {
            self.retire(sender.agent);
            known = None;
        }
        let before = self.table();
        let (host, limits) = (&self.host, &mut self.limits);
        let verdict = match &known {
            Some(known) => {
                let owner = || host.owner(sent.pid);
                self.senders
                    .judge_known(&beat, known, is_attached, limits, now_ns, owner)
            }
            None => {
                let sent_after_ns = self.sent.proved_ns();
                let find = || match (attached, host.owner(sent.pid)) {
                    (Some(instance), _) => FoundProcess::Attached(Some(instance)),
                    (None, Some(instance)) => FoundProcess::Opened(Some(instance)),
                    (None, None) => FoundProcess::Gone,
                };
                let senders = &mut self.senders;
                senders.judge_unknown(&beat, ROOM, sent_after_ns, limits, now_ns, find)
            }
        };
        if !matches!(verdict, Verdict::RetireAndRefuse) {
            assert_eq!(self.table(), before, "a verdict changes no fact");
        }
        self.carry_out(&beat, verdict, known.map(|known| known.agent), attached);
    }

    fn carry_out(
        &mut self,
        beat: &AttestedFrame,
        verdict: Verdict,
        known: Option<Agent>,
        attached: Option<u64>,
    ) {
        let truth = u64::from(beat.frame.payload);
        let pid = beat.sender.pid;
        match verdict {
            Verdict::Credit => {
                let agent = known.expect("an agent to credit");
                if agent.instance != truth {
                    assert_eq!(
                        (attached, self.host.owner(pid)),
                        (None, None),
                        "credited to another"
                    );
                    self.credited_late += 1;
                }
                self.record(beat, AgentKey::local(pid));
                self.credited += 1;
            }
            Verdict::Join { instance } => {
                assert_eq!(instance, truth, "another process has joined");
                assert!(!self.ended.contains(&instance), "it has ended before");
                let agent = self.record(beat, AgentKey::process(pid, instance));
                self.held.insert(agent.slot, (None, false));
                self.joined += 1;
            }
            Verdict::JoinAndLeave => {
                assert!(!self.host.is_running(pid, truth), "it has not ended");
                let agent = self.record(beat, AgentKey::process(pid, UNIDENTIFIED));
                self.tracker.retire(agent).unwrap();
                self.senders.note_end(pid, UNIDENTIFIED, self.host.now_ns);
                self.joined += 1;
            }
            Verdict::Ask(query) => {
                self.queries.push_back((query, attached));
                self.waiting += 1;
            }
            Verdict::Wait => self.waiting += 1,
            Verdict::RetireAndRefuse => {
                self.retire(known.expect("an agent to retire"));
                self.refused += 1;
                self.unproved += 1;
            }
            Verdict::Refuse(_) => self.refused += 1,
            Verdict::NoRoom => unreachable!("there is room"),
        }
    }

    fn record(&mut self, beat: &AttestedFrame, key: AgentKey) -> Agent {
        let beat = Beat::new(key, beat.frame, BeatOrigin::KernelAttested);
        let now_ns = self.host.now_ns;
        let recorded = self.tracker.record(&beat, now_ns, THRESHOLD_NS);
        assert!(recorded.displaced.is_none(), "its predecessor was there");
        match recorded.agent {
            Some(agent) => agent,
            // An older beat of the same agent waited for longer.
            None => self.tracker.local_agent(beat_pid(key)).unwrap(),
        }
    }

    /// Examines the queried process, if it still exists.
    fn reply(&mut self, query: SenderQuery, attached: Option<u64>) {
        let pid = query.pid;
        let owner = self.host.processes.get(&pid).copied();
        let instance = query.instance.or(owner.map(|owner| owner.instance));
        let instance = instance.unwrap_or(UNIDENTIFIED);
        let examined = owner.filter(|owner| owner.instance == instance);
        let existed = |since_ns| examined.is_some_and(|owner| owner.started_ns <= since_ns);
        let claims = examined.map(|owner| Claims::from_pids(&[pid, owner.inner_pid(pid)]));
        let reply = SenderReply {
            instance,
            proved: query.sent_after_ns.is_none_or(existed),
            info: ProcessInfo {
                claims,
                ..ProcessInfo::default()
            },
        };
        while let Some(beat) = self.senders.next_pending(query.ticket) {
            self.waiting -= 1;
            let known = self.tracker.local_agent(pid);
            if let Some(agent) = known.filter(|agent| agent.instance == instance) {
                let held = self.held.get_mut(&agent.slot).unwrap();
                held.0 = held.0.or(claims);
            }
            let known = self.known(pid);
            let known = known.filter(|known| known.agent.instance == instance);
            let has_ended = examined.is_none();
            let verdict = self.senders.judge_reply(
                &beat,
                &reply,
                known.as_ref(),
                &mut self.limits,
                self.host.now_ns,
                || has_ended,
            );
            // A successor that is known already stays known.
            if let (Verdict::Join { instance }, Some(other)) = (verdict, self.known(pid))
                && other.agent.instance != instance
            {
                self.retire(other.agent);
            }
            self.carry_out(&beat, verdict, known.map(|known| known.agent), attached);
        }
    }
}

fn beat_pid(key: AgentKey) -> u32 {
    match key {
        AgentKey::Local { pid, .. } | AgentKey::Remote { pid, .. } => pid,
    }
}

fn credentials(pid: u32) -> Credentials {
    let (uid, gid) = (1000, 1000);
    Credentials { pid, uid, gid }
}

#[test]
fn a_beat_is_credited_to_the_process_that_has_sent_it_or_to_none() {
    for attaches in [true, false] {
        let (mut credited, mut joined, mut unproved) = (0, 0, 0);
        for seed in 1..=SEEDS {
            let mut observer = Observer::new(seed * 0x9e37_79b9, attaches);
            for _ in 0..STEPS {
                match observer.host.random.below(3) {
                    0 => observer.turn(),
                    _ => observer.host.step(),
                }
            }
            while let Some((query, attached)) = observer.queries.pop_front() {
                observer.reply(query, attached);
            }
            let Observer {
                heard,
                waiting,
                refused,
                ..
            } = observer;
            assert_eq!(waiting, 0);
            assert_eq!(heard, observer.credited + observer.joined + refused);
            assert!(observer.credited_late * 50 < observer.credited);
            credited += observer.credited;
            joined += observer.joined;
            unproved += observer.unproved;
        }
        assert!(credited > 5_000 && joined > 1_000, "{credited} {joined}");
        assert!(unproved > 10, "{unproved}");
    }
}
