//! From flags and file to a [`Policy`]: rules, ladders and limits, all checked.

use std::time::Duration;

use varta_core::policy::{Ladder, Policy, RecoveryLimits, RunStep, Step};
use varta_sys::secret_file;

use super::Toggle;
use super::file::Parsed;
use super::problems::Problems;
use super::programs::SearchPath;
use super::recovery_flags::RecoveryFlags;
use super::rules::{self, Defaults, NONE, RECOVERY_EXEC};
use super::steps::{self, StepDefaults};
use super::table::Flags;
use super::units;
use crate::settings::children::Children;

/// Longer than any sensible command; the kernel's bound for one argument.
const COMMAND_BYTES_MAX: usize = 128 * 1024;

/// The recovery command, from its flag or its file.
pub(super) fn command(flags: &RecoveryFlags, problems: &mut Problems) -> Option<String> {
    let (key, text) = match (&flags.recovery_exec, &flags.recovery_exec_file) {
        (Some(_), Some(_)) => {
            let text = "it says what --recovery-exec says already; leave one out";
            problems.about("recovery-exec-file", &["recovery-exec"], text);
            return None;
        }
        (Some(text), None) => ("recovery-exec", text.clone()),
        (None, Some(path)) => match secret_file::read(path, COMMAND_BYTES_MAX) {
            Ok(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => ("recovery-exec-file", text.to_owned()),
                Err(_) => {
                    let text = format!("{}: this is not UTF-8 text; write it anew", path.display());
                    problems.about("recovery-exec-file", &[], text);
                    return None;
                }
            },
            Err(error) => {
                problems.about("recovery-exec-file", &[], error.to_string());
                return None;
            }
        },
        (None, None) => return None,
    };
    if text.trim().is_empty() {
        problems.about(key, &[], "it is empty; name a program or leave it out");
        return None;
    }
    Some(text)
}

impl Flags {
    /// The policy; reports every problem.
    pub(super) fn policy(
        &self,
        file: Option<&Parsed<'_>>,
        command: Option<&str>,
        inherited_path: Option<String>,
        several_may_join: bool,
        problems: &mut Problems,
    ) -> Policy {
        let defaults = self.defaults(inherited_path, several_may_join);
        self.check_tiers(problems);
        let mut written = file.map_or_else(rules::Written::default, |file| {
            rules::read(file, &defaults, problems)
        });
        let one_step = command.and_then(|command| self.one_step(command, &defaults, problems));
        let default_ladder = match &self.recovery.default_recovery {
            Some(_) if command.is_some() => {
                let text = "--recovery-exec is the default ladder already; leave one out";
                problems.about(
                    "default-recovery",
                    &["recovery-exec", "recovery-exec-file"],
                    text,
                );
                None
            }
            Some(name) if name == NONE => None,
            Some(name) => {
                let found = written.names.get(name).copied();
                if found.is_none() {
                    let text = rules::unknown_ladder(
                        name,
                        &written.names,
                        "recovery-exec = \"program argument\"",
                    );
                    problems.about("default-recovery", &[], text);
                }
                found.flatten()
            }
            None => one_step.map(|ladder| {
                written.ladders.push(ladder);
                written.ladders.len() - 1
            }),
        };
        Policy {
            threshold: Duration::from_millis(self.threshold_ms),
            late: self.late_ms.map(Duration::from_millis),
            rules: written.rules,
            ladders: written.ladders,
            default_ladder,
            mode: self.recovery.recovery_mode.into(),
            limits: self.recovery_limits(),
            recover_foreign: self.allow_cross_namespace_agents,
        }
    }

    /// The defaults of rules and ladders.
    fn defaults(&self, inherited_path: Option<String>, several_may_join: bool) -> Defaults {
        let flags = &self.recovery;
        Defaults {
            ladder: Ladder {
                name: String::new(),
                steps: Vec::new(),
                debounce: Duration::from_millis(flags.recovery_debounce_ms),
                budget: flags.recovery_budget,
                window: flags.recovery_window,
                backoff: flags.recovery_backoff,
                backoff_max: flags.recovery_backoff_max,
                reset_after: flags.recovery_reset_after,
            },
            steps: StepDefaults {
                timeout: flags.recovery_timeout_ms.map(Duration::from_millis),
                wait: flags.recovery_wait,
                path: SearchPath::of(&flags.recovery_env, inherited_path),
            },
            threshold: Duration::from_millis(self.threshold_ms),
            late: self.late_ms.map(Duration::from_millis),
            several_may_join,
        }
    }

    fn check_tiers(&self, problems: &mut Problems) {
        if let Some(late_ms) = self.late_ms
            && late_ms >= self.threshold_ms
        {
            let text = format!(
                "{late_ms} is not shorter than the threshold of {} ms; write a smaller number",
                self.threshold_ms
            );
            problems.about("late-ms", &["threshold-ms"], text);
        }
        let (first, longest) = (
            self.recovery.recovery_backoff,
            self.recovery.recovery_backoff_max,
        );
        if first > longest {
            let text = format!(
                "the first pause ({}) is longer than the longest, --recovery-backoff-max ({}); write a shorter one",
                units::shown(first),
                units::shown(longest)
            );
            problems.about("recovery-backoff", &["recovery-backoff-max"], text);
        }
    }

    /// The ladder from the flags of 0.2.0: the command split at white space, no quoting, no expansion.
    fn one_step(
        &self,
        command: &str,
        defaults: &Defaults,
        problems: &mut Problems,
    ) -> Option<Ladder> {
        let private_file = self.recovery.recovery_exec_file.clone();
        let key = match private_file {
            None => "recovery-exec",
            Some(_) => "recovery-exec-file",
        };
        // A problem with a word is reported without the word if only the owner of its file may read it.
        let discreet = |text: String, without_words: String| match &private_file {
            None => text,
            Some(file) => format!("{}: {without_words}", file.display()),
        };
        let mut words = command.split_whitespace().enumerate();
        let mut read = |(index, word)| match steps::argument(index, word) {
            Ok(word) => Some(word),
            Err(text) => {
                let without_words = format!(
                    "word {} cannot be used: no word may hold a NUL character, the program no placeholder, an \
                     argument only {}",
                    index + 1,
                    steps::PLACEHOLDERS.join(" ")
                );
                problems.about(key, &[], discreet(text, without_words));
                None
            }
        };
        let name = words.next().and_then(&mut read);
        let arguments: Vec<Option<String>> = words.map(read).collect();
        let name = name?;
        let program = defaults.steps.path.find(&name).map_err(|text| {
            // Only a bare name is looked up in a path, which variables may set.
            let others: &[&str] = match name.contains('/') {
                true => &[],
                false => &["recovery-env"],
            };
            let without_words = "the program, its first word, was not found or is no executable file for this \
                                 user; give its full path";
            problems.about(key, others, discreet(text, without_words.to_owned()));
        });
        let (program, arguments) = (program.ok()?, arguments.into_iter().collect::<Option<_>>()?);
        Some(Ladder {
            name: RECOVERY_EXEC.to_owned(),
            steps: vec![Step::Run(RunStep {
                program,
                arguments,
                private_file,
                timeout: defaults.steps.timeout,
                wait: defaults.steps.wait,
            })],
            ..defaults.ladder.clone()
        })
    }

    fn recovery_limits(&self) -> RecoveryLimits {
        let flags = &self.limits;
        RecoveryLimits {
            max_in_flight: flags.recovery_max_in_flight as usize,
            starts_per_second: flags.recovery_starts_per_second,
            user_budget: flags.recovery_user_budget,
            user_window: self.recovery.recovery_window,
            mass_stall_share: unless_off(&flags.mass_stall_share),
            mass_stall_min: flags.mass_stall_min,
            mass_stall_hold: unless_off(&flags.mass_stall_hold),
            memory_pressure: unless_off(&flags.memory_pressure),
            io_pressure: unless_off(&flags.io_pressure),
        }
    }

    pub(super) fn children(&self) -> Children {
        let flags = &self.recovery;
        Children {
            inherit_environment: flags.recovery_inherit_env,
            environment: flags.recovery_env.clone(),
            capture_bytes: flags.recovery_capture_bytes as usize,
            grace: flags.recovery_grace,
        }
    }
}

fn unless_off<T: Copy>(toggle: &Toggle<T>) -> Option<T> {
    match toggle {
        Toggle::Off => None,
        Toggle::At(value) => Some(*value),
    }
}

#[cfg(test)]
mod tests;
