//! The log on a simulated disk: crashes at every write, damage, a full device.

use std::collections::BTreeMap;

use common::telemetry::MetricsRegistry;

use super::format::FORMAT_VERSION;
use super::*;
use crate::io::sim::{Fate, SimIo};
use crate::store::{BlockStore, ChunkStore, StoreError};

const SEGMENT: u64 = 128 << 10;
const SLOTS: u64 = 12;

fn empty_image() -> Vec<u8> {
    vec![0; device_bytes(SLOTS, SEGMENT) as usize]
}

/// Bytes that name themselves.
fn content(name: u64, len: usize) -> Bytes {
    let mut reader = blake3::Hasher::new().update(&name.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes.into()
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Put { name: u64, len: usize },
    Delete { name: u64, len: usize },
    Rows { name: u64, len: usize },
}

/// A log whose appender runs only when told to: what is grouped into one frame depends on nothing but the test.
struct Node {
    sim: SimIo,
    log: Log,
    appender: Appender,
    store: BlockStore,
}

impl Node {
    fn open(sim: SimIo) -> Result<Self, OpenLogError> {
        let metrics = StoreMetrics::new(&MetricsRegistry::new());
        let (log, appender) = Log::prepare(Arc::new(sim.clone()), SEGMENT, metrics)?;
        Ok(Self { sim, store: BlockStore::new(log.clone()), log, appender })
    }

    fn new() -> Self {
        Self::open(SimIo::new(empty_image(), None)).unwrap()
    }

    /// Opens what is on the disk now, as after a loss of power.
    fn reopen(self) -> Result<Self, OpenLogError> {
        Self::open(SimIo::new(self.sim.image(), None))
    }

    /// Appends a group; tells of each operation whether it was acknowledged.
    fn apply(&mut self, group: &[Op]) -> Vec<bool> {
        enum Answer {
            Rows(oneshot::Receiver<Result<LogPosition, LogError>>),
            Put(oneshot::Receiver<Result<PutOutcome, LogError>>),
            Delete(oneshot::Receiver<Result<bool, LogError>>),
        }
        let mut answers = Vec::new();
        for op in group {
            let (work, answer) = match *op {
                Op::Rows { name, len } => {
                    let (reply, answer) = oneshot::channel();
                    (Work::Rows { rows: content(name, len), reply }, Answer::Rows(answer))
                }
                Op::Put { name, len } => {
                    let (reply, answer) = oneshot::channel();
                    let bytes = content(name, len);
                    (Work::Chunk { hash: ChunkHash::of(&bytes), bytes, reply }, Answer::Put(answer))
                }
                Op::Delete { name, len } => {
                    let (reply, answer) = oneshot::channel();
                    let hash = ChunkHash::of(&content(name, len));
                    (Work::Tombstone { hash, reply }, Answer::Delete(answer))
                }
            };
            self.log.send(work).unwrap();
            answers.push(answer);
        }
        if !group.is_empty() {
            assert!(self.appender.work());
        }
        answers
            .into_iter()
            .map(|answer| match answer {
                Answer::Rows(mut a) => a.try_recv().unwrap().is_ok(),
                Answer::Put(mut a) => a.try_recv().unwrap().is_ok(),
                Answer::Delete(mut a) => a.try_recv().unwrap().is_ok(),
            })
            .collect()
    }

    fn rows(&self) -> Vec<(LogPosition, Vec<u8>)> {
        self.rows_after(LogPosition(0)).unwrap()
    }

    fn rows_after(&self, after: LogPosition) -> Result<Vec<(LogPosition, Vec<u8>)>, ReplayError> {
        let mut rows = Vec::new();
        self.log.replay_rows(after, &mut |position, bytes| {
            rows.push((position, bytes.to_vec()));
            Ok(())
        })?;
        Ok(rows)
    }

    fn get(&self, name: u64, len: usize) -> Result<Bytes, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.store.get(&ChunkHash::of(&content(name, len))))
    }
}

/// What must, and what may, be found after a crash.
#[derive(Default)]
struct Model {
    rows: Vec<Vec<u8>>,
    chunks: BTreeMap<(u64, usize), bool>,
    /// Appended, not acknowledged: there or not, never in part.
    open_rows: Vec<Vec<u8>>,
    open_chunks: BTreeMap<(u64, usize), ()>,
}

impl Model {
    fn note(&mut self, op: &Op, acknowledged: bool) {
        match (*op, acknowledged) {
            (Op::Rows { name, len }, true) => self.rows.push(content(name, len).to_vec()),
            (Op::Rows { name, len }, false) => self.open_rows.push(content(name, len).to_vec()),
            (Op::Put { name, len }, true) => drop(self.chunks.insert((name, len), true)),
            (Op::Delete { name, len }, true) => drop(self.chunks.insert((name, len), false)),
            (Op::Put { name, len } | Op::Delete { name, len }, false) => {
                self.open_chunks.insert((name, len), ());
            }
        }
    }

    /// Compares with what a node has, and takes over what was open.
    fn settle(&mut self, node: &Node) {
        let found: Vec<Vec<u8>> = node.rows().into_iter().map(|(_, bytes)| bytes).collect();
        assert!(found.len() >= self.rows.len(), "acknowledged rows are gone");
        assert!(found.starts_with(&self.rows), "the order of rows changed");
        assert!(self.open_rows.starts_with(&found[self.rows.len()..]), "rows nobody appended");
        self.rows = found;
        self.open_rows.clear();
        for (name, len) in std::mem::take(&mut self.open_chunks).into_keys() {
            let there = match node.get(name, len) {
                Ok(bytes) => bytes == content(name, len),
                Err(StoreError::NotFound) => false,
                Err(error) => panic!("a chunk that is there in part: {error}"),
            };
            self.chunks.insert((name, len), there);
        }
        for ((name, len), there) in &self.chunks {
            match node.get(*name, *len) {
                Ok(bytes) => assert!(*there && bytes == content(*name, *len), "chunk {name} is back"),
                Err(StoreError::NotFound) => assert!(!there, "acknowledged chunk {name} is gone"),
                Err(error) => panic!("chunk {name}: {error}"),
            }
        }
        let live = self.chunks.values().filter(|there| **there).count() as u64;
        assert_eq!(node.store.stats().chunks, live);
    }
}

/// One life of a node, from an image to the image that its end leaves.
fn live(image: Vec<u8>, groups: &[Vec<Op>], strike: Option<(u64, Fate)>, model: &mut Model) -> Vec<u8> {
    let sim = SimIo::new(image, strike);
    if let Ok(mut node) = Node::open(sim.clone()) {
        model.settle(&node);
        for group in groups {
            for (op, acknowledged) in group.iter().zip(node.apply(group)) {
                model.note(op, acknowledged);
            }
        }
    } else {
        assert!(strike.is_some(), "a node that lost power must open again");
    }
    sim.image()
}

/// What a node does, in groups, and how it ends.
type Life = (Vec<Vec<Op>>, Option<(u64, Fate)>);

fn assert_survives(lives: &[Life]) {
    let mut model = Model::default();
    let mut image = empty_image();
    for (groups, strike) in lives {
        image = live(image, groups, *strike, &mut model);
    }
    live(image, &[], None, &mut model);
}

fn typical_groups() -> Vec<Vec<Op>> {
    let put = |name, len| Op::Put { name, len };
    let rows = |name, len| Op::Rows { name, len };
    vec![
        vec![rows(1, 40)],
        vec![put(2, 5000), rows(3, 100), put(4, 0), put(2, 5000), rows(5, 9000)],
        vec![put(6, 60_000), put(7, 60_000), rows(8, 10)],
        vec![
            Op::Delete { name: 2, len: 5000 },
            put(2, 5000),
            Op::Delete { name: 7, len: 60_000 },
            rows(9, 1),
        ],
        vec![Op::Delete { name: 2, len: 5000 }, Op::Delete { name: 2, len: 5000 }, rows(10, 70_000)],
        vec![put(11, 1), put(12, 4096), put(13, 4097)],
    ]
}

#[test]
fn everything_acknowledged_survives_a_crash_at_any_write() {
    let groups = typical_groups();
    let node = SimIo::new(empty_image(), None);
    {
        let mut node = Node::open(node.clone()).unwrap();
        for group in &groups {
            assert!(node.apply(group).iter().all(|ok| *ok));
        }
    }
    let writes = node.writes();
    assert!(writes > 8, "{writes}");
    for at in 0..writes {
        for fate in
            [Fate::Lost, Fate::Unanswered, Fate::Torn(1), Fate::Torn(at + 77), Fate::Torn(at * 31 + 5)]
        {
            // Then life goes on in the same place, and ends in a second crash.
            for second in [0, 1, 2] {
                let again = vec![(groups.clone(), Some((at, fate))), (groups.clone(), Some((second, fate)))];
                assert_survives(&again);
            }
        }
    }
}

mod random {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::{Just, Strategy, any, prop_oneof};

    use super::*;

    fn op() -> impl Strategy<Value = Op> {
        let len = prop_oneof![0..200usize, Just(4096usize), 1..40_000usize];
        // Few names, so that chunks are deleted and come again.
        prop_oneof![
            3 => (0..12u64).prop_map(|name| Op::Put { name, len: (name * 3571) as usize }),
            1 => (0..12u64).prop_map(|name| Op::Delete { name, len: (name * 3571) as usize }),
            2 => (any::<u64>(), len).prop_map(|(name, len)| Op::Rows { name, len }),
        ]
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            Just(Fate::Lost),
            Just(Fate::Unanswered),
            any::<u64>().prop_map(Fate::Torn),
            Just(Fate::NoSpace)
        ]
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { cases: 300, ..Default::default() })]
        #[test]
        fn a_node_that_dies_again_and_again_keeps_what_it_acknowledged(
            lives in vec((vec(vec(op(), 1..12), 0..8), option::of((0..14u64, fate()))), 1..5)
        ) {
            assert_survives(&lives);
        }
    }
}

#[test]
fn equal_chunks_in_one_commit_are_stored_once() {
    let mut node = Node::new();
    let before = node.log.used_bytes();
    node.apply(&[Op::Put { name: 1, len: 8192 }; 5]);
    // The segment's header, the frame's, the chunk.
    assert_eq!(node.log.used_bytes() - before, 4096 + 4096 + 8192);
    assert_eq!(node.store.stats().chunks, 1);
}

#[test]
fn a_deleted_chunk_no_longer_counts_as_used() {
    let mut node = Node::new();
    node.apply(&[Op::Put { name: 1, len: 40_000 }]);
    let used = node.log.used_bytes();
    node.apply(&[Op::Delete { name: 1, len: 40_000 }]);
    assert_eq!(node.log.used_bytes(), used - 40_960 + 4096);
    let after = node.log.used_bytes();
    assert_eq!(node.reopen().unwrap().log.used_bytes(), after, "and so after a restart");
}

#[test]
fn a_replay_goes_on_after_any_position() {
    let mut node = Node::new();
    for group in typical_groups() {
        node.apply(&group);
    }
    let all = node.rows();
    assert_eq!(all.len(), 6);
    assert!(all.is_sorted());
    for (i, (position, _)) in all.iter().enumerate() {
        assert_eq!(node.rows_after(*position).unwrap(), all[i + 1..]);
    }
    let beyond = LogPosition(all[5].0.0 + (1 << 30));
    assert!(matches!(node.rows_after(beyond), Err(ReplayError::BeyondEnd { .. })));
    let mut visited = 0;
    let stopped = node.log.replay_rows(LogPosition(0), &mut |_, _| {
        visited += 1;
        if visited == 3 { Err("enough".into()) } else { Ok(()) }
    });
    assert!(matches!(stopped, Err(ReplayError::Visit(_))) && visited == 3);
}

#[test]
fn a_full_device_refuses_chunks_and_still_takes_deletions_and_rows() {
    let mut node = Node::new();
    let mut stored = 0;
    while node.apply(&[Op::Put { name: stored, len: 50_000 }]) == [true] {
        stored += 1;
    }
    // Two chunks in each of the segments that are not reserved.
    assert_eq!(stored, 2 * (SLOTS - RESERVED_SEGMENTS as u64));
    assert!(
        node.apply(&[Op::Delete { name: 0, len: 50_000 }, Op::Rows { name: 0, len: 100 }]) == [true, true]
    );
    // What still fits beside the others is taken.
    assert_eq!(node.apply(&[Op::Put { name: 900, len: 50 }]), [true]);
    let mut rows = 1;
    while node.apply(&[Op::Rows { name: rows, len: 30_000 }]) == [true] {
        rows += 1;
    }
    assert_eq!(rows, 1 + 2 * 3, "three in each reserved segment");
    let node = node.reopen().unwrap();
    assert_eq!(node.rows().len() as u64, rows);
    assert_eq!(node.store.stats().chunks, stored);
    assert!(node.get(stored - 1, 50_000).is_ok() && node.get(900, 50).is_ok());
}

#[test]
fn a_file_system_without_room_is_a_full_store_and_not_a_broken_one() {
    let sim = SimIo::new(empty_image(), Some((4, Fate::NoSpace)));
    let mut node = Node::open(sim).unwrap();
    assert_eq!(node.apply(&[Op::Put { name: 1, len: 50_000 }]), [true]);
    assert_eq!(node.apply(&[Op::Put { name: 2, len: 100_000 }]), [false]);
    assert_eq!(
        node.apply(&[Op::Put { name: 3, len: 50 }, Op::Delete { name: 1, len: 50_000 }]),
        [true, true]
    );
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_and_chunks_can_be_read() {
    let sim = SimIo::new(empty_image(), Some((4, Fate::Lost)));
    let mut node = Node::open(sim).unwrap();
    assert_eq!(node.apply(&[Op::Put { name: 1, len: 500 }]), [true]);
    assert_eq!(node.apply(&[Op::Rows { name: 2, len: 5 }]), [false]);
    assert_eq!(node.apply(&[Op::Rows { name: 3, len: 5 }]), [false]);
    assert!(node.rows_after(LogPosition(0)).is_err(), "this disk is dead for reads too");
    let node = node.reopen().unwrap();
    assert!(node.rows().is_empty());
    assert_eq!(node.get(1, 500).unwrap(), content(1, 500));
}

#[test]
fn an_entry_that_no_segment_holds_is_refused() {
    let mut node = Node::new();
    assert_eq!(
        node.apply(&[Op::Rows { name: 1, len: SEGMENT as usize }, Op::Rows { name: 2, len: 9 }]),
        [false, true]
    );
}

#[test]
fn a_flipped_bit_in_a_chunk_costs_that_chunk_only() {
    let mut node = Node::new();
    let put = |name| Op::Put { name, len: 9000 };
    node.apply(&[put(1), put(2), Op::Rows { name: 3, len: 30 }]);
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
    for last_name in [1, 6, 7, 8, 20] {
        let mut node = Node::new();
        for name in 0..=last_name {
            node.apply(&[Op::Rows { name, len: 100 }, Op::Put { name, len: 30_000 }]);
        }
        let at = SEGMENTS_START + 4096;
        node.sim.tamper(|disk| disk[at as usize + 130] ^= 4);
        let error = node.reopen().map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenLogError::Damaged { at: a, .. } if a == at), "{error}");
    }
}

#[test]
fn a_lost_segment_is_noticed() {
    let mut node = Node::new();
    for name in 0..10 {
        node.apply(&[Op::Put { name, len: 60_000 }]);
    }
    node.sim.tamper(|disk| disk[(SEGMENTS_START + SEGMENT) as usize..][..4096].fill(0));
    assert!(matches!(node.reopen().map(|_| ()), Err(OpenLogError::Damaged { .. })));
}

#[test]
fn a_torn_last_frame_is_the_end_of_the_log() {
    for damage in 0..3 {
        let mut node = Node::new();
        node.apply(&[Op::Rows { name: 1, len: 10 }, Op::Put { name: 1, len: 10 }]);
        node.apply(&[Op::Rows { name: 2, len: 10 }, Op::Put { name: 2, len: 9000 }]);
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
        assert_eq!(node.apply(&[Op::Rows { name: 3, len: 10 }]), [true]);
        assert_eq!(node.reopen().unwrap().rows().len(), 2);
    }
}

#[test]
fn a_frame_that_was_dropped_as_torn_never_comes_back() {
    let mut node = Node::new();
    node.apply(&[Op::Rows { name: 1, len: 10 }, Op::Put { name: 2, len: 9000 }]);
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
        node.apply(&[Op::Rows { name: 1, len: 10 }]);
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
    let mut image = empty_image();
    image[1000..1004].copy_from_slice(b"ext4");
    assert!(matches!(open(image), OpenLogError::NotALog));
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
fn a_device_made_anew_shows_nothing_of_its_earlier_life() {
    let mut node = Node::new();
    for group in typical_groups() {
        node.apply(&group);
    }
    node.sim.tamper(|disk| disk[..8192].fill(0));
    let mut node = node.reopen().unwrap();
    assert!(node.rows().is_empty() && node.store.stats().chunks == 0);
    node.apply(&[Op::Rows { name: 1, len: 7 }]);
    assert_eq!(node.reopen().unwrap().rows().len(), 1);
}

fn find(image: &[u8], bytes: &[u8]) -> usize {
    let mut blocks = (0..image.len()).step_by(4096);
    blocks.find(|at| image[*at..].starts_with(&bytes[..bytes.len().min(64)])).unwrap()
}

#[tokio::test]
async fn a_closed_log_has_committed_what_was_queued_and_takes_no_more() {
    let sim = SimIo::new(empty_image(), None);
    let device: Arc<dyn BlockIo> = Arc::new(sim.clone());
    let metrics = StoreMetrics::new(&MetricsRegistry::new());
    let log =
        tokio::task::spawn_blocking(move || Log::open(device, SEGMENT, metrics)).await.unwrap().unwrap();
    let appends = (0..100u64).map(|name| log.append_rows(content(name, 20)));
    let (positions, ()) =
        futures_util::future::join(futures_util::future::join_all(appends), log.close()).await;
    assert!(positions.iter().all(Result::is_ok));
    assert!(matches!(log.append_rows(Bytes::new()).await, Err(LogError::Stopped)));
    let rows = tokio::task::spawn_blocking(move || Node::open(SimIo::new(sim.image(), None)).unwrap().rows());
    let replayed: Vec<LogPosition> = rows.await.unwrap().into_iter().map(|(position, _)| position).collect();
    let acknowledged: Vec<LogPosition> = positions.into_iter().map(Result::unwrap).collect();
    assert_eq!(replayed, acknowledged);
}
