//! Selection, order and paging of agents: `GET /api/v1/agents`.
//!
//! A page is selected in one pass over the slots that keeps no more than the page, so a request costs the same memory
//! however many agents there are. A page ends at a key of the order, not at a number, so an agent that joins or
//! leaves between two pages moves no other agent from one to the other.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::str::FromStr;

use varta_api::AgentId;
use varta_api::v1::{AgentsPage, PAGE_MAX, State};

use super::problem::Refusal;
use crate::snapshot::view::{AgentSnapshot, View};

/// Default number of agents in a page.
const PAGE: usize = 100;

/// The parameters of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentsQuestion {
    /// Any if empty.
    states: Vec<State>,
    name: Option<String>,
    pid: Option<u32>,
    sort: Sort,
    after: Option<End>,
    limit: usize,
}

/// The order of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    /// The worst state first, then the longest silence.
    #[default]
    State,
    Silence,
    Name,
    Pid,
}

impl Sort {
    const ALL: [Self; 4] = [Self::State, Self::Silence, Self::Name, Self::Pid];

    fn word(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Silence => "silence",
            Self::Name => "name",
            Self::Pid => "pid",
        }
    }

    fn called(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sort| sort.word() == word)
    }
}

/// The position of an agent in the order; fields that an order ignores are the same for all agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    rank: u8,
    name: String,
    /// A smaller value is a longer silence; unlike a silence it does not change while no beat arrives.
    heard_ns: u64,
    pid: u32,
    instance: u64,
    slot: u32,
}

impl Key {
    fn of(seen: &AgentSnapshot, name: Option<String>, sort: Sort) -> Self {
        let last = Self {
            pid: seen.agent.pid,
            instance: seen.agent.instance,
            slot: seen.agent.slot,
            ..Self::default()
        };
        let heard_ns = seen.facts.heard_ns();
        match sort {
            Sort::State => Self {
                rank: rank(seen.state),
                heard_ns,
                ..last
            },
            Sort::Silence => Self { heard_ns, ..last },
            Sort::Name => Self {
                name: name.unwrap_or_default(),
                ..last
            },
            Sort::Pid => last,
        }
    }
}

/// The end of a page, with its order. The text is opaque to all but [`End::from_str`], and has letters, digits and
/// dashes only, so that it can be put into a query unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    sort: Sort,
    key: Key,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Key {
            rank,
            name,
            heard_ns,
            pid,
            instance,
            slot,
        } = &self.key;
        let sort = self.sort.word();
        write!(
            f,
            "{sort}-{rank:x}-{heard_ns:x}-{pid:x}-{instance:x}-{slot:x}-"
        )?;
        name.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for End {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let sort = parts.next().and_then(Sort::called).ok_or(())?;
        let mut number = || {
            let part = parts.next().ok_or(())?;
            u64::from_str_radix(part, 16).map_err(drop)
        };
        let (rank, heard_ns, pid, instance, slot) =
            (number()?, number()?, number()?, number()?, number()?);
        let key = Key {
            rank: rank.try_into().map_err(drop)?,
            name: name_of_hex(parts.next().ok_or(())?).ok_or(())?,
            heard_ns,
            pid: pid.try_into().map_err(drop)?,
            instance,
            slot: slot.try_into().map_err(drop)?,
        };
        match parts.next() {
            None => Ok(Self { sort, key }),
            Some(_) => Err(()),
        }
    }
}

fn name_of_hex(text: &str) -> Option<String> {
    let bytes = text.as_bytes().chunks(2).map(|two| {
        let two = std::str::from_utf8(two).ok().filter(|two| two.len() == 2)?;
        u8::from_str_radix(two, 16).ok()
    });
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

/// The worst first.
fn rank(state: State) -> u8 {
    match state {
        State::Stalled => 0,
        State::Late => 1,
        State::Paused => 2,
        State::Alive => 3,
    }
}

impl AgentsQuestion {
    /// Reads the parameters; the error names an unknown one.
    pub(crate) fn parse(parameters: &[(String, String)]) -> Result<Self, Refusal> {
        let mut question = Self {
            states: Vec::new(),
            name: None,
            pid: None,
            sort: Sort::default(),
            after: None,
            limit: PAGE,
        };
        for (key, value) in parameters {
            match key.as_str() {
                "state" => {
                    for state in value.split(',') {
                        question.states.push(parse_state(state)?);
                    }
                }
                "name" => question.name = Some(value.clone()),
                "pid" => question.pid = Some(number(key, value)?),
                "sort" => question.sort = parse_sort(value)?,
                "after" => {
                    let after = value.parse().map_err(|()| {
                        Refusal::bad_request("after: give what the page before says as next")
                    })?;
                    question.after = Some(after);
                }
                "limit" => question.limit = limit(key, value, PAGE_MAX)?,
                _ => {
                    return Err(unknown(key, "state, name, pid, sort, after and limit"));
                }
            }
        }
        each_once(parameters, &["state"])?;
        match &question.after {
            Some(End { sort, .. }) if *sort != question.sort => {
                let sort = sort.word();
                let detail =
                    format!("after: this is a place in another order, ask with sort={sort}");
                Err(Refusal::bad_request(detail))
            }
            _ => Ok(question),
        }
    }

    /// The page for this request.
    pub(crate) fn answer(&self, view: &View) -> AgentsPage {
        let mut total = 0;
        let mut page: BTreeMap<Key, AgentSnapshot> = BTreeMap::new();
        for seen in view.agents().filter(|seen| self.fits(seen)) {
            // Names are looked up only where the selection needs them.
            let named = self.name.is_some() || self.sort == Sort::Name;
            let name = named.then(|| view.info_of(seen.agent).name.clone());
            if self.name.is_some() && name != self.name {
                continue;
            }
            total += 1;
            let key = Key::of(&seen, name, self.sort);
            if self.after.as_ref().is_some_and(|end| key <= end.key) {
                continue;
            }
            page.insert(key, seen);
            // One more than the page, to detect whether there is another one.
            if page.len() > self.limit + 1 {
                page.pop_last();
            }
        }
        let more = page.len() > self.limit;
        if more {
            page.pop_last();
        }
        let last = page.last_key_value().filter(|_| more);
        let end = last.map(|(key, _)| End {
            sort: self.sort,
            key: key.clone(),
        });
        AgentsPage {
            next: end.map(|end| end.to_string()),
            agents: page.values().map(|seen| view.show(seen)).collect(),
            total,
        }
    }

    fn fits(&self, seen: &AgentSnapshot) -> bool {
        let state = self.states.is_empty() || self.states.contains(&seen.state);
        state && self.pid.is_none_or(|pid| pid == seen.agent.pid)
    }
}

/// The agent with this id, if it has not left.
pub(crate) fn find(view: &View, id: &str) -> Option<AgentSnapshot> {
    let id: AgentId = id.parse().ok()?;
    view.agents().find(|seen| AgentId::from(seen.agent) == id)
}

fn parse_state(text: &str) -> Result<State, Refusal> {
    Ok(match text {
        "stalled" => State::Stalled,
        "late" => State::Late,
        "paused" => State::Paused,
        "alive" => State::Alive,
        _ => {
            return Err(Refusal::bad_request(
                "state: write stalled, late, paused or alive, or some of them with commas between",
            ));
        }
    })
}

fn parse_sort(text: &str) -> Result<Sort, Refusal> {
    let sort = Sort::called(text);
    sort.ok_or_else(|| Refusal::bad_request("sort: write state, silence, name or pid"))
}

/// Any number of a kind.
pub(crate) fn number<T: FromStr>(key: &str, value: &str) -> Result<T, Refusal> {
    let number = value.parse().ok();
    number.ok_or_else(|| Refusal::bad_request(format!("{key}: write a number, 0 or more")))
}

/// The requested number: 1 to `max`.
pub(crate) fn limit(key: &str, value: &str, max: usize) -> Result<usize, Refusal> {
    let number = value
        .parse()
        .ok()
        .filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| Refusal::bad_request(format!("{key}: write a number from 1 to {max}")))
}

/// An unknown parameter. The name is cut, because it may be of any length.
pub(crate) fn unknown(key: &str, known: &str) -> Refusal {
    let name: String = key.chars().take(64).collect();
    Refusal::bad_request(format!("{name:?} is no parameter here; there are {known}"))
}

/// Refuses a repeated parameter, since only one of its values could apply.
pub(crate) fn each_once(
    parameters: &[(String, String)],
    repeatable: &[&str],
) -> Result<(), Refusal> {
    let mut given = HashSet::new();
    for (key, _) in parameters {
        let key = key.as_str();
        if !given.insert(key) && !repeatable.contains(&key) {
            return Err(Refusal::bad_request(format!("{key}: give it once")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)]) -> Result<AgentsQuestion, Refusal> {
        let parameters = parameters.iter();
        let parameters = parameters.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        AgentsQuestion::parse(&parameters.collect::<Vec<_>>())
    }

    fn end() -> End {
        End {
            sort: Sort::Name,
            key: Key {
                rank: 3,
                name: "a-b &%\u{202e}".to_owned(),
                heard_ns: u64::MAX,
                pid: u32::MAX,
                instance: 7,
                slot: 0,
            },
        }
    }

    #[test]
    fn the_end_of_a_page_survives_being_told_and_given_back_as_it_is() {
        let text = end().to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        assert!(text.chars().all(plain), "{text}");
        assert_eq!(text.parse(), Ok(end()));
        for text in [
            "",
            "1-2-3-4-5-",
            "age-1-2-3-4-5-",
            "name-1-2-3-4-5",
            "name-1-2-3-4-x-",
            "name-100-2-3-4-5-",
            "name--1-2-3-4-5-",
            "name-1-2-3-4-5-6",
            "name-1-2-3-4-5-6x",
            "name-1-2-3-4-5-ff",
            "name-1-2-3-4-5-ü",
            "name-1-2-3-4-5-61-",
        ] {
            assert_eq!(text.parse::<End>(), Err(()), "{text}");
        }
    }

    #[test]
    fn the_end_of_a_page_in_another_order_is_refused() {
        let text = end().to_string();
        assert!(parse(&[("after", &text), ("sort", "name")]).is_ok());
        for other in [
            &[("after", text.as_str())][..],
            &[("sort", "pid"), ("after", &text)],
        ] {
            let refused = parse(other).unwrap_err();
            assert!(format!("{refused:?}").contains("sort=name"), "{refused:?}");
        }
    }

    #[test]
    fn only_a_state_may_be_given_twice() {
        assert!(parse(&[("state", "alive"), ("state", "late")]).is_ok());
        for twice in ["pid", "limit"] {
            let refused = parse(&[(twice, "1"), (twice, "2")]).unwrap_err();
            assert!(
                format!("{refused:?}").contains("give it once"),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn an_unknown_parameter_is_cut() {
        let parameters = [("x".repeat(10_000), String::new())];
        let refused = AgentsQuestion::parse(&parameters).unwrap_err();
        assert!(format!("{refused:?}").len() < 300);
    }
}
