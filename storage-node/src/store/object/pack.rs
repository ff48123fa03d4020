//! The format of a pack: small chunks, and deletions, in one object. Pure: no input or output.
//!
//! All integers are little-endian.
//! ```text
//! pack     0   8  "DOZOPACK"
//!          8   4  format version (1)
//!         12   4  zero
//!         16   8  sequence
//!         24   8  sequence of the pack before it
//!         32      bytes of the chunks, one after the other
//!                 index: one entry of 40 bytes for each chunk or deletion
//!                 trailer, the last 64 bytes
//!
//! entry    0   4  where the chunk's bytes are, from the start; 0: the chunk is deleted
//!          4   4  length of the chunk in bytes; 0 for a deletion
//!          8  32  hash of the chunk
//!
//! trailer  0   8  "DOZOTAIL"
//!          8   4  number of entries
//!         12   4  bytes of the whole object
//!         16   8  sequence
//!         24   8  sequence of the pack before it
//!         32  32  BLAKE3 of the header, the index and bytes 0..32 of the trailer
//! ```
//! The bytes of a chunk are verified against its hash whenever they are read.

use bytes::{BufMut, Bytes, BytesMut};
use common::hash::ChunkHash;
use object_store::PutPayload;

pub const FORMAT_VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 32;
pub const ENTRY_BYTES: usize = 40;
pub const TRAILER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"DOZOPACK";
const TRAILER_MAGIC: &[u8; 8] = b"DOZOTAIL";

/// Which pack: its place in the order of all, and that of the one it was written after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackId {
    pub sequence: u64,
    pub previous: u64,
}

/// What a pack says of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub hash: ChunkHash,
    /// From the start of the pack; 0 for a deletion.
    pub offset: u32,
    pub len: u32,
}

impl Entry {
    pub fn is_deletion(&self) -> bool {
        self.offset == 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("a pack of format {found}; this version reads up to {FORMAT_VERSION}")]
    NewerFormat { found: u32 },
    #[error("the pack is damaged: {what}")]
    Damaged { what: &'static str },
}

fn damaged<T>(what: &'static str) -> Result<T, PackError> {
    Err(PackError::Damaged { what })
}

/// A pack in the making.
#[derive(Default)]
pub struct Builder {
    chunks: Vec<Bytes>,
    chunk_bytes: usize,
    entries: Vec<Entry>,
}

impl Builder {
    /// The caller sees to it that all chunks together stay far below 4 GiB.
    pub fn add_chunk(&mut self, hash: ChunkHash, bytes: Bytes) {
        let offset = (HEADER_BYTES + self.chunk_bytes) as u32;
        self.entries.push(Entry { hash, offset, len: bytes.len() as u32 });
        self.chunk_bytes += bytes.len();
        if !bytes.is_empty() {
            self.chunks.push(bytes);
        }
    }

    pub fn add_deletion(&mut self, hash: ChunkHash) {
        self.entries.push(Entry { hash, offset: 0, len: 0 });
    }

    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Bytes of the object.
    pub fn object_bytes(&self) -> usize {
        HEADER_BYTES + self.chunk_bytes + self.entries.len() * ENTRY_BYTES + TRAILER_BYTES
    }

    /// The object, without a copy of the chunks.
    pub fn seal(&self, id: PackId) -> PutPayload {
        let header = header(id);
        let mut tail = BytesMut::with_capacity(self.entries.len() * ENTRY_BYTES + TRAILER_BYTES);
        for entry in &self.entries {
            tail.put_u32_le(entry.offset);
            tail.put_u32_le(entry.len);
            tail.put_slice(entry.hash.as_bytes());
        }
        tail.put_slice(TRAILER_MAGIC);
        tail.put_u32_le(self.entries.len() as u32);
        tail.put_u32_le(self.object_bytes() as u32);
        tail.put_u64_le(id.sequence);
        tail.put_u64_le(id.previous);
        let check = blake3::Hasher::new().update(&header).update(&tail).finalize();
        tail.put_slice(check.as_bytes());
        let header = Bytes::copy_from_slice(&header);
        [header].into_iter().chain(self.chunks.iter().cloned()).chain([tail.freeze()]).collect()
    }
}

fn header(id: PackId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&id.sequence.to_le_bytes());
    header[24..].copy_from_slice(&id.previous.to_le_bytes());
    header
}

/// The end of a pack, read.
#[derive(Debug, PartialEq, Eq)]
pub enum Tail {
    Entries(Vec<Entry>),
    /// The index is longer than what was read: this many bytes from the end hold all of it.
    Longer(usize),
}

/// Decodes the last bytes of the object that is named `id` and has `object_bytes`.
pub fn decode_tail(id: PackId, object_bytes: u64, tail: &[u8]) -> Result<Tail, PackError> {
    let Some((rest, trailer)) = tail.split_last_chunk::<TRAILER_BYTES>() else {
        return damaged("it is too short");
    };
    if &trailer[..8] != TRAILER_MAGIC {
        return damaged("it has no trailer");
    }
    let entries = u32_at(trailer, 8) as usize;
    if u64::from(u32_at(trailer, 12)) != object_bytes {
        return damaged("its length is another than it was");
    }
    let found = PackId { sequence: u64_at(trailer, 16), previous: u64_at(trailer, 24) };
    let index_bytes = entries.saturating_mul(ENTRY_BYTES);
    if found != id || (HEADER_BYTES + index_bytes + TRAILER_BYTES) as u64 > object_bytes {
        return damaged("its trailer does not fit it");
    }
    let Some(index_start) = rest.len().checked_sub(index_bytes) else {
        return Ok(Tail::Longer(index_bytes + TRAILER_BYTES));
    };
    let index = &rest[index_start..];
    let check = blake3::Hasher::new().update(&header(id)).update(index).update(&trailer[..32]).finalize();
    if check.as_bytes()[..] != trailer[32..] {
        return damaged("its index does not match its check");
    }
    let chunks_end = object_bytes - (index_bytes + TRAILER_BYTES) as u64;
    let mut decoded = Vec::with_capacity(entries);
    for entry in index.as_chunks::<ENTRY_BYTES>().0 {
        let mut hash = [0; 32];
        hash.copy_from_slice(&entry[8..]);
        let entry =
            Entry { hash: ChunkHash::from_bytes(hash), offset: u32_at(entry, 0), len: u32_at(entry, 4) };
        let is_inside = entry.offset as usize >= HEADER_BYTES
            && u64::from(entry.offset) + u64::from(entry.len) <= chunks_end;
        if !is_inside && (!entry.is_deletion() || entry.len != 0) {
            return damaged("an entry points outside");
        }
        decoded.push(entry);
    }
    Ok(Tail::Entries(decoded))
}

/// Tells a pack of a later format, which is not ours to judge, from a damaged one.
pub fn check_version(start: &[u8]) -> Result<(), PackError> {
    match start.get(..HEADER_BYTES) {
        Some(header) if &header[..8] == MAGIC && u32_at(header, 8) > FORMAT_VERSION => {
            Err(PackError::NewerFormat { found: u32_at(header, 8) })
        }
        _ => Ok(()),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: PackId = PackId { sequence: 0x0000_0007_0000_0002, previous: 0x0000_0007_0000_0001 };

    fn sample() -> (Builder, Vec<u8>) {
        let mut builder = Builder::default();
        for bytes in [&b"one"[..], b"", b"three"] {
            builder.add_chunk(ChunkHash::of(bytes), Bytes::from_static(bytes));
        }
        builder.add_deletion(ChunkHash::of(b"gone"));
        let object: Vec<u8> = builder.seal(ID).into_iter().flatten().collect();
        (builder, object)
    }

    #[test]
    fn a_pack_is_read_as_it_was_made() {
        let (builder, object) = sample();
        assert_eq!(object.len(), builder.object_bytes());
        let read = decode_tail(ID, object.len() as u64, &object).unwrap();
        assert_eq!(read, Tail::Entries(builder.entries().to_vec()));
        let third = builder.entries()[2];
        assert_eq!(&object[third.offset as usize..][..third.len as usize], b"three");
        let short = &object[object.len() - TRAILER_BYTES - 3..];
        assert_eq!(decode_tail(ID, object.len() as u64, short), Ok(Tail::Longer(4 * 40 + 64)));
        check_version(&object).unwrap();
    }

    /// The format: a change here is a change for every store there is.
    #[test]
    fn the_bytes_of_a_pack_are_those_of_format_1() {
        let (_, object) = sample();
        assert_eq!(
            &object[..HEADER_BYTES],
            b"DOZOPACK\x01\0\0\0\0\0\0\0\x02\0\0\0\x07\0\0\0\x01\0\0\0\x07\0\0\0"
        );
        assert_eq!(&object[HEADER_BYTES..HEADER_BYTES + 8], b"onethree");
        assert_eq!(
            blake3::hash(&object).to_hex().as_str(),
            "50cf38100eedb6da264ce1cc7a1dace24196e6623142e27d3861a5cb7a284107"
        );
    }

    #[test]
    fn any_flipped_bit_outside_the_chunks_is_noticed() {
        let (_, object) = sample();
        for at in HEADER_BYTES + 8..object.len() {
            let mut object = object.clone();
            object[at] ^= 1;
            assert!(decode_tail(ID, object.len() as u64, &object).is_err(), "{at}");
        }
        let other = PackId { sequence: ID.sequence + 1, ..ID };
        assert!(decode_tail(other, object.len() as u64, &object).is_err());
        assert!(decode_tail(ID, object.len() as u64 - 1, &object[1..]).is_err());
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let (_, mut object) = sample();
        object[8] = 9;
        assert_eq!(check_version(&object), Err(PackError::NewerFormat { found: 9 }));
        assert_eq!(check_version(b"anything"), Ok(()));
    }

    proptest! {
        #[test]
        fn whatever_is_read_never_panics(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            entries in any::<u32>(),
            claimed in any::<u32>(),
        ) {
            if let Some(trailer) = bytes.last_chunk_mut::<TRAILER_BYTES>() {
                trailer[..8].copy_from_slice(TRAILER_MAGIC);
                trailer[8..12].copy_from_slice(&entries.to_le_bytes());
                trailer[12..16].copy_from_slice(&claimed.to_le_bytes());
                trailer[16..24].copy_from_slice(&ID.sequence.to_le_bytes());
                trailer[24..32].copy_from_slice(&ID.previous.to_le_bytes());
            }
            let _any = decode_tail(ID, u64::from(claimed), &bytes);
            let _any = check_version(&bytes);
        }
    }
}
