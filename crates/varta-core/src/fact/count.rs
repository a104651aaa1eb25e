//! The counters that a fact changes. The beat path counts its own events: joins, stalls, refusals.

use super::{ExitCause, Fact, HookOutcome, StartFailure, UntrustedOrigin};
use crate::agent::ExitStatus;
use crate::counters::{Counter, Counters, Timing};
use crate::hold::{HoldChange, HoldReason};
use crate::ladder::GaveUp;

impl Fact {
    /// The outcome of a recovery, as its counter; `None` if the fact is none.
    pub const fn outcome(&self) -> Option<Counter> {
        Some(match self {
            Self::RecoveryDeferred { .. } => Counter::RecoveryDebounced,
            Self::WaitsForPermit { .. } => Counter::RecoveryWaiting,
            Self::WaitsForUserBudget { .. } => Counter::RecoveryUserBudget,
            Self::RecoveryRefused { reason, .. } => match reason {
                UntrustedOrigin::SocketModeOnly => Counter::RecoverySocketModeOnly,
                UntrustedOrigin::PlainUdp | UntrustedOrigin::SecureUdp => {
                    Counter::RecoveryUnauthenticated
                }
            },
            Self::StepRehearsed { .. } => Counter::RecoveryDryRun,
            Self::ProgramStarted { .. } => Counter::RecoverySpawned,
            Self::ProgramEnded { exit, .. } => match (&exit.status, exit.cause) {
                (Ok(0), ExitCause::Itself) => Counter::RecoveryReapedZero,
                (_, ExitCause::Itself) => Counter::RecoveryReapedNonzero,
                (_, ExitCause::TimedOut(_) | ExitCause::ObserverStops(_)) => {
                    Counter::RecoveryKilled
                }
            },
            Self::Signalled { .. } => Counter::RecoverySignalled,
            Self::StepFailed { reason, .. } => match reason {
                StartFailure::TargetGone | StartFailure::Unidentified => {
                    Counter::RecoveryTargetGone
                }
                StartFailure::CrossNamespace | StartFailure::Hidden => {
                    Counter::RecoveryCrossNamespace
                }
                StartFailure::Spawn { .. } => Counter::RecoverySpawnFailed,
                StartFailure::OtherUser { .. }
                | StartFailure::Remote
                | StartFailure::Protected(_)
                | StartFailure::Signal(_) => Counter::RecoverySignalFailed,
            },
            Self::StepPostponed { hook: None, .. } => Counter::RecoveryPostponed,
            Self::Recovered { .. } => Counter::RecoveryRecovered,
            Self::GaveUp {
                rehearsed: false, ..
            } => Counter::RecoveryGaveUp,
            _ => return None,
        })
    }

    /// Counts the fact in every counter and distribution that the beat path does not keep itself.
    pub fn count(&self, counters: &Counters) {
        if let Some(outcome) = self.outcome() {
            counters.count(outcome);
        }
        let counter = match self {
            Self::Exited { status, .. } => match status {
                ExitStatus::Code(0) | ExitStatus::Goodbye => Counter::ExitsLeft,
                ExitStatus::Code(_) | ExitStatus::Signal(_) => Counter::ExitsDied,
                ExitStatus::Unknown => Counter::ExitsUnknown,
            },
            Self::RecoveryRefused { reason, .. } => match reason {
                UntrustedOrigin::SocketModeOnly => Counter::RefusedSocketModeOnly,
                UntrustedOrigin::PlainUdp | UntrustedOrigin::SecureUdp => {
                    Counter::RefusedUnauthenticated
                }
            },
            Self::StepFailed {
                reason: StartFailure::CrossNamespace | StartFailure::Hidden,
                ..
            } => Counter::RefusedCrossNamespace,
            Self::GaveUp {
                reason,
                rehearsed: false,
                ..
            } => match reason {
                GaveUp::StepsExhausted => Counter::GaveUpSteps,
                GaveUp::BudgetSpent => Counter::GaveUpBudget,
            },
            Self::Hold {
                change: HoldChange::Held(reason),
                ..
            } => match reason {
                HoldReason::MassStall { .. } => Counter::HoldsMassStall,
                HoldReason::Memory(_) => Counter::HoldsMemory,
                HoldReason::Io(_) => Counter::HoldsIo,
            },
            Self::HookDropped { .. } => Counter::HooksDropped,
            Self::HookWithdrawn { .. } => Counter::HooksWithdrawn,
            Self::HookEnded { outcome, .. } => match outcome {
                HookOutcome::Done { .. } => Counter::HooksDone,
                HookOutcome::NotStarted(_) | HookOutcome::ProgramFailed { .. } => {
                    Counter::HooksFailed
                }
            },
            Self::ProgramEnded {
                duration_ns,
                dropped_bytes,
                ..
            } => {
                counters.observe(Timing::RecoveryDuration, *duration_ns);
                return counters.add(Counter::OutputDropped, *dropped_bytes);
            }
            _ => return,
        };
        counters.count(counter);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AgentRef, ProgramExit};
    use super::*;
    use crate::agent::Agent;

    fn agent() -> AgentRef {
        AgentRef {
            agent: Agent {
                slot: 0,
                pid: 7,
                instance: 1,
                stream: 0,
            },
            name: String::new(),
            address: None,
            uid: None,
        }
    }

    #[test]
    fn an_ended_program_is_counted_with_its_outcome_its_time_and_what_was_not_kept() {
        let counters = Counters::default();
        let fact = Fact::ProgramEnded {
            agent: agent(),
            child_pid: 9,
            exit: ProgramExit {
                status: Ok(256),
                cause: ExitCause::Itself,
            },
            duration_ns: 5,
            output: String::new(),
            output_bytes: 3,
            dropped_bytes: 2,
        };
        fact.count(&counters);
        assert_eq!(counters.get(Counter::RecoveryReapedNonzero), 1);
        assert_eq!(counters.get(Counter::OutputDropped), 2);
    }

    #[test]
    fn what_was_only_rehearsed_is_no_giving_up() {
        let counters = Counters::default();
        let gave_up = |rehearsed| Fact::GaveUp {
            agent: agent(),
            reason: GaveUp::BudgetSpent,
            rehearsed,
        };
        gave_up(true).count(&counters);
        assert_eq!(counters.get(Counter::RecoveryGaveUp), 0);
        gave_up(false).count(&counters);
        assert_eq!(counters.get(Counter::RecoveryGaveUp), 1);
        assert_eq!(counters.get(Counter::GaveUpBudget), 1);
    }
}
