//! What is to be done about whom: local agents and those elsewhere apart, so that nobody elsewhere can take
//! what local agents may need (law 3).

use varta_core::Agent;
use varta_core::recovery::{Recovery, RecoveryPolicy};

use crate::policy::{Children, RunStep};

/// Part of the actions in flight that agents elsewhere may have on top of those of local agents.
const REMOTE_PART: usize = 2;

/// The command, what its children get, and the state of all recoveries.
pub(crate) struct Recoveries {
    pub(super) command: RunStep,
    pub(super) children: Children,
    local: Recovery,
    remote: Recovery,
}

impl Recoveries {
    /// For a tracker with so many slots.
    pub(crate) fn new(
        command: RunStep,
        children: Children,
        slots: usize,
        policy: RecoveryPolicy,
    ) -> Self {
        let remote = RecoveryPolicy {
            max_in_flight: policy.max_in_flight.div_ceil(REMOTE_PART),
            ..policy
        };
        Self {
            command,
            children,
            local: Recovery::new(slots, policy),
            remote: Recovery::new(slots, remote),
        }
    }

    pub(super) fn of(&mut self, agent: Agent) -> &mut Recovery {
        match agent.is_remote() {
            false => &mut self.local,
            true => &mut self.remote,
        }
    }

    pub(super) fn next_action(&mut self, now_ns: u64) -> Option<Agent> {
        let local = self.local.next_action(now_ns);
        local.or_else(|| self.remote.next_action(now_ns))
    }

    pub(super) fn next_due_ns(&self) -> Option<u64> {
        let due_ns = [self.local.next_due_ns(), self.remote.next_due_ns()];
        due_ns.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use varta_core::event::{NO_KEY, remote_source};

    #[test]
    fn agents_elsewhere_cannot_keep_a_local_one_from_its_recovery() {
        let command = RunStep {
            program: "/bin/true".into(),
            arguments: Vec::new(),
            timeout: None,
            wait: Duration::ZERO,
        };
        let children = Children {
            inherit_environment: false,
            environment: Vec::new(),
            capture_bytes: 0,
            grace: Duration::ZERO,
        };
        let policy = RecoveryPolicy {
            debounce_ns: 0,
            max_in_flight: 2,
        };
        let mut recoveries = Recoveries::new(command, children, 100, policy);
        let address = "10.0.0.1:1".parse().unwrap();
        let agent = |slot, instance| Agent {
            slot,
            pid: 7,
            instance,
        };
        for slot in 0..50 {
            let instance = remote_source(NO_KEY, &address, 0);
            let elsewhere = agent(slot, instance);
            recoveries.of(elsewhere).on_stall(elsewhere, 0);
        }
        let started = |recoveries: &mut Recoveries| {
            let next = || recoveries.next_action(1_000_000_000);
            std::iter::from_fn(next).collect::<Vec<_>>()
        };
        assert_eq!(started(&mut recoveries).len(), 1);
        let here = agent(99, 1);
        recoveries.of(here).on_stall(here, 0);
        assert_eq!(started(&mut recoveries), [here]);
    }
}
