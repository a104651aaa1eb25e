//! What is wrong with the arrows: circles, arrows that point up, arrows into crates that must not be known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::resolve::Crate;

/// A path in one module that leads to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrow {
    /// The module it stands in, from the root of the crate.
    pub from: Vec<String>,
    /// The module it leads to.
    pub to: Vec<String>,
    /// Where it stands.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// Where that leads.
    pub to_file: PathBuf,
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.join("::"), self.to.join("::"));
        let (file, to_file) = (self.file.display(), self.to_file.display());
        write!(f, "{from} -> {to}: {file}:{} knows {to_file}", self.line)
    }
}

/// The floor of each room, from 0 at the bottom. A room knows rooms of lower floors only.
pub type Floors<'a> = BTreeMap<&'a str, usize>;

/// The arrows between the rooms of a module, with the rooms they go from and to.
#[must_use]
pub fn inside(arrows: &[Arrow], module: &[&str]) -> Vec<(String, String, Arrow)> {
    let depth = module.len();
    let room_of = |path: &[String]| {
        let is_below = path.len() > depth && path.iter().zip(module).all(|(part, of)| part == of);
        is_below.then(|| path[depth].clone())
    };
    let between = arrows.iter().filter_map(|arrow| {
        let (from, to) = (room_of(&arrow.from)?, room_of(&arrow.to)?);
        (from != to).then(|| (from, to, arrow.clone()))
    });
    between.collect()
}

/// Rooms that know each other: each circle with the arrows that make it, one from each room to each other one.
#[must_use]
pub fn circles(arrows: &[(String, String, Arrow)]) -> Vec<(BTreeSet<String>, Vec<Arrow>)> {
    let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to, _) in arrows {
        known.entry(from).or_default().insert(to);
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> = known
        .keys()
        .map(|room| (*room, reach(room, &known)))
        .collect();
    let reaches = |a: &str, b: &str| reached.get(a).is_some_and(|reached| reached.contains(b));
    let mut circles: Vec<(BTreeSet<String>, Vec<Arrow>)> = Vec::new();
    for room in known.keys().filter(|room| reaches(room, room)) {
        if circles.iter().any(|(rooms, _)| rooms.contains(*room)) {
            continue;
        }
        let others = known
            .keys()
            .filter(|other| reaches(room, other) && reaches(other, room));
        let rooms: BTreeSet<String> = others.map(|other| (*other).to_owned()).collect();
        let mut within = BTreeMap::new();
        for (from, to, arrow) in arrows {
            if rooms.contains(from) && rooms.contains(to) {
                within.entry((from, to)).or_insert_with(|| arrow.clone());
            }
        }
        circles.push((rooms, within.into_values().collect()));
    }
    circles
}

fn reach<'a>(room: &str, known: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<&str> = vec![room];
    while let Some(room) = waiting.pop() {
        for next in known.get(room).into_iter().flatten() {
            if reached.insert(*next) {
                waiting.push(next);
            }
        }
    }
    reached
}

/// Arrows that do not point down, and rooms that have no floor.
#[must_use]
pub fn upward(source: &Crate, floors: &Floors<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    for room in source.rooms().filter(|room| !floors.contains_key(room)) {
        wrong.push(format!("{room}: give this room a floor"));
    }
    for (from, to, arrow) in inside(&source.arrows(), &[]) {
        if let (Some(own), Some(other)) = (floors.get(from.as_str()), floors.get(to.as_str()))
            && own <= other
        {
            wrong.push(format!("{arrow} (floor {own} -> floor {other})"));
        }
    }
    wrong
}

/// Paths into other crates of the house that are none of those that may be known. `varta_core` allows everything in it,
/// `varta_watch::run` nothing else.
#[must_use]
pub fn foreign_arrows(source: &Crate, allowed: &[&str]) -> Vec<String> {
    let is_allowed = |path: &str| {
        allowed.iter().any(|allowed| {
            let rest = path.strip_prefix(allowed);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        })
    };
    let paths = source.foreign_paths();
    let wrong = paths.filter(|(path, ..)| !is_allowed(path));
    wrong
        .map(|(path, file, line)| format!("{}:{line} knows {path}", file.display()))
        .collect()
}
