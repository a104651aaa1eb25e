//! The floors of the house, held by this test: no circle between the rooms of a crate, no arrow that points up.
//!
//! The floors are those of `docs/design.md`. Test modules are part of their room and are held to the same floors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use varta_layers::{Crate, Floors, circles, foreign_arrows, inside, upward};

/// Each crate with what it may know of the others.
const CRATES: &[(&str, &[&str])] = &[
    ("varta_vlp", &[]),
    ("varta_sys", &[]),
    ("varta_core", &["varta_vlp"]),
    ("varta_api", &["varta_core", "varta_vlp"]),
    ("varta_client", &["varta_sys", "varta_vlp"]),
    (
        "varta_watch",
        &["varta_api", "varta_core", "varta_sys", "varta_vlp"],
    ),
    (
        "varta_cli",
        &[
            "varta_api",
            "varta_client",
            "varta_core::rules::glob",
            "varta_sys",
            // The demo is a real observer.
            "varta_watch::run",
        ],
    ),
];

/// The rooms of the observer from the top floor down. A room knows only rooms of lower floors.
const WATCH: &[&[&str]] = &[
    &["lifecycle"],
    &["http"],
    &["control"],
    &["ingest", "actions"],
    &["report", "snapshot"],
    &["config"],
    &["beat_queue", "handoff", "replay_file"],
    &[
        "beat_path_state",
        "keys",
        "own_file",
        "process_info",
        "socket_file",
        "token",
    ],
    &["clock"],
    &["settings"],
];

/// Rooms of the observer that are looked into: there is no circle between their modules either.
const LOOKED_INTO: &[&str] = &["http", "control", "ingest", "report", "snapshot"];

/// Circles that are still there: crate, module, rooms. What is not there any more must leave this list.
const KNOWN: &[(&str, &[&str], &[&str])] = &[];

fn house() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// All crates, read once.
fn read(name: &str) -> &'static Crate {
    static ALL: OnceLock<BTreeMap<&str, Crate>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let crates = CRATES.iter().map(|(name, _)| {
            let directory = house().join("crates").join(name.replace('_', "-"));
            (*name, Crate::read(name, &directory).unwrap())
        });
        crates.collect()
    });
    &all[name]
}

/// What is wrong about circles between the rooms of a module.
fn circles_in(name: &str, module: &[&str]) -> Vec<String> {
    let listed = KNOWN
        .iter()
        .filter(|(of, within, _)| (*of, *within) == (name, module));
    let listed: Vec<&[&str]> = listed.map(|(.., rooms)| *rooms).collect();
    let is_known = |rooms: &BTreeSet<String>| listed.iter().any(|known| rooms.iter().eq(*known));
    let found = circles(&inside(&read(name).arrows(), module));
    let (known, new): (Vec<_>, Vec<_>) = found.iter().partition(|(rooms, _)| is_known(rooms));
    let told = new.iter().map(|(rooms, arrows)| {
        let arrows: Vec<String> = arrows.iter().map(ToString::to_string).collect();
        format!("{name}: {rooms:?}\n  {}", arrows.join("\n  "))
    });
    let is_outdated = known.len() < listed.len();
    let outdated = is_outdated.then(|| format!("{name}: a known circle is gone, take it out"));
    told.chain(outdated).collect()
}

#[test]
fn no_room_of_any_crate_is_in_a_circle() {
    let found = CRATES.iter().flat_map(|(name, _)| circles_in(name, &[]));
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_module_of_the_larger_rooms_is_in_a_circle() {
    let rooms = LOOKED_INTO.iter();
    let found = rooms.flat_map(|room| circles_in("varta_watch", &[room]));
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_arrow_between_rooms_of_the_observer_points_down() {
    let floors: Floors<'_> = WATCH
        .iter()
        .rev()
        .enumerate()
        .flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor)))
        .collect();
    let wrong = upward(read("varta_watch"), &floors);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_of_the_house_is_looked_at() {
    let directories = fs::read_dir(house().join("crates")).unwrap();
    for directory in directories {
        let name = directory
            .unwrap()
            .file_name()
            .to_string_lossy()
            .replace('-', "_");
        let is_listed = CRATES.iter().any(|(known, _)| *known == name);
        assert!(is_listed, "{name}: say in CRATES what it may know");
    }
}

#[test]
fn every_crate_knows_only_those_below() {
    for (name, allowed) in CRATES {
        let wrong = foreign_arrows(read(name), allowed);
        assert!(wrong.is_empty(), "{name}:\n{}", wrong.join("\n"));
    }
}
