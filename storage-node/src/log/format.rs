//! Encoding and decoding of what the module's documentation draws. Pure: no input or output.

use common::hash::ChunkHash;

use crate::io::{BLOCK, whole_blocks};

/// Where the segments begin.
pub(crate) const SEGMENTS_START: u64 = 1 << 20;
/// Below this a device is too small to be of use: the reserve, and as much again.
pub(crate) const MIN_SEGMENTS: u64 = 2 * super::RESERVED_SEGMENTS as u64;
pub(super) const FORMAT_VERSION: u32 = 1;
/// No log comes to so many segments. Positions are counted from them, without looking for overflow.
const SEGMENT_SEQUENCE_MAX: u64 = 1 << 37;

const SUPERBLOCK_MAGIC: &[u8; 8] = b"DOZOLOG\0";
const SEGMENT_MAGIC: &[u8; 8] = b"DOZOSEG\0";
const FREED_MAGIC: &[u8; 8] = b"DOZOFRE\0";
const FRAME_MAGIC: &[u8; 8] = b"DOZOFRM\0";
const FOOTER_MAGIC: &[u8; 8] = b"DOZOFTR\0";

pub(super) const CHECK_AT: usize = 56;
pub(super) const FRAME_FIXED: usize = 88;
pub(super) const FOOTER_CHECK_AT: usize = 64;
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

/// What the first block of a slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SlotHeader {
    /// A segment begins here.
    Segment {
        sequence: u64,
        /// Sequence of its first frame.
        first_frame: u64,
    },
    /// The segment with this sequence was here; the slot is free.
    Freed {
        sequence: u64,
    },
    /// Never used.
    Empty,
    Unreadable,
}

impl SlotHeader {
    /// Reads the block at `offset`.
    pub fn decode(block: &[u8], offset: u64, key: &[u8; 32]) -> Self {
        if block.iter().all(|b| *b == 0) {
            return Self::Empty;
        }
        let checks =
            u64_at(block, 24) == offset && block[32..64] == *blake3::keyed_hash(key, &block[..32]).as_bytes();
        let (sequence, first_frame) = (u64_at(block, 8), u64_at(block, 16));
        let checks = checks && sequence <= SEGMENT_SEQUENCE_MAX;
        match &block[..8] {
            magic if magic == SEGMENT_MAGIC && checks => Self::Segment { sequence, first_frame },
            magic if magic == FREED_MAGIC && checks => Self::Freed { sequence },
            _ => Self::Unreadable,
        }
    }

    /// Fills the block that will lie at `offset`. What is not a segment or freed is all zeros.
    pub fn encode(&self, block: &mut [u8], offset: u64, key: &[u8; 32]) {
        block[..BLOCK].fill(0);
        let (magic, sequence, first_frame) = match self {
            Self::Segment { sequence, first_frame } => (SEGMENT_MAGIC, *sequence, *first_frame),
            Self::Freed { sequence } => (FREED_MAGIC, *sequence, 0),
            Self::Empty | Self::Unreadable => return,
        };
        block[..8].copy_from_slice(magic);
        block[8..16].copy_from_slice(&sequence.to_le_bytes());
        block[16..24].copy_from_slice(&first_frame.to_le_bytes());
        block[24..32].copy_from_slice(&offset.to_le_bytes());
        let check = blake3::keyed_hash(key, &block[..32]);
        block[32..64].copy_from_slice(check.as_bytes());
    }
}

/// What one place of a frame's table, or of a footer's, says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// `at` is counted in bytes from the start of the frame.
    Rows { at: u32, len: u32 },
    /// `at` is counted from the start of the frame or, in a footer, of the segment.
    Chunk { at: u32, len: u32, hash: ChunkHash },
    /// Copies of the chunk in the segment with sequence `of`, and in those before it, are gone.
    Tombstone { of: u64, hash: ChunkHash },
    /// Rows up to this position are not needed any more: what they left is in the log behind it.
    Floor { position: u64 },
}

impl Entry {
    pub fn encode(&self, place: &mut [u8]) {
        place.fill(0);
        let (kind, len, at, hash) = match self {
            Self::Rows { at, len } => (1, *len, u64::from(*at), None),
            Self::Chunk { at, len, hash } => (2, *len, u64::from(*at), Some(hash)),
            Self::Tombstone { of, hash } => (3, 0, *of, Some(hash)),
            Self::Floor { position } => (4, 0, *position, None),
        };
        place[0] = kind;
        place[4..8].copy_from_slice(&len.to_le_bytes());
        place[8..16].copy_from_slice(&at.to_le_bytes());
        if let Some(hash) = hash {
            place[16..48].copy_from_slice(hash.as_bytes());
        }
    }

    fn decode(place: &[u8]) -> Option<Self> {
        let (len, at) = (u32_at(place, 4), u64_at(place, 8));
        let hash = ChunkHash::from_bytes(array_at(place, 16));
        match place[0] {
            1 => Some(Self::Rows { at: at.try_into().ok()?, len }),
            2 => {
                let fits_index = at.is_multiple_of(BLOCK as u64) && len as usize <= super::CHUNK_BYTES_MAX;
                fits_index.then_some(Self::Chunk { at: at.try_into().ok()?, len, hash })
            }
            3 => Some(Self::Tombstone { of: at, hash }),
            4 => Some(Self::Floor { position: at }),
            _ => None,
        }
    }

    /// Bytes that rows take with their place in the table; 0 for everything else.
    pub fn rows_bytes(&self) -> u64 {
        match self {
            Self::Rows { len, .. } => u64::from(*len) + ENTRY as u64,
            _ => 0,
        }
    }

    /// Whether its bytes, if it has any, end within the header part or the frame.
    fn fits(&self, header_bytes: u32, frame_bytes: u32) -> bool {
        match self {
            Self::Rows { at, len } => at.checked_add(*len).is_some_and(|end| end <= header_bytes),
            Self::Chunk { at, len, .. } => at.checked_add(*len).is_some_and(|end| end <= frame_bytes),
            Self::Tombstone { .. } | Self::Floor { .. } => true,
        }
    }
}

/// The header part of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub sequence: u64,
    /// On the device.
    pub offset: u64,
    pub segment: u64,
    /// Every frame up to this sequence was durable when this one was written.
    pub settled: u64,
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
        bytes[48..56].copy_from_slice(&self.settled.to_le_bytes());
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
        let frame_bytes = u32_at(bytes, 28);
        let entries = decode_table(&bytes[FRAME_FIXED..], u32_at(bytes, 32) as usize)?;
        let whole = whole_blocks(u64::from(frame_bytes)) == u64::from(frame_bytes)
            && whole_blocks(u64::from(header_bytes)) <= u64::from(frame_bytes);
        let segment = u64_at(bytes, 40);
        let plausible = whole && segment <= SEGMENT_SEQUENCE_MAX;
        (plausible && entries.iter().all(|entry| entry.fits(header_bytes, frame_bytes))).then(|| Self {
            sequence: u64_at(bytes, 8),
            offset,
            segment,
            settled: u64_at(bytes, 48),
            header_bytes,
            frame_bytes,
            entries,
        })
    }
}

fn decode_table(bytes: &[u8], count: usize) -> Option<Vec<Entry>> {
    let table = bytes.get(..count.checked_mul(ENTRY)?)?;
    table.chunks_exact(ENTRY).map(Entry::decode).collect()
}

/// What a sealed segment holds, at its end: opening the device reads this in place of every frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    pub segment: u64,
    /// Bytes that frames fill, from the start of the segment.
    pub end: u64,
    /// Sequence of the frame behind the segment's last.
    pub next_frame: u64,
    /// Bytes that rows take in all.
    pub rows_bytes: u64,
    /// Chunks and tombstones, in the order in which they were appended.
    pub entries: Vec<Entry>,
    /// The last floor that the segment sets; 0 if none.
    pub floor: u64,
}

impl Footer {
    /// Bytes that a footer with so many entries takes, on whole blocks: the table, and the trailer behind it.
    pub fn bytes(entries: usize) -> u64 {
        whole_blocks((entries * ENTRY) as u64) + BLOCK as u64
    }

    /// Fills `bytes`, which has the length of [`Footer::bytes`] and will end where the segment does.
    pub fn encode(&self, bytes: &mut [u8], segment_end: u64, key: &[u8; 32]) {
        let (table, trailer) = bytes.split_at_mut(bytes.len() - BLOCK);
        table.fill(0);
        for (entry, place) in self.entries.iter().zip(table.chunks_exact_mut(ENTRY)) {
            entry.encode(place);
        }
        trailer.fill(0);
        trailer[..8].copy_from_slice(FOOTER_MAGIC);
        trailer[8..16].copy_from_slice(&self.segment.to_le_bytes());
        trailer[16..24].copy_from_slice(&segment_end.to_le_bytes());
        trailer[24..32].copy_from_slice(&self.end.to_le_bytes());
        trailer[32..40].copy_from_slice(&self.next_frame.to_le_bytes());
        trailer[40..48].copy_from_slice(&self.rows_bytes.to_le_bytes());
        trailer[48..56].copy_from_slice(&self.floor.to_le_bytes());
        trailer[56..64].copy_from_slice(&(self.entries.len() as u64).to_le_bytes());
        let check = Self::check(table, trailer, key);
        trailer[FOOTER_CHECK_AT..FOOTER_CHECK_AT + 32].copy_from_slice(&check);
    }

    /// Number of entries that a segment's last block announces, if it is the trailer of this segment.
    pub fn announced_entries(trailer: &[u8], segment: u64, segment_end: u64) -> Option<usize> {
        let is_trailer = &trailer[..8] == FOOTER_MAGIC
            && u64_at(trailer, 8) == segment
            && u64_at(trailer, 16) == segment_end;
        is_trailer.then(|| u64_at(trailer, 56).try_into().ok())?
    }

    /// Decodes table and trailer; `None` if they are anything else.
    pub fn decode(bytes: &[u8], segment: u64, segment_end: u64, key: &[u8; 32]) -> Option<Self> {
        let (table, trailer) = bytes.split_at_checked(bytes.len().checked_sub(BLOCK)?)?;
        let count = Self::announced_entries(trailer, segment, segment_end)?;
        if trailer[FOOTER_CHECK_AT..FOOTER_CHECK_AT + 32] != Self::check(table, trailer, key) {
            return None;
        }
        Some(Self {
            segment,
            end: u64_at(trailer, 24),
            next_frame: u64_at(trailer, 32),
            rows_bytes: u64_at(trailer, 40),
            floor: u64_at(trailer, 48),
            entries: decode_table(table, count)?,
        })
    }

    fn check(table: &[u8], trailer: &[u8], key: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(key);
        hasher.update(&trailer[..FOOTER_CHECK_AT]).update(table);
        *hasher.finalize().as_bytes()
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
            Entry::Rows { at: 280, len: 5 },
            Entry::Chunk { at: 4096, len: 100, hash: ChunkHash::of(b"x") },
            Entry::Tombstone { of: 1, hash: ChunkHash::of(b"y") },
            Entry::Floor { position: 77 },
        ];
        let header = FrameHeader {
            sequence: 7,
            offset: 8192,
            segment: 2,
            settled: 6,
            header_bytes: 285,
            frame_bytes: 8192,
            entries,
        };
        let mut bytes = vec![0; 8192];
        bytes[280..285].copy_from_slice(b"rows!");
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
        for bit in 0..285 * 8 {
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
            "be02467119c715d2d0abd6fe2044491531c1582a81b1e9faf746c2d786399104"
        );
        block[200] = 1;
        assert!(matches!(Superblock::decode(&block), SuperblockRead::Valid(_)), "only its sector counts");
        block[9] = 1;
        assert_eq!(Superblock::decode(&block), SuperblockRead::Foreign);
    }

    #[test]
    fn a_footer_is_read_as_it_was_written_and_only_whole() {
        let entries = (0..200u64)
            .map(|n| Entry::Chunk { at: 4096 * n as u32, len: 9, hash: ChunkHash::of(&n.to_le_bytes()) })
            .chain([Entry::Tombstone { of: 3, hash: ChunkHash::of(b"y") }]);
        let footer = Footer {
            segment: 4,
            end: 900 << 10,
            next_frame: 55,
            rows_bytes: 1234,
            entries: entries.collect(),
            floor: 9,
        };
        let mut bytes = vec![7; Footer::bytes(footer.entries.len()) as usize];
        assert_eq!(bytes.len(), 4 * BLOCK);
        footer.encode(&mut bytes, 1 << 20, &[5; 32]);
        assert_eq!(Footer::announced_entries(&bytes[3 * BLOCK..], 4, 1 << 20), Some(201));
        assert_eq!(Footer::decode(&bytes, 4, 1 << 20, &[5; 32]), Some(footer));
        assert_eq!(
            Footer::decode(&bytes, 5, 1 << 20, &[5; 32]),
            None,
            "of the segment before it in the slot"
        );
        for at in [0, 4800, 9647, 3 * BLOCK + 30, 3 * BLOCK + 60, 3 * BLOCK + 80] {
            bytes[at] ^= 1;
            assert_eq!(Footer::decode(&bytes, 4, 1 << 20, &[5; 32]), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_slot_header_says_what_is_in_the_slot() {
        let (mut block, key) = (vec![9; BLOCK], [6; 32]);
        assert_eq!(SlotHeader::decode(&block, 4096, &key), SlotHeader::Unreadable);
        let segment = SlotHeader::Segment { sequence: 5, first_frame: 70 };
        for header in [segment, SlotHeader::Freed { sequence: 5 }, SlotHeader::Empty] {
            header.encode(&mut block, 4096, &key);
            assert_eq!(SlotHeader::decode(&block, 4096, &key), header);
            if header != SlotHeader::Empty {
                assert_eq!(SlotHeader::decode(&block, 8192, &key), SlotHeader::Unreadable, "misdirected");
            }
        }
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
            SlotHeader::decode(&bytes[..BLOCK], 0, &[0; 32]);
            Footer::decode(&bytes[..BLOCK], 1, 0, &[0; 32]);
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
