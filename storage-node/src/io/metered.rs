//! A device whose requests are counted.

use std::io;
use std::sync::Arc;

use super::{BlockIo, Operation, Request};
use crate::store::StoreMetrics;

/// Counts what `base` is asked and what it fails.
pub struct MeteredIo {
    base: Arc<dyn BlockIo>,
    metrics: StoreMetrics,
}

impl MeteredIo {
    pub fn new(base: Arc<dyn BlockIo>, metrics: StoreMetrics) -> Self {
        Self { base, metrics }
    }
}

/// One request under way; goes with its reply.
pub(super) struct Meter {
    operation: Operation,
    metrics: StoreMetrics,
}

impl Meter {
    /// The request was answered.
    pub fn end(self, is_ok: bool) {
        self.metrics.disk_inflight.decrement(1.0);
        if !is_ok {
            self.metrics.disk_error(self.operation);
        }
    }
}

impl BlockIo for MeteredIo {
    fn submit(&self, mut request: Request) {
        self.metrics.disk_inflight.increment(1.0);
        request.reply.meter = Some(Meter { operation: request.operation, metrics: self.metrics.clone() });
        self.base.submit(request);
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.base.reserve(offset, len)
    }

    fn is_written(&self, offset: u64, len: u64) -> bool {
        self.base.is_written(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.base.discard(offset, len)
    }

    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn engine(&self) -> &'static str {
        self.base.engine()
    }
}
