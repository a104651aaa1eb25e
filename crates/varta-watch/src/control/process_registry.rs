//! The processes of local agents: lookups in `/proc` for the engine and for the beat path, and the search for the end
//! of agents without an exit watch. The engine keeps what is known of an agent; this module keeps only what a
//! repeated lookup needs.
//!
//! Bounds: one entry per local agent, and [`EXAMINED_MAX`] processes that have not joined yet.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use varta_core::Agent;
use varta_core::admission::ProcessInfo;
use varta_core::agent::UNIDENTIFIED;
use varta_core::engine::ProcessFacts;

use crate::clock::RawClock;
use crate::handoff::{IdentityQuery, IdentityReply};
use crate::process_info::facts::Facts;
use crate::process_info::{self, KernelFeatures, program};

/// Time between two searches among the agents without an exit watch.
const SEARCH_PAUSE: Duration = Duration::from_millis(250);

/// Agents per search, in rotation: an end is found within one interval with up to this many agents, within `n`
/// intervals with `n` times as many. 64 lookups take less than half a millisecond.
const SEARCH_AGENTS: usize = 64;

/// Most processes that are kept from their examination until they join; when there are more, all are forgotten, and are
/// examined again when they join.
const EXAMINED_MAX: usize = 1024;

/// The processes.
pub(super) struct ProcessRegistry {
    kernel: KernelFeatures,
    raw: RawClock,
    known: HashMap<u32, Process>,
    /// Examined at the request of the beat path, by pid and instance.
    examined: HashMap<(u32, u64), Facts>,
    /// Agents without an exit watch; the first is checked next. An agent that has left is dropped at its turn.
    unwatched: VecDeque<Agent>,
    next_search: Option<Instant>,
}

/// The process of an agent.
struct Process {
    agent: Agent,
    /// Its program file, by a path that its user may have chosen.
    program: Option<PathBuf>,
    /// It lives in a pid namespace below the observer's; `None` if `/proc` does not show it.
    is_foreign: Option<bool>,
}

/// Whether a rule names the program at a path.
pub(super) type IsNamed<'a> = &'a dyn Fn(&str) -> bool;

/// An agent without an exit watch that has ended, with its process while that is a zombie.
pub(super) type Ended = (Agent, Option<OwnedFd>);

impl ProcessRegistry {
    pub(super) fn new(kernel: KernelFeatures, raw: RawClock) -> Self {
        Self {
            kernel,
            raw,
            known: HashMap::new(),
            examined: HashMap::new(),
            unwatched: VecDeque::new(),
            next_search: None,
        }
    }

    /// Examines a process for the beat path.
    pub(super) fn answer(&mut self, question: IdentityQuery) -> IdentityReply {
        let pid = question.pid;
        let mut process = question.process;
        let mut instance = question.instance;
        if instance.is_none()
            && let Ok(held) = self.kernel.hold(pid)
            // While the process that came along lives, it has the pid.
            && !process.as_ref().is_some_and(process_info::has_ended)
        {
            instance = Some(held.instance);
            process = process.or(Some(held.pidfd));
        }
        let instance = instance.unwrap_or(UNIDENTIFIED);
        let facts = Facts::of(pid, instance, self.kernel);
        let proved = question
            .sent_after_ns
            .is_none_or(|sent_after_ns| self.is_sender(facts.as_ref(), sent_after_ns));
        let info = facts.as_ref().map(info_of).unwrap_or_default();
        if let Some(facts) = facts {
            if self.examined.len() >= EXAMINED_MAX {
                self.examined.clear();
            }
            self.examined.insert((pid, instance), facts);
        }
        IdentityReply {
            ticket: question.ticket,
            process,
            instance,
            proved,
            info,
        }
    }

    /// Whether the process found under a pid sent a datagram that was sent after `sent_after_ns`. It did if it
    /// existed by then. A younger process may have the pid of the sender; where the kernel attaches the pidfd of the
    /// sender, the next beat proves it.
    fn is_sender(&self, facts: Option<&Facts>, sent_after_ns: u64) -> bool {
        let start_ticks = facts.and_then(|facts| facts.start_ticks);
        let existed = start_ticks.is_some_and(|start_ticks| {
            let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
            let tick_ns = 1_000_000_000 / ticks_per_second;
            // It started at some point within that tick.
            let started_by_ns = start_ticks.saturating_add(1).saturating_mul(tick_ns);
            started_by_ns <= self.raw.boottime_ns_at(sent_after_ns)
        });
        existed || !self.kernel.sender_pidfd
    }

    /// A new local agent: the facts for the beat path and those for the engine.
    pub(super) fn join(
        &mut self,
        agent: Agent,
        exit_watched: bool,
        is_named: IsNamed<'_>,
    ) -> (ProcessInfo, ProcessFacts) {
        let examined = self.examined.remove(&(agent.pid, agent.instance));
        let facts = examined
            .or_else(|| Facts::of(agent.pid, agent.instance, self.kernel))
            .unwrap_or_default();
        let info = info_of(&facts);
        if !exit_watched {
            self.unwatched.push_back(agent);
            self.next_search
                .get_or_insert(Instant::now() + SEARCH_PAUSE);
        }
        (info, self.learn(agent, facts, is_named))
    }

    /// Examines the process of an agent again, which may run another program by now; `None` if nothing can be read.
    pub(super) fn review(&mut self, agent: Agent, is_named: IsNamed<'_>) -> Option<ProcessFacts> {
        let facts = self.facts_of(agent)?;
        Some(self.learn(agent, facts, is_named))
    }

    fn facts_of(&self, agent: Agent) -> Option<Facts> {
        match agent.is_remote() {
            true => None,
            false => Facts::of(agent.pid, agent.instance, self.kernel),
        }
    }

    fn learn(&mut self, agent: Agent, mut facts: Facts, is_named: IsNamed<'_>) -> ProcessFacts {
        let process = Process::of(agent, &facts);
        facts.exe = self.checked_program(&process, is_named);
        let is_foreign = process.is_foreign;
        self.known.insert(agent.slot, process);
        ProcessFacts {
            is_foreign,
            process: (&facts).into(),
            name: facts.name,
        }
    }

    /// The program of each agent, as far as a rule may match by it.
    pub(super) fn programs(&self, is_named: IsNamed<'_>) -> Vec<(Agent, Option<PathBuf>)> {
        let known = self.known.values();
        let programs =
            known.map(|process| (process.agent, self.checked_program(process, is_named)));
        programs.collect()
    }

    /// The program of a process, unless a rule names that path and the observer finds another file there. Other paths
    /// are not looked up, because the agent chose them.
    fn checked_program(&self, process: &Process, is_named: IsNamed<'_>) -> Option<PathBuf> {
        let Process { agent, program, .. } = process;
        program.clone().filter(|path| {
            let is_asked_for = path.to_str().is_some_and(is_named);
            !is_asked_for
                || (program::runs(agent.pid, path)
                    // The process that has the pid now has had it since before it was looked at.
                    && self.kernel.hold(agent.pid).is_ok_and(|held| held.instance == agent.instance))
        })
    }

    /// An agent has left.
    pub(super) fn forget(&mut self, agent: Agent) {
        if self.process_of(agent).is_some() {
            self.known.remove(&agent.slot);
        }
    }

    /// Whether an agent runs in a pid namespace below the observer's; `None` if `/proc` hides that from the observer.
    pub(super) fn is_foreign(&mut self, agent: Agent) -> Option<bool> {
        if !self.kernel.proc {
            return Some(false);
        }
        let known = self.process_of(agent);
        let known = known.and_then(|process| process.is_foreign);
        let is_foreign = known.or_else(|| is_foreign(&self.facts_of(agent)?));
        if let Some(process) = self.known.get_mut(&agent.slot)
            && process.agent == agent
        {
            process.is_foreign = is_foreign;
        }
        is_foreign
    }

    fn process_of(&self, agent: Agent) -> Option<&Process> {
        let process = self.known.get(&agent.slot);
        process.filter(|process| process.agent == agent)
    }

    /// When [`Self::find_ended`] is due.
    pub(super) fn next_search(&self) -> Option<Instant> {
        self.next_search
    }

    /// Checks some of the agents without an exit watch if the interval is over.
    pub(super) fn find_ended(&mut self, now: Instant) -> Vec<Ended> {
        if self.next_search.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for _ in 0..self.unwatched.len().min(SEARCH_AGENTS) {
            let Some(agent) = self.unwatched.pop_front() else {
                break;
            };
            if self.process_of(agent).is_none() {
                continue;
            }
            match self.ended(agent) {
                Some(process) => ended.push((agent, process)),
                None => self.unwatched.push_back(agent),
            }
        }
        self.next_search = (!self.unwatched.is_empty()).then(|| now + SEARCH_PAUSE);
        ended
    }

    /// `Some` if an agent has ended; its process while it is a zombie.
    fn ended(&self, agent: Agent) -> Option<Option<OwnedFd>> {
        match self.kernel.hold(agent.pid) {
            Ok(held) if agent.instance == UNIDENTIFIED || held.instance == agent.instance => {
                process_info::has_ended(&held.pidfd).then_some(Some(held.pidfd))
            }
            Ok(_) => Some(None),
            Err(error) => process_info::is_gone(&error).then_some(None),
        }
    }
}

impl Process {
    fn of(agent: Agent, facts: &Facts) -> Self {
        Self {
            agent,
            program: facts.program.clone(),
            is_foreign: is_foreign(facts),
        }
    }
}

/// The beat path treats an unknown pid namespace as the observer's own; recovery does not act on it.
fn is_foreign(facts: &Facts) -> Option<bool> {
    (!facts.pids.is_empty()).then(|| facts.is_foreign())
}

fn info_of(facts: &Facts) -> ProcessInfo {
    ProcessInfo {
        claims: facts.claims(),
        pid_ns: facts.pid_ns,
        is_foreign: facts.is_foreign(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn kernel() -> KernelFeatures {
        KernelFeatures::find(std::os::unix::net::UnixDatagram::unbound().unwrap())
    }

    fn registry(kernel: KernelFeatures) -> ProcessRegistry {
        ProcessRegistry::new(kernel, RawClock::start())
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn agent(slot: u32, pid: u32) -> Agent {
        let instance = kernel().hold(pid).unwrap().instance;
        Agent {
            slot,
            pid,
            instance,
            stream: 0,
        }
    }

    fn question(pid: u32, sent_after_ns: Option<u64>) -> IdentityQuery {
        IdentityQuery {
            ticket: 3,
            pid,
            process: None,
            instance: None,
            sent_after_ns,
        }
    }

    #[test]
    fn a_process_is_introduced_with_its_instance_and_its_names() {
        let pid = std::process::id();
        let introduction = registry(kernel()).answer(question(pid, None));
        assert_eq!(introduction.ticket, 3);
        assert!(introduction.process.is_some());
        assert_eq!(introduction.instance, agent(0, pid).instance);
        assert!(introduction.proved);
        assert!(introduction.info.claims.is_some());
    }

    #[test]
    fn only_a_process_that_existed_before_the_datagram_is_surely_its_sender() {
        let new = KernelFeatures {
            sender_pidfd: true,
            ..kernel()
        };
        // Before the child, so that the child is certainly younger than the clock's origin.
        let raw = RawClock::start();
        let mut child = sleeper();
        let proved = |kernel, sent_after_ns| {
            let mut all = ProcessRegistry::new(kernel, raw);
            all.answer(question(child.id(), Some(sent_after_ns))).proved
        };
        let later_ns = raw.now_ns() + 1_000_000_000;
        assert!(!proved(new, 0), "it may be younger than the datagram");
        assert!(proved(new, later_ns));
        let old = KernelFeatures {
            sender_pidfd: false,
            ..new
        };
        assert!(proved(old, 0), "nothing better is to be had");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_an_unwatched_agent_is_found_reaped_or_not() {
        let (mut reaped, mut zombie, mut alive) = (sleeper(), sleeper(), sleeper());
        let mut all = registry(kernel());
        for (slot, child) in [&reaped, &zombie, &alive].into_iter().enumerate() {
            all.join(agent(slot as u32, child.id()), false, &|_| false);
        }
        assert_eq!(all.find_ended(Instant::now()).len(), 0, "not yet time");
        reaped.kill().unwrap();
        reaped.wait().unwrap();
        zombie.kill().unwrap();
        let held = kernel().hold(zombie.id()).unwrap();
        let mut fds = [rustix::event::PollFd::new(
            &held.pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        let mut ended = all.find_ended(Instant::now() + SEARCH_PAUSE);
        assert_eq!(ended.len(), 2);
        ended.sort_by_key(|(agent, _)| agent.slot);
        assert_eq!(ended[0].0.pid, reaped.id());
        assert!(ended[0].1.is_none());
        assert_eq!(ended[1].0.pid, zombie.id());
        assert!(ended[1].1.is_some());
        all.forget(agent(2, alive.id()));
        all.find_ended(Instant::now() + 2 * SEARCH_PAUSE);
        assert_eq!(all.next_search(), None, "nobody is left to look for");
        zombie.wait().unwrap();
        alive.kill().unwrap();
        alive.wait().unwrap();
    }

    #[test]
    fn a_path_that_a_rule_names_is_compared_and_no_other_is_looked_up() {
        let mut all = registry(kernel());
        let me = agent(0, std::process::id());
        let (_, facts) = all.join(me, true, &|_| true);
        assert_eq!(facts.process.exe, std::env::current_exe().ok());
        // What another process would see under that path.
        let elsewhere = Some(PathBuf::from("/bin/sh"));
        all.known.get_mut(&0).unwrap().program = elsewhere.clone();
        assert_eq!(all.programs(&|_| true), [(me, None)]);
        let programs = all.programs(&|path| path != "/bin/sh");
        assert_eq!(programs, [(me, elsewhere)]);
    }

    #[test]
    fn a_slot_that_changed_hands_has_no_process_of_the_one_before() {
        let mut all = registry(kernel());
        let me = agent(0, std::process::id());
        let (_, facts) = all.join(me, true, &|_| false);
        assert!(!facts.name.is_empty());
        let other = Agent {
            instance: me.instance + 1,
            ..me
        };
        assert!(all.process_of(other).is_none());
        all.forget(other);
        assert!(all.process_of(me).is_some());
    }

    #[test]
    fn where_a_process_lives_that_cannot_be_looked_at_is_unknown() {
        let mut all = registry(kernel());
        let me = agent(0, std::process::id());
        assert_eq!(all.is_foreign(me), Some(false), "looked at when asked");
        let gone = Agent {
            instance: me.instance + 1,
            ..me
        };
        assert_eq!(all.is_foreign(gone), None);
    }
}
