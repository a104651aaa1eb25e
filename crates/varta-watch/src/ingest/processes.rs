//! The processes of the agents: each is held by a descriptor, so that a change of its pid's owner is detected; with
//! the claims that it may make.

use std::os::fd::OwnedFd;

use varta_core::admission::{Hold, KnownSender, ProcessInfo};
use varta_core::{Agent, Claims, Slot};

use crate::process_info;

/// State of the agent in a slot besides the table.
#[derive(Default)]
struct Held {
    /// Held so that a change of its pid's owner is detected; `None` for want of descriptors.
    pidfd: Option<OwnedFd>,
    /// The kernel has reported its end while a batch was taken.
    has_ended: bool,
    /// The claims that it may make; `None` while they are unknown.
    claims: Option<Claims>,
}

impl Held {
    fn hold(&self) -> Hold {
        match (&self.pidfd, self.has_ended) {
            (_, true) => Hold::Ended,
            (Some(_), false) => Hold::Held,
            (None, false) => Hold::None,
        }
    }
}

/// By slot.
pub(super) struct HeldProcesses {
    slots: Box<[Held]>,
    /// Processes that have a descriptor, and the most that may.
    descriptors: usize,
    descriptor_budget: usize,
    inner_pids: InnerPids,
}

impl HeldProcesses {
    pub(super) fn new(slots: usize, descriptor_budget: usize) -> Self {
        Self {
            slots: (0..slots).map(|_| Held::default()).collect(),
            descriptors: 0,
            descriptor_budget,
            inner_pids: InnerPids::new(),
        }
    }

    fn of(&mut self, agent: Agent) -> &mut Held {
        &mut self.slots[agent.slot as usize]
    }

    /// The facts that a decision about a beat of this agent depends on.
    pub(super) fn known(&self, agent: Agent, facts: &Slot) -> KnownSender {
        let held = &self.slots[agent.slot as usize];
        KnownSender {
            agent,
            last_nonce: facts.last_nonce,
            claims: held.claims,
            hold: held.hold(),
        }
    }

    /// Whether the process of the agent in a slot is held and has not ended: then the pid belongs to it.
    pub(super) fn is_running(&self, slot: u32) -> bool {
        let pidfd = self.slots[slot as usize].pidfd.as_ref();
        pidfd.is_some_and(|pidfd| !process_info::has_ended(pidfd))
    }

    /// Whether the process of the agent in a slot is held and has ended.
    pub(super) fn has_ended(&self, slot: u32) -> bool {
        let pidfd = self.slots[slot as usize].pidfd.as_ref();
        pidfd.is_some_and(process_info::has_ended)
    }

    /// The kernel has reported the end of the process in a slot.
    pub(super) fn note_end(&mut self, slot: u32) {
        self.slots[slot as usize].has_ended = true;
    }

    pub(super) fn has_room(&self) -> bool {
        self.descriptors < self.descriptor_budget
    }

    /// Holds the process of a new agent.
    pub(super) fn hold(&mut self, agent: Agent, pidfd: Option<OwnedFd>, info: &ProcessInfo) {
        self.descriptors += usize::from(pidfd.is_some());
        *self.of(agent) = Held {
            pidfd,
            ..Held::default()
        };
        self.learn(agent, info);
    }

    /// Stores facts about an agent. Facts that are stored already stay.
    pub(super) fn learn(&mut self, agent: Agent, info: &ProcessInfo) {
        let held = &mut self.slots[agent.slot as usize];
        if held.claims.is_none()
            && let Some(claims) = info.claims
        {
            held.claims = Some(claims);
            self.inner_pids.add(claims);
        }
    }

    /// Removes an agent, and returns its process.
    pub(super) fn release(&mut self, agent: Agent) -> Option<OwnedFd> {
        let held = std::mem::take(self.of(agent));
        if let Some(claims) = held.claims {
            self.inner_pids.remove(claims);
        }
        self.descriptors -= usize::from(held.pidfd.is_some());
        held.pidfd
    }

    /// False only if no agent has this pid inside a container.
    pub(super) fn may_be_inner_pid(&self, pid: u32) -> bool {
        self.inner_pids.may_contain(pid)
    }
}

/// Counts kept; a power of two.
const INNER_COUNTS: usize = 1 << 12;

/// The numbers that are some agent's pid inside a container: dropping frames with such a claim could hit that agent.
/// Counted by their last bits, so that a wrong answer only ever spares a flood.
struct InnerPids {
    counts: Box<[u32]>,
}

impl InnerPids {
    fn new() -> Self {
        Self {
            counts: vec![0; INNER_COUNTS].into_boxed_slice(),
        }
    }

    fn add(&mut self, claims: Claims) {
        for pid in claims.pids() {
            self.counts[pid as usize % INNER_COUNTS] += 1;
        }
    }

    fn remove(&mut self, claims: Claims) {
        for pid in claims.pids() {
            self.counts[pid as usize % INNER_COUNTS] -= 1;
        }
    }

    fn may_contain(&self, pid: u32) -> bool {
        self.counts[pid as usize % INNER_COUNTS] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_a_pid_in_a_container_is_known_until_its_last_owner_leaves() {
        let mut inner = InnerPids::new();
        let claims = Claims::from_pids(&[900, 17, 1]);
        inner.add(claims);
        inner.add(Claims::from_pids(&[901, 1]));
        inner.remove(claims);
        assert!(inner.may_contain(1));
        assert!(!inner.may_contain(17) && !inner.may_contain(900));
    }
}
