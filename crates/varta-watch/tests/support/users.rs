//! Agents of another user besides those of root, and an observer that both can reach.

use std::path::PathBuf;

use super::agents::Puppet;
use super::ladders::Marks;
use super::{Observer, copy_program, may_become_nobody, public_directory};

/// Starts the rest of the command as a user without any rights.
pub(crate) const AS_USER: [&str; 4] = [
    "setpriv",
    "--reuid=65533",
    "--regid=65533",
    "--clear-groups",
];
pub(crate) const USER: u32 = 65533;

/// An observer that every user can reach, and the program that agents of other users run.
pub(crate) struct Place {
    pub(crate) marks: Marks,
    pub(crate) observer: Observer,
    pub(crate) agent: PathBuf,
}

impl Place {
    /// With this configuration; `None` where this user cannot become another.
    pub(crate) fn with(marks: Marks, text: &str, flags: &[&str]) -> Option<Self> {
        if !may_become_nobody() {
            return None;
        }
        let directory = public_directory();
        let agent = directory.path().join("agent");
        copy_program(&std::env::current_exe().unwrap(), &agent);
        marks.configure(text);
        let config = format!("--config={}", marks.config().display());
        let flags = [&[config.as_str()], flags].concat();
        let observer = Observer::start_in(directory, &flags, |command| command);
        Some(Self {
            marks,
            observer,
            agent,
        })
    }

    /// A process of the other user that has not beaten yet.
    pub(crate) fn puppet(&self) -> Puppet {
        Puppet::start_under(&AS_USER, &self.agent, &self.observer.socket)
    }
}
