//! `bench agent`: waits for a conductor, carries its order out, tells what was measured. One at a time: two loads at once
//! would measure each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::link::{AgentToken, Ask, Link, Order, Side, Tell};
use super::parts::Parts;
use super::{AgentError, unix_ns};
use crate::load::{Stage, drive};
use crate::process::cpu_time;
use crate::progress::Progress;

/// How often a conductor hears that the load goes on.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// A conductor prepares contents between its greeting and its order.
const ORDER_TIME_MAX: Duration = Duration::from_secs(3600);

/// Serves conductors one after the other, for ever. `say` is told what is going on.
///
/// # Errors
/// The address cannot be listened on.
pub async fn serve(
    listen: &str,
    token: AgentToken,
    say: impl Fn(&str) + Send + Sync + 'static,
) -> Result<(), AgentError> {
    let failed = |source| AgentError::Listen { listen: listen.to_owned(), source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    say(&format!("waiting for orders at {}", listener.local_addr().map_err(failed)?));
    let (turn, say) = (Arc::new(Mutex::new(())), Arc::new(say));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // One caller that is gone already, or no file left for it: the next may do better.
                say(&format!("a connection was not accepted: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (token, turn, say) = (token.clone(), turn.clone(), say.clone());
        tokio::spawn(async move {
            if let Err(error) = obey(stream, peer.to_string(), &token, &turn, &*say).await {
                say(&common::error::chain(&error));
            }
        });
    }
}

async fn obey(
    stream: TcpStream,
    peer: String,
    token: &AgentToken,
    turn: &Mutex<()>,
    say: &(impl Fn(&str) + Sync),
) -> Result<(), AgentError> {
    let mut link = Link::greet(stream, peer.clone(), token, Side::Agent).await?;
    let Ok(_turn) = turn.try_lock() else {
        let reason = "it works for another conductor".to_owned();
        return link.send(&Tell::Refused { reason }).await;
    };
    let order = loop {
        match link.receive(ORDER_TIME_MAX).await? {
            Ask::Clock => link.send(&Tell::Clock { unix_ns: unix_ns() }).await?,
            Ask::Drive(order) => break *order,
        }
    };
    let Order { plan, target, first_worker, one_hits, etags, start_unix_ns } = order;
    let wait = u64::try_from(start_unix_ns - unix_ns()).map(Duration::from_nanos);
    let Ok(wait) = wait else {
        let reason = "the start was over when the order came".to_owned();
        return link.send(&Tell::Refused { reason }).await;
    };
    let start = Instant::now() + wait;
    link.send(&Tell::Accepted).await?;
    say(&format!("{} connections for {peer}, for {:?}", plan.connections, plan.warmup + plan.duration));
    let pid = std::process::id();
    let before = cpu_time(pid).unwrap_or_default();
    let progress = Arc::new(Progress::to_pass_on());
    let (one_hits, progress_of_load) = (Some(one_hits), Some(progress.clone()));
    let stage = Stage { start: Some(start), first_worker, progress: progress_of_load, one_hits, etags };
    let driving = drive(&plan, &target, &stage);
    tokio::pin!(driving);
    let mut alive = tokio::time::interval(ALIVE_EVERY);
    let load = loop {
        tokio::select! {
            load = &mut driving => break load,
            _ = alive.tick() => link.send(&Tell::Alive { seconds: progress.take() }).await?,
        }
    };
    let cpu = cpu_time(pid).unwrap_or_default().saturating_sub(before);
    match load {
        Ok(load) => {
            let parts = Parts::of(load, cpu);
            say(&format!("{} requests were answered", parts.requests()));
            link.send(&Tell::Done(Box::new(parts))).await?;
            // What is on the way is lost with who hangs up first.
            link.ended().await;
            Ok(())
        }
        Err(error) => link.send(&Tell::Refused { reason: common::error::chain(&error) }).await,
    }
}
