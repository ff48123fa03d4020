//! What the routes and workers of one storage node share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::api::node::NodeClient;
use common::api::search::SearchClient;
use common::client::ServerClient;
use common::cluster::{ClusterMap, NodeEntry};
use common::error::{ApiError, ApiResult};
use common::id::{NodeId, SiteId};
use common::placement::Slot;
use common::record::RecordNumber;
use common::server::Health;
use common::time::{Clock, UnixMillis};
use tokio::sync::{Mutex, Notify, watch};

use crate::catalog::Catalog;
use crate::catalog::txn::{Reader, Txn};
use crate::chunks::ChunkLocks;
use crate::config::Limits;
use crate::deliveries::{Ended, Recorder};
use crate::map_watch;
use crate::metrics::Metrics;
use crate::scrub::Scrub;
use crate::slots::Slots;
use crate::store::ChunkStore;

/// What is said from a commit to those who wait for its effects.
pub struct Signals {
    /// Last record of the chain; epoch 0 until search gave one.
    pub head: watch::Sender<RecordNumber>,
    /// Search knows the announcements up to this one.
    pub announced: watch::Sender<u64>,
    pub announcement_queued: Notify,
    pub reap_queued: Notify,
    pub tally_queued: Notify,
    pub slot_frozen: Notify,
    pub feed_rewound: Notify,
    /// When a chunk was last refused for want of space, in milliseconds since 1970; 0 if never.
    refused_at_ms: AtomicU64,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            head: watch::Sender::new(RecordNumber { epoch: 0, seq: 0 }),
            announced: watch::Sender::new(0),
            announcement_queued: Notify::new(),
            reap_queued: Notify::new(),
            tally_queued: Notify::new(),
            slot_frozen: Notify::new(),
            feed_rewound: Notify::new(),
            refused_at_ms: AtomicU64::new(0),
        }
    }
}

impl Signals {
    /// A chunk was refused for want of space.
    pub fn refused(&self, now: UnixMillis) {
        self.refused_at_ms.fetch_max(now.0, Ordering::Relaxed);
    }

    /// When a chunk was last refused for want of space.
    pub fn refused_at(&self) -> Option<UnixMillis> {
        Some(self.refused_at_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0).map(UnixMillis)
    }

    /// The chain has grown to `number`.
    pub fn recorded(&self, number: RecordNumber) {
        self.head.send_if_modified(|head| {
            let grown = number > *head;
            if grown {
                *head = number;
            }
            grown
        });
    }
}

/// One storage node.
pub struct Node {
    pub id: NodeId,
    pub site: SiteId,
    /// As configured, without credentials.
    pub store: String,
    pub clock: Clock,
    pub limits: Limits,
    pub catalog: Catalog,
    pub chunks: Arc<dyn ChunkStore>,
    pub chunk_locks: ChunkLocks,
    pub scrub: Scrub,
    pub slots: Arc<Slots>,
    pub search: SearchClient,
    pub client: ServerClient,
    pub metrics: Metrics,
    pub signals: Signals,
    pub health: Health,
    pub map_path: PathBuf,
    /// Held while a new map is made durable.
    pub map_writing: Mutex<()>,
}

impl Node {
    pub fn recorder(&self) -> Recorder {
        Recorder { node: self.id.clone(), home: self.site.clone() }
    }

    /// A client of another node.
    pub fn peer(&self, node: &NodeEntry) -> NodeClient {
        NodeClient::new(self.client.clone(), &node.http)
    }

    /// A change to rows of a slot that this node must own.
    pub async fn commit_in<T, F>(&self, slot: Slot, change: F) -> ApiResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> ApiResult<T> + Send + 'static,
    {
        let slots = self.slots.clone();
        self.catalog
            .commit(move |txn| {
                slots.check(slot)?;
                change(txn)
            })
            .await
    }

    /// Reads rows of a slot that this node must own.
    pub fn read_in<T>(&self, slot: Slot, read: impl FnOnce(&Reader) -> ApiResult<T>) -> ApiResult<T> {
        let value = self.catalog.read(read)?;
        // Checked after reading: the rows of a slot go only after the map that moves it was taken.
        self.slots.check(slot)?;
        Ok(value)
    }

    /// Takes a newer map, durably first: after a restart the node must not believe an older one.
    pub async fn adopt(&self, map: ClusterMap) -> ApiResult<()> {
        let _one_at_a_time = self.map_writing.lock().await;
        if map.epoch <= self.slots.epoch() {
            return Ok(());
        }
        let (path, written) = (self.map_path.clone(), map.clone());
        tokio::task::spawn_blocking(move || map_watch::save(&path, &written))
            .await
            .map_err(|error| ApiError::internal(&error))?
            .map_err(|error| ApiError::internal(&error))?;
        self.slots.adopt(map);
        self.report_map();
        Ok(())
    }

    /// The node is ready once it is in the map that it has.
    pub fn report_map(&self) {
        let known = self.slots.view().me().is_some();
        self.health
            .set("map", if known { Ok(()) } else { Err("the node is not in the cluster map yet".into()) });
    }

    /// Waits until search knows an announcement, at most `wait_ms`. Answers whether it does.
    pub async fn wait_announced(&self, announcement: Option<u64>, wait_ms: u64) -> bool {
        let Some(seq) = announcement else { return true };
        self.signals.announcement_queued.notify_one();
        let mut announced = self.signals.announced.subscribe();
        let wait = announced.wait_for(|through| *through >= seq);
        matches!(tokio::time::timeout(Duration::from_millis(wait_ms), wait).await, Ok(Ok(_)))
    }

    /// Makes known what became of open deliveries.
    pub fn report_ends(&self, ends: &[Ended]) {
        let mut closed = 0;
        for end in ends {
            if let Ended::Recorded(number) = end {
                closed += 1;
                self.signals.recorded(*number);
            }
        }
        self.metrics.add_open_deliveries(-closed);
    }
}
