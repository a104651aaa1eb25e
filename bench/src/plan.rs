//! The size of each measurement: the full run and the smoke run, in one place.

use std::time::Duration;

use clap::ValueEnum;

/// The parts of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// What a beat costs the agent.
    Client,
    /// What a beat costs the observer.
    Cpu,
    /// What a beat costs the observer by the way it comes.
    Network,
    /// How late a stall is noticed, and memory by the number of agents.
    Lateness,
    /// What a scrape takes, and what scrapes without pause do to lateness.
    Scrape,
    /// What recovery does to lateness when a crowd falls silent together.
    Restraint,
    /// What an observer costs while little or nothing happens.
    Idle,
    /// How soon the end of a process is told.
    Exits,
    /// What an agent that floods costs another one.
    Neighbour,
}

/// The size of a run.
pub(crate) struct Plan {
    /// Pairs of blocks, one of beats and one of bare sends.
    pub(crate) client_pairs: usize,
    /// Each receiver is measured this often, in turns, so that a slow moment affects all of them.
    pub(crate) cpu_rounds: usize,
    pub(crate) flood: Duration,
    pub(crate) paced: Duration,
    pub(crate) idle: Duration,
    pub(crate) lateness: Vec<LatenessCase>,
    /// Agents of the larger scrape; they have no process.
    pub(crate) scraped_agents: u32,
    pub(crate) restraint: RestraintCase,
    pub(crate) exit_batches: usize,
    /// Agents per batch; all of them end.
    pub(crate) exits_per_batch: usize,
    /// How long an agent floods while another one beats.
    pub(crate) neighbour: Duration,
}

/// One number of agents. Rounds times victims is the number of stalls.
pub(crate) struct LatenessCase {
    pub(crate) agents: usize,
    /// Longer for more agents, so that their beats leave the machine mostly idle.
    pub(crate) threshold: Duration,
    pub(crate) rounds: usize,
    pub(crate) victims: usize,
}

/// A crowd that falls silent together, and others that beat.
pub(crate) struct RestraintCase {
    pub(crate) crowd: usize,
    pub(crate) others: usize,
    pub(crate) rounds: usize,
}

impl LatenessCase {
    const fn new(agents: usize, threshold_ms: u64, rounds: usize, victims: usize) -> Self {
        Self {
            agents,
            threshold: Duration::from_millis(threshold_ms),
            rounds,
            victims,
        }
    }
}

impl Plan {
    /// Five to eight minutes.
    pub(crate) fn full() -> Self {
        Self {
            client_pairs: 50_000,
            cpu_rounds: 7,
            flood: Duration::from_secs(1),
            paced: Duration::from_secs(2),
            idle: Duration::from_secs(10),
            lateness: vec![
                LatenessCase::new(1, 100, 200, 1),
                LatenessCase::new(256, 1000, 8, 25),
                LatenessCase::new(4096, 2000, 4, 50),
            ],
            scraped_agents: 100_000,
            restraint: RestraintCase {
                crowd: 1000,
                others: 256,
                rounds: 3,
            },
            exit_batches: 20,
            exits_per_batch: 50,
            neighbour: Duration::from_secs(60),
        }
    }

    /// About 40 s.
    pub(crate) fn quick() -> Self {
        Self {
            client_pairs: 2_000,
            cpu_rounds: 1,
            flood: Duration::from_millis(300),
            paced: Duration::from_millis(500),
            idle: Duration::from_secs(1),
            lateness: vec![
                LatenessCase::new(1, 100, 10, 1),
                LatenessCase::new(64, 500, 2, 10),
                LatenessCase::new(256, 1000, 1, 25),
            ],
            scraped_agents: 5_000,
            restraint: RestraintCase {
                crowd: 64,
                others: 16,
                rounds: 1,
            },
            exit_batches: 1,
            exits_per_batch: 20,
            neighbour: Duration::from_secs(2),
        }
    }
}
