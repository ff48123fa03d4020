//! `config check` and `config show`: a server's configuration as its process would have it, without starting it.

use common::config::{Key, Source, redact_value};
use serde::Serialize;
use toml::Value;

use crate::error::Failure;
use crate::output::{self, Align, OutputArgs, Table};
use crate::roles::{RoleCommand, Settings, schema};
use crate::secret::SECRET_VARIABLE;

#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check a server's configuration: file, environment and flags
    Check {
        #[command(subcommand)]
        role: RoleCommand,
    },
    /// Print a server's settings, from file, environment and flags, without secrets; what is not printed has its default
    Show {
        /// Print every setting, with where its value comes from
        #[arg(long)]
        origin: bool,
        #[command(flatten)]
        output: OutputArgs,
        #[command(subcommand)]
        role: RoleCommand,
    },
}

/// One setting as `--origin` shows it.
#[derive(Serialize)]
struct Row {
    key: String,
    value: Option<Value>,
    origin: String,
}

pub fn config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { role } => {
            let settings = role.settings()?;
            output::line(&format!("the configuration of this {} is valid", settings.role))
        }
        ConfigCommand::Show { origin, output: how, role } => {
            let settings = role.settings()?;
            match (origin, how.json) {
                (true, true) => output::json(&rows(&settings)),
                (true, false) => output::text_block(&table(&rows(&settings))),
                (false, true) => output::json(&shown(&settings)),
                (false, false) => output::text_block(&text(&settings)?),
            }
        }
    }
}

fn shown(settings: &Settings) -> Value {
    redact_value(&Value::Table(settings.given.table.clone()))
}

/// What was set, as TOML, without secrets.
pub fn text(settings: &Settings) -> Result<String, Failure> {
    toml::to_string(&shown(settings))
        .map_err(|e| Failure::new(format!("the settings cannot be written as TOML: {e}")))
}

fn rows(settings: &Settings) -> Vec<Row> {
    let mut rows: Vec<Row> =
        schema(settings.role).leaves().into_iter().map(|(path, key)| row(settings, path, key)).collect();
    if std::env::var_os(SECRET_VARIABLE).is_some() {
        let value = Some(Value::String("(not shown)".into()));
        rows.push(Row { key: "cluster.secret".into(), value, origin: SECRET_VARIABLE.into() });
    }
    rows
}

fn row(settings: &Settings, path: String, key: &Key) -> Row {
    let given = settings.given.get(&path).map(redact_value);
    let default = || key.default.as_ref().and_then(|default| Value::try_from(default).ok());
    let origin = match (&given, settings.given.source(&path)) {
        (Some(_), Some(source @ Source::File { .. })) => source.to_string(),
        (Some(_), Some(Source::Variable(name))) => format!("environment {name}"),
        (Some(_), Some(Source::Flag(flag))) => format!("flag {flag}"),
        _ => "default".to_owned(),
    };
    Row { key: path, value: given.or_else(default), origin }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&[("key", Align::Left), ("value", Align::Left), ("from", Align::Left)]);
    for row in rows {
        let value = row.value.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        table.row(vec![row.key.clone(), value, row.origin.clone()]);
    }
    table.render(0)
}
