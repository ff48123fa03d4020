//! Checks of a batch that need no database: its size, its order, and that each record has the digest and the
//! link that its facts give. Where the batch continues a chain is decided by the writer.

use common::api::billing::{BATCH_RECORDS_MAX, RecordBatch};
use common::error::{ApiError, ErrorCode};
use common::hash::RecordDigest;
use common::id::NodeId;
use common::record::ChainedRecord;
use common::time::UnixMillis;

/// A record that contradicts its own digest or its predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Place in the batch.
    pub index: usize,
    pub reason: String,
}

/// A batch in one piece: contiguous numbers; every link checked but the first, which needs the chain's head.
#[derive(Debug, Clone)]
pub struct CheckedBatch {
    pub node: NodeId,
    pub epoch: u64,
    pub records: Vec<ChainedRecord>,
    /// The first record that was tampered with, if any.
    pub fault: Option<Fault>,
    /// Every delivery of the node that began before this is among these records or before them.
    pub passed: Option<UnixMillis>,
}

/// A batch that is not even of its form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MalformedBatch {
    #[error("the batch has {0} records, at most {BATCH_RECORDS_MAX} are taken; send fewer at once")]
    TooMany(usize),
    #[error("record {got} follows record {last} in the batch; records of a batch are contiguous")]
    NotContiguous { last: u64, got: u64 },
    #[error("epochs and record numbers go from 1 to 2^63 - 1, an epoch may be 0")]
    Number,
}

impl From<MalformedBatch> for ApiError {
    fn from(error: MalformedBatch) -> Self {
        let code = match error {
            MalformedBatch::TooMany(_) => ErrorCode::TooLarge,
            MalformedBatch::NotContiguous { .. } | MalformedBatch::Number => ErrorCode::InvalidRequest,
        };
        Self::new(code, error.to_string())
    }
}

impl CheckedBatch {
    pub fn new(batch: RecordBatch) -> Result<Self, MalformedBatch> {
        let RecordBatch { node, epoch, records, passed } = batch;
        if records.len() > BATCH_RECORDS_MAX {
            return Err(MalformedBatch::TooMany(records.len()));
        }
        let valid = |number: u64| i64::try_from(number).is_ok();
        if !valid(epoch) || records.iter().any(|r| r.seq == 0 || !valid(r.seq)) {
            return Err(MalformedBatch::Number);
        }
        for pair in records.windows(2) {
            if pair[1].seq != pair[0].seq + 1 {
                return Err(MalformedBatch::NotContiguous { last: pair[0].seq, got: pair[1].seq });
            }
        }
        let mut previous = records.first().map_or(RecordDigest::ZERO, |r| r.previous);
        let mut fault = None;
        for (index, record) in records.iter().enumerate() {
            if let Err(error) = record.check(&node, epoch, record.seq - 1, &previous) {
                fault = Some(Fault { index, reason: error.to_string() });
                break;
            }
            previous = record.digest;
        }
        Ok(Self { node, epoch, records, fault, passed })
    }

    pub fn first(&self) -> Option<&ChainedRecord> {
        self.records.first()
    }
}
