//! Running what the core decided: one step, aimed at one process.
//!
//! A program is an argument vector, never a shell line. Right before it starts, or before a signal is
//! sent, the process it is meant for is taken hold of and compared with the one that fell silent: a recycled
//! pid is not touched. The child gets a clean environment, no input, no descriptor and a session of its own.
//! When its time is up it is told to go, and then killed with everything it has started that stayed in its
//! process group, or in its control group where it has one. What it writes is read to the end and kept to a
//! bound. What a program that ended by itself has left running stays.
//!
//! When to do what, and how many at a time, is decided elsewhere.

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
    /// Where each child gets a control group of its own.
    delegated: Option<Delegated>,
    /// The grace that children have from now on; `None` while the observer works.
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

    /// Sends a step's signal to this very process, or to its group, or says why not. The agent joined as
    /// `user`: what that user may not signal itself is spared.
    pub(crate) fn signal(
        &self,
        step: &SignalStep,
        agent: Agent,
        user: u32,
    ) -> Result<SignalHits, StartFailure> {
        target::signal(step, agent, user, self.kernel)
    }

    /// Ends all children: TERM now, KILL after `grace`. Whoever waits for them hears when each has gone.
    pub(crate) fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
    }
}
