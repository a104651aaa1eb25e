//! Takes the steps that the engine orders: on exactly the intended process, after the checks of the order.
//!
//! Bounds: as many programs as the engine orders, which has permits for them.

use std::time::Duration;

use tokio::task::JoinSet;
use varta_core::engine::{Action, ActionId, Outcome, ProgramEnd, StepOrder};
use varta_core::fact::StartFailure;

use super::nanoseconds;
use super::process_registry::ProcessRegistry;
use crate::actions::{self, Ended, Runner};
use crate::process_info::KernelFeatures;
use crate::settings::children::Children;

/// Running programs.
pub(super) struct Steps {
    runner: Runner,
    children: Children,
    running: JoinSet<(ActionId, ProgramEnd)>,
}

impl Steps {
    pub(super) fn new(kernel: KernelFeatures, children: Children) -> Self {
        Self {
            runner: Runner::new(kernel),
            children,
            running: JoinSet::new(),
        }
    }

    /// Settings for the programs that start from now on.
    pub(super) fn set_children(&mut self, children: Children) {
        self.children = children;
    }

    /// Takes a step. If a program runs for it, [`Self::ended`] returns its end.
    pub(super) fn take(&mut self, order: &StepOrder, processes: &mut ProcessRegistry) -> Outcome {
        if order.refuse_foreign {
            match processes.is_foreign(order.subject.agent) {
                Some(false) => {}
                Some(true) => return Outcome::Failed(StartFailure::CrossNamespace),
                None => return Outcome::Failed(StartFailure::Hidden),
            }
        }
        if order.is_rehearsal {
            let step = actions::shown(&order.action, Some(&order.subject));
            return Outcome::Rehearsed { step };
        }
        self.act(order)
            .unwrap_or_else(|failure| match actions::is_shortage(&failure) {
                true => Outcome::Postponed(failure),
                false => Outcome::Failed(failure),
            })
    }

    fn act(&mut self, order: &StepOrder) -> Result<Outcome, StartFailure> {
        let subject = &order.subject;
        match &order.action {
            Action::Signal(step) => {
                let hits = self.runner.signal(step, subject.agent, order.uid)?;
                Ok(Outcome::Signalled(hits))
            }
            Action::Run(step) => {
                let running = self.runner.start(step, &self.children, subject)?;
                let (id, child_pid) = (order.id, running.pid);
                self.running
                    .spawn(async move { (id, program_end(child_pid, running.wait().await)) });
                Ok(Outcome::Started {
                    child_pid,
                    command: actions::shown(&order.action, Some(subject)),
                })
            }
        }
    }

    /// The next program that has ended; `None` while none runs.
    pub(super) async fn ended(&mut self) -> Option<(ActionId, ProgramEnd)> {
        self.running.join_next().await?.ok()
    }

    /// Ends all programs: TERM now, KILL after the grace, at most `longest`. Returns the grace.
    pub(super) fn stop(&self, longest: Duration) -> Duration {
        let grace = self.children.grace.min(longest);
        self.runner.stop(grace);
        grace
    }
}

fn program_end(child_pid: u32, ended: Ended) -> ProgramEnd {
    ProgramEnd {
        child_pid,
        exit: ended.exit,
        duration_ns: nanoseconds(ended.duration),
        output: ended.output.text(),
        output_bytes: ended.output.written(),
        dropped_bytes: ended.output.dropped,
    }
}
