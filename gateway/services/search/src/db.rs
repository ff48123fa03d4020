//! The database of the directory: the crate `database` with our schema.
//!
//! There is one writer, so what must be serial is so without a lock of its own: changes of the map, the numbers of the
//! change feed (whoever reads it never sees a number before a smaller one), how far each announcer is.

use database::Owner;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::{Any, Transaction};

use common::hash::ContentHash;
use common::server::StartError;
use common::version::{HybridTime, Version};

use crate::error::{Failure, natural};

pub use database::{Connection, Dialect, Location};

pub const DATABASE_FILE: &str = "search.db";
/// "dozo" in ASCII. Such locks are of one database.
const WRITER_LOCK: i64 = 1_685_027_439;

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    inner: database::Db,
    pub dialect: Dialect,
}

impl Db {
    /// Opens the directory and brings its schema up to date.
    pub async fn open(location: &Location) -> Result<Self, StartError> {
        let owner = Owner { name: "search", migrations: &MIGRATOR, writer_lock: WRITER_LOCK };
        let inner = database::Db::open(location, owner).await?;
        Ok(Self { dialect: inner.dialect, inner })
    }

    /// A transaction of the one writer; rolled back unless committed.
    pub async fn write(&self) -> Result<Transaction<'static, Any>, Failure> {
        Ok(self.inner.write().await?)
    }

    pub async fn read(&self) -> Result<PoolConnection<Any>, Failure> {
        Ok(self.inner.read().await?)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Failure> {
        sqlx::query("SELECT epoch FROM map_state").fetch_one(&mut *self.read().await?).await?;
        Ok(())
    }

    pub async fn close(&self) {
        self.inner.close().await;
    }
}

/// A version from its two columns.
pub fn version_of(time: i64, hash: &[u8]) -> Result<Version, Failure> {
    let hash: [u8; 32] = hash
        .try_into()
        .map_err(|_| sqlx::Error::Decode(format!("a hash has {} bytes, not 32", hash.len()).into()))?;
    Ok(Version { time: HybridTime(natural(time)), hash: ContentHash::from_bytes(hash) })
}
