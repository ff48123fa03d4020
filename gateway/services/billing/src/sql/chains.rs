//! Chains of records and their heads, and the records that contradict them.

use common::hash::RecordDigest;
use common::id::NodeId;
use common::record::ChainedRecord;
use common::time::UnixMillis;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::LedgerError;

/// What is booked of one chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub chain: i64,
    pub last_seq: u64,
    pub last_digest: RecordDigest,
}

pub(crate) fn digest(bytes: &[u8]) -> Result<RecordDigest, LedgerError> {
    bytes.try_into().map(RecordDigest::from_bytes).map_err(LedgerError::corrupt)
}

pub(crate) async fn head(
    connection: &mut SqliteConnection,
    node: &NodeId,
    epoch: u64,
) -> Result<Option<Head>, LedgerError> {
    let row = sqlx::query("SELECT id, last_seq, last_digest FROM chains WHERE node = ? AND epoch = ?")
        .bind(node.as_str())
        .bind(epoch.cast_signed())
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(Head {
            chain: row.try_get(0)?,
            last_seq: row.try_get::<i64, _>(1)?.cast_unsigned(),
            last_digest: digest(row.try_get(2)?)?,
        })
    })
    .transpose()
}

/// The node's greatest epoch with a booked record.
pub(crate) async fn greatest_epoch(
    connection: &mut SqliteConnection,
    node: &NodeId,
) -> Result<Option<u64>, LedgerError> {
    let epoch: Option<i64> = sqlx::query_scalar("SELECT max(epoch) FROM chains WHERE node = ?")
        .bind(node.as_str())
        .fetch_one(connection)
        .await?;
    Ok(epoch.map(i64::cast_unsigned))
}

/// Begins a chain; its head follows with [`advance`] in the same transaction.
pub(crate) async fn begin(
    connection: &mut SqliteConnection,
    node: &NodeId,
    epoch: u64,
) -> Result<Head, LedgerError> {
    let zero = RecordDigest::ZERO;
    let chain = sqlx::query_scalar(
        "INSERT INTO chains (node, epoch, last_seq, last_digest) VALUES (?, ?, 0, ?) RETURNING id",
    )
    .bind(node.as_str())
    .bind(epoch.cast_signed())
    .bind(&zero.as_bytes()[..])
    .fetch_one(connection)
    .await?;
    Ok(Head { chain, last_seq: 0, last_digest: zero })
}

pub(crate) async fn advance(
    connection: &mut SqliteConnection,
    chain: i64,
    last: &ChainedRecord,
) -> Result<(), LedgerError> {
    sqlx::query("UPDATE chains SET last_seq = ?, last_digest = ? WHERE id = ?")
        .bind(last.seq.cast_signed())
        .bind(&last.digest.as_bytes()[..])
        .bind(chain)
        .execute(connection)
        .await?;
    Ok(())
}

/// Digests booked under the numbers `first..=last`, in order.
pub(crate) async fn digests(
    connection: &mut SqliteConnection,
    chain: i64,
    first: u64,
    last: u64,
) -> Result<Vec<RecordDigest>, LedgerError> {
    let rows = sqlx::query("SELECT digest FROM events WHERE chain = ? AND seq BETWEEN ? AND ? ORDER BY seq")
        .bind(chain)
        .bind(first.cast_signed())
        .bind(last.cast_signed())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| digest(row.try_get(0)?)).collect()
}

/// Keeps a record that contradicts the books, for the operator; the same one is kept once.
pub(crate) async fn quarantine(
    connection: &mut SqliteConnection,
    node: &NodeId,
    epoch: u64,
    record: &ChainedRecord,
    reason: &str,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    let text = serde_json::to_string(record).map_err(LedgerError::corrupt)?;
    sqlx::query(
        "INSERT INTO quarantine (node, epoch, seq, digest, record, reason, received_ms) \
         VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (node, epoch, seq, digest) DO NOTHING",
    )
    .bind(node.as_str())
    .bind(epoch.cast_signed())
    .bind(record.seq.cast_signed())
    .bind(&record.digest.as_bytes()[..])
    .bind(text)
    .bind(reason.to_owned())
    .bind(now.0.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}
