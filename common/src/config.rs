//! Reading configuration: one TOML table, overlaid by environment variables, overlaid by flags, then checked as
//! a whole. Unknown keys are errors that suggest the nearest known one.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Environment variables `DOZO__SECTION__KEY` set `section.key`.
const ENV_PREFIX: &str = "DOZO__";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("configuration file {path} cannot be read", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration file {path} is not valid TOML", path = .path.display())]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("configuration is not valid: {0}")]
    Invalid(String),
}

/// Reads `file` if given, then lays `environment` and `flags` (dotted key, value) over it.
pub fn load<C: DeserializeOwned>(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: impl IntoIterator<Item = (String, Value)>,
) -> Result<C, ConfigError> {
    let mut table = match file {
        None => Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.into(), source })?;
            text.parse().map_err(|e| ConfigError::Toml { path: path.into(), source: Box::new(e) })?
        }
    };
    for (name, text) in environment {
        if let Some(key) = name.strip_prefix(ENV_PREFIX) {
            let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
            set(&mut table, &path, scalar(&text))?;
        }
    }
    for (key, value) in flags {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        set(&mut table, &path, value)?;
    }
    Value::Table(table).try_into().map_err(|e: toml::de::Error| ConfigError::Invalid(suggest(e.message())))
}

/// Numbers and booleans in the environment are typed as TOML would type them; all else is text.
fn scalar(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return Value::Integer(number);
    }
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => Value::String(text.to_owned()),
    }
}

fn set(table: &mut Table, path: &[String], value: Value) -> Result<(), ConfigError> {
    let Some((last, sections)) = path.split_last() else { return Ok(()) };
    let mut table = table;
    for section in sections {
        let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        table = entry
            .as_table_mut()
            .ok_or_else(|| ConfigError::Invalid(format!("{section} is a value, not a section")))?;
    }
    table.insert(last.clone(), value);
    Ok(())
}

/// Adds "did you mean" to serde's "unknown field `x`, expected one of `a`, `b`".
fn suggest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.contains("unknown field"), quoted.next()) else {
        return message.to_owned();
    };
    let nearest = quoted.min_by_key(|known| distance(unknown, known));
    match nearest {
        Some(known) if distance(unknown, known) <= 3 => {
            format!("unknown key {unknown}: did you mean {known}?")
        }
        _ => message.to_owned(),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Reads a count of bytes: digits with an optional `KiB`, `MiB`, `GiB`, `TiB` (or `kB`, `MB`, `GB`, `TB`).
pub fn parse_bytes(text: &str) -> Result<u64, ConfigError> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(invalid_bytes(text)),
    };
    let number: u64 = number.parse().map_err(|_| invalid_bytes(text))?;
    number.checked_mul(factor).ok_or_else(|| invalid_bytes(text))
}

fn invalid_bytes(text: &str) -> ConfigError {
    ConfigError::Invalid(format!("{text:?} is not a count of bytes: use digits and a unit, as in 20GiB"))
}

/// A count of bytes as people read it.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Example {
        listen: String,
        #[serde(default)]
        limits: Limits,
    }

    #[derive(Debug, Default, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Limits {
        body_bytes: u64,
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "listen = \"a\"\n[limits]\nbody_bytes = 1\n").unwrap();
        let env = [("DOZO__LIMITS__BODY_BYTES".to_owned(), "2".to_owned()), ("HOME".into(), "x".into())];
        let flags = [("listen".to_owned(), Value::String("b".into()))];
        let config: Example = load(Some(&path), env, flags).unwrap();
        assert_eq!(config, Example { listen: "b".into(), limits: Limits { body_bytes: 2 } });
    }

    #[test]
    fn an_unknown_key_gets_a_suggestion() {
        let flags = [("lisen".to_owned(), Value::String("b".into()))];
        let error = load::<Example>(None, [], flags).unwrap_err().to_string();
        assert!(error.contains("did you mean listen?"), "{error}");
    }

    #[test]
    fn byte_counts_have_units() {
        assert_eq!(parse_bytes("20GiB").unwrap(), 20 << 30);
        assert_eq!(parse_bytes("1 MB").unwrap(), 1_000_000);
        assert!(
            parse_bytes("20 XB").is_err() && parse_bytes("").is_err() && parse_bytes("99999999TiB").is_err()
        );
        assert_eq!(show_bytes(1536 << 20), "1.5 GiB");
    }
}
