//! What the control thread knows of the processes behind the agents: their names and facts, the answers
//! to the beat path's questions about them, and the search for the end of those that nobody watches.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::Instant;
use varta_core::Agent;
use varta_core::admission::ProcessInfo;
use varta_core::agent::UNIDENTIFIED;

use crate::clock::RawClock;
use crate::handoff::{IdentityQuery, IdentityReply};
use crate::process_info::facts::Facts;
use crate::process_info::{self, KernelFeatures, program};

/// How often unwatched agents are looked at.
const SEARCH_PAUSE: Duration = Duration::from_millis(250);

/// How many of them at a time, in turns: with up to this many an end is found within the pause, with `n`
/// times as many within `n` pauses. 64 take less than half a millisecond.
const SEARCH_AGENTS: usize = 64;

/// Processes that were looked at before they joined, at most; those that never join are forgotten.
const EXAMINED_MAX: usize = 1024;

/// Everybody's facts.
pub(super) struct Acquaintances {
    kernel: KernelFeatures,
    raw: RawClock,
    known: HashMap<u32, (Agent, Facts)>,
    /// Where agents elsewhere live, by slot.
    addresses: HashMap<u32, (Agent, IpAddr)>,
    /// Looked at because the beat path asked, by pid and instance.
    examined: HashMap<(u32, u64), Facts>,
    /// Agents whose end is not watched; the first is looked at next. Those that are gone are left out
    /// when their turn comes.
    unwatched: VecDeque<Agent>,
    next_search: Option<Instant>,
}

/// An unwatched agent that has ended, with its process while it is a zombie.
pub(super) type Ended = (Agent, Option<OwnedFd>);

impl Acquaintances {
    pub(super) fn new(kernel: KernelFeatures, raw: RawClock) -> Self {
        Self {
            kernel,
            raw,
            known: HashMap::new(),
            addresses: HashMap::new(),
            examined: HashMap::new(),
            unwatched: VecDeque::new(),
            next_search: None,
        }
    }

    /// Looks at a process for the beat path.
    pub(super) fn answer(&mut self, question: IdentityQuery) -> IdentityReply {
        let pid = question.pid;
        let mut process = question.process;
        let mut instance = question.instance;
        if instance.is_none()
            && let Ok(held) = self.kernel.hold(pid)
            // While the one that came along lives, whoever has the pid is that one.
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

    /// Whether a process found under a pid has sent a datagram that was sent after `sent_after_ns`. It
    /// has if it existed then. A younger one may have taken the place of the sender; where the kernel can
    /// hand over the sender itself, the next beat will prove it.
    fn is_sender(&self, facts: Option<&Facts>, sent_after_ns: u64) -> bool {
        let start_ticks = facts.and_then(|facts| facts.start_ticks);
        let existed = start_ticks.is_some_and(|start_ticks| {
            let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
            let tick_ns = 1_000_000_000 / ticks_per_second;
            // It started somewhere within that tick.
            let started_by_ns = start_ticks.saturating_add(1).saturating_mul(tick_ns);
            started_by_ns <= self.raw.boottime_ns_at(sent_after_ns)
        });
        existed || !self.kernel.sender_pidfd
    }

    /// A new agent. Returns what the beat path is to know.
    pub(super) fn join(&mut self, agent: Agent, exit_watched: bool) -> ProcessInfo {
        let examined = self.examined.remove(&(agent.pid, agent.instance));
        let facts = examined
            .or_else(|| Facts::of(agent.pid, agent.instance, self.kernel))
            .unwrap_or_default();
        let info = info_of(&facts);
        self.known.insert(agent.slot, (agent, facts));
        if !exit_watched {
            self.unwatched.push_back(agent);
            self.next_search
                .get_or_insert(Instant::now() + SEARCH_PAUSE);
        }
        info
    }

    /// A new agent that lives elsewhere: `/proc` knows nothing of it.
    pub(super) fn join_from(&mut self, agent: Agent, address: IpAddr) {
        self.addresses.insert(agent.slot, (agent, address));
    }

    /// An agent may be another program now.
    pub(super) fn review(&mut self, agent: Agent) {
        if agent.is_remote() {
            return;
        }
        if let Some(facts) = Facts::of(agent.pid, agent.instance, self.kernel) {
            self.known.insert(agent.slot, (agent, facts));
        }
    }

    /// Compares the program of an agent with the file that is at its path here, if the operator has named that path in
    /// a rule. Other paths are not looked up: the agent has chosen them.
    pub(super) fn check_program(&mut self, agent: Agent, is_named: impl FnOnce(&str) -> bool) {
        let Some((known, facts)) = self.known.get_mut(&agent.slot) else {
            return;
        };
        if *known != agent {
            return;
        }
        facts.exe = facts.program.clone().filter(|path| {
            let is_asked_for = path.to_str().is_some_and(is_named);
            !is_asked_for
                || (program::runs(agent.pid, path)
                    // Whoever has the pid now has had it since before it was looked at.
                    && self.kernel.hold(agent.pid).is_ok_and(|held| held.instance == agent.instance))
        });
    }

    /// An agent is gone.
    pub(super) fn forget(&mut self, agent: Agent) {
        if self.facts_of(agent).is_some() {
            self.known.remove(&agent.slot);
        }
        if self.address_of(agent).is_some() {
            self.addresses.remove(&agent.slot);
        }
    }

    /// Where an agent lives, if not here.
    pub(super) fn address_of(&self, agent: Agent) -> Option<IpAddr> {
        let (known, address) = self.addresses.get(&agent.slot)?;
        (*known == agent).then_some(*address)
    }

    /// Whether an agent lives in a pid namespace below the observer's; `None` if `/proc` shows it to others only.
    pub(super) fn is_foreign(&mut self, agent: Agent) -> Option<bool> {
        let is_unknown = |facts: Option<&Facts>| facts.is_none_or(|facts| facts.pids.is_empty());
        if is_unknown(self.facts_of(agent)) {
            self.review(agent);
        }
        let facts = self.facts_of(agent);
        match self.kernel.proc && is_unknown(facts) {
            true => None,
            false => Some(facts.is_some_and(Facts::is_foreign)),
        }
    }

    pub(super) fn facts_of(&self, agent: Agent) -> Option<&Facts> {
        let known = self.known.get(&agent.slot);
        known
            .filter(|(known, _)| *known == agent)
            .map(|(_, facts)| facts)
    }

    /// How an agent calls itself; empty if unknown.
    pub(super) fn name_of(&self, agent: Agent) -> String {
        let facts = self.facts_of(agent);
        facts.map(|facts| facts.name.clone()).unwrap_or_default()
    }

    /// When [`Self::find_ended`] is due.
    pub(super) fn next_search(&self) -> Option<Instant> {
        self.next_search
    }

    /// Looks at some of the unwatched agents if it is time.
    pub(super) fn find_ended(&mut self, now: Instant) -> Vec<Ended> {
        if self.next_search.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for _ in 0..self.unwatched.len().min(SEARCH_AGENTS) {
            let Some(agent) = self.unwatched.pop_front() else {
                break;
            };
            if self.facts_of(agent).is_none() {
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
    use std::path::PathBuf;
    use std::process::{Child, Command};

    fn kernel() -> KernelFeatures {
        KernelFeatures::find(std::os::unix::net::UnixDatagram::unbound().unwrap())
    }

    fn acquaintances(kernel: KernelFeatures) -> Acquaintances {
        Acquaintances::new(kernel, RawClock::start())
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
        let introduction = acquaintances(kernel()).answer(question(pid, None));
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
            let mut all = Acquaintances::new(kernel, raw);
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
        let mut all = acquaintances(kernel());
        for (slot, child) in [&reaped, &zombie, &alive].into_iter().enumerate() {
            all.join(agent(slot as u32, child.id()), false);
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
        let mut all = acquaintances(kernel());
        let me = agent(0, std::process::id());
        all.join(me, true);
        let own = std::env::current_exe().ok();
        let exe = |all: &Acquaintances| all.facts_of(me).unwrap().exe.clone();
        all.check_program(me, |_| true);
        assert_eq!(exe(&all), own);
        // What another process would see there.
        let elsewhere = Some(PathBuf::from("/bin/sh"));
        all.known.get_mut(&0).unwrap().1.program = elsewhere.clone();
        all.check_program(me, |_| true);
        assert_eq!(exe(&all), None);
        all.check_program(me, |path| path != "/bin/sh");
        assert_eq!(exe(&all), elsewhere);
    }

    #[test]
    fn a_slot_that_changed_hands_has_no_facts_of_the_one_before() {
        let mut all = acquaintances(kernel());
        let me = agent(0, std::process::id());
        all.join(me, true);
        assert!(!all.name_of(me).is_empty());
        let other = Agent {
            instance: me.instance + 1,
            ..me
        };
        assert_eq!(all.facts_of(other), None);
        all.forget(other);
        assert!(all.facts_of(me).is_some());
    }

    #[test]
    fn where_a_process_lives_that_cannot_be_looked_at_is_unknown() {
        let mut all = acquaintances(kernel());
        let me = agent(0, std::process::id());
        assert_eq!(all.is_foreign(me), Some(false), "looked at when asked");
        let gone = Agent {
            instance: me.instance + 1,
            ..me
        };
        assert_eq!(all.is_foreign(gone), None);
    }
}
