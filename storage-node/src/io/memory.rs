//! A device in memory: for nodes that keep nothing, and for tests.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::{BlockIo, Operation, Request};

/// Bytes that are gone when the value is. Memory is taken only as it is written.
pub struct MemIo {
    bytes: RwLock<Vec<u8>>,
}

impl MemIo {
    pub fn new(size_bytes: usize) -> Self {
        // Zeroed memory of the system, mapped page by page when first touched.
        Self { bytes: RwLock::new(vec![0; size_bytes]) }
    }
}

impl BlockIo for MemIo {
    fn submit(&self, request: Request) {
        request.run(|operation, buffer, offset| {
            let start = usize::try_from(offset).map_err(io::Error::other)?;
            let range = start..start.saturating_add(buffer.len());
            match operation {
                Operation::Read => {
                    let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
                    buffer.copy_from_slice(bytes.get(range).ok_or_else(super::short_transfer)?);
                }
                Operation::WriteDurable => {
                    let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
                    bytes.get_mut(range).ok_or_else(super::short_transfer)?.copy_from_slice(buffer);
                }
            }
            Ok(buffer.len())
        });
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn is_written(&self, _offset: u64, _len: u64) -> bool {
        true
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn engine(&self) -> &'static str {
        "memory"
    }
}
