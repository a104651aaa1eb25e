//! The checker itself: a circle, an arrow that points up and a crate that must not be known are found.

use varta_layers::{Crate, Floors, circles, foreign_arrows, inside, upward};

fn house(texts: &[(&str, &str)]) -> Crate {
    Crate::of_texts("varta_house", texts).unwrap()
}

fn arrows(source: &Crate) -> Vec<String> {
    let arrows = source.arrows();
    arrows.iter().map(ToString::to_string).collect()
}

#[test]
fn a_circle_is_found_and_told_with_both_files_and_lines() {
    let source = house(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B;\n"),
        ("b/mod.rs", "mod inner;"),
        ("b/inner.rs", "\nfn f() { vec![super::super::a::A::new()] }"),
        ("c.rs", "use crate::a::A; use crate::b::B;"),
    ]);
    let found = circles(&inside(&source.arrows(), &[]));
    assert_eq!(found.len(), 1);
    let (rooms, arrows) = &found[0];
    assert!(rooms.iter().eq(["a", "b"]), "{rooms:?}");
    let arrows: Vec<String> = arrows.iter().map(ToString::to_string).collect();
    assert_eq!(
        arrows,
        [
            "a -> b: a.rs:1 knows b/mod.rs",
            "b::inner -> a: b/inner.rs:2 knows a.rs",
        ]
    );
}

#[test]
fn rooms_that_do_not_know_each_other_are_no_circle() {
    let source = house(&[
        ("lib.rs", "mod a; mod b; use a::A;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "use std::fmt; struct B;"),
    ]);
    assert!(circles(&inside(&source.arrows(), &[])).is_empty());
}

#[test]
fn an_arrow_that_points_up_or_stays_on_its_floor_is_found() {
    let source = house(&[
        ("lib.rs", "mod top; mod low; mod beside;"),
        ("top.rs", "use crate::low::Low;"),
        ("low.rs", "use crate::{beside, top::{self, Top}};"),
        ("beside.rs", ""),
    ]);
    let floors = Floors::from([("top", 1), ("low", 0), ("beside", 0)]);
    let wrong = upward(&source, &floors);
    assert_eq!(
        wrong,
        [
            "low -> beside: low.rs:1 knows beside.rs (floor 0 -> floor 0)",
            "low -> top: low.rs:1 knows top.rs (floor 0 -> floor 1)",
        ]
    );
}

#[test]
fn a_room_without_a_floor_is_found() {
    let source = house(&[
        ("lib.rs", "mod top; mod new;"),
        ("top.rs", ""),
        ("new.rs", ""),
    ]);
    let wrong = upward(&source, &Floors::from([("top", 0)]));
    assert_eq!(wrong, ["new: give this room a floor"]);
}

#[test]
fn a_name_that_a_parent_has_imported_leads_to_where_it_comes_from() {
    let source = house(&[
        ("lib.rs", "mod room; mod low;"),
        ("low.rs", "pub struct Low;"),
        (
            "room/mod.rs",
            "mod a; mod b; use b::B; use crate::low::Low as Deep;",
        ),
        (
            "room/a.rs",
            "use super::B;\nuse super::Deep;\nfn f() { B::new(); Deep::new() }",
        ),
        ("room/b.rs", "use super::a;"),
    ]);
    let arrows = arrows(&source);
    assert!(
        arrows.contains(&"room::a -> room::b: room/a.rs:1 knows room/b.rs".to_owned()),
        "{arrows:?}"
    );
    assert!(
        arrows.contains(&"room::a -> low: room/a.rs:2 knows low.rs".to_owned()),
        "{arrows:?}"
    );
    let found = circles(&inside(&source.arrows(), &["room"]));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn who_hands_a_name_on_is_known_and_so_is_where_it_comes_from() {
    let source = house(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::C;"),
        ("b.rs", "pub use crate::c::C;"),
        ("c.rs", "pub struct C;"),
    ]);
    assert_eq!(
        arrows(&source),
        [
            "a -> b: a.rs:1 knows b.rs",
            "a -> c: a.rs:1 knows c.rs",
            "b -> c: b.rs:1 knows c.rs",
        ]
    );
}

#[test]
fn a_crate_that_must_not_be_known_is_found() {
    let source = house(&[(
        "lib.rs",
        "use varta_core::rules::glob;\nfn f() { varta_watch::run(); varta_watch::secret() }\nuse varta_core::Agent;",
    )]);
    let wrong = foreign_arrows(&source, &["varta_core::rules::glob", "varta_watch::run"]);
    assert_eq!(
        wrong,
        [
            "lib.rs:2 knows varta_watch::secret",
            "lib.rs:3 knows varta_core::Agent",
        ]
    );
}
