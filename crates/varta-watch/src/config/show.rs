//! `--print-config`: the settings in force as a configuration file that yields the same again.

use std::fmt::Write;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file::{Document, Parsed};
use super::problems::Origin;
use super::section::integer_text;
use super::sources::Setting;
use super::table::Kind;

const HEAD: &str = "\
# The settings in force. Each line says where its value comes from; those marked * need a restart to change,
# the others take effect on SIGHUP.
";

/// All settings, rules and ladders.
pub(super) fn page(settings: &[Setting], file: Option<&Parsed<'_>>) -> String {
    let mut page = HEAD.to_owned();
    for setting in settings {
        line(&mut page, setting);
    }
    if let Some(Parsed { document, root }) = file {
        for (key, value) in root.get_ref() {
            written(&mut page, document, key.get_ref(), value.get_ref());
        }
    }
    page
}

fn line(page: &mut String, setting: &Setting) {
    let key = &setting.key;
    let star = if setting.reloaded { "" } else { " *" };
    let origin = match &setting.origin {
        Origin::Default => "default".to_owned(),
        Origin::Environment => format!("environment, {}", super::problems::variable(key)),
        Origin::Flag => format!("flag, --{key}"),
        Origin::File(place) => place.to_string(),
    };
    // Writing to a string cannot fail.
    let _ = match literal(setting) {
        None => writeln!(page, "# {key} is not set{star}"),
        Some(Err(())) => writeln!(
            page,
            "# {key} is not text and cannot stand in a file ({origin}){star}"
        ),
        Some(Ok(value)) => writeln!(page, "{key} = {value}  # {origin}{star}"),
    };
}

/// The value in the notation of the file; an error if there is none for it, nothing if it is not set.
fn literal(setting: &Setting) -> Option<Result<String, ()>> {
    let texts: Option<Vec<&str>> = setting.texts.iter().map(|text| text.to_str()).collect();
    let Some(texts) = texts else {
        return Some(Err(()));
    };
    let first = texts.first()?;
    Some(Ok(match setting.kind {
        Kind::List => {
            let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            format!("[{}]", quoted.join(", "))
        }
        Kind::Bool | Kind::Integer => (*first).to_owned(),
        Kind::NumberOrText => match first.parse::<f64>() {
            // TOML requires 0.5, not .5
            Ok(number) => number.to_string(),
            Err(_) => quoted(first),
        },
        Kind::Text | Kind::Duration => quoted(first),
    }))
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A key of the file that is no setting: rules and ladders, as they were written.
fn written(page: &mut String, document: &Document, key: &str, value: &DeValue<'_>) {
    match (key, value) {
        ("recovery", DeValue::Table(ladders)) => {
            for (name, ladder) in ladders {
                if let DeValue::Table(ladder) = ladder.get_ref() {
                    let _ = writeln!(page, "\n[recovery.{}]", bare_or_quoted(name.get_ref()));
                    entries(page, document, ladder);
                }
            }
        }
        ("agent", DeValue::Array(rules)) => {
            for rule in rules {
                if let DeValue::Table(rule) = rule.get_ref() {
                    page.push_str("\n[[agent]]\n");
                    entries(page, document, rule);
                }
            }
        }
        _ => {}
    }
}

fn entries(page: &mut String, document: &Document, table: &DeTable<'_>) {
    for (key, value) in table {
        let place = match document.origin(&key.span()) {
            Origin::File(place) => place.to_string(),
            _ => String::new(),
        };
        let name = bare_or_quoted(key.get_ref());
        let _ = writeln!(page, "{name} = {}  # {place}", inline(value));
    }
}

fn bare_or_quoted(key: &str) -> String {
    let bare = |char: char| char.is_ascii_alphanumeric() || "-_".contains(char);
    match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => quoted(key),
    }
}

/// A value in one line.
fn inline(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => integer_text(number),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => value.to_string(),
        DeValue::Array(items) => {
            let items: Vec<String> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| {
                format!("{} = {}", bare_or_quoted(key.get_ref()), inline(value))
            });
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}
