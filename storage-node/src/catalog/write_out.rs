//! Writing the whole catalog into the log once more, so that the log can let go of the rows that led to it.
//!
//! It goes piece by piece between batches. A piece holds a range of rows as they are when it is written; changes that
//! come later stand behind it. So a replay from where the first piece begins makes the same catalog as one from the
//! very beginning, and the log's floor is raised to there once the last piece is durable.

use std::ops::{Bound, ControlFlow};

use common::error::ApiResult;

use super::txn::{Overlay, RawRows, Reader};
use crate::log::{Log, LogPosition};

/// Bytes of rows in one piece.
const PIECE_BYTES: usize = 256 << 10;
/// Rows that the log holds beyond what a write-out takes, from which on one is worth it at any time. With the rule that
/// it be half of the last one as well, at most two thirds of the rows that are written are for this.
const SURPLUS_BYTES_MIN: u64 = 256 << 20;

/// One write-out on its way.
pub(super) struct WriteOut {
    /// Rows up to here are not needed once it is done.
    pub floor: LogPosition,
    /// Key of the last row that was written.
    after: Vec<u8>,
    /// Bytes of rows so far.
    pub bytes: u64,
}

impl WriteOut {
    /// `floor` is the last position that the index holds.
    pub fn begin(floor: LogPosition) -> Self {
        Self { floor, after: Vec::new(), bytes: 0 }
    }

    /// The next rows; none when all are written.
    pub fn piece(&mut self, rows: &Reader) -> ApiResult<Option<Overlay>> {
        let mut piece = Overlay::default();
        rows.scan_raw(&[], Bound::Excluded(&self.after), &mut |key, value| {
            piece.set(key.to_vec(), Some(value.to_vec()));
            let full = piece.bytes >= PIECE_BYTES;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let Some((last, _)) = piece.changes.last_key_value() else { return Ok(None) };
        self.after.clone_from(last);
        self.bytes += piece.bytes as u64;
        Ok(Some(piece))
    }
}

/// Whether it is time for a write-out, when the last one took `last_bytes`: the log holds much more than that, or
/// [`pays`].
pub(super) fn is_due(log: &Log, last_bytes: u64) -> bool {
    let surplus = log.needed_rows_bytes().saturating_sub(last_bytes);
    surplus >= SURPLUS_BYTES_MIN.max(last_bytes / 2) || pays(log, last_bytes)
}

/// Whether the log would give back twice as much in exchange for a write-out; half as much while slots are few.
pub(super) fn pays(log: &Log, last_bytes: u64) -> bool {
    let blocked = log.blocked_bytes();
    if blocked == 0 {
        return false;
    }
    let price = if log.is_pressed() { last_bytes / 2 } else { 2 * last_bytes };
    blocked >= price + log.segment_bytes() / 4
}
