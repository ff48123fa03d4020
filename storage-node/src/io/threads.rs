//! The engine for where io_uring is not allowed: a few threads with plain positioned reads and writes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::file::{allocate, discard, is_written};
use super::{BlockIo, Operation, Request};

/// Requests in the kernel at once.
const THREADS: usize = 8;

/// See the module.
pub struct ThreadedIo {
    requests: Option<Sender<Request>>,
    threads: Vec<JoinHandle<()>>,
    file: Arc<File>,
    size_bytes: u64,
}

impl ThreadedIo {
    pub fn start(file: Arc<File>, size_bytes: u64) -> io::Result<Self> {
        let (requests, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut io = Self { requests: Some(requests), threads: Vec::new(), file, size_bytes };
        for _ in 0..THREADS {
            let (file, queue) = (Arc::clone(&io.file), Arc::clone(&queue));
            let thread = std::thread::Builder::new().name("dozo-disk".into());
            io.threads.push(thread.spawn(move || run(&file, &queue))?);
        }
        Ok(io)
    }
}

impl BlockIo for ThreadedIo {
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
        "threads"
    }
}

impl Drop for ThreadedIo {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn run(file: &File, queue: &Mutex<Receiver<Request>>) {
    loop {
        // One idle thread waits in `recv`, the others wait for its place.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(request) = next else { return };
        if request.is_abandoned() {
            continue;
        }
        request.run(|operation, bytes, offset| match operation {
            Operation::Read => file.read_at(bytes, offset),
            Operation::WriteDurable => {
                let count = file.write_at(bytes, offset)?;
                file.sync_data()?;
                Ok(count)
            }
        });
    }
}
