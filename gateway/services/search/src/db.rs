//! The database: where it is, its connections, and its schema.
//!
//! SQLite in a file, or PostgreSQL. Both are spoken to through sqlx's `Any` driver, so the topic modules have one text
//! for both; what is said twice is said here.
//!
//! **One writer.** All that changes anything goes through one connection, on both databases, so transactions run one
//! after the other in the order they began. What must be serial is so without a lock of its own: changes of the map, the
//! numbers of the change feed (whoever reads it never sees a number before a smaller one), how far each announcer is.
//! Readers go on meanwhile (WAL, MVCC) and cannot write.
//!
//! - SQLite: `synchronous = FULL` makes a commit durable before it is answered.
//! - PostgreSQL: the writer holds an advisory lock as long as it is connected. A second search on the same database,
//!   started by mistake or as a standby, does not start; a writer that lost its connection writes again once the server has
//!   noticed and given the lock back. (A pooler in between must keep sessions.) `synchronous_commit = off` is not taken
//!   over from the server's settings: what is acknowledged must be durable.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, ConnectOptions, Connection as _, Executor, SqlSafeStr,
    Transaction,
};

use common::hash::ContentHash;
use common::server::StartError;
use common::version::{HybridTime, Version};

use crate::error::{Failure, natural};

/// What the topic modules run their statements on.
pub type Connection = AnyConnection;

pub const DATABASE_FILE: &str = "search.db";
/// "dozo" in ASCII. Such locks are of one database.
const WRITER_LOCK: i64 = 1_685_027_439;
/// What the connection of a search that was stopped may take to end.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);
const READERS: u32 = 4;
const WAIT_MAX: Duration = Duration::from_secs(5);

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

const SQLITE_WRITER: &[&str] = &[
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    // 64 MiB of pages; the log is written back every 32 MiB, so a page that many commits change is written once.
    "PRAGMA cache_size = -65536",
    "PRAGMA wal_autocheckpoint = 8192",
];
const SQLITE_READER: &[&str] = &["PRAGMA query_only = ON", "PRAGMA cache_size = -16384"];
/// Tables grow from nothing: a plan that is kept from when they were small reads all of them later.
const POSTGRES_PLANS: &str = "SET plan_cache_mode = force_custom_plan";
const POSTGRES_WRITER: &[&str] = &[
    "SET application_name = 'dozo search'",
    "SELECT set_config('synchronous_commit', 'on', FALSE) WHERE current_setting('synchronous_commit') = 'off'",
    POSTGRES_PLANS,
    "SET lock_timeout = '5s'",
    // WRITER_LOCK.
    "SELECT pg_advisory_lock(1685027439)",
    "SET lock_timeout = 0",
];
const POSTGRES_READER: &[&str] = &[
    "SET application_name = 'dozo search, reading'",
    POSTGRES_PLANS,
    "SET default_transaction_read_only = ON",
];

/// Which database, and so which words where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// Migrations are written once, in words of SQLite. PostgreSQL gets them with its own types, TEXT sorting byte by byte.
    /// Lines between `-- only sqlite` or `-- only postgres` and `-- both` are for one of them.
    fn of_migration(self, text: &str) -> String {
        let (mut is_ours, mut words) = (true, String::new());
        for line in text.lines() {
            match line {
                "-- only sqlite" => is_ours = self == Self::Sqlite,
                "-- only postgres" => is_ours = self == Self::Postgres,
                "-- both" => is_ours = true,
                _ if is_ours => words.extend([line, "\n"]),
                _ => {}
            }
        }
        match self {
            Self::Sqlite => words,
            Self::Postgres => words.replace("TEXT", "TEXT COLLATE \"C\"").replace("BLOB", "BYTEA"),
        }
    }

    fn migrator(self) -> Migrator {
        let in_our_words = |m: &Migration| Migration {
            sql: AssertSqlSafe(self.of_migration(m.sql.as_str())).into_sql_str(),
            ..m.clone()
        };
        let migrations: Vec<Migration> = MIGRATOR.iter().map(in_our_words).collect();
        Migrator { migrations: migrations.into(), ..Migrator::DEFAULT }
    }
}

/// Where the directory is kept.
#[derive(Debug, Clone)]
pub struct Location {
    options: AnyConnectOptions,
    dialect: Dialect,
    /// For the operator; without a password.
    name: String,
}

impl Location {
    /// The file `search.db` in `data_dir`, which is made if it is not there.
    pub fn in_folder(data_dir: &Path) -> Result<Self, StartError> {
        let path = data_dir.join(DATABASE_FILE);
        let name = path.display().to_string();
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            StartError::failed(format!("opening the database {name}"), e)
        };
        std::fs::create_dir_all(data_dir).map_err(|e| failed(e.into()))?;
        let text = path.to_str().ok_or_else(|| failed("its path is not UTF-8".into()))?;
        let encoded = common::client::encode(text);
        let options =
            format!("sqlite:{encoded}?mode=rwc").parse().map_err(|e: sqlx::Error| failed(e.into()))?;
        Ok(Self { options, dialect: Dialect::Sqlite, name })
    }

    /// A PostgreSQL database by its URL; the password, if not in it, from a file.
    pub fn at(url: &str, password_file: Option<&PathBuf>) -> Result<Self, StartError> {
        let what = "reading the address of search's database";
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| StartError::failed(what, e);
        let mut options: AnyConnectOptions = url.parse().map_err(|e: sqlx::Error| failed(e.into()))?;
        let url = &mut options.database_url;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            let scheme = url.scheme();
            return Err(failed(format!("`database` is {scheme}:…, not postgres://HOST/NAME").into()));
        }
        let mut public = url.clone();
        let _without_password = public.set_password(None);
        let name = public.to_string();
        if let Some(path) = password_file {
            let unread = |e: std::io::Error| failed(format!("{}: {e}", path.display()).into());
            let password = std::fs::read_to_string(path).map_err(unread)?;
            url.set_password(Some(password.trim_end()))
                .map_err(|()| failed("a password needs a host in `database`".into()))?;
        }
        Ok(Self { options, dialect: Dialect::Postgres, name })
    }
}

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: AnyPool,
    readers: AnyPool,
    pub dialect: Dialect,
}

impl Db {
    /// Opens the database and brings its schema up to date.
    pub async fn open(location: &Location) -> Result<Self, StartError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let what = format!("opening the database {}", location.name);
        let (for_writer, for_reader) = match location.dialect {
            Dialect::Sqlite => (SQLITE_WRITER, SQLITE_READER),
            Dialect::Postgres => (POSTGRES_WRITER, POSTGRES_READER),
        };
        // A writer that is let go would let its lock go.
        let writer = pool(1, for_writer).idle_timeout(None).max_lifetime(None);
        if location.dialect == Dialect::Postgres {
            check_no_other_writes(&location.options).await.map_err(|e| StartError::failed(&what, e))?;
        }
        let writer =
            writer.connect_with(location.options.clone()).await.map_err(|e| StartError::failed(&what, e))?;
        location.dialect.migrator().run(&writer).await.map_err(|e| StartError::failed(&what, e))?;
        let readers = pool(READERS, for_reader);
        let readers =
            readers.connect_with(location.options.clone()).await.map_err(|e| StartError::failed(&what, e))?;
        Ok(Self { writer, readers, dialect: location.dialect })
    }

    /// A transaction of the one writer; rolled back unless committed.
    pub async fn write(&self) -> Result<Transaction<'static, Any>, Failure> {
        Ok(self.writer.begin().await?)
    }

    pub async fn read(&self) -> Result<PoolConnection<Any>, Failure> {
        Ok(self.readers.acquire().await?)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Failure> {
        sqlx::query("SELECT epoch FROM map_state").fetch_one(&self.readers).await?;
        Ok(())
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Tells of another writer in words; the pool would only time out. One that has just stopped is waited for.
async fn check_no_other_writes(
    options: &AnyConnectOptions,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut conn = options.connect().await?;
    let begin = Instant::now();
    loop {
        let query = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(WRITER_LOCK);
        if query.fetch_one(&mut conn).await? {
            conn.close().await?;
            return Ok(());
        }
        if begin.elapsed() > STOP_TIME_MAX {
            return Err("another search server writes to it; stop that one first".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pool(connections: u32, settings: &'static [&'static str]) -> AnyPoolOptions {
    let options = AnyPoolOptions::new().max_connections(connections).acquire_timeout(2 * WAIT_MAX);
    options.after_connect(move |conn, _| {
        Box::pin(async move {
            for setting in settings {
                conn.execute(*setting).await?;
            }
            Ok(())
        })
    })
}

/// A version from its two columns.
pub fn version_of(time: i64, hash: &[u8]) -> Result<Version, Failure> {
    let hash: [u8; 32] = hash
        .try_into()
        .map_err(|_| sqlx::Error::Decode(format!("a hash has {} bytes, not 32", hash.len()).into()))?;
    Ok(Version { time: HybridTime(natural(time)), hash: ContentHash::from_bytes(hash) })
}
