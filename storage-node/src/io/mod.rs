//! Block input and output: whole blocks between aligned buffers and one device, under three engines.
//!
//! An engine owns the buffer of a request until the kernel is done with it, also when the caller has given up;
//! after an error the buffer goes back to where it came from. Requests may run in any order and at once: whoever
//! needs an order waits for one request before making the next.

mod buffer;
mod file;
mod memory;
mod metered;
mod overlay;
#[cfg(test)]
pub(crate) mod sim;
mod threads;
mod uring;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

pub use buffer::{AlignedBuf, BufferPool};
pub use file::{Engine, Target};
pub use memory::MemIo;
use metered::Meter;
pub use metered::MeteredIo;
pub use overlay::OverlayIo;
pub use threads::ThreadedIo;
pub use uring::UringIo;

/// Bytes. Offsets and lengths of every request are multiples of it.
pub const BLOCK: usize = 4096;

/// `bytes` rounded up to whole blocks.
pub const fn whole_blocks(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK as u64)
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fills the buffer from the device.
    Read,
    /// Writes the buffer; the bytes survive a power cut once the request is answered.
    WriteDurable,
}

/// One transfer between a buffer and the device.
pub struct Request {
    pub operation: Operation,
    pub buffer: AlignedBuf,
    /// Bytes from the start of the device.
    pub offset: u64,
    reply: Reply,
}

/// Where an answer goes. A request that is dropped without one is answered with an error.
struct Reply {
    to: Option<ReplyTo>,
    meter: Option<Meter>,
}

enum ReplyTo {
    Waiter(oneshot::Sender<io::Result<AlignedBuf>>),
    Callback(Box<dyn FnOnce(io::Result<AlignedBuf>) + Send>),
}

impl Reply {
    fn new(to: ReplyTo) -> Self {
        Self { to: Some(to), meter: None }
    }

    fn send(mut self, answer: io::Result<AlignedBuf>) {
        self.give(answer);
    }

    fn give(&mut self, answer: io::Result<AlignedBuf>) {
        if let Some(meter) = self.meter.take() {
            meter.end(answer.is_ok());
        }
        match self.to.take() {
            // Whoever asked may have left; the buffer then goes back to its pool.
            Some(ReplyTo::Waiter(waiter)) => drop(waiter.send(answer)),
            Some(ReplyTo::Callback(callback)) => callback(answer),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.give(Err(engine_stopped()));
    }
}

impl Request {
    /// Whether nobody waits for it any more. Writes are always done: what follows may rely on them.
    pub fn is_abandoned(&self) -> bool {
        let has_left = matches!(&self.reply.to, Some(ReplyTo::Waiter(waiter)) if waiter.is_closed());
        self.operation == Operation::Read && has_left
    }

    /// Runs it with a call that moves bytes and may move fewer than asked.
    fn run(mut self, mut step: impl FnMut(Operation, &mut [u8], u64) -> io::Result<usize>) {
        let mut done = 0;
        let result = loop {
            if done == self.buffer.len() {
                break Ok(());
            }
            match step(self.operation, &mut self.buffer[done..], self.offset + done as u64) {
                Ok(0) => break Err(short_transfer()),
                Ok(count) => done += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break Err(e),
            }
        };
        self.answer(result);
    }

    fn answer(self, result: io::Result<()>) {
        self.reply.send(result.map(|()| self.buffer));
    }
}

/// The device ended before the request did.
fn short_transfer() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the device is shorter than it was when it was opened")
}

/// The answer to come: awaited by tasks, waited for by threads. Dropping it abandons the request.
pub struct Pending(oneshot::Receiver<io::Result<AlignedBuf>>);

impl Pending {
    /// Blocks the thread.
    pub fn wait(self) -> io::Result<AlignedBuf> {
        self.0.blocking_recv().unwrap_or_else(|_| Err(engine_stopped()))
    }
}

impl Future for Pending {
    type Output = io::Result<AlignedBuf>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(engine_stopped())))
    }
}

fn engine_stopped() -> io::Error {
    io::Error::other("the input/output engine has stopped")
}

/// A device that moves whole blocks. Dropping it waits for what is in flight and closes the device.
pub trait BlockIo: Send + Sync + 'static {
    /// Begins a request; never blocks.
    fn submit(&self, request: Request);

    /// Makes sure that a later write of this range does not run out of space. Blocks.
    ///
    /// # Errors
    /// `StorageFull` when the file system has no room for it.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Whether the range was written before, so that writing it again changes nothing but its bytes.
    fn is_written(&self, offset: u64, len: u64) -> bool;

    /// Gives the space of a range back to what lies under the device; what is read there afterwards is not known.
    /// Where that is not possible nothing happens. Blocks.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Bytes of the device.
    fn size_bytes(&self) -> u64;

    /// Name of the engine, for people.
    fn engine(&self) -> &'static str;

    /// Fills `buffer` from `offset` on.
    fn read_at(&self, buffer: AlignedBuf, offset: u64) -> Pending {
        self.begin(Operation::Read, buffer, offset)
    }

    /// Writes `buffer` at `offset`.
    ///
    /// # Durability
    /// What was written survives a power cut once the answer is there.
    fn write_durable_at(&self, buffer: AlignedBuf, offset: u64) -> Pending {
        self.begin(Operation::WriteDurable, buffer, offset)
    }

    /// As [`BlockIo::write_durable_at`]; the answer goes to `done`, on a thread of the engine's.
    fn write_durable_then(
        &self,
        buffer: AlignedBuf,
        offset: u64,
        done: Box<dyn FnOnce(io::Result<AlignedBuf>) + Send>,
    ) {
        let reply = Reply::new(ReplyTo::Callback(done));
        self.submit(Request { operation: Operation::WriteDurable, buffer, offset, reply });
    }

    #[doc(hidden)]
    fn begin(&self, operation: Operation, buffer: AlignedBuf, offset: u64) -> Pending {
        let (waiter, answer) = oneshot::channel();
        self.submit(Request { operation, buffer, offset, reply: Reply::new(ReplyTo::Waiter(waiter)) });
        Pending(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn exercise(io: Arc<dyn BlockIo>) {
        io.reserve(0, io.size_bytes()).unwrap();
        let mut pattern = AlignedBuf::heap(3 * BLOCK);
        for (i, byte) in pattern.iter_mut().enumerate() {
            *byte = (i % 251) as u8;
        }
        let expected = pattern.to_vec();
        let pattern = io.write_durable_at(pattern, 5 * BLOCK as u64).wait().unwrap();
        assert_eq!(pattern.len(), 3 * BLOCK);
        let read = io.read_at(AlignedBuf::heap(3 * BLOCK), 5 * BLOCK as u64).wait().unwrap();
        assert_eq!(read[..], expected[..]);
        let hole = io.read_at(AlignedBuf::heap(BLOCK), 0).wait().unwrap();
        assert!(hole.iter().all(|b| *b == 0));
        // Beyond the end.
        assert!(io.read_at(AlignedBuf::heap(BLOCK), io.size_bytes()).wait().is_err());
        // More at once than any engine keeps in flight.
        let many: Vec<Pending> =
            (0..500).map(|i| io.read_at(AlignedBuf::heap(BLOCK), (i % 8) * 4096)).collect();
        for pending in many {
            pending.wait().unwrap();
        }
    }

    #[test]
    fn every_engine_moves_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for (name, engine) in [("u", Engine::Uring), ("t", Engine::Threads)] {
            let target = Target::file(&dir.path().join(name), 1 << 20).unwrap();
            exercise(target.start(engine).unwrap());
        }
        exercise(Arc::new(MemIo::new(1 << 20)));
    }

    #[test]
    fn a_device_is_opened_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        let io = Target::file(&path, 1 << 20).unwrap().start(Engine::Auto).unwrap();
        let error = Target::file(&path, 1 << 20).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        drop(io);
        assert!(Target::file(&path, 1 << 20).is_ok());
    }
}
