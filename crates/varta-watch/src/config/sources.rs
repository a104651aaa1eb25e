//! Merges flags, environment and file: a flag overrides a variable, a variable the file. The result becomes the
//! defaults of the command line's parser, so one set of parsers reads them all.

use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::Spanned;
use toml::de::DeValue;

use super::file::{Document, Parsed};
use super::problems::{Origin, Problems, variable};
use super::section::{integer_text, kind as shown_kind};
use super::table::{self, Kind};
use super::units::quoted;
use super::{no_effect, old_flags};

/// The flag that names the file.
const CONFIG: &str = "config";

/// Each value is parsed by itself, and names are looked up. An operator with more users than that uses a group.
const LIST_VALUES_MAX: usize = 256;

/// The origin of the settings at the start, to be read again on SIGHUP.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    /// The program's name first.
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(OsString, OsString)>,
}

/// The value of a setting in its original form.
#[derive(Clone, Debug)]
struct SourcedValue {
    texts: Vec<OsString>,
    origin: Origin,
}

/// A setting as it is in force.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The flag without its dashes.
    pub(super) key: String,
    pub(super) kind: Kind,
    /// Empty if it is not set; several of a list.
    pub(super) texts: Vec<OsString>,
    pub(super) origin: Origin,
    /// A change takes effect on SIGHUP.
    pub(super) reloaded: bool,
}

/// Everything that was given, not yet checked as a whole.
pub(super) struct Gathered {
    pub(super) matches: ArgMatches,
    pub(super) settings: Vec<Setting>,
    pub(super) notices: Vec<String>,
}

impl Sources {
    /// Those of this process.
    pub(crate) fn of_process(arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            arguments: arguments.into_iter().collect(),
            environment: std::env::vars_os().collect(),
        }
    }

    /// Splits the command line; values are not checked yet.
    pub(super) fn flags(&self) -> Result<ArgMatches, clap::Error> {
        table::unjudged_command().try_get_matches_from(&self.arguments)
    }

    pub(super) fn has_argument(&self, argument: &str) -> bool {
        self.arguments.iter().any(|given| given == argument)
    }

    /// Reads the file, if one is given.
    pub(super) fn document(&self, flags: &ArgMatches, problems: &mut Problems) -> Option<Document> {
        let path = flags.get_one::<PathBuf>(CONFIG).cloned();
        let path = path.or_else(|| self.variable(CONFIG).map(PathBuf::from))?;
        Document::read(&path, problems)
    }

    /// Gathers all settings.
    pub(super) fn gather(
        &self,
        flags: &ArgMatches,
        file: Option<&Parsed<'_>>,
        problems: &mut Problems,
    ) -> Result<Gathered, clap::Error> {
        let command = table::command();
        let mut notices = Vec::new();
        let mut values = BTreeMap::new();
        if let Some(file) = file {
            read_file(file, &command, problems, &mut values);
        }
        self.read_environment(&command, problems, &mut notices, &mut values);
        read_flags(flags, &command, problems, &mut notices, &mut values);
        for (key, given) in &values {
            problems.set_origin(key, given.origin.clone());
        }
        let merged = with_defaults(command.clone(), &values);
        let matches = merged.try_get_matches_from(self.arguments.first())?;
        let settings = in_force(&command, &matches, &values);
        Ok(Gathered {
            matches,
            settings,
            notices,
        })
    }

    /// A variable that is set to something.
    pub(super) fn variable(&self, key: &str) -> Option<&OsStr> {
        let name = variable(key);
        let mut variables = self.environment.iter();
        variables
            .find(|(known, value)| *known == *name && !value.is_empty())
            .map(|(_, value)| value.as_os_str())
    }

    /// The search path of children that inherit the environment.
    pub(super) fn path_of_children(&self, inherit: bool) -> Option<String> {
        let path = self.environment.iter().find(|(name, _)| name == "PATH");
        let path = path.filter(|_| inherit)?;
        path.1.to_str().map(str::to_owned)
    }

    fn read_environment(
        &self,
        command: &Command,
        problems: &mut Problems,
        notices: &mut Vec<String>,
        values: &mut BTreeMap<String, SourcedValue>,
    ) {
        let is_known =
            |key: &str| key == CONFIG || table::settings(command).any(|(known, _)| known == key);
        let names = self.environment.iter().map(|(name, _)| name);
        for name in names.filter_map(|name| name.to_str()) {
            let Some(key) = key_of(name) else {
                continue;
            };
            if let Some(text) = old_flags::removed(&key) {
                problems.add(Origin::Environment, &key, text);
            } else if let Some(why) = old_flags::ignored(&key) {
                notices.push(format!("{name} has no effect: {why}"));
            } else if variable(&key) != name || !is_known(&key) {
                let hint = match table::by_alias(command, &key) {
                    Some(key) => format!("; it is called {} here", variable(key)),
                    None => match table::meant(command, &key, &[CONFIG]) {
                        Some(key) => format!("; did you mean {}?", variable(key)),
                        None => String::new(),
                    },
                };
                notices.push(format!(
                    "{name} in the environment is no setting of the observer{hint}"
                ));
            }
        }
        for (key, arg) in table::settings(command) {
            let Some(value) = self.variable(key) else {
                continue;
            };
            let texts = match table::kind(arg) {
                Kind::List => split(value, table::separator(key)),
                _ => vec![value.to_owned()],
            };
            take(arg, key, texts, &Origin::Environment, problems, values);
        }
    }
}

/// The key that corresponds to a variable of the observer, if there is one.
fn key_of(variable: &str) -> Option<String> {
    let name = variable.strip_prefix("VARTA_")?;
    Some(name.to_lowercase().replace('_', "-"))
}

/// Reads the flags of the command line.
fn read_flags(
    flags: &ArgMatches,
    command: &Command,
    problems: &mut Problems,
    notices: &mut Vec<String>,
    values: &mut BTreeMap<String, SourcedValue>,
) {
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        let is_given = flags.value_source(id) == Some(ValueSource::CommandLine);
        let Some(key) = table::key(arg).filter(|_| is_given) else {
            continue;
        };
        if let Some(text) = old_flags::removed(key) {
            problems.add(Origin::Flag, key, text);
        } else if let Some(why) = old_flags::ignored(key) {
            notices.push(no_effect(key, why));
        } else if table::is_setting(arg) {
            let texts = flags.get_raw(id).into_iter().flatten();
            let texts = texts.map(OsStr::to_owned).collect();
            take(arg, key, texts, &Origin::Flag, problems, values);
        }
    }
}

/// Takes the value of a flag or a variable, if the setting's parser accepts it.
fn take(
    arg: &Arg,
    key: &str,
    texts: Vec<OsString>,
    origin: &Origin,
    problems: &mut Problems,
    values: &mut BTreeMap<String, SourcedValue>,
) {
    let mut is_good = true;
    for (index, text) in texts.iter().enumerate() {
        let Err(text) = judge(arg, text) else {
            continue;
        };
        is_good = false;
        let text = match texts.len() {
            1 => text,
            _ => format!("value {}: {text}", index + 1),
        };
        problems.add_value(origin.clone(), key, text);
        if problems.is_full() {
            break;
        }
    }
    if is_good {
        let origin = origin.clone();
        values.insert(key.to_owned(), SourcedValue { texts, origin });
    }
}

/// The values in one variable; white space around them and nothing between two separators is no value.
fn split(value: &OsStr, separator: char) -> Vec<OsString> {
    let parts = value.as_bytes().split(|byte| *byte == separator as u8);
    let parts = parts
        .map(<[u8]>::trim_ascii)
        .filter(|part| !part.is_empty());
    parts
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect()
}

/// Reads the keys of the file that are settings.
fn read_file(
    file: &Parsed<'_>,
    command: &Command,
    problems: &mut Problems,
    values: &mut BTreeMap<String, SourcedValue>,
) {
    let Parsed { document, root } = file;
    let settings: BTreeMap<&str, &Arg> = table::settings(command).collect();
    for (key, value) in root.get_ref() {
        let name = key.get_ref().as_ref();
        if ["agent", "recovery"].contains(&name) {
            continue;
        }
        let origin = document.origin(&key.span());
        let Some(arg) = settings.get(name) else {
            problems.add_with(origin, name, || unknown_key(name, command));
            continue;
        };
        if problems.is_unreadable(&origin) {
            problems.set_broken(name);
        } else if let Some(texts) = texts(document, name, arg, value, problems) {
            values.insert(name.to_owned(), SourcedValue { texts, origin });
        }
    }
}

fn unknown_key(name: &str, command: &Command) -> String {
    if let Some(key) = table::by_alias(command, name) {
        return format!("unknown key; it is called {key} here");
    }
    if let Some(text) = old_flags::removed(name) {
        return text.replace("--", "");
    }
    if let Some(why) = old_flags::ignored(name) {
        return format!("it has no effect, take it out: {why}");
    }
    if command
        .get_arguments()
        .any(|arg| table::key(arg) == Some(name))
    {
        return "it can be given on the command line only; take it out".to_owned();
    }
    let dashed = name.replace('_', "-").to_lowercase();
    match table::meant(command, &dashed, &["agent", "recovery"]) {
        Some(key) => format!("unknown key; did you mean {key}?"),
        None => "unknown key; 'varta-watch --help' lists all there are".to_owned(),
    }
}

/// The value of a key as texts, each of which the setting's own parser takes.
fn texts(
    document: &Document,
    key: &str,
    arg: &Arg,
    value: &Spanned<DeValue<'_>>,
    problems: &mut Problems,
) -> Option<Vec<OsString>> {
    let kind = table::kind(arg);
    let mut wrong = |at: &Spanned<DeValue<'_>>, text: String| {
        problems.add_value(document.origin(&at.span()), key, text);
    };
    let items: Vec<&Spanned<DeValue<'_>>> = match (kind, value.get_ref()) {
        (Kind::List, DeValue::Array(items)) if items.len() > LIST_VALUES_MAX => {
            let count = items.len();
            wrong(
                value,
                format!("{count} values, and {LIST_VALUES_MAX} are the most; take some out"),
            );
            return None;
        }
        (Kind::List, DeValue::Array(items)) => items.iter().collect(),
        (Kind::List, other) => {
            let what = shown_kind(other);
            wrong(
                value,
                format!("an array is wanted here, not {what}; write {key} = [\"...\"]"),
            );
            return None;
        }
        _ => vec![value],
    };
    let mut texts = Vec::new();
    let count = items.len();
    for item in items {
        let text = plain(arg, item.get_ref());
        match text.and_then(|text| judge(arg, OsStr::new(&text)).map(|()| text)) {
            Ok(text) => texts.push(OsString::from(text)),
            Err(text) => wrong(item, text),
        }
    }
    (texts.len() == count).then_some(texts)
}

/// A value as it would be written on the command line.
fn plain(arg: &Arg, value: &DeValue<'_>) -> Result<String, String> {
    let what = shown_kind(value);
    let key = table::key(arg).unwrap_or_default();
    // The suggestion must be valid.
    let may_be = |text: &str| judge(arg, OsStr::new(text));
    match (table::kind(arg), value) {
        (Kind::Bool, DeValue::Boolean(value)) => Ok(value.to_string()),
        (Kind::Bool, _) => Err(format!(
            "true or false is wanted here, not {what}; write {key} = true"
        )),
        (Kind::Integer | Kind::NumberOrText, DeValue::Integer(number)) => Ok(integer_text(number)),
        (Kind::Integer, DeValue::String(text)) if text.parse::<u64>().is_ok() => {
            may_be(text)?;
            Err(format!(
                "a whole number is wanted here, not a text; write {key} = {text}"
            ))
        }
        (Kind::Integer, _) => Err(format!(
            "a whole number is wanted here, not {what}; write digits only, without quotes"
        )),
        // A duration without its unit: its parser reports that.
        (Kind::Duration, DeValue::Integer(number)) => Ok(integer_text(number)),
        (Kind::NumberOrText | Kind::Duration, DeValue::Float(number)) => {
            Ok(number.as_str().to_owned())
        }
        (Kind::List, DeValue::Integer(number)) => Ok(integer_text(number)),
        (_, DeValue::String(text)) => Ok(text.to_string()),
        (Kind::Text, DeValue::Integer(number)) => {
            let number = number.as_str();
            may_be(number)?;
            Err(format!(
                "a text is wanted here, not a whole number; write {key} = \"{number}\""
            ))
        }
        (_, _) => Err(format!("a text in quotes is wanted here, not {what}")),
    }
}

/// Whether a setting's parser accepts a text; else why not.
fn judge(arg: &Arg, text: &OsStr) -> Result<(), String> {
    let key = table::key(arg).unwrap_or_default();
    let mut argument = OsString::from(format!("--{key}="));
    argument.push(text);
    let probe = Command::new("varta-watch")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(arg.clone());
    match probe.try_get_matches_from([argument]) {
        Ok(_) => Ok(()),
        Err(error) => Err(reason(&error, table::kind(arg), text)),
    }
}

/// The parser's objection to a value.
fn reason(error: &clap::Error, kind: Kind, text: &OsStr) -> String {
    if text.is_empty() {
        return "it is empty; write a value, or leave it out".to_owned();
    }
    let shown = quoted(&text.to_string_lossy());
    if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue)
        && !valid.is_empty()
    {
        return format!("{shown} is none of {}", valid.join(", "));
    }
    match (error.source(), kind) {
        (Some(source), Kind::Integer) if source.to_string().contains("is not in") => source
            .to_string()
            .replace("is not in", "is not within")
            .replace("..=", " to "),
        (Some(source), Kind::Integer) => format!("{shown}: {source}; write a whole number"),
        (Some(source), _) => source.to_string(),
        (None, _) => "it is not text in UTF-8; write it anew".to_owned(),
    }
}

/// The table with the given values as defaults.
fn with_defaults(command: Command, values: &BTreeMap<String, SourcedValue>) -> Command {
    command.mut_args(|arg| {
        let given = table::key(&arg).and_then(|key| values.get(key));
        match given {
            Some(given) if !given.texts.is_empty() => arg.default_values(given.texts.clone()),
            _ => arg,
        }
    })
}

/// All settings with their values and origins.
fn in_force(
    command: &Command,
    matches: &ArgMatches,
    values: &BTreeMap<String, SourcedValue>,
) -> Vec<Setting> {
    let settings = table::settings(command).map(|(key, arg)| {
        let texts = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
        let given = values.get(key);
        Setting {
            key: key.to_owned(),
            kind: table::kind(arg),
            texts: texts.map(OsStr::to_owned).collect(),
            origin: given.map_or(Origin::Default, |given| given.origin.clone()),
            reloaded: table::is_reloaded(key),
        }
    });
    settings.collect()
}
