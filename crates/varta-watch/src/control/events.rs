//! What the beat path saw, as facts: each event is published with what is known of its agent, and recovery is told
//! what it needs to know.

use tokio::time::Instant;
use varta_core::fact::Occasion;
use varta_core::{Agent, Counter, Event, EventKind, Fact, JoinedFrom, UID_UNKNOWN};

use super::Control;
use crate::handoff::Update;
use crate::snapshot::directory::AgentInfo;

impl Control {
    /// Publishes an event with what is known of its agent, and tells recovery what it needs to know.
    pub(super) fn take_event(&mut self, event: Event) {
        let now_ns = event.observer_ns;
        match event.kind {
            EventKind::Beat {
                agent,
                nonce,
                status,
                payload,
            } => {
                let beat = Fact::Beat {
                    agent,
                    status,
                    payload,
                    nonce,
                };
                self.given.report.publish(&beat, now_ns);
            }
            EventKind::Join { agent, from, .. } => {
                self.enter(agent, from);
                self.publish_join(event);
            }
            EventKind::Session {
                agent,
                nonce,
                status,
                payload,
            } => {
                self.acquaintances.review(agent);
                self.hold_to_rule(agent);
                let session = Fact::SessionBegan {
                    agent: self.agent_ref(agent),
                    status,
                    payload,
                    nonce,
                    count: 1,
                };
                self.publish_at(&session, now_ns);
            }
            EventKind::Sessions { agent, count } => {
                self.given
                    .directory
                    .update(agent, |info| info.sessions = count);
                let agent = self.agent_ref(agent);
                let sessions = count as u64;
                self.publish_at(&Fact::SessionsChanged { agent, sessions }, now_ns);
            }
            EventKind::Refused { sender, reason } => {
                let now = Instant::now().into_std();
                self.given.no_room.note(sender, reason, now);
                let refused = Fact::Refused {
                    sender,
                    reason,
                    count: 1,
                };
                self.publish_at(&refused, now_ns);
            }
            EventKind::Flood { pid, one_in } => {
                self.publish_at(&Fact::Flood { pid, one_in }, now_ns);
            }
            EventKind::NetworkDrops { count } => {
                self.publish_at(&Fact::NetworkDrops { count }, now_ns);
            }
            EventKind::ReceiveTrouble => {
                for fact in self.receive_trouble.changes(&self.given.beat_path, now_ns) {
                    self.publish_at(&fact, now_ns);
                }
            }
            EventKind::Gap { gap_ns } => {
                let gap = Fact::Gap {
                    late_ns: gap_ns,
                    count: 1,
                };
                self.publish_at(&gap, now_ns);
            }
            EventKind::Critical { .. }
            | EventKind::Late { .. }
            | EventKind::Stall { .. }
            | EventKind::PutOff { .. }
            | EventKind::Return { .. }
            | EventKind::Exit { .. }
            | EventKind::Evicted { .. } => self.take_change(event),
        }
    }

    /// The same of what makes a difference to recovery.
    fn take_change(&mut self, Event { observer_ns, kind }: Event) {
        match kind {
            EventKind::Critical {
                agent,
                nonce,
                payload,
            } => {
                let critical = Fact::Critical {
                    agent: self.agent_ref(agent),
                    nonce,
                    payload,
                };
                self.publish_at(&critical, observer_ns);
                self.hook(agent, Occasion::Critical);
            }
            EventKind::Late {
                agent,
                last_nonce,
                silence_ns,
            } => {
                let late = Fact::Late {
                    agent: self.agent_ref(agent),
                    last_nonce,
                    silence_ns,
                };
                self.publish_at(&late, observer_ns);
                self.hook(agent, Occasion::Late);
            }
            EventKind::Stall {
                agent,
                last_nonce,
                silence_ns,
                threshold_ns,
                refused,
            } => {
                let stalled = Fact::Stalled {
                    agent: self.agent_ref(agent),
                    last_nonce,
                    silence_ns,
                    threshold_ns,
                    refused,
                };
                self.publish_at(&stalled, observer_ns);
                self.recover(agent, observer_ns);
            }
            EventKind::PutOff { agent, silence_ns } => {
                let put_off = Fact::StallPutOff {
                    agent: self.agent_ref(agent),
                    silence_ns,
                    count: 1,
                };
                self.publish_at(&put_off, observer_ns);
            }
            EventKind::Return {
                agent,
                silence_ns,
                status,
                payload,
                nonce,
            } => {
                let returned = Fact::Returned {
                    agent: self.agent_ref(agent),
                    silence_ns,
                    status,
                    payload,
                    nonce,
                };
                self.publish_at(&returned, observer_ns);
                self.returned(agent);
            }
            EventKind::Exit {
                agent,
                last_nonce,
                status,
            } => {
                let exited = Fact::Exited {
                    agent: self.agent_ref(agent),
                    last_nonce,
                    status,
                };
                self.publish_at(&exited, observer_ns);
                if !status.is_clean() {
                    self.hook(agent, Occasion::Exit);
                }
                self.forget(agent);
            }
            EventKind::Evicted { agent } => {
                let evicted = Fact::Evicted {
                    agent: self.agent_ref(agent),
                };
                self.publish_at(&evicted, observer_ns);
                self.forget(agent);
            }
            _ => {}
        }
    }

    /// Takes note of a new agent.
    fn enter(&mut self, agent: Agent, from: JoinedFrom) {
        let (uid, sealed) = match from {
            JoinedFrom::Local { uid, exit_watched } => {
                let info = self.acquaintances.join(agent, exit_watched);
                // Before anybody reads of the join and acts on it.
                self.given.updates.add(Update::Info(agent, info));
                self.given.updates.send();
                (Some(uid).filter(|uid| *uid != UID_UNKNOWN), false)
            }
            JoinedFrom::Remote { address, sealed } => {
                self.acquaintances.join_from(agent, address);
                (None, sealed)
            }
        };
        let facts = self.acquaintances.facts_of(agent);
        let name = self.acquaintances.name_of(agent);
        let info = AgentInfo {
            uid,
            joined_as: name.clone(),
            name,
            unit: facts.and_then(|facts| facts.units.system.clone()),
            user_unit: facts.and_then(|facts| facts.units.user.clone()),
            address: self.acquaintances.address_of(agent),
            sealed,
            ..AgentInfo::default()
        };
        self.given.directory.enter(agent, info);
        self.hold_to_rule(agent);
        self.joined(agent);
    }

    fn publish_join(&mut self, Event { observer_ns, kind }: Event) {
        let EventKind::Join {
            agent,
            from,
            nonce,
            status,
            payload,
        } = kind
        else {
            return;
        };
        let facts = self.acquaintances.facts_of(agent);
        let joined = Fact::Joined {
            agent: self.agent_ref(agent),
            from,
            process: facts.map(Into::into),
            status,
            payload,
            nonce,
        };
        self.publish_at(&joined, observer_ns);
        if !self.told_of_unwatched_exits && self.given.counters.get(Counter::ExitWatchFailed) > 0 {
            self.told_of_unwatched_exits = true;
            self.publish(&Fact::ExitsUnwatched);
        }
    }
}
