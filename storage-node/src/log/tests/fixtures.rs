//! Images of devices as earlier versions left them, whole and damaged: what each must be read as, for good.
//!
//! An image is a text: its length, then each stretch that is not zeros by its offset, in hexadecimal digits, with
//! `BYTE*COUNT` for a byte that is repeated. A change of the format adds images and leaves these as they are. To add
//! one, write its test, then `DOZO_REWRITE_FIXTURES=1 cargo test -p storage-node fixtures` and commit only the new
//! file.

use std::fmt::Write;
use std::path::Path;

use super::*;
use crate::log::format::{SEGMENTS_START, SlotHeader, Superblock};

pub const KEY: [u8; 32] = *b"the key of the fixture's device.";
/// Repetitions of a byte from which on they are counted.
const RUN_MIN: usize = 16;

/// The committed image, written anew first if the environment says so.
fn fixture(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/log/tests/fixtures").join(name);
    if std::env::var_os("DOZO_REWRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, to_text(&make())).unwrap();
    }
    from_text(&std::fs::read_to_string(path).unwrap())
}

fn to_text(image: &[u8]) -> String {
    let mut text = format!("{}", image.len());
    let (mut at, mut is_in_digits, mut after_gap) = (0, false, true);
    for run in image.chunk_by(|a, b| a == b) {
        let is_counted = run.len() >= RUN_MIN;
        if is_counted && run[0] == 0 {
            after_gap = true;
        } else {
            if after_gap {
                write!(text, "\n{at}").unwrap();
            }
            if after_gap || is_counted || !is_in_digits {
                text.push(' ');
            }
            match is_counted {
                true => write!(text, "{:02x}*{}", run[0], run.len()).unwrap(),
                false => run.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap()),
            }
            (is_in_digits, after_gap) = (!is_counted, false);
        }
        at += run.len();
    }
    text + "\n"
}

fn from_text(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let mut image = vec![0; lines.next().unwrap().parse().unwrap()];
    let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap();
    for line in lines {
        let mut words = line.split(' ');
        let mut at: usize = words.next().unwrap().parse().unwrap();
        for word in words {
            let bytes = match word.split_once('*') {
                Some((digits, count)) => vec![byte(digits); count.parse().unwrap()],
                None => (0..word.len()).step_by(2).map(|i| byte(&word[i..i + 2])).collect(),
            };
            image[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
    }
    image
}

/// A chunk of one letter, so that its image is short.
pub fn letters(letter: char, len: usize) -> Bytes {
    vec![letter as u8; len].into()
}

impl Node {
    fn put_letters(&mut self, letter: char, len: usize) {
        let bytes = letters(letter, len);
        let hash = ChunkHash::of(&bytes);
        let mut answer = self.log.ask(|reply| Work::Chunk { hash, bytes, reply }).unwrap();
        self.appender.catch_up();
        assert_eq!(answer.try_recv().unwrap().unwrap(), PutOutcome::Stored);
    }

    fn delete_letters(&mut self, letter: char, len: usize) {
        let hash = ChunkHash::of(&letters(letter, len));
        let mut answer = self.log.ask(|reply| Work::Tombstone { hash, reply }).unwrap();
        self.appender.catch_up();
        assert!(answer.try_recv().unwrap().unwrap());
    }

    fn append_text(&mut self, text: &'static str) {
        let rows = Bytes::from_static(text.as_bytes());
        let mut answer = self.log.ask(|reply| Work::Rows { rows, is_write_out: false, reply }).unwrap();
        self.appender.catch_up();
        self.last_rows = answer.try_recv().unwrap().unwrap();
    }

    pub fn get_letters(&self, letter: char, len: usize) -> Result<Bytes, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.store.get(&ChunkHash::of(&letters(letter, len))))
    }

    /// Where the segment with that sequence begins on the device.
    fn start_of(&self, sequence: u64) -> usize {
        let segments = self.shared().segments.all();
        let segment = segments.iter().find(|segment| segment.sequence == sequence).unwrap();
        (SEGMENTS_START + u64::from(segment.slot) * SEGMENT) as usize
    }
}

/// A node of version 1 with a bit of everything: a freed slot, two sealed segments with footers, one that is written
/// to; chunks that were moved and deleted, rows behind a floor and before it.
pub fn lived() -> Node {
    let mut image = empty_image();
    let superblock = Superblock {
        log_id: *b"dozo fixture one",
        key: KEY,
        segment_bytes: SEGMENT,
        slots: SLOTS,
        device_bytes: device_bytes(SLOTS, SEGMENT),
    };
    superblock.encode(&mut image[..BLOCK]);
    superblock.encode(&mut image[BLOCK..2 * BLOCK]);
    let mut node = Node::open(SimIo::new(image, None)).unwrap();
    node.append_text("one");
    node.put_letters('a', 40_000);
    node.put_letters('b', 30_000);
    node.put_letters('c', 20_000);
    node.append_text("two");
    node.put_letters('d', 60_000);
    node.delete_letters('b', 30_000);
    node.append_text("three");
    assert_eq!(node.apply(&[Op::Floor]), [true]);
    assert_eq!(node.apply(&[Op::Compact]), [true]);
    node.append_text("four");
    node.put_letters('e', 50_000);
    node.put_letters('f', 0);
    node.delete_letters('d', 60_000);
    node.append_text("five");
    node.put_letters('g', 100);
    node
}

/// What is in it, and that life goes on.
fn assert_is_read_exactly(image: Vec<u8>) {
    let node = Node::open(SimIo::new(image, None)).unwrap();
    assert_contents(&node);
    // Whatever opening repaired must stand.
    let mut node = node.reopen().unwrap();
    assert_contents(&node);
    node.delete_letters('a', 40_000);
    node.append_text("six");
    node.put_letters('h', 9000);
    assert_eq!(node.apply(&[Op::Floor]), [true]);
    node.append_text("seven");
    while node.oldest().is_some() && node.shared().segments.all().len() > 2 {
        assert!(node.compact_oldest());
    }
    let node = node.reopen().unwrap();
    let texts: Vec<Vec<u8>> = node.rows().into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, [b"seven"]);
    assert!(matches!(node.get_letters('a', 40_000), Err(StoreError::NotFound)));
    assert!(matches!(node.get_letters('d', 60_000), Err(StoreError::NotFound)));
    for (letter, len) in [('c', 20_000), ('e', 50_000), ('f', 0), ('g', 100), ('h', 9000)] {
        assert_eq!(node.get_letters(letter, len).unwrap(), letters(letter, len));
    }
}

fn assert_contents(node: &Node) {
    assert_eq!(node.log.id(), "646f7a6f2066697874757265206f6e65");
    for (letter, len) in [('a', 40_000), ('c', 20_000), ('e', 50_000), ('f', 0), ('g', 100)] {
        assert_eq!(node.get_letters(letter, len).unwrap(), letters(letter, len));
    }
    for (letter, len) in [('b', 30_000), ('d', 60_000)] {
        assert!(matches!(node.get_letters(letter, len), Err(StoreError::NotFound)), "{letter}");
    }
    assert_eq!(node.store.stats().chunks, 5);
    // Positions are remembered outside of the log.
    let rows = [(LogPosition(462_848), b"four".to_vec()), (LogPosition(593_920), b"five".to_vec())];
    assert_eq!(node.rows(), rows);
    assert_eq!(node.log.floor(), LogPosition(335_872));
    let sequences: Vec<u64> = node.shared().segments.all().iter().map(|segment| segment.sequence).collect();
    assert_eq!(sequences, [2, 3, 4]);
}

/// The image of [`lived`] after `damage`.
fn damaged(damage: impl FnOnce(&Node, &mut [u8])) -> Vec<u8> {
    let node = lived();
    let mut image = node.sim.image();
    damage(&node, &mut image);
    image
}

fn error_of(image: Vec<u8>) -> OpenLogError {
    Node::open(SimIo::new(image, None)).map(|_| ()).unwrap_err()
}

#[test]
fn an_image_is_its_text() {
    let mut image = vec![0; 3 << 12];
    assert_eq!(from_text(&to_text(&image)), image);
    image[5..40].fill(7);
    image[4095..4100].copy_from_slice(b"bytes");
    image[8000] = 1;
    image[(3 << 12) - 1] = 9;
    let text = "12288\n0 0000000000 07*35\n4095 6279746573\n8000 01\n12287 09\n";
    assert_eq!(to_text(&image), text);
    assert_eq!(from_text(text), image);
}

#[test]
fn a_log_of_version_1_is_read_exactly() {
    let image = fixture("v1", || lived().sim.image());
    let freed = SlotHeader::decode(&image[SEGMENTS_START as usize..][..BLOCK], SEGMENTS_START, &KEY);
    assert_eq!(freed, SlotHeader::Freed { sequence: 1 });
    assert_is_read_exactly(image);
}

#[test]
fn a_torn_tail_is_dropped() {
    assert_is_read_exactly(fixture("v1-torn-tail", || {
        let mut node = lived();
        let end = node.start_of(4) + node.shared().segments.all().last().unwrap().end as usize;
        node.put_letters('z', 9000);
        node.sim.tamper(|disk| disk[end + 2 * BLOCK..][..512].fill(0));
        node.sim.image()
    }));
}

#[test]
fn a_lost_slot_header_is_made_good() {
    assert_is_read_exactly(fixture("v1-lost-slot-header", || {
        damaged(|node, image| image[node.start_of(3)..][..BLOCK].fill(0))
    }));
}

#[test]
fn a_rotten_footer_is_done_without() {
    assert_is_read_exactly(fixture("v1-rotten-footer", || {
        damaged(|node, image| image[node.start_of(2) + SEGMENT as usize - BLOCK + 40] ^= 1)
    }));
}

#[test]
fn a_rotten_superblock_is_made_good_from_its_copy() {
    assert_is_read_exactly(fixture("v1-rotten-superblock", || damaged(|_, image| image[..512].fill(0xff))));
}

#[test]
fn a_rotten_frame_header_in_the_middle_is_named() {
    let image = fixture("v1-rotten-frame-header", || {
        damaged(|node, image| image[node.start_of(4) + BLOCK + 90] ^= 1)
    });
    let error = error_of(image);
    assert!(matches!(error, OpenLogError::Damaged { at: 1_445_888, .. }), "{error}");
}

#[test]
fn the_device_of_somebody_else_is_left_alone() {
    // The mark of an ext4 file system.
    let image = fixture("foreign", || {
        let mut image = empty_image();
        image[1080..1082].copy_from_slice(&[0x53, 0xef]);
        image
    });
    assert!(matches!(error_of(image), OpenLogError::NotALog));
}

#[test]
fn a_log_of_a_later_version_is_left_alone() {
    let image = fixture("newer-format", || {
        damaged(|_, image| {
            for copy in [0, BLOCK] {
                image[copy + 8..copy + 12].copy_from_slice(&1000u32.to_le_bytes());
                let check = blake3::hash(&image[copy..copy + 96]);
                image[copy + 96..copy + 128].copy_from_slice(check.as_bytes());
            }
        })
    });
    assert!(matches!(error_of(image), OpenLogError::NewerFormat { found: 1000 }));
}
