use std::fs::{File, OpenOptions as FileOptions};
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use common::api::node::RefTag;
use common::error::ApiResult;

use super::*;
use crate::catalog::Catalog;
use crate::io::BLOCK;
use crate::log::SEGMENTS_START;
use crate::store;

const CHUNKS: u64 = 24;
const CHUNK_BYTES: usize = 1 << 20;
/// Of a small store.
const SEGMENT_BYTES: u64 = 16 << 20;

fn chunk(n: u64) -> (ChunkHash, Bytes) {
    let mut bytes = vec![0; CHUNK_BYTES];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    (ChunkHash::of(&bytes), bytes.into())
}

/// A stopped node with [`CHUNKS`] chunks in two segments.
struct Stopped {
    dir: tempfile::TempDir,
    url: StoreUrl,
}

impl Stopped {
    async fn block() -> Self {
        Self::new("file:{}/store?size=300MiB").await
    }

    async fn new(url: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = url.replace("{}", &dir.path().display().to_string()).parse().unwrap();
        let stopped = Self { dir, url };
        stopped.fill(0..CHUNKS).await;
        stopped
    }

    async fn open(&self) -> (store::Opened, Catalog) {
        let opened = store::open(&self.url, self.dir.path(), &MetricsRegistry::new()).await.unwrap();
        let catalog =
            Catalog::open(self.dir.path(), opened.log.clone(), &opened.log_id, 1 << 20).await.unwrap();
        (opened, catalog)
    }

    /// Stores chunks, the row of each before it, and stops in order.
    async fn fill(&self, chunks: std::ops::Range<u64>) {
        let (opened, catalog) = self.open().await;
        for n in chunks {
            let (hash, bytes) = chunk(n);
            let name = "alice/film".parse().unwrap();
            let row = move |txn: &mut crate::catalog::txn::Txn<'_>| -> ApiResult<u64> {
                crate::chunks::add_ref(txn, &hash, CHUNK_BYTES as u32, RefTag(1), &name)
            };
            catalog.commit(row).await.unwrap();
            opened.chunks.put(hash, bytes).await.unwrap();
        }
        catalog.close().await;
        opened.log.close().await;
    }

    async fn run(&self, repair: bool, fast: bool) -> Result<Report, FsckError> {
        let options = Options { store: self.url.clone(), data_dir: self.dir.path().to_owned(), repair, fast };
        run(&options, &|_, _| {}).await
    }

    /// Checks, and sees that nothing was written.
    async fn check(&self) -> Report {
        let before = self.bytes();
        let report = self.run(false, false).await.unwrap();
        assert!(self.bytes() == before, "a check wrote something");
        report
    }

    async fn repair(&self) -> Report {
        self.run(true, false).await.unwrap()
    }

    /// Everything that the node keeps, as far as it is in use.
    fn bytes(&self) -> Vec<(PathBuf, u64, Vec<u8>)> {
        let mut files = Vec::new();
        for name in ["store", LOG_FILE, "index.redb", "index.redb.aside"] {
            let path = self.dir.path().join(name);
            let Ok(file) = File::open(&path) else { continue };
            let len = file.metadata().unwrap().len();
            let mut bytes = vec![0; len.min(SEGMENTS_START + 3 * SEGMENT_BYTES) as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            files.push((path, len, bytes));
        }
        add_names(&self.dir.path().join("objects"), &mut files);
        files
    }

    fn flip(&self, at: u64) {
        let file = self.disk();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    fn disk(&self) -> File {
        FileOptions::new().read(true).write(true).open(self.dir.path().join("store")).unwrap()
    }

    fn index(&self) -> PathBuf {
        self.dir.path().join("index.redb")
    }

    /// Where a chunk's bytes are in the file.
    fn find(&self, n: u64) -> u64 {
        let (_, wanted) = chunk(n);
        let bytes = self.bytes();
        let blocks = bytes[0].2.chunks(BLOCK);
        let found = blocks.enumerate().find(|(_, block)| *block == &wanted[..BLOCK]);
        found.unwrap().0 as u64 * BLOCK as u64
    }

    /// Starts the node's store; every chunk but `gone` must be there.
    async fn starts_without(&self, gone: Option<u64>) {
        let (opened, catalog) = self.open().await;
        for n in 0..CHUNKS {
            let (hash, bytes) = chunk(n);
            match opened.chunks.get(&hash).await {
                Ok(found) => assert!(found == bytes && gone != Some(n)),
                Err(error) => assert!(matches!(error, StoreError::NotFound) && gone == Some(n), "{error}"),
            }
        }
        catalog.close().await;
    }
}

fn told(report: &Report, severity: Severity) -> Vec<&str> {
    report.findings.iter().filter(|f| f.severity == severity).map(|f| f.what.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_well_is_clean_and_its_figures_are_right() {
    for url in ["file:{}/store?size=300MiB", "dir:{}/objects"] {
        let stopped = Stopped::new(url).await;
        let report = stopped.check().await;
        assert_eq!((report.is_clean(), &report.findings), (true, &Vec::new()), "{url}");
        let (log, chunks, catalog) = (report.log, report.chunks.unwrap(), report.catalog.unwrap());
        assert_eq!((log.superblock_copies, log.slots_unreadable, log.frame_gaps), (2, 0, 0));
        assert_eq!(log.slots, log.slots_in_use + log.slots_freed + log.slots_never_used);
        assert_eq!(log.slots_in_use, log.segments_sealed + log.segments_open);
        assert!(log.frames >= CHUNKS && log.rows_entries_needed >= CHUNKS);
        assert_eq!((chunks.live, chunks.dead, chunks.without_row), (CHUNKS, 0, 0));
        assert_eq!((chunks.verified, chunks.verified_bytes), (CHUNKS, CHUNKS << 20));
        assert_eq!((catalog.rows["Chunk"], catalog.rows["ChunkRef"]), (CHUNKS, CHUNKS));
        assert!(matches!(catalog.index, IndexState::Current { .. }), "{:?}", catalog.index);
        if url.starts_with("file") {
            assert_eq!((log.segments_sealed, log.segments_open, log.chunk_copies), (1, 1, CHUNKS));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_headers_and_footers_are_told_and_made_again() {
    let zero = |stopped: &Stopped, at: u64| stopped.disk().write_all_at(&[0; BLOCK], at).unwrap();
    let flip = |stopped: &Stopped, at: u64| stopped.flip(at);
    let second = SEGMENTS_START + SEGMENT_BYTES;
    type Damage<'a> = &'a dyn Fn(&Stopped, u64);
    let damages: [(&str, Damage<'_>, u64); 6] = [
        ("the copy of the superblock at byte 0", &zero, 0),
        ("the copy of the superblock at byte 4096", &flip, BLOCK as u64 + 50),
        ("the slot header at byte 1048576", &zero, SEGMENTS_START),
        ("the slot header at byte 17825792", &flip, second + 10),
        ("the footer of segment 1", &flip, second - BLOCK as u64 + 30),
        ("the footer of segment 1", &zero, second - 2 * BLOCK as u64),
    ];
    for (what, damage, at) in damages {
        let stopped = Stopped::block().await;
        damage(&stopped, at);
        let found = stopped.check().await;
        let words = told(&found, Severity::Damage);
        assert!(!found.is_clean() && words.len() == 1 && words[0].contains(what), "{what}: {found:?}");
        assert_eq!(found.chunks.as_ref().unwrap().verified, CHUNKS, "{what}");
        let repaired = stopped.repair().await;
        assert!(repaired.is_clean() && told(&repaired, Severity::Repaired).len() == 1, "{repaired:?}");
        let after = stopped.check().await;
        assert_eq!((after.is_clean(), after.findings.len()), (true, 0), "{what}: {after:?}");
        stopped.starts_without(None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_taken_out_and_waits_for_a_good_copy() {
    let stopped = Stopped::block().await;
    let at = stopped.find(5);
    stopped.flip(at + 77);
    damaged_chunk_is_taken_out(&stopped, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_taken_out_and_waits_for_a_good_copy() {
    let stopped = Stopped::new("dir:{}/objects").await;
    let hex = chunk(5).0.to_string();
    let path = find_file(&stopped.dir.path().join("objects"), &hex).unwrap();
    FileOptions::new().write(true).open(path).unwrap().write_all_at(b"?????", 77).unwrap();
    damaged_chunk_is_taken_out(&stopped, 5).await;
}

/// Names and lengths of the files in a folder and below it.
fn add_names(folder: &Path, files: &mut Vec<(PathBuf, u64, Vec<u8>)>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        let len = std::fs::metadata(&path).unwrap().len();
        add_names(&path, files);
        files.push((path, len, Vec::new()));
    }
}

/// The file in a folder, or one below it, whose name has `part` in it.
fn find_file(folder: &Path, part: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
        match path.is_dir() {
            true => find_file(&path, part),
            false => path.file_name()?.to_str()?.contains(part).then_some(path),
        }
    })
}

async fn damaged_chunk_is_taken_out(stopped: &Stopped, n: u64) {
    let name = chunk(n).0.to_string();
    let found = stopped.check().await;
    let words = told(&found, Severity::Damage);
    assert!(words.len() == 1 && words[0].contains(&name), "{found:?}");
    let chunks = found.chunks.unwrap();
    assert_eq!((chunks.live, chunks.verified, chunks.damaged), (CHUNKS, CHUNKS - 1, 1));
    let fast = stopped.run(false, true).await.unwrap();
    assert!(fast.is_clean() && fast.chunks.unwrap().verified == 0, "a fast check reads no chunks");

    let repaired = stopped.repair().await;
    assert!(repaired.is_clean() && told(&repaired, Severity::Repaired)[0].contains(&name));
    let after = stopped.check().await;
    assert!(after.is_clean(), "{after:?}");
    assert_eq!(after.catalog.as_ref().unwrap().chunks_missing, 1);
    assert!(told(&after, Severity::Note).iter().any(|note| note.contains(&name)), "{after:?}");
    stopped.starts_without(Some(n)).await;
    stopped.fill(n..n + 1).await;
    stopped.starts_without(None).await;
    assert_eq!(stopped.check().await.findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_behind_missing_or_of_no_use_is_told_as_such() {
    let stopped = Stopped::block().await;
    let older = std::fs::read(stopped.index()).unwrap();
    stopped.fill(CHUNKS..CHUNKS + 1).await;
    let rows = |report: &Report| report.catalog.as_ref().unwrap().rows["Chunk"];

    std::fs::write(stopped.index(), &older).unwrap();
    let behind = stopped.check().await;
    assert!(matches!(behind.catalog.as_ref().unwrap().index, IndexState::Behind { .. }), "{behind:?}");
    assert_eq!((behind.is_clean(), rows(&behind)), (true, CHUNKS + 1), "what it lacks is replayed");

    std::fs::remove_file(stopped.index()).unwrap();
    let missing = stopped.check().await;
    assert_eq!((missing.is_clean(), rows(&missing)), (true, CHUNKS + 1), "{missing:?}");
    assert_eq!(missing.catalog.as_ref().unwrap().index, IndexState::Missing);
    assert!(!stopped.index().exists());

    for damage in [|bytes: &mut [u8]| bytes.fill(7), |bytes: &mut [u8]| bytes[4096..].fill(7)] {
        let mut spoilt = older.clone();
        damage(&mut spoilt);
        std::fs::write(stopped.index(), spoilt).unwrap();
        let useless = stopped.check().await;
        assert_eq!((useless.is_clean(), rows(&useless)), (false, CHUNKS + 1), "{useless:?}");
    }
    let useless = stopped.check().await;
    assert_eq!((useless.is_clean(), rows(&useless)), (false, CHUNKS + 1), "{useless:?}");
    assert!(told(&useless, Severity::Damage)[0].contains("the index file cannot be used"), "{useless:?}");
    let repaired = stopped.repair().await;
    assert!(repaired.is_clean() && told(&repaired, Severity::Repaired)[0].contains("index.redb.aside"));
    assert!(!stopped.index().exists() && stopped.dir.path().join("index.redb.aside").exists());
    stopped.starts_without(None).await;
    assert!(stopped.check().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_frame_with_rows_is_told_with_what_is_lost() {
    // In the sealed segment the footer still knows the chunks; the first frame holds rows.
    let stopped = Stopped::block().await;
    let at = SEGMENTS_START + BLOCK as u64;
    stopped.flip(at + 100);
    for repair in [false, true] {
        let report = stopped.run(repair, false).await.unwrap();
        let lost = told(&report, Severity::Lost);
        assert!(!report.is_clean() && lost.len() == 1, "{report:?}");
        assert!(
            lost[0].contains(&format!("byte {at}")) && lost[0].contains("The index file has them"),
            "{lost:?}"
        );
        assert_eq!((report.log.frame_gaps, report.chunks.unwrap().verified), (1, CHUNKS));
    }
    stopped.starts_without(None).await;
    std::fs::remove_file(stopped.index()).unwrap();
    let report = stopped.check().await;
    let lost = told(&report, Severity::Lost);
    assert!(lost.iter().any(|what| what.contains("the node does not start")), "{lost:?}");

    // In the segment that is being written chunks are lost as well.
    let stopped = Stopped::block().await;
    let at = SEGMENTS_START + SEGMENT_BYTES + BLOCK as u64;
    stopped.flip(at + 100);
    let report = stopped.check().await;
    let lost = told(&report, Severity::Lost);
    assert!(lost[0].contains(&format!("byte {at}")) && lost[0].contains("does not start"), "{lost:?}");
    assert_eq!((report.chunks, report.log.frame_gaps), (None, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_was_cut_off_is_a_note() {
    let stopped = Stopped::block().await;
    // The last frame's chunk: cut short by a loss of power, it was never acknowledged.
    stopped.flip(stopped.find(CHUNKS - 1) + 9);
    let report = stopped.check().await;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.log.frames_unfinished, report.chunks.as_ref().unwrap().live), (1, CHUNKS - 1));
    assert!(told(&report, Severity::Note)[0].contains("never acknowledged"), "{report:?}");
    assert_eq!(report.catalog.as_ref().unwrap().chunks_missing, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_store_or_in_use_is_refused() {
    let stopped = Stopped::block().await;
    let (running, catalog) = stopped.open().await;
    let busy = stopped.run(false, false).await.unwrap_err();
    assert!(chain(&busy).contains("another process (or server) has it open"), "{}", chain(&busy));
    catalog.close().await;
    drop((running, catalog));
    for at in [0, BLOCK as u64] {
        stopped.flip(at + 20);
    }
    assert!(matches!(stopped.run(true, false).await, Err(FsckError::NoSuperblock { .. })));
    std::fs::remove_file(stopped.dir.path().join("store")).unwrap();
    assert!(matches!(stopped.run(true, false).await, Err(FsckError::Open { .. })));
    assert!(!stopped.dir.path().join("store").exists(), "nothing is made");
}
