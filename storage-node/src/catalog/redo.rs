//! The form of a batch of row changes in the log.
//!
//! ```text
//! version 1 (1 byte), then per change: kind (1 byte: 0 removal, 1 value), key length (u32 LE), key,
//! and for a value its length (u32 LE) and the value
//! ```

use bytes::Bytes;

use super::txn::Overlay;

const VERSION: u8 = 1;
const REMOVAL: u8 = 0;
const VALUE: u8 = 1;

/// A redo entry that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RedoError {
    #[error("a redo entry of the log has version {found}, this program knows {VERSION}; use a newer one")]
    Version { found: u8 },
    #[error("a redo entry of the log is malformed at byte {at}")]
    Malformed { at: usize },
}

pub(super) fn encode(overlay: &Overlay) -> Bytes {
    let mut entry = Vec::with_capacity(1 + overlay.bytes + 9 * overlay.changes.len());
    entry.push(VERSION);
    let part = |entry: &mut Vec<u8>, bytes: &[u8]| {
        entry.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        entry.extend_from_slice(bytes);
    };
    for (key, value) in &overlay.changes {
        match value {
            None => {
                entry.push(REMOVAL);
                part(&mut entry, key);
            }
            Some(value) => {
                entry.push(VALUE);
                part(&mut entry, key);
                part(&mut entry, value);
            }
        }
    }
    entry.into()
}

/// A key with its new value, or `None` for a removal.
pub(super) type Change<'a> = (&'a [u8], Option<&'a [u8]>);

/// The changes of an entry, in order.
pub(super) fn decode(entry: &[u8]) -> Result<Vec<Change<'_>>, RedoError> {
    let mut at = 1;
    match entry.first() {
        Some(&VERSION) => {}
        Some(&found) => return Err(RedoError::Version { found }),
        None => return Err(RedoError::Malformed { at: 0 }),
    }
    let mut changes = Vec::new();
    while let Some(kind) = entry.get(at) {
        at += 1;
        let key = take(entry, &mut at)?;
        match *kind {
            REMOVAL => changes.push((key, None)),
            VALUE => changes.push((key, Some(take(entry, &mut at)?))),
            _ => return Err(RedoError::Malformed { at: at - 1 }),
        }
    }
    Ok(changes)
}

fn take<'a>(entry: &'a [u8], at: &mut usize) -> Result<&'a [u8], RedoError> {
    let malformed = RedoError::Malformed { at: *at };
    let Some(len) = entry.get(*at..*at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else {
        return Err(malformed);
    };
    let start = *at + 4;
    let Some(part) = entry.get(start..).and_then(|rest| rest.get(..len as usize)) else {
        return Err(malformed);
    };
    *at = start + len as usize;
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_batch_survives_and_a_cut_one_never_panics(
            changes in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..9), prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), 0..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let overlay = Overlay { changes: changes.clone(), bytes: 0 };
            let entry = encode(&overlay);
            let back: Vec<_> = decode(&entry).unwrap();
            let want: Vec<_> = changes.iter().map(|(k, v)| (k.as_slice(), v.as_deref())).collect();
            prop_assert_eq!(back, want);
            // A torn entry never gets here (the log's checksum), but must not crash the program either.
            let _either = decode(&entry[..cut.index(entry.len())]);
        }
    }
}
