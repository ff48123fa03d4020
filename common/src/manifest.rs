//! What a content is made of: hash, length, type, metadata and its chunks in order.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::hash::{ChunkHash, ContentHash};

/// A chunk in its place: contents are the concatenation of their chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    pub hash: ChunkHash,
    pub len: u32,
}

impl ChunkRef {
    /// Bytes of one entry in a chunk list that is stored as a chunk.
    pub const ENCODED_LEN: usize = 36;
}

/// The chunks of a content, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkList {
    /// Up to [`ChunkList::INLINE_MAX`] chunks, carried in the manifest.
    Inline(Vec<ChunkRef>),
    /// More: the list is itself a chunk, [`ChunkList::encode`]d.
    Stored { list: ChunkRef, count: u32 },
}

impl ChunkList {
    pub const INLINE_MAX: usize = 64;
    /// Most chunks a content may have: their list must fit one chunk.
    pub const COUNT_MAX: usize = crate::chunker::CHUNK_LEN_MAX / ChunkRef::ENCODED_LEN;

    /// The stored form: 32 bytes of hash and a little-endian length, per chunk.
    pub fn encode(chunks: &[ChunkRef]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(chunks.len() * ChunkRef::ENCODED_LEN);
        for chunk in chunks {
            bytes.extend_from_slice(chunk.hash.as_bytes());
            bytes.extend_from_slice(&chunk.len.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Vec<ChunkRef>, InvalidManifest> {
        if !bytes.len().is_multiple_of(ChunkRef::ENCODED_LEN) {
            return Err(InvalidManifest("a stored chunk list is not a whole number of entries"));
        }
        let entries = bytes.chunks_exact(ChunkRef::ENCODED_LEN).map(|entry| {
            let (hash, len) = entry.split_at(32);
            ChunkRef {
                hash: ChunkHash::from_bytes(hash.try_into().expect("32 bytes")),
                len: u32::from_le_bytes(len.try_into().expect("4 bytes")),
            }
        });
        Ok(entries.collect())
    }
}

/// A content, described.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub hash: ContentHash,
    pub len: u64,
    pub media_type: String,
    /// The provider's own metadata, kept as given.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    pub chunks: ChunkList,
}

/// A manifest that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the manifest is not valid: {0}")]
pub struct InvalidManifest(pub &'static str);

impl Manifest {
    pub fn chunk_count(&self) -> usize {
        match &self.chunks {
            ChunkList::Inline(chunks) => chunks.len(),
            ChunkList::Stored { count, .. } => *count as usize,
        }
    }

    /// Checks what can be checked without the bytes: lengths add up, bounds hold.
    pub fn check(&self) -> Result<(), InvalidManifest> {
        match &self.chunks {
            ChunkList::Inline(chunks) => check_chunks(chunks, self.len),
            ChunkList::Stored { list, count } => {
                let count = *count as usize;
                if count > ChunkList::COUNT_MAX || list.len as usize != count * ChunkRef::ENCODED_LEN {
                    return Err(InvalidManifest(
                        "its chunk list does not have the length that its count needs",
                    ));
                }
                Ok(())
            }
        }
    }
}

/// Checks that `chunks` make up a content of `len` bytes.
pub fn check_chunks(chunks: &[ChunkRef], len: u64) -> Result<(), InvalidManifest> {
    if chunks.iter().any(|c| c.len == 0 || c.len as usize > crate::chunker::CHUNK_LEN_MAX) {
        return Err(InvalidManifest("a chunk is empty or longer than 4 MiB"));
    }
    if chunks.iter().map(|c| u64::from(c.len)).sum::<u64>() != len {
        return Err(InvalidManifest("its chunks do not add up to its length"));
    }
    Ok(())
}

/// A piece of a chunk that a byte range needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSlice {
    /// Place of the chunk in the content's list.
    pub index: usize,
    pub chunk: ChunkRef,
    /// Offset of the chunk in the content, in bytes.
    pub offset: u64,
    /// Bytes of the chunk that are wanted.
    pub wanted: Range<usize>,
}

/// The pieces, in order, that make up `range` of a content (empty for an empty range).
pub fn slices(chunks: &[ChunkRef], range: Range<u64>) -> Vec<ChunkSlice> {
    let mut offset = 0u64;
    let mut result = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let end = offset + u64::from(chunk.len);
        let from = range.start.max(offset);
        let to = range.end.min(end);
        if from < to {
            let wanted = (from - offset) as usize..(to - offset) as usize;
            result.push(ChunkSlice { index, chunk: *chunk, offset, wanted });
        }
        if end >= range.end {
            break;
        }
        offset = end;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunks_of(lens: &[u32]) -> Vec<ChunkRef> {
        lens.iter()
            .enumerate()
            .map(|(i, len)| ChunkRef { hash: ChunkHash::of(&[i as u8]), len: *len })
            .collect()
    }

    #[test]
    fn a_manifest_that_does_not_add_up_is_refused() {
        let manifest = Manifest {
            hash: ContentHash::of(b"x"),
            len: 5,
            media_type: "text/plain".into(),
            metadata: BTreeMap::new(),
            chunks: ChunkList::Inline(chunks_of(&[2, 2])),
        };
        assert!(manifest.check().is_err());
        assert!(check_chunks(&chunks_of(&[2, 3]), 5).is_ok());
        assert!(check_chunks(&chunks_of(&[0]), 0).is_err());
    }

    proptest! {
        #[test]
        fn slices_give_exactly_the_range(lens in prop::collection::vec(1u32..50, 0..12), a in 0u64..600, b in 0u64..600) {
            let bytes: Vec<u8> = (0..lens.iter().sum::<u32>()).map(|i| i as u8).collect();
            let chunks = chunks_of(&lens);
            let end = bytes.len() as u64;
            let range = a.min(b).min(end)..a.max(b).min(end);
            let mut got = Vec::new();
            for slice in slices(&chunks, range.clone()) {
                let start = slice.offset as usize;
                got.extend_from_slice(&bytes[start + slice.wanted.start..start + slice.wanted.end]);
            }
            prop_assert_eq!(got, &bytes[range.start as usize..range.end as usize]);
        }

        #[test]
        fn a_stored_chunk_list_survives(lens in prop::collection::vec(1u32..4_000_000, 0..200)) {
            let chunks = chunks_of(&lens);
            let bytes = ChunkList::encode(&chunks);
            prop_assert_eq!(bytes.len(), chunks.len() * ChunkRef::ENCODED_LEN);
            prop_assert_eq!(ChunkList::decode(&bytes).unwrap(), chunks);
        }
    }
}
