//! Who knows whom: finds every path in the source of a crate, and says which of them make a circle between rooms, point
//! up a floor, or lead to a crate that must not be known.
//!
//! A room is a module directly below the root of a crate, or below a module that is looked into. Source is read as
//! tokens, so a path counts wherever it stands: in a `use` with its nested trees, in an expression, in the arguments of
//! a macro. Names that a module takes from its parent are followed to where they come from.
//!
//! Not seen: paths that a macro puts together, and what comes by a glob (`use super::*`), whose arrow goes to the module
//! named. What a module takes from an ancestor's own file is no arrow: a parent and its children are one room.

#![forbid(unsafe_code)]

mod check;
mod resolve;
mod scan;

pub use check::{Arrow, Floors, circles, foreign_arrows, inside, upward};
pub use resolve::Crate;
