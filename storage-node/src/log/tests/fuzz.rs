//! The decoders of what is on the device, fed with rotten encodings whose checks are forged, so that the fields behind
//! them are reached; and whole devices that rot.

use std::path::Path;
use std::sync::LazyLock;

use super::fixtures::{KEY as DEVICE_KEY, letters, lived};
use super::*;
use crate::fuzz::{ROUNDS, Target, corpus, fuzz};
use crate::log::format::{
    CHECK_AT, ENTRY, Entry, FOOTER_CHECK_AT, FORMAT_VERSION, FRAME_FIXED, Footer, FrameHeader, SlotHeader,
    Superblock, SuperblockRead,
};

const KEY: [u8; 32] = [7; 32];
const OFFSET: u64 = 1 << 20;

fn run(name: &str, target: Target, examples: &[Vec<u8>]) {
    run_rounds(name, ROUNDS, target, examples);
}

fn run_rounds(name: &str, rounds: u64, target: Target, examples: &[Vec<u8>]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    fuzz(target, rounds, &corpus(&path, examples));
}

/// The bytes at the start of a buffer of that length.
fn padded(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut buffer = bytes[..bytes.len().min(len)].to_vec();
    buffer.resize(len, 0);
    buffer
}

fn entries() -> Vec<Entry> {
    let hash = ChunkHash::of(b"chunk");
    vec![
        Entry::Chunk { at: 4096, len: 5000, hash },
        Entry::Tombstone { of: 3, hash },
        Entry::Chunk { at: 12_288, len: 0, hash },
        Entry::Floor { position: 1 << 40 },
    ]
}

fn superblock(bytes: &[u8]) {
    let as_found = padded(bytes, BLOCK);
    let mut forged = as_found.clone();
    let check = blake3::hash(&forged[..96]);
    forged[96..128].copy_from_slice(check.as_bytes());
    for block in [as_found, forged] {
        match Superblock::decode(&block) {
            SuperblockRead::Valid(superblock) => {
                let mut again = vec![1; BLOCK];
                superblock.encode(&mut again);
                assert_eq!(Superblock::decode(&again), SuperblockRead::Valid(superblock));
            }
            SuperblockRead::Newer(version) => assert!(version > FORMAT_VERSION),
            SuperblockRead::Empty => assert!(block.iter().all(|byte| *byte == 0)),
            SuperblockRead::Foreign => {}
        }
    }
}

#[test]
fn a_rotten_superblock_is_never_misread() {
    let mut block = vec![0; BLOCK];
    let superblock_of = |slots, segment_bytes| Superblock {
        log_id: [1; 16],
        key: KEY,
        segment_bytes,
        slots,
        device_bytes: device_bytes(slots, segment_bytes),
    };
    let examples = [superblock_of(12, 128 << 10), superblock_of(1000, 64 << 20)].map(|superblock| {
        superblock.encode(&mut block);
        block[..128].to_vec()
    });
    run("superblock", superblock, &examples);
}

fn slot_header(bytes: &[u8]) {
    let mut block = padded(bytes, BLOCK);
    let as_found = SlotHeader::decode(&block, OFFSET, &KEY);
    block[24..32].copy_from_slice(&OFFSET.to_le_bytes());
    let check = blake3::keyed_hash(&KEY, &block[..32]);
    block[32..64].copy_from_slice(check.as_bytes());
    for header in [as_found, SlotHeader::decode(&block, OFFSET, &KEY)] {
        if header != SlotHeader::Unreadable {
            header.encode(&mut block, OFFSET, &KEY);
            assert_eq!(SlotHeader::decode(&block, OFFSET, &KEY), header);
        }
    }
}

#[test]
fn a_rotten_slot_header_is_never_misread() {
    let mut block = vec![0; BLOCK];
    let examples = [SlotHeader::Segment { sequence: 5, first_frame: 70 }, SlotHeader::Freed { sequence: 9 }]
        .map(|header| {
            header.encode(&mut block, OFFSET, &KEY);
            block[..64].to_vec()
        });
    run("slot-header", slot_header, &examples);
}

/// The header part of a frame.
fn frame_header(bytes: &[u8]) {
    let mut bytes = padded(bytes, bytes.len().next_multiple_of(BLOCK).max(BLOCK));
    FrameHeader::decode(&bytes, OFFSET, &KEY);
    bytes[16..24].copy_from_slice(&OFFSET.to_le_bytes());
    let Some(len) = FrameHeader::announced_bytes(&bytes).map(|len| len as usize) else { return };
    if len > bytes.len() {
        assert_eq!(FrameHeader::decode(&bytes, OFFSET, &KEY), None);
        return;
    }
    let mut hasher = blake3::Hasher::new_keyed(&KEY);
    hasher.update(&bytes[..CHECK_AT]).update(&bytes[FRAME_FIXED..len]);
    bytes[CHECK_AT..FRAME_FIXED].copy_from_slice(hasher.finalize().as_bytes());
    let Some(header) = FrameHeader::decode(&bytes, OFFSET, &KEY) else { return };
    assert!(header.frame_bytes as usize >= len && (header.frame_bytes as usize).is_multiple_of(BLOCK));
    for entry in &header.entries {
        match *entry {
            Entry::Rows { at, len: rows } => assert!(bytes[at as usize..][..rows as usize].len() <= len),
            Entry::Chunk { at, len, .. } => {
                assert!(u64::from(at) + u64::from(len) <= u64::from(header.frame_bytes));
                let location = Location::new(OFFSET + u64::from(at), len);
                assert_eq!((location.offset(), location.len()), (OFFSET + u64::from(at), len as usize));
            }
            Entry::Tombstone { .. } | Entry::Floor { .. } => {}
        }
    }
    header.encode(&mut bytes, &KEY);
    assert_eq!(FrameHeader::decode(&bytes, OFFSET, &KEY), Some(header));
}

#[test]
fn a_rotten_frame_header_is_never_misread() {
    let table_end = (FRAME_FIXED + 5 * ENTRY) as u32;
    let mut all = entries();
    all.push(Entry::Rows { at: table_end, len: 5 });
    let frame = |entries: Vec<Entry>, header_bytes: u32| {
        let header = FrameHeader {
            sequence: 7,
            offset: OFFSET,
            segment: 2,
            settled: 6,
            header_bytes,
            frame_bytes: 16 << 10,
            entries,
        };
        let mut bytes = vec![b'r'; header_bytes as usize];
        header.encode(&mut bytes, &KEY);
        bytes
    };
    let examples = [frame(all, table_end + 5), frame(Vec::new(), FRAME_FIXED as u32)];
    run("frame-header", frame_header, &examples);
}

/// The sector of the trailer that counts, then the table.
fn footer(bytes: &[u8]) {
    let trailer_len = FOOTER_CHECK_AT + 32;
    let (trailer, table) = bytes.split_at(bytes.len().min(trailer_len));
    let trailer_at = table.len().next_multiple_of(BLOCK);
    let mut bytes = [padded(table, trailer_at), padded(trailer, BLOCK)].concat();
    let (segment, segment_end) = (4, 1 << 21);
    Footer::decode(&bytes, segment, segment_end, &KEY);
    let Some(count) = Footer::announced_entries(&bytes[trailer_at..], segment, segment_end) else { return };
    let mut hasher = blake3::Hasher::new_keyed(&KEY);
    hasher.update(&bytes[trailer_at..][..FOOTER_CHECK_AT]).update(&bytes[..trailer_at]);
    bytes[trailer_at + FOOTER_CHECK_AT..][..32].copy_from_slice(hasher.finalize().as_bytes());
    let Some(footer) = Footer::decode(&bytes, segment, segment_end, &KEY) else { return };
    assert_eq!(footer.entries.len(), count);
    for entry in &footer.entries {
        if let Entry::Chunk { at, len, .. } = *entry {
            let location = Location::new(OFFSET + u64::from(at), len);
            assert_eq!((location.offset(), location.len()), (OFFSET + u64::from(at), len as usize));
        }
    }
    footer.encode(&mut bytes, segment_end, &KEY);
    assert_eq!(Footer::decode(&bytes, segment, segment_end, &KEY), Some(footer));
}

#[test]
fn a_rotten_footer_is_never_misread() {
    let example = |entries: Vec<Entry>| {
        let footer =
            Footer { segment: 4, end: 65_536, next_frame: 9, rows_bytes: 12, floor: 1 << 40, entries };
        let mut bytes = vec![0; Footer::bytes(footer.entries.len()) as usize];
        footer.encode(&mut bytes, 1 << 21, &KEY);
        let (table, trailer) = bytes.split_at(bytes.len() - BLOCK);
        [&trailer[..FOOTER_CHECK_AT + 32], &table[..footer.entries.len() * ENTRY]].concat()
    };
    let examples = [example(entries().into_iter().take(3).collect()), example(Vec::new())];
    run("footer", footer, &examples);
}

/// A device of the fixtures, after bits of what describes it were changed: records of a byte that chooses a structure,
/// one that says where in it, and eight that change it. An odd first byte stands for checks that are made good
/// afterwards: not by chance, but by a fault of this program or an evil hand.
fn device(bytes: &[u8]) {
    static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| lived().sim.image());
    let Some((mode, records)) = bytes.split_first() else { return };
    let mut image = IMAGE.clone();
    let is_structure = |at: &usize| IMAGE[*at..].starts_with(b"DOZO");
    let structures: Vec<usize> = (0..image.len()).step_by(BLOCK).filter(is_structure).collect();
    for record in records.chunks_exact(10) {
        let block = structures[usize::from(record[0]) % structures.len()];
        let at = block + usize::from(record[1]);
        image[at..at + 8].iter_mut().zip(&record[2..]).for_each(|(byte, change)| *byte ^= change);
        if mode % 2 == 1 && block as u64 >= SEGMENTS_START {
            forge(&mut image, block);
        }
    }
    let Ok(node) = Node::open(SimIo::new(image, None)) else { return };
    let texts: [&[u8]; 5] = [b"one", b"two", b"three", b"four", b"five"];
    let replayed = node.log.replay_rows(LogPosition(0), &mut |_, rows| {
        assert!(mode % 2 == 1 || texts.contains(&rows), "rows that nobody appended");
        Ok(())
    });
    assert!(matches!(replayed, Ok(()) | Err(ReplayError::Damaged { .. })), "{replayed:?}");
    for (letter, len) in [('a', 40_000), ('c', 20_000), ('d', 60_000), ('e', 50_000), ('f', 0), ('g', 100)] {
        if let Ok(bytes) = node.get_letters(letter, len) {
            assert_eq!(bytes, letters(letter, len));
        }
    }
    let mut node = node;
    node.apply(&[Op::put(1, 9000), Op::rows(1, 9)]);
    node.apply(&[Op::Compact]);
}

/// Makes the check of the structure in a block of the device good.
fn forge(image: &mut [u8], at: usize) {
    let structure = &mut image[at..];
    match &structure[4..7] {
        b"SEG" | b"FRE" => {
            let check = blake3::keyed_hash(&DEVICE_KEY, &structure[..32]);
            structure[32..64].copy_from_slice(check.as_bytes());
        }
        b"FRM" => {
            let Some(len) = FrameHeader::announced_bytes(structure) else { return };
            let Some(rest) = structure.get(FRAME_FIXED..len as usize) else { return };
            let mut hasher = blake3::Hasher::new_keyed(&DEVICE_KEY);
            hasher.update(&structure[..CHECK_AT]).update(rest);
            structure[CHECK_AT..FRAME_FIXED].copy_from_slice(hasher.finalize().as_bytes());
        }
        b"FTR" => {
            let (before, trailer) = image.split_at_mut(at);
            let count = u64::from_le_bytes(trailer[56..64].try_into().unwrap());
            if count > 1000 {
                return;
            }
            let table = Footer::bytes(count as usize) as usize - BLOCK;
            let mut hasher = blake3::Hasher::new_keyed(&DEVICE_KEY);
            hasher.update(&trailer[..FOOTER_CHECK_AT]).update(&before[at - table..]);
            trailer[FOOTER_CHECK_AT..FOOTER_CHECK_AT + 32].copy_from_slice(hasher.finalize().as_bytes());
        }
        _ => {}
    }
}

#[test]
fn a_rotten_device_is_opened_or_refused() {
    let record =
        |structure: u8, at: u8, change: u64| [[structure, at].as_slice(), &change.to_le_bytes()].concat();
    let mut examples = vec![vec![0], vec![1]];
    for mode in [0, 1] {
        for structure in 0..20 {
            for at in [8, 16, 24, 32, 40, 48, 56, 88, 96] {
                examples.push([vec![mode], record(structure, at, 1 << (u64::from(at) % 60))].concat());
            }
        }
    }
    run_rounds("device", 1500, device, &examples);
}
