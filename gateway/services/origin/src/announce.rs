//! What the origin tells search: that it is there, and what it holds.

use std::time::Duration;

use common::api::search::{AnnounceBatch, Announcer, Registration};
use common::auth::Role;
use common::backoff::Backoff;
use common::error::{ErrorCode, chain};
use common::server::Health;

use crate::error::Failure;
use crate::outbox::{self, Pending};
use crate::registry;
use crate::server::App;

const BATCH: i64 = 500;

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Registers with search and goes on reporting. The server is ready once search has accepted it; search being
/// away later does not take that back, since collectors have the map.
pub async fn heartbeat(app: App, health: Health, http: String, admin: String) {
    let name = app.name.clone();
    let registration =
        Registration { role: Role::Origin, name, site: None, zone: None, http, s3: None, admin, node: None };
    let mut backoff = backoff();
    let mut registered = false;
    loop {
        let wait = match app.search.register(&registration).await {
            Ok(answer) => {
                backoff.reset();
                registered = true;
                health.set("registered", Ok(()));
                Duration::from_millis(answer.heartbeat_ms.max(1))
            }
            Err(error) => {
                tracing::warn!(reason = chain(&error), "search did not take the registration");
                if !registered {
                    health.set("registered", Err(chain(&error)));
                }
                backoff.next_delay()
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Sends the outbox in its order, for ever.
pub async fn send_outbox(app: App) {
    let mut backoff = backoff();
    loop {
        match send_some(&app).await {
            Ok(true) => backoff.reset(),
            Ok(false) => {
                backoff.reset();
                app.announce.notified().await;
            }
            Err(failure) => {
                tracing::warn!(reason = chain(&failure), "announcements wait");
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Sends one batch; false when there is none.
async fn send_some(app: &App) -> Result<bool, Failure> {
    let mut conn = app.db.read().await?;
    let Pending { epoch, first_seq, end_seq, items } = outbox::pending(&mut conn, BATCH).await?;
    drop(conn);
    app.metrics.outbox.set((end_seq - first_seq) as f64);
    if items.is_empty() {
        return Ok(false);
    }
    let announcer = Announcer::Origin(app.name.clone());
    let answer = app.search.announce(&AnnounceBatch { announcer, epoch, first_seq, items }).await;
    let next_seq = match answer {
        Ok(answer) => answer.next_seq,
        Err(error) if error.code() == Some(ErrorCode::Conflict) => 0,
        Err(error) => {
            return Err(error
                .to_api(ErrorCode::SearchUnavailable, "search does not take announcements")
                .into());
        }
    };
    let mut tx = app.db.write().await?;
    if (first_seq + 1..=end_seq).contains(&next_seq) {
        outbox::acknowledge(&mut tx, next_seq).await?;
        tx.commit().await?;
        return Ok(true);
    }
    // Search expects what was acknowledged before, or what never was, or knows a later epoch: one of the two
    // databases is not the one that they agreed on. All is told anew.
    registry::announce_all(&mut tx, app.clock.now()).await?;
    tx.commit().await?;
    let message = format!(
        "search expects announcement {next_seq} of epoch {epoch}, here are {first_seq} to {end_seq}; all is announced anew"
    );
    Err(Failure::refused(ErrorCode::Conflict, message))
}
