//! Asking the home site of a client: its gateways one after the other, those that answered quickest last time first.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::api::mobile_access::HomeClient;
use common::client::{CallError, ServerClient};
use common::cluster::{ClusterMap, GatewayEntry};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::SiteId;
use tokio::time::Instant;

use crate::metrics::Metrics;

/// All gateways of a home site together have so long.
const HOME_TIME_MAX: Duration = Duration::from_secs(10);
/// Gateways whose last answer is remembered; all are forgotten when there are more.
const REMEMBERED_MAX: usize = 10_000;

pub struct Homes {
    server: ServerClient,
    metrics: Metrics,
    /// How long each gateway took last time, by its address.
    took: Mutex<HashMap<String, Duration>>,
}

impl Homes {
    pub fn new(server: ServerClient, metrics: Metrics) -> Self {
        Self { server, metrics, took: Mutex::default() }
    }

    /// Asks a gateway of `home`; another one if it does not answer. `SiteNotFound`, `HomeUnreachable`, or what home says.
    pub async fn ask<A, F>(
        &self,
        map: &ClusterMap,
        home: &SiteId,
        call: impl Fn(HomeClient) -> F,
    ) -> ApiResult<A>
    where
        F: Future<Output = Result<A, CallError>>,
    {
        let site = map.site(home).ok_or_else(|| {
            ApiError::new(
                ErrorCode::SiteNotFound,
                format!("there is no site {home}; look at the card's home"),
            )
        })?;
        let deadline = Instant::now() + HOME_TIME_MAX;
        let mut said = None;
        for gateway in self.in_order(&site.gateways) {
            let begun = Instant::now();
            let client = HomeClient::new(self.server.clone(), &gateway.http);
            let Ok(answer) = tokio::time::timeout_at(deadline, call(client)).await else { break };
            match answer {
                Ok(answer) => {
                    self.remember(&gateway.http, begun.elapsed());
                    return Ok(answer);
                }
                Err(CallError::Refused { body, .. }) if !body.code.is_retryable() => {
                    return Err(ApiError::new(body.code, body.message));
                }
                Err(error) => {
                    tracing::debug!(%home, gateway = %gateway.name, error = chain(&error), "a home site's gateway does not answer");
                    self.remember(&gateway.http, HOME_TIME_MAX);
                    // What one says who is there tells more than the silence of another.
                    if let CallError::Refused { body, .. } = error {
                        said = Some(ApiError::new(body.code, body.message));
                    }
                }
            }
        }
        Err(said.unwrap_or_else(|| {
            let message = format!("no gateway of the home site {home} answers; try again later");
            ApiError::new(ErrorCode::HomeUnreachable, message)
        }))
    }

    /// Those that search takes for alive first: it may be wrong for some seconds, and for longer while it is away.
    fn in_order<'a>(&self, gateways: &'a [GatewayEntry]) -> Vec<&'a GatewayEntry> {
        let took = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gateways: Vec<&GatewayEntry> = gateways.iter().collect();
        gateways.sort_by_key(|gateway| {
            (!gateway.alive, took.get(&gateway.http).copied().unwrap_or(Duration::ZERO))
        });
        gateways
    }

    fn remember(&self, gateway: &str, took: Duration) {
        if took < HOME_TIME_MAX {
            self.metrics.home_seconds.record(took.as_secs_f64());
        }
        let mut remembered = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(gateway.to_owned(), took);
    }
}
