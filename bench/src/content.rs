//! Contents that need no memory: every byte is a function of seed, id, length and position.
//!
//! A content is a stream of 64-bit words, word `i` being a mix of `key + i * gamma` (SplitMix64: Steele, Lea and
//! Flood, "Fast splittable pseudorandom number generators", 2014). Any position is computed directly, several
//! bytes a nanosecond, so generating and checking cost less than hashing.

use bytes::{Bytes, BytesMut};
use common::hash::ContentHash;
use serde::{Deserialize, Serialize};

/// The finaliser of SplitMix64: spreads every input bit over all output bits.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A small generator of random numbers for choices (which object, when); the same seed gives the same run.
#[derive(Debug, Clone)]
pub struct Choices(u64);

impl Choices {
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream.wrapping_add(0x5851_F42D_4C95_7F2D))))
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform below `bound`, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product; the bias is below 2^-32 for the bounds used here.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// One content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    key: u64,
    gamma: u64,
    /// Bytes.
    pub len: u64,
    /// Where a byte is another than the stream has.
    edits: Option<[u64; 2]>,
}

impl Content {
    pub fn new(seed: u64, id: u64, len: u64) -> Self {
        let key = mix(mix(seed).wrapping_add(mix(id ^ 0xA076_1D64_78BD_642F)).wrapping_add(len));
        // A step of its own for each content: no two streams run alike, not even shifted.
        Self { key, gamma: mix(key ^ 0xE703_7ED1_A0B4_28DB) | 1, len, edits: None }
    }

    /// A place among `count`, the same each time, for a table of contents.
    pub fn place_among(&self, count: usize) -> usize {
        (mix(self.key) % count as u64) as usize
    }

    /// The same with another byte at each of these places.
    pub fn edited(self, places: [u64; 2]) -> Self {
        Self { edits: Some(places), ..self }
    }

    /// Places of edited bytes in a piece.
    fn edits_in(&self, offset: u64, len: usize) -> impl Iterator<Item = usize> {
        let in_piece =
            move |place| (offset..offset + len as u64).contains(&place).then(|| (place - offset) as usize);
        self.edits.into_iter().flatten().filter_map(in_piece)
    }

    fn word(&self, index: u64) -> [u8; 8] {
        mix(self.key.wrapping_add(index.wrapping_mul(self.gamma))).to_le_bytes()
    }

    /// Writes the bytes from `offset` on; what lies beyond the end of the content is defined too, but never sent.
    pub fn fill(&self, offset: u64, out: &mut [u8]) {
        self.fill_stream(offset, out);
        self.edits_in(offset, out.len()).for_each(|place| out[place] ^= 0xFF);
    }

    fn fill_stream(&self, offset: u64, out: &mut [u8]) {
        let skip = (offset % 8) as usize;
        let mut index = offset / 8;
        let mut out = out;
        if skip > 0 {
            let word = self.word(index);
            let len = out.len().min(8 - skip);
            let (head, rest) = out.split_at_mut(len);
            head.copy_from_slice(&word[skip..skip + len]);
            out = rest;
            index += 1;
        }
        let mut words = out.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.word(index));
            index += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(&self.word(index)[..tail.len()]);
    }

    /// Whether `bytes` are the content's bytes from `offset` on, and lie within it.
    pub fn matches(&self, offset: u64, bytes: &[u8]) -> bool {
        if offset + bytes.len() as u64 > self.len {
            return false;
        }
        if self.edits_in(offset, bytes.len()).next().is_some() {
            return self.bytes(offset, bytes.len()) == bytes;
        }
        let skip = (offset % 8) as usize;
        let mut index = offset / 8;
        let mut bytes = bytes;
        if skip > 0 {
            let len = bytes.len().min(8 - skip);
            if bytes[..len] != self.word(index)[skip..skip + len] {
                return false;
            }
            bytes = &bytes[len..];
            index += 1;
        }
        let (words, tail) = bytes.as_chunks::<8>();
        // Differences are gathered, not branched on: the loop stays a straight line.
        let mut difference = 0u64;
        for word in words {
            difference |= u64::from_le_bytes(*word) ^ u64::from_le_bytes(self.word(index));
            index += 1;
        }
        difference == 0 && *tail == self.word(index)[..tail.len()]
    }

    /// A piece of the content.
    pub fn bytes(&self, offset: u64, len: usize) -> Bytes {
        let mut piece = BytesMut::zeroed(len);
        self.fill(offset, &mut piece);
        piece.freeze()
    }

    /// What the content's ETag has to be.
    pub fn hash(&self) -> ContentHash {
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0u8; 64 << 10];
        let mut offset = 0;
        while offset < self.len {
            let len = piece.len().min((self.len - offset) as usize);
            self.fill(offset, &mut piece[..len]);
            hasher.update(&piece[..len]);
            offset += len as u64;
        }
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_seed_id_and_length_give_the_same_bytes_and_nothing_else_does() {
        let hash = |seed, id, len| Content::new(seed, id, len).hash();
        assert_eq!(hash(1, 2, 100_000), hash(1, 2, 100_000));
        for other in [hash(2, 2, 100_000), hash(1, 3, 100_000), hash(1, 2, 100_001), hash(2, 1, 100_000)] {
            assert_ne!(hash(1, 2, 100_000), other);
        }
    }

    #[test]
    fn the_generator_is_pinned() {
        // A report names its seed: a rerun, perhaps by a later version, must make the same contents.
        assert_eq!(Content::new(1, 2, 100_000).hash().short(), "e32cdd56d5");
    }

    #[test]
    fn bytes_are_spread_evenly() {
        let mut counts = [0u32; 256];
        for byte in Content::new(7, 7, 1 << 20).bytes(0, 1 << 20) {
            counts[usize::from(byte)] += 1;
        }
        let expected = f64::from(1 << 20) / 256.0;
        let chi_square: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
        // 255 degrees of freedom: mean 255, standard deviation 22.6.
        assert!((165.0..345.0).contains(&chi_square), "{chi_square}");
    }

    #[test]
    fn an_edited_content_differs_where_it_was_edited_and_nowhere_else() {
        let (content, places) = (Content::new(3, 1, 10_000), [17, 9_999]);
        let edited = content.edited(places);
        let (old, new) = (content.bytes(0, 10_000), edited.bytes(0, 10_000));
        let differ: Vec<u64> = (0..10_000).filter(|n| old[*n as usize] != new[*n as usize]).collect();
        assert_eq!(differ, places);
        assert_ne!(content.hash(), edited.hash());
        assert!(
            edited.matches(0, &new) && edited.matches(10, &new[10..20]) && !edited.matches(10, &old[10..20])
        );
        assert!(edited.matches(20, &old[20..9_000]));
    }

    proptest! {
        #[test]
        fn a_piece_is_the_same_wherever_it_begins(id in any::<u64>(), start in 0u64..5_000, len in 0usize..5_000) {
            let content = Content::new(3, id, 10_000);
            let whole = content.bytes(0, 10_000);
            let piece = content.bytes(start, len);
            prop_assert_eq!(&piece[..], &whole[start as usize..start as usize + len]);
            prop_assert!(content.matches(start, &piece));
        }

        #[test]
        fn one_wrong_bit_is_seen(id in any::<u64>(), start in 0u64..100, len in 1usize..2_000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let content = Content::new(3, id, 10_000);
            let mut piece = content.bytes(start, len).to_vec();
            piece[at.index(len)] ^= 1 << bit;
            prop_assert!(!content.matches(start, &piece));
        }

        #[test]
        fn bytes_beyond_the_end_do_not_match(extra in 1u64..50) {
            let content = Content::new(3, 1, 100);
            let bytes = content.bytes(0, 100 + extra as usize);
            prop_assert!(!content.matches(0, &bytes));
        }
    }
}
