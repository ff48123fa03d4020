//! Adding and removing sources, and what bounds their reads.

use std::fs;

use common::api::origin::{Source, SourceState};
use common::error::ErrorCode;

use crate::harness::{Bed, eventually, id, noise, secret, send, source, url_of};
use http::Method;

const NO_RESCAN_MS: u64 = 600_000;

#[tokio::test]
async fn a_bucket_has_one_source_and_the_other_is_named() {
    let bed = Bed::with_files(50, &[("a.txt", b"a")]).await;
    bed.found("studio/a.txt", |_| true).await;
    let origin = bed.origin();
    fs::create_dir(bed.dir.path().join("more")).unwrap();
    let other = source("studio", &url_of(&bed.dir, "more"));
    let error = origin.add(&other).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Conflict));
    assert!(error.to_string().contains(&url_of(&bed.dir, "files")), "{error}");
    // The same again is no harm, and may bring a limit.
    let limited = Source { read_concurrency: Some(3), ..source("studio", &url_of(&bed.dir, "files")) };
    origin.add(&limited).await.unwrap();
    assert_eq!(origin.status().await.unwrap().sources[0].source, limited);
    assert_eq!(bed.collect("studio/a.txt").await, b"a");
}

#[tokio::test]
async fn a_removed_source_withdraws_all_also_over_a_restart_and_the_bucket_takes_another() {
    let bed = Bed::with_files(50, &[("a.txt", b"a")]).await;
    bed.found("studio/a.txt", |_| true).await;
    let origin = bed.origin();
    let error = origin.remove(&id("studio")).await.unwrap_err();
    assert!(error.to_string().contains("configuration"), "{error}");
    let more = bed.dir.path().join("more");
    fs::create_dir(&more).unwrap();
    for i in 0..600 {
        fs::write(more.join(i.to_string()), i.to_string()).unwrap();
    }
    origin.add(&source("more", &url_of(&bed.dir, "more"))).await.unwrap();
    bed.found("more/599", |_| true).await;
    let scanned = async || {
        let status = origin.status().await.unwrap();
        (status.sources[0].contents == 600 && status.announcements_pending == 0).then_some(())
    };
    eventually("all is announced", scanned).await;
    origin.remove(&id("more")).await.unwrap();
    let bed = bed.restart_origin(50).await;
    let origin = bed.origin();
    bed.lost("more/0").await;
    bed.lost("more/599").await;
    let gone = async || {
        let sources = origin.status().await.unwrap().sources;
        (sources.len() == 1).then_some(())
    };
    eventually("the source is forgotten", gone).await;
    assert_eq!(origin.remove(&id("more")).await.unwrap_err().code(), Some(ErrorCode::BucketNotFound));
    fs::create_dir(bed.dir.path().join("other")).unwrap();
    fs::write(bed.dir.path().join("other/0"), "another").unwrap();
    origin.add(&source("more", &url_of(&bed.dir, "other"))).await.unwrap();
    assert_eq!(bed.found("more/0", |_| true).await.len, 7);
}

#[tokio::test]
async fn two_sources_feed_two_buckets_of_two_providers() {
    let bed = Bed::with_files(50, &[("a.txt", b"of studio")]).await;
    let press = common::api::search::NewClient { client: id("press"), site: id("tokyo") };
    bed.search.create_client(&press).await.unwrap();
    fs::create_dir(bed.dir.path().join("news")).unwrap();
    fs::write(bed.dir.path().join("news/a.txt"), "of the press").unwrap();
    let news = Source { provider: id("press"), ..source("news", &url_of(&bed.dir, "news")) };
    bed.origin().add(&news).await.unwrap();
    assert_eq!(bed.found("studio/a.txt", |_| true).await.provider, id("studio"));
    assert_eq!(bed.found("news/a.txt", |_| true).await.provider, id("press"));
    assert_eq!(bed.collect("news/a.txt").await, b"of the press");
    assert_eq!(bed.collect("studio/a.txt").await, b"of studio");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_reads_than_allowed_are_under_way_and_the_others_are_told_so() {
    let bytes = noise(24 << 20, 7);
    let bed = Bed::with_files(NO_RESCAN_MS, &[("film.bin", &bytes)]).await;
    bed.found("studio/film.bin", |_| true).await;
    let origin = bed.origin();
    let limited = Source { read_concurrency: Some(2), ..source("studio", &url_of(&bed.dir, "files")) };
    origin.add(&limited).await.unwrap();
    let scanned =
        async || (origin.status().await.unwrap().sources[0].state == SourceState::Scanned).then_some(());
    eventually("scanned again", scanned).await;
    let chunk = bed.first_chunk("studio/film.bin").await;
    let asking: Vec<_> = (0..60)
        .map(|_| {
            let peer = bed.peer.clone();
            tokio::spawn(async move { peer.chunk(&id("studio/film.bin"), &chunk, 0).await.map(drop) })
        })
        .collect();
    let watching = tokio::spawn({
        let origin = bed.origin();
        async move {
            let mut most = 0;
            for _ in 0..200 {
                let status = &origin.status().await.unwrap().sources[0];
                most = most.max(status.reads_inflight);
                assert!(status.reads_inflight <= 2 && status.reads_waiting <= 8, "{status:?}");
            }
            most
        }
    });
    let (mut served, mut busy) = (0u64, 0u64);
    for answer in asking {
        match answer.await.unwrap() {
            Ok(()) => served += 1,
            Err(error) => {
                assert_eq!(error.code(), Some(ErrorCode::OriginBusy), "{error}");
                assert!(error.is_retryable());
                busy += 1;
            }
        }
    }
    assert!(watching.await.unwrap() <= 2);
    assert!(served >= 2, "{served} served");
    let metrics = bed.metrics().await;
    let line = format!(r#"dozo_origin_refused_reads_total{{reason="busy"}} {busy}"#);
    assert!(metrics.lines().any(|l| l == line), "{line} is missing in {metrics}");
    eventually("nothing is under way", async || {
        let status = &origin.status().await.unwrap().sources[0];
        (status.reads_inflight + status.reads_waiting == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rescan_finds_what_changed_and_asks_for_the_operator() {
    let bed = Bed::with_files(NO_RESCAN_MS, &[("a.txt", b"a")]).await;
    bed.found("studio/a.txt", |_| true).await;
    let url = format!("{}/v1/sources/studio/rescan", bed.origin_server.http);
    assert_eq!(send(Method::POST, &url, None, "{}").await.0, 401);
    let token = secret().admin_token().to_owned();
    assert_eq!(send(Method::POST, &url, Some(&token), "{}").await.0, 200);
    assert_eq!(send(Method::POST, &url, Some(&token), r#"{"all":true}"#).await.0, 400);
    let unknown = url.replace("studio", "nobody");
    assert_eq!(send(Method::POST, &unknown, Some(&token), "{}").await.0, 404);
}
