//! Cuts a stream of bytes into content-defined chunks, so equal parts of different files become equal chunks.
//!
//! FastCDC, 2020 form (Xia et al., "The Design of Fast Content Defined Chunking for Data Deduplication
//! Based Storage Systems"), normalisation level 1. The parameters and cut points are part of the data
//! format: two sites that cut differently would share nothing. A test pins them.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::FastCDC;

/// Contents up to this length are one chunk; no chunk but the last is shorter.
pub const CHUNK_LEN_MIN: usize = 256 * 1024;
pub const CHUNK_LEN_AVG: usize = 1024 * 1024;
pub const CHUNK_LEN_MAX: usize = 4 * 1024 * 1024;

/// Incremental chunker: push bytes in pieces of any size, take chunks out. The chunks depend on the
/// bytes alone, never on how they were pushed. Holds at most one longest chunk and one pushed piece.
#[derive(Default)]
pub struct Chunker {
    buffer: BytesMut,
}

impl Chunker {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next chunk, once enough bytes are there to know where it ends.
    pub fn next_chunk(&mut self) -> Option<Bytes> {
        if self.buffer.len() < CHUNK_LEN_MAX { None } else { Some(self.cut()) }
    }

    /// The chunks that are left when the stream has ended.
    pub fn finish(mut self) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        while !self.buffer.is_empty() {
            chunks.push(self.cut());
        }
        chunks
    }

    fn cut(&mut self) -> Bytes {
        let window = self.buffer.len().min(CHUNK_LEN_MAX);
        let end = if window <= CHUNK_LEN_MIN {
            window
        } else {
            let cdc = FastCDC::new(&self.buffer[..window], CHUNK_LEN_MIN, CHUNK_LEN_AVG, CHUNK_LEN_MAX);
            cdc.cut(0, window).1
        };
        self.buffer.split_to(end).freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that look random and never change (xorshift64*).
    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    fn chunk_all(bytes: &[u8], piece: usize) -> Vec<Bytes> {
        let mut chunker = Chunker::new();
        let mut chunks = Vec::new();
        for part in bytes.chunks(piece) {
            chunker.push(part);
            chunks.extend(std::iter::from_fn(|| chunker.next_chunk()));
        }
        chunks.extend(chunker.finish());
        chunks
    }

    #[test]
    fn cut_points_are_pinned() {
        let lens: Vec<usize> = chunk_all(&noise(12 << 20, 42), 1 << 20).iter().map(Bytes::len).collect();
        assert_eq!(lens.iter().sum::<usize>(), 12 << 20);
        assert_eq!(lens, PINNED, "changed cut points end deduplication with everything stored before");
    }

    const PINNED: [usize; 9] =
        [1087539, 1301598, 675636, 1380270, 644326, 2026495, 1231326, 1542882, 2692840];

    #[test]
    fn a_byte_put_in_front_changes_only_the_first_chunks() {
        let old = noise(24 << 20, 7);
        let new = [b"!".as_slice(), &old].concat();
        let old: std::collections::HashSet<Bytes> = chunk_all(&old, 1 << 20).into_iter().collect();
        let new = chunk_all(&new, 1 << 20);
        let shared = new.iter().filter(|c| old.contains(*c)).count();
        assert!(shared + 3 >= new.len(), "only {shared} of {} chunks are shared", new.len());
    }

    #[test]
    fn short_contents_are_one_chunk() {
        for len in [1, 4096, CHUNK_LEN_MIN] {
            assert_eq!(chunk_all(&noise(len, 3), 1000).len(), 1);
        }
        assert!(Chunker::new().finish().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn chunks_do_not_depend_on_the_pieces(piece in 1usize..3_000_000, len in 0usize..9_000_000) {
            let bytes = noise(len, 99);
            let chunks = chunk_all(&bytes, piece);
            prop_assert_eq!(chunks.concat(), bytes.clone());
            prop_assert_eq!(chunks, chunk_all(&bytes, 1 << 16));
        }
    }
}
