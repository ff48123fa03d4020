//! The io_uring engine: one thread a device that does nothing but input and output.
//!
//! tokio-uring hands requests to the kernel only when its thread has nothing else to run, so no hashing, no
//! serving and no waiting for locks may ever happen here. Reads and writes are both built as own queue entries:
//! that is the only way to a durable write in a single operation, and keeps one path for both.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;

use io_uring::{cqueue, opcode, squeue, types};
use tokio::sync::{Semaphore, mpsc};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::file::{allocate, discard, is_written};
use super::{AlignedBuf, BlockIo, Operation, Request, short_transfer};

/// Requests in the kernel at once; more only lengthens the queue of the disk.
const DEPTH: u32 = 64;

/// See the module.
pub struct UringIo {
    requests: Option<mpsc::UnboundedSender<Request>>,
    thread: Option<JoinHandle<()>>,
    file: Arc<File>,
    size_bytes: u64,
}

impl UringIo {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel, or the container, does not allow io_uring.
    pub fn start(file: Arc<File>, size_bytes: u64) -> io::Result<Self> {
        // Callers bound it: every request carries a buffer of a bounded pool or of the one appender.
        let (requests, queue) = mpsc::unbounded_channel();
        let (ready, started) = std_mpsc::channel();
        let device = Arc::clone(&file);
        let thread =
            std::thread::Builder::new().name("dozo-disk".into()).spawn(move || run(device, queue, &ready))?;
        let io = Self { requests: Some(requests), thread: Some(thread), file, size_bytes };
        started.recv().unwrap_or_else(|_| Err(io::Error::other("the disk thread ended at its start")))?;
        Ok(io)
    }
}

impl BlockIo for UringIo {
    fn submit(&self, request: Request) {
        if let Some(requests) = &self.requests {
            // A failed send drops the request, which tells its caller that the engine has stopped.
            let _ = requests.send(request);
        }
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        allocate(&self.file, offset, len)
    }

    fn is_written(&self, offset: u64, len: u64) -> bool {
        is_written(&self.file, offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        discard(&self.file, offset, len)
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn engine(&self) -> &'static str {
        "io_uring"
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(file: Arc<File>, queue: mpsc::UnboundedReceiver<Request>, ready: &std_mpsc::Sender<io::Result<()>>) {
    match runtime() {
        Ok(runtime) => runtime.block_on(async {
            let probe = tokio_uring::no_op().await;
            let usable = probe.is_ok();
            if ready.send(probe).is_ok() && usable {
                serve(file, queue).await;
            }
        }),
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut builder = tokio_uring::builder();
    builder.entries(2 * DEPTH);
    // Spares interrupts; kernels before 5.19 do not know it.
    builder.uring_builder(tokio_uring::uring_builder().setup_coop_taskrun());
    tokio_uring::Runtime::new(&builder).or_else(|_| {
        let mut plain = tokio_uring::builder();
        plain.entries(2 * DEPTH);
        tokio_uring::Runtime::new(&plain)
    })
}

async fn serve(file: Arc<File>, mut queue: mpsc::UnboundedReceiver<Request>) {
    let slots = Arc::new(Semaphore::new(DEPTH as usize));
    let mut requests = Vec::with_capacity(DEPTH as usize);
    while queue.recv_many(&mut requests, DEPTH as usize).await > 0 {
        for request in requests.drain(..).filter(|request| !request.is_abandoned()) {
            // Given back by the transfer. The semaphore is never closed.
            let Ok(slot) = slots.acquire().await else { return };
            slot.forget();
            let (file, slots) = (Arc::clone(&file), Arc::clone(&slots));
            tokio_uring::spawn(async move {
                transfer(file, request).await;
                slots.add_permits(1);
            });
        }
    }
    // What is in flight is answered before the thread ends.
    let _ = slots.acquire_many(DEPTH).await;
}

async fn transfer(file: Arc<File>, request: Request) {
    let Request { operation, mut buffer, offset, reply } = request;
    let mut done = 0;
    let result = loop {
        if done == buffer.len() {
            break Ok(buffer);
        }
        let (moved, returned) = step(&file, operation, buffer, done, offset).await;
        buffer = returned;
        match moved {
            Ok(0) => break Err(short_transfer()),
            Ok(count) => done += count,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => break Err(e),
        }
    };
    reply.send(result);
}

/// Moves bytes from `done` on; the future owns file and buffer until the kernel has let go of them.
async fn step(
    file: &Arc<File>,
    operation: Operation,
    mut buffer: AlignedBuf,
    done: usize,
    offset: u64,
) -> (io::Result<usize>, AlignedBuf) {
    let rest = &mut buffer[done..];
    let (start, len) = (rest.as_mut_ptr(), u32::try_from(rest.len()).unwrap_or(1 << 30));
    let descriptor = types::Fd(file.as_raw_fd());
    let at = offset + done as u64;
    let entry: squeue::Entry = match operation {
        Operation::Read => opcode::Read::new(descriptor, start, len).offset(at).build(),
        Operation::WriteDurable => {
            opcode::Write::new(descriptor, start, len).offset(at).rw_flags(libc::RWF_DSYNC).build()
        }
    };
    // The entry points into the buffer's memory, which does not move with the value, and the operation keeps
    // both the buffer and the file until its completion even if this future is dropped.
    UnsubmittedOneshot::new(Held { _file: Arc::clone(file), buffer }, Moved, entry).submit().await
}

struct Held {
    _file: Arc<File>,
    buffer: AlignedBuf,
}

struct Moved;

impl OneshotOutputTransform for Moved {
    type Output = (io::Result<usize>, AlignedBuf);
    type StoredData = Held;

    fn transform_oneshot_output(self, held: Held, completion: cqueue::Entry) -> Self::Output {
        let result = usize::try_from(completion.result())
            .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
        (result, held.buffer)
    }
}
