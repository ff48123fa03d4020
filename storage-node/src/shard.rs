//! What the routes and workers of one shard share, while this node serves it.
//!
//! A *shard* is what a node decides for: the rows of its slots, its delivery records, and what it has to tell others.
//! Usually a node serves its own; that of a node which is away is served by one that followed it, under the same name:
//! records, announcements and fences go on as if nothing had happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use common::error::ApiResult;
use common::id::NodeId;
use common::placement::Slot;
use common::record::RecordNumber;
use common::time::UnixMillis;
use tokio::sync::{Mutex, Notify, watch};

use crate::catalog::Catalog;
use crate::catalog::key::{self, Fee, Key, Tag};
use crate::catalog::rows::{ChainHead, MoveStep};
use crate::catalog::stream::{Stream, deposed};
use crate::catalog::txn::{Reader, Rows, Txn};
use crate::deliveries::{Ended, Recorder};
use crate::node::Node;
use crate::outbox;
use crate::slots::{self, Slots};
use crate::temporary;

/// How far search has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Announced {
    /// It knows the announcements up to this one.
    pub through: u64,
    /// It did not take the last ones: nobody should wait for it.
    pub is_unreached: bool,
    /// Another node serves the shard by now, and tells search in the place of this one.
    pub is_deposed: bool,
}

/// What is said from a commit to those who wait for its effects.
pub struct Signals {
    /// Last record of the chain; epoch 0 until search gave one.
    pub head: watch::Sender<RecordNumber>,
    pub announced: watch::Sender<Announced>,
    pub announcement_queued: Notify,
    pub snapshot_asked: Notify,
    pub reap_queued: Notify,
    pub tally_queued: Notify,
    pub end_kept: Notify,
    pub slot_frozen: Notify,
    pub feed_rewound: Notify,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            head: watch::Sender::new(RecordNumber { epoch: 0, seq: 0 }),
            announced: watch::Sender::default(),
            announcement_queued: Notify::new(),
            snapshot_asked: Notify::new(),
            reap_queued: Notify::new(),
            tally_queued: Notify::new(),
            end_kept: Notify::new(),
            slot_frozen: Notify::new(),
            feed_rewound: Notify::new(),
        }
    }
}

impl Signals {
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

/// What the shard still has to tell others, as its outboxes saw it last.
#[derive(Default)]
pub struct Pending {
    service: PendingRecords,
    content: PendingRecords,
    announcements: AtomicU64,
}

#[derive(Default)]
struct PendingRecords {
    count: AtomicU64,
    /// End of the oldest one's delivery in milliseconds since 1970; 0 when none waits.
    oldest_end_ms: AtomicU64,
}

impl Pending {
    fn of(&self, fee: Fee) -> &PendingRecords {
        match fee {
            Fee::Service => &self.service,
            Fee::Content => &self.content,
        }
    }

    /// `oldest`: end of the oldest one's delivery, if any waits.
    pub fn set_records(&self, fee: Fee, count: u64, oldest: Option<UnixMillis>) {
        let waiting = self.of(fee);
        waiting.count.store(if oldest.is_some() { count } else { 0 }, Ordering::Relaxed);
        waiting.oldest_end_ms.store(oldest.map_or(0, |end| end.0), Ordering::Relaxed);
    }

    pub fn records(&self, fee: Fee) -> u64 {
        self.of(fee).count.load(Ordering::Relaxed)
    }

    /// How long the oldest record waits; zero while none does.
    pub fn records_age(&self, fee: Fee, now: UnixMillis) -> Duration {
        match self.of(fee).oldest_end_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            end => now.since(UnixMillis(end)),
        }
    }

    pub fn set_announcements(&self, count: u64) {
        self.announcements.store(count, Ordering::Relaxed);
    }

    pub fn announcements(&self) -> u64 {
        self.announcements.load(Ordering::Relaxed)
    }
}

/// One shard that this node serves.
pub struct Shard {
    /// The node whose shard it is.
    pub id: NodeId,
    pub node: Arc<Node>,
    /// Its rows. A change is answered when it is durable here and at the followers that count.
    pub catalog: Catalog,
    pub slots: Arc<Slots>,
    pub stream: Arc<Stream>,
    pub signals: Signals,
    pub pending: Pending,
    pub temporary: temporary::Figures,
    /// Held while the followers that count are brought in line with a map.
    pub membership: Mutex<()>,
    open_deliveries: AtomicI64,
}

impl Shard {
    /// `catalog` sees the shard's rows and changes them through `stream`.
    pub fn new(id: NodeId, node: Arc<Node>, catalog: Catalog, stream: Arc<Stream>) -> Self {
        let slots = Arc::new(Slots::new(id.clone(), node.maps.clone()));
        let (signals, pending, temporary) = Default::default();
        let (membership, open_deliveries) = (Mutex::default(), AtomicI64::new(0));
        Self { id, node, catalog, slots, stream, signals, pending, temporary, membership, open_deliveries }
    }

    /// Brings back what is kept beside the rows for speed.
    pub fn recall(&self, rows: &(impl Rows + ?Sized)) -> ApiResult<()> {
        self.slots.restore(rows)?;
        if let Some(head) = rows.get::<ChainHead>(Key::ChainHead)? {
            self.signals.recorded(RecordNumber { epoch: head.epoch, seq: head.seq });
        }
        self.add_open_deliveries(rows.count(&key::all(Tag::OpenDelivery))? as i64);
        Ok(())
    }

    /// What is still to be settled with others before the shard may be forgotten: deliveries without their record,
    /// records that a billing server has not booked, announcements, references to be released, ends for other sites,
    /// slots that their new owner has yet to fetch.
    pub fn unsettled(&self) -> ApiResult<u64> {
        let waiting = [Tag::OpenDelivery, Tag::Announcement, Tag::Reap, Tag::HomeEnd];
        let records = outbox::billing::pending(self)?;
        self.catalog.read(|rows| {
            let moving = slots::moving(rows)?;
            let taken_back = moving.iter().filter(|(_, moving)| moving.step == MoveStep::TakenBack).count();
            let unsettled = records + taken_back as u64;
            waiting.into_iter().try_fold(unsettled, |sum, tag| Ok(sum + rows.count(&key::all(tag))?))
        })
    }

    pub fn recorder(&self) -> Recorder {
        Recorder { node: self.id.clone(), home: self.node.site.clone() }
    }

    /// A change to rows of a slot that the shard must have.
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

    /// Reads rows of a slot that the shard must have: what is durable here. A follower may not have the last of it yet,
    /// which is not acknowledged then; who must be sure reads in a commit, or with [`Shard::read_settled`].
    pub fn read_in<T>(&self, slot: Slot, read: impl FnOnce(&Reader) -> ApiResult<T>) -> ApiResult<T> {
        // Before: rows that are still coming in are not to be seen. And after: those of a slot that goes are deleted only
        // when the map that moves it was taken.
        self.slots.check(slot)?;
        let value = self.catalog.read(read)?;
        self.slots.check(slot)?;
        Ok(value)
    }

    /// Reads, and answers when the followers have what was read: for whatever is told to others or done elsewhere. A
    /// primary that takes over might not know it otherwise, and make something else of the same number.
    pub async fn read_settled<T>(&self, read: impl FnOnce(&Reader) -> ApiResult<T>) -> ApiResult<T> {
        let value = self.catalog.read(read)?;
        self.stream.settle().await;
        Ok(value)
    }

    /// Waits until search knows an announcement, at most `wait_ms`, and not while search cannot be reached. Answers
    /// whether it does.
    ///
    /// # Errors
    /// `WrongNode` once another node serves the shard: that one tells search, and who asks it again can wait there.
    pub async fn wait_announced(&self, announcement: Option<u64>, wait_ms: u64) -> ApiResult<bool> {
        let Some(seq) = announcement else { return Ok(true) };
        self.signals.announcement_queued.notify_one();
        if wait_ms == 0 {
            return Ok(false);
        }
        let mut announced = self.signals.announced.subscribe();
        let is_over = |announced: &Announced| {
            announced.through >= seq || announced.is_unreached || announced.is_deposed
        };
        let told = tokio::time::timeout(Duration::from_millis(wait_ms), announced.wait_for(is_over)).await;
        let Ok(Ok(announced)) = told else { return Ok(false) };
        if announced.is_deposed && announced.through < seq {
            return Err(deposed());
        }
        Ok(announced.through >= seq)
    }

    /// Answers no more: another node serves the shard.
    pub fn close(&self) {
        self.stream.close();
        self.signals.announced.send_modify(|announced| announced.is_deposed = true);
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
        self.add_open_deliveries(-closed);
    }

    pub fn add_open_deliveries(&self, change: i64) {
        self.open_deliveries.fetch_add(change, Ordering::Relaxed);
        self.node.metrics.add_open_deliveries(change);
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.node.metrics.add_open_deliveries(-self.open_deliveries.load(Ordering::Relaxed));
    }
}
