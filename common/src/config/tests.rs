use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
struct Example {
    /// Where it listens.
    listen: String,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    sites: Vec<String>,
    #[serde(default)]
    sources: Vec<Place>,
}

#[derive(Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    #[schemars(range(min = 1, max = 4096))]
    body_bytes: u64,
    strict: bool,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
struct Place {
    url: String,
}

fn flag(key: &str, value: &str) -> Flag {
    Flag { key: key.into(), flag: format!("--{key}"), value: Value::String(value.into()) }
}

fn read(file: &str, environment: &[(&str, &str)], flags: Vec<Flag>) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let environment = environment.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    Settings::read(&Schema::of::<Example>(), Some(&path), environment, flags)
        .map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

#[test]
fn flags_win_over_environment_over_file() {
    let file = "listen = \"a\"\n[limits]\nbody_bytes = 1\nstrict = true\n";
    let environment = [("DOZO__LIMITS__BODY_BYTES", "2"), ("HOME", "x")];
    let settings = read(file, &environment, vec![flag("listen", "b")]).unwrap();
    let limits = Limits { body_bytes: 2, strict: true };
    let expected = Example { listen: "b".into(), limits, sites: vec![], sources: vec![] };
    assert_eq!(settings.parse::<Example>().unwrap(), expected);
    let source = |key| settings.source(key).map(ToString::to_string);
    assert_eq!(source("listen").unwrap(), "--listen");
    assert_eq!(source("limits.body_bytes").unwrap(), "DOZO__LIMITS__BODY_BYTES");
    assert!(source("limits.strict").unwrap().ends_with("c.toml:4"));
    assert_eq!(source("sites"), None);
}

#[test]
fn values_from_the_environment_have_the_type_of_their_key() {
    let environment = [
        ("DOZO__LISTEN", "8000"),
        ("DOZO__SITES", "tokyo, osaka"),
        ("DOZO__SOURCES", "[{ url = \"dir:/x\" }]"),
        ("DOZO__LIMITS__BODY_BYTES", "4KiB"),
    ];
    let config: Example = read("", &environment, vec![]).unwrap().parse().unwrap();
    assert_eq!((config.listen.as_str(), config.limits.body_bytes), ("8000", 4096));
    assert_eq!(
        (config.sites, config.sources[0].url.as_str()),
        (vec!["tokyo".into(), "osaka".into()], "dir:/x")
    );
}

#[test]
fn what_is_wrong_names_key_bound_and_place() {
    for (file, environment, message) in [
        ("lisen = \"a\"\nlisten = \"b\"", vec![], "unknown key lisen (c.toml:1): did you mean listen?"),
        (
            "listen = \"a\"\n[limits]\nbody_byte = 1",
            vec![],
            "unknown key limits.body_byte (c.toml:3): did you mean body_bytes?",
        ),
        (
            "listen = \"a\"\n[[sources]]\nurl = \"x\"\n[[sources]]\nuri = \"y\"",
            vec![],
            "unknown key sources[1].uri (c.toml:5): did you mean url?",
        ),
        ("listen = 5", vec![], "listen (c.toml:1) must be text, and is a TOML integer"),
        ("listen = \"a\"\nlimits = 1", vec![], "limits (c.toml:2) must be a section, and is a TOML integer"),
        (
            "listen = \"a\"\n[limits]\n\nbody_bytes = 5000",
            vec![],
            "limits.body_bytes (c.toml:4) is 5000, not a number, 1 to 4096",
        ),
        (
            "listen = \"a\"",
            vec![("DOZO__LIMITS__BODY_BYTES", "0")],
            "limits.body_bytes (DOZO__LIMITS__BODY_BYTES) is 0, not a number, 1 to 4096",
        ),
        ("listen = \"a\"", vec![("DOZO__LIMITS__BODY_BYTES", "many")], "is \"many\", not a count of bytes"),
        (
            "listen = \"a\"",
            vec![("DOZO__LIMITS__STRICT", "maybe")],
            "limits.strict (DOZO__LIMITS__STRICT) must be true or false",
        ),
        (
            "listen = \"a\"",
            vec![("DOZO__LIMIT__STRICT", "true")],
            "unknown environment variable DOZO__LIMIT__STRICT: did you mean DOZO__LIMITS__STRICT?",
        ),
        ("", vec![], "listen is not set: give it as `listen` in the file, as DOZO__LISTEN or as a flag"),
        ("listen = \"a\"\n= b", vec![], "c.toml is not valid TOML, line 2"),
    ] {
        let error = read(file, &environment, vec![]).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let error = read("listen = 1\nsights = []", &[("DOZO__X", "1")], vec![]).unwrap_err();
    for part in ["listen (c.toml:1)", "unknown key sights", "DOZO__X"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_broken_line_is_not_repeated() {
    let error = read("listen = \"hush\" \"hush\"", &[], vec![]).unwrap_err();
    assert!(error.contains("line 1") && !error.contains("hush"), "{error}");
}

#[test]
fn a_schema_knows_docs_defaults_bounds_and_units() {
    let schema = Schema::of::<Example>();
    let listen = schema.find(&["listen"]).unwrap();
    assert_eq!(
        (listen.about.as_str(), &listen.kind, listen.is_required),
        ("Where it listens.", &Kind::Text, true)
    );
    let body = schema.find(&["limits", "body_bytes"]).unwrap();
    assert_eq!(
        (body.unit(), &body.kind),
        (Some(Unit::Bytes), &Kind::Number { min: Some(1), max: Some(4096) })
    );
    assert_eq!(body.default, Some(0.into()));
}
