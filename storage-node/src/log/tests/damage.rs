//! What is on the disk changes behind the log's back, or was never a log of this format.

use super::*;
use crate::log::format::FORMAT_VERSION;

#[test]
fn a_flipped_bit_in_a_chunk_costs_that_chunk_only() {
    let mut node = Node::new();
    let put = |name| Op::put(name, 9000);
    node.apply(&[put(1), put(2), Op::rows(3, 30)]);
    node.apply(&[put(4)]);
    let at = find(&node.sim.image(), &content(2, 9000));
    node.sim.tamper(|disk| disk[at + 8999] ^= 1);
    assert!(matches!(node.get(2, 9000), Err(StoreError::Damaged { .. })));
    let node = node.reopen().unwrap();
    assert!(matches!(node.get(2, 9000), Err(StoreError::Damaged { .. })));
    assert!(node.get(1, 9000).is_ok() && node.get(4, 9000).is_ok());
    assert_eq!(node.rows().len(), 1);
}

#[test]
fn a_damaged_header_before_the_end_is_an_error_that_names_the_place() {
    for last_name in [1, 2, 3] {
        let mut node = Node::new();
        for name in 0..=last_name {
            node.apply(&[Op::rows(name, 100), Op::put(name, 20_000)]);
        }
        assert_eq!(node.shared().segments.all().len(), 1);
        let at = SEGMENTS_START + 4096;
        node.sim.tamper(|disk| disk[at as usize + 130] ^= 4);
        let error = node.reopen().map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenLogError::Damaged { at: a, .. } if a == at), "{error}");
    }
}

#[test]
fn a_damaged_header_in_a_sealed_segment_costs_its_rows_only() {
    let mut node = Node::new();
    for name in 0..8 {
        node.apply(&[Op::rows(name, 100), Op::put(name, 30_000)]);
    }
    let at = SEGMENTS_START + 4096;
    node.sim.tamper(|disk| disk[at as usize + 130] ^= 4);
    let node = node.reopen().unwrap();
    for name in 0..8 {
        assert!(node.get(name, 30_000).is_ok(), "the footer knows the chunks");
    }
    let replay = node.rows_after(LogPosition(0)).unwrap_err();
    assert!(matches!(replay, ReplayError::Damaged { at: a } if a == at), "{replay}");
}

#[test]
fn a_damaged_footer_is_done_without() {
    let mut node = Node::new();
    for name in 0..8 {
        node.apply(&[Op::rows(name, 100), Op::put(name, 30_000)]);
    }
    node.apply(&[Op::delete(1, 30_000)]);
    for at in [SEGMENT - 4096 + 20, SEGMENT - 8192 + 20] {
        node.sim.tamper(|disk| disk[(SEGMENTS_START + at) as usize] ^= 1);
        let figures = (node.store.stats(), node.rows());
        node = node.reopen().unwrap();
        assert_eq!((node.store.stats(), node.rows()), figures);
    }
}

#[test]
fn a_lost_slot_header_is_made_again() {
    let damages: [fn(&mut [u8]); 2] = [|block| block.fill(0), |block| block[40] ^= 1];
    for damage in damages {
        for slot in 0..4 {
            let mut node = Node::new();
            for name in 0..8 {
                node.apply(&[Op::put(name, 50_000), Op::rows(name, 5)]);
            }
            let at = (SEGMENTS_START + slot * SEGMENT) as usize;
            node.sim.tamper(|disk| damage(&mut disk[at..at + 4096]));
            let node = node.reopen().unwrap();
            assert_eq!((node.rows().len(), node.store.stats().chunks), (8, 8), "slot {slot}");
            let node = node.reopen().unwrap();
            assert_eq!((node.rows().len(), node.store.stats().chunks), (8, 8), "slot {slot}");
        }
    }
}

#[test]
fn a_slot_that_cannot_be_read_at_all_is_an_error_that_names_the_place() {
    let mut node = Node::new();
    for name in 0..8 {
        node.apply(&[Op::put(name, 50_000)]);
    }
    let at = SEGMENTS_START + SEGMENT;
    node.sim.tamper(|disk| disk[at as usize..][..8192].fill(0x55));
    let error = node.reopen().map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenLogError::Damaged { at: a, .. } if a == at), "{error}");
}

#[test]
fn a_torn_last_frame_is_the_end_of_the_log() {
    for damage in 0..3 {
        let mut node = Node::new();
        node.apply(&[Op::rows(1, 10), Op::put(1, 10)]);
        node.apply(&[Op::rows(2, 10), Op::put(2, 9000)]);
        let at = find(&node.sim.image(), &content(2, 9000));
        node.sim.tamper(|disk| match damage {
            0 => disk[at + 5000] ^= 1,
            1 => disk[at + 4096..at + 8192].fill(0),
            _ => disk[at - 4000] ^= 1,
        });
        let mut node = node.reopen().unwrap();
        assert_eq!(node.rows().len(), 1);
        assert!(node.get(1, 10).is_ok());
        assert!(matches!(node.get(2, 9000), Err(StoreError::NotFound)));
        assert_eq!(node.apply(&[Op::rows(3, 10)]), [true]);
        assert_eq!(node.reopen().unwrap().rows().len(), 2);
    }
}

#[test]
fn a_frame_that_was_dropped_as_torn_never_comes_back() {
    let mut node = Node::new();
    node.apply(&[Op::rows(1, 10), Op::put(2, 9000)]);
    let at = find(&node.sim.image(), &content(2, 9000));
    node.sim.tamper(|disk| disk[at] ^= 1);
    let node = node.reopen().unwrap();
    assert!(node.rows().is_empty());
    // As when the same chunk is put again, and only its payload arrives before the next crash.
    node.sim.tamper(|disk| disk[at] ^= 1);
    let node = node.reopen().unwrap();
    assert!(node.rows().is_empty() && node.store.stats().chunks == 0);
}

#[test]
fn either_copy_of_the_superblock_is_enough_and_is_written_again() {
    for copy in [0, 4096] {
        let mut node = Node::new();
        node.apply(&[Op::rows(1, 10)]);
        let id = node.log.id();
        node.sim.tamper(|disk| disk[copy] ^= 1);
        let node = node.reopen().unwrap();
        assert_eq!((node.log.id(), node.rows().len()), (id, 1));
        node.sim.tamper(|disk| disk[4096 - copy] ^= 1);
        assert!(node.reopen().is_ok());
    }
}

#[test]
fn what_is_not_a_log_of_this_format_is_refused() {
    let open = |image: Vec<u8>| Node::open(SimIo::new(image, None)).map(|_| ()).unwrap_err();
    // An ext file system, one of btrfs, a backup partition table.
    let len = empty_image().len();
    for at in [1080, 64 << 10, len - 512] {
        let mut image = empty_image();
        image[at..at + 4].copy_from_slice(b"ext4");
        assert!(matches!(open(image), OpenLogError::NotALog), "{at}");
    }
    assert!(matches!(open(vec![0; 1 << 20]), OpenLogError::TooSmall { .. }));
    let image = Node::new().sim.image();
    assert!(matches!(open(image[..image.len() - 4096].to_vec()), OpenLogError::TooSmall { .. }));
    let mut image = image;
    image[8..12].copy_from_slice(&(FORMAT_VERSION + 1).to_le_bytes());
    let check = blake3::hash(&image[..96]);
    image[96..128].copy_from_slice(check.as_bytes());
    assert!(matches!(open(image), OpenLogError::NewerFormat { found: 2 }));
}

#[test]
fn a_device_is_taken_by_force_and_shows_nothing_of_its_earlier_life() {
    let mut node = Node::new();
    for group in typical_groups() {
        node.apply(&group);
    }
    node.sim.tamper(|disk| disk[..8192].fill(7));
    let metrics = || StoreMetrics::new(&MetricsRegistry::new());
    let sim = SimIo::new(node.sim.image(), None);
    let refused = Log::prepare(Arc::new(sim.clone()), OPTIONS, metrics()).map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenLogError::NotALog));
    let force = OpenOptions { force: true, ..OPTIONS };
    drop(Log::prepare(Arc::new(sim.clone()), force, metrics()).unwrap());
    let mut node = Node::open(sim).unwrap();
    assert!(node.rows().is_empty() && node.store.stats().chunks == 0);
    node.apply(&[Op::rows(1, 7)]);
    assert_eq!(node.reopen().unwrap().rows().len(), 1);
}

#[test]
fn force_does_not_lose_a_log_that_is_good() {
    let mut node = Node::new();
    node.apply(&[Op::rows(1, 7)]);
    let force = OpenOptions { force: true, ..OPTIONS };
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    let sim = SimIo::new(node.sim.image(), None);
    drop(Log::prepare(Arc::new(sim.clone()), force, metrics).unwrap());
    assert_eq!(Node::open(sim).unwrap().rows().len(), 1);
}
