//! The command line: every command with its flags, and where it goes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use common::error::chain;
use common::telemetry;
use common::tls::{self, TlsFiles};

use crate::commands::{
    billing, ca, card, catalogue, config, connect, content, directory, fsck, node, origin, scrub, search,
    site, status, support_bundle, temporary, usage, who_holds,
};
use crate::error::Failure;
use crate::log::LogArgs;
use crate::roles::{self, OriginArgs, RoleCommand, SearchArgs};
use crate::up::{self, UpOptions};

/// Dozo keeps contents on always-on storage, delivers them from the nearest holder, and bills every delivery once.
#[derive(Debug, Parser)]
#[command(name = "dozo", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    log: LogArgs,
    /// Certificates of the authorities that vouch for the servers, as of `dozo ca`; for commands. Without it the one
    /// that the endpoints file names, or those that the system believes
    #[arg(long, global = true, value_name = "FILE", env = "DOZO_CA_FILE")]
    ca_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole system on this machine, in one process
    Up(UpOptions),
    #[command(flatten)]
    Role(RoleCommand),
    /// Show sites, gateways and nodes
    Status(status::StatusArgs),
    /// Storage nodes
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Sites
    #[command(subcommand)]
    Site(site::SiteCommand),
    /// Check, or repair, the store of a storage node that does not run
    Fsck(fsck::FsckArgs),
    /// Show how far the nodes are with verifying what they store, or start it
    Scrub(scrub::ScrubArgs),
    /// Clients
    #[command(subcommand)]
    Client(directory::ClientCommand),
    /// Buckets
    #[command(subcommand)]
    Bucket(directory::BucketCommand),
    /// Cards of clients, for when they are away from home
    #[command(subcommand)]
    Card(card::CardCommand),
    /// Find the site near here, as a client away from home
    Connect(connect::ConnectArgs),
    /// Publish a file
    Put(content::PutArgs),
    /// Get a content
    Get(content::GetArgs),
    /// List a bucket's contents
    Ls(content::LsArgs),
    /// List what a client holds
    Library(content::LibraryArgs),
    /// Withdraw a content, or drop it from the client's library
    Rm(content::RmArgs),
    /// Show where a content is: sites, nodes, clients, shared chunks
    WhoHolds(who_holds::WhoHoldsArgs),
    /// Contents that sites keep for visiting clients
    #[command(subcommand)]
    Temporary(temporary::TemporaryCommand),
    /// Show what a client holds, was delivered and is charged
    Usage(usage::UsageArgs),
    /// Ask the billing servers
    #[command(subcommand)]
    Billing(billing::BillingCommand),
    /// A small certificate authority, for TLS between the cluster's servers
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// Check or show a server's configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Gather what somebody who helps needs to see in an archive, without secrets
    SupportBundle(support_bundle::SupportBundleArgs),
    /// Print what names there are: metrics, error codes, routes, settings, invariants
    #[command(subcommand)]
    Catalogue(catalogue::CatalogueCommand),
}

impl Cli {
    /// Commands tell only what goes wrong. `up` prints its own summary; what `fsck` finds is in its report, and what the
    /// parts of a node say on the way would only mislead: nothing of it is written.
    fn init_logs(&self) {
        match self.command {
            // Their configuration has a say in it.
            Command::Role(ref role) if role.is_server() => {}
            Command::Fsck(_) => self.log.init_for_command("off"),
            _ => self.log.init_for_command("warn"),
        }
        telemetry::watch_panics();
    }

    /// Carries the command out; what goes wrong is told on standard error.
    pub async fn run(self) -> ExitCode {
        self.init_logs();
        #[cfg(feature = "otlp")]
        if let Err(failure) = start_export() {
            tell(&failure);
            return ExitCode::from(failure.exit.code());
        }
        if let Some(file) = self.ca_file.clone()
            && let Err(failure) = believe(file)
        {
            tell(&failure);
            return ExitCode::from(failure.exit.code());
        }
        let done = self.command.run(self.log).await;
        #[cfg(feature = "otlp")]
        common::trace::otlp::flush().await;
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                tell(&failure);
                ExitCode::from(failure.exit.code())
            }
        }
    }
}

/// Has the commands of this process believe servers that these authorities vouch for.
fn believe(ca_file: PathBuf) -> Result<(), Failure> {
    let files = TlsFiles { ca_file: Some(ca_file), ..TlsFiles::default() };
    tls::install(&files).map_err(|error| Failure::new(chain(&error)))
}

/// Exports traces if the environment says where to.
#[cfg(feature = "otlp")]
fn start_export() -> Result<(), Failure> {
    use common::trace::otlp::{Settings, start};
    let settings = Settings::from_environment(|name| std::env::var(name).ok()).map_err(Failure::usage)?;
    settings.into_iter().for_each(start);
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the command line's own error text")]
fn tell(failure: &Failure) {
    eprintln!("dozo: {failure}");
    if let Some(next_step) = &failure.next_step {
        eprintln!("  next: {next_step}");
    }
}

impl Command {
    async fn run(self, log: LogArgs) -> Result<(), Failure> {
        match self {
            Self::Up(options) => up::run(options).await,
            Self::Role(RoleCommand::Origin(OriginArgs { command: Some(command), .. })) => {
                origin::origin(command).await
            }
            Self::Role(RoleCommand::Search(SearchArgs { command: Some(command), .. })) => {
                search::search(command).await
            }
            Self::Role(role) => roles::run(role, log).await,
            Self::Status(args) => status::status(args).await,
            Self::Node(command) => node::node(command).await,
            Self::Site(command) => site::site(command).await,
            Self::Fsck(args) => fsck::fsck(args).await,
            Self::Scrub(args) => scrub::scrub(args).await,
            Self::Client(command) => directory::client(command).await,
            Self::Bucket(command) => directory::bucket(command).await,
            Self::Card(command) => card::card(command).await,
            Self::Connect(args) => connect::connect(args).await,
            Self::Put(args) => content::put(args).await,
            Self::Get(args) => content::get(args).await,
            Self::Ls(args) => content::ls(args).await,
            Self::Library(args) => content::library(args).await,
            Self::Rm(args) => content::rm(args).await,
            Self::WhoHolds(args) => who_holds::who_holds(args).await,
            Self::Temporary(command) => temporary::temporary(command).await,
            Self::Usage(args) => usage::usage(args).await,
            Self::Billing(command) => billing::billing(command).await,
            Self::Ca(command) => ca::ca(command),
            Self::Config(command) => config::config(command),
            Self::SupportBundle(args) => support_bundle::support_bundle(args).await,
            Self::Catalogue(command) => catalogue::catalogue(command),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
