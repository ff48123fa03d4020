//! Reading configuration: defaults, overlaid by a TOML file, overlaid by environment variables, overlaid by flags, then
//! checked as a whole. Of each value it is known where it came from.
//!
//! | part | module |
//! |---|---|
//! | what settings a server has | [`schema`] |
//! | what is wrong with those given | [`check`] |
//! | settings that may change while it runs | [`live`] |
//! | what may be shown | [`redact`] |
//! | secrets in files | [`credential`] |
//!
//! No setting is a secret. What must stay secret is in files that settings name, or in systemd's credentials.

mod bytes;
mod check;
mod live;
mod redact;
pub mod schema;
mod suggest;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

pub use bytes::{parse_bytes, show_bytes};
pub use live::{Live, LiveSettings};
pub use redact::{redact, redact_value};
pub use schema::{Key, Kind, Schema, Unit};

/// Environment variables `DOZO__SECTION__KEY` set `section.key`.
const ENV_PREFIX: &str = "DOZO__";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {path} cannot be read", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration file {path} is not valid TOML, line {line}: {problem}", path = .path.display())]
    Toml { path: PathBuf, line: usize, problem: String },
    #[error("configuration is not valid: {0}")]
    Invalid(String),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A setting on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// Dotted.
    pub key: String,
    /// As it is typed: `--listen`.
    pub flag: String,
    pub value: Value,
}

/// What was set, and where. What was not has its default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    pub table: Table,
    /// By dotted key.
    sources: BTreeMap<String, Source>,
}

impl Settings {
    /// Settings that the program itself made.
    pub fn of(table: Table) -> Self {
        Self { table, sources: BTreeMap::new() }
    }

    /// Reads `file` if given, lays `environment` and `flags` over it, and checks the whole.
    pub fn read(
        schema: &Schema,
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        flags: impl IntoIterator<Item = Flag>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        let mut found = Vec::new();
        if let Some(path) = file {
            settings.read_file(path)?;
        }
        for (name, text) in environment {
            if let Some(path) = name.strip_prefix(ENV_PREFIX).map(str::to_lowercase) {
                let path: Vec<&str> = path.split("__").collect();
                match schema.find(&path) {
                    Some(key) => {
                        let value = typed(&text, &key.kind);
                        let source = Source::Variable(name.clone());
                        found.extend(settings.set(&path, value, source).err());
                    }
                    None => found.push(unknown_variable(schema, &name)),
                }
            }
        }
        for Flag { key, flag, value } in flags {
            let path: Vec<&str> = key.split('.').collect();
            found.extend(settings.set(&path, value, Source::Flag(flag)).err());
        }
        found.extend(check::check(&mut settings, schema));
        if found.is_empty() { Ok(settings) } else { Err(ConfigError::Invalid(found.join("; "))) }
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let line_at = |offset: usize| 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        // The line itself is not repeated, there could be a secret in it.
        let invalid = |error: toml::de::Error| ConfigError::Toml {
            path: path.into(),
            line: line_at(error.span().map_or(0, |span| span.start)),
            problem: error.message().to_owned(),
        };
        let places = DeTable::parse(&text).map_err(invalid)?;
        let mut lines = Vec::new();
        gather("", places.get_ref(), &mut lines);
        for (key, offset) in lines {
            self.sources.insert(key, Source::File { path: path.into(), line: line_at(offset) });
        }
        self.table = text.parse().map_err(invalid)?;
        Ok(())
    }

    fn set(&mut self, path: &[&str], value: Value, source: Source) -> Result<(), String> {
        let Some((last, sections)) = path.split_last() else { return Ok(()) };
        let mut table = &mut self.table;
        for section in sections {
            let entry = table.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            table =
                entry.as_table_mut().ok_or_else(|| format!("{section} must be a section, not a value"))?;
        }
        table.insert((*last).to_owned(), value);
        let key = path.join(".");
        // Of a list or section that is replaced nothing is left.
        self.sources
            .retain(|old, _| !old.strip_prefix(&key).is_some_and(|rest| rest.starts_with(['[', '.'])));
        self.sources.insert(key, source);
        Ok(())
    }

    /// Where the value of a dotted key came from, or that of what it is part of; `None`: nothing was said.
    pub fn source(&self, key: &str) -> Option<&Source> {
        let mut key = key;
        loop {
            if let Some(source) = self.sources.get(key) {
                return Some(source);
            }
            key = key.rsplit_once(['.', '['])?.0;
        }
    }

    /// The value of a dotted key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let mut path = key.split('.');
        let first = self.table.get(path.next()?)?;
        path.try_fold(first, |value, name| value.as_table()?.get(name))
    }

    /// Has a dotted key as `other` has it.
    pub fn take_from(&mut self, other: &Self, key: &str) {
        let path: Vec<&str> = key.split('.').collect();
        let Some((last, sections)) = path.split_last() else { return };
        let mut table = &mut self.table;
        for section in sections {
            let entry = table.entry((*section).to_owned()).or_insert_with(|| Value::Table(Table::new()));
            let Some(inner) = entry.as_table_mut() else { return };
            table = inner;
        }
        match other.get(key) {
            Some(value) => table.insert((*last).to_owned(), value.clone()),
            None => table.remove(*last),
        };
    }

    /// ` (node.toml:3)`, for after a key.
    fn place(&self, key: &str) -> String {
        self.source(key).map_or_else(String::new, |source| format!(" ({source})"))
    }

    /// Takes a section out.
    pub fn take_section<C: DeserializeOwned + Default>(&mut self, name: &str) -> Result<C, ConfigError> {
        match self.table.remove(name) {
            None => Ok(C::default()),
            Some(section) => self.typed(section, name),
        }
    }

    /// The settings as a server takes them.
    pub fn parse<C: DeserializeOwned>(&self) -> Result<C, ConfigError> {
        self.typed(Value::Table(self.table.clone()), "")
    }

    fn typed<C: DeserializeOwned>(&self, value: Value, under: &str) -> Result<C, ConfigError> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let key = match (under, path.as_str()) {
                ("", path) => path.to_owned(),
                (under, ".") => under.to_owned(),
                (under, path) => format!("{under}.{path}"),
            };
            let place = self.place(&key);
            ConfigError::Invalid(format!("{key}{place}: {}", error.into_inner().message()))
        })
    }
}

/// The offsets of all keys in a file.
fn gather(prefix: &str, table: &DeTable<'_>, into: &mut Vec<(String, usize)>) {
    for (name, value) in table {
        let path = format!("{prefix}{}", name.get_ref());
        gather_value(&path, name.span().start, value, into);
    }
}

fn gather_value(path: &str, offset: usize, value: &Spanned<DeValue<'_>>, into: &mut Vec<(String, usize)>) {
    into.push((path.to_owned(), offset));
    match value.get_ref() {
        DeValue::Table(inner) => gather(&format!("{path}."), inner, into),
        DeValue::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                gather_value(&format!("{path}[{at}]"), item.span().start, item, into);
            }
        }
        _ => {}
    }
}

/// The variable that sets a dotted key.
pub fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

fn unknown_variable(schema: &Schema, name: &str) -> String {
    let known: Vec<String> = schema.leaves().iter().map(|(key, _)| variable(key)).collect();
    let hint = suggest::hint(name, known.iter().map(String::as_str));
    format!("unknown environment variable {name}{hint}")
}

/// A variable's text as the setting's type has it; what does not fit stays text, and is found wrong.
fn typed(text: &str, kind: &Kind) -> Value {
    let as_toml = || format!("value = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
    let given = || Value::String(text.to_owned());
    match kind {
        Kind::Text | Kind::Choice(_) => given(),
        Kind::Number { .. } => text.parse().map_or_else(|_| given(), Value::Integer),
        Kind::Switch => text.parse().map_or_else(|_| given(), Value::Boolean),
        Kind::List(item) => match as_toml() {
            Some(list @ Value::Array(_)) => list,
            // Words are also understood as they are often written: one,two.
            _ if !matches!(**item, Kind::Section(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|word| typed(word, item)).collect())
            }
            _ => given(),
        },
        Kind::Section(_) | Kind::Free => as_toml().unwrap_or_else(given),
    }
}

/// Where systemd put a credential of this name for this process, if it did (`LoadCredential=`).
pub fn credential(name: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests;
