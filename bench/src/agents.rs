//! Agents: real processes that beat, because the kernel tells the observer their identity.
//!
//! Each one is this program again. It beats through the public client at its own phase of a common interval and
//! records its last beat in a file in memory that it shares with the bench, so the bench knows the last beat of a
//! process that has been stopped since. A beat is recorded after it was sent: a process that was stopped in between
//! is recognised by its nonce, which the observer reports too. Through the same file the bench requests an agent to
//! leave, and the agent records when it did.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{park, sleep};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_parent_process_death_signal,
};
use varta_client::{BeatOutcome, DropReason, Status, Varta};

use crate::Result;
use crate::procfs::now_ns;

/// Processes started at a time; the next ones wait until the observer has reported these.
const BATCH: usize = 64;

/// How long a batch may take on a crowded machine.
const BATCH_WAIT: Duration = Duration::from_secs(20);

/// Interval of polling.
const LOOK: Duration = Duration::from_millis(1);

/// Beats of a flood between two readings of the clock.
const FLOOD_BLOCK: u64 = 64;

/// The record of an agent after each beat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Nonce of the last beat that was sent.
    pub(crate) nonce: u64,
    /// Taken right before that beat; [`now_ns`].
    pub(crate) sent_ns: u64,
    /// Beats that were sent so far; 0 before the first.
    pub(crate) sent: u64,
    /// Beats so far, including those that found the kernel's queue full.
    pub(crate) tried: u64,
    /// Most beats in a row that found the kernel's queue full.
    pub(crate) longest_refused: u64,
}

/// Words of an agent in the shared file: its record, then these.
const RECORD_WORDS: u64 = 5;
/// Not 0 once the agent is requested to leave.
const LEAVE_WORD: u64 = RECORD_WORDS;
/// When it left, [`now_ns`]; 0 before.
const LEFT_WORD: u64 = RECORD_WORDS + 1;
const AGENT_WORDS: u64 = RECORD_WORDS + 2;

const WORD_BYTES: u64 = 8;

/// Beats of all agents of one observer.
#[derive(Clone, Copy)]
pub(crate) struct Tally {
    /// Including those that found the kernel's queue full.
    pub(crate) tried: u64,
    pub(crate) sent: u64,
}

impl Record {
    fn write(self, file: &File, index: u64) -> io::Result<()> {
        let numbers = [
            self.nonce,
            self.sent_ns,
            self.sent,
            self.tried,
            self.longest_refused,
        ];
        let bytes = numbers.map(u64::to_ne_bytes);
        file.write_all_at(bytes.as_flattened(), word_at(index, 0))
    }

    fn read(file: &File, index: u64) -> io::Result<Self> {
        let mut numbers = [[0; 8]; RECORD_WORDS as usize];
        file.read_exact_at(numbers.as_flattened_mut(), word_at(index, 0))?;
        let [nonce, sent_ns, sent, tried, longest_refused] = numbers.map(u64::from_ne_bytes);
        Ok(Self {
            nonce,
            sent_ns,
            sent,
            tried,
            longest_refused,
        })
    }
}

/// The offset of an agent's word in the shared file.
fn word_at(index: u64, word: u64) -> u64 {
    (index * AGENT_WORDS + word) * WORD_BYTES
}

fn read_word(file: &File, index: u64, word: u64) -> io::Result<u64> {
    let mut bytes = [0; WORD_BYTES as usize];
    file.read_exact_at(&mut bytes, word_at(index, word))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn write_word(file: &File, index: u64, word: u64, value: u64) -> io::Result<()> {
    file.write_all_at(&value.to_ne_bytes(), word_at(index, word))
}

/// Agents of one observer. They end with the value, or with the bench.
pub(crate) struct Agents {
    children: Vec<Child>,
    records: File,
    /// Why there are fewer than requested.
    pub(crate) refused: Option<io::Error>,
}

impl Agents {
    /// Starts up to `count` agents and waits until the observer has reported each. If the machine refuses more
    /// processes, there are fewer.
    pub(crate) fn start(socket: &Path, count: usize, interval: Duration) -> Result<Self> {
        let records = File::from(memfd_create("varta-bench", MemfdFlags::CLOEXEC)?);
        records.set_len(word_at(count as u64, 0))?;
        let mut agents = Self {
            children: Vec::with_capacity(count),
            records,
            refused: None,
        };
        let program = std::env::current_exe()?;
        while agents.len() < count && agents.refused.is_none() {
            let first = agents.len();
            for index in first..count.min(first + BATCH) {
                let started = Command::new(&program)
                    .arg("__agent")
                    .arg(socket)
                    .arg(index.to_string())
                    .arg(interval.as_nanos().to_string())
                    .stdin(agents.records.try_clone()?)
                    .spawn();
                match started {
                    Ok(child) => agents.children.push(child),
                    Err(error) => {
                        agents.refused = Some(error);
                        break;
                    }
                }
            }
            agents.wait_until_heard(first)?;
        }
        Ok(agents)
    }

    pub(crate) fn len(&self) -> usize {
        self.children.len()
    }

    pub(crate) fn pid(&self, index: usize) -> u32 {
        self.children[index].id()
    }

    pub(crate) fn record(&self, index: usize) -> Result<Record> {
        Ok(Record::read(&self.records, index as u64)?)
    }

    /// The records of all agents in one, as far as they can be added up.
    pub(crate) fn tally(&self) -> Result<Tally> {
        let mut tally = Tally { tried: 0, sent: 0 };
        for index in 0..self.len() {
            let record = self.record(index)?;
            tally.tried += record.tried;
            tally.sent += record.sent;
        }
        Ok(tally)
    }

    pub(crate) fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.children[index]);
        Ok(kill_process(pid, signal)?)
    }

    /// The agent ends with code 0 where its next beat would have been due.
    pub(crate) fn ask_to_leave(&self, index: usize) -> Result<()> {
        Ok(write_word(&self.records, index as u64, LEAVE_WORD, 1)?)
    }

    /// When an agent left on request, right before its exit; `None` before.
    pub(crate) fn left_ns(&self, index: usize) -> Result<Option<u64>> {
        let left_ns = read_word(&self.records, index as u64, LEFT_WORD)?;
        Ok((left_ns > 0).then_some(left_ns))
    }

    /// Readable once the process has ended.
    pub(crate) fn pidfd(&self, index: usize) -> Result<OwnedFd> {
        let pid = Pid::from_child(&self.children[index]);
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    fn wait_until_heard(&self, first: usize) -> Result<()> {
        let end = Instant::now() + BATCH_WAIT;
        for index in first..self.len() {
            while self.record(index)?.sent == 0 {
                if Instant::now() > end {
                    return Err("agents were started but cannot beat".into());
                }
                sleep(LOOK);
            }
        }
        Ok(())
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        // First all, then wait: one by one would take as long as the slowest, each time.
        for child in &mut self.children {
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// The main loop of an agent, until it is requested to leave. `index` selects its record and its phase.
pub(crate) fn beat_until_asked(socket: &Path, index: u64, interval_ns: u64) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let records = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut agent = Varta::connect(socket)?;
    let mut record = Record::default();
    let mut refused = 0;
    let phase_ns = scattered(index) % interval_ns;
    while read_word(&records, index, LEAVE_WORD)? == 0 {
        let beat_ns = now_ns();
        record.tried += 1;
        if agent.beat(Status::Ok, 0) == BeatOutcome::Sent {
            record.nonce = record.tried;
            record.sent_ns = beat_ns;
            record.sent += 1;
            refused = 0;
        } else if record.sent == 0 {
            // The queue is full of first beats of other agents.
            sleep(LOOK);
            continue;
        } else {
            refused += 1;
            record.longest_refused = record.longest_refused.max(refused);
        }
        record.write(&records, index)?;
        // An agent that was stopped comes back at its own phase. If all agents that were stopped together beat at
        // once, they would make a burst that no kernel queue holds.
        loop {
            let due_ns = next_in_phase(now_ns(), interval_ns, phase_ns);
            sleep_until(due_ns);
            if now_ns() - due_ns < interval_ns {
                break;
            }
        }
    }
    Ok(write_word(&records, index, LEFT_WORD, now_ns())?)
}

/// The first time after `now_ns` that is `phase_ns` into an interval.
fn next_in_phase(now_ns: u64, interval_ns: u64, phase_ns: u64) -> u64 {
    let into_ns = (now_ns + interval_ns - phase_ns) % interval_ns;
    now_ns + interval_ns - into_ns
}

fn sleep_until(due_ns: u64) {
    sleep(Duration::from_nanos(due_ns.saturating_sub(now_ns())));
}

/// Pseudo-random, and the same in every run (the finaliser of SplitMix64).
pub(crate) fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ mixed >> 31
}

/// A process that floods a receiver. It ends with the value, not with the flood: beats that are still queued then
/// have a sender that is alive.
pub(crate) struct Flooder(Child);

impl Flooder {
    pub(crate) fn start(socket: &Path, duration: Duration) -> Result<Self> {
        let started = Command::new(std::env::current_exe()?)
            .arg("__flood")
            .arg(socket)
            .arg(duration.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(started))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits for the end of the flood; returns how many beats the kernel accepted.
    pub(crate) fn wait_until_over(&mut self) -> Result<u64> {
        let stdout = self.0.stdout.take().ok_or("a flood is over only once")?;
        let mut sent = String::new();
        BufReader::new(stdout).read_line(&mut sent)?;
        Ok(sent.trim().parse().map_err(|_| "the flood failed")?)
    }
}

impl Drop for Flooder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Beats without pause, and retries while the queue is full, so that the receiver never waits; prints how many beats
/// were sent, and waits to be killed.
pub(crate) fn flood(socket: &Path, duration_ms: u64) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut agent = Varta::connect(socket)?;
    let end = Instant::now() + Duration::from_millis(duration_ms);
    let mut sent: u64 = 0;
    while Instant::now() < end {
        for _ in 0..FLOOD_BLOCK {
            match agent.beat(Status::Ok, 0) {
                BeatOutcome::Sent => sent += 1,
                BeatOutcome::Dropped(DropReason::KernelQueueFull) => {}
                lost => return Err(format!("a beat of the flood did not go out: {lost:?}").into()),
            }
        }
    }
    println!("{sent}");
    loop {
        park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_beat_is_in_phase_and_strictly_later() {
        for (now, due) in [(0, 3), (2, 3), (3, 13), (12, 13), (13, 23), (99, 103)] {
            assert_eq!(next_in_phase(now, 10, 3), due, "at {now}");
        }
    }

    #[test]
    fn a_record_reads_back_from_its_own_place() {
        let file = tempfile::tempfile().unwrap();
        let record = |nonce| Record {
            nonce,
            sent_ns: 2,
            sent: 3,
            tried: 4,
            longest_refused: 5,
        };
        for index in 0..2 {
            write_word(&file, index, LEFT_WORD, 20 + index).unwrap();
            record(10 + index).write(&file, index).unwrap();
        }
        for index in 0..2 {
            assert_eq!(Record::read(&file, index).unwrap(), record(10 + index));
            assert_eq!(read_word(&file, index, LEFT_WORD).unwrap(), 20 + index);
            assert_eq!(read_word(&file, index, LEAVE_WORD).unwrap(), 0);
        }
    }
}
