//! Which chunks the log has, segment by segment: for whoever compares them with the catalog.

use std::io;

use common::hash::ChunkHash;

use super::Shared;
use super::contents::read_footer;
use super::format::Entry;
use super::index::Location;
use super::segments::Segment;
use super::walk::Walker;

/// The chunks that are found in the first segment from sequence `from` on, and the sequence of the one behind it.
pub(super) fn list(shared: &Shared, from: u64) -> io::Result<(Vec<ChunkHash>, Option<u64>)> {
    let segments = shared.segments.all();
    let mut rest = segments.iter().filter(|segment| segment.sequence >= from);
    let Some(segment) = rest.next() else { return Ok((Vec::new(), None)) };
    let start = shared.superblock.segment_offset(segment.slot);
    let found_here = |entry: Entry| match entry {
        Entry::Chunk { at, len, hash } => {
            let location = Location::new(start + u64::from(at), len);
            (shared.index.get(&hash) == Some(location)).then_some(hash)
        }
        _ => None,
    };
    let hashes = entries(shared, segment)?.into_iter().filter_map(found_here).collect();
    Ok((hashes, rest.next().map(|next| next.sequence)))
}

/// Chunk entries, counted from the segment's start. Of a segment that is being written, or freed at this moment, what
/// can be read.
fn entries(shared: &Shared, segment: &Segment) -> io::Result<Vec<Entry>> {
    let (io, superblock) = (&*shared.io, &shared.superblock);
    if let Some(footer) = read_footer(io, superblock, segment.sequence, segment.slot)? {
        return Ok(footer.entries);
    }
    let mut walker = Walker::new(io, superblock, segment.sequence, segment.slot, segment.first_frame);
    let mut entries = Vec::new();
    while walker.offset() < segment.end {
        let start = walker.offset() as u32;
        let Some(frame) = walker.next()? else { break };
        entries.extend(frame.header.entries.iter().filter_map(|entry| match *entry {
            Entry::Chunk { at, len, hash } => Some(Entry::Chunk { at: start + at, len, hash }),
            _ => None,
        }));
    }
    Ok(entries)
}
