//! The scrub of a real node.

use common::api::node::{ScrubRound, ScrubStatus};
use common::telemetry::MetricsRegistry;
use storage_node::store;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

fn scrubbed(store: &str, dir: &Path, search: &str) -> Config {
    Config { scrub_bytes_per_s: (1 << 30).into(), ..config("n1", store, dir, search) }
}

async fn status(node: &TestNode) -> ScrubStatus {
    server_client().get_json(&node.running.admin, Role::StorageNode, "/v1/scrub", LIMIT).await.unwrap()
}

async fn first_round(node: &TestNode) -> ScrubRound {
    until("the first round is completed", async || status(node).await.last_completed.is_some()).await;
    status(node).await.last_completed.unwrap()
}

/// Asks for a round and waits for its end.
async fn scrub(node: &TestNode) -> ScrubRound {
    until("no round is under way", async || !status(node).await.running).await;
    let before = status(node).await.last_completed;
    let method = http::Method::POST;
    let _started: ScrubStatus = server_client()
        .send_json(method, &node.running.admin, Role::StorageNode, "/v1/scrub", &(), LIMIT)
        .await
        .unwrap();
    until("the round is completed", async || status(node).await.last_completed != before).await;
    status(node).await.last_completed.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_found_taken_out_and_repaired_by_the_next_put() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let file = dir.path().join("store");
    let url = format!("file:{}?size=1GiB", file.display());
    let node = start(scrubbed(&url, dir.path(), &search.url)).await;
    ready(&node).await;
    let bytes = Bytes::from(b"not to be found twice ".repeat(500));
    let (hash, song, tag) = (ChunkHash::of(&bytes), name("alice/song"), RefTag(1));
    node.client.put_chunk(&hash, &song, tag, bytes.clone()).await.unwrap();
    let good = scrub(&node).await.counts;
    assert_eq!((good.chunks, good.bytes, good.damaged), (1, bytes.len() as u64, 0));

    flip_a_bit(&file, &bytes[..200]);
    let bad = scrub(&node).await.counts;
    assert_eq!((bad.chunks, bad.damaged, bad.missing), (0, 1, 0));
    assert_eq!(
        node.client.get_chunk_bytes(&hash).await.unwrap_err().code(),
        Some(ErrorCode::ChunkNotFound),
        "it is taken out before anybody asked for it"
    );
    assert_eq!(scrub(&node).await.counts.missing, 1);
    assert!(node.client.put_chunk(&hash, &song, tag, bytes.clone()).await.unwrap());
    let repaired = scrub(&node).await.counts;
    assert_eq!((repaired.chunks, repaired.damaged, repaired.missing), (1, 0, 0));
    node.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_row_knows_of_is_deleted_and_what_the_store_lost_is_counted() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    for store in ["file:{}/block?size=300MiB", "dir:{}/objects"] {
        let url = store.replace("{}", &dir.path().display().to_string());
        let off = config("n1", &url, &dir.path().join(&store[..3]), &search.url);
        let on = Config { scrub_bytes_per_s: (1 << 30).into(), ..off.clone() };
        let node = start(off.clone()).await;
        ready(&node).await;
        let (kept, lost) = (Bytes::from_static(b"kept"), Bytes::from_static(b"lost"));
        for bytes in [&kept, &lost] {
            let (hash, song) = (ChunkHash::of(bytes), name("alice/song"));
            node.client.put_chunk(&hash, &song, RefTag(1), bytes.clone()).await.unwrap();
        }
        node.running.stop().await;

        let surplus = Bytes::from_static(b"surplus");
        let opened = store::open(&url.parse().unwrap(), &off.data_dir, &MetricsRegistry::new()).await;
        let opened = opened.unwrap();
        opened.chunks.put(ChunkHash::of(&surplus), surplus.clone()).await.unwrap();
        assert!(opened.chunks.delete(&ChunkHash::of(&lost)).await.unwrap());
        drop(opened);

        let node = start(on).await;
        let counts = first_round(&node).await.counts;
        assert_eq!((counts.chunks, counts.missing, counts.surplus), (1, 1, 1), "{url}");
        let gone = node.client.get_chunk_bytes(&ChunkHash::of(&surplus)).await.unwrap_err();
        assert_eq!(gone.code(), Some(ErrorCode::ChunkNotFound), "{url}");
        assert_eq!(node.client.get_chunk_bytes(&ChunkHash::of(&kept)).await.unwrap(), kept);
        node.running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_survives_a_restart_and_counts_nothing_twice() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let url = format!("file:{}?size=300MiB", dir.path().join("store").display());
    let node = start(config("n1", &url, dir.path(), &search.url)).await;
    ready(&node).await;
    for n in 0..4u8 {
        let bytes = Bytes::from(vec![n; 10_000]);
        let hash = ChunkHash::of(&bytes);
        node.client.put_chunk(&hash, &name("alice/song"), RefTag(1), bytes).await.unwrap();
    }
    assert_eq!(status(&node).await.bytes_per_s, 0, "off");
    node.running.stop().await;

    // So slow that the round stands at its first chunk.
    let slow = Config { scrub_bytes_per_s: 1.into(), ..config("n1", &url, dir.path(), &search.url) };
    let node = start(slow).await;
    until("the first chunk is read", async || status(&node).await.counts.chunks == 1).await;
    let begun = status(&node).await;
    assert!(begun.running && begun.progress > 0.0 && begun.progress < 1.0);
    node.running.stop().await;

    let node = start(scrubbed(&url, dir.path(), &search.url)).await;
    let last = first_round(&node).await;
    assert_eq!((Some(last.started), last.counts.chunks, last.counts.bytes), (begun.started, 4, 40_000));
    node.running.stop().await;
}
