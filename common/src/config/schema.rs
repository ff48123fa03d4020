//! What is known of a server's settings before any is given: taken from the fields of its `Config` with their docs, types,
//! bounds and defaults. Settings are checked against it, and the reference is printed from it.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::live;

/// The settings of one server.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// In the order of their names.
    pub keys: Vec<Key>,
}

/// One setting, or a section of settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub name: String,
    /// What it is for.
    pub about: String,
    pub kind: Kind,
    /// What it is if nothing is said; `None` where something must be said, or where nothing stands for "not set".
    pub default: Option<Value>,
    pub is_required: bool,
    /// Whether a running server takes a change over.
    pub is_live: bool,
}

/// What a setting may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Text,
    /// One of these words.
    Choice(Vec<String>),
    Number {
        min: Option<i64>,
        max: Option<i64>,
    },
    Switch,
    List(Box<Kind>),
    Section(Vec<Key>),
    /// Anything; the server itself looks at it.
    Free,
}

/// What a number counts. Names of settings tell it with their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    BytesPerSecond,
    Milliseconds,
    Hours,
}

impl Unit {
    pub fn of(name: &str) -> Option<Self> {
        let name = name.strip_suffix("_max").unwrap_or(name);
        let ends = [
            ("bytes", Self::Bytes),
            ("bytes_per_s", Self::BytesPerSecond),
            ("_ms", Self::Milliseconds),
            ("_hours", Self::Hours),
        ];
        ends.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, unit)| unit)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::BytesPerSecond => "bytes a second",
            Self::Milliseconds => "milliseconds",
            Self::Hours => "hours",
        }
    }

    pub fn is_of_bytes(self) -> bool {
        matches!(self, Self::Bytes | Self::BytesPerSecond)
    }
}

impl Schema {
    /// The settings that `C` has fields for.
    pub fn of<C: JsonSchema>() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<C>();
        Self { keys: keys(schema.as_value()) }
    }

    /// With the settings of another beside them.
    pub fn and(mut self, other: Self) -> Self {
        self.keys.extend(other.keys);
        self.keys.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    /// The setting at a path of names.
    pub fn find(&self, path: &[&str]) -> Option<&Key> {
        let (last, sections) = path.split_last()?;
        let mut keys = &self.keys;
        for section in sections {
            match &keys.iter().find(|key| key.name == *section)?.kind {
                Kind::Section(inner) => keys = inner,
                _ => return None,
            }
        }
        keys.iter().find(|key| key.name == *last)
    }

    /// Every single setting with its dotted path; sections are gone into.
    pub fn leaves(&self) -> Vec<(String, &Key)> {
        fn collect<'a>(prefix: &str, keys: &'a [Key], into: &mut Vec<(String, &'a Key)>) {
            for key in keys {
                let path = format!("{prefix}{}", key.name);
                match &key.kind {
                    Kind::Section(inner) => collect(&format!("{path}."), inner, into),
                    _ => into.push((path, key)),
                }
            }
        }
        let mut leaves = Vec::new();
        collect("", &self.keys, &mut leaves);
        leaves
    }
}

fn keys(object: &Value) -> Vec<Key> {
    let required: Vec<&str> = strings(&object["required"]).collect();
    let Some(properties) = object["properties"].as_object() else { return Vec::new() };
    let mut keys: Vec<Key> = properties
        .iter()
        .map(|(name, schema)| Key {
            name: name.clone(),
            about: schema["description"].as_str().unwrap_or_default().replace('\n', " "),
            kind: kind(schema),
            default: Some(&schema["default"]).filter(|value| !value.is_null()).cloned(),
            is_required: required.contains(&name.as_str()),
            is_live: schema[live::MARK] == true,
        })
        .collect();
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    keys
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn kind(schema: &Value) -> Kind {
    // What may be left out is described as itself or nothing.
    if let Some(options) = schema["anyOf"].as_array() {
        let of_value = options.iter().find(|option| option["type"] != "null");
        return of_value.map_or(Kind::Free, kind);
    }
    let words: Vec<String> = match schema["oneOf"].as_array() {
        Some(words) => words.iter().filter_map(|word| word["const"].as_str().map(str::to_owned)).collect(),
        None => strings(&schema["enum"]).map(str::to_owned).collect(),
    };
    if !words.is_empty() {
        return Kind::Choice(words);
    }
    let of_type = schema["type"].as_str().or_else(|| strings(&schema["type"]).find(|t| *t != "null"));
    match of_type {
        Some("string") => Kind::Text,
        Some("boolean") => Kind::Switch,
        Some("integer") => {
            // TOML's integers end at 2^63.
            let bound = |name: &str| schema[name].as_i64();
            Kind::Number { min: bound("minimum"), max: bound("maximum") }
        }
        Some("array") => Kind::List(Box::new(kind(&schema["items"]))),
        Some("object") if schema["properties"].is_object() => Kind::Section(keys(schema)),
        _ => Kind::Free,
    }
}

impl Key {
    /// What a number of this setting counts.
    pub fn unit(&self) -> Option<Unit> {
        Unit::of(&self.name).filter(|_| matches!(self.kind, Kind::Number { .. }))
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text => f.write_str("text"),
            Self::Choice(words) => f.write_str(&words.join(" or ")),
            Self::Number { min, max } => match (min, max) {
                (Some(min), Some(max)) => write!(f, "number, {min} to {max}"),
                (Some(min), None) => write!(f, "number, at least {min}"),
                (None, Some(max)) => write!(f, "number, at most {max}"),
                (None, None) => f.write_str("number"),
            },
            Self::Switch => f.write_str("true or false"),
            Self::List(item) if matches!(**item, Self::Section(_)) => f.write_str("list of sections"),
            Self::List(item) => write!(f, "list of {item}"),
            Self::Section(_) | Self::Free => f.write_str("section"),
        }
    }
}
