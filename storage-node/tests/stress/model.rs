//! What must, and what may, be found on the store, going by what the killed processes told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use storage_node::log::{BoxError, Log, LogPosition};
use storage_node::store::{Opened, StoreError};

use super::{chunk, row};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Present,
    Absent,
    /// Begun and not told to be done: there or not, never in part.
    Open,
}

#[derive(Default)]
pub struct Model {
    chunks: BTreeMap<u64, ChunkState>,
    /// Numbers of rows, in their order, each with its position once that is known.
    rows: Vec<(u64, Option<LogPosition>)>,
    /// Number of the last row that was begun.
    last_row: u64,
    floor: LogPosition,
    open_floors: BTreeSet<LogPosition>,
    acknowledged: u64,
    checks: u64,
    /// Bytes of the chunks that were new when they were put.
    pub stored_bytes: u64,
}

impl Model {
    pub fn next_row(&self) -> u64 {
        self.last_row + 1
    }

    /// Takes a line of the child's; false if it is none of ours.
    pub fn note(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[..] {
            ["opening" | "opened"] => return true,
            ["begin", "put" | "delete", _] => drop(self.chunks.insert(number(2), ChunkState::Open)),
            ["done", "put", _, _] => {
                self.chunks.insert(number(2), ChunkState::Present);
                self.stored_bytes += number(3);
            }
            ["done", "delete", _] => drop(self.chunks.insert(number(2), ChunkState::Absent)),
            ["begin", "row", _] => {
                self.last_row = number(2);
                self.rows.push((self.last_row, None));
            }
            ["done", "row", _, _] => {
                let last = self.rows.last_mut().expect("it was begun");
                assert_eq!(last.0, number(2));
                last.1 = Some(LogPosition(number(3)));
            }
            ["begin", "floor", _] => drop(self.open_floors.insert(LogPosition(number(2)))),
            ["done", "floor", _] => self.floor = LogPosition(number(2)),
            ["failed", ..] => panic!("{line}"),
            _ => return false,
        }
        self.acknowledged += u64::from(words[0] == "done");
        true
    }

    /// Compares with what is on the store, and takes over what was open.
    pub async fn check(&mut self, opened: &Opened) {
        self.checks += 1;
        let mut present = 0;
        for (name, state) in &mut self.chunks {
            let (hash, bytes) = chunk(*name);
            *state = match (opened.chunks.get(&hash).await, *state) {
                (Ok(_), ChunkState::Absent) => panic!("deleted chunk {name} is back"),
                (Ok(found), _) => {
                    assert!(found == bytes, "chunk {name} has other bytes");
                    ChunkState::Present
                }
                (Err(StoreError::NotFound), ChunkState::Present) => {
                    panic!("acknowledged chunk {name} is gone")
                }
                (Err(StoreError::NotFound), _) => ChunkState::Absent,
                (Err(error), _) => panic!("chunk {name}: {error:?}"),
            };
            present += u64::from(*state == ChunkState::Present);
        }
        assert_eq!(opened.chunks.stats().chunks, present);
        self.check_rows(&opened.log).await;
    }

    async fn check_rows(&mut self, log: &Log) {
        let floor = log.floor();
        assert!(floor >= self.floor, "the floor sank from {:?} to {floor:?}", self.floor);
        assert!(floor == self.floor || self.open_floors.contains(&floor), "nobody set {floor:?}");
        self.floor = floor;
        self.open_floors.clear();
        let found = replay(log).await;
        let mut rest = found.iter().peekable();
        self.rows.retain_mut(|(number, position)| {
            if position.is_some_and(|position| position <= floor) {
                return false;
            }
            match rest.next_if(|(_, bytes)| *bytes == row(*number)) {
                Some((at, _)) => {
                    assert!(position.is_none_or(|position| position == *at), "row {number} has moved");
                    *position = Some(*at);
                    true
                }
                None => {
                    assert!(position.is_none(), "acknowledged row {number} is gone, or out of order");
                    false
                }
            }
        });
        assert!(rest.next().is_none(), "rows that nobody appended");
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, checks, stored_bytes, .. } = self;
        write!(f, "{acknowledged} acknowledgements and {stored_bytes} bytes held in {checks} checks")
    }
}

async fn replay(log: &Log) -> Vec<(LogPosition, Vec<u8>)> {
    let log = log.clone();
    let replay = tokio::task::spawn_blocking(move || {
        let mut rows = Vec::new();
        let mut visit = |position: LogPosition, bytes: &[u8]| -> Result<(), BoxError> {
            rows.push((position, bytes.to_vec()));
            Ok(())
        };
        log.replay_rows(LogPosition(0), &mut visit).expect("the rows can be read");
        rows
    });
    replay.await.expect("the replay does not panic")
}
