//! References that no holding needs go, those of uploads on their way stay.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_no_holding_needs_is_released_after_the_grace() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let short =
        |name: &str| Config { surplus_grace_ms: 1000, ..config(name, "memory:", dir.path(), &search.url) };
    let (first, second) = (start(short("n1")).await, start(short("n2")).await);
    ready(&first).await;
    ready(&second).await;
    let songs: Vec<ContentName> = (0..12).map(|n| name(&format!("alice/song-{n}"))).collect();
    let (kept, late, given_up) = (chunk(b"kept"), chunk(b"late"), chunk(b"given up"));
    let put = async |song: &ContentName, tag: u64, bytes: &'static [u8]| {
        let put =
            first.client.put_chunk(&chunk(bytes).hash, song, RefTag(tag), Bytes::from_static(bytes)).await;
        put.unwrap();
    };
    let hold = async |song: &ContentName, tag: u64, bytes: &[u8]| {
        let request = publication(song, manifest(bytes, ChunkList::Inline(vec![chunk(bytes)])), RefTag(tag));
        ask_owner(&first, &second, async |node: &NodeClient| node.hold(&request).await).await;
    };
    for song in &songs {
        put(song, 1, b"kept").await;
        hold(song, 1, b"kept").await;
        put(song, 2, b"given up").await;
        put(song, 4, b"late").await;
    }
    // An upload that becomes the holding in the end: a new version.
    put(&songs[0], 3, b"late").await;
    hold(&songs[0], 3, b"late").await;
    until("surplus references are released", async || {
        refs(&first.client, given_up.hash).await.is_none_or(|count| count == 0)
    })
    .await;
    until("those of a replaced version too", async || {
        refs(&first.client, kept.hash).await == Some(11) && refs(&first.client, late.hash).await == Some(1)
    })
    .await;
    assert_eq!(first.client.get_chunk_bytes(&late.hash).await.unwrap(), &b"late"[..]);
    first.running.stop().await;
    second.running.stop().await;
}
