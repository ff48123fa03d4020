//! `support-bundle`: one archive with what somebody who helps needs to see, and no secrets: versions, settings, what each
//! server says of its health, its figures and its map, and the end of the logs.
//!
//! Two fences keep secrets out. Nothing is taken that holds them: settings are shown as `config show` shows them, tokens and
//! keys are left out. And every text is searched for each secret that this machine knows before it is written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use common::client::{HttpClient, read_body};
use common::config::redact_value;
use common::error::chain;
use common::time::{Clock, UnixMillis};
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::endpoints::Endpoints;
use crate::error::Failure;
use crate::output;
use crate::secret::SECRET_VARIABLE;
use crate::session::OperatorArgs;

/// What is asked of every server's admin listener; what a server does not have is left out.
const PATHS: [(&str, &str); 5] = [
    ("/readyz?verbose", "readyz.txt"),
    ("/metrics", "metrics.txt"),
    ("/v1/map", "map.json"),
    ("/v1/node", "node.json"),
    ("/v1/debug/slow", "slow.json"),
];
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Bytes from the end of each log.
const LOG_BYTES_MAX: usize = 4 << 20;
const JOURNAL_LINES: &str = "5000";
/// Shorter words are no secrets, and would be found everywhere.
const SECRET_LEN_MIN: usize = 8;
const HIDDEN: &str = "(not shown)";

#[derive(Debug, clap::Args)]
pub struct SupportBundleArgs {
    /// The archive, which must not be there yet; `dozo-support-TIME.tar` if not given
    file: Option<PathBuf>,
    /// Folder whose TOML files are the servers' configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/dozo")]
    config_dir: PathBuf,
    /// A log file; its end is put in. May be repeated. The journal of systemd's units is put in by itself
    #[arg(long = "log-file", value_name = "FILE")]
    logs: Vec<PathBuf>,
    /// Admin address of search, where the other servers are found, if there is no endpoints.json
    #[arg(long, value_name = "URL")]
    search_admin: Option<String>,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub async fn support_bundle(args: SupportBundleArgs) -> Result<(), Failure> {
    let now = Clock::System.now();
    let file = args.file.unwrap_or_else(|| format!("dozo-support-{}.tar", stamp(now)).into());
    let endpoints = args.operator.endpoints.read().ok();
    let mut secrets = Secrets::default();
    if let Ok(secret) = args.operator.secret() {
        secrets.add(secret.admin_token());
        secrets.add(secret.auditor_token());
    }
    secrets.add_file(args.operator.secret.cluster_secret_file.as_deref());
    secrets.add_file(Some(&args.operator.endpoints.folder().join(crate::secret::SECRET_FILE)));
    secrets.add(&std::env::var(SECRET_VARIABLE).unwrap_or_default());
    if let Some(endpoints) = &endpoints {
        secrets.add(&endpoints.admin_token);
        for client in &endpoints.clients {
            [&client.access_key, &client.secret_key, &client.token]
                .into_iter()
                .for_each(|key| secrets.add(key));
        }
    }
    let search_admin = match args.search_admin {
        Some(url) => url,
        None => {
            let known = args.operator.endpoints.read();
            let known = known.map_err(|failure| {
                failure.with_next_step("name search's admin address: --search-admin URL")
            })?;
            known.search.admin
        }
    };
    let configurations = read_configurations(&args.config_dir, &mut secrets);

    let mut bundle = Bundle::create(&file, now, secrets)?;
    bundle.add("system.txt", &system(now))?;
    bundle.add("environment.txt", &environment())?;
    for (name, text) in &configurations {
        bundle.add(&format!("config/{name}"), text)?;
    }
    if let Some(endpoints) = &endpoints {
        bundle.add("endpoints.json", &without_keys(endpoints)?)?;
    }
    let http = HttpClient::new();
    let found = servers(&http, &search_admin, endpoints.as_ref()).await;
    for (name, admin) in &found {
        for (path, kept_as) in PATHS {
            let place = format!("servers/{name}/{kept_as}");
            match ask(&http, admin, path).await {
                // Readiness is worth most when it is lacking.
                Ok((status, text)) if status == 200 || kept_as == "readyz.txt" => {
                    bundle.add(&place, &text)?
                }
                Ok(_) => {}
                Err(error) => {
                    bundle.add(
                        &format!("servers/{name}/unreachable.txt"),
                        &format!("{admin}{path}: {error}\n"),
                    )?;
                    break;
                }
            }
        }
    }
    for log in &args.logs {
        let text = std::fs::read(log).map_err(|e| Failure::file("reading", log, &e))?;
        let name = log.file_name().map_or_else(|| "log".into(), |name| name.to_string_lossy().into_owned());
        bundle.add(&format!("logs/{name}"), &end_of(&text))?;
    }
    if let Some(journal) = journal() {
        bundle.add("logs/journal.txt", &end_of(&journal))?;
    }
    let bytes = bundle.finish()?;
    output::line(&format!(
        "{}: {bytes} bytes, of {} servers; look through it before you hand it on",
        file.display(),
        found.len()
    ))
}

/// Names and admin addresses: what search knows, and what is in endpoints.json, which also serves while search is away.
async fn servers(
    http: &HttpClient,
    search_admin: &str,
    endpoints: Option<&Endpoints>,
) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = vec![("search".into(), search_admin.trim_end_matches('/').into())];
    let mut add = |name: String, admin: &str| {
        if !found.iter().any(|(_, known)| known == admin) {
            found.push((name, admin.to_owned()));
        }
    };
    if let Some(endpoints) = endpoints {
        add("origin".into(), &endpoints.origin.admin);
        add("service-billing".into(), &endpoints.service_billing.admin);
        add("content-billing".into(), &endpoints.content_billing.admin);
        add("mobile-access".into(), &endpoints.mobile_access.admin);
        for site in &endpoints.sites {
            let gateways = site.gateways.iter().map(|g| ("gateway", &g.name, &g.admin));
            let nodes = site.nodes.iter().map(|n| ("storage-node", &n.name, &n.admin));
            gateways
                .chain(nodes)
                .for_each(|(role, name, admin)| add(format!("{role}-{}.{name}", site.name), admin));
        }
    }
    let targets = ask(http, search_admin, "/v1/sd/prometheus").await.ok().map(|(_, text)| text);
    let targets: Value = targets.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    for target in targets.as_array().into_iter().flatten() {
        let labels: Vec<&str> =
            target["labels"].as_object().into_iter().flatten().filter_map(|(_, v)| v.as_str()).collect();
        for address in target["targets"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            add(file_name(&labels.join("-")), &format!("http://{address}"));
        }
    }
    found
}

/// Only what any file name may have.
fn file_name(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' }).collect()
}

async fn ask(http: &HttpClient, admin: &str, path: &str) -> Result<(u16, String), String> {
    let url = format!("{admin}{path}");
    let request = Request::get(&url).body(Full::new(Bytes::new())).map_err(|e| e.to_string())?;
    let response = http.send(request, ANSWER_TIME_MAX).await.map_err(|error| chain(&error))?;
    let status = response.status().as_u16();
    let body = read_body(&url, response.into_body(), ANSWER_BYTES_MAX);
    let body =
        tokio::time::timeout(ANSWER_TIME_MAX, body).await.map_err(|_| "no answer in time".to_owned())?;
    let body = body.map_err(|error| chain(&error))?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The files of a folder of configurations, as `config show` would show them. What is in their files of secrets is noted.
fn read_configurations(folder: &Path, secrets: &mut Secrets) -> Vec<(String, String)> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let mut shown = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|end| end == "toml")) {
        let name = path.file_name().map(|name| file_name(&name.to_string_lossy())).unwrap_or_default();
        let table = std::fs::read_to_string(path).ok().and_then(|text| text.parse::<toml::Table>().ok());
        let text = table.and_then(|mut table| {
            // Parties' bank accounts are nobody's business.
            table.remove("tariff");
            secrets.add_named_files(&toml::Value::Table(table.clone()));
            toml::to_string(&redact_value(&toml::Value::Table(table))).ok()
        });
        shown.push((
            name,
            text.unwrap_or_else(|| "this file cannot be read as TOML, and is left out\n".into()),
        ));
    }
    shown
}

fn system(now: UnixMillis) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let memory: String = read("/proc/meminfo").lines().take(3).map(|line| format!("{line}\n")).collect();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "dozo {}\n{now}\n{}processors: {processors}\n{memory}load: {}",
        env!("CARGO_PKG_VERSION"),
        read("/proc/version"),
        read("/proc/loadavg")
    )
}

/// Variables that servers started from here would read.
fn environment() -> String {
    let mut lines: Vec<String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("DOZO__") || name == "RUST_LOG")
        .map(|(name, value)| {
            let value = if name == SECRET_VARIABLE {
                HIDDEN.into()
            } else {
                common::config::redact(&value).into_owned()
            };
            format!("{name}={value}\n")
        })
        .collect();
    lines.sort();
    lines.concat()
}

fn without_keys(endpoints: &Endpoints) -> Result<String, Failure> {
    let failed = |e: serde_json::Error| Failure::new(format!("the endpoints cannot be written as JSON: {e}"));
    let mut value = serde_json::to_value(endpoints).map_err(failed)?;
    value["admin_token"] = json!(HIDDEN);
    let clients = endpoints.clients.iter().map(|client| json!({"name": client.name, "site": client.site}));
    value["clients"] = clients.collect();
    serde_json::to_string_pretty(&value).map_err(failed)
}

/// The last lines, whole.
fn end_of(text: &[u8]) -> String {
    let cut = text.len().saturating_sub(LOG_BYTES_MAX);
    let end = String::from_utf8_lossy(&text[cut..]);
    match end.split_once('\n') {
        Some((_, whole)) if cut > 0 => whole.to_owned(),
        _ => end.into_owned(),
    }
}

/// What systemd has of our units, where there is systemd.
fn journal() -> Option<Vec<u8>> {
    let args = ["--unit=dozo-*", "--lines", JOURNAL_LINES, "--no-pager", "--output=short-iso", "--quiet"];
    let output = std::process::Command::new("journalctl").args(args).output().ok()?;
    (output.status.success() && !output.stdout.is_empty()).then_some(output.stdout)
}

fn stamp(now: UnixMillis) -> String {
    now.to_string().chars().filter(char::is_ascii_alphanumeric).take(15).collect()
}

/// What must not be in the archive, as far as this machine knows it.
#[derive(Default)]
struct Secrets(Vec<String>);

impl Secrets {
    fn add(&mut self, secret: &str) {
        let secret = secret.trim();
        if secret.len() >= SECRET_LEN_MIN {
            self.0.push(secret.to_owned());
        }
    }

    fn add_file(&mut self, file: Option<&Path>) {
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        self.add(&text);
        // Files of keys have several, as `name = value`.
        for (_, value) in text.lines().filter_map(|line| line.split_once('=')) {
            self.add(value);
        }
    }

    /// Those in files that settings name, and passwords in addresses.
    fn add_named_files(&mut self, settings: &toml::Value) {
        match settings {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let is_secret = key.ends_with("secret_file") || key.ends_with("password_file");
                    if let (true, Some(path)) = (is_secret, value.as_str()) {
                        self.add_file(Some(Path::new(path)));
                    }
                    self.add_named_files(value);
                }
            }
            toml::Value::Array(items) => items.iter().for_each(|item| self.add_named_files(item)),
            toml::Value::String(text) => {
                let user = text.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
                if let Some((_, password)) = user.and_then(|(user, _)| user.split_once(':')) {
                    self.add(password);
                }
                let keys = text.split(['?', '&']).find_map(|part| part.strip_prefix("credentials="));
                self.add_file(keys.map(Path::new));
            }
            _ => {}
        }
    }

    fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), HIDDEN))
    }
}

/// The archive being written.
struct Bundle {
    file: PathBuf,
    archive: tar::Builder<std::fs::File>,
    time_s: u64,
    secrets: Secrets,
}

impl Bundle {
    fn create(file: &Path, now: UnixMillis, secrets: Secrets) -> Result<Self, Failure> {
        use std::os::unix::fs::OpenOptionsExt;
        let created = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
        let created = created.map_err(|e| Failure::file("making", file, &e))?;
        let archive = tar::Builder::new(created);
        Ok(Self { file: file.to_owned(), archive, time_s: now.0 / 1000, secrets })
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), Failure> {
        let text = self.secrets.hide(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time_s);
        let path = format!("dozo-support/{name}");
        let added = self.archive.append_data(&mut header, path, text.as_bytes());
        added.map_err(|e| Failure::file("writing", &self.file, &e))
    }

    fn finish(self) -> Result<u64, Failure> {
        let failed = |e: std::io::Error| Failure::file("writing", &self.file, &e);
        let mut file = self.archive.into_inner().map_err(failed)?;
        file.flush().and_then(|()| file.sync_all()).map_err(failed)?;
        file.metadata().map(|facts| facts.len()).map_err(failed)
    }
}
