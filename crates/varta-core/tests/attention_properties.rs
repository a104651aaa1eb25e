//! Which agents are reported as stalled and when, against an oracle, in a simulation: agents that beat in
//! phase or not, hang, start and end; a kernel queue of eleven or 8193; an observer that is stopped, throttled
//! by a CPU quota, frozen together with its agents, and flooded.
//!
//! The observer's turn is that of the beat path: set the wake-up, sleep, drain, judge. The oracle reads the
//! state of the simulation, not the clock or the tracker. Its rules:
//!
//! 1. An agent that beats, and whose beats the queue accepted, is never reported as stalled.
//! 2. An agent that beats, and whose beats the queue refused, is not reported as stalled within sixteen
//!    thresholds of its last accepted beat; four if the queue is deep.
//! 3. An agent that hangs is reported as stalled one threshold after its last beat, plus the absences of the
//!    observer since then that are longer than this agent tolerates, and nothing else: independent of other agents
//!    and their thresholds. If the queue was found full meanwhile, at most sixteen (four) thresholds later than
//!    that.
//! 4. No agent is reported as stalled before its threshold has passed since its last accepted beat.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use varta_core::attention::{AttentionClock, longest_sleep_ns};
use varta_core::slot::Tier;
use varta_core::{
    Agent, AgentKey, Beat, BeatOrigin, Counter, Counters, Locality, ReceiveQueue, SlotTable,
    Tracker, TrackerOptions,
};
use varta_vlp::{Frame, Status};

const US: u64 = 1_000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Minimum work of the simulation: beats sent and turns taken, except floods.
const STEPS: u64 = 1_000_000;

/// Time to read a datagram.
const READ_NS: u64 = 3 * US;

/// A flood of 100 000 datagrams per second.
const FLOOD_INTERVAL_NS: u64 = 10 * US;

/// Longest delay from a timer or a datagram to the wake-up of the observer.
const WAKE_NS: u64 = 60 * US;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// Time during which the observer does not run.
#[derive(Clone, Copy)]
struct Stop {
    from_ns: u64,
    until_ns: u64,
    /// Whether its agents do not run either.
    freezes_agents: bool,
}

/// An agent, and the oracle's state of it.
struct Process {
    threshold_ns: u64,
    interval_ns: u64,
    next_ns: u64,
    hangs_at_ns: u64,
    nonce: u64,
    taken_ns: Option<u64>,
    was_refused: bool,
    stalled: bool,
    known_as: Option<Agent>,
}

struct World {
    now_ns: u64,
    holds: usize,
    /// The sender of each datagram; `None` for one of the flood.
    queue: VecDeque<Option<usize>>,
    processes: Vec<Process>,
    stops: Vec<Stop>,
    /// The first absence that is not over.
    next_stop: usize,
    /// The first absence that the agents have not reached.
    next_freeze: usize,
    /// Datagrams read since the reader found it empty.
    read_since_empty: usize,
    /// When the reader found that it may have been full.
    found_full_ns: Option<u64>,
    flood: (u64, u64),
    next_flood_ns: u64,
    steps: u64,
}

impl World {
    fn new(random: &mut Random, holds: usize, end_ns: u64) -> Self {
        let is_in_phase = random.one_in(2);
        let crowd = random.one_of(&[1, 2, 6, 30]);
        let processes = (0..crowd).map(|_| {
            let threshold_ns = MS * random.one_of(&[10, 100, 500, 501, 2_000, 3_000]);
            let interval_ns = threshold_ns / (4 + random.below(6));
            let phase_ns = if is_in_phase {
                0
            } else {
                random.below(interval_ns)
            };
            // Few agents have short thresholds, and they run only briefly.
            let is_impatient = threshold_ns == 10 * MS;
            let begins_ns = random.below(4) * end_ns / 8;
            let lives_ns = match is_impatient {
                true => 50 * MS,
                false => end_ns / 4 + random.below(end_ns),
            };
            Process {
                threshold_ns,
                interval_ns,
                next_ns: begins_ns.next_multiple_of(interval_ns) + phase_ns,
                hangs_at_ns: begins_ns + lives_ns,
                nonce: 0,
                taken_ns: None,
                was_refused: false,
                stalled: false,
                known_as: None,
            }
        });
        let processes = processes.collect();
        let flood_from_ns = random.below(end_ns);
        let flood = match random.one_in(4) {
            true => (flood_from_ns, flood_from_ns + 300 * MS),
            false => (u64::MAX, u64::MAX),
        };
        Self {
            now_ns: 0,
            holds,
            queue: VecDeque::new(),
            processes,
            stops: stops(random, end_ns),
            next_stop: 0,
            next_freeze: 0,
            read_since_empty: 0,
            found_full_ns: None,
            flood,
            next_flood_ns: flood.0,
            steps: 0,
        }
    }

    /// Lets the observer work for this long. While it is stopped, time passes without work.
    fn work(&mut self, mut work_ns: u64) {
        loop {
            while let Some(stop) = self.stops.get(self.next_stop)
                && stop.until_ns <= self.now_ns
            {
                self.next_stop += 1;
            }
            let stop = self.stops.get(self.next_stop).copied();
            let Some(stop) = stop.filter(|stop| stop.from_ns <= self.now_ns + work_ns) else {
                return self.pass_until(self.now_ns + work_ns);
            };
            work_ns -= stop.from_ns.saturating_sub(self.now_ns);
            self.pass_until(stop.until_ns);
        }
    }

    /// Advances the time for all agents.
    fn pass_until(&mut self, ns: u64) {
        while let Some(stop) = self.stops.get(self.next_freeze).copied()
            && stop.from_ns <= ns
        {
            self.next_freeze += 1;
            if stop.freezes_agents {
                self.send_until(stop.from_ns);
                for process in &mut self.processes {
                    // The rest of its work is done after the stop.
                    process.next_ns += stop.until_ns - stop.from_ns;
                    if process.hangs_at_ns > stop.from_ns {
                        process.hangs_at_ns = process.hangs_at_ns.max(stop.until_ns + 1);
                    }
                }
                self.next_flood_ns = self.next_flood_ns.max(stop.until_ns);
            }
        }
        self.send_until(ns);
        self.now_ns = self.now_ns.max(ns);
    }

    /// When the next datagram will be sent.
    fn next_send_ns(&self) -> u64 {
        let beats = self.processes.iter();
        let beats = beats.filter(|process| process.next_ns < process.hangs_at_ns);
        let next_beat_ns = beats.map(|process| process.next_ns).min();
        let flood_ns = match self.next_flood_ns < self.flood.1 {
            true => self.next_flood_ns,
            false => u64::MAX,
        };
        next_beat_ns.unwrap_or(u64::MAX).min(flood_ns)
    }

    fn send_until(&mut self, ns: u64) {
        while self.next_send_ns() <= ns {
            let sent_ns = self.next_send_ns();
            if self.next_flood_ns == sent_ns {
                self.next_flood_ns += FLOOD_INTERVAL_NS;
                self.send(None);
            }
            for i in 0..self.processes.len() {
                let process = &mut self.processes[i];
                if process.next_ns == sent_ns && sent_ns < process.hangs_at_ns {
                    process.next_ns += process.interval_ns;
                    let is_taken = self.send(Some(i));
                    let process = &mut self.processes[i];
                    process.was_refused = !is_taken;
                    if is_taken {
                        process.taken_ns = Some(sent_ns);
                    }
                }
            }
        }
    }

    fn send(&mut self, sender: Option<usize>) -> bool {
        self.steps += u64::from(sender.is_some());
        let has_room = self.queue.len() < self.holds;
        if has_room {
            self.queue.push_back(sender);
        }
        has_room
    }

    fn read(&mut self) -> Option<Option<usize>> {
        let datagram = self.queue.pop_front();
        self.read_since_empty = datagram.map_or(0, |_| self.read_since_empty + 1);
        if self.read_since_empty >= self.holds {
            self.found_full_ns = Some(self.now_ns);
        }
        datagram
    }

    /// How long the observer was away between two times, and how often, in stretches that are longer than an agent
    /// with this threshold tolerates.
    fn away_ns(&self, from_ns: u64, until_ns: u64, threshold_ns: u64) -> (u64, u64) {
        let tolerance_ns = tolerance_ns(threshold_ns);
        let stops = self.stops.iter();
        let stops = stops.filter(|stop| stop.until_ns - stop.from_ns + WAKE_NS > tolerance_ns);
        let parts = stops.map(|stop| {
            let until_ns = stop.until_ns.min(until_ns);
            until_ns.saturating_sub(stop.from_ns.max(from_ns))
        });
        parts.fold((0, 0), |(sum, times), part| {
            (sum + part, times + u64::from(part > 0))
        })
    }
}

/// Lateness of the observer that counts as silence.
fn tolerance_ns(threshold_ns: u64) -> u64 {
    (threshold_ns / 8).clamp(MS, 100 * MS)
}

fn stops(random: &mut Random, end_ns: u64) -> Vec<Stop> {
    let (shortest, longest, pause, freezes_agents) = match random.below(6) {
        0 => return Vec::new(),
        // A CPU quota of 2 or 5 ms in 100.
        1 => {
            let quota_ns = MS * random.one_of(&[2, 5]);
            let periods = 0..end_ns / (100 * MS);
            let throttled = periods.map(|period| Stop {
                from_ns: period * 100 * MS + quota_ns,
                until_ns: (period + 1) * 100 * MS,
                freezes_agents: false,
            });
            return throttled.collect();
        }
        // Short pauses, with almost no work in between.
        2 => (MS, 125 * MS, 3 * MS, false),
        // Long ones, one per threshold.
        3 => (620 * MS, 620 * MS, 1_180 * MS, false),
        4 => (MS, 1_500 * MS, 2 * SECOND, false),
        // The host, or its control group, with its agents.
        _ => {
            let longest = random.one_of(&[60, 98, 400]) * MS;
            (longest * 3 / 4, longest, SECOND / 2, true)
        }
    };
    let mut stops = Vec::new();
    let mut from_ns = pause + random.below(pause);
    while from_ns < end_ns {
        let until_ns = from_ns + shortest + random.below(longest - shortest + 1);
        stops.push(Stop {
            from_ns,
            until_ns,
            freezes_agents,
        });
        from_ns = until_ns + pause;
    }
    stops
}

/// The observer: what the beat path does in a turn.
struct Observer {
    clock: AttentionClock,
    tracker: Tracker,
    counters: std::sync::Arc<Counters>,
    queue: ReceiveQueue,
    budget: usize,
}

impl Observer {
    fn new(holds: usize) -> Self {
        let counters = std::sync::Arc::<Counters>::default();
        let table = std::sync::Arc::new(SlotTable::on_heap(256));
        Self {
            clock: AttentionClock::new(0),
            tracker: Tracker::new(table, counters.clone(), TrackerOptions::default()),
            counters,
            queue: ReceiveQueue::new(holds),
            budget: holds.max(1024),
        }
    }

    fn look(&mut self, world: &World) {
        if let Some(gap) = self.clock.advance_to(world.now_ns)
            && !gap.is_off_the_clock
        {
            self.tracker.excuse(self.clock.now_ns(), gap.gap_ns);
        }
    }

    fn turn(&mut self, world: &mut World, random: &mut Random) -> Vec<Agent> {
        self.sleep(world, random);
        self.look(world);
        let heard_ns = self.clock.now_ns();
        let mut read = 0;
        while read < self.budget {
            world.work(READ_NS);
            let Some(datagram) = world.read() else {
                self.queue.saw_empty();
                break;
            };
            self.queue.has_read(1);
            read += 1;
            self.look(world);
            if let Some(sender) = datagram {
                self.hear(world, sender);
            }
        }
        if self.queue.take_may_have_been_full() {
            self.look(world);
            let thresholds = self.queue.restart_thresholds();
            self.tracker
                .restart_silence(Locality::Local, self.clock.now_ns(), thresholds);
        }
        let mut stalled = Vec::new();
        self.tracker.drain_stalled_slots(heard_ns, 4096, |silence| {
            if silence.tier == Tier::Stalled {
                stalled.push(silence.agent);
            }
            ControlFlow::Continue(())
        });
        world.steps += 1;
        stalled
    }

    fn sleep(&mut self, world: &mut World, random: &mut Random) {
        self.look(world);
        let longest_ns = self.tracker.shortest_threshold_ns().map(longest_sleep_ns);
        let timer_ns = match self.tracker.next_deadline_ns() {
            Some(deadline_ns) => {
                let longest_ns = longest_ns.unwrap_or(u64::MAX);
                let at_ns = self.clock.raw_at(deadline_ns);
                at_ns.min(world.now_ns.saturating_add(longest_ns))
            }
            None => u64::MAX,
        };
        self.clock.promise(timer_ns);
        let woken_ns = match world.queue.is_empty() {
            false => world.now_ns,
            true => timer_ns.min(world.next_send_ns()).max(world.now_ns),
        };
        // Without agents and events, time still passes.
        let woken_ns = woken_ns.min(world.now_ns + SECOND);
        world.pass_until(woken_ns);
        world.work(random.below(WAKE_NS));
    }

    fn hear(&mut self, world: &mut World, sender: usize) {
        let process = &mut world.processes[sender];
        process.nonce += 1;
        let pid = 2 + sender as u32;
        let beat = Beat {
            key: AgentKey::local(pid),
            frame: Frame::new(Status::Ok, pid, process.nonce, process.nonce, 0),
            origin: BeatOrigin::KernelAttested,
            ns_inode: None,
            uid: 0,
            session: None,
        };
        let now_ns = self.clock.now_ns();
        let recorded = self.tracker.record(&beat, now_ns, process.threshold_ns);
        process.known_as = recorded.agent;
        process.stalled = false;
    }
}

/// The checks of the oracle after each turn.
fn check(world: &mut World, observer: &Observer, stalled: &[Agent], seed: u64) {
    let now_ns = world.now_ns;
    let thresholds = observer.queue.restart_thresholds();
    for agent in stalled {
        let process = &mut world.processes[agent.pid as usize - 2];
        process.stalled = true;
        let taken_ns = process.taken_ns.unwrap();
        if process.hangs_at_ns <= now_ns {
            let silence_ns = now_ns - taken_ns;
            assert!(
                silence_ns >= process.threshold_ns,
                "seed {seed}: pid {} was called stalled {silence_ns} ns after its last beat that was taken",
                agent.pid
            );
            continue;
        }
        assert!(
            process.was_refused && now_ns - taken_ns >= thresholds * process.threshold_ns,
            "seed {seed}: pid {} beats every {} ms and was called stalled at {} ms, {} ms after the last beat that was \
             taken; threshold {} ms, refused: {}",
            agent.pid,
            process.interval_ns / MS,
            now_ns / MS,
            (now_ns - taken_ns) / MS,
            process.threshold_ns / MS,
            process.was_refused,
        );
    }
    for (i, process) in world.processes.iter().enumerate() {
        let Some(taken_ns) = process.taken_ns else {
            continue;
        };
        if process.stalled || process.hangs_at_ns > now_ns || process.known_as.is_none() {
            continue;
        }
        let was_full = world
            .found_full_ns
            .is_some_and(|full_ns| full_ns > taken_ns);
        let put_off = if was_full { thresholds } else { 0 };
        let (away_ns, times) = world.away_ns(taken_ns, now_ns, process.threshold_ns);
        // When the deadline passes the observer may be away for as long as the agent tolerates. Then it reads what
        // was queued, in two turns.
        let slack_ns = tolerance_ns(process.threshold_ns)
            + 2 * (observer.budget as u64 * READ_NS)
            + MS
            + times * 2 * WAKE_NS;
        let limit_ns = (put_off + 1) * process.threshold_ns + away_ns + slack_ns;
        assert!(
            now_ns - taken_ns <= limit_ns,
            "seed {seed}: pid {} hangs and was not called stalled by {} ms, {} ms after its last beat that was taken; \
             threshold {} ms, observer away for {} ms, queue full: {was_full}",
            i + 2,
            now_ns / MS,
            (now_ns - taken_ns) / MS,
            process.threshold_ns / MS,
            away_ns / MS,
        );
    }
    if world.found_full_ns.is_none() {
        assert_eq!(
            observer.counters.get(Counter::StallsPutOff),
            0,
            "seed {seed}"
        );
    }
}

/// Runs a simulation to its end. Returns its steps, and the number of stalls.
fn live(seed: u64, holds: usize) -> (u64, u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let end_ns = 6 * SECOND;
    let mut world = World::new(&mut random, holds, end_ns);
    let mut observer = Observer::new(holds);
    while world.now_ns < end_ns {
        let stalled = observer.turn(&mut world, &mut random);
        check(&mut world, &observer, &stalled, seed);
    }
    (world.steps, observer.counters.get(Counter::Stalls))
}

#[test]
fn a_million_random_steps_report_exactly_the_stalled_agents() {
    let (mut steps, mut stalls, mut seed) = (0, 0, 0);
    while steps < STEPS {
        seed += 1;
        for holds in [11, 8193] {
            let (more_steps, more_stalls) = live(seed, holds);
            steps += more_steps;
            stalls += more_stalls;
        }
    }
    assert!(
        stalls > seed,
        "{stalls} stalls in {seed} worlds: the oracle has seen nothing"
    );
}
