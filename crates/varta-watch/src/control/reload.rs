//! SIGHUP: the event file is reopened; settings, keys and token are read again, all of them before any of
//! them counts. A mistake in one changes nothing at all, and each is logged on its own line.

use std::sync::Arc;

use varta_core::engine::Input;
use varta_core::fact::Level;
use varta_core::policy::Policy;

use super::{Control, nanoseconds};
use crate::config::Config;
use crate::handoff::Update;
use crate::keys::KeyRing;
use crate::token::{Token, TokenFile};

/// Everything that was read again.
struct Fresh {
    config: Config,
    keys: Option<KeyRing>,
    token: Option<Token>,
}

impl Control {
    pub(super) fn reload(&mut self) {
        let mut done = Vec::new();
        if self.parts.report.reopen_event_file() {
            done.push(
                "the event file is opened again if its path leads to another file".to_owned(),
            );
        }
        match self.read_again() {
            Ok(fresh) => self.put_in_force(fresh, &mut done),
            Err(problems) => {
                for problem in problems {
                    let text = format!("SIGHUP: nothing is changed: {problem}");
                    self.notice(Level::Error, text);
                }
            }
        }
        if !done.is_empty() {
            self.notice(Level::Info, format!("SIGHUP: {}", done.join("; ")));
        }
    }

    fn read_again(&self) -> Result<Fresh, Vec<String>> {
        let config = self.parts.config.again()?;
        let one = |error: String| vec![error];
        let keys = self.parts.keys.as_ref().map(KeyRing::read).transpose();
        let keys = keys.map_err(|error| one(error.to_string()))?;
        let token = self.parts.token.as_deref().map(TokenFile::read).transpose();
        let token = token.map_err(|error| one(error.to_string()))?;
        Ok(Fresh {
            config,
            keys,
            token,
        })
    }

    fn put_in_force(&mut self, fresh: Fresh, done: &mut Vec<String>) {
        let Fresh {
            config,
            keys,
            token,
        } = fresh;
        if let Some(ring) = keys {
            done.push(format!("read {ring}"));
            self.parts.updates.add(Update::Keys(ring));
        }
        if let (Some(file), Some(token)) = (&self.parts.token, token) {
            done.push("read the token".to_owned());
            file.replace(token);
        }
        let restart = self.parts.config.needing_restart(&config).join(", ");
        if !restart.is_empty() {
            done.push(format!("changed, but only after a restart: {restart}"));
        }
        done.push("settings, rules and ladders are in force".to_owned());
        let known = std::mem::take(&mut self.in_force.warnings);
        for warning in config.warnings.iter().filter(|new| !known.contains(new)) {
            self.notice(Level::Warn, warning.clone());
        }
        let threshold_ns = nanoseconds(config.settings.threshold);
        self.parts.state.set_threshold(threshold_ns);
        self.parts.updates.add(Update::Threshold(threshold_ns));
        self.parts
            .updates
            .add(Update::Limits(config.settings.limits));
        self.steps.set_children(config.settings.children.clone());
        self.policy = Arc::new(Policy {
            // What the beat path was given at the start.
            recover_foreign: self.parts.config.settings.policy.recover_foreign,
            ..config.settings.policy.clone()
        });
        self.in_force = config;
        let policy = Arc::clone(&self.policy);
        let programs = self.processes.programs(&|path| policy.names_program(path));
        self.feed(Input::Policy { policy, programs });
        self.parts.updates.send();
    }
}
