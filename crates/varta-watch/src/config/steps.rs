//! Steps of ladders and hooks: `run`, `signal` and `wait`, in the form of the configuration file.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;
use varta_core::fact::{Signal, SignalTarget};
use varta_core::policy::{RunStep, SignalStep, Step};

use super::problems::{Problems, nearest};
use super::programs::SearchPath;
use super::section::{Section, kind, text};
use super::units;

/// A longer ladder should be a program.
const STEPS_MAX: usize = 32;

/// The placeholders in arguments.
pub(super) const PLACEHOLDERS: &[&str] = &[
    "{pid}",
    "{name}",
    "{status}",
    "{silence-ms}",
    "{unit}",
    "{user-unit}",
    "{reason}",
    "{source}",
];

const TARGETS: &[(&str, SignalTarget)] = &[
    ("process", SignalTarget::Process),
    ("group", SignalTarget::Group),
    ("cgroup", SignalTarget::Cgroup),
];

const FORMS: &str =
    "write { run = [\"program\", \"argument\"] }, { signal = \"TERM\" } or { wait = \"30s\" }";

/// Defaults of steps, and the search path of their programs.
#[derive(Clone, Debug)]
pub(super) struct StepDefaults {
    pub(super) timeout: Option<Duration>,
    pub(super) wait: Duration,
    pub(super) path: SearchPath,
}

/// The steps under a key; none if there is none.
pub(super) fn read(
    section: &Section<'_>,
    key: &str,
    defaults: &StepDefaults,
    problems: &mut Problems,
) -> Vec<Step> {
    let Some(value) = section.get(key) else {
        return Vec::new();
    };
    let DeValue::Array(items) = value.get_ref() else {
        let text = format!(
            "an array of steps is wanted here, not {}; {FORMS}",
            kind(value.get_ref())
        );
        section.wrong(key, text, problems);
        return Vec::new();
    };
    if items.len() > STEPS_MAX {
        let text = format!(
            "{} steps, and {STEPS_MAX} are the most; write a program",
            items.len()
        );
        section.wrong(key, text, problems);
        return Vec::new();
    }
    let name = section.path(key);
    let steps = items.iter().filter_map(|item| {
        let DeValue::Table(table) = item.get_ref() else {
            let text = format!("{} is no step; {FORMS}", kind(item.get_ref()));
            problems.add(section.document.origin(&item.span()), &name, text);
            return None;
        };
        let step = Section {
            name: name.clone(),
            table,
            document: section.document,
            span: item.span(),
        };
        one(&step, defaults, problems)
    });
    steps.collect()
}

fn one(step: &Section<'_>, defaults: &StepDefaults, problems: &mut Problems) -> Option<Step> {
    let wait = step.duration("wait", units::some_time, problems);
    match (step.has("run"), step.has("signal")) {
        (true, true) => {
            let text = "a step has run or signal, not both; write two steps";
            step.wrong("signal", text, problems);
            None
        }
        (true, false) => {
            step.allow_only(&["run", "timeout", "wait"], problems);
            let timeout = step.duration("timeout", units::some_time, problems);
            let (program, arguments) = command(step, &defaults.path, problems)?;
            Some(Step::Run(RunStep {
                program,
                arguments,
                private_file: None,
                timeout: timeout.or(defaults.timeout),
                wait: wait.unwrap_or(defaults.wait),
            }))
        }
        (false, true) => {
            step.allow_only(&["signal", "to", "wait"], problems);
            let to = step.choice("to", TARGETS, problems);
            let signal = step.read("signal", |value| signal(text(value)?), problems)?;
            Some(Step::Signal(SignalStep {
                signal,
                to: to.unwrap_or_default(),
                wait: wait.unwrap_or(defaults.wait),
            }))
        }
        (false, false) if step.has("wait") => {
            step.allow_only(&["wait"], problems);
            wait.map(Step::Wait)
        }
        (false, false) => {
            step.allow_only(&["run", "signal", "wait", "timeout", "to"], problems);
            let origin = step.document.origin(&step.span);
            problems.add(
                origin,
                &step.name,
                format!("this step does nothing; {FORMS}"),
            );
            None
        }
    }
}

/// Program and arguments.
fn command(
    step: &Section<'_>,
    path: &SearchPath,
    problems: &mut Problems,
) -> Option<(PathBuf, Vec<String>)> {
    let value = step.get("run")?;
    let words = match value.get_ref() {
        DeValue::Array(words) if !words.is_empty() => words,
        DeValue::Array(_) => {
            step.wrong("run", "it is empty; name a program", problems);
            return None;
        }
        other => {
            let text = format!(
                "an array of program and arguments is wanted here, not {}; no shell takes a line apart",
                kind(other)
            );
            step.wrong("run", text, problems);
            return None;
        }
    };
    let name = step.path("run");
    let problems_full = problems.is_full();
    let mut wrong = |word: &Spanned<DeValue<'_>>, text: String| {
        problems.add(step.document.origin(&word.span()), &name, text);
    };
    let mut program = None;
    let mut arguments = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let read = text(word.get_ref()).and_then(|text| argument(index, text));
        match read {
            // The lookup takes time, and its problem would not be shown.
            Ok(_) if index == 0 && problems_full => return None,
            Ok(text) if index == 0 => match path.find(&text) {
                Ok(found) => program = Some(found),
                Err(text) => wrong(word, text),
            },
            Ok(text) => arguments.push(text),
            Err(text) => wrong(word, text),
        }
    }
    let program = program?;
    (arguments.len() + 1 == words.len()).then_some((program, arguments))
}

/// A word of a command, if everything that looks like a placeholder is one.
pub(super) fn argument(index: usize, text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("there is a NUL character in it, which no argument can hold".to_owned());
    }
    for found in placeholders(text) {
        if index == 0 {
            return Err(format!(
                "{found} is not replaced in the program's name; write the name itself"
            ));
        }
        if !PLACEHOLDERS.contains(&found) {
            let hint = match nearest(found, PLACEHOLDERS.iter().copied()) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("there are {}", PLACEHOLDERS.join(" ")),
            };
            return Err(format!("{found} stands for nothing; {hint}"));
        }
    }
    Ok(text.to_owned())
}

/// Text in the form of a placeholder: lower-case words in braces. Other braces are literal.
fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices('{').filter_map(|(start, _)| {
        let rest = text.get(start..)?;
        let other = |byte: u8| !byte.is_ascii_lowercase() && !b"-_".contains(&byte);
        // No further than the end of the word: there may be any number of unclosed braces.
        let length = rest.bytes().skip(1).position(other)?;
        let word = rest.get(..length + 2)?;
        (length > 0 && word.ends_with('}')).then_some(word)
    })
}

fn signal(name: &str) -> Result<Signal, String> {
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    let found = Signal::ALL.into_iter().find(|known| known.name() == bare);
    found.ok_or_else(|| {
        let names = Signal::ALL.map(Signal::name);
        format!(
            "{name:?} is no signal that can be sent; there are {}",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_lower_case_words_in_braces() {
        let found = |text| placeholders(text).collect::<Vec<_>>();
        assert_eq!(found("a{pid}b{silence-ms}"), ["{pid}", "{silence-ms}"]);
        assert_eq!(found("{{pid}}"), ["{pid}"]);
        for text in [
            "{",
            "}",
            "{}",
            "{PID}",
            "{a b}",
            r#"{"a":1}"#,
            "{pid",
            "${1}",
            "{pid{",
            "ä{ü}",
            "{aü}",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn signals_go_with_and_without_their_prefix() {
        assert_eq!(signal("TERM"), Ok(Signal::Term));
        assert_eq!(signal("SIGUSR1"), Ok(Signal::Usr1));
        for name in ["term", "SEGV", "15", ""] {
            assert!(signal(name).is_err(), "{name}");
        }
    }
}
