use std::path::Path;

use bytes::Bytes;
use common::api::node::RefTag;
use common::api::search::SearchClient;
use common::auth::ClusterSecret;
use common::client::{HttpClient, ServerClient};
use common::cluster::ClusterMap;
use common::id::{NodeId, SiteId};
use common::server::Health;
use common::telemetry::MetricsRegistry;
use common::time::Clock;

use super::*;
use crate::catalog::Catalog;
use crate::chunks::ChunkLocks;
use crate::config::Limits;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::mover::Moves;
use crate::node::Signals;
use crate::shards::Shards;
use crate::store;
use crate::view::Maps;

/// A node on memory, without listeners and workers.
async fn node(dir: &Path) -> Arc<Node> {
    let registry = MetricsRegistry::new();
    let opened = store::open(&"memory:".parse().unwrap(), dir, &registry).await.unwrap();
    let catalog = Catalog::open(dir, opened.log, &opened.log_id, 1 << 20).await.unwrap();
    let (id, site) = (NodeId::new("tokyo.n1").unwrap(), SiteId::new("tokyo").unwrap());
    let secret = ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap();
    let client = ServerClient::new(HttpClient::new(), secret, "node", Clock::System);
    let limits = Limits {
        delivery_join_window: Duration::from_secs(1),
        delivery_open_max: Duration::from_secs(1),
        chunk_grace: Duration::ZERO,
        surplus_grace: Duration::from_secs(3600),
        collecting_grace: Duration::from_secs(600),
        slot_move: Duration::from_secs(1),
    };
    Arc::new(Node {
        maps: Arc::new(Maps::new(id.clone(), site.clone(), ClusterMap::default())),
        shards: Shards::default(),
        site,
        store: "memory:".into(),
        clock: Clock::System,
        limits,
        catalog,
        chunks: opened.chunks,
        chunk_locks: ChunkLocks::default(),
        leases: Leases::default(),
        scrub: Scrub::new((1 << 30).into(), 3_600_000.into()),
        moves: Moves::new(0.into()),
        search: SearchClient::new(client.clone(), "http://127.0.0.1:1"),
        client,
        metrics: Metrics::new(&registry),
        signals: Signals::default(),
        health: Health::default(),
        record_epoch: tokio::sync::watch::Sender::new(0),
        map_path: dir.join("map"),
        map_writing: tokio::sync::Mutex::new(()),
        id,
    })
}

fn chunk(text: &'static str) -> (ChunkHash, Bytes) {
    (ChunkHash::of(text.as_bytes()), Bytes::from_static(text.as_bytes()))
}

async fn add_row(node: &Node, hash: ChunkHash) {
    let name = "alice/song".parse().unwrap();
    node.catalog.commit(move |txn| chunks::add_ref(txn, &hash, 4, RefTag(1), &name)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_put_is_under_way_is_never_taken_for_surplus() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let (hash, bytes) = chunk("half");
    // A put has stored the bytes and not yet the row when the scrub lists the store and comes to delete.
    let kept = node.chunk_locks.using(&hash).await;
    node.chunks.put(hash, bytes.clone()).await.unwrap();
    assert_eq!(suspects(&node).await.unwrap(), [hash]);
    let deleting = tokio::spawn({
        let node = node.clone();
        async move { delete_if_unknown(&node, hash).await }
    });
    add_row(&node, hash).await;
    drop(kept);
    assert!(!deleting.await.unwrap().unwrap());
    assert_eq!(node.chunks.get(&hash).await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_a_given_up_put_left_in_the_queue_counts() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let (hash, bytes) = chunk("left");
    node.chunks.put(hash, bytes).await.unwrap();
    // The committer is busy while the row waits in its queue; whoever put the chunk is gone, and with it the lock.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let busy = node.catalog.commit(move |_| {
        wait.recv().unwrap();
        Ok(())
    });
    let name = "alice/song".parse().unwrap();
    let row = node.catalog.commit(move |txn| chunks::add_ref(txn, &hash, 4, RefTag(1), &name));
    let answers = async { tokio::join!(busy, row, delete_if_unknown(&node, hash)) };
    let release = async {
        tokio::task::yield_now().await;
        go.send(()).unwrap();
    };
    let ((_, _, deleted), ()) = tokio::join!(answers, release);
    assert!(!deleted.unwrap());
    assert!(node.chunks.contains(&hash).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_goes_on_behind_the_last_chunk_that_was_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let mut hashes = Vec::new();
    for text in ["aaaa", "bbbb", "cccc", "dddd"] {
        let (hash, bytes) = chunk(text);
        node.chunks.put(hash, bytes).await.unwrap();
        add_row(&node, hash).await;
        hashes.push(hash);
    }
    hashes.sort_unstable_by_key(|hash| *hash.as_bytes());
    // As a process that ended in the middle left it.
    let counts = ScrubCounts { chunks: 2, bytes: 8, ..ScrubCounts::default() };
    let round = OpenScrubRound { started: UnixMillis(7), after: Some(hashes[1]), counts };
    let left = ScrubValue { round: Some(round), last_completed: None };
    node.catalog
        .commit(move |txn| {
            txn.put(Key::Scrub, &left);
            Ok(())
        })
        .await
        .unwrap();
    node.catalog.read(|rows| node.scrub.restore(rows, &node.metrics.scrub)).unwrap();
    assert!(node.scrub.status().running);
    run_round(&node).await.unwrap();
    let last = node.scrub.status().last_completed.unwrap();
    assert_eq!((last.started, last.counts.chunks, last.counts.bytes), (UnixMillis(7), 4, 16));
    let written = node.catalog.read(|rows| rows.get::<ScrubValue>(Key::Scrub)).unwrap().unwrap();
    assert_eq!(written, ScrubValue { round: None, last_completed: Some(last) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_is_due_an_interval_behind_the_start_of_the_last_one_or_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path()).await;
    let now = node.clock.now();
    assert_eq!(node.scrub.due_in(now), Some(Duration::ZERO), "a new node begins at once");
    run_round(&node).await.unwrap();
    let last = node.scrub.status().last_completed.unwrap();
    assert_eq!(node.scrub.due_in(last.started), Some(Duration::from_secs(3600)));
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { run_round(&node).await }
    });
    start(&node).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert!(node.scrub.status().last_completed.unwrap().started >= last.completed);
}
