//! What becomes of files that come, change and go.

use std::fs::File;
use std::time::{Duration, SystemTime};

use common::api::search::{ChangeKind, SearchClient, Visibility};
use common::client::{HttpClient, ServerClient};
use common::cluster::MapEpoch;
use common::time::Clock;
use http::Method;

use crate::harness::{Bed, add_studio, eventually, id, secret, send, start_search, url_of};

#[tokio::test]
async fn a_folder_is_announced_whatever_its_files_are_called() {
    let odd = [
        "plain.txt",
        "deep/er/film.mp4",
        "two words & more?.png",
        "100%25.wav",
        "日本語 +.txt",
        "#hash#tag",
        ".hidden",
        "back\\slash",
        "..dots..",
        "[br]{ac}^~`\"'.json",
        "empty.txt",
    ];
    let files: Vec<(&str, &[u8])> =
        odd.iter().map(|n| (*n, if *n == "empty.txt" { b"".as_slice() } else { n.as_bytes() })).collect();
    // These cannot be keys; they must not keep the others from being found.
    let unnameable: [(&str, &[u8]); 2] = [("new\nline.txt", b"x"), ("track #3", b"x")];
    let bed = Bed::with_files(50, &[files.clone(), unnameable.to_vec()].concat()).await;
    for (name, bytes) in files {
        let info = bed.found(&format!("studio/{name}"), |_| true).await;
        assert_eq!(
            (info.len, info.origins, info.provider),
            (bytes.len() as u64, vec![id("archive")], id("studio"))
        );
        assert_eq!(bed.collect(&format!("studio/{name}")).await, bytes, "{name}");
    }
    assert_eq!(bed.found("studio/100%25.wav", |_| true).await.media_type, "audio/wav");
    let listed = bed.search.find("", "", 100).await.unwrap().contents.len();
    assert_eq!(listed, odd.len());
    assert_eq!(bed.search.bucket(&id("studio")).await.unwrap().visibility, Visibility::Public);
    let map = bed.search.map(MapEpoch(0), Duration::ZERO).await.unwrap();
    assert_eq!(map.origins[0].http, bed.origin_server.http);
}

#[tokio::test]
async fn a_changed_file_is_a_new_version_and_a_touched_one_is_not() {
    let bed = Bed::with_files(50, &[("a.txt", b"one"), ("b.txt", b"same")]).await;
    let first = bed.found("studio/a.txt", |_| true).await.version;
    let same = bed.found("studio/b.txt", |_| true).await.version;
    File::options()
        .append(true)
        .open(bed.dir.path().join("files/b.txt"))
        .unwrap()
        .set_modified(SystemTime::now())
        .unwrap();
    bed.write("a.txt", b"two, longer");
    let second = bed.found("studio/a.txt", |i| i.version != first).await;
    assert!(second.version > first);
    assert_eq!(second.len, 11);
    assert_eq!(bed.collect("studio/a.txt").await, b"two, longer");
    let page = bed.search.changes(0, Duration::ZERO).await.unwrap();
    let changes: Vec<_> = page.changes.iter().map(|c| (c.kind, c.version)).collect();
    assert_eq!(changes, [(ChangeKind::NewVersion, second.version)]);
    assert_eq!(bed.found("studio/b.txt", |_| true).await.version, same);
}

#[tokio::test]
async fn a_removed_file_is_withdrawn_and_comes_back_as_a_newer_version() {
    let bed = Bed::with_files(50, &[("a.txt", b"one"), ("b.txt", b"stays")]).await;
    let path = bed.dir.path().join("files/a.txt");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let first = bed.found("studio/a.txt", |_| true).await.version;
    std::fs::remove_file(&path).unwrap();
    bed.lost("studio/a.txt").await;
    assert!(bed.peer.holding(&id("studio/a.txt")).await.is_err());
    bed.found("studio/b.txt", |_| true).await;
    bed.write("a.txt", b"one");
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(modified - Duration::from_secs(3600))
        .unwrap();
    let again = bed.found("studio/a.txt", |_| true).await.version;
    assert!(again > first);
    assert_eq!(again.hash, first.hash);
}

#[tokio::test]
async fn a_restart_keeps_the_registry_and_reads_nothing_again() {
    let bed = Bed::with_files(50, &[("a.txt", b"one")]).await;
    let before = bed.found("studio/a.txt", |_| true).await;
    let bed = bed.restart_origin(50).await;
    bed.write("b.txt", b"two");
    bed.found("studio/b.txt", |_| true).await;
    assert_eq!(bed.found("studio/a.txt", |_| true).await, before);
    let (_, text) = send(Method::GET, &format!("{}/metrics", bed.origin_server.admin), None, "").await;
    assert!(text.lines().any(|l| l == "dozo_origin_scanned_bytes_total 3"), "{text}");
}

#[tokio::test]
async fn a_search_that_lost_its_memory_is_told_everything_anew() {
    let bed = Bed::with_files(50, &[("a.txt", b"one"), ("b.txt", b"two")]).await;
    bed.found("studio/a.txt", |_| true).await;
    bed.found("studio/b.txt", |_| true).await;
    let Bed { dir, search_server, origin_server, search: _old, peer } = bed;
    let address = search_server.http.trim_start_matches("http://").parse().unwrap();
    search_server.stop().await;
    std::fs::remove_dir_all(dir.path().join("search")).unwrap();
    let search_server = start_search(dir.path().join("search"), address).await;
    let client = ServerClient::new(HttpClient::new(), secret(), "test", Clock::System);
    let search = SearchClient::new(client, &search_server.http);
    add_studio(&search).await;
    let bed = Bed { dir, search_server, origin_server, search, peer };
    bed.write("c.txt", b"three");
    for name in ["a", "b", "c"] {
        bed.found(&format!("studio/{name}.txt"), |_| true).await;
    }
}

#[tokio::test]
async fn a_source_is_added_at_run_time_and_outlives_a_restart() {
    let bed = Bed::new(50).await;
    std::fs::create_dir(bed.dir.path().join("more")).unwrap();
    std::fs::write(bed.dir.path().join("more/x.txt"), b"x").unwrap();
    let (url, token) = (format!("{}/v1/sources", bed.origin_server.http), secret().admin_token().to_owned());
    let source = |url: &str| format!(r#"{{"bucket":"more","provider":"studio","url":"{url}"}}"#);
    let more = source(&url_of(&bed.dir, "more"));
    let (status, _) = send(Method::POST, &url, None, &more).await;
    assert_eq!(status, 401);
    for (bad, reason) in
        [(source("dir:/no/such"), "/no/such"), (source("ftp://x"), "the form is"), ("{}".into(), "JSON")]
    {
        let (status, answer) = send(Method::POST, &url, Some(&token), &bad).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains(reason), "{answer}");
    }
    let (status, answer) = send(Method::POST, &url, Some(&token), &more).await;
    assert_eq!(status, 200, "{answer}");
    bed.found("more/x.txt", |_| true).await;
    let ready = format!("{}/readyz?verbose", bed.origin_server.admin);
    let all_scanned = async || {
        let (status, text) = send(Method::GET, &ready, None, "").await;
        (status == 200 && text.contains("[i] sources: 2 of 2 scanned")).then_some(())
    };
    eventually("both sources scanned", all_scanned).await;

    let bed = bed.restart_origin(50).await;
    std::fs::write(bed.dir.path().join("more/y.txt"), b"y").unwrap();
    bed.found("more/y.txt", |_| true).await;
}

#[tokio::test]
async fn a_source_waits_for_its_provider_and_leaves_others_buckets_alone() {
    let bed = Bed::new(50).await;
    let (url, token) = (format!("{}/v1/sources", bed.origin_server.http), secret().admin_token().to_owned());
    bed.write("a.txt", b"a");
    bed.found("studio/a.txt", |_| true).await;
    let files = url_of(&bed.dir, "files");
    let body = format!(r#"{{"bucket":"news","provider":"press","url":"{files}"}}"#);
    assert_eq!(send(Method::POST, &url, Some(&token), &body).await.0, 200);
    let waits = async || {
        let (_, text) = send(Method::GET, &url, Some(&token), "").await;
        text.contains("there is no client press").then_some(())
    };
    eventually("the source tells what it waits for", waits).await;
    let press = common::api::search::NewClient { client: id("press"), site: id("tokyo") };
    bed.search.create_client(&press).await.unwrap();
    assert_eq!(bed.found("news/a.txt", |_| true).await.provider, id("press"));

    let body = format!(r#"{{"bucket":"studio","provider":"press","url":"{files}"}}"#);
    let (status, answer) = send(Method::POST, &url, Some(&token), &body).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer.contains("belongs to studio"), "{answer}");
    assert_eq!(bed.search.bucket(&id("studio")).await.unwrap().provider, id("studio"));
}

#[tokio::test]
async fn an_origin_is_ready_only_once_search_has_taken_it() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let config = origin::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        name: id("archive"),
        search: format!("http://{address}"),
        data_dir: dir.path().join("origin"),
        advertise: None,
        rescan_ms: 50.into(),
        settle_ms: 50.into(),
        read_concurrency: 1,
        read_queue: 1,
        sources: Vec::new(),
    };
    let running = origin::start(config, secret()).await.unwrap();
    let ready = format!("{}/readyz?verbose", running.admin);
    let (status, text) = send(Method::GET, &ready, None, "").await;
    assert_eq!(status, 503);
    assert!(text.contains("[-] registered"), "{text}");
    let search = start_search(dir.path().join("search"), address).await;
    let is_ready = async || (send(Method::GET, &ready, None, "").await.0 == 200).then_some(());
    eventually("the origin is ready", is_ready).await;
    running.stop().await;
    search.stop().await;
}
