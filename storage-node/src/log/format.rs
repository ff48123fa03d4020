//! Encoding and decoding of what the module's documentation draws. Pure: no input or output.

use common::hash::ChunkHash;

use crate::io::{BLOCK, whole_blocks};

/// Where the segments begin.
pub(crate) const SEGMENTS_START: u64 = 1 << 20;
/// Below this a device is too small to be of use: the reserve, and as much again.
pub(crate) const MIN_SEGMENTS: u64 = 4;
pub(super) const FORMAT_VERSION: u32 = 1;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"DOZOLOG\0";
const SEGMENT_MAGIC: &[u8; 8] = b"DOZOSEG\0";
const FRAME_MAGIC: &[u8; 8] = b"DOZOFRM\0";

const CHECK_AT: usize = 48;
pub(super) const FRAME_FIXED: usize = 80;
pub(super) const ENTRY: usize = 48;

/// Bytes of a device with that many slots.
pub(crate) const fn device_bytes(slots: u64, segment_bytes: u64) -> u64 {
    SEGMENTS_START + slots * segment_bytes
}

/// Identity and geometry of a log; never changes once written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub log_id: [u8; 16],
    pub key: [u8; 32],
    pub segment_bytes: u64,
    pub slots: u64,
    pub device_bytes: u64,
}

/// What a block that should be a superblock is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SuperblockRead {
    Valid(Superblock),
    /// Of a later version of this program.
    Newer(u32),
    Empty,
    Foreign,
}

impl Superblock {
    pub fn encode(&self, block: &mut [u8]) {
        block[..BLOCK].fill(0);
        block[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&self.log_id);
        block[32..64].copy_from_slice(&self.key);
        block[64..72].copy_from_slice(&self.segment_bytes.to_le_bytes());
        block[72..80].copy_from_slice(&self.slots.to_le_bytes());
        block[80..88].copy_from_slice(&self.device_bytes.to_le_bytes());
        let check = blake3::hash(&block[..96]);
        block[96..128].copy_from_slice(check.as_bytes());
    }

    pub fn decode(block: &[u8]) -> SuperblockRead {
        if block.iter().all(|b| *b == 0) {
            return SuperblockRead::Empty;
        }
        if &block[..8] != SUPERBLOCK_MAGIC || block[96..128] != *blake3::hash(&block[..96]).as_bytes() {
            return SuperblockRead::Foreign;
        }
        let version = u32_at(block, 8);
        if version > FORMAT_VERSION {
            return SuperblockRead::Newer(version);
        }
        SuperblockRead::Valid(Self {
            log_id: array_at(block, 16),
            key: array_at(block, 32),
            segment_bytes: u64_at(block, 64),
            slots: u64_at(block, 72),
            device_bytes: u64_at(block, 80),
        })
    }

    /// Where a slot's segment begins on the device.
    pub fn segment_offset(&self, slot: u32) -> u64 {
        SEGMENTS_START + u64::from(slot) * self.segment_bytes
    }
}

/// Returns (sequence of the segment, sequence of its first frame) of the header block at `offset`.
pub(super) fn decode_segment_header(block: &[u8], offset: u64, key: &[u8; 32]) -> Option<(u64, u64)> {
    let checks = &block[..8] == SEGMENT_MAGIC
        && u64_at(block, 24) == offset
        && block[32..64] == *blake3::keyed_hash(key, &block[..32]).as_bytes();
    checks.then(|| (u64_at(block, 8), u64_at(block, 16)))
}

pub(super) fn encode_segment_header(
    block: &mut [u8],
    sequence: u64,
    first_frame: u64,
    offset: u64,
    key: &[u8; 32],
) {
    block[..BLOCK].fill(0);
    block[..8].copy_from_slice(SEGMENT_MAGIC);
    block[8..16].copy_from_slice(&sequence.to_le_bytes());
    block[16..24].copy_from_slice(&first_frame.to_le_bytes());
    block[24..32].copy_from_slice(&offset.to_le_bytes());
    let check = blake3::keyed_hash(key, &block[..32]);
    block[32..64].copy_from_slice(check.as_bytes());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Rows = 1,
    Chunk = 2,
    Tombstone = 3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub kind: Kind,
    pub len: u32,
    /// Bytes from the start of the frame.
    pub at: u32,
    /// Zero for rows.
    pub hash: ChunkHash,
}

impl Entry {
    fn encode(&self, place: &mut [u8]) {
        place.fill(0);
        place[0] = self.kind as u8;
        place[4..8].copy_from_slice(&self.len.to_le_bytes());
        place[8..12].copy_from_slice(&self.at.to_le_bytes());
        place[16..48].copy_from_slice(self.hash.as_bytes());
    }

    fn decode(place: &[u8]) -> Option<Self> {
        let kind = match place[0] {
            1 => Kind::Rows,
            2 => Kind::Chunk,
            3 => Kind::Tombstone,
            _ => return None,
        };
        let hash = ChunkHash::from_bytes(array_at(place, 16));
        Some(Self { kind, len: u32_at(place, 4), at: u32_at(place, 8), hash })
    }
}

/// The header part of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub sequence: u64,
    /// On the device.
    pub offset: u64,
    pub segment: u64,
    pub header_bytes: u32,
    pub frame_bytes: u32,
    pub entries: Vec<Entry>,
}

impl FrameHeader {
    /// Writes everything but the rows, which lie at their places in `bytes` already, then the check over all.
    pub fn encode(&self, bytes: &mut [u8], key: &[u8; 32]) {
        bytes[..8].copy_from_slice(FRAME_MAGIC);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.header_bytes.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.frame_bytes.to_le_bytes());
        bytes[32..36].copy_from_slice(&(self.entries.len() as u32).to_le_bytes());
        bytes[36..40].fill(0);
        bytes[40..48].copy_from_slice(&self.segment.to_le_bytes());
        for (entry, place) in self.entries.iter().zip(bytes[FRAME_FIXED..].chunks_exact_mut(ENTRY)) {
            entry.encode(place);
        }
        let check = check_of(&bytes[..self.header_bytes as usize], key);
        bytes[CHECK_AT..FRAME_FIXED].copy_from_slice(&check);
    }

    /// Bytes of the header part that a frame's first block announces; nothing is checked yet but the magic.
    pub fn announced_bytes(block: &[u8]) -> Option<u32> {
        (&block[..8] == FRAME_MAGIC).then(|| u32_at(block, 24)).filter(|len| *len as usize >= FRAME_FIXED)
    }

    /// Decodes a whole header part that was read from `offset`; `None` if it is anything else.
    pub fn decode(bytes: &[u8], offset: u64, key: &[u8; 32]) -> Option<Self> {
        let header_bytes = Self::announced_bytes(bytes)?;
        let bytes = bytes.get(..header_bytes as usize)?;
        if bytes[CHECK_AT..FRAME_FIXED] != check_of(bytes, key) || u64_at(bytes, 16) != offset {
            return None;
        }
        let count = u32_at(bytes, 32) as usize;
        let frame_bytes = u32_at(bytes, 28);
        let table = bytes.get(FRAME_FIXED..FRAME_FIXED.checked_add(count.checked_mul(ENTRY)?)?)?;
        let entries = table.chunks_exact(ENTRY).map(Entry::decode).collect::<Option<Vec<_>>>()?;
        let fits = |entry: &Entry| {
            let bound = if entry.kind == Kind::Rows { header_bytes } else { frame_bytes };
            entry.at.checked_add(entry.len).is_some_and(|end| end <= bound)
        };
        let whole = whole_blocks(u64::from(frame_bytes)) == u64::from(frame_bytes)
            && whole_blocks(u64::from(header_bytes)) <= u64::from(frame_bytes);
        (whole && entries.iter().all(fits)).then(|| Self {
            sequence: u64_at(bytes, 8),
            offset,
            segment: u64_at(bytes, 40),
            header_bytes,
            frame_bytes,
            entries,
        })
    }
}

fn check_of(header: &[u8], key: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&header[..CHECK_AT]).update(&header[FRAME_FIXED..]);
    *hasher.finalize().as_bytes()
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> (Vec<u8>, FrameHeader) {
        let entries = vec![
            Entry { kind: Kind::Rows, len: 5, at: 224, hash: ChunkHash::from_bytes([0; 32]) },
            Entry { kind: Kind::Chunk, len: 100, at: 4096, hash: ChunkHash::of(b"x") },
            Entry { kind: Kind::Tombstone, len: 0, at: 0, hash: ChunkHash::of(b"y") },
        ];
        let header = FrameHeader {
            sequence: 7,
            offset: 8192,
            segment: 2,
            header_bytes: 229,
            frame_bytes: 8192,
            entries,
        };
        let mut bytes = vec![0; 8192];
        bytes[224..229].copy_from_slice(b"rows!");
        header.encode(&mut bytes, &[3; 32]);
        (bytes, header)
    }

    #[test]
    fn a_frame_header_is_read_as_it_was_written_and_only_where_it_was() {
        let (bytes, header) = frame();
        assert_eq!(FrameHeader::decode(&bytes, 8192, &[3; 32]), Some(header));
        assert_eq!(FrameHeader::decode(&bytes, 4096, &[3; 32]), None, "misdirected");
        assert_eq!(FrameHeader::decode(&bytes, 8192, &[4; 32]), None, "of another log");
    }

    #[test]
    fn every_flipped_bit_of_a_header_part_is_noticed() {
        let (mut bytes, _) = frame();
        for bit in 0..229 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&bytes, 8192, &[3; 32]), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn the_layout_on_disk_is_pinned() {
        let superblock = Superblock {
            log_id: [1; 16],
            key: [2; 32],
            segment_bytes: 64 << 20,
            slots: 10,
            device_bytes: 700 << 20,
        };
        let mut block = vec![0; BLOCK];
        superblock.encode(&mut block);
        assert_eq!(Superblock::decode(&block), SuperblockRead::Valid(superblock));
        assert_eq!(
            blake3::hash(&block).to_hex().as_str(),
            "d7460922878b48daeec4ae4ce1a59cdd6065a0f7bbda85015a9d8d49906e2391",
        );
        assert_eq!(
            blake3::hash(&frame().0).to_hex().as_str(),
            "077f9072b4168a9b68207de0ef43a4918cbbc1739caec5742af11c87bf1c6257"
        );
        block[200] = 1;
        assert!(matches!(Superblock::decode(&block), SuperblockRead::Valid(_)), "only its sector counts");
        block[9] = 1;
        assert_eq!(Superblock::decode(&block), SuperblockRead::Foreign);
    }

    #[test]
    fn a_superblock_of_a_later_format_says_so() {
        let mut block = vec![0; BLOCK];
        block[..8].copy_from_slice(SUPERBLOCK_MAGIC);
        block[8] = 9;
        let check = blake3::hash(&block[..96]);
        block[96..128].copy_from_slice(check.as_bytes());
        assert_eq!(Superblock::decode(&block), SuperblockRead::Newer(9));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(mut bytes in proptest::collection::vec(0u8.., BLOCK..2 * BLOCK), magic in 0..4) {
            match magic {
                0 => bytes[..8].copy_from_slice(SUPERBLOCK_MAGIC),
                1 => bytes[..8].copy_from_slice(SEGMENT_MAGIC),
                2 => bytes[..8].copy_from_slice(FRAME_MAGIC),
                _ => {}
            }
            Superblock::decode(&bytes[..BLOCK]);
            decode_segment_header(&bytes, 0, &[0; 32]);
            // A forged check, so that the fields behind it are reached.
            if magic == 2 {
                let len = (u32_at(&bytes, 24) as usize % BLOCK).max(FRAME_FIXED);
                bytes[24..28].copy_from_slice(&(len as u32).to_le_bytes());
                bytes[16..24].fill(0);
                let check = check_of(&bytes[..len], &[0; 32]);
                bytes[CHECK_AT..FRAME_FIXED].copy_from_slice(&check);
            }
            FrameHeader::decode(&bytes, 0, &[0; 32]);
        }
    }
}
