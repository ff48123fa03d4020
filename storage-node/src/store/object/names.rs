//! Names of the objects in a store.
//!
//! ```text
//! owner                                   the id of the node's log
//! chunks/ab/<hash>-<sequence>             one large chunk
//! packs/<sequence>-<previous sequence>    small chunks and deletions
//! ```
//! Hashes and sequences are written in hexadecimal digits, 64 and 16 of them. A sequence is given out once, so no name
//! is ever used again for something else: a request that is carried out late, even by a process that ended long ago,
//! can neither overwrite nor delete what was stored since.

use common::hash::ChunkHash;
use object_store::path::Path;

use super::pack::PackId;

pub const CHUNKS: &str = "chunks";
pub const PACKS: &str = "packs";

pub fn owner() -> Path {
    Path::from("owner")
}

pub fn chunk(hash: &ChunkHash, sequence: u64) -> Path {
    let hex = hash.to_string();
    Path::from(format!("{CHUNKS}/{}/{hex}-{sequence:016x}", &hex[..2]))
}

pub fn pack(id: PackId) -> Path {
    Path::from(format!("{PACKS}/{:016x}-{:016x}", id.sequence, id.previous))
}

/// `None` for what is no chunk of this store.
pub fn parse_chunk(path: &Path) -> Option<(ChunkHash, u64)> {
    let (hash, sequence) = path.filename()?.split_once('-')?;
    let parsed = (hash.parse().ok()?, parse_sequence(sequence)?);
    (*path == chunk(&parsed.0, parsed.1)).then_some(parsed)
}

/// `None` for what is no pack of this store.
pub fn parse_pack(path: &Path) -> Option<PackId> {
    let (sequence, previous) = path.filename()?.split_once('-')?;
    let id = PackId { sequence: parse_sequence(sequence)?, previous: parse_sequence(previous)? };
    (*path == pack(id) && id.previous < id.sequence).then_some(id)
}

fn parse_sequence(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_made_and_nothing_else_is() {
        let hash = ChunkHash::of(b"x");
        assert_eq!(parse_chunk(&chunk(&hash, 77)), Some((hash, 77)));
        let id = PackId { sequence: 9 << 32, previous: 7 };
        assert_eq!(pack(id).as_ref(), "packs/0000000900000000-0000000000000007");
        assert_eq!(parse_pack(&pack(id)), Some(id));
        for other in ["packs/0000000900000000-0000000A00000000", "packs/9-7", "packs/x", "elsewhere/y-z"] {
            assert_eq!(parse_pack(&Path::from(other)), None, "{other}");
            assert_eq!(parse_chunk(&Path::from(other)), None, "{other}");
        }
    }
}
