//! What deduplication does on one's own files: they are cut and hashed as a gateway does it, and nothing is stored.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::chunker::{CHUNK_LEN_MIN, Chunker};
use common::config::show_bytes;
use common::hash::{ChunkHash, ContentHash};
use serde::Serialize;

use crate::process::thread_cpu_time;

const PIECE_LEN: usize = 1 << 20;

/// Files and bytes, and what of them is new.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    pub files: u64,
    pub bytes: u64,
    /// Bytes of chunks that were not there before: what would be stored.
    pub new_bytes: u64,
    /// Bytes of files that no file before is equal to: what would be stored if only whole files were compared.
    pub new_whole_bytes: u64,
    pub chunks: u64,
    pub new_chunks: u64,
    /// CPU time for cutting and hashing, without that for reading.
    pub work_s: f64,
}

impl Counts {
    /// Logical over stored bytes; 1 while nothing is stored.
    pub fn ratio(&self) -> f64 {
        if self.new_bytes == 0 { 1.0 } else { self.bytes as f64 / self.new_bytes as f64 }
    }

    pub fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / self.work_s.max(f64::EPSILON)
    }

    fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.new_bytes += other.new_bytes;
        self.new_whole_bytes += other.new_whole_bytes;
        self.chunks += other.chunks;
        self.new_chunks += other.new_chunks;
        self.work_s += other.work_s;
    }
}

/// One of the paths that were given, and all of them.
#[derive(Debug, Serialize)]
pub struct DedupReport {
    pub paths: Vec<(PathBuf, Counts)>,
    pub total: Counts,
    pub ratio: f64,
    pub mib_per_s: f64,
}

/// Cuts and hashes the files at `paths` and below, one path after the other; links and special files are left out.
pub fn run(paths: &[PathBuf]) -> io::Result<DedupReport> {
    let mut known = Known::default();
    let mut report = Vec::new();
    let mut total = Counts::default();
    for path in paths {
        let mut counts = Counts::default();
        for file in files_below(path)? {
            counts.add(&known.add(File::open(file)?)?);
        }
        total.add(&counts);
        report.push((path.clone(), counts));
    }
    Ok(DedupReport { paths: report, ratio: total.ratio(), mib_per_s: total.mib_per_s(), total })
}

/// Regular files in the order of their names.
fn files_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    // A link that is named by itself is followed.
    let mut open = vec![(path.to_owned(), fs::metadata(path)?)];
    while let Some((path, metadata)) = open.pop() {
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                open.push((entry.path(), entry.metadata()?));
            }
        } else if metadata.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Every chunk and content that was seen.
#[derive(Default)]
struct Known {
    chunks: HashSet<ChunkHash>,
    contents: HashSet<ContentHash>,
}

impl Known {
    fn add(&mut self, mut content: impl Read) -> io::Result<Counts> {
        let mut counts = Counts { files: 1, ..Counts::default() };
        let mut work = Duration::ZERO;
        let (mut hasher, mut only) = (blake3::Hasher::new(), None);
        let mut chunker = Chunker::new();
        let mut piece = vec![0; PIECE_LEN];
        loop {
            let len = content.read(&mut piece)?;
            let before = thread_cpu_time();
            let chunks = if len == 0 {
                std::mem::take(&mut chunker).finish()
            } else {
                chunker.push(&piece[..len]);
                std::iter::from_fn(|| chunker.next_chunk()).collect()
            };
            for chunk in &chunks {
                let hash = ChunkHash::of(chunk);
                if len == 0 && counts.chunks == 0 && chunk.len() <= CHUNK_LEN_MIN {
                    // The only chunk is the content: one hash serves for both.
                    only = Some(ContentHash::from_bytes(*hash.as_bytes()));
                } else {
                    hasher.update(chunk);
                }
                let is_new = self.chunks.insert(hash);
                let len = chunk.len() as u64;
                counts.bytes += len;
                counts.chunks += 1;
                counts.new_bytes += if is_new { len } else { 0 };
                counts.new_chunks += u64::from(is_new);
            }
            work += thread_cpu_time() - before;
            if len == 0 {
                break;
            }
        }
        if self.contents.insert(only.unwrap_or_else(|| hasher.finalize().into())) {
            counts.new_whole_bytes = counts.bytes;
        }
        counts.work_s = work.as_secs_f64();
        Ok(counts)
    }
}

impl DedupReport {
    /// The table for a terminal.
    pub fn to_text(&self) -> String {
        let mut lines = vec![format!(
            "{:>8} {:>10} {:>10} {:>7} {:>10} {:>9} {:>9}  path",
            "files", "bytes", "stored", "ratio", "by file", "chunks", "MiB/s"
        )];
        let line = |name: &str, counts: &Counts| {
            format!(
                "{:>8} {:>10} {:>10} {:>7.2} {:>10} {:>9} {:>9.0}  {name}",
                counts.files,
                show_bytes(counts.bytes),
                show_bytes(counts.new_bytes),
                counts.ratio(),
                show_bytes(counts.new_whole_bytes),
                counts.chunks,
                counts.mib_per_s()
            )
        };
        lines.extend(self.paths.iter().map(|(path, counts)| line(&path.display().to_string(), counts)));
        lines.push(line("all", &self.total));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;

    #[test]
    fn what_is_equal_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["old", "new"] {
            fs::create_dir_all(path(name).join("deep")).unwrap();
        }
        let film = Content::new(1, 1, 20 << 20).bytes(0, 20 << 20);
        fs::write(path("old/film"), &film).unwrap();
        fs::write(path("old/deep/note"), "a note").unwrap();
        fs::write(path("new/deep/note"), "a note").unwrap();
        // A byte in front: no part of it is where it was.
        fs::write(path("new/film"), [b"!", &film[..]].concat()).unwrap();
        std::os::unix::fs::symlink(path("old/film"), path("new/link")).unwrap();
        let report = run(&[path("old"), path("new")]).unwrap();
        let (old, new) = (&report.paths[0].1, &report.paths[1].1);
        let len = 20 << 20;
        assert_eq!((old.files, old.bytes, old.new_bytes), (2, len + 6, len + 6));
        assert_eq!((new.files, new.bytes, new.new_whole_bytes), (2, len + 7, len + 1));
        assert!(new.new_bytes < 8 << 20, "{new:?}");
        assert_eq!(report.total.bytes, 2 * len + 13);
        assert!(report.ratio > 1.4, "{report:?}");
        let alone = run(&[path("old/film"), path("old/film")]).unwrap();
        assert_eq!((alone.total.files, alone.total.new_bytes), (2, len));
        assert!(run(&[path("none")]).is_err());
    }
}
