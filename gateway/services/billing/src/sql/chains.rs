//! Chains of records and their heads, and the records that contradict them.

use common::api::billing::ChainView;
use common::hash::RecordDigest;
use common::id::NodeId;
use common::record::ChainedRecord;
use common::time::UnixMillis;
use database::Connection;
use sqlx::Row;

use super::LedgerError;

/// What is booked of one chain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub chain: i64,
    pub last_seq: u64,
    pub last_digest: RecordDigest,
}

pub(crate) fn digest(bytes: &[u8]) -> Result<RecordDigest, LedgerError> {
    super::digest(bytes).map(RecordDigest::from_bytes)
}

pub(crate) async fn head(
    connection: &mut Connection,
    node: &NodeId,
    epoch: u64,
) -> Result<Option<Head>, LedgerError> {
    let row = sqlx::query("SELECT id, last_seq, last_digest FROM chains WHERE node = $1 AND epoch = $2")
        .bind(node.to_string())
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

/// All chains, by node and epoch.
pub(crate) async fn all(connection: &mut Connection) -> Result<Vec<ChainView>, LedgerError> {
    let sql = "SELECT node, epoch, last_seq, last_digest, passed_ms FROM chains ORDER BY node, epoch";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    let view = |row: &sqlx::any::AnyRow| {
        Ok(ChainView {
            node: NodeId::new(row.try_get(0)?).map_err(LedgerError::corrupt)?,
            epoch: row.try_get::<i64, _>(1)?.cast_unsigned(),
            last_seq: row.try_get::<i64, _>(2)?.cast_unsigned(),
            last_digest: digest(row.try_get(3)?)?,
            passed_ms: UnixMillis(row.try_get::<i64, _>(4)?.cast_unsigned()),
        })
    };
    rows.iter().map(view).collect()
}

/// The node's greatest epoch with a booked record.
pub(crate) async fn greatest_epoch(
    connection: &mut Connection,
    node: &NodeId,
) -> Result<Option<u64>, LedgerError> {
    let epoch: Option<i64> = sqlx::query_scalar("SELECT max(epoch) FROM chains WHERE node = $1")
        .bind(node.to_string())
        .fetch_one(connection)
        .await?;
    Ok(epoch.map(i64::cast_unsigned))
}

/// Begins a chain before its first record.
pub(crate) async fn begin(
    connection: &mut Connection,
    node: &NodeId,
    epoch: u64,
) -> Result<Head, LedgerError> {
    let head = Head { chain: 0, last_seq: 0, last_digest: RecordDigest::ZERO };
    let chain = sqlx::query_scalar(
        "INSERT INTO chains (id, node, epoch, last_seq, last_digest) \
         SELECT coalesce(max(id), 0) + 1, $1, $2, 0, $3 FROM chains RETURNING id",
    )
    .bind(node.to_string())
    .bind(epoch.cast_signed())
    .bind(head.last_digest.as_bytes().to_vec())
    .fetch_one(connection)
    .await?;
    Ok(Head { chain, ..head })
}

/// Moves a chain's head to `last`.
pub(crate) async fn advance(
    connection: &mut Connection,
    chain: i64,
    last: &ChainedRecord,
) -> Result<(), LedgerError> {
    sqlx::query("UPDATE chains SET last_seq = $1, last_digest = $2 WHERE id = $3")
        .bind(last.seq.cast_signed())
        .bind(last.digest.as_bytes().to_vec())
        .bind(chain)
        .execute(connection)
        .await?;
    Ok(())
}

/// The node says that every delivery that began before `passed` is booked.
pub(crate) async fn pass(
    connection: &mut Connection,
    chain: i64,
    passed: UnixMillis,
) -> Result<(), LedgerError> {
    sqlx::query("UPDATE chains SET passed_ms = $1 WHERE id = $2 AND passed_ms < $1")
        .bind(passed.0.cast_signed())
        .bind(chain)
        .execute(connection)
        .await?;
    Ok(())
}

/// The digest of one record of a chain.
pub(crate) async fn digest_of(
    connection: &mut Connection,
    node: &NodeId,
    epoch: u64,
    seq: u64,
) -> Result<Option<RecordDigest>, LedgerError> {
    let sql = "SELECT e.digest FROM events e JOIN chains c ON c.id = e.chain \
         WHERE c.node = $1 AND c.epoch = $2 AND e.seq = $3";
    let row = sqlx::query(sql)
        .bind(node.to_string())
        .bind(epoch.cast_signed())
        .bind(seq.cast_signed())
        .fetch_optional(connection)
        .await?;
    row.map(|row| digest(row.try_get(0)?)).transpose()
}

/// Digests of a chain's records from `first` to `last`, in order.
pub(crate) async fn digests(
    connection: &mut Connection,
    chain: i64,
    first: u64,
    last: u64,
) -> Result<Vec<RecordDigest>, LedgerError> {
    let sql = "SELECT digest FROM events WHERE chain = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq";
    let rows = sqlx::query(sql)
        .bind(chain)
        .bind(first.cast_signed())
        .bind(last.cast_signed())
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| digest(row.try_get(0)?)).collect()
}

/// Keeps a record that contradicts the books, once.
pub(crate) async fn quarantine(
    connection: &mut Connection,
    node: &NodeId,
    epoch: u64,
    record: &ChainedRecord,
    reason: &str,
    now: UnixMillis,
) -> Result<(), LedgerError> {
    let text = serde_json::to_string(record).map_err(LedgerError::corrupt)?;
    let id: i64 = sqlx::query_scalar("SELECT coalesce(max(id), 0) + 1 FROM quarantine")
        .fetch_one(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO quarantine (id, node, epoch, seq, digest, record, reason, received_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (node, epoch, seq, digest) DO NOTHING",
    )
    .bind(id)
    .bind(node.to_string())
    .bind(epoch.cast_signed())
    .bind(record.seq.cast_signed())
    .bind(record.digest.as_bytes().to_vec())
    .bind(text)
    .bind(reason.to_owned())
    .bind(now.0.cast_signed())
    .execute(connection)
    .await?;
    Ok(())
}
