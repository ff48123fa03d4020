//! One server, alone in this process: the flags of each role, its configuration, its start and stop. `dozo up` starts
//! its servers through the same [`start`], from the same tables of settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::auth::ClusterSecret;
use common::auth::Role;
use common::config::{self, ConfigError, Flag, Schema};
use common::error::chain;
use common::server::{Running, StartError, Stop};
use common::telemetry::LogFormat;
use common::tls::{self, TlsFiles};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::commands::origin::OriginCommand;
use crate::commands::search::SearchCommand;
use crate::error::Failure;
use crate::log::LogArgs;
use crate::notify::Notifier;
use crate::reload::Reloader;
use crate::secret::{SECRET_VARIABLE, SecretArgs};
use crate::signals::{Signal, Signals};

/// Flags of every server. A flag wins over `DOZO__SECTION__KEY` in the environment, and that over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServerArgs {
    /// TOML file with the server's configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the service listens; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where health and metrics listen; keep it off public networks
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<SocketAddr>,
    #[command(flatten)]
    pub secret: SecretArgs,
}

/// Flags of servers that register with search.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MemberArgs {
    /// Short name, unique in its site or, without a site, in the cluster
    #[arg(long)]
    pub name: Option<String>,
    /// Address of search
    #[arg(long, value_name = "URL")]
    pub search: Option<String>,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct SiteArgs {
    /// The site that it belongs to
    #[arg(long)]
    pub site: Option<String>,
    /// Base address under which other servers reach it, if that is not the one it listens at
    #[arg(long, value_name = "URL")]
    pub advertise: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    member: MemberArgs,
    #[command(flatten)]
    site: SiteArgs,
    /// Memory for hot chunks, as in 256MiB
    #[arg(long, value_name = "BYTES", value_parser = config::parse_bytes)]
    cache_bytes: Option<u64>,
    /// Measure round trips by ICMP echo too; without the right to do so calls alone are measured
    #[arg(long)]
    icmp_probes: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub struct StorageNodeArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    member: MemberArgs,
    #[command(flatten)]
    site: SiteArgs,
    /// The zone that the site is in, until one is set (`dozo site set`)
    #[arg(long)]
    zone: Option<String>,
    /// Where chunks are kept: file:/path?size=20GiB, device:/dev/nvme1n1, dir:/path, s3://bucket/prefix?endpoint=URL&region=R, memory:
    #[arg(long)]
    store: Option<String>,
    /// Folder for the catalog, the map and, beside an object store, the log
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Make a store also on a device or file that holds something else, which is lost
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SearchArgs {
    /// To ask search instead of running it
    #[command(subcommand)]
    pub command: Option<SearchCommand>,
    #[command(flatten)]
    server: ServerArgs,
    /// Folder for the directory's database, an SQLite file
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    postgres: PostgresArgs,
}

/// Another place for rows than an SQLite file.
#[derive(Debug, Clone, clap::Args)]
pub struct PostgresArgs {
    /// A PostgreSQL database instead: postgres://USER@HOST/NAME
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// File with the password for the database
    #[arg(long, value_name = "FILE")]
    database_password_file: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct OriginArgs {
    /// What the operator does with a running origin
    #[command(subcommand)]
    pub command: Option<OriginCommand>,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    member: MemberArgs,
    /// Folder for what the origin knows of its sources
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A source of contents: BUCKET,PROVIDER,URL, where URL is as for `dozo origin add`; may be repeated
    #[arg(long = "source", value_name = "BUCKET,PROVIDER,URL")]
    sources: Vec<SourceArg>,
    /// Milliseconds between two looks at the sources
    #[arg(long)]
    rescan_ms: Option<u64>,
}

#[derive(Debug, Clone)]
struct SourceArg {
    bucket: String,
    provider: String,
    url: String,
}

impl std::str::FromStr for SourceArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.splitn(3, ',').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(bucket), Some(provider), Some(url)) => Ok(Self { bucket, provider, url }),
            _ => Err("a source is BUCKET,PROVIDER,URL"),
        }
    }
}

#[derive(Debug, Clone, clap::Args)]
pub struct BillingArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    member: MemberArgs,
    /// Base address under which other servers reach it, if that is not the one it listens at
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Folder for the books' database, an SQLite file
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    postgres: PostgresArgs,
    /// TOML file with tariffs, splits and parties to store at the start, unless they are stored
    #[arg(long, value_name = "FILE")]
    tariff_file: Option<PathBuf>,
}

#[derive(Debug, Clone, clap::Args)]
pub struct MobileAccessArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    member: MemberArgs,
    /// Where broadcasts are heard: 0.0.0.0:PORT for those of every network that this machine is in
    #[arg(long, value_name = "HOST:PORT")]
    hear: Option<SocketAddr>,
    /// Where clients reach this server, if that is not where it listens
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// A site near here; may be repeated
    #[arg(long = "near", value_name = "SITE")]
    sites: Vec<String>,
    /// Where the server is: without --near the sites of this zone are near
    #[arg(long)]
    zone: Option<String>,
}

#[derive(Debug, Clone, clap::Subcommand)]
pub enum RoleCommand {
    /// Run a gateway: it takes clients' requests, delivers what the site holds and collects the rest
    Gateway(GatewayArgs),
    /// Run a storage node: it keeps chunks, libraries and delivery records of its site
    StorageNode(StorageNodeArgs),
    /// Run search, the directory of contents, clients and servers, and the cluster map; or ask it (find, lookup, explain, resync), or copy it (backup)
    Search(SearchArgs),
    /// Run an origin: it registers contents of folders and object stores, and sends them; or work on its sources
    Origin(OriginArgs),
    /// Run the billing server for the service fee
    ServiceBilling(BillingArgs),
    /// Run the billing server for the content fee
    ContentBilling(BillingArgs),
    /// Run mobile access: it brings clients that are away from home to the site near them
    MobileAccess(MobileAccessArgs),
}

/// Settings as flags; what is not given is not in it.
#[derive(Default)]
struct Flags(Vec<Flag>);

impl Flags {
    /// A setting whose flag has the name of its key.
    fn add(&mut self, key: &str, value: Option<Value>) {
        self.add_as(key, &format!("--{}", key.replace('_', "-")), value);
    }

    fn add_as(&mut self, key: &str, flag: &str, value: Option<Value>) {
        self.0.extend(value.map(|value| Flag { key: key.into(), flag: flag.into(), value }));
    }

    fn set(&mut self, key: &str, value: Option<impl ToString>) {
        self.add(key, value.map(|v| Value::String(v.to_string())));
    }

    fn set_true(&mut self, key: &str, is_set: bool) {
        self.add(key, is_set.then_some(Value::Boolean(true)));
    }

    /// TOML's integers have 63 bits; greater values are refused by the server's own checks.
    fn set_number(&mut self, key: &str, value: Option<u64>) {
        self.add(key, value.map(|v| Value::Integer(i64::try_from(v).unwrap_or(i64::MAX))));
    }

    fn server(&mut self, args: &ServerArgs) {
        self.set("listen", args.listen);
        self.set("admin", args.admin);
        let secret_file = args.secret.cluster_secret_file.as_ref();
        let secret_file = secret_file.map(|file| Value::String(file.display().to_string()));
        self.add_as("cluster.secret_file", "--cluster-secret-file", secret_file);
    }

    fn member(&mut self, args: &MemberArgs) {
        self.set("name", args.name.as_ref());
        self.set("search", args.search.as_ref());
    }

    fn site(&mut self, args: &SiteArgs) {
        self.set("site", args.site.as_ref());
        self.set("advertise", args.advertise.as_ref());
    }

    fn postgres(&mut self, args: &PostgresArgs) {
        self.set("database", args.database.as_ref());
        self.set("database_password_file", args.database_password_file.as_ref().map(|f| f.display()));
    }

    fn folder(&mut self, data_dir: Option<&PathBuf>) {
        self.set("data_dir", data_dir.map(|d| d.display()));
    }

    fn sites(&mut self, sites: &[String]) {
        let list = || Value::Array(sites.iter().cloned().map(Value::String).collect());
        self.add_as("sites", "--near", (!sites.is_empty()).then(list));
    }

    fn sources(&mut self, sources: &[SourceArg]) {
        let table = |s: &SourceArg| Value::Table(source_table(&s.bucket, &s.provider, &s.url));
        let list = || Value::Array(sources.iter().map(table).collect());
        self.add_as("sources", "--source", (!sources.is_empty()).then(list));
    }
}

/// One entry of an origin's `sources`.
pub fn source_table(bucket: &str, provider: &str, url: &str) -> Table {
    [("bucket", bucket), ("provider", provider), ("url", url)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), Value::String(value.to_owned())))
        .collect()
}

impl RoleCommand {
    /// Whether it runs a server; `origin` and `search` have commands beside.
    pub fn is_server(&self) -> bool {
        !matches!(
            self,
            Self::Origin(OriginArgs { command: Some(_), .. })
                | Self::Search(SearchArgs { command: Some(_), .. })
        )
    }

    pub fn role(&self) -> Role {
        match self {
            Self::Gateway(_) => Role::Gateway,
            Self::StorageNode(_) => Role::StorageNode,
            Self::Search(_) => Role::Search,
            Self::Origin(_) => Role::Origin,
            Self::ServiceBilling(_) => Role::ServiceBilling,
            Self::ContentBilling(_) => Role::ContentBilling,
            Self::MobileAccess(_) => Role::MobileAccess,
        }
    }

    fn server_args(&self) -> &ServerArgs {
        match self {
            Self::Gateway(args) => &args.server,
            Self::StorageNode(args) => &args.server,
            Self::Search(args) => &args.server,
            Self::Origin(args) => &args.server,
            Self::ServiceBilling(args) | Self::ContentBilling(args) => &args.server,
            Self::MobileAccess(args) => &args.server,
        }
    }

    fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        flags.server(self.server_args());
        match self {
            Self::Gateway(args) => {
                flags.member(&args.member);
                flags.site(&args.site);
                flags.set_number("cache_bytes", args.cache_bytes);
                flags.set_true("icmp_probes", args.icmp_probes);
            }
            Self::StorageNode(args) => {
                flags.member(&args.member);
                flags.site(&args.site);
                flags.set("zone", args.zone.as_ref());
                flags.set("store", args.store.as_ref());
                flags.folder(args.data_dir.as_ref());
                flags.set_true("force", args.force);
            }
            Self::Search(args) => {
                flags.folder(args.data_dir.as_ref());
                flags.postgres(&args.postgres);
            }
            Self::Origin(args) => {
                flags.member(&args.member);
                flags.folder(args.data_dir.as_ref());
                flags.sources(&args.sources);
                flags.set_number("rescan_ms", args.rescan_ms);
            }
            Self::ServiceBilling(args) | Self::ContentBilling(args) => {
                flags.member(&args.member);
                flags.set("advertise", args.advertise.as_ref());
                flags.folder(args.data_dir.as_ref());
                flags.postgres(&args.postgres);
                flags.set("tariff_file", args.tariff_file.as_ref().map(|f| f.display()));
            }
            Self::MobileAccess(args) => {
                flags.member(&args.member);
                flags.set("hear", args.hear);
                flags.set("advertise", args.advertise.as_ref());
                flags.set("zone", args.zone.as_ref());
                flags.sites(&args.sites);
            }
        }
        flags
    }

    /// The server's settings: defaults, file, environment, flags; checked.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name != SECRET_VARIABLE);
        let file = self.server_args().config.as_deref();
        let role = self.role();
        let given = config::Settings::read(&schema(role), file, environment, self.flags().0)?;
        let mut own = given.clone();
        let process = Process {
            cluster: own.take_section("cluster")?,
            log: own.take_section("log")?,
            stop: own.take_section("stop")?,
            tls: own.take_section("tls")?,
        };
        let settings = Settings { role, given, own, process };
        settings.check()?;
        Ok(settings)
    }

    /// The secret from flag, environment, configuration or systemd.
    pub fn secret(&self, settings: &Settings) -> Result<ClusterSecret, Failure> {
        self.server_args().secret.read(settings.process.cluster.secret_file.as_deref())
    }
}

/// All that can be set for a server of this role.
pub fn schema(role: Role) -> Schema {
    own_schema(role).and(Schema::of::<Process>())
}

/// The settings of the server alone, without those of its process.
pub fn own_schema(role: Role) -> Schema {
    match role {
        Role::Gateway => Schema::of::<gateway::Config>(),
        Role::StorageNode => Schema::of::<storage_node::Config>(),
        Role::Search => Schema::of::<search::Config>(),
        Role::Origin => Schema::of::<origin::Config>(),
        Role::ServiceBilling | Role::ContentBilling => Schema::of::<billing::Config>(),
        Role::MobileAccess => Schema::of::<mobile_access::Config>(),
    }
}

/// Settings of the process, not of the server in it.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
pub struct Process {
    #[serde(default)]
    pub cluster: ClusterSection,
    #[serde(default)]
    pub log: LogSection,
    #[serde(default)]
    pub stop: StopSection,
    #[serde(default)]
    pub tls: TlsFiles,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterSection {
    /// File with the cluster's secret, which all servers of a cluster share. Without it, the secret is taken from
    /// `DOZO__CLUSTER__SECRET`, or from systemd's credential `cluster-secret`.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogSection {
    /// What is logged to standard error, as in `info` or `warn,gateway=debug`; `info` if neither it, `--log` nor
    /// `RUST_LOG` is given.
    #[serde(default)]
    #[schemars(extend("x-live" = true))]
    pub filter: Option<String>,
    /// Log lines as text or as JSON; text if neither it nor `--log-format` is given.
    #[serde(default)]
    pub format: Option<LogFormat>,
}

/// How a server stops when it is told to by SIGTERM.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopSection {
    /// How long it goes on as ever once it says that it is not ready: as long as it takes load balancers to notice.
    delay_ms: u64,
    /// How long requests in flight may take to finish after that; then they are cut off.
    finish_ms: u64,
}

impl Default for StopSection {
    fn default() -> Self {
        Self { delay_ms: 5_000, finish_ms: 30_000 }
    }
}

impl StopSection {
    fn on(&self, signal: Signal) -> Stop {
        let delay_ms = if signal == Signal::Terminate { self.delay_ms } else { 0 };
        Stop { delay: Duration::from_millis(delay_ms), finish: Duration::from_millis(self.finish_ms) }
    }
}

/// What a server is to be started with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub role: Role,
    /// All that was given, and where.
    pub given: config::Settings,
    /// The server's part of it.
    own: config::Settings,
    pub process: Process,
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Config(error) => error.into(),
            RunError::Start(error) => error.into(),
        }
    }
}

impl Settings {
    /// Settings that the program itself made for a server in its process.
    pub fn of(role: Role, table: Table) -> Self {
        let own = config::Settings::of(table);
        Self { role, given: own.clone(), own, process: Process::default() }
    }

    /// Checks what the schema cannot: the values' own rules, and settings that contradict each other.
    fn check(&self) -> Result<(), ConfigError> {
        match self.role {
            Role::Gateway => self.parse::<gateway::Config>().map(drop),
            Role::StorageNode => self.parse::<storage_node::Config>()?.check().map_err(ConfigError::Invalid),
            Role::Search => self.parse::<search::Config>()?.check().map_err(ConfigError::Invalid),
            Role::Origin => self.parse::<origin::Config>().map(drop),
            Role::ServiceBilling | Role::ContentBilling => {
                self.parse::<billing::Config>()?.check().map_err(ConfigError::Invalid)
            }
            Role::MobileAccess => self.parse::<mobile_access::Config>().map(drop),
        }
    }

    /// Starts the server.
    pub async fn start(self, secret: ClusterSecret) -> Result<Running, RunError> {
        Ok(match self.role {
            Role::Gateway => gateway::start(self.parse()?, secret).await?,
            Role::StorageNode => storage_node::start(self.parse()?, secret).await?,
            Role::Search => search::start(self.parse()?, secret).await?,
            Role::Origin => origin::start(self.parse()?, secret).await?,
            Role::ServiceBilling | Role::ContentBilling => billing::start(self.parse()?, secret).await?,
            Role::MobileAccess => mobile_access::start(self.parse()?, secret).await?,
        })
    }

    fn parse<C: DeserializeOwned>(&self) -> Result<C, ConfigError> {
        let mut settings = self.own.clone();
        // The billing servers share one configuration; which of the two it is follows from the command.
        let fee = match self.role {
            Role::ServiceBilling => Some("service"),
            Role::ContentBilling => Some("content"),
            _ => None,
        };
        settings.table.extend(fee.map(|fee| ("role".to_owned(), Value::String(fee.to_owned()))));
        settings.parse()
    }
}

/// What a failed server may take for its requests in flight.
const FAILED_STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// Runs one server until a signal stops it, or until it has failed: whoever watches the process then starts it anew.
/// SIGHUP has it read its configuration again.
pub async fn run(command: RoleCommand, log: LogArgs) -> Result<(), Failure> {
    let settings = command.settings()?;
    log.init(&settings.process.log)?;
    let secret = command.secret(&settings)?;
    tls::install(&settings.process.tls).map_err(|error| Failure::new(chain(&error)))?;
    let mut signals = Signals::install()?;
    let hangups = Signals::hangups()?;
    let mut notifier = Notifier::begin();
    let stop = settings.process.stop.clone();
    let running = settings.clone().start(secret).await?;
    let health = running.health.clone();
    notifier.started(health.clone());
    let reloader = Reloader::new(command, log, settings, running.live.clone());
    tokio::select! {
        signal = signals.next() => {
            notifier.stopping();
            signals.stop(running.stop_as(stop.on(signal))).await;
            Ok(())
        }
        never = reloader.run(hangups) => match never {},
        reason = health.failed() => {
            notifier.stopping();
            let failure = Failure::new(format!("{} has stopped: {reason}", running.name));
            // What cannot be ended in order is cut off: all that was acknowledged is durable.
            let _in_time = tokio::time::timeout(FAILED_STOP_TIME_MAX, signals.stop(running.stop())).await;
            Err(failure.with_next_step("start it again: it recovers what it acknowledged; look at its disk if that fails"))
        }
    }
}

/// A path as text for a setting; other than UTF-8 has no form in TOML.
pub fn path_text(path: &Path) -> Result<String, Failure> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("{} is not UTF-8: choose another folder", path.display())))
}
