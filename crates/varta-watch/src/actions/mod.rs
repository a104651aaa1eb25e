//! Takes the steps that the core has decided: one step, aimed at one process.
//!
//! A program is an argument vector, never a shell line. Right before it starts, or before a signal is sent, the
//! intended process is opened as a pidfd and compared with the one that fell silent: a recycled pid is not touched.
//! The child gets a clean environment, no input, no descriptor and a session of its own. When its time is up it gets
//! TERM, and then KILL goes to it and to every process it started that stayed in its process group, or in its control
//! group where it has one. Its output is read to the end and kept to a bound. A process that a program left running
//! when it ended by itself stays.
//!
//! The engine decides which step is taken when, and how many at a time.

mod cgroup;
mod child;
mod command;
mod environment;
mod failure;
mod group;
mod output;
mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::sync::watch;
use varta_core::Agent;
use varta_core::fact::{SignalHits, StartFailure};
use varta_core::policy::SignalStep;

use crate::process_info::KernelFeatures;
use cgroup::Delegated;
pub(crate) use child::Ended;
pub(crate) use command::{SOURCE_PLACEHOLDER, shown, shown_step};
pub(crate) use failure::is_shortage;
use output::LeftOpen;

/// What all steps share.
pub(crate) struct Runner {
    kernel: KernelFeatures,
    /// The parent of the children's control groups.
    delegated: Option<Delegated>,
    /// The grace that children have from now on; `None` until the observer stops.
    stop: watch::Sender<Option<Duration>>,
    left_open: LeftOpen,
}

impl Runner {
    pub(crate) fn new(kernel: KernelFeatures) -> Self {
        Self {
            kernel,
            delegated: Delegated::find(),
            stop: watch::Sender::new(None),
            left_open: LeftOpen::default(),
        }
    }

    /// Sends a step's signal to this process, or to its group, or returns the reason why not. The agent joined as
    /// `user`: a process that this user may not signal itself is spared.
    pub(crate) fn signal(
        &self,
        step: &SignalStep,
        agent: Agent,
        user: u32,
    ) -> Result<SignalHits, StartFailure> {
        target::signal(step, agent, user, self.kernel)
    }

    /// Ends all children: TERM now, KILL after `grace`. The task that waits for a child learns of its end.
    pub(crate) fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
    }
}
