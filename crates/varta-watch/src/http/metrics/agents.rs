//! The figures of agents: their number, by state and by name, and one row for each agent with series of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use varta_api::v1::{State, StateCounts};
use varta_vlp::Status;

use super::page;
use crate::settings::http::AgentSeries;
use crate::snapshot::view::{AgentSnapshot, View};

/// An agent, or several that no label distinguishes: processes of equal pid behind one address. A page must not name
/// a series twice, so these share one.
#[derive(Debug)]
pub(super) struct Row {
    /// Pid, name and source, in the form between the braces.
    pub(super) labels: String,
    /// Accepted beats, of all of them.
    pub(super) beats: u64,
    /// Stalls, of all of them.
    pub(super) stalls: u64,
    /// The worst of them: the status that the agent reports, or 3 if it has stalled.
    pub(super) status: u64,
    /// Since the last beat of the one with the longest silence, attention time.
    pub(super) age_ns: u64,
}

/// The sort key of a row.
type Key = (u32, Option<IpAddr>, String);

/// The agents at one moment.
pub(super) struct Agents {
    /// All of them.
    pub(super) counts: StateCounts,
    /// The agents that get series of their own.
    pub(super) rows: Vec<Row>,
    /// The same by name.
    pub(super) names: BTreeMap<String, StateCounts>,
}

pub(super) fn read(view: &View, choice: AgentSeries) -> Agents {
    let mut counts = StateCounts::default();
    let counted = view.agents().inspect(|seen| counts.count(seen.state));
    let chosen = match choice {
        AgentSeries::All => counted.collect(),
        AgentSeries::Faulty => counted.filter(is_faulty).collect(),
        AgentSeries::None => counted.filter(|_| false).collect(),
        AgentSeries::AtMost(most) => first(most, counted.collect()),
    };
    let keyed = keyed(view, chosen);
    let mut names = BTreeMap::<String, StateCounts>::new();
    for ((.., name), seen) in &keyed {
        match names.get_mut(name) {
            Some(counts) => counts.count(seen.state),
            None => names.entry(name.clone()).or_default().count(seen.state),
        }
    }
    Agents {
        counts,
        rows: rows(view, &keyed),
        names,
    }
}

/// It is not simply alive and well.
fn is_faulty(seen: &AgentSnapshot) -> bool {
    seen.state != State::Alive || seen.facts.status != Status::Ok
}

fn first(most: usize, mut agents: Vec<AgentSnapshot>) -> Vec<AgentSnapshot> {
    agents.sort_by_key(|seen| (!is_faulty(seen), seen.facts.joined_ns, seen.agent.slot));
    agents.truncate(most);
    agents
}

fn keyed(view: &View, agents: Vec<AgentSnapshot>) -> Vec<(Key, AgentSnapshot)> {
    let mut keyed: Vec<(Key, AgentSnapshot)> = agents
        .into_iter()
        .map(|seen| {
            let info = view.info_of(seen.agent);
            let name = info.label.clone();
            let name = name.unwrap_or_else(|| info.joined_as.clone());
            ((seen.agent.pid, info.address, name), seen)
        })
        .collect();
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    keyed
}

fn rows(view: &View, keyed: &[(Key, AgentSnapshot)]) -> Vec<Row> {
    let now_ns = view.beat_path.attention_now_ns();
    keyed
        .chunk_by(|(a, _), (b, _)| a == b)
        .filter_map(|alike| Some(row(&alike.first()?.0, alike, now_ns)))
        .collect()
}

fn row((pid, address, name): &Key, alike: &[(Key, AgentSnapshot)], now_ns: u64) -> Row {
    let pid = pid.to_string();
    let source = address.map(|address| address.to_string());
    let source = source.as_deref().unwrap_or_default();
    let agents = || alike.iter().map(|(_, seen)| seen);
    let age_ns = |seen: &AgentSnapshot| now_ns.saturating_sub(seen.facts.last_ns);
    let stalls = agents().map(|seen| u64::from(seen.facts.stalls));
    Row {
        labels: page::labels(&[("pid", &pid), ("name", name), ("source", source)]),
        beats: agents()
            .map(|seen| seen.facts.beats)
            .fold(0, u64::saturating_add),
        stalls: stalls.sum(),
        status: agents().map(status).max().unwrap_or_default(),
        age_ns: agents().map(age_ns).max().unwrap_or_default(),
    }
}

fn status(seen: &AgentSnapshot) -> u64 {
    match seen.facts.state.is_latched() {
        true => Status::Stall as u64,
        false => seen.facts.status as u64,
    }
}
