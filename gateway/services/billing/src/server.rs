//! Starting a billing server: database, writer, routes, and the workers that register with search and watch the
//! books' balance.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use common::api::search::{Registration, SearchClient};
use common::auth::{ClusterSecret, Guard};
use common::backoff::Backoff;
use common::client::{HttpClient, ServerClient};
use common::error::chain;
use common::server::{Health, Listen, Running, Server, StartError};
use common::time::Clock;

use crate::config::Config;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::reconcile::Peers;
use crate::routes::routes;
use crate::tariff::Terms;

const FIGURES_INTERVAL: Duration = Duration::from_secs(5);
const REGISTER_RETRY_FIRST: Duration = Duration::from_millis(100);
const REGISTER_RETRY_MAX: Duration = Duration::from_secs(5);

/// A file of terms that cannot be used.
#[derive(Debug, thiserror::Error)]
enum TermsFileError {
    #[error("the file {} cannot be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    #[error("the file {} is not a file of terms", .0.display())]
    Form(PathBuf, #[source] Box<toml::de::Error>),
}

/// Starts a billing server. It serves as soon as this returns, whether search is there or not.
///
/// # Errors
/// When a listener, the database or the configured terms cannot be used.
pub async fn start(config: Config, secret: ClusterSecret) -> Result<Running, StartError> {
    let (fee, clock) = (config.role, Clock::System);
    let listen = Listen { listen: config.listen, admin: config.admin };
    let server = Server::bind(fee.server_role(), config.name.as_str(), &listen).await?;
    let metrics = Metrics::new(&server.metrics, fee);
    let location = config.location()?;
    let (ledger, writer) = Ledger::open_metered(&location, fee, clock.clone(), metrics.clone()).await?;
    let ledger = ledger.with_close_grace(Duration::from_secs(config.close_grace_hours.saturating_mul(3600)));
    server.spawn_until_stop(writer.run(server.stop_token()));
    put_configured_terms(&ledger, &config).await?;

    let guard = Guard { secret: secret.clone(), audience: fee.server_role(), clock: clock.clone() };
    let http =
        ServerClient::new(HttpClient::new(), secret, &server.name, clock).measured(server.call_metrics());
    let registration = Registration {
        role: fee.server_role(),
        name: config.name,
        site: None,
        zone: None,
        http: config.advertise.unwrap_or_else(|| server.http_url()),
        s3: None,
        admin: server.admin_url(),
        node: None,
    };
    let search = SearchClient::new(http.clone(), &config.search);
    let peers = Peers { http, search: search.clone() };
    server.spawn_worker(keep_registered(search, registration));
    server.spawn_worker(watch_books(ledger.clone(), metrics.clone(), server.health.clone()));
    Ok(server.run(routes(ledger, peers, guard, metrics), Router::new(), async {}))
}

async fn put_configured_terms(ledger: &Ledger, config: &Config) -> Result<(), StartError> {
    let failed = |error| StartError::failed("storing the configured tariffs", error);
    if let Some(path) = &config.tariff_file {
        let terms = read_terms(path).await.map_err(|e| StartError::failed("reading the tariffs", e))?;
        ledger.put_terms(&terms).await.map_err(failed)?;
    }
    if let Some(terms) = &config.tariff {
        ledger.put_terms(terms).await.map_err(failed)?;
    }
    Ok(())
}

async fn read_terms(path: &Path) -> Result<Terms, TermsFileError> {
    let text =
        tokio::fs::read_to_string(path).await.map_err(|error| TermsFileError::Read(path.into(), error))?;
    toml::from_str(&text).map_err(|error| TermsFileError::Form(path.into(), Box::new(error)))
}

/// Tells search again and again that this server is there.
async fn keep_registered(search: SearchClient, registration: Registration) {
    let mut backoff = Backoff::new(REGISTER_RETRY_FIRST, REGISTER_RETRY_MAX);
    let mut registered = false;
    loop {
        let wait = match search.register(&registration).await {
            Ok(answer) => {
                if !registered {
                    tracing::info!(server = %registration.name, "registered with search");
                }
                registered = true;
                backoff.reset();
                Duration::from_millis(answer.heartbeat_ms)
            }
            Err(error) => {
                if registered {
                    tracing::warn!(error = %chain(&error), "search does not answer; trying again");
                } else {
                    tracing::debug!(error = %chain(&error), "not registered with search yet");
                }
                registered = false;
                backoff.next_delay()
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Shows the books in figures, how far they are from balance among them, and whether the database can be read.
async fn watch_books(ledger: Ledger, metrics: Metrics, health: Health) {
    let mut interval = tokio::time::interval(FIGURES_INTERVAL);
    loop {
        interval.tick().await;
        match ledger.figures().await {
            Ok(figures) => {
                metrics.show(&figures);
                let micros = figures.imbalance_micros;
                if micros != 0 {
                    tracing::error!(fee = %ledger.fee(), micros, "the ledger does not balance");
                }
                health.set("ledger", Ok(()));
            }
            Err(error) => health.set("ledger", Err(chain(&error))),
        }
    }
}
