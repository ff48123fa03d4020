//! Settings against what is known of them: unknown keys, wrong types, numbers out of bounds, and what is missing. Each
//! finding names the key, what it may be, and where the value came from.

use toml::{Table, Value};

use super::schema::{Key, Kind, Schema};
use super::{Settings, bytes, suggest};

/// All that is wrong, in words.
pub fn check(settings: &mut Settings, schema: &Schema) -> Vec<String> {
    let mut table = std::mem::take(&mut settings.table);
    let mut check = Check { settings, found: Vec::new() };
    check.section("", &mut table, &schema.keys);
    let found = check.found;
    settings.table = table;
    found
}

struct Check<'a> {
    settings: &'a Settings,
    found: Vec<String>,
}

impl Check<'_> {
    fn section(&mut self, prefix: &str, table: &mut Table, keys: &[Key]) {
        for (name, value) in table.iter_mut() {
            let path = format!("{prefix}{name}");
            match keys.iter().find(|key| key.name == *name) {
                Some(key) => self.value(&path, value, &key.kind),
                None => {
                    let hint = suggest::hint(name, keys.iter().map(|key| key.name.as_str()));
                    self.found.push(format!("unknown key {path}{}{hint}", self.settings.place(&path)));
                }
            }
        }
        for key in keys {
            // A section that is there with all its keys left out is no mistake of its own.
            if key.is_required && !table.contains_key(&key.name) {
                self.found.push(missing(&format!("{prefix}{}", key.name)));
            }
        }
    }

    fn value(&mut self, path: &str, value: &mut Value, kind: &Kind) {
        let is_of_bytes = super::Unit::of(path).is_some_and(super::Unit::is_of_bytes);
        match (kind, &mut *value) {
            (Kind::Free, _) | (Kind::Text, Value::String(_)) | (Kind::Switch, Value::Boolean(_)) => {}
            (Kind::Section(keys), Value::Table(table)) => self.section(&format!("{path}."), table, keys),
            (Kind::List(item), Value::Array(items)) => {
                for (at, value) in items.iter_mut().enumerate() {
                    match (&**item, &mut *value) {
                        (Kind::Section(keys), Value::Table(table)) => {
                            self.section(&format!("{path}[{at}]."), table, keys);
                        }
                        (kind, _) => self.value(&format!("{path}[{at}]"), value, kind),
                    }
                }
            }
            (Kind::Choice(words), Value::String(word)) if words.contains(word) => {}
            (Kind::Choice(words), Value::String(word)) => {
                let hint = suggest::hint(word, words.iter().map(String::as_str));
                self.wrong(path, &format!("is {word:?}, not {kind}{hint}"));
            }
            (Kind::Number { .. }, Value::String(text)) if is_of_bytes => match bytes::parse_bytes(text) {
                Ok(count) => {
                    *value = Value::Integer(i64::try_from(count).unwrap_or(i64::MAX));
                    self.value(path, value, kind);
                }
                Err(_) => self.wrong(path, &format!("is {text:?}, not a count of bytes, as in 20GiB")),
            },
            (Kind::Number { min, max }, Value::Integer(number)) => {
                let below = min.is_some_and(|min| *number < min);
                let above = max.is_some_and(|max| *number > max);
                if below || above {
                    self.wrong(path, &format!("is {number}, not a {kind}"));
                }
            }
            (_, other) => {
                // The value itself is not repeated: a wrong type can be a secret in the wrong place.
                let given = other.type_str();
                self.wrong(path, &format!("must be {}, and is a TOML {given}", article(kind)));
            }
        }
    }

    fn wrong(&mut self, path: &str, what: &str) {
        self.found.push(format!("{path}{} {what}", self.settings.place(path)));
    }
}

fn article(kind: &Kind) -> String {
    match kind {
        Kind::Text | Kind::Choice(_) | Kind::Switch => kind.to_string(),
        _ => format!("a {kind}"),
    }
}

fn missing(path: &str) -> String {
    let variable = super::variable(path);
    match path.contains('[') {
        true => format!("{path} is not set"),
        false => format!("{path} is not set: give it as `{path}` in the file, as {variable} or as a flag"),
    }
}
