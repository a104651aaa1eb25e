//! The simulation: time, random events, and the order of work.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use varta_core::engine::{AgentGone, AgentInfo, Command, Engine, EngineOptions, Now};
use varta_core::hold::Pressure;
use varta_core::policy::Policy;
use varta_core::{Agent, ExitStatus, Locality, SlotTable};
use varta_vlp::Status;

use crate::beat_path::{BeatPath, SLOTS};
use crate::control::Running;
use crate::oracle::{OWN_UID, Oracle};
use crate::policies::{changed, random_policy};
use crate::processes::{Datagram, Life, Processes};
use crate::random::Random;
use crate::{MS, S, TICK_NS, US};

/// Duration with faults, and without faults afterwards.
const FAULTY_NS: u64 = 150 * S;
const HEALED_NS: u64 = 90 * S;

/// Start of the simulation, on the observer's clock.
const BEGIN_NS: u64 = (100 * S).next_multiple_of(TICK_NS);

pub(crate) struct World {
    seed: u64,
    pub(crate) random: Random,
    pub(crate) now_ns: u64,
    table: Arc<SlotTable>,
    pub(crate) processes: Processes,
    pub(crate) beat_path: BeatPath,
    /// Work waits for the beat path: it is woken then.
    beat_input_ns: Option<u64>,
    beat_stopped_ns: u64,
    pub(crate) engine: Engine,
    pub(crate) control_input_ns: Option<u64>,
    pub(crate) control_stopped_ns: u64,
    pub(crate) running: Vec<Running>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) next_policy: Option<Arc<Policy>>,
    pub(crate) pressure: Pressure,
    pub(crate) pressure_due_ns: Option<u64>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) tickets: u64,
    pub(crate) answer: Option<(u64, Result<(), AgentGone>)>,
    pub(crate) directory: BTreeMap<u32, (Agent, Arc<AgentInfo>)>,
    pub(crate) spins: u32,
    pub(crate) oracle: Oracle,
    sent: Vec<Datagram>,
    /// Whether faults happen.
    pub(crate) is_faulty: bool,
    next_fault_ns: u64,
    kinds: Kinds,
    turns: u64,
    /// The last turn of the beat path, and turns at that time.
    turned_ns: u64,
    turns_now: u32,
    pub(crate) steps: u64,
}

/// The faults of a run: with all of them in each, some would hide others.
struct Kinds {
    stops: bool,
    slow_control: bool,
    reloads: bool,
    pauses: bool,
    pressure: bool,
    masses: bool,
    drops: bool,
    /// For how many thresholds drops put off a stall.
    put_off_thresholds: u64,
    /// Beats arrive on ticks of the timers, so that silences have exactly the length of a threshold.
    is_on_ticks: bool,
    longest_pause_ns: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let policy = Arc::new(random_policy(&mut random));
        let table = Arc::new(SlotTable::on_heap(SLOTS));
        let now_ns = BEGIN_NS;
        let now = Now {
            observer_ns: now_ns,
            attention_ns: 0,
        };
        let options = EngineOptions {
            seed,
            own_uid: OWN_UID,
        };
        let threshold_ns = policy.threshold.as_nanos() as u64;
        let kinds = Kinds {
            stops: random.one_in(2),
            slow_control: random.one_in(3),
            reloads: !random.one_in(3),
            pauses: !random.one_in(3),
            pressure: random.one_in(2),
            masses: random.one_in(2),
            drops: random.one_in(3),
            put_off_thresholds: random.one_of(&[2, 4, 16]),
            is_on_ticks: random.one_in(3),
            longest_pause_ns: random.one_of(&[100 * MS, 500 * MS, S]),
        };
        let is_strict = random.one_in(2);
        let mut oracle = Oracle::new(Arc::clone(&policy), now);
        oracle.silence.begin(now_ns);
        Self {
            seed,
            now_ns,
            processes: Processes::new(&mut random, now_ns),
            beat_path: BeatPath::new(Arc::clone(&table), threshold_ns, is_strict, now_ns),
            beat_input_ns: None,
            beat_stopped_ns: 0,
            engine: Engine::new(options, Arc::clone(&table), Arc::clone(&policy), now),
            control_input_ns: None,
            control_stopped_ns: 0,
            running: Vec::new(),
            oracle,
            policy,
            next_policy: None,
            pressure: Pressure::default(),
            pressure_due_ns: None,
            commands: VecDeque::new(),
            tickets: 0,
            answer: None,
            directory: BTreeMap::new(),
            spins: 0,
            sent: Vec::new(),
            is_faulty: true,
            next_fault_ns: now_ns,
            kinds,
            turns: 0,
            turned_ns: 0,
            turns_now: 0,
            steps: 0,
            table,
            random,
        }
    }

    /// Faults first, then none, and every silence and action ends.
    pub(crate) fn live(&mut self) {
        while self.now_ns < BEGIN_NS + FAULTY_NS {
            self.step();
        }
        self.heal();
        while self.now_ns < BEGIN_NS + FAULTY_NS + HEALED_NS {
            self.step();
        }
        self.oracle.check_healed();
        assert!(
            self.running.is_empty(),
            "programs that nobody has forgotten"
        );
    }

    fn step(&mut self) {
        let beat_ns = self.beat_due_ns();
        let control_due_ns = self.control_due_ns();
        let control_ns = control_due_ns.max(self.control_stopped_ns);
        let fault_ns = if self.is_faulty {
            self.next_fault_ns
        } else {
            u64::MAX
        };
        let times = [self.processes.next_ns(), beat_ns, control_ns, fault_ns];
        let next_ns = times.into_iter().min().unwrap_or(u64::MAX);
        self.now_ns = self.now_ns.max(next_ns.min(self.now_ns + S));
        let now_ns = self.now_ns;
        self.processes
            .send(&mut self.random, now_ns, &mut self.sent);
        self.steps += self.sent.len() as u64;
        self.beat_path.inbox.extend(self.sent.drain(..));
        if fault_ns <= now_ns {
            self.next_fault_ns = now_ns + self.random.between(MS, self.kinds.longest_pause_ns);
            self.fault();
        }
        self.beat_path
            .ended
            .extend(self.processes.just_ended.drain(..));
        if beat_ns <= now_ns {
            self.beat_turn();
        }
        if control_ns <= now_ns {
            self.control_turn(control_due_ns);
        }
        if self.beat_path.has_input() && self.beat_input_ns.is_none() {
            self.beat_input_ns = Some(now_ns + self.random.below(100 * US));
        }
        let is_idle = self.commands.is_empty() && self.next_policy.is_none();
        if !is_idle && self.control_input_ns.is_none() {
            self.control_input_ns = Some(now_ns + self.random.below(MS));
        }
    }

    fn beat_due_ns(&self) -> u64 {
        let input_ns = self.beat_input_ns.unwrap_or(u64::MAX);
        let due_ns = self.beat_path.promised_ns.min(input_ns);
        let due_ns = due_ns.max(self.beat_stopped_ns);
        match self.kinds.is_on_ticks {
            true => due_ns.checked_next_multiple_of(TICK_NS).unwrap_or(due_ns),
            false => due_ns,
        }
    }

    fn beat_turn(&mut self) {
        self.turns_now = match self.turned_ns == self.now_ns {
            true => self.turns_now + 1,
            false => 0,
        };
        self.turned_ns = self.now_ns;
        assert!(self.turns_now < 100, "the beat path does not sleep");
        self.steps += 1;
        self.turns += 1;
        self.beat_input_ns = None;
        self.beat_path.turn(self.now_ns, &mut self.oracle);
        if self.turns.is_multiple_of(16) {
            let table = &self.table;
            let read = |slot| table.read(slot);
            self.oracle.silence.check_table(read, SLOTS as u32);
            if self.beat_path.ended.is_empty() {
                let dead = &self.beat_path.dead;
                let has_ended = |agent: Agent| dead.contains(&(agent.pid, agent.instance));
                self.oracle.silence.check_ended(has_ended);
            }
        }
        let is_told = !self.beat_path.ring.is_empty() || !self.beat_path.queries.is_empty();
        if is_told && self.control_input_ns.is_none() {
            self.control_input_ns = Some(self.now_ns + self.random.below(200 * US));
        }
    }

    fn heal(&mut self) {
        self.is_faulty = false;
        self.processes.are_punctual = true;
        self.pressure = Pressure::default();
        for place in 0..self.processes.seats.len() {
            let is_left = self.random.one_in(8);
            if let Some(process) = self.processes.process(place) {
                process.heal();
                if !is_left {
                    process.wake_up(self.now_ns);
                }
            }
        }
    }

    fn fault(&mut self) {
        let place = self.random.below(self.processes.seats.len() as u64) as usize;
        match self.random.below(26) {
            0..5 => self.hang(place),
            5 | 6 => self.rouse(place),
            7 | 8 => self.end(place),
            9 => self.leave_with_last_frame(place),
            10 => self.change_status(place),
            11 => self.begin_session(place),
            12 => self.flood(place),
            13 if self.kinds.masses => self.hang_many(),
            14 if self.kinds.masses => self.rouse_all(),
            15 | 16 if self.kinds.pauses => self.pause(place),
            17 if self.kinds.pauses => self.resume(place),
            18 | 19 if self.kinds.reloads => {
                self.next_policy = Some(Arc::new(changed(&self.policy, &mut self.random)));
            }
            20 if self.kinds.pressure => {
                let percent = self.random.one_of(&[0.0, 10.0, 17.0, 30.0, 70.0]);
                self.pressure.memory_percent = self.random.one_in(2).then_some(percent);
                let percent = self.random.one_of(&[0.0, 30.0, 50.0, 70.0]);
                self.pressure.io_percent = self.random.one_in(2).then_some(percent);
            }
            21 | 22 if self.kinds.stops => {
                let stop_ns = self.random.one_of(&[2 * MS, 40 * MS, 150 * MS, S, 8 * S]);
                self.beat_stopped_ns = self.now_ns + self.random.below(stop_ns);
            }
            24 if self.kinds.drops => {
                let locality = self.random.one_of(&Locality::ALL);
                let thresholds = self.kinds.put_off_thresholds;
                self.beat_path.drops.push_back((locality, thresholds));
            }
            23 if self.kinds.slow_control => {
                let stop_ns = self.random.one_of(&[20 * MS, 500 * MS, 6 * S]);
                self.control_stopped_ns = self.now_ns + self.random.below(stop_ns);
            }
            _ => {}
        }
    }

    fn hang(&mut self, place: usize) {
        if let Some(process) = self.processes.process(place) {
            process.life = Life::Hangs;
        }
    }

    fn rouse(&mut self, place: usize) {
        let now_ns = self.now_ns;
        if let Some(process) = self.processes.process(place) {
            process.wake_up(now_ns);
        }
    }

    /// All agents of a user, or all agents.
    fn hang_many(&mut self) {
        let uid = self.random.one_of(&[None, None, Some(500), Some(502)]);
        for place in 0..self.processes.seats.len() {
            if let Some(process) = self.processes.process(place)
                && uid.is_none_or(|uid| uid == process.service.uid)
            {
                process.life = Life::Hangs;
            }
        }
    }

    fn rouse_all(&mut self) {
        for place in 0..self.processes.seats.len() {
            self.rouse(place);
        }
    }

    fn end(&mut self, place: usize) {
        let ends = [
            ExitStatus::Code(0),
            ExitStatus::Code(1),
            ExitStatus::Signal(11),
            ExitStatus::Signal(6),
        ];
        let how = self.random.one_of(&ends);
        self.processes
            .end(place, how, &mut self.random, self.now_ns);
    }

    fn leave_with_last_frame(&mut self, place: usize) {
        let is_goodbye = !self.random.one_in(3);
        let now_ns = self.now_ns;
        let Some(process) = self.processes.process(place) else {
            return;
        };
        let last_frame = process.last_frame(is_goodbye, now_ns);
        self.beat_path.inbox.push_back(last_frame);
        // A process may go on after its handle was closed.
        if !self.random.one_in(4) {
            let how = match is_goodbye {
                true => ExitStatus::Code(0),
                false => ExitStatus::Signal(6),
            };
            self.processes.end(place, how, &mut self.random, now_ns);
        }
    }

    fn change_status(&mut self, place: usize) {
        let statuses = [
            Status::Ok,
            Status::Degraded,
            Status::Critical,
            Status::Critical,
        ];
        let status = self.random.one_of(&statuses);
        if let Some(process) = self.processes.process(place) {
            process.status = status;
        }
    }

    fn begin_session(&mut self, place: usize) {
        let now_ns = self.now_ns;
        let name = self.random.one_of(&["web-1", "web-7", "job-3", "db", ""]);
        let is_renamed = self.random.one_in(2);
        if let Some(process) = self.processes.process(place)
            && process.service.remote.is_none()
        {
            process.begin_session(is_renamed.then(|| name.to_owned()), now_ns);
        }
    }

    fn flood(&mut self, place: usize) {
        let flood = self.random.one_of(&[0, 0, 0, 4]);
        if let Some(process) = self.processes.process(place) {
            process.flood = flood;
        }
    }

    fn some_agent(&mut self) -> Option<Agent> {
        let slot = self.random.below(SLOTS as u64) as u32;
        self.table.read(slot).map(|facts| facts.agent(slot))
    }

    fn pause(&mut self, place: usize) {
        let Some(agent) = self.some_agent() else {
            return;
        };
        let longest_ms = self.random.one_of(&[50, 2_000, 10_000]);
        let time = Duration::from_millis(self.random.between(1, longest_ms));
        let reason = self.random.one_in(2).then(|| format!("reason {place}"));
        self.commands.push_back(Command::Pause {
            agent,
            time,
            reason,
        });
    }

    fn resume(&mut self, place: usize) {
        let paused = self.directory.values().nth(place).map(|(agent, _)| *agent);
        if let Some(agent) = paused.or_else(|| self.some_agent()) {
            self.commands.push_back(Command::Resume { agent });
        }
    }
}

impl Drop for World {
    /// A failure prints how to reproduce it, and the trace before it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for trace in self.oracle.traces() {
                eprintln!("{trace}");
            }
            eprintln!(
                "seed {} after {} steps; again: VARTA_WORLD_SEED={} cargo test -p varta-core --test engine_world",
                self.seed, self.steps, self.seed
            );
        }
    }
}
