//! The outcomes of ordered steps.
//!
//! Each order is in flight from [`Effect::TakeStep`](super::Effect) until its last outcome. Bounds: as many programs as
//! there are permits, and one order that is not yet answered.

use super::hooks::Hook;
use super::input::{ActionId, Outcome, ProgramEnd};
use super::{Engine, InFlight};
use crate::fact::{AgentRef, Fact, HookOutcome, StartFailure};
use crate::ladder::{self as ladder, ActionEnd};
use crate::policy::SignalStep;

impl Engine {
    pub(super) fn on_outcome(&mut self, id: ActionId, outcome: Outcome) {
        let is_over = !matches!(outcome, Outcome::Started { .. });
        match self.in_flight.remove(&id) {
            None => {}
            Some(InFlight::Ladder {
                action,
                agent,
                signal,
            }) => {
                self.on_ladder_outcome(action, &agent, signal, outcome);
                if !is_over {
                    let in_flight = InFlight::Ladder {
                        action,
                        agent,
                        signal,
                    };
                    self.in_flight.insert(id, in_flight);
                }
            }
            Some(InFlight::Hook(hook)) if is_over => self.on_hook_outcome(hook, outcome),
            Some(hook) => {
                self.in_flight.insert(id, hook);
            }
        }
    }

    fn on_ladder_outcome(
        &mut self,
        action: ladder::Action,
        agent: &AgentRef,
        signal: Option<SignalStep>,
        outcome: Outcome,
    ) {
        let agent = agent.clone();
        let (fact, end) = match outcome {
            Outcome::Started { child_pid, command } => {
                let fact = Fact::ProgramStarted {
                    agent,
                    child_pid,
                    command,
                };
                (fact, None)
            }
            Outcome::Ended(ended) => {
                let end = match ended.exit.is_success() {
                    true => ActionEnd::Handled,
                    false => ActionEnd::Failed,
                };
                (program_ended(agent, ended), Some(end))
            }
            Outcome::Signalled(hits) => {
                let Some(step) = signal else {
                    return self.end_action(action, ActionEnd::Failed);
                };
                let fact = Fact::Signalled {
                    agent,
                    signal: step.signal,
                    target: step.to,
                    hits,
                };
                (fact, Some(ActionEnd::Handled))
            }
            Outcome::Rehearsed { step } => {
                let fact = Fact::StepRehearsed { agent, step };
                (fact, Some(ActionEnd::Handled))
            }
            Outcome::Postponed(reason) => {
                let fact = Fact::StepPostponed {
                    agent,
                    hook: None,
                    reason,
                    count: 1,
                };
                (fact, Some(ActionEnd::Postponed))
            }
            Outcome::Failed(reason) => {
                let end = end_of(&reason);
                (Fact::StepFailed { agent, reason }, Some(end))
            }
        };
        self.publish_outcome(action.agent, fact);
        if let Some(end) = end {
            self.end_action(action, end);
        }
    }

    fn on_hook_outcome(&mut self, hook: Box<Hook>, outcome: Outcome) {
        if hook.needs_permit() {
            self.ladders().give_back_hook(hook.agent());
        }
        match outcome {
            Outcome::Started { .. } => {}
            Outcome::Signalled(_) | Outcome::Rehearsed { .. } => self.go_on_with(hook),
            Outcome::Ended(ended) if ended.exit.is_success() => self.go_on_with(hook),
            Outcome::Ended(ended) => {
                let program = hook.program();
                let exit = ended.exit;
                self.end_hook(&hook, HookOutcome::ProgramFailed { program, exit });
            }
            Outcome::Postponed(reason) => {
                let fact = Fact::StepPostponed {
                    agent: hook.agent_ref().clone(),
                    hook: Some(hook.occasion()),
                    reason,
                    count: 1,
                };
                self.publish(fact);
                self.hooks.postpone(*hook, self.now.observer_ns);
            }
            Outcome::Failed(reason) => self.end_hook(&hook, HookOutcome::NotStarted(reason)),
        }
    }
}

fn program_ended(agent: AgentRef, ended: ProgramEnd) -> Fact {
    Fact::ProgramEnded {
        agent,
        child_pid: ended.child_pid,
        exit: ended.exit,
        duration_ns: ended.duration_ns,
        output: ended.output,
        output_bytes: ended.output_bytes,
        dropped_bytes: ended.dropped_bytes,
    }
}

/// How a ladder treats a step that could not be taken.
fn end_of(failure: &StartFailure) -> ActionEnd {
    match failure {
        StartFailure::TargetGone | StartFailure::Unidentified => ActionEnd::TargetGone,
        StartFailure::CrossNamespace | StartFailure::Hidden => ActionEnd::Refused,
        StartFailure::Spawn { .. }
        | StartFailure::OtherUser { .. }
        | StartFailure::Remote
        | StartFailure::Protected(_)
        | StartFailure::Signal(_) => ActionEnd::Failed,
    }
}
