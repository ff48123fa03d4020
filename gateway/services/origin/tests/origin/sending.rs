//! What a collector gets.

use common::error::ErrorCode;
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef};
use http::Method;

use crate::harness::{Bed, eventually, id, noise, secret, send};

const NO_RESCAN_MS: u64 = 600_000;

#[tokio::test]
async fn a_long_content_is_sent_chunk_by_chunk_with_its_stored_list() {
    let bytes = noise(112 << 20, 11);
    let bed = Bed::with_files(NO_RESCAN_MS, &[("film.mp4", &bytes)]).await;
    bed.found("studio/film.mp4", |_| true).await;
    let holding = bed.peer.holding(&id("studio/film.mp4")).await.unwrap();
    assert!(
        matches!(holding.manifest.chunks, ChunkList::Stored { .. }),
        "{} chunks",
        holding.manifest.chunk_count()
    );
    assert!(bed.collect("studio/film.mp4").await == bytes);
    let (_, text) = send(Method::GET, &format!("{}/metrics", bed.origin_server.admin), None, "").await;
    let sent = (bytes.len() + holding.manifest.chunk_count() * ChunkRef::ENCODED_LEN) as u64;
    let line = format!("dozo_origin_sent_bytes_total {sent}");
    assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    assert!(text.lines().any(|l| l == "dozo_origin_contents 1"), "{text}");
}

#[tokio::test]
async fn bytes_that_changed_are_never_sent_and_the_object_is_read_again_at_once() {
    for replacement in [b"another text of the same length".as_slice(), b"short", b""] {
        let bed = Bed::with_files(NO_RESCAN_MS, &[("a.txt", b"the text that was registered ok")]).await;
        let before = bed.found("studio/a.txt", |_| true).await.version;
        let chunk = bed.first_chunk("studio/a.txt").await;
        bed.write("a.txt", replacement);
        let error = bed.peer.chunk(&id("studio/a.txt"), &chunk, 0).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::OriginalChanged), "{error}");
        let after = bed.found("studio/a.txt", |i| i.version != before).await;
        assert!(after.version > before);
        assert_eq!(bed.collect("studio/a.txt").await, replacement);
    }
}

#[tokio::test]
async fn a_file_that_is_gone_is_withdrawn_when_it_is_asked_for() {
    let bed = Bed::with_files(NO_RESCAN_MS, &[("a.txt", b"text")]).await;
    bed.found("studio/a.txt", |_| true).await;
    let chunk = bed.first_chunk("studio/a.txt").await;
    std::fs::remove_file(bed.dir.path().join("files/a.txt")).unwrap();
    let error = bed.peer.chunk(&id("studio/a.txt"), &chunk, 0).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::OriginalChanged), "{error}");
    bed.lost("studio/a.txt").await;
}

#[tokio::test]
async fn what_was_never_there_is_refused_with_a_code() {
    let bed = Bed::with_files(NO_RESCAN_MS, &[("a.txt", b"text")]).await;
    bed.found("studio/a.txt", |_| true).await;
    bed.peer.ping().await.unwrap();
    let chunk = bed.first_chunk("studio/a.txt").await;
    let (a, b) = (id("studio/a.txt"), id("studio/b.txt"));
    let code = |result: Result<bytes::Bytes, common::client::CallError>| result.unwrap_err().code();
    let other = ChunkRef { hash: ChunkHash::of(b"other"), ..chunk };
    assert_eq!(code(bed.peer.chunk(&a, &other, 0).await), Some(ErrorCode::ChunkNotFound));
    assert_eq!(code(bed.peer.chunk(&a, &chunk, 1).await), Some(ErrorCode::ChunkNotFound));
    assert_eq!(code(bed.peer.chunk(&a, &chunk, u64::MAX).await), Some(ErrorCode::ChunkNotFound));
    assert_eq!(code(bed.peer.chunk(&b, &chunk, 0).await), Some(ErrorCode::ChunkNotFound));
    let empty = ChunkRef { len: 0, ..chunk };
    assert_eq!(code(bed.peer.chunk(&a, &empty, 0).await), Some(ErrorCode::InvalidRequest));
    assert_eq!(bed.peer.holding(&b).await.unwrap_err().code(), Some(ErrorCode::ContentNotFound));

    let base = &bed.origin_server.http;
    let token = secret();
    for (path, status) in [
        ("/v1/peer/holding?name=nokey", 400),
        ("/v1/peer/chunks/xyz?name=studio/a.txt&offset=0&len=4", 400),
        ("/v1/peer/chunks/%ff?name=studio/a.txt&offset=0&len=4", 400),
        ("/v1/peer/nothing", 404),
    ] {
        let (got, body) = send(Method::GET, &format!("{base}{path}"), Some(token.admin_token()), "").await;
        assert_eq!(got, status, "{path}: {body}");
        assert!(body.contains("request_id"), "{body}");
    }
    let (got, _) = send(Method::GET, &format!("{base}/v1/peer/ping"), None, "").await;
    assert_eq!(got, 401);
}

#[tokio::test]
async fn an_unchanged_object_is_not_read_again_because_somebody_asks_for_nonsense() {
    let bed = Bed::with_files(NO_RESCAN_MS, &[("a.txt", b"text")]).await;
    bed.found("studio/a.txt", |_| true).await;
    let nonsense = ChunkRef { hash: ChunkHash::of(b"no"), len: 4 };
    let _refused = bed.peer.chunk(&id("studio/a.txt"), &nonsense, 0).await.unwrap_err();
    let chunk = bed.first_chunk("studio/a.txt").await;
    bed.write("a.txt", b"tex2");
    let _refused = bed.peer.chunk(&id("studio/a.txt"), &chunk, 0).await.unwrap_err();
    let read_twice = async || {
        let (_, text) = send(Method::GET, &format!("{}/metrics", bed.origin_server.admin), None, "").await;
        text.lines().any(|l| l == "dozo_origin_scanned_bytes_total 8").then_some(())
    };
    eventually("only the changed object is read again", read_twice).await;
}
