//! The catalog of a stopped node, to look at: the index as it would be after a start, without writing to its file.
//!
//! What the index is behind is applied to a copy of its changed pages in memory; an index that has to be rebuilt is
//! rebuilt in a nameless file of the system's folder for such.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::auth::random_hex;
use common::error::{ApiResult, chain};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend, StorageError};
use serde::Serialize;

use super::CatalogError;
use super::index::{self, FILE_NAME};
use super::txn::Reader;
use crate::log::{BoxError, Log, LogPosition, ReplayError};

const CACHE_BYTES: usize = 64 << 20;
const PAGE: usize = 4096;

/// How the index file stands to the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum IndexState {
    /// It holds all of the log.
    Current { position: u64 },
    /// It holds the log up to `position`; the next start replays the rest.
    Behind { position: u64 },
    /// There is none; the next start rebuilds it.
    Missing,
    /// It cannot be used; the next start moves it aside and rebuilds it.
    Useless { reason: String },
}

/// The catalog as a start would find it.
pub(crate) struct Inspected {
    database: Database,
    pub state: IndexState,
    /// Why the log cannot be replayed into the index; what is here is then what the index has without it.
    pub replay_error: Option<String>,
}

impl Inspected {
    pub fn rows(&self) -> ApiResult<Reader> {
        Reader::new(&self.database, Default::default())
    }
}

/// Where the index of a node is.
pub(crate) fn index_path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE_NAME)
}

/// Moves an index of no use aside, and says where to.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = index::aside(path);
    std::fs::rename(path, &aside)?;
    Ok(aside)
}

/// Looks at the index of a node that does not run. Blocks.
pub(crate) fn inspect(path: &Path, log: &Log) -> Result<Inspected, CatalogError> {
    let id = log.id();
    let state = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => IndexState::Missing,
        Err(error) => return Err(failed(path, error.into())),
        Ok(file) => match index::open_matched(|| open_overlaid(file), &id) {
            Err(reason) => IndexState::Useless { reason: chain(&*reason) },
            Ok((database, from)) => match index::replay(&database, log, from) {
                Ok(end) if end == from => {
                    let state = IndexState::Current { position: from.0 };
                    return Ok(Inspected { database, state, replay_error: None });
                }
                Ok(_) => {
                    let state = IndexState::Behind { position: from.0 };
                    return Ok(Inspected { database, state, replay_error: None });
                }
                Err(error @ (ReplayError::BeyondEnd { .. } | ReplayError::Reclaimed { .. })) => {
                    IndexState::Useless { reason: chain(&error) }
                }
                Err(error) => {
                    let state = IndexState::Behind { position: from.0 };
                    return Ok(Inspected { database, state, replay_error: Some(chain(&error)) });
                }
            },
        },
    };
    let rebuilt = || {
        let backend = FileBackend::new(nameless_file()?)?;
        Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)
    };
    let (database, _) = index::open_matched(rebuilt, &id).map_err(|error| failed(path, error))?;
    let replay_error = index::replay(&database, log, LogPosition(0)).err().map(|error| chain(&error));
    Ok(Inspected { database, state, replay_error })
}

fn failed(path: &Path, source: BoxError) -> CatalogError {
    CatalogError::Index { path: path.display().to_string(), source }
}

fn open_overlaid(file: File) -> Result<Database, DatabaseError> {
    let overlay = Overlay::new(file)?;
    let mut database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(overlay)?;
    match database.check_integrity()? {
        true => Ok(database),
        false => Err(DatabaseError::Storage(StorageError::Corrupted("pages of it are damaged".into()))),
    }
}

/// A file that is gone when it is closed.
fn nameless_file() -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("dozo-fsck-{}", random_hex(8)));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// A file that is only read; pages that are written stay in memory.
#[derive(Debug)]
struct Overlay {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Bytes of the file that still show; zeros are behind them.
    base_len: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, state: Mutex::new(State { len, base_len: len, pages: BTreeMap::new() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One page, as far as it is known.
    fn page(&self, state: &State, page: u64) -> io::Result<Box<[u8]>> {
        if let Some(written) = state.pages.get(&page) {
            return Ok(written.clone());
        }
        let mut bytes = vec![0; PAGE].into_boxed_slice();
        let start = page * PAGE as u64;
        let len = state.base_len.saturating_sub(start).min(PAGE as u64) as usize;
        self.file.read_exact_at(&mut bytes[..len], start)?;
        Ok(bytes)
    }
}

/// The parts of pages that a range covers: page, start in the page, start in the range, length.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let (page, start) = (at / PAGE as u64, (at % PAGE as u64) as usize);
        let part = (PAGE - start).min(len - done);
        let item = (page, start, done, part);
        done += part;
        (part > 0).then_some(item)
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, start, at, len) in parts(offset, out.len()) {
            out[at..at + len].copy_from_slice(&self.page(&state, page)?[start..start + len]);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            state.base_len = state.base_len.min(len);
            let last = len / PAGE as u64;
            let mut kept = self.page(&state, last)?;
            kept[(len % PAGE as u64) as usize..].fill(0);
            drop(state.pages.split_off(&last));
            state.pages.insert(last, kept);
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        for (page, start, at, len) in parts(offset, data.len()) {
            let mut bytes = self.page(&state, page)?;
            bytes[start..start + len].copy_from_slice(&data[at..at + len]);
            state.pages.insert(page, bytes);
        }
        Ok(())
    }
}
