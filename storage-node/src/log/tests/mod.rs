//! The log on a simulated disk: a node whose threads run only when told to, and a model of what must be found.

mod compaction;
mod crash;
mod damage;
mod fixtures;
mod fuzz;
mod space;

use std::collections::BTreeMap;

use common::telemetry::MetricsRegistry;

use super::compaction::Compaction;
use super::segments::Segment;
use super::*;
use crate::io::sim::{Fate, SimIo};
use crate::store::{BlockStore, ChunkStore, StoreError};

const SEGMENT: u64 = 128 << 10;
const SLOTS: u64 = 12;
const OPTIONS: OpenOptions = OpenOptions { segment_bytes: SEGMENT, force: false, prefill: false };

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

fn hash_of(name: u64, len: usize) -> ChunkHash {
    ChunkHash::of(&content(name, len))
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Put {
        name: u64,
        len: usize,
    },
    Delete {
        name: u64,
        len: usize,
    },
    Rows {
        name: u64,
        len: usize,
    },
    /// Rows up to the last that was acknowledged are not needed any more.
    Floor,
    /// Frees the oldest segment that can be freed, whatever it costs.
    Compact,
}

impl Op {
    fn rows(name: u64, len: usize) -> Self {
        Self::Rows { name, len }
    }

    fn put(name: u64, len: usize) -> Self {
        Self::Put { name, len }
    }

    fn delete(name: u64, len: usize) -> Self {
        Self::Delete { name, len }
    }
}

/// A log whose appender and compactor run only when told to: what is grouped into one frame depends on nothing
/// but the test.
struct Node {
    sim: SimIo,
    log: Log,
    appender: Appender,
    store: BlockStore,
    last_rows: LogPosition,
}

impl Node {
    fn open(sim: SimIo) -> Result<Self, OpenLogError> {
        let metrics = StoreMetrics::new(&MetricsRegistry::new());
        let (log, appender) = Log::prepare(Arc::new(sim.clone()), OPTIONS, metrics)?;
        let last_rows = log.floor();
        let mut node = Self { sim, store: BlockStore::new(log.clone()), log, appender, last_rows };
        if let Ok(rows) = node.rows_after(LogPosition(0)) {
            node.last_rows = rows.last().map_or(last_rows, |(position, _)| *position);
        }
        Ok(node)
    }

    fn new() -> Self {
        Self::open(SimIo::new(empty_image(), None)).unwrap()
    }

    /// Opens what is on the disk now, as after a loss of power.
    fn reopen(self) -> Result<Self, OpenLogError> {
        Self::open(SimIo::new(self.sim.image(), None))
    }

    fn shared(&self) -> &Shared {
        self.log.shared()
    }

    /// Appends a group; tells of each operation whether it was acknowledged.
    fn apply(&mut self, group: &[Op]) -> Vec<bool> {
        let mut answers: Vec<Answer> = group.iter().map(|op| self.send(*op)).collect();
        self.appender.catch_up();
        answers.iter_mut().map(|answer| answer.is_ok(&mut self.last_rows)).collect()
    }

    fn send(&mut self, op: Op) -> Answer {
        let log = &self.log;
        match op {
            Op::Rows { name, len } => Answer::Rows(
                log.ask(|reply| Work::Rows { rows: content(name, len), is_write_out: false, reply }).unwrap(),
            ),
            Op::Put { name, len } => {
                let (hash, bytes) = (hash_of(name, len), content(name, len));
                Answer::Put(log.ask(|reply| Work::Chunk { hash, bytes, reply }).unwrap())
            }
            Op::Delete { name, len } => {
                let hash = hash_of(name, len);
                Answer::Delete(log.ask(|reply| Work::Tombstone { hash, reply }).unwrap())
            }
            Op::Floor => {
                let position = self.last_rows;
                Answer::Floor(log.ask(|reply| Work::Floor { position, reply }).unwrap())
            }
            Op::Compact => Answer::Known(self.compact_oldest()),
        }
    }

    /// The oldest sealed segment whose rows are not needed.
    fn oldest(&self) -> Option<Segment> {
        let segments = self.shared().segments.all();
        let (_, sealed) = segments.split_last()?;
        sealed.iter().find(|segment| !self.shared().segments.needs_rows_of(segment)).copied()
    }

    fn compact_oldest(&mut self) -> bool {
        let Some(segment) = self.oldest() else { return true };
        self.compact(segment, usize::MAX)
    }

    /// Takes so many steps of a compaction; all of them free the segment. Tells whether nothing failed.
    fn compact(&mut self, segment: Segment, steps_max: usize) -> bool {
        let log = self.log.clone();
        let Ok(mut compaction) = Compaction::begin(log.shared(), segment) else { return false };
        for _ in 0..steps_max {
            let Ok(step) = compaction.step() else { return false };
            if step.work.is_empty() {
                return compaction.finish().is_ok();
            }
            for work in step.work {
                self.log.0.messages.send(Message::Work(work)).unwrap();
            }
            self.appender.catch_up();
            if step.answers.into_iter().any(|mut answer| !matches!(answer.try_recv(), Ok(Ok(())))) {
                return false;
            }
        }
        true
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
        runtime.block_on(self.store.get(&hash_of(name, len)))
    }
}

/// An answer to come.
enum Answer {
    Rows(oneshot::Receiver<Result<LogPosition, LogError>>),
    Put(oneshot::Receiver<Result<PutOutcome, LogError>>),
    Delete(oneshot::Receiver<Result<bool, LogError>>),
    Floor(oneshot::Receiver<Result<(), LogError>>),
    Known(bool),
}

impl Answer {
    /// Whether it is there and good; notes the position of rows.
    fn is_ok(&mut self, last_rows: &mut LogPosition) -> bool {
        match self {
            Self::Rows(answer) => match answer.try_recv() {
                Ok(Ok(position)) => {
                    *last_rows = position;
                    true
                }
                _ => false,
            },
            Self::Put(answer) => matches!(answer.try_recv(), Ok(Ok(_))),
            Self::Delete(answer) => matches!(answer.try_recv(), Ok(Ok(_))),
            Self::Floor(answer) => matches!(answer.try_recv(), Ok(Ok(()))),
            Self::Known(ok) => *ok,
        }
    }
}

/// What must, and what may, be found after a crash.
#[derive(Default, Clone)]
struct Model {
    rows: Vec<Vec<u8>>,
    /// Rows before this one are not needed.
    floor: usize,
    chunks: BTreeMap<(u64, usize), bool>,
    /// Appended, not acknowledged: there or not, never in part.
    open_rows: Vec<Vec<u8>>,
    open_floors: Vec<usize>,
    open_chunks: BTreeMap<(u64, usize), ()>,
}

impl Model {
    /// Notes a group and what was acknowledged of it.
    fn note(&mut self, group: &[Op], acknowledged: &[bool]) {
        // A floor speaks of the rows before its group.
        let rows_before = self.rows.len();
        for (op, acknowledged) in group.iter().zip(acknowledged) {
            match (*op, acknowledged) {
                (Op::Rows { name, len }, true) => self.rows.push(content(name, len).to_vec()),
                (Op::Rows { name, len }, false) => self.open_rows.push(content(name, len).to_vec()),
                (Op::Put { name, len }, true) => drop(self.chunks.insert((name, len), true)),
                (Op::Delete { name, len }, true) => drop(self.chunks.insert((name, len), false)),
                (Op::Put { name, len } | Op::Delete { name, len }, false) => {
                    self.open_chunks.insert((name, len), ());
                }
                (Op::Floor, true) => self.floor = rows_before,
                (Op::Floor, false) => self.open_floors.push(rows_before),
                (Op::Compact, _) => {}
            }
        }
    }

    /// Compares with what a node has, and takes over what was open.
    fn settle(&mut self, node: &Node) {
        let mut found: Vec<Vec<u8>> = node.rows().into_iter().map(|(_, bytes)| bytes).collect();
        let wanted = [self.floor].into_iter().chain(self.open_floors.iter().copied()).find(|floor| {
            let (known, all) = (&self.rows[*floor..], self.rows.len() - floor);
            found.len() >= all && found.starts_with(known) && self.open_rows.starts_with(&found[all..])
        });
        let floor = wanted.unwrap_or_else(|| {
            panic!("rows: {} found, {} known behind {}", found.len(), self.rows.len(), self.floor)
        });
        let opened = found.len() - (self.rows.len() - floor);
        self.rows.extend(found.split_off(found.len() - opened));
        self.floor = floor;
        self.open_floors.clear();
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
        self.check_figures(node);
    }

    /// Live bytes are those of the chunks that are there, slot by slot.
    fn check_figures(&self, node: &Node) {
        let segments = &node.shared().segments;
        let live: u64 = segments.all().iter().map(|segment| segments.live_bytes(segment.slot)).sum();
        let blocks = |(_, len): &(u64, usize)| len.next_multiple_of(BLOCK) as u64;
        let expected: u64 =
            self.chunks.iter().filter(|(_, there)| **there).map(|(chunk, _)| blocks(chunk)).sum();
        assert_eq!(live, expected);
        let chunks: u64 = segments.all().iter().map(|segment| segment.chunk_bytes).sum();
        let ends: u64 = segments.all().iter().map(|segment| segment.end).sum();
        assert_eq!(node.log.used_bytes(), ends - (chunks - live));
    }
}

/// One life of a node, from an image to the image that its end leaves.
fn live(image: Vec<u8>, groups: &[Vec<Op>], strike: Option<(u64, Fate)>, model: &mut Model) -> Vec<u8> {
    let sim = SimIo::new(image, strike);
    match Node::open(sim.clone()) {
        Ok(mut node) => {
            model.settle(&node);
            for group in groups {
                let acknowledged = node.apply(group);
                model.note(group, &acknowledged);
            }
        }
        Err(error) => assert!(strike.is_some(), "a node that lost power must open again: {error}"),
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
    let (put, rows, delete) = (Op::put, Op::rows, Op::delete);
    vec![
        vec![rows(1, 40)],
        vec![put(2, 5000), rows(3, 100), put(4, 0), put(2, 5000), rows(5, 9000)],
        vec![put(6, 60_000), put(7, 60_000), rows(8, 10)],
        vec![delete(2, 5000), put(2, 5000), delete(7, 60_000), rows(9, 1)],
        vec![delete(2, 5000), delete(2, 5000), rows(10, 70_000)],
        vec![put(11, 1), put(12, 4096), put(13, 4097)],
        vec![Op::Floor],
        vec![Op::Compact],
    ]
}

fn find(image: &[u8], bytes: &[u8]) -> usize {
    let mut blocks = (0..image.len()).step_by(4096);
    blocks.find(|at| image[*at..].starts_with(&bytes[..bytes.len().min(64)])).unwrap()
}
