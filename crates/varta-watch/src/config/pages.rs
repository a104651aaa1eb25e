//! Output generated from the table for readers and shells: docs/configuration.md, the manual page, completions.

use std::fmt::Write;

use clap::builder::StyledStr;
use clap::{Arg, ValueEnum};
use clap_complete::Shell;

use super::old_flags::{IGNORED, REMOVED};
use super::problems::variable;
use super::rules::{AGENT_KEYS, LADDER_KEYS};
use super::table::{self, Kind};

const NAME: &str = "varta-watch";

/// What `-h` prints, or `--help`.
pub(super) fn help(long: bool) -> String {
    let mut command = table::shown_command();
    let help = match long {
        true => command.render_long_help(),
        false => command.render_help(),
    };
    format!("{}\n", help.to_string().trim_end())
}

/// Instead of a list of all flags, which follows anyway.
const SYNOPSIS: &str = ".SH SYNOPSIS\n\\fBvarta\\-watch\\fR [\\fIOPTIONS\\fR]\n";

/// A script that completes the flags.
pub(super) fn completions(shell: &str) -> String {
    let mut script = Vec::new();
    // The table accepts no other name.
    if let Ok(shell) = Shell::from_str(shell, false) {
        clap_complete::generate(shell, &mut table::shown_command(), NAME, &mut script);
    }
    String::from_utf8_lossy(&script).into_owned()
}

/// The manual page, in roff.
pub(super) fn manual() -> String {
    let mut page = Vec::new();
    let command = table::shown_command().mut_args(|arg| arg.hide_short_help(false));
    let manual = clap_mangen::Man::new(command).section("8").manual("Varta");
    // Writing to memory cannot fail.
    let _ = manual.render_title(&mut page);
    let _ = manual.render_name_section(&mut page);
    page.extend_from_slice(SYNOPSIS.as_bytes());
    let _ = manual.render_options_section(&mut page);
    let _ = manual.render_extra_section(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

/// The page docs/configuration.md.
pub(super) fn settings() -> String {
    let mut page = HEAD.to_owned();
    let command = table::command();
    let mut heading = None;
    for (key, arg) in table::settings(&command) {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let _ = write!(page, "\n## {}\n\n", heading.unwrap_or("Others"));
            page.push_str(
                "| key | value | default | on SIGHUP | meaning |\n|---|---|---|---|---|\n",
            );
        }
        let _ = writeln!(
            page,
            "| `{key}` | {} | {} | {} | {} |",
            value(arg),
            default(arg),
            if table::is_reloaded(key) {
                "yes"
            } else {
                "restart"
            },
            cell(&meaning(arg)),
        );
    }
    page.push_str(RULES);
    keys(&mut page, AGENT_KEYS);
    page.push_str(LADDERS);
    keys(&mut page, LADDER_KEYS);
    page.push_str(STEPS);
    for (key, why) in IGNORED {
        let _ = writeln!(page, "| `--{key}` | has no effect: {why} |");
    }
    for (key, why, successor) in REMOVED {
        let _ = writeln!(
            page,
            "| `--{key}` | is an error: {why}; use --{successor} |"
        );
    }
    page.push_str(VARIABLES);
    for (key, _) in table::settings(&command) {
        let _ = writeln!(page, "| `{}` | `{key}` |", variable(key));
    }
    page
}

fn keys(page: &mut String, keys: &[(&str, &str)]) {
    page.push_str("| key | meaning |\n|---|---|\n");
    for (key, meaning) in keys {
        let _ = writeln!(page, "| `{key}` | {} |", cell(meaning));
    }
}

/// The type of a setting's value.
fn value(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.first().map_or("", |name| name.as_str());
    let possible: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    match table::kind(arg) {
        Kind::Bool => "true or false".to_owned(),
        Kind::List => format!("array of {}", cell(name)),
        _ if !possible.is_empty() => possible.join(", "),
        Kind::Integer => format!("{}, a whole number", cell(name)),
        Kind::Text | Kind::Duration | Kind::NumberOrText => cell(name),
    }
}

fn default(arg: &Arg) -> String {
    let defaults = arg.get_default_values();
    let shown: Vec<String> = defaults
        .iter()
        .map(|value| format!("`{}`", value.display()))
        .collect();
    shown.join(", ")
}

/// The whole help of a setting in one paragraph.
fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let text = help.map(StyledStr::to_string).unwrap_or_default();
    text.split("\n\n")
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(". ")
}

fn cell(text: &str) -> String {
    text.replace('\n', " ")
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

const HEAD: &str = "\
# Configuration

This page is what `varta-watch --list-settings` prints.

Every setting can be given in three ways. A flag overrides a variable, a variable the file:

| | example |
|---|---|
| flag | `--threshold-ms 500` |
| variable in the environment | `VARTA_THRESHOLD_MS=500` |
| key in the file that `--config` (or `VARTA_CONFIG`) names | `threshold-ms = 500` |

A flag that is on or off is on if it is there, and can be switched off with `=false`. Lists are repeated flags,
arrays in the file, and separated by commas in a variable (by newlines in `VARTA_RECOVERY_ENV`). An empty variable
is none. Durations are written with their unit: `\"1500ms\"`, `\"2s\"`, `\"10m\"`.

The file is TOML, at most 1 MiB, and a regular file. It must belong to root or to the observer's user, and only
they and their groups may write to it: it says which programs to run. `--check-config` reports everything
that is wrong with it, up to 100 mistakes; `--print-config` what is in force and where each value comes from,
secrets in `recovery-env` included. On SIGHUP the file is read again: as a whole, or, if anything is wrong with it,
not at all. *On SIGHUP: restart* marks settings whose change needs one. Samples are in [deploy/](../deploy/).
";

const RULES: &str = "
## Rules for agents

Each rule is a block `[[agent]]` in the file. The first rule that an agent matches applies to it, so the most
general one comes last. Every given key of `name`, `exe`, `cgroup`, `unit`, `user-unit`, `uid`, `namespace`,
`origin` and `source` must match; an unknown fact of an agent matches nothing, not even `*`. In a glob `*` stands for any number
of characters and everything else for itself.

```toml
[[agent]]
name = \"web-*\"
uid = 33
threshold = \"500ms\"
late = \"200ms\"
first-beat-within = \"1m\"
expect = 3
recovery = \"restart\"
on-gave-up = [{ run = [\"logger\", \"--\", \"{name} is beyond help: {reason}\"] }]
```

";

const LADDERS: &str = "
## Ladders

A ladder is the list of steps that are taken about a stall, a table `[recovery.NAME]` in the file: a rule names it with
`recovery`, and `default-recovery` names that of all other agents. `recovery-exec` is short for a ladder of
one step. Numbers that a ladder does not give are those of the settings.

```toml
[recovery.restart]
steps = [
    { signal = \"TERM\", wait = \"5s\" },
    { run = [\"systemctl\", \"restart\", \"{unit}\"], timeout = \"30s\", wait = \"20s\" },
]
budget = 3
window = \"10m\"
```

";

const STEPS: &str = "
## Steps

Ladders and the `on-...` keys of rules are arrays of steps:

| step | what it does |
|---|---|
| `{ run = [\"PROGRAM\", \"ARGUMENT\", ...], timeout = \"30s\", wait = \"10s\" }` | runs a program, without a shell. `timeout` is `recovery-timeout-ms` unless given |
| `{ signal = \"TERM\", to = \"process\", wait = \"5s\" }` | sends a signal to the process, its `group` or its `cgroup` |
| `{ wait = \"30s\" }` | does nothing for so long |

`wait` is how long the agent may take to come back after the step went well; `recovery-wait` unless given. In arguments
`{pid}`, `{name}`, `{status}`, `{silence-ms}`, `{unit}`, `{user-unit}`, `{reason}` and `{source}` are replaced; other
lower-case words in braces are mistakes, and the program itself is never replaced. Programs are looked up in the
command's own `PATH`, `/usr/bin:/bin` unless `recovery-env` says otherwise, and must be there when the file is read. A
name is the agent's own choice and may look like an option: put `\"--\"` before it. [recovery.md](recovery.md) describes
how steps are taken, [security.md](security.md) what attests each selector and placeholder.

## Flags of 0.2.0

| flag | now |
|---|---|
";

const VARIABLES: &str = "
## Variables

| variable | key |
|---|---|
| `VARTA_CONFIG` | none: the path of the file |
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::steps::PLACEHOLDERS;

    fn keys() -> Vec<String> {
        let command = table::command();
        table::settings(&command)
            .map(|(key, _)| key.to_owned())
            .collect()
    }

    #[test]
    fn the_documentation_is_what_the_program_prints() {
        let page = include_str!("../../../../docs/configuration.md");
        // `varta-watch --list-settings > docs/configuration.md` regenerates it.
        assert_eq!(page, settings());
    }

    #[test]
    fn every_setting_has_a_key_and_a_variable_in_the_documentation() {
        let page = settings();
        for key in keys() {
            assert!(page.contains(&format!("\n| `{key}` | ")), "{key}");
            let variable = format!("\n| `{}` | `{key}` |\n", variable(&key));
            assert!(page.contains(&variable), "{key}");
        }
    }

    #[test]
    fn every_setting_is_in_the_long_help_the_manual_and_the_completions() {
        let mut pages = vec![help(true), manual().replace('\\', "")];
        pages.extend(["bash", "zsh", "fish"].map(completions));
        for page in &pages {
            for key in keys() {
                // fish lists them by their bare name.
                let found =
                    page.contains(&format!("--{key}")) || page.contains(&format!(" -l {key}"));
                assert!(found, "{key} in {page}");
            }
        }
    }

    #[test]
    fn every_setting_is_explained_in_the_manual() {
        let manual = manual().replace('\\', "");
        let command = table::command();
        for (key, arg) in table::settings(&command) {
            let help = arg.get_help().unwrap().to_string();
            let first = help.split(['\'', '"']).next().unwrap();
            assert!(manual.contains(first), "{key}: {help}");
        }
    }

    #[test]
    fn the_short_help_fits_on_two_screens_and_hides_what_few_need() {
        let help = help(false);
        assert!(help.lines().count() <= 70, "{help}");
        assert!(help.contains("--threshold-ms") && !help.contains("--recovery-backoff"));
    }

    #[test]
    fn flags_without_effect_are_in_no_help() {
        for page in [help(true), manual().replace('\\', ""), completions("bash")] {
            let ignored = IGNORED.iter().map(|(key, _)| key);
            for key in ignored.chain(REMOVED.iter().map(|(key, ..)| key)) {
                assert!(!page.contains(&format!("--{key}")), "{key}");
            }
        }
    }

    #[test]
    fn every_placeholder_is_in_the_help_of_the_command() {
        let command = table::command();
        let (_, arg) = table::settings(&command)
            .find(|(key, _)| *key == "recovery-exec")
            .unwrap();
        let help = meaning(arg);
        for placeholder in PLACEHOLDERS {
            assert!(help.contains(placeholder), "{placeholder} in {help}");
        }
    }

    #[test]
    fn flags_that_are_on_or_off_are_shown_without_a_value() {
        let help = help(true);
        assert!(help.contains("--recovery-inherit-env\n"), "{help}");
    }
}
