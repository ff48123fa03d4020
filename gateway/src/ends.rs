//! Reports how deliveries ended to the nodes that recorded them: batched, behind the answer, again until taken.
//!
//! A visitor's deliveries end at its home; what home does not take at once is handed to a storage node of this site, which
//! keeps it until home is back.
//!
//! Losing an end (this process is killed) loses no delivery: the node finds the begun record without an end and
//! closes it as *recovered*.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::api::node::{BeginAnswer, EndBatch, EndRequest};
use common::api::peer::{PeerClient, PeerEnds};
use common::api::temporary::KeepEndsRequest;
use common::backoff::Backoff;
use common::client::{CallError, ServerClient};
use common::id::{ClientId, DeliveryId, NodeId, SiteId};
use common::record::DeliveryPath;
use common::trace;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::site::SiteView;

/// Ends waiting to be sent; beyond this they are given up (and counted).
const PENDING_MAX: usize = 65_536;
const BATCH_MAX: usize = 512;
/// How long ends are gathered before a batch goes out.
const GATHER: Duration = Duration::from_millis(20);
/// How long a home site may take before its ends are left to a storage node here: others wait behind them.
const HOME_PATIENCE: Duration = Duration::from_secs(2);
/// How long a stopping gateway tries to hand over its last ends.
const LAST_TRY: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Ends {
    queue: mpsc::Sender<(NodeId, EndRequest)>,
    metrics: Arc<Metrics>,
}

/// Counts what goes out of one answer and reports it when dropped, however the answer ended.
///
/// It is told of a begin before that is asked for: should the client go away meanwhile, or the node's answer be lost,
/// the delivery that may have begun ends at once, with nothing sent.
pub struct EndGuard {
    /// The shard in which a delivery has begun, or may have; `None` while there is none to end.
    shard: Option<NodeId>,
    request: DeliveryId,
    delivery: DeliveryId,
    client: ClientId,
    /// Where the site has the bytes from.
    path: DeliveryPath,
    sent: u64,
    ends: Ends,
}

impl EndGuard {
    pub fn new(request: DeliveryId, client: ClientId, ends: Ends) -> Self {
        Self { shard: None, request, delivery: request, client, path: DeliveryPath::Hit, sent: 0, ends }
    }

    /// Who serves the shard is going to be asked: from now on the delivery may have begun there.
    pub fn asking(&mut self, shard: NodeId) {
        self.shard = Some(shard);
    }

    /// Nothing was begun there.
    pub fn not_begun(&mut self) {
        self.shard = None;
    }

    /// The begin is recorded; the bytes may belong to an earlier delivery that this request joined.
    pub fn begun(&mut self, begin: &BeginAnswer) {
        self.shard = Some(begin.shard.clone());
        self.delivery = begin.delivery;
    }

    /// What goes out comes from there.
    pub fn from(&mut self, path: DeliveryPath) {
        self.path = path;
    }

    pub fn delivery(&self) -> DeliveryId {
        self.delivery
    }

    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.ends.metrics.sent(self.path, bytes as u64);
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        let Some(shard) = self.shard.take() else { return };
        if self.sent > 0 {
            self.ends.metrics.heaviest.add(&self.client, self.sent);
        }
        let end = EndRequest { delivery: self.delivery, request: self.request, bytes_sent: self.sent };
        if self.ends.queue.try_send((shard, end)).is_err() {
            self.ends.metrics.ends_lost.increment(1);
            tracing::error!(delivery = %self.delivery, "the queue of delivery ends is full; this one becomes 'recovered'");
        }
    }
}

/// The queue and the worker that empties it; the worker ends after `stop`, when everything is handed over.
pub fn start(
    site: Arc<SiteView>,
    server: ServerClient,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> (Ends, impl Future<Output = ()> + Send + 'static) {
    let (queue, receiver) = mpsc::channel(PENDING_MAX);
    let worker = Worker { site, server, metrics: metrics.clone(), pending: HashMap::new(), count: 0 };
    (Ends { queue, metrics }, worker.run(receiver, stop))
}

struct Worker {
    site: Arc<SiteView>,
    server: ServerClient,
    metrics: Arc<Metrics>,
    pending: HashMap<NodeId, Vec<EndRequest>>,
    count: usize,
}

impl Worker {
    async fn run(mut self, mut receiver: mpsc::Receiver<(NodeId, EndRequest)>, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while !stop.is_cancelled() {
            let wait = if self.count > 0 { backoff.next_delay() } else { Duration::MAX };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait.min(Duration::from_secs(3600))) => {}
                received = receiver.recv_many(&mut batch, BATCH_MAX), if self.count < PENDING_MAX => {
                    if received == 0 {
                        break;
                    }
                    tokio::time::sleep(GATHER).await;
                }
            }
            self.gather(&mut batch, &mut receiver);
            if trace::background("ends", self.flush()).await {
                backoff.reset();
            }
        }
        self.gather(&mut batch, &mut receiver);
        let last = async {
            while !self.flush().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        if tokio::time::timeout(LAST_TRY, last).await.is_err() {
            self.metrics.ends_lost.increment(self.count as u64);
            tracing::error!(
                ends = self.count,
                "stopped before these ends were taken; their deliveries become 'recovered'"
            );
        }
    }

    fn gather(
        &mut self,
        batch: &mut Vec<(NodeId, EndRequest)>,
        receiver: &mut mpsc::Receiver<(NodeId, EndRequest)>,
    ) {
        while self.count + batch.len() < PENDING_MAX
            && let Ok(end) = receiver.try_recv()
        {
            batch.push(end);
        }
        self.count += batch.len();
        for (node, end) in batch.drain(..) {
            self.pending.entry(node).or_default().push(end);
        }
        self.metrics.ends_pending.set(self.count as f64);
    }

    /// Sends everything once; true when nothing is left.
    async fn flush(&mut self) -> bool {
        let shards: Vec<NodeId> = self.pending.keys().cloned().collect();
        for shard in shards {
            let ends = self.pending.remove(&shard).unwrap_or_default();
            let mut unsent = Vec::new();
            for part in ends.chunks(BATCH_MAX) {
                match self.send(&shard, part).await {
                    Ok(()) => self.count -= part.len(),
                    Err(error) => {
                        tracing::debug!(%shard, error = %common::error::chain(&error), "ends not taken yet");
                        unsent.extend_from_slice(part);
                    }
                }
            }
            if !unsent.is_empty() {
                self.pending.insert(shard, unsent);
            }
        }
        self.metrics.ends_pending.set(self.count as f64);
        self.pending.is_empty()
    }

    async fn send(&self, shard: &NodeId, ends: &[EndRequest]) -> Result<(), CallError> {
        if let Some(primary) = self.site.shard_primary(shard) {
            let batch = EndBatch { shard: shard.clone(), ends: ends.to_vec() };
            let call = primary.client.end(&batch);
            return self.site.unless_down(&primary.node, primary.client.base(), call).await;
        }
        if shard.site() == self.site.id.as_str() {
            let source = "the node is not in the cluster map".into();
            return Err(CallError::Unreachable { url: shard.to_string(), source });
        }
        // Recorded at another site: for a client of that site, served here.
        let Some(peer) = self.home_gateway(shard) else { return self.keep(shard, ends).await };
        let told = PeerEnds { shard: shard.clone(), ends: ends.to_vec() };
        match tokio::time::timeout(HOME_PATIENCE, peer.ends(&told)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if !error.is_retryable() => Err(error),
            Ok(Err(_)) | Err(_) => self.keep(shard, ends).await,
        }
    }

    /// Leaves ends for home to a storage node of this site, the first that takes them.
    async fn keep(&self, shard: &NodeId, ends: &[EndRequest]) -> Result<(), CallError> {
        let mut outcome = Err(CallError::Unreachable {
            url: shard.to_string(),
            source: "the site has no storage node".into(),
        });
        for (keeper, _) in self.site.nodes() {
            let Some(primary) = self.site.shard_primary(&keeper) else { continue };
            let request = KeepEndsRequest { keeper, shard: shard.clone(), ends: ends.to_vec() };
            let call = primary.client.keep_ends(&request);
            outcome = self.site.unless_down(&primary.node, primary.client.base(), call).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn home_gateway(&self, shard: &NodeId) -> Option<PeerClient> {
        let site = SiteId::new(shard.site()).ok()?;
        let map = self.site.map();
        let gateway = map.site(&site)?.gateways.iter().find(|g| g.alive)?;
        Some(PeerClient::gateway(self.server.clone(), &gateway.http))
    }
}

#[cfg(test)]
mod tests {
    use common::record::DeliveryClass;
    use common::telemetry::MetricsRegistry;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    /// What a guard reports that went through `life`.
    fn reported(life: impl FnOnce(&mut EndGuard)) -> Option<(NodeId, EndRequest)> {
        let (queue, mut receiver) = mpsc::channel(1);
        let metrics = Arc::new(Metrics::new(&MetricsRegistry::new()));
        let mut guard =
            EndGuard::new(DeliveryId::from_bytes([1; 16]), "alice".parse().unwrap(), Ends { queue, metrics });
        life(&mut guard);
        drop(guard);
        receiver.try_recv().ok()
    }

    #[test]
    fn what_was_never_asked_for_or_not_begun_has_no_end() {
        assert_eq!(reported(|_| {}), None);
        let refused = reported(|guard| {
            guard.asking(node("tokyo.n1"));
            guard.not_begun();
        });
        assert_eq!(refused, None);
    }

    #[test]
    fn a_begin_whose_answer_was_lost_ends_with_nothing_sent() {
        let (at, end) = reported(|guard| guard.asking(node("tokyo.n1"))).unwrap();
        let id = DeliveryId::from_bytes([1; 16]);
        assert_eq!(at, node("tokyo.n1"));
        assert_eq!(end, EndRequest { delivery: id, request: id, bytes_sent: 0 });
    }

    #[test]
    fn a_request_that_joined_a_delivery_ends_there_with_what_it_sent() {
        let joined = DeliveryId::from_bytes([7; 16]);
        let (at, end) = reported(|guard| {
            guard.asking(node("tokyo.n1"));
            let begin =
                BeginAnswer { delivery: joined, class: DeliveryClass::Reference, shard: node("tokyo.n2") };
            guard.begun(&begin);
            guard.sent(40);
            guard.sent(2);
        })
        .unwrap();
        assert_eq!(at, node("tokyo.n2"));
        let request = DeliveryId::from_bytes([1; 16]);
        assert_eq!(end, EndRequest { delivery: joined, request, bytes_sent: 42 });
    }
}
