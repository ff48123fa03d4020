//! How changes in a folder are noticed, and what is not believed.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use common::api::origin::{OriginClient, Rescan, SourceState, SourceStatus};

use crate::harness::{Bed, LONG, eventually, id};

/// Only the watch and what is asked for tell of changes.
const NO_RESCAN_MS: u64 = 600_000;

async fn status(origin: &OriginClient) -> SourceStatus {
    origin.status().await.unwrap().sources.remove(0)
}

async fn scanned(bed: &Bed) {
    let origin = bed.origin();
    let scanned =
        async || Some(status(&origin).await).filter(|s| s.state == SourceState::Scanned && s.watched);
    eventually("the source is scanned and watched", scanned).await;
}

#[tokio::test]
async fn what_happens_in_a_folder_is_noticed_without_a_scan() {
    let bed = Bed::with_files(NO_RESCAN_MS, &[("a.txt", b"one"), ("gone.txt", b"x")]).await;
    scanned(&bed).await;
    let first = bed.found("studio/a.txt", |_| true).await.version;
    bed.found("studio/gone.txt", |_| true).await;
    bed.write("a.txt", b"two");
    bed.write("new.txt", b"new");
    fs::remove_file(bed.dir.path().join("files/gone.txt")).unwrap();
    assert!(bed.found("studio/a.txt", |i| i.version != first).await.version > first);
    bed.found("studio/new.txt", |_| true).await;
    bed.lost("studio/gone.txt").await;
}

#[tokio::test]
async fn a_folder_that_comes_goes_or_is_renamed_takes_its_files_along() {
    let bed = Bed::with_files(NO_RESCAN_MS, &[("stays.txt", b"s")]).await;
    scanned(&bed).await;
    let files = bed.dir.path().join("files");
    let outside = bed.dir.path().join("album");
    fs::create_dir_all(outside.join("disc")).unwrap();
    fs::write(outside.join("disc/1.flac"), b"music").unwrap();
    fs::rename(&outside, files.join("album")).unwrap();
    bed.found("studio/album/disc/1.flac", |_| true).await;
    fs::rename(files.join("album"), files.join("renamed")).unwrap();
    bed.found("studio/renamed/disc/1.flac", |_| true).await;
    bed.lost("studio/album/disc/1.flac").await;
    fs::remove_dir_all(files.join("renamed")).unwrap();
    bed.lost("studio/renamed/disc/1.flac").await;
    bed.found("studio/stays.txt", |_| true).await;
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_registered_half() {
    let bed = Bed::with_settling(NO_RESCAN_MS, 600, &[("other.txt", b"x")]).await;
    scanned(&bed).await;
    let path = bed.dir.path().join("files/film.bin");
    let mut file = File::create(&path).unwrap();
    let name = id("studio/film.bin");
    for _ in 0..20 {
        file.write_all(b"a part of the film ").unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(bed.search.lookup(&name).await.is_err(), "it was registered half");
    }
    drop(file);
    let info = bed.found("studio/film.bin", |_| true).await;
    assert_eq!(info.len, 20 * 19);
    assert_eq!(bed.collect("studio/film.bin").await.len(), 20 * 19);
}

#[tokio::test]
async fn a_file_dated_in_the_future_is_registered_all_the_same() {
    let bed = Bed::new(NO_RESCAN_MS).await;
    scanned(&bed).await;
    bed.write("a.txt", b"from tomorrow");
    let file = File::options().append(true).open(bed.dir.path().join("files/a.txt")).unwrap();
    file.set_modified(std::time::SystemTime::now() + Duration::from_secs(86_400)).unwrap();
    bed.found("studio/a.txt", |_| true).await;
}

#[tokio::test]
async fn a_folder_that_was_emptied_is_believed_only_by_a_second_scan() {
    let files: Vec<(String, Vec<u8>)> = (0..30).map(|i| (format!("{i}.txt"), vec![i])).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let bed = Bed::with_files(1500, &files).await;
    for (name, _) in &files {
        bed.found(&format!("studio/{name}"), |_| true).await;
    }
    let origin = bed.origin();
    for (name, _) in &files {
        fs::remove_file(bed.dir.path().join("files").join(name)).unwrap();
    }
    let held = async || status(&origin).await.held;
    let held = eventually("a scan misses too much", held).await;
    assert!(!held.needs_word);
    assert!(held.contents >= 20, "{held:?}");
    let metrics = bed.metrics().await;
    assert!(metrics.contains(r#"dozo_origin_withdrawals_held{bucket="studio"} "#), "{metrics}");
    // Only a few went one by one.
    assert!(bed.search.find("", "", 100).await.unwrap().contents.len() >= 20);
    for (name, _) in &files {
        bed.lost(&format!("studio/{name}")).await;
    }
    eventually("nothing is held", async || status(&origin).await.held.is_none().then_some(())).await;
}

#[tokio::test]
async fn what_another_folder_at_the_same_path_lacks_is_withdrawn_only_at_the_operators_word() {
    let bed = Bed::with_files(100, &[("a.txt", b"a"), ("b.txt", b"b")]).await;
    let origin = bed.origin();
    bed.found("studio/a.txt", |_| true).await;
    bed.found("studio/b.txt", |_| true).await;
    scanned(&bed).await;
    // As after an unmount: another folder, with nothing in it. The old one is kept, so that its inode is.
    let (files, aside) = (bed.dir.path().join("files"), bed.dir.path().join("aside"));
    fs::rename(&files, &aside).unwrap();
    fs::create_dir(&files).unwrap();
    let asks = async || status(&origin).await.held.filter(|held| held.needs_word);
    assert_eq!(eventually("the operator is asked", asks).await.contents, 2);
    let problem = status(&origin).await.problem.unwrap();
    assert!(problem.contains("dozo origin rescan studio --withdraw"), "{problem}");
    let scans = async || status(&origin).await.scan.ended;
    for _ in 0..3 {
        let before = scans().await;
        eventually("another scan", async || scans().await.filter(|now| Some(*now) > before)).await;
    }
    bed.found("studio/a.txt", |_| true).await;
    // A read that misses its object does not withdraw it either.
    let chunk = bed.first_chunk("studio/b.txt").await;
    let _refused = bed.peer.chunk(&id("studio/b.txt"), &chunk, 0).await.unwrap_err();
    // It is mounted again: all is as before.
    fs::remove_dir(&files).unwrap();
    fs::rename(&aside, &files).unwrap();
    eventually("nothing is held", async || status(&origin).await.held.is_none().then_some(())).await;
    assert_eq!(bed.collect("studio/b.txt").await, b"b");

    fs::rename(&files, &aside).unwrap();
    fs::create_dir(&files).unwrap();
    eventually("the operator is asked", asks).await;
    origin.rescan(&id("studio"), Rescan { withdraw: true }).await.unwrap();
    bed.lost("studio/a.txt").await;
    bed.lost("studio/b.txt").await;
}

#[tokio::test]
async fn a_folder_that_is_away_withdraws_nothing() {
    let bed = Bed::with_files(100, &[("a.txt", b"a")]).await;
    let origin = bed.origin();
    bed.found("studio/a.txt", |_| true).await;
    let (files, aside) = (bed.dir.path().join("files"), bed.dir.path().join("aside"));
    fs::rename(&files, &aside).unwrap();
    let failing = async || (status(&origin).await.state == SourceState::Failing).then_some(());
    eventually("the scan fails", failing).await;
    let chunk = bed.first_chunk("studio/a.txt").await;
    let _refused = bed.peer.chunk(&id("studio/a.txt"), &chunk, 0).await.unwrap_err();
    bed.found("studio/a.txt", |_| true).await;

    // Also when the origin starts without it.
    let bed = bed.restart_origin(100).await;
    let origin = bed.origin();
    let closed = async || (status(&origin).await.state == SourceState::Closed).then_some(());
    eventually("the source is closed", closed).await;
    bed.found("studio/a.txt", |_| true).await;
    fs::rename(&aside, &files).unwrap();
    let back = async || (status(&origin).await.state == SourceState::Scanned).then_some(());
    eventually("the source is back", back).await;
    assert_eq!(bed.collect("studio/a.txt").await, b"a");
}

#[tokio::test]
async fn a_restart_in_the_middle_of_the_first_scan_reads_nothing_twice() {
    const COUNT: usize = 1500;
    let bed = Bed::new(NO_RESCAN_MS).await;
    let more = bed.dir.path().join("more");
    for i in 0..COUNT {
        let folder = more.join((i % 10).to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(i.to_string()), i.to_string()).unwrap();
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    let origin = bed.origin();
    let source = crate::harness::source("more", &crate::harness::url_of(&bed.dir, "more"));
    origin.add(&source).await.unwrap();
    let of_more = async |origin: &OriginClient| {
        origin
            .status()
            .await
            .unwrap()
            .sources
            .into_iter()
            .find(|s| s.source.bucket.as_str() == "more")
            .unwrap()
    };
    let some = async || Some(of_more(&origin).await.contents).filter(|contents| *contents > 0);
    let before = eventually("some are registered", some).await;
    let bed = bed.restart_origin(NO_RESCAN_MS).await;
    let origin = bed.origin();
    let all = async || Some(of_more(&origin).await).filter(|s| s.contents == COUNT as u64);
    let after = eventually("all are registered", all).await;
    assert!(after.scan.read <= COUNT as u64 - before, "{before} were read before, now {after:?}");
    let listed =
        async || Some(bed.search.find("more", "", 1).await.unwrap()).filter(|p| !p.contents.is_empty());
    tokio::time::timeout(LONG, eventually("search knows", listed)).await.unwrap();
}
