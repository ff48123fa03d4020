//! Whether a device holds a log, and making one on a device that holds nothing.

use std::io;

use super::OpenOptions;
use super::format::{MIN_SEGMENTS, SEGMENTS_START, Superblock, SuperblockRead, device_bytes};
use super::recovery::{OpenLogError, failed, for_each_slot, read, write};
use crate::io::{AlignedBuf, BLOCK, BlockIo};

/// Reads the superblock; an empty device gets one. A copy that was lost is written again.
pub(super) fn read_or_format(io: &dyn BlockIo, options: OpenOptions) -> Result<Superblock, OpenLogError> {
    let needed_bytes = device_bytes(MIN_SEGMENTS, options.segment_bytes);
    if io.size_bytes() < needed_bytes {
        return Err(OpenLogError::TooSmall { found_bytes: io.size_bytes(), needed_bytes });
    }
    let both = read(io, 0, 2 * BLOCK).map_err(failed("the superblock"))?;
    let copies = [Superblock::decode(&both[..BLOCK]), Superblock::decode(&both[BLOCK..])];
    let newer = |copy: &SuperblockRead| if let SuperblockRead::Newer(v) = copy { Some(*v) } else { None };
    if let Some(found) = copies.iter().find_map(newer) {
        return Err(OpenLogError::NewerFormat { found });
    }
    let valid = |copy: &SuperblockRead| match copy {
        SuperblockRead::Valid(superblock) => Some(superblock.clone()),
        _ => None,
    };
    let superblock = match copies.iter().find_map(valid) {
        Some(superblock) => superblock,
        None if options.force || is_empty(io)? => return format(io, options.segment_bytes),
        None => return Err(OpenLogError::NotALog),
    };
    if io.size_bytes() < superblock.device_bytes {
        let (found_bytes, needed_bytes) = (io.size_bytes(), superblock.device_bytes);
        return Err(OpenLogError::TooSmall { found_bytes, needed_bytes });
    }
    for (copy, offset) in copies.iter().zip([0, BLOCK as u64]) {
        if !matches!(copy, SuperblockRead::Valid(_)) {
            write_superblock(io, &superblock, offset)?;
        }
    }
    Ok(superblock)
}

pub(super) fn write_superblock(
    io: &dyn BlockIo,
    superblock: &Superblock,
    offset: u64,
) -> Result<(), OpenLogError> {
    let mut block = AlignedBuf::heap(BLOCK);
    superblock.encode(&mut block);
    write(io, block, offset).map_err(failed("the superblock"))
}

/// Whether there is nothing where file systems, partition tables and volume managers keep their marks: in the
/// first MiB, and at the end.
fn is_empty(io: &dyn BlockIo) -> Result<bool, OpenLogError> {
    const END_BYTES: u64 = 128 << 10;
    let end = io.size_bytes() / BLOCK as u64 * BLOCK as u64;
    for (offset, len) in [(0, SEGMENTS_START), (end - END_BYTES, END_BYTES)] {
        let bytes = read(io, offset, len as usize).map_err(failed("the device"))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes an empty log. The superblocks come last: a device that loses power before them is still what it was.
fn format(io: &dyn BlockIo, segment_bytes: u64) -> Result<Superblock, OpenLogError> {
    io.reserve(0, SEGMENTS_START).map_err(failed("the superblock"))?;
    let mut random = [0; 48];
    getrandom::fill(&mut random).map_err(|e| failed("the source of random numbers")(io::Error::other(e)))?;
    let (mut log_id, mut key) = ([0; 16], [0; 32]);
    log_id.copy_from_slice(&random[..16]);
    key.copy_from_slice(&random[16..]);
    let slots = ((io.size_bytes() - SEGMENTS_START) / segment_bytes).min(u64::from(u32::MAX));
    let superblock =
        Superblock { log_id, key, segment_bytes, slots, device_bytes: device_bytes(slots, segment_bytes) };
    for_each_slot(io, &superblock, |slot, header, _| {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        let offset = superblock.segment_offset(slot);
        write(io, AlignedBuf::heap(BLOCK), offset).map_err(failed("a slot header"))
    })?;
    for offset in [0, BLOCK as u64] {
        write_superblock(io, &superblock, offset)?;
    }
    Ok(superblock)
}
