//! `config check` and `config show`: a server's configuration as its process would have it, without starting it.

use crate::error::Failure;
use crate::output;
use crate::roles::RoleCommand;

#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check a server's configuration: file, environment and flags
    Check {
        #[command(subcommand)]
        role: RoleCommand,
    },
    /// Print a server's settings, from file, environment and flags; what is not printed has its default
    Show {
        #[command(subcommand)]
        role: RoleCommand,
    },
}

pub fn config(command: ConfigCommand) -> Result<(), Failure> {
    let (role, show) = match command {
        ConfigCommand::Check { role } => (role, false),
        ConfigCommand::Show { role } => (role, true),
    };
    let settings = role.settings()?;
    settings.check()?;
    if !show {
        return output::line(&format!("the configuration of this {} is valid", settings.role));
    }
    let text = toml::to_string(&settings.table)
        .map_err(|e| Failure::new(format!("the settings cannot be written as TOML: {e}")))?;
    output::text_block(&text)
}
