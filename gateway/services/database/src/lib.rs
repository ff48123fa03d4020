//! Where a service keeps its rows: SQLite in a file, or PostgreSQL. Both are spoken to through sqlx's `Any` driver, so a
//! service has one text for both; what must be said twice is said here, or in its migrations.
//!
//! **One writer.** All that changes anything goes through one connection, on both databases, so transactions run one
//! after the other in the order they began. Readers go on meanwhile (WAL, MVCC) and cannot write.
//!
//! - SQLite: `synchronous = FULL` makes a commit durable before it is answered.
//! - PostgreSQL: the writer holds an advisory lock as long as it is connected. A second writer on the same database,
//!   started by mistake or as a standby, does not start; a writer that lost its connection writes again once the server
//!   has noticed and given the lock back. (A pooler in between must keep sessions.) `synchronous_commit = off` is not
//!   taken over from the server's settings: what is acknowledged must be durable.

pub mod backup;
mod insert;
#[cfg(feature = "testing")]
pub mod testing;

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use common::config::credential;
use common::server::StartError;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{
    Any, AnyConnection, AnyPool, AssertSqlSafe, ConnectOptions, Connection as _, Executor, SqlSafeStr,
    Transaction,
};

pub use insert::{Column, Insert, Value};

/// What statements are run on.
pub type Connection = AnyConnection;

/// What the connection of a server that was stopped may take to end.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);
/// Name of the password among systemd's credentials.
const CREDENTIAL: &str = "database-password";
const READERS: u32 = 4;
const WAIT_MAX: Duration = Duration::from_secs(10);

const SQLITE_WRITER: &[&str] = &[
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    // Without it REPLACE would delete rows past triggers that forbid it.
    "PRAGMA recursive_triggers = ON",
    // 64 MiB of pages; the log is written back every 32 MiB, so a page that many commits change is written once.
    "PRAGMA cache_size = -65536",
    "PRAGMA wal_autocheckpoint = 8192",
    "PRAGMA busy_timeout = 10000",
];
const SQLITE_READER: &[&str] =
    &["PRAGMA query_only = ON", "PRAGMA cache_size = -16384", "PRAGMA busy_timeout = 10000"];
/// Tables grow from nothing: a plan that is kept from when they were small reads all of them later.
const POSTGRES_PLANS: &str = "SET plan_cache_mode = force_custom_plan";
const POSTGRES_READER: &[&str] = &[POSTGRES_PLANS, "SET default_transaction_read_only = ON"];

/// Which database, and so which words where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// Migrations are written once, in words of SQLite. PostgreSQL gets them with its own types, TEXT sorting byte by byte,
    /// and without SQLite's options of tables. Lines between `-- only sqlite` or `-- only postgres` and `-- both` are for one of them.
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
            Self::Postgres => words
                .replace(") STRICT, WITHOUT ROWID;", ");")
                .replace(") STRICT;", ");")
                .replace(") WITHOUT ROWID;", ");")
                .replace("TEXT", "TEXT COLLATE \"C\"")
                .replace("BLOB", "BYTEA")
                .replace("INTEGER", "BIGINT"),
        }
    }

    fn migrator(self, migrations: &Migrator) -> Migrator {
        let in_our_words = |m: &Migration| Migration {
            sql: AssertSqlSafe(self.of_migration(m.sql.as_str())).into_sql_str(),
            ..m.clone()
        };
        let migrations: Vec<Migration> = migrations.iter().map(in_our_words).collect();
        Migrator { migrations: migrations.into(), ..Migrator::DEFAULT }
    }
}

/// Who opens a database.
#[derive(Clone, Copy)]
pub struct Owner {
    /// As in `dozo NAME`; names its sessions and its refusals.
    pub name: &'static str,
    pub migrations: &'static Migrator,
    /// Advisory lock of the one writer; such locks are of one PostgreSQL database.
    pub writer_lock: i64,
}

/// Where the rows are.
#[derive(Debug, Clone)]
pub struct Location {
    options: AnyConnectOptions,
    dialect: Dialect,
    /// For the operator; without a password.
    name: String,
}

impl Location {
    /// The file `file` in `folder`, which is made if it is not there.
    pub fn in_folder(folder: &Path, file: &str) -> Result<Self, StartError> {
        let path = folder.join(file);
        let name = path.display().to_string();
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            StartError::failed(format!("opening the database {name}"), e)
        };
        std::fs::create_dir_all(folder).map_err(|e| failed(e.into()))?;
        let text = path.to_str().ok_or_else(|| failed("its path is not UTF-8".into()))?;
        let encoded = common::client::encode(text);
        let options =
            format!("sqlite:{encoded}?mode=rwc").parse().map_err(|e: sqlx::Error| failed(e.into()))?;
        Ok(Self { options, dialect: Dialect::Sqlite, name })
    }

    /// A PostgreSQL database by its URL; the password, if not in it, from a file, or from systemd's credentials.
    pub fn at(url: &str, password_file: Option<&PathBuf>) -> Result<Self, StartError> {
        let what = "reading the address of the database";
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
        let by_systemd = url.password().is_none().then(|| credential(CREDENTIAL)).flatten();
        if let Some(path) = password_file.or(by_systemd.as_ref()) {
            let unread = |e: std::io::Error| failed(format!("{}: {e}", path.display()).into());
            let password = std::fs::read_to_string(path).map_err(unread)?;
            url.set_password(Some(password.trim_end()))
                .map_err(|()| failed("a password needs a host in `database`".into()))?;
        }
        Ok(Self { options, dialect: Dialect::Postgres, name })
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
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
    pub async fn open(location: &Location, owner: Owner) -> Result<Self, StartError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| {
            StartError::failed(format!("opening the database {}", location.name), e)
        };
        let for_writer = match location.dialect {
            Dialect::Sqlite => SQLITE_WRITER.iter().map(ToString::to_string).collect(),
            Dialect::Postgres => postgres_writer(owner),
        };
        let for_reader = match location.dialect {
            Dialect::Sqlite => SQLITE_READER,
            Dialect::Postgres => POSTGRES_READER,
        };
        // A writer that is let go would let its lock go.
        let writer = pool(1, for_writer).idle_timeout(None).max_lifetime(None);
        if location.dialect == Dialect::Postgres {
            check_no_other_writes(&location.options, owner).await.map_err(failed)?;
        }
        let writer = writer.connect_with(location.options.clone()).await.map_err(|e| failed(e.into()))?;
        location.dialect.migrator(owner.migrations).run(&writer).await.map_err(|e| failed(e.into()))?;
        let readers = pool(READERS, for_reader.iter().map(ToString::to_string).collect());
        let readers = readers.connect_with(location.options.clone()).await.map_err(|e| failed(e.into()))?;
        Ok(Self { writer, readers, dialect: location.dialect })
    }

    /// A transaction of the one writer; rolled back unless committed.
    pub async fn write(&self) -> Result<Transaction<'static, Any>, sqlx::Error> {
        self.writer.begin().await
    }

    pub async fn read(&self) -> Result<PoolConnection<Any>, sqlx::Error> {
        self.readers.acquire().await
    }

    /// Ends all connections in order: SQLite then moves its log into the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn postgres_writer(owner: Owner) -> Vec<String> {
    vec![
        format!("SET application_name = 'dozo {}'", owner.name),
        "SELECT set_config('synchronous_commit', 'on', FALSE) WHERE current_setting('synchronous_commit') = 'off'"
            .into(),
        POSTGRES_PLANS.into(),
        "SET lock_timeout = '5s'".into(),
        format!("SELECT pg_advisory_lock({})", owner.writer_lock),
        "SET lock_timeout = 0".into(),
    ]
}

/// Tells of another writer in words; the pool would only time out. One that has just stopped is waited for.
async fn check_no_other_writes(
    options: &AnyConnectOptions,
    owner: Owner,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut conn = options.connect().await?;
    let begin = Instant::now();
    loop {
        let query = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(owner.writer_lock);
        if query.fetch_one(&mut conn).await? {
            conn.close().await?;
            return Ok(());
        }
        if begin.elapsed() > STOP_TIME_MAX {
            let name = owner.name;
            return Err(format!("another {name} server writes to it; stop that one first").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pool(connections: u32, settings: Vec<String>) -> AnyPoolOptions {
    let options = AnyPoolOptions::new().max_connections(connections).acquire_timeout(WAIT_MAX);
    options.after_connect(move |conn, _| {
        let settings = settings.clone();
        Box::pin(async move {
            for setting in settings {
                // Made of constants alone.
                conn.execute(AssertSqlSafe(setting)).await?;
            }
            Ok(())
        })
    })
}
