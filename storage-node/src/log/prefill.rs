//! Writing zeros to free slots: a file system finds space for a block when it is first written, and notes that
//! durably with every commit; in space that was written before there is nothing to note.

use std::io;
use std::sync::atomic::Ordering;

use super::{RESERVED_SEGMENTS, Shared};
use crate::io::{AlignedBuf, BLOCK, Pending};

/// Free slots that are kept written.
const AHEAD: usize = 1;
/// Bytes of one write.
const WRITE_BYTES: u64 = 1 << 20;
/// Writes at once.
const WRITES: usize = 4;

/// Writes the next slot that should be, unless so much is appended that this would only be in the way; answers whether
/// there was one. `appended_before` is what was appended when it was last asked.
pub(super) fn ahead(shared: &Shared, appended_before: &mut u64) -> io::Result<bool> {
    let appended = shared.appended_bytes.load(Ordering::Relaxed);
    let since = appended - std::mem::replace(appended_before, appended);
    if since > shared.superblock.segment_bytes / 2 || shared.free_slots.written_len() >= AHEAD {
        return Ok(false);
    }
    one(shared, RESERVED_SEGMENTS + AHEAD)
}

/// Writes every free slot.
pub(super) fn all(shared: &Shared) -> io::Result<()> {
    while one(shared, 0)? {}
    Ok(())
}

/// Writes a slot, if more than so many are free; answers whether there was one.
fn one(shared: &Shared, others_min: usize) -> io::Result<bool> {
    let Some(slot) = shared.free_slots.take_blank(others_min) else { return Ok(false) };
    let written = write_zeros(shared, slot);
    shared.free_slots.give(slot, written.is_ok());
    written.map(|()| true)
}

fn write_zeros(shared: &Shared, slot: u32) -> io::Result<()> {
    let (start, segment_bytes) = (shared.superblock.segment_offset(slot), shared.superblock.segment_bytes);
    shared.io.reserve(start, segment_bytes)?;
    // The slot's header stays: it says that the slot is free.
    let (mut at, end) = (start + BLOCK as u64, start + segment_bytes);
    let mut pending: Vec<Pending> = Vec::with_capacity(WRITES);
    while at < end || !pending.is_empty() {
        while at < end && pending.len() < WRITES {
            let len = WRITE_BYTES.min(end - at);
            pending.push(shared.io.write_durable_at(AlignedBuf::heap(len as usize), at));
            at += len;
        }
        for write in pending.drain(..) {
            write.wait()?;
        }
    }
    Ok(())
}
