//! The reference of all settings, made from what the servers' `Config`s say of themselves: `ops/reference/config.md`.

use common::auth::Role;
use common::config::{Key, Kind, Schema};

use crate::roles::{Process, own_schema};

const INTRODUCTION: &str = "\
# Settings

Printed by `dozo catalogue config`; made from the sources, so it is true of the `dozo` that prints it.

A server takes each setting from the first of these that has it: its flag, its environment variable, the file of
`--config FILE` (TOML), its default. `dozo config check ROLE …` says what is wrong with a configuration, and
`dozo config show --origin ROLE …` where each value comes from. Unknown keys and variables are errors.

The variable of a key `a.b` is `DOZO__A__B`. In variables a list is written as in TOML, or as words with commas between
them. A count of bytes may have a unit, as in `\"256MiB\"`.

No setting is a secret. Secrets are in files that settings name, or in credentials that systemd gives the process
(`LoadCredential=`): `cluster-secret`, `database-password` and `s3-keys`. The cluster's secret may also be in the variable
`DOZO__CLUSTER__SECRET`.

SIGHUP has a server read its configuration again. It takes over the settings marked *live*, and logs which others changed
and need a restart. A configuration with an error changes nothing.
";

/// The whole reference as Markdown.
pub fn config() -> String {
    let mut text = INTRODUCTION.to_owned();
    section(&mut text, "Every server", "dozo ROLE [--config FILE]", &Schema::of::<Process>());
    for (title, role) in [
        ("Gateway", Role::Gateway),
        ("Storage node", Role::StorageNode),
        ("Search", Role::Search),
        ("Origin", Role::Origin),
        ("Mobile access", Role::MobileAccess),
    ] {
        section(&mut text, title, &format!("dozo {role}"), &own_schema(role));
    }
    let title = "Service billing and content billing";
    section(
        &mut text,
        title,
        "dozo service-billing, dozo content-billing",
        &own_schema(Role::ServiceBilling),
    );
    text
}

fn section(text: &mut String, title: &str, command: &str, schema: &Schema) {
    let mut line = |words: &str| {
        text.push_str(words);
        text.push('\n');
    };
    line("");
    line(&format!("## {title}"));
    line("");
    line(&format!("`{command}`"));
    line("");
    line("| key | type | default | unit | | for |");
    line("|---|---|---|---|---|---|");
    for (path, key) in schema.leaves() {
        line(&row(&path, key));
        if let Kind::List(item) = &key.kind
            && let Kind::Section(inner) = &**item
        {
            for key in inner {
                line(&row(&format!("{path}[].{}", key.name), key));
            }
        }
    }
}

fn row(path: &str, key: &Key) -> String {
    let default = match (&key.default, key.is_required) {
        (Some(serde_json::Value::String(word)), _) => format!("`{word}`"),
        (Some(value), _) => format!("`{value}`"),
        (None, true) => "must be set".to_owned(),
        (None, false) => "not set".to_owned(),
    };
    let unit = key.unit().map_or("", |unit| unit.as_str());
    let live = if key.is_live { "live" } else { "" };
    let about = key.about.replace('|', "\\|");
    format!("| `{path}` | {} | {default} | {unit} | {live} | {about} |", key.kind)
}
