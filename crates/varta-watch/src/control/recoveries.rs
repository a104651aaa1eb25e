//! Acting: what the core has decided about recovery is done, told and counted here.
//!
//! The core says which step of which ladder is due, this room runs it on exactly the process that is meant,
//! and says how it ended. Before anything is started the host is looked at: it may be the suspect
//! (`core::ladder`).

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use varta_core::census::census;
use varta_core::fact::{DeferReason, Occasion, SignalHits, StartFailure, UntrustedOrigin};
use varta_core::hold::{HoldChange, HoldOptions, Holds, Scope};
use varta_core::ladder::{
    self as ladder, Action, ActionEnd, GaveUp, Ladders, Next, Plan, SilenceEnded,
};
use varta_core::permits::{PermitLimits, UserBudget};
use varta_core::slot::SlotState;
use varta_core::{Agent, AgentRef, BeatOrigin, Fact, Gauge, Locality};

use super::hooks::{Hook, Hooks};
use super::rulebook::Rulebook;
use super::{Control, nanoseconds, pressure};
use crate::actions::{Ended, Runner, Subject, is_shortage};
use crate::settings::policy::{Ladder, Mode, Policy, SignalStep, Step};

/// Why a ladder is climbed, as placeholders call it.
const STALL: &str = "stall";

/// How often it is looked whether fire may be free again.
const HELD_PAUSE: Duration = Duration::from_millis(100);

/// Least time between two looks at the host, and how much more of it than a look takes.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
const LOOK_PARTS: u32 = 20;

/// The state of all that is done about agents.
pub(super) struct Recoveries {
    pub(super) policy: Arc<Policy>,
    pub(super) book: Rulebook,
    pub(super) runner: Arc<Runner>,
    slots: usize,
    seed: u64,
    /// Made when it is first needed: most observers only watch.
    core: Option<Ladders>,
    pub(super) holds: Holds,
    next_look: Instant,
    pub(super) hooks: Hooks,
    pub(super) working: JoinSet<Work>,
    /// Since when ladders are only rehearsed, if they are (`--recovery-mode dry-run`), on the observer's clock.
    rehearsed_since_ns: u64,
}

/// Something that was started has ended.
pub(super) enum Work {
    Action {
        action: Action,
        who: AgentRef,
        child_pid: u32,
        ended: Ended,
    },
    Hook {
        hook: Box<Hook>,
        ended: Ended,
    },
}

impl Recoveries {
    pub(super) fn new(policy: Arc<Policy>, runner: Runner, slots: usize, seed: u64) -> Self {
        let now = Instant::now();
        let mut book = Rulebook::default();
        book.open(&[], &policy, now);
        Self {
            holds: Holds::new(hold_options(&policy)),
            policy,
            book,
            runner: Arc::new(runner),
            slots,
            seed,
            core: None,
            next_look: now,
            hooks: Hooks::default(),
            working: JoinSet::new(),
            rehearsed_since_ns: 0,
        }
    }

    /// The next thing that was started and has ended.
    pub(super) async fn work_ended(&mut self) -> Option<Work> {
        self.working.join_next().await?.ok()
    }

    /// Expectations that have run out, each told once.
    pub(super) fn take_missing(&mut self, now: Instant) -> Vec<Fact> {
        self.book.take_missing(&self.policy, now)
    }

    /// Another policy. Every agent is to be entered in the book anew, and then comes [`Self::replace_ladders`].
    pub(super) fn replace_policy(&mut self, policy: Arc<Policy>, now_ns: u64) {
        let before = std::mem::replace(&mut self.policy, policy);
        self.holds.set_options(hold_options(&self.policy));
        self.book.open(&before.rules, &self.policy, Instant::now());
        match (before.mode, self.policy.mode) {
            (Mode::DryRun, Mode::DryRun) => {}
            // Nothing of that was done in earnest.
            (Mode::DryRun, _) => {
                if let Some(core) = &mut self.core {
                    core.forget_rehearsal(self.rehearsed_since_ns);
                }
            }
            (_, _) => self.rehearsed_since_ns = now_ns,
        }
    }

    /// The ladders and limits of another policy.
    pub(super) fn replace_ladders(&mut self, now_ns: u64) {
        let Self {
            book, policy, core, ..
        } = self;
        let ladder_of = |agent: Agent| {
            let origin = book.origin_of(agent)?;
            let may_act = policy.mode != Mode::Observe && may_act_on_origin(origin);
            book.ladder_of(policy, agent).filter(|_| may_act)
        };
        if let Some(core) = core {
            core.reload(ladders_of(policy), limits_of(policy), ladder_of, now_ns);
        }
    }

    pub(super) fn core(&mut self) -> &mut Ladders {
        self.core.get_or_insert_with(|| {
            let ladders = ladders_of(&self.policy);
            let limits = limits_of(&self.policy);
            let mut core = Ladders::new(self.slots, ladders, limits, self.seed);
            for (agent, lineage) in self.book.lineages() {
                core.on_join(agent, lineage);
            }
            for kind in Locality::ALL {
                core.hold(kind, self.holds.is_held(kind));
            }
            for user in self.holds.users() {
                core.hold_user(user, true);
            }
            core
        })
    }

    /// Whether fire is held for agents of a kind.
    pub(super) fn is_held(&self, kind: Locality) -> bool {
        self.holds.is_held(kind)
    }

    /// Whether fire is held for the agents of a user.
    pub(super) fn is_held_for(&self, user: u32) -> bool {
        self.holds.is_held_for(user)
    }

    /// When it is to be looked whether held fire may be free again.
    fn next_held_look(&self) -> Option<Instant> {
        let is_held = self.holds.is_any_held();
        is_held.then(|| self.next_look + HELD_PAUSE)
    }

    /// When [`Control::act`] has something to do, on the observer's clock.
    fn next_due_ns(&self) -> Option<u64> {
        let ladders = self.core.as_ref().and_then(Ladders::next_due_ns);
        let free = Locality::ALL
            .into_iter()
            .filter(|kind| !self.is_held(*kind));
        let hooks = free.filter_map(|kind| {
            let hook = self.hooks.first(kind, |user| self.is_held_for(user))?;
            // Without a core nobody has a place yet.
            let core = self.core.as_ref().filter(|_| hook.needs_place());
            core.map_or(Some(0), |core| core.hook_room_at_ns(hook.agent()))
        });
        hooks.chain(ladders).min()
    }
}

/// Whether recovery may act on agents that are heard this way (observer spec 4.2).
fn may_act_on_origin(origin: BeatOrigin) -> bool {
    match origin {
        BeatOrigin::NetworkUnverified | BeatOrigin::SocketModeOnly => false,
        BeatOrigin::KernelAttested | BeatOrigin::OperatorAttestedTransport => true,
    }
}

/// The rhythm of the ladders, without what they do.
fn ladders_of(policy: &Policy) -> Vec<ladder::LadderTiming> {
    let step = |step: &Step| match step {
        Step::Run(run) => ladder::StepTiming::Act {
            grace_ns: nanoseconds(run.wait),
            needs_permit: true,
        },
        Step::Signal(signal) => ladder::StepTiming::Act {
            grace_ns: nanoseconds(signal.wait),
            needs_permit: false,
        },
        Step::Wait(wait) => ladder::StepTiming::Wait {
            wait_ns: nanoseconds(*wait),
        },
    };
    let rhythm = |what: &Ladder| ladder::LadderTiming {
        tag: what.fingerprint(),
        steps: what.steps.iter().map(step).collect(),
        debounce_ns: nanoseconds(what.debounce),
        budget: what.budget,
        window_ns: nanoseconds(what.window),
        backoff_ns: nanoseconds(what.backoff),
        backoff_max_ns: nanoseconds(what.backoff_max),
        reset_after_ns: nanoseconds(what.reset_after),
    };
    policy.ladders.iter().map(rhythm).collect()
}

fn limits_of(policy: &Policy) -> PermitLimits {
    PermitLimits {
        max_in_flight: policy.limits.max_in_flight,
        starts_per_second: policy.limits.starts_per_second,
        user_budget: UserBudget {
            starts: policy.limits.user_budget,
            window_ns: nanoseconds(policy.limits.user_window),
            exempt: rustix::process::geteuid().as_raw(),
        },
    }
}

fn hold_options(policy: &Policy) -> HoldOptions {
    HoldOptions {
        share: policy.limits.mass_stall_share,
        min: policy.limits.mass_stall_min,
        mass_max_ns: policy.limits.mass_stall_hold.map(nanoseconds),
        memory_percent: policy.limits.memory_pressure,
        io_percent: policy.limits.io_pressure,
    }
}

impl Control {
    /// A new agent, whose rule is known.
    pub(super) fn joined(&mut self, agent: Agent) {
        let lineage = self.recoveries.book.lineage_of(agent);
        if let Some(core) = &mut self.recoveries.core {
            core.on_join(agent, lineage);
        }
    }

    /// An agent has stalled.
    pub(super) fn recover(&mut self, agent: Agent, now_ns: u64) {
        if self.recoveries.policy.mode == Mode::Observe || self.is_paused(agent) {
            return;
        }
        let policy = Arc::clone(&self.recoveries.policy);
        let Some(ladder) = self.recoveries.book.ladder_of(&policy, agent) else {
            return;
        };
        // Who may not be acted on has no ladder.
        let ladder = self.may_act_on(agent).then_some(ladder);
        let reason = match self.recoveries.core().on_stall(agent, ladder, now_ns) {
            Plan::TooRecent => DeferReason::TooRecent,
            Plan::StillActing => DeferReason::StillActing,
            Plan::Now | Plan::Nothing => return,
        };
        let agent = self.agent_ref(agent);
        self.publish(&Fact::RecoveryDeferred { agent, reason });
    }

    /// An agent speaks again.
    pub(super) fn returned(&mut self, agent: Agent) {
        if self.settled(agent).acted && !self.is_rehearsal() {
            let agent = self.agent_ref(agent);
            self.publish(&Fact::Recovered { agent });
        }
        self.hook(agent, Occasion::Recovered);
    }

    /// Whether what is due is only told.
    fn is_rehearsal(&self) -> bool {
        self.recoveries.policy.mode == Mode::DryRun
    }

    /// The silence of an agent is over, one way or the other.
    pub(super) fn settled(&mut self, agent: Agent) -> SilenceEnded {
        self.given
            .directory
            .update(agent, |info| info.gave_up = false);
        let now_ns = self.given.beat_path.raw().now_ns();
        let core = self.recoveries.core.as_mut();
        core.map_or_else(SilenceEnded::default, |core| {
            core.on_silence_ended(agent, now_ns)
        })
    }

    /// An agent is gone for good.
    pub(super) fn gone(&mut self, agent: Agent) {
        let now_ns = self.given.beat_path.raw().now_ns();
        let lineage = self.recoveries.book.lineage_of(agent);
        if let Some(core) = &mut self.recoveries.core {
            core.on_gone(agent, lineage, now_ns);
        }
        self.recoveries.book.leave(agent);
        self.tell_missing();
    }

    /// Whether the way an agent was heard lets recovery act on it. If not that is published.
    fn may_act_on(&mut self, agent: Agent) -> bool {
        let reason = match self.recoveries.book.origin_of(agent) {
            Some(BeatOrigin::SocketModeOnly) => UntrustedOrigin::SocketModeOnly,
            Some(BeatOrigin::NetworkUnverified) if self.given.keys.is_some() => {
                UntrustedOrigin::SecureUdp
            }
            Some(BeatOrigin::NetworkUnverified) => UntrustedOrigin::PlainUdp,
            Some(BeatOrigin::KernelAttested | BeatOrigin::OperatorAttestedTransport) | None => {
                return true;
            }
        };
        let agent = self.agent_ref(agent);
        self.publish(&Fact::RecoveryRefused { agent, reason });
        false
    }

    /// Whether the way an agent was heard keeps recovery from acting on it.
    pub(super) fn is_untrusted(&self, agent: Agent) -> bool {
        let origin = self.recoveries.book.origin_of(agent);
        origin.is_some_and(|origin| !may_act_on_origin(origin))
    }

    /// Fails unless an agent lives where recovery may touch it: here, not in a container, unless that is allowed.
    pub(super) fn check_reach(&mut self, agent: Agent) -> Result<(), StartFailure> {
        if self.recoveries.policy.recover_foreign || agent.is_remote() {
            return Ok(());
        }
        match self.acquaintances.is_foreign(agent) {
            Some(false) => Ok(()),
            Some(true) => Err(StartFailure::CrossNamespace),
            None => Err(StartFailure::Hidden),
        }
    }

    pub(super) fn subject(&self, agent: Agent, name: String, reason: &'static str) -> Subject {
        let facts = self.slot_of(agent);
        let now_ns = self.given.beat_path.attention_now_ns();
        let silence_ns = facts.map_or(0, |facts| facts.silence_ns(now_ns));
        let process = self.acquaintances.facts_of(agent);
        Subject {
            agent,
            name,
            status: facts.map_or_else(String::new, |facts| facts.status.to_string()),
            silence_ms: silence_ns / 1_000_000,
            unit: process.and_then(|process| process.units.system.clone()),
            user_unit: process.and_then(|process| process.units.user.clone()),
            reason,
            is_target: true,
            source: self.acquaintances.address_of(agent),
        }
    }

    /// Recovers an agent that is silent if nothing was to be done about it when that was told.
    pub(super) fn recover_forgotten(&mut self, agent: Agent) {
        let core = self.recoveries.core.as_ref();
        let is_known = core.is_some_and(|core| core.is_silent(agent));
        if !is_known && self.is_silent(agent) {
            self.recover(agent, self.given.beat_path.raw().now_ns());
        }
    }

    /// Whether an agent has been silent beyond its soft tier.
    pub(super) fn is_late(&self, agent: Agent) -> bool {
        let facts = self.slot_of(agent);
        facts.is_some_and(|facts| facts.state == SlotState::Late || facts.state.is_latched())
    }

    fn is_silent(&self, agent: Agent) -> bool {
        self.slot_of(agent)
            .is_some_and(|facts| facts.state.is_latched())
    }

    /// Whether an operator wants an agent left alone; the beat path may not have heard yet.
    pub(super) fn is_paused(&self, agent: Agent) -> bool {
        self.pauses.has(agent, Instant::now())
    }

    /// Everybody there is.
    pub(super) fn agents(&self) -> Vec<Agent> {
        let slots = 0..self.given.table.capacity() as u32;
        let facts = slots.filter_map(|slot| Some((slot, self.given.table.read(slot)?)));
        let there = facts.filter(|(_, facts)| facts.state != SlotState::Free);
        there.map(|(slot, facts)| facts.agent(slot)).collect()
    }

    /// Does everything that is due.
    pub(super) fn act(&mut self) {
        let now_ns = self.given.beat_path.raw().now_ns();
        self.recoveries.hooks.end_waits(Instant::now());
        let due_ns = self.recoveries.next_due_ns();
        let look_at = match due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
            true => Some(self.recoveries.next_look),
            false => self.recoveries.next_held_look(),
        };
        if look_at.is_some_and(|look_at| look_at <= Instant::now()) {
            self.look_at_host();
        }
        while let Some(next) = self
            .recoveries
            .core
            .as_mut()
            .and_then(|core| core.next(now_ns))
        {
            match next {
                Next::Act(action) => self.climb(action, now_ns),
                Next::Waits(agent) => self.wait_for_room(agent),
                Next::UserWaits(agent, user) => self.wait_for_user(agent, user),
                Next::GaveUp(agent, why) => self.give_up(agent, why),
            }
        }
        // Ladders come first.
        self.take_hook_steps(now_ns);
        if let Some(core) = &self.recoveries.core {
            let in_flight = core.in_flight() as u64;
            self.given.counters.set(Gauge::RecoveryInFlight, in_flight);
        }
    }

    /// When [`Self::act`] is due.
    pub(super) fn next_act(&self) -> Option<Instant> {
        let due = self.recoveries.next_due_ns().map(|due_ns| {
            let ahead_ns = due_ns.saturating_sub(self.given.beat_path.raw().now_ns());
            Instant::now() + Duration::from_nanos(ahead_ns)
        });
        let waits = self.recoveries.hooks.next_due();
        [due, waits, self.recoveries.next_held_look()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Finds out whether the host is the suspect.
    fn look_at_host(&mut self) {
        let begun = Instant::now();
        let now_ns = self.given.beat_path.attention_now_ns();
        let censuses = census(&self.given.table, now_ns);
        let pressure = pressure::read();
        for (scope, change) in self.recoveries.holds.judge(&censuses, pressure, now_ns) {
            let is_held = matches!(change, HoldChange::Held(_));
            if let Some(core) = &mut self.recoveries.core {
                match scope {
                    Scope::All(kind) => core.hold(kind, is_held),
                    Scope::User(user) => core.hold_user(user, is_held),
                }
            }
            self.publish_hold(scope, change);
        }
        let now = Instant::now();
        self.recoveries.next_look = now + LOOK_PAUSE.max((now - begun) * LOOK_PARTS);
    }

    fn publish_hold(&mut self, scope: Scope, change: HoldChange) {
        let is_held = self.recoveries.holds.is_any_held();
        self.given
            .counters
            .set(Gauge::RecoveryHeld, u64::from(is_held));
        self.publish(&Fact::Hold { scope, change });
    }

    /// Takes a step for an agent that is silent still.
    fn climb(&mut self, action: Action, now_ns: u64) {
        let agent = self.agent_ref(action.agent);
        let end = match self.take_step(action, &agent) {
            Ok(None) => return,
            Ok(Some(end)) => end,
            Err(reason) if is_shortage(&reason) => {
                let postponed = Fact::StepPostponed {
                    agent,
                    hook: None,
                    reason,
                    count: 1,
                };
                self.publish(&postponed);
                ActionEnd::Postponed
            }
            Err(reason) => {
                let end = match reason {
                    StartFailure::TargetGone | StartFailure::Unidentified => ActionEnd::TargetGone,
                    StartFailure::CrossNamespace | StartFailure::Hidden => ActionEnd::Refused,
                    StartFailure::Spawn { .. }
                    | StartFailure::Remote
                    | StartFailure::OtherUser { .. }
                    | StartFailure::Protected(_)
                    | StartFailure::Signal(_) => ActionEnd::Failed,
                };
                self.publish(&Fact::StepFailed { agent, reason });
                end
            }
        };
        self.end_action(action, end, now_ns);
    }

    /// Starts a step. `None` while it runs.
    fn take_step(
        &mut self,
        action: Action,
        who: &AgentRef,
    ) -> Result<Option<ActionEnd>, StartFailure> {
        let agent = action.agent;
        let still_silent = self.is_silent(agent) && !self.is_paused(agent);
        let policy = Arc::clone(&self.recoveries.policy);
        let ladder = policy.ladders.get(action.ladder as usize);
        let step = ladder.and_then(|ladder| ladder.steps.get(action.step as usize));
        let (Some(step), true) = (step, still_silent) else {
            return Err(StartFailure::TargetGone);
        };
        self.check_reach(agent)?;
        let subject = self.subject(agent, who.name.clone(), STALL);
        let shown = step.shown(Some(&subject));
        if self.is_rehearsal() {
            let rehearsed = Fact::StepRehearsed {
                agent: who.clone(),
                step: shown,
            };
            self.publish(&rehearsed);
            return Ok(Some(ActionEnd::Handled));
        }
        match step {
            Step::Wait(_) => Ok(Some(ActionEnd::Handled)),
            Step::Signal(signal) => {
                let hits = self.signal(signal, agent)?;
                let signalled = Fact::Signalled {
                    agent: who.clone(),
                    signal: signal.signal,
                    target: signal.to,
                    hits,
                };
                self.publish(&signalled);
                Ok(Some(ActionEnd::Handled))
            }
            Step::Run(run) => {
                let running = self
                    .recoveries
                    .runner
                    .start(run, &policy.children, &subject)?;
                let child_pid = running.pid;
                let started = Fact::ProgramStarted {
                    agent: who.clone(),
                    child_pid,
                    command: shown,
                };
                self.publish(&started);
                let who = who.clone();
                self.recoveries.working.spawn(async move {
                    Work::Action {
                        action,
                        who,
                        child_pid,
                        ended: running.wait().await,
                    }
                });
                Ok(None)
            }
        }
    }

    /// Sends a step's signal to an agent as the user that it joined as could.
    pub(super) fn signal(
        &self,
        step: &SignalStep,
        agent: Agent,
    ) -> Result<SignalHits, StartFailure> {
        let joined = self.slot_of(agent).ok_or(StartFailure::TargetGone)?;
        self.recoveries.runner.signal(step, agent, joined.uid)
    }

    fn end_action(&mut self, action: Action, end: ActionEnd, now_ns: u64) {
        if let Some(core) = &mut self.recoveries.core {
            core.on_end(action, end, now_ns);
        }
    }

    fn wait_for_room(&mut self, agent: Agent) {
        let limits = &self.recoveries.policy.limits;
        let waits = Fact::WaitsForPermit {
            agent: self.agent_ref(agent),
            max_in_flight: limits.max_in_flight as u64,
            starts_per_second: limits.starts_per_second,
        };
        self.publish(&waits);
    }

    fn wait_for_user(&mut self, agent: Agent, uid: u32) {
        let limits = &self.recoveries.policy.limits;
        let waits = Fact::WaitsForUserBudget {
            agent: self.agent_ref(agent),
            uid,
            budget: limits.user_budget,
            window_ns: nanoseconds(limits.user_window),
        };
        self.publish(&waits);
    }

    fn give_up(&mut self, agent: Agent, reason: GaveUp) {
        let gave_up = Fact::GaveUp {
            agent: self.agent_ref(agent),
            reason,
            rehearsed: self.is_rehearsal(),
        };
        self.publish(&gave_up);
        self.hook(agent, Occasion::GaveUp);
    }

    /// Takes note of something that has ended.
    pub(super) fn take_note(&mut self, work: Work) {
        match work {
            Work::Action {
                action,
                who,
                child_pid,
                ended,
            } => self.child_ended(action, who, child_pid, ended),
            Work::Hook { hook, ended } => self.hook_program_ended(*hook, ended),
        }
    }

    fn child_ended(&mut self, action: Action, agent: AgentRef, child_pid: u32, ended: Ended) {
        let end = match ended.exit.is_success() {
            true => ActionEnd::Handled,
            false => ActionEnd::Failed,
        };
        let program_ended = Fact::ProgramEnded {
            agent,
            child_pid,
            exit: ended.exit,
            duration_ns: nanoseconds(ended.duration),
            output: ended.output.text(),
            output_bytes: ended.output.written(),
            dropped_bytes: ended.output.dropped,
        };
        self.publish(&program_ended);
        self.end_action(action, end, self.given.beat_path.raw().now_ns());
    }
}
