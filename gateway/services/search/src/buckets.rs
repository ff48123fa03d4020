//! Buckets: whose contents they are, and who may read them.

use common::api::search::{BucketRecord, NewBucket, Visibility};
use common::error::ErrorCode;
use common::id::{BucketName, ClientId};
use common::time::UnixMillis;

use crate::clients;
use crate::db::Connection;
use crate::error::{Failure, integer, natural};

type Columns = (String, String, i64, i64);

fn record_of((bucket, provider, public, created): Columns) -> Result<BucketRecord, Failure> {
    Ok(BucketRecord {
        bucket: BucketName::new(&bucket)?,
        provider: ClientId::new(&provider)?,
        visibility: if public != 0 { Visibility::Public } else { Visibility::Private },
        created: UnixMillis(natural(created)),
    })
}

/// Makes a bucket or changes its visibility; its provider stays for ever.
pub async fn put(
    conn: &mut Connection,
    bucket: &BucketName,
    new: &NewBucket,
    now: UnixMillis,
) -> Result<BucketRecord, Failure> {
    if clients::find(conn, &new.provider).await?.is_none() {
        return Err(clients::not_found(&new.provider));
    }
    if let Some(known) = find(conn, bucket).await?
        && known.provider != new.provider
    {
        let message = format!("bucket {bucket} belongs to another client");
        return Err(Failure::refused(ErrorCode::Conflict, message));
    }
    sqlx::query(
        "INSERT INTO buckets (bucket, provider, public, created) VALUES ($1, $2, $3, $4)
         ON CONFLICT (bucket) DO UPDATE SET public = excluded.public",
    )
    .bind(bucket.as_str())
    .bind(new.provider.as_str())
    .bind(i64::from(new.visibility == Visibility::Public))
    .bind(integer(now.0, "the time")?)
    .execute(&mut *conn)
    .await?;
    get(conn, bucket).await
}

pub async fn find(conn: &mut Connection, bucket: &BucketName) -> Result<Option<BucketRecord>, Failure> {
    let row: Option<Columns> =
        sqlx::query_as("SELECT bucket, provider, public, created FROM buckets WHERE bucket = $1")
            .bind(bucket.as_str())
            .fetch_optional(conn)
            .await?;
    row.map(record_of).transpose()
}

pub async fn get(conn: &mut Connection, bucket: &BucketName) -> Result<BucketRecord, Failure> {
    let missing = || Failure::refused(ErrorCode::BucketNotFound, format!("there is no bucket {bucket}"));
    find(conn, bucket).await?.ok_or_else(missing)
}

pub async fn list(conn: &mut Connection) -> Result<Vec<BucketRecord>, Failure> {
    let rows: Vec<Columns> =
        sqlx::query_as("SELECT bucket, provider, public, created FROM buckets ORDER BY bucket")
            .fetch_all(conn)
            .await?;
    rows.into_iter().map(record_of).collect()
}
