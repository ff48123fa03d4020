//! Nodes that somebody could not reach: search looks itself, and marks a node as down at once if it does not
//! answer.
//!
//! Many may suspect a node at the same time; it is looked at once for all of them.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use common::client::{CallError, HttpClient};
use common::error::chain;
use common::id::{NodeId, SiteId};
use http::Request;
use tokio::time::Instant;

use crate::error::Failure;
use crate::server::{App, mark_down};
use crate::servers::{self, ServerKey};

/// How long a node may take for one answer; a hung one is found after [`TRIES`] of these.
const PROBE_TIME_MAX: Duration = Duration::from_millis(500);
const TRIES: usize = 2;
/// A node that answered is not looked at again for this long.
const TRUST_TIME: Duration = Duration::from_millis(200);

/// What was last seen of each node that was ever suspected. Whoever looks at a node holds its lock.
#[derive(Default)]
pub struct Suspicions {
    nodes: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<Option<Look>>>>>,
}

#[derive(Clone, Copy)]
struct Look {
    ended: Instant,
    alive: bool,
}

impl Look {
    /// Whether one who began to ask at `asked` may go by it.
    fn is_fresh(&self, asked: Instant) -> bool {
        self.ended >= asked || (self.alive && self.ended.elapsed() < TRUST_TIME)
    }
}

impl Suspicions {
    fn of(&self, node: &NodeId) -> Arc<tokio::sync::Mutex<Option<Look>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default().clone()
    }
}

/// Whether a node is alive; if it is not, the map says so by the time this answers.
pub async fn suspect(app: &App, node: &NodeId) -> Result<bool, Failure> {
    let asked = Instant::now();
    // Only nodes of the map are remembered, so the table does not grow.
    if !counts_as_alive(app, node)? {
        return Ok(false);
    }
    let seen = app.suspicions.of(node);
    let mut last = seen.lock().await;
    if let Some(look) = last.filter(|look| look.is_fresh(asked)) {
        return Ok(look.alive);
    }
    let alive = look(app, node).await?;
    *last = Some(Look { ended: Instant::now(), alive });
    Ok(alive)
}

/// What the map says.
fn counts_as_alive(app: &App, node: &NodeId) -> Result<bool, Failure> {
    let site = SiteId::new(node.site())?;
    let view = app.view.borrow();
    let entry = view.map.site(&site).and_then(|site| site.node(node));
    entry.map(|entry| entry.alive).ok_or_else(|| servers::no_such_node(node))
}

async fn look(app: &App, node: &NodeId) -> Result<bool, Failure> {
    let (began, key) = (Instant::now(), ServerKey::of_node(node));
    let mut conn = app.db.read().await?;
    let row = servers::find(&mut conn, &key).await?;
    drop(conn);
    let Some(row) = row.filter(|row| row.alive) else { return Ok(false) };
    if answers(&app.server.http, &row.http).await {
        return Ok(true);
    }
    if !app.leases.take_silent(&key, began) {
        return Ok(true);
    }
    let took_ms = began.elapsed().as_millis();
    tracing::warn!(%node, took_ms, "a node that somebody could not reach does not answer");
    if let Err(failure) = mark_down(app, std::slice::from_ref(&key)).await {
        app.leases.renew(key);
        return Err(failure);
    }
    // One that reported in the last moment is alive after all.
    counts_as_alive(app, node)
}

/// Whether anything answers at a node's service address: that is where it has to serve, and a process that
/// hangs answers nothing, though its connections are still taken.
async fn answers(http: &HttpClient, base: &str) -> bool {
    for _ in 0..TRIES {
        let Ok(request) = Request::get(format!("{base}/livez")).body(Bytes::new().into()) else {
            return false;
        };
        match http.send(request, PROBE_TIME_MAX).await {
            Ok(_any_status) => return true,
            Err(error) if is_refused(&error) => return false,
            Err(error) => tracing::debug!(error = chain(&error), "no answer to a probe"),
        }
    }
    false
}

/// Nobody listens: the process is gone, and asking again is of no use.
fn is_refused(error: &CallError) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::ConnectionRefused) {
            return true;
        }
        cause = error.source();
    }
    false
}
