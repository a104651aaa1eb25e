//! The demo's record so far: the state of each agent from the observer's log, the number and times of its beats from
//! the event file. It knows the expected events, and so the missing ones.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Number, Value, json};
use varta_api::log_line::{LogEvent, LogLine, Outcome};

use super::THRESHOLD;
use super::agent::Role;
use super::observer::{Row, RowKind};

/// The signal of `abort(3)`.
pub(super) const SIGABRT: u8 = 6;

/// The series of the observer's counter of accepted beats.
const BEATS_ACCEPTED: &str = "varta_observer_beats_total";

/// The state of an agent, according to the observer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    /// No event yet.
    Starting,
    Alive,
    Stalled,
    /// Stalled, and recovery has given up.
    GivenUp,
    /// Ended with this code.
    Left(u8),
    /// Ended by this signal.
    Killed(u8),
    /// Ended, and the kernel did not report how.
    Gone,
}

impl State {
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::Left(_) | Self::Killed(_) | Self::Gone)
    }
}

/// One agent of the demo.
#[derive(Debug)]
pub(super) struct AgentRecord {
    pub(super) role: Role,
    pub(super) pid: u32,
    pub(super) state: State,
    /// The status of its last beat: `ok`, `degraded` or `critical`.
    pub(super) status: String,
    pub(super) beats: u64,
    /// By the observer's clock.
    last_beat_ns: Option<u64>,
    /// Time between the deadline and the detection of each of its stalls, milliseconds.
    pub(super) lateness_ms: Vec<f64>,
    /// Its silence each time it came back, milliseconds.
    pub(super) returned_after_ms: Vec<f64>,
    /// Running time of each recovery command for it that succeeded, milliseconds.
    pub(super) handled_ms: Vec<f64>,
    /// Number of commands for it that failed.
    pub(super) failures: u64,
    /// Number of signals that it was sent.
    pub(super) signals: u64,
    /// Number of times that recovery brought it back.
    pub(super) recoveries: u64,
    /// Number of times that recovery gave up on it.
    pub(super) given_up: u64,
    /// Time between its last beat and the observer's report of its end, milliseconds.
    pub(super) end_noticed_after_ms: Option<f64>,
}

/// The whole record.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The observer listens.
    pub(super) listening: bool,
    pub(super) observer_pid: u32,
    pub(super) agents: Vec<AgentRecord>,
    /// The observer's own counters, once it has stopped.
    counters: BTreeMap<String, Number>,
    /// Zero of the observer's clock.
    observer_start: Option<Instant>,
}

impl Record {
    /// An agent has been started.
    pub(super) fn expect(&mut self, role: Role, pid: u32) {
        self.agents.push(AgentRecord {
            role,
            pid,
            state: State::Starting,
            status: String::new(),
            beats: 0,
            last_beat_ns: None,
            lateness_ms: Vec::new(),
            returned_after_ms: Vec::new(),
            handled_ms: Vec::new(),
            failures: 0,
            signals: 0,
            recoveries: 0,
            given_up: 0,
            end_noticed_after_ms: None,
        });
    }

    /// Takes a line of the observer's log.
    pub(super) fn take(&mut self, line: &LogLine) {
        match &line.event {
            LogEvent::Start(start) => {
                self.listening = true;
                self.observer_pid = start.pid;
            }
            LogEvent::Stop(stop) => self.counters.clone_from(&stop.counters),
            event => {
                let pid = event.agent().map(|agent| agent.pid);
                let mut agents = self.agents.iter_mut();
                if let Some(agent) = agents.find(|agent| Some(agent.pid) == pid) {
                    agent.take(event);
                }
            }
        }
    }

    /// Takes a row of the observer's event file that was read at `now`.
    pub(super) fn take_row(&mut self, row: &Row<'_>, now: Instant) {
        // Rows are read a little after they were made; the one with the least delay is the most accurate.
        if let Some(start) = now.checked_sub(Duration::from_nanos(row.observer_ns)) {
            let earlier = self.observer_start.filter(|known| *known <= start);
            self.observer_start = earlier.or(Some(start));
        }
        let Some(agent) = self.agents.iter_mut().find(|agent| agent.pid == row.pid) else {
            return;
        };
        match row.kind {
            RowKind::Beat => {
                agent.beats += 1;
                agent.last_beat_ns = Some(row.observer_ns);
                row.status.clone_into(&mut agent.status);
            }
            RowKind::Exit => {
                let silence_ns = agent
                    .last_beat_ns
                    .map(|ns| row.observer_ns.saturating_sub(ns));
                agent.end_noticed_after_ms = silence_ns.map(|ns| ns as f64 / 1e6);
            }
            RowKind::Other => {}
        }
    }

    /// Time since the last beat of an agent that should beat.
    pub(super) fn silence(&self, agent: &AgentRecord, now: Instant) -> Option<Duration> {
        let last_beat = self.observer_start? + Duration::from_nanos(agent.last_beat_ns?);
        (!agent.state.has_ended()).then(|| now.saturating_duration_since(last_beat))
    }

    pub(super) fn everybody_has_ended(&self) -> bool {
        self.agents.iter().all(|agent| agent.state.has_ended())
    }

    /// An agent is silent, and there are steps left that may help.
    pub(super) fn somebody_is_stalled(&self) -> bool {
        self.agents
            .iter()
            .any(|agent| agent.state == State::Stalled)
    }

    /// The expected events that are missing. Empty if all is well.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let mut need = |seen: bool, what: &str, role: Role| {
            if !seen {
                missing.push(format!("{what} {}", role.name()));
            }
        };
        for role in Role::ALL {
            let agent = self.agents.iter().find(|agent| agent.role == role);
            let is = |test: &dyn Fn(&AgentRecord) -> bool| agent.is_some_and(test);
            let joined = is(&|agent| agent.state != State::Starting);
            need(joined, "the first beat of", role);
            match role {
                Role::Web | Role::Worker => {}
                Role::Leave => {
                    let left = is(&|agent| agent.state == State::Left(0));
                    need(left, "the orderly end of", role);
                }
                Role::Crash => {
                    let crashed = is(&|agent| agent.state == State::Killed(SIGABRT));
                    need(crashed, "the crash of", role);
                }
                Role::Hang => {
                    need(is(&AgentRecord::has_stalled), "the stall of", role);
                    need(is(&AgentRecord::was_handled), "the healing of", role);
                    let returned = is(&|agent| !agent.returned_after_ms.is_empty());
                    need(returned, "the return of", role);
                    let recovered = is(&|agent| agent.recoveries > 0);
                    need(recovered, "the recovery of", role);
                }
                Role::Stuck => {
                    need(is(&AgentRecord::has_stalled), "the stall of", role);
                    need(is(&AgentRecord::was_handled), "the first step for", role);
                    need(is(&|agent| agent.signals > 0), "the second step for", role);
                    need(is(&|agent| agent.given_up == 1), "the giving up of", role);
                }
            }
        }
        missing
    }

    /// Running time of each recovery command that succeeded, milliseconds.
    pub(super) fn handled_ms(&self) -> Vec<f64> {
        let each = self.agents.iter().map(|agent| agent.handled_ms.as_slice());
        each.collect::<Vec<_>>().concat()
    }

    pub(super) fn commands_failed(&self) -> u64 {
        self.agents.iter().map(|agent| agent.failures).sum()
    }

    /// The number of beats that the observer has accepted; from its own counter, once it has stopped.
    pub(super) fn beats(&self) -> u64 {
        let counted = self.counters.get(BEATS_ACCEPTED).and_then(Number::as_u64);
        counted.unwrap_or_else(|| self.agents.iter().map(|agent| agent.beats).sum())
    }

    /// The last line of `--json`.
    pub(super) fn summary(&self, took: Duration, cpu_time: Option<Duration>) -> Value {
        let missing = self.missing();
        json!({
            "event": "summary",
            "ok": missing.is_empty(),
            "missing": missing,
            "seconds": took.as_secs_f64(),
            "threshold_ms": THRESHOLD.as_millis() as u64,
            "agents": self.agents.iter().map(AgentRecord::summary).collect::<Vec<_>>(),
            "commands_succeeded": self.handled_ms().len(),
            "commands_failed": self.commands_failed(),
            "observer": {
                "pid": self.observer_pid,
                "beats": self.beats(),
                "cpu_ms": cpu_time.map(|time| time.as_secs_f64() * 1e3),
            },
        })
    }
}

impl AgentRecord {
    fn has_stalled(&self) -> bool {
        !self.lateness_ms.is_empty()
    }

    fn was_handled(&self) -> bool {
        !self.handled_ms.is_empty()
    }

    fn take(&mut self, event: &LogEvent) {
        match event {
            LogEvent::Join(_) => self.state = State::Alive,
            LogEvent::Stall(stall) => {
                self.state = State::Stalled;
                self.lateness_ms.push(stall.lateness_ms);
            }
            LogEvent::Return(returned) => {
                self.state = State::Alive;
                self.returned_after_ms.push(returned.silence_ms);
            }
            LogEvent::Recover(recover) => match recover.outcome {
                Outcome::ReapedZero => self.handled_ms.extend(recover.duration_ms),
                Outcome::SpawnFailed | Outcome::ReapedNonzero | Outcome::Killed => {
                    self.failures += 1;
                }
                Outcome::Signalled => self.signals += 1,
                Outcome::Recovered => self.recoveries += 1,
                _ => {}
            },
            LogEvent::GaveUp(_) => {
                self.state = State::GivenUp;
                self.given_up += 1;
            }
            LogEvent::Exit(exit) => {
                self.state = match (exit.code, exit.signal) {
                    (Some(code), _) => State::Left(code),
                    (None, Some(signal)) => State::Killed(signal),
                    (None, None) => State::Gone,
                };
            }
            _ => {}
        }
    }

    fn summary(&self) -> Value {
        let (code, signal) = match self.state {
            State::Left(code) => (Some(code), None),
            State::Killed(signal) => (None, Some(signal)),
            _ => (None, None),
        };
        json!({
            "name": self.role.name(),
            "pid": self.pid,
            "beats": self.beats,
            "stall_lateness_ms": self.lateness_ms,
            "returned_after_ms": self.returned_after_ms,
            "commands_succeeded": self.handled_ms.len(),
            "signals": self.signals,
            "recoveries": self.recoveries,
            "given_up": self.given_up,
            "code": code,
            "signal": signal,
            "end_noticed_after_last_beat_ms": self.end_noticed_after_ms,
        })
    }
}
