//! Opening what a block store lives on, a file or a raw device, and choosing the engine for it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{BlockIo, ThreadedIo, UringIo};

/// How long another process may take to let go of a file.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How requests reach the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// io_uring, or threads where it cannot be set up (containers often forbid it); the reason is logged.
    #[default]
    Auto,
    Uring,
    Threads,
}

/// A file or device, opened and locked against other processes.
pub struct Target {
    file: Arc<File>,
    size_bytes: u64,
    path: PathBuf,
}

impl Target {
    /// Opens a file, or makes one of `size_bytes` that takes space only as it is written. An existing file keeps
    /// its length.
    pub fn file(path: &Path, size_bytes: u64) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = open_direct(&options, 0, path)?;
        lock(&file)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file; is `device:` meant?"));
        }
        let mut found_bytes = file.metadata()?.len();
        if found_bytes == 0 {
            file.set_len(size_bytes)?;
            file.sync_all()?;
            if let Some(parent) = path.parent() {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                File::open(parent)?.sync_all()?;
            }
            found_bytes = size_bytes;
        } else if found_bytes != size_bytes {
            tracing::warn!(path = %path.display(), found_bytes, asked_bytes = size_bytes,
                "the store keeps the size it was made with");
        }
        Ok(Self { file: Arc::new(file), size_bytes: found_bytes, path: path.into() })
    }

    /// Opens a file or device that is there, to look at it or, with `for_writing`, to repair it.
    pub fn existing(path: &Path, is_device: bool, for_writing: bool) -> io::Result<Self> {
        let file_type = std::fs::metadata(path)?.file_type();
        if if is_device { !file_type.is_block_device() } else { !file_type.is_file() } {
            let what = if is_device { "not a block device" } else { "not a plain file" };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let flags = if is_device { libc::O_EXCL } else { 0 };
        let mut file = open_direct(OpenOptions::new().read(true).write(for_writing), flags, path)?;
        lock(&file)?;
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file: Arc::new(file), size_bytes, path: path.into() })
    }

    /// Opens a raw block device that nothing else (a mounted file system, say) uses.
    pub fn device(path: &Path) -> io::Result<Self> {
        if !std::fs::metadata(path)?.file_type().is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a block device; is `file:` meant?"));
        }
        let mut file = open_direct(OpenOptions::new().read(true).write(true), libc::O_EXCL, path)?;
        lock(&file)?;
        let size_bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file: Arc::new(file), size_bytes, path: path.into() })
    }

    /// Starts the engine that does its requests.
    pub fn start(self, engine: Engine) -> io::Result<Arc<dyn BlockIo>> {
        let Self { file, size_bytes, path } = self;
        if engine != Engine::Threads {
            match UringIo::start(Arc::clone(&file), size_bytes) {
                Ok(io) => return Ok(Arc::new(io)),
                Err(e) if engine == Engine::Uring => return Err(e),
                Err(e) => tracing::warn!(path = %path.display(), reason = %e,
                    "io_uring cannot be set up here: disk requests go through threads, at more cost each"),
            }
        }
        Ok(Arc::new(ThreadedIo::start(file, size_bytes)?))
    }
}

/// Opens past the page cache where the file system allows it.
fn open_direct(options: &OpenOptions, flags: i32, path: &Path) -> io::Result<File> {
    match options.clone().custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(path = %path.display(),
                "the file system refuses O_DIRECT: bytes are cached twice, writes are durable all the same");
            options.clone().custom_flags(flags).open(path)
        }
        opened => opened,
    }
}

/// A process that was killed lets go of its files only when the kernel has ended its requests, some time after its
/// parent has heard of its end.
fn lock(file: &File) -> io::Result<()> {
    let give_up = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() < give_up => std::thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "another process (or server) has it open",
                ));
            }
        }
    }
}

/// Takes space from the file system for a range of a file; devices and file systems without the call have it,
/// or find out when they write.
pub(super) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, 0, offset, len)
}

/// Gives the space of a range of a file, or of a device that can, back.
pub(super) fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

/// Whether a range of a file has no hole, nor a part that has space and was never written. Devices have neither.
pub(super) fn is_written(file: &File, offset: u64, len: u64) -> bool {
    let Ok(start) = libc::off_t::try_from(offset) else { return false };
    // SAFETY: a call on a descriptor that `file` keeps open; its position is not used.
    let hole = unsafe { libc::lseek(file.as_raw_fd(), start, libc::SEEK_HOLE) };
    u64::try_from(hole).map_or(true, |hole| hole >= offset + len)
}

/// Where the call is not known nothing happens.
fn fallocate(file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (offset.try_into(), len.try_into()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // SAFETY: a call on a descriptor that `file` keeps open.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}
