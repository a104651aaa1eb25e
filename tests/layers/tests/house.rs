//! The floors of the house, held by this test: no circle between the modules of a module, no arrow that points up.
//!
//! The floors are those of `docs/design.md`. Test modules are part of their room and are held to the same floors.

use std::collections::BTreeMap;
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

/// The rooms of the core by wing. Those of the beat path know nothing of policy, nor do those of both.
const CORE_BEATS: &[&str] = &[
    "admission",
    "attention",
    "beat",
    "beat_events",
    "fifo",
    "index",
    "overflow",
    "replay",
    "seqlock",
    "slot",
    "tracker",
    "wheel",
];
const CORE_POLICY: &[&str] = &[
    "engine",
    "fact",
    "hold",
    "ladder",
    "permits",
    "policy",
    "rules",
    "silence_counts",
];
const CORE_BOTH: &[&str] = &["agent", "counters", "event", "histogram", "refusal"];

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

/// The circles between the modules of any one module.
fn circles_in(source: &Crate) -> Vec<String> {
    let arrows = source.arrows();
    let modules = source.modules();
    let found = modules.iter().flat_map(|module| {
        let module: Vec<&str> = module.iter().map(String::as_str).collect();
        circles(&inside(&arrows, &module))
    });
    let told = found.map(|(rooms, arrows)| {
        let arrows: Vec<String> = arrows.iter().map(ToString::to_string).collect();
        format!("{rooms:?}\n  {}", arrows.join("\n  "))
    });
    told.collect()
}

#[test]
fn no_module_of_any_crate_is_in_a_circle() {
    let found = CRATES.iter().flat_map(|(name, _)| circles_in(read(name)));
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
fn the_beat_wing_of_the_core_knows_nothing_of_policy() {
    let floor = |wing: &'static [&'static str], floor| wing.iter().map(move |room| (*room, floor));
    let wings: Floors<'_> = floor(CORE_BEATS, 0)
        .chain(floor(CORE_BOTH, 0))
        .chain(floor(CORE_POLICY, 1))
        .collect();
    let core = read("varta_core");
    let unknown = core.rooms().filter(|room| !wings.contains_key(room));
    let unknown: Vec<&str> = unknown.collect();
    assert!(unknown.is_empty(), "say of which wing: {unknown:?}");
    let arrows = inside(&core.arrows(), &[]);
    let wrong = arrows.iter();
    let wrong = wrong.filter(|(from, to, _)| wings[from.as_str()] < wings[to.as_str()]);
    let wrong: Vec<String> = wrong.map(|(.., arrow)| arrow.to_string()).collect();
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
