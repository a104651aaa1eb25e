//! The events of the beat path, and their consequences.

use super::Engine;
use super::agents::AgentRecord;
use super::effect::AgentInfo;
use super::input::ProcessFacts;
use crate::agent::{Agent, UID_UNKNOWN};
use crate::event::{Event, EventKind, JoinedFrom};
use crate::fact::{AgentRef, Fact, Occasion};

impl Engine {
    pub(super) fn on_event(&mut self, event: &Event, facts: Option<Box<ProcessFacts>>) {
        match event.kind {
            EventKind::Join { agent, from, .. } => self.on_join(agent, from, facts, event),
            EventKind::Session { agent, .. } => {
                if let (Some(record), Some(facts)) = (self.agents.get_mut(agent), facts) {
                    record.facts = Some(*facts);
                }
                self.assign_rule(agent);
                self.publish_event(agent, event);
            }
            EventKind::Sessions { agent, count } => {
                if let Some(record) = self.agents.get_mut(agent) {
                    record.info_mut().sessions = count;
                    self.show(agent);
                }
                self.publish_event(agent, event);
            }
            EventKind::Critical { agent, .. } => {
                self.publish_event(agent, event);
                self.hook(agent, Occasion::Critical);
            }
            EventKind::Late { agent, .. } => {
                self.publish_event(agent, event);
                self.hook(agent, Occasion::Late);
            }
            EventKind::Stall {
                agent, silence_ns, ..
            } => {
                self.publish_event(agent, event);
                // The beat path may have gone by an older threshold.
                let is_stall = self.threshold_ns(agent) <= Some(silence_ns);
                if is_stall || !self.excuse_stall(agent) {
                    self.on_stall(agent, event.observer_ns);
                }
            }
            EventKind::Return { agent, .. } => {
                self.publish_event(agent, event);
                self.on_return(agent);
            }
            EventKind::Exit { agent, status, .. } => {
                self.publish_event(agent, event);
                if !status.is_clean() {
                    self.hook(agent, Occasion::Exit);
                }
                self.on_gone(agent);
            }
            EventKind::Evicted { agent } => {
                self.publish_event(agent, event);
                self.on_gone(agent);
            }
            EventKind::PutOff { agent, .. } => self.publish_event(agent, event),
            EventKind::Beat { .. }
            | EventKind::Refused { .. }
            | EventKind::Flood { .. }
            | EventKind::NetworkDrops { .. }
            | EventKind::ReceiveTrouble
            | EventKind::Gap { .. } => {
                if let Some(fact) = fact_without_agent(event) {
                    self.publish_at(event.observer_ns, fact);
                }
            }
        }
    }

    fn on_join(
        &mut self,
        agent: Agent,
        from: JoinedFrom,
        facts: Option<Box<ProcessFacts>>,
        event: &Event,
    ) {
        // An agent without a reported end; perhaps an earlier one under the same name.
        if let Some(before) = self.agents.in_slot(agent.slot) {
            self.on_gone(before);
        }
        let (uid, address, sealed) = match from {
            JoinedFrom::Local { uid, .. } => {
                (Some(uid).filter(|uid| *uid != UID_UNKNOWN), None, false)
            }
            JoinedFrom::Remote { address, sealed } => (None, Some(address), sealed),
        };
        let facts = facts.map(|facts| *facts);
        let name = facts.as_ref().map(|facts| facts.name.clone());
        let info = AgentInfo {
            joined_as: name.unwrap_or_default(),
            uid,
            address,
            sealed,
            ..AgentInfo::default()
        };
        let mut record = AgentRecord::new(agent, info, facts);
        record.rename(None);
        self.agents.insert(record);
        self.assign_rule(agent);
        if let (Some(ladders), Some(record)) = (&mut self.ladders, self.agents.get(agent)) {
            ladders.on_join(agent, record.lineage);
        }
        self.publish_event(agent, event);
    }

    /// Publishes what happened to an agent.
    fn publish_event(&mut self, agent: Agent, event: &Event) {
        let called = self.agent_ref(agent);
        let record = self.agents.get(agent);
        let facts = record.and_then(|record| record.facts.as_ref());
        if let Some(fact) = fact_of(event, called, facts) {
            self.publish_at(event.observer_ns, fact);
        }
    }
}

/// The fact of an event, with the name of its agent.
fn fact_of(event: &Event, agent: AgentRef, facts: Option<&ProcessFacts>) -> Option<Fact> {
    Some(match event.kind {
        EventKind::Join {
            from,
            status,
            payload,
            nonce,
            ..
        } => Fact::Joined {
            agent,
            from,
            process: facts.map(|facts| facts.process.clone()),
            status,
            payload,
            nonce,
        },
        EventKind::Session {
            nonce,
            status,
            payload,
            ..
        } => Fact::SessionBegan {
            agent,
            status,
            payload,
            nonce,
            count: 1,
        },
        EventKind::Sessions { count, .. } => Fact::SessionsChanged {
            agent,
            sessions: count as u64,
        },
        EventKind::Critical { nonce, payload, .. } => Fact::Critical {
            agent,
            nonce,
            payload,
        },
        EventKind::Exit {
            last_nonce, status, ..
        } => Fact::Exited {
            agent,
            last_nonce,
            status,
        },
        EventKind::Evicted { .. } => Fact::Evicted { agent },
        _ => return fact_of_silence(event, agent),
    })
}

/// How long an agent is or was silent.
fn fact_of_silence(event: &Event, agent: AgentRef) -> Option<Fact> {
    Some(match event.kind {
        EventKind::Late {
            last_nonce,
            silence_ns,
            ..
        } => Fact::Late {
            agent,
            last_nonce,
            silence_ns,
        },
        EventKind::Stall {
            last_nonce,
            silence_ns,
            threshold_ns,
            refused,
            ..
        } => Fact::Stalled {
            agent,
            last_nonce,
            silence_ns,
            threshold_ns,
            refused,
        },
        EventKind::Return {
            nonce,
            status,
            payload,
            silence_ns,
            ..
        } => Fact::Returned {
            agent,
            silence_ns,
            status,
            payload,
            nonce,
        },
        EventKind::PutOff { silence_ns, .. } => Fact::StallPutOff {
            agent,
            silence_ns,
            count: 1,
        },
        _ => return None,
    })
}

/// Events that concern no known agent.
fn fact_without_agent(event: &Event) -> Option<Fact> {
    match event.kind {
        EventKind::Beat {
            agent,
            nonce,
            status,
            payload,
        } => Some(Fact::Beat {
            agent,
            status,
            payload,
            nonce,
        }),
        EventKind::Refused { sender, reason } => Some(Fact::Refused {
            sender,
            reason,
            count: 1,
        }),
        EventKind::Flood { pid, one_in } => Some(Fact::Flood { pid, one_in }),
        EventKind::NetworkDrops { count } => Some(Fact::NetworkDrops { count }),
        EventKind::Gap { gap_ns } => Some(Fact::Gap {
            late_ns: gap_ns,
            count: 1,
        }),
        _ => None,
    }
}
