//! The delivery record: the facts of one delivery, numbered and chained, from which both billing servers
//! compute every fee. Facts only, never money.
//!
//! A record's id is `(node, epoch, seq)`: `seq` counts from 1 without gaps in each epoch of a node's log, so
//! a receiver that knows the last number can tell duplicate, gap and next by one comparison. Each record
//! carries a digest over itself and its predecessor's digest; two different records under one number
//! therefore cannot both be accepted.
//!
//! A delivery gets its number when it *ends*; its begin is durable in the node's log before the first byte
//! goes out. So a slow reader never holds up the records behind it, and whatever began is found after a crash.

use serde::{Deserialize, Serialize};

use crate::hash::{ContentHash, RecordDigest};
use crate::id::{ClientId, DeliveryId, NodeId, ServerName, SiteId};
use crate::name::ContentName;
use crate::time::UnixMillis;

/// Did the client hold the content before? The content fee follows from it (patent, paragraphs 48 and 49).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeliveryClass {
    /// The client did not hold it; bytes that the site already had for somebody else change nothing.
    Purchase,
    /// The client held it.
    Reference,
}

/// Where the site had the bytes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeliveryPath {
    /// The site held the content.
    Hit,
    /// Collected from another site.
    Peer,
    /// Collected from an origin.
    Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeliveryStatus {
    /// Every byte was sent.
    Complete,
    /// Some bytes were sent.
    Partial,
    /// No byte was sent; the next attempt is again what this one was.
    Void,
    /// The node or gateway stopped between begin and end; how much was sent is not known.
    Recovered,
}

/// Who had a hand in a delivery beside the home site; the service fee is shared among them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Site(SiteId),
    Origin(ServerName),
}

/// The facts of one delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryRecord {
    pub delivery: DeliveryId,
    pub begin: UnixMillis,
    pub end: UnixMillis,
    pub client: ClientId,
    pub content: ContentName,
    pub hash: ContentHash,
    /// The original provider; a site that was collected from never takes its place.
    pub provider: ClientId,
    pub class: DeliveryClass,
    pub path: DeliveryPath,
    /// The client's home site.
    pub home: SiteId,
    /// Whom the bytes were collected from; `None` for a hit.
    pub source: Option<Source>,
    /// Whether search was asked.
    pub searched: bool,
    /// The visited site, when the client was served away from home.
    pub surrogate: Option<SiteId>,
    /// The mobile access server that brought the client there.
    pub mobile_access: Option<ServerName>,
    pub status: DeliveryStatus,
    pub bytes_total: u64,
    pub bytes_sent: u64,
}

/// Numbers of a node's records: `epoch` rises when its log is made anew, `seq` counts from 1 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordNumber {
    pub epoch: u64,
    pub seq: u64,
}

/// A record with its number and its link to the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChainedRecord {
    pub seq: u64,
    /// Digest of the record before; [`RecordDigest::ZERO`] for the first of an epoch.
    pub previous: RecordDigest,
    pub digest: RecordDigest,
    pub record: DeliveryRecord,
}

/// A record that does not continue its chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("record {got} does not follow record {last}")]
    Gap { last: u64, got: u64 },
    #[error("record {seq} is not linked to the record before it")]
    Unlinked { seq: u64 },
    #[error("record {seq} does not have the digest that its facts give")]
    Tampered { seq: u64 },
}

impl ChainedRecord {
    /// Numbers and links `record` behind `(last_seq, previous)`.
    pub fn append(
        node: &NodeId,
        epoch: u64,
        last_seq: u64,
        previous: RecordDigest,
        record: DeliveryRecord,
    ) -> Self {
        let seq = last_seq + 1;
        let digest = digest(node, RecordNumber { epoch, seq }, &previous, &record);
        Self { seq, previous, digest, record }
    }

    /// Checks that this record follows `(last_seq, previous)` and has not been changed.
    pub fn check(
        &self,
        node: &NodeId,
        epoch: u64,
        last_seq: u64,
        previous: &RecordDigest,
    ) -> Result<(), ChainError> {
        if self.seq != last_seq + 1 {
            return Err(ChainError::Gap { last: last_seq, got: self.seq });
        }
        if &self.previous != previous {
            return Err(ChainError::Unlinked { seq: self.seq });
        }
        let expected = digest(node, RecordNumber { epoch, seq: self.seq }, &self.previous, &self.record);
        if expected != self.digest {
            return Err(ChainError::Tampered { seq: self.seq });
        }
        Ok(())
    }
}

/// BLAKE3 (derive-key mode) over previous digest, node, epoch, seq and the facts in their postcard encoding.
fn digest(
    node: &NodeId,
    number: RecordNumber,
    previous: &RecordDigest,
    record: &DeliveryRecord,
) -> RecordDigest {
    let mut hasher = blake3::Hasher::new_derive_key("dozo delivery record v1");
    hasher.update(previous.as_bytes());
    hasher.update(&[node.as_str().len() as u8]).update(node.as_str().as_bytes());
    hasher.update(&number.epoch.to_le_bytes()).update(&number.seq.to_le_bytes());
    let facts = postcard::to_stdvec(record).expect("a record of plain values always encodes");
    hasher.update(&facts);
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn record(n: u64) -> DeliveryRecord {
        DeliveryRecord {
            delivery: DeliveryId::from_bytes([n as u8; 16]),
            begin: UnixMillis(1_000 + n),
            end: UnixMillis(2_000 + n),
            client: ClientId::new("bob").unwrap(),
            content: "alice/song.wav".parse().unwrap(),
            hash: ContentHash::of(b"song"),
            provider: ClientId::new("alice").unwrap(),
            class: DeliveryClass::Purchase,
            path: DeliveryPath::Peer,
            home: SiteId::new("tokyo").unwrap(),
            source: Some(Source::Site(SiteId::new("osaka").unwrap())),
            searched: true,
            surrogate: None,
            mobile_access: None,
            status: DeliveryStatus::Complete,
            bytes_total: 10,
            bytes_sent: 10 + n,
        }
    }

    fn node() -> NodeId {
        NodeId::new("tokyo.n1").unwrap()
    }

    #[test]
    fn the_digest_of_a_record_is_pinned() {
        let first = ChainedRecord::append(&node(), 1, 0, RecordDigest::ZERO, record(0));
        assert_eq!(
            first.digest.to_string(),
            "e73f57502f9719f418c044dcbbbf79d888a0c4f7d08215a9f6148b8954939768",
            "stored chains would no longer verify"
        );
    }

    proptest! {
        #[test]
        fn a_chain_accepts_its_next_record_and_nothing_else(len in 1u64..20, pick in any::<prop::sample::Index>(), bytes in any::<u64>()) {
            let mut chain: Vec<ChainedRecord> = Vec::new();
            for n in 0..len {
                let previous = chain.last().map_or(RecordDigest::ZERO, |r| r.digest);
                chain.push(ChainedRecord::append(&node(), 3, n, previous, record(n)));
            }
            let mut previous = RecordDigest::ZERO;
            for (n, link) in chain.iter().enumerate() {
                prop_assert_eq!(link.check(&node(), 3, n as u64, &previous), Ok(()));
                previous = link.digest;
            }
            let index = pick.index(chain.len());
            let before = if index == 0 { RecordDigest::ZERO } else { chain[index - 1].digest };
            let last = index as u64;
            let mut changed = chain[index].clone();
            changed.record.bytes_sent = changed.record.bytes_sent.wrapping_add(bytes | 1);
            prop_assert_eq!(changed.check(&node(), 3, last, &before), Err(ChainError::Tampered { seq: last + 1 }));
            let other_epoch = chain[index].check(&node(), 4, last, &before);
            prop_assert_eq!(other_epoch, Err(ChainError::Tampered { seq: last + 1 }));
            let skipped = chain[index].check(&node(), 3, last + 1, &before);
            prop_assert_eq!(skipped, Err(ChainError::Gap { last: last + 1, got: last + 1 }));
        }
    }
}
