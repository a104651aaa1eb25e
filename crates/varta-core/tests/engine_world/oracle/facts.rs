//! Published facts: whether the last input requires them, or they may come by themselves.

use varta_core::fact::{DeferReason, Fact, HookOutcome, ResumeCause, StartFailure, WithdrawReason};
use varta_core::policy::Mode;

use super::{Oracle, Want, key};

impl Oracle {
    pub(crate) fn published(&mut self, fact: &Fact) {
        let text = format!("{fact:?}");
        self.digest_fact(&text);
        self.trace(&fact);
        if let Some(want) = want_of(fact) {
            for wants in [&mut self.wants, &mut self.options] {
                if let Some(place) = wants.iter().position(|wanted| *wanted == want) {
                    wants.remove(place);
                    return;
                }
            }
            let agent = fact.agent();
            if let ("gone", Some(agent)) = (want.0, agent) {
                return self.gone_before_step(agent.agent);
            }
            panic!(
                "does not follow from anything: {fact:?}; wanted: {:?}",
                self.wants
            );
        }
        match fact {
            Fact::WaitsForPermit { agent, .. } => self.waits_for_permit(agent.agent),
            Fact::WaitsForUserBudget { agent, uid, .. } => {
                self.waits_for_user_budget(agent.agent, *uid);
            }
            Fact::GaveUp {
                agent,
                reason,
                rehearsed,
            } => {
                assert_eq!(*rehearsed, self.policy.mode == Mode::DryRun, "{fact:?}");
                self.gave_up(agent.agent, *reason);
            }
            Fact::Hold { scope, change } => self.hold_changed(*scope, *change),
            Fact::HookEnded {
                agent,
                occasion,
                outcome,
                ..
            } => self.hook_ended(agent.agent, *occasion, outcome),
            Fact::HookWithdrawn {
                agent,
                occasion,
                reason,
            } => self.hook_withdrawn(agent.agent, *occasion, *reason),
            Fact::AgentsMissing {
                selection,
                expected,
                present,
                ..
            } => self.agents_missing(selection, *expected, *present),
            Fact::Resumed { agent, .. } => self.pause_expired(agent.agent),
            _ => panic!("unknown to the oracle: {fact:?}"),
        }
    }
}

/// The expectation that a fact meets; `None` for facts that come by themselves.
fn want_of(fact: &Fact) -> Option<Want> {
    let nobody = (0, 0, 0);
    let (kind, agent, number) = match fact {
        Fact::Joined { agent, nonce, .. } => ("joined", agent, *nonce),
        Fact::SessionBegan { agent, nonce, .. } => ("session", agent, *nonce),
        Fact::Critical { agent, nonce, .. } => ("critical", agent, *nonce),
        Fact::Late {
            agent, silence_ns, ..
        } => ("late", agent, *silence_ns),
        Fact::Stalled {
            agent, silence_ns, ..
        } => ("stalled", agent, *silence_ns),
        Fact::Returned {
            agent, silence_ns, ..
        } => ("returned", agent, *silence_ns),
        Fact::StallPutOff {
            agent, silence_ns, ..
        } => ("put off", agent, *silence_ns),
        Fact::Exited { agent, .. } => ("exited", agent, 0),
        Fact::Evicted { agent } => ("evicted", agent, 0),
        Fact::StallExcused { agent, .. } => ("excused", agent, 0),
        Fact::Paused {
            agent, duration_ns, ..
        } => ("paused", agent, *duration_ns),
        Fact::Resumed {
            agent,
            cause: ResumeCause::Operator,
        } => ("resumed", agent, 0),
        Fact::RecoveryRefused { agent, .. } => ("refused", agent, 0),
        Fact::RecoveryDeferred { agent, reason } => {
            let is_acting = *reason == DeferReason::StillActing;
            ("deferred", agent, u64::from(is_acting))
        }
        Fact::Recovered { agent } => ("recovered", agent, 0),
        Fact::ProgramStarted { agent, .. } => ("started", agent, 0),
        Fact::ProgramEnded {
            agent, duration_ns, ..
        } => ("ended", agent, *duration_ns),
        Fact::Signalled { agent, .. } => ("signalled", agent, 0),
        Fact::StepRehearsed { agent, .. } => ("rehearsed", agent, 0),
        Fact::StepFailed { agent, reason } => match reason {
            StartFailure::TargetGone => ("gone", agent, 0),
            _ => ("failed", agent, 0),
        },
        Fact::StepPostponed { agent, hook, .. } => ("postponed", agent, u64::from(hook.is_some())),
        Fact::HookRehearsed { agent, occasion } => ("hook rehearsed", agent, *occasion as u64),
        Fact::HookDropped { agent, occasion } => ("hook dropped", agent, *occasion as u64),
        Fact::HookWithdrawn {
            agent,
            occasion,
            reason: WithdrawReason::UntrustedOrigin,
        } => ("hook refused", agent, *occasion as u64),
        Fact::HookEnded {
            agent,
            occasion,
            outcome: HookOutcome::ProgramFailed { .. },
            ..
        } => ("hook failed", agent, *occasion as u64),
        Fact::NetworkDrops { count } => return Some(("drops", nobody, *count)),
        Fact::Gap { late_ns, .. } => return Some(("gap", nobody, *late_ns)),
        Fact::AgentsComplete { selection } => {
            return Some(("complete", nobody, super::rules::number_of(selection)));
        }
        _ => return None,
    };
    Some((kind, key(agent.agent), number))
}
