//! The command line: arguments become a [`Command`] or an error of at most three lines that names the flag. This
//! module makes no system call.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{Parser, Subcommand};

use crate::beat::BeatArguments;
use crate::demo::DemoArguments;
use crate::demo::agent::AgentArguments;
use crate::events::EventsArguments;
use crate::key::KeyArguments;
use crate::pause::{PauseArguments, ResumeArguments};
use crate::status::StatusArguments;

/// Exit code of an unusable command line.
const EXIT_USAGE: u8 = 2;

/// Watches processes by the beats they send: whoever falls silent is noticed within a millisecond
/// of its deadline, reported, and recovered.
#[derive(Debug, Parser)]
#[command(
    name = "varta",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "New here? 'varta demo' shows all of it in ten seconds and touches nothing else.\n\
                  The observer itself is 'varta-watch'; it needs no flag."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// One thing `varta` can do. Those that are hidden are the demo's own processes.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(DemoArguments),
    Beat(BeatArguments),
    Key(KeyArguments),
    Status(StatusArguments),
    Events(EventsArguments),
    Pause(PauseArguments),
    Resume(ResumeArguments),
    #[command(name = "__observer", hide = true)]
    Observer {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    #[command(name = "__agent", hide = true)]
    Agent(AgentArguments),
    #[command(name = "__heal", hide = true)]
    Heal {
        pid: i32,
    },
}

/// The text to print instead of running a command.
#[derive(Debug)]
pub(crate) struct EarlyExit {
    text: String,
    /// 0: help or version, for standard output. Else an error.
    exit_code: u8,
}

impl EarlyExit {
    pub(crate) fn print(&self) -> ExitCode {
        if self.exit_code == 0 {
            // A closed standard output means that the reader needs no more.
            let _ = std::io::stdout().write_all(self.text.as_bytes());
        } else {
            eprint!("{}", self.text);
        }
        ExitCode::from(self.exit_code)
    }
}

/// Parses the command line; the first argument is the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, EarlyExit> {
    CommandLine::try_parse_from(arguments)
        .map(|line| line.command)
        .map_err(|error| early_exit(&error))
}

/// Cuts the parser's message to what the operator needs: the problem, the closest valid name, and where to read more.
fn early_exit(error: &clap::Error) -> EarlyExit {
    let rendered = error.to_string();
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        return EarlyExit {
            text: rendered,
            exit_code: 0,
        };
    }
    let mut text = format!("varta: {}\n", problem(&rendered));
    let suggests = |kind| error.get(kind).is_some();
    if suggests(ContextKind::SuggestedArg)
        || suggests(ContextKind::SuggestedValue)
        || suggests(ContextKind::SuggestedSubcommand)
    {
        let tip = rendered
            .lines()
            .map(str::trim)
            // Hidden commands are not shown.
            .find(|line| line.starts_with("tip:") && !line.contains("'__"));
        text.extend(tip.map(|tip| format!("  {tip}\n")));
    }
    text.push_str("  'varta --help' lists the commands, 'varta COMMAND --help' their flags\n");
    EarlyExit {
        text,
        exit_code: EXIT_USAGE,
    }
}

/// The first paragraph as one line: missing arguments are listed below it.
fn problem(rendered: &str) -> String {
    let paragraph = rendered.lines().take_while(|line| !line.is_empty());
    let words: Vec<&str> = paragraph.map(str::trim).collect();
    let line = words.join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn answer_to(arguments: &[&str]) -> EarlyExit {
        let program = std::iter::once("varta");
        parse(program.chain(arguments.iter().copied()).map(OsString::from)).unwrap_err()
    }

    fn error_of(arguments: &[&str]) -> String {
        let exit = answer_to(arguments);
        assert_eq!(exit.exit_code, EXIT_USAGE, "{arguments:?}");
        assert!(exit.text.lines().count() <= 3, "{}", exit.text);
        exit.text
    }

    #[test]
    fn the_definition_of_the_flags_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn help_names_what_an_operator_can_do_and_nothing_else() {
        for arguments in [&["--help"][..], &[]] {
            let help = answer_to(arguments);
            assert_eq!(help.exit_code, 0);
            for command in ["demo", "beat", "key", "status", "events", "pause", "resume"] {
                assert!(help.text.contains(command), "{}", help.text);
            }
            assert!(!help.text.contains("__"), "{}", help.text);
        }
        let version = answer_to(&["--version"]);
        assert_eq!(version.exit_code, 0);
        assert!(version.text.starts_with("varta "), "{}", version.text);
    }

    #[test]
    fn a_misspelt_command_or_flag_is_answered_with_the_right_one() {
        assert!(error_of(&["dmo"]).contains("'demo'"));
        assert!(error_of(&["demo", "--jsn"]).contains("'--json'"));
        assert!(!error_of(&["agent"]).contains("__"));
    }

    #[test]
    fn values_out_of_range_name_their_flag() {
        for pid in ["0", "1", "2147483648", "own"] {
            let error = error_of(&["key", "derive", "--print", "--pid", pid]);
            assert!(error.contains("--pid"), "{error}");
        }
        for (command, flag, value) in [
            ("demo", "--seconds", "5"),
            ("demo", "--seconds", "3601"),
            ("demo", "--seconds", "ten"),
            ("beat", "--status", "stall"),
            ("beat", "--status", "fine"),
            ("beat", "--payload", "4294967296"),
            ("beat", "--payload", "-1"),
            ("beat", "--every", "500"),
            ("beat", "--every", "999us"),
            ("beat", "--every", "2days"),
            ("beat", "--count", "0"),
            ("status", "--watch", "0"),
            ("status", "--watch", "1s"),
            ("status", "--agent", ""),
            ("events", "--limit", "1001"),
            ("events", "--after", "-1"),
            ("pause", "--for", "0s"),
            ("pause", "--for", "31days"),
            ("pause", "--for", "10"),
        ] {
            let error = error_of(&[command, &format!("{flag}={value}")]);
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn seconds_between_looks_follow_the_flag_in_either_way() {
        for arguments in [&["status", "--watch=x"][..], &["status", "--watch", "x"]] {
            let error = error_of(arguments);
            assert!(error.contains("say a number of seconds"), "{error}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_told_in_words() {
        let error = error_of(&["events", "--after=x"]);
        assert!(error.contains("write a number, 0 or more"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (arguments, missing) in [
            (&["key", "new"][..], "<FILE|--print>"),
            (&["key", "derive", "--print"], "--pid <PID>"),
            (&["key", "derive", "--pid=7", "x"], "--master-key-file"),
            (&["key", "fingerprint"], "<FILE>"),
            (&["pause", "web"], "--for"),
            (&["pause", "--for=1m"], "<AGENT>"),
            (&["resume"], "<AGENT>"),
        ] {
            let error = error_of(arguments);
            let first = error.lines().next().unwrap_or_default();
            assert!(first.contains(missing), "{error}");
        }
    }

    #[test]
    fn a_key_goes_to_one_place() {
        let error = error_of(&["key", "new", "--print", "x"]);
        assert!(
            error.contains("--print") && error.contains("FILE"),
            "{error}"
        );
    }

    #[test]
    fn a_claimed_stall_is_refused_with_the_reason() {
        let error = error_of(&["beat", "--status", "stall"]);
        assert!(error.contains("observer's verdict"), "{error}");
    }

    #[test]
    fn an_argument_that_is_not_text_is_an_error_and_not_a_crash() {
        use std::os::unix::ffi::OsStringExt;
        let arguments = ["varta".into(), OsString::from_vec(vec![b'-', 0xff])];
        assert_eq!(parse(arguments).unwrap_err().exit_code, EXIT_USAGE);
    }
}
