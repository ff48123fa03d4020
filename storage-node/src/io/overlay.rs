//! A device that is looked at: what is written to it stays in memory, and is found there by later reads.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use super::{BLOCK, BlockIo, Operation, Reply, ReplyTo, Request};

/// Blocks by their offset.
type Written = Arc<RwLock<BTreeMap<u64, Box<[u8]>>>>;

/// For few writes: each takes its bytes in memory.
pub struct OverlayIo {
    base: Arc<dyn BlockIo>,
    written: Written,
}

impl OverlayIo {
    pub fn new(base: Arc<dyn BlockIo>) -> Self {
        Self { base, written: Written::default() }
    }
}

fn patch(written: &Written, buffer: &mut [u8], offset: u64) {
    let written = written.read().unwrap_or_else(PoisonError::into_inner);
    let end = offset + buffer.len() as u64;
    for (at, block) in written.range(offset..end) {
        let start = (at - offset) as usize;
        buffer[start..start + BLOCK].copy_from_slice(block);
    }
}

impl BlockIo for OverlayIo {
    fn submit(&self, request: Request) {
        match request.operation {
            Operation::WriteDurable => request.run(|_, buffer, offset| {
                let mut written = self.written.write().unwrap_or_else(PoisonError::into_inner);
                for (i, block) in buffer.chunks_exact(BLOCK).enumerate() {
                    written.insert(offset + (i * BLOCK) as u64, block.into());
                }
                Ok(buffer.len())
            }),
            Operation::Read => {
                let Request { operation, buffer, offset, reply } = request;
                let written = Arc::clone(&self.written);
                let patched = move |answer: io::Result<super::AlignedBuf>| {
                    reply.send(answer.map(|mut buffer| {
                        patch(&written, &mut buffer, offset);
                        buffer
                    }));
                };
                let reply = Reply::new(ReplyTo::Callback(Box::new(patched)));
                self.base.submit(Request { operation, buffer, offset, reply });
            }
        }
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn is_written(&self, offset: u64, len: u64) -> bool {
        self.base.is_written(offset, len)
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn engine(&self) -> &'static str {
        self.base.engine()
    }
}
