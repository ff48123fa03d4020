//! Two editions of a large binary. Each repeats parts of itself, and the second differs from the first only by a
//! piece inserted in the middle: content-defined chunks find both, fixed blocks would lose step at the insertion.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::Numbers;

const MIB: usize = 1 << 20;
/// Which of the distinct parts stands where; letters that come again are repeated bytes.
const PARTS: &[u8] = b"ABCDEBFGABHCDI";
const PART_LEN: usize = 3 * MIB;
const INSERTED_LEN: usize = 300_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edition {
    First,
    Second,
}

/// Writes an edition: 42 MiB, of which 27 MiB are distinct.
pub fn write(edition: Edition, path: &Path) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(MIB, File::create(path)?);
    let mut part = vec![0u8; PART_LEN];
    for (index, letter) in PARTS.iter().enumerate() {
        if edition == Edition::Second && index == PARTS.len() / 2 {
            let mut inserted = vec![0u8; INSERTED_LEN];
            Numbers::of("archive insertion").fill(&mut inserted);
            file.write_all(&inserted)?;
        }
        Numbers::of(&format!("archive part {letter}")).fill(&mut part);
        file.write_all(&part)?;
    }
    file.flush()
}
