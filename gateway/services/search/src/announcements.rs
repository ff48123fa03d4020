//! Announcements: batches of storage nodes and origins, applied exactly once and in order.
//!
//! Batches of many announcers that wait at the same time are applied in one transaction: they share its statements and its
//! sync. To each announcer it is as if its batch had been applied alone.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio::sync::{mpsc, oneshot};

use common::api::search::{AnnounceAnswer, AnnounceBatch, Announcement, Announcer};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::{BucketName, ClientId, NodeId};
use common::name::ContentName;
use common::version::Version;

use crate::buckets;
use crate::contents::{Content, Effect, Entries, Holder};
use crate::db::Connection;
use crate::error::{Failure, integer, natural};
use crate::server::App;
use crate::statements::{Table, select_in};
use crate::{slots, sweep};

const MEDIA_TYPE_LEN_MAX: usize = 255;
/// Most batches that wait, and that one transaction takes.
const WAITING_MAX: usize = 256;
/// A transaction that has so many announcements takes no further batch.
const GROUP_LEN_MAX: usize = 4096;

/// A batch and who waits for its answer.
pub struct Waiting {
    batch: AnnounceBatch,
    answer: oneshot::Sender<ApiResult<AnnounceAnswer>>,
}

/// Hands batches to the worker that applies them. Cheap to clone.
#[derive(Clone)]
pub struct Queue(mpsc::Sender<Waiting>);

impl Queue {
    pub fn new() -> (Self, mpsc::Receiver<Waiting>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Self(sender), receiver)
    }

    /// Applies a batch; it may be applied also if the caller goes away.
    pub async fn apply(&self, batch: AnnounceBatch) -> ApiResult<AnnounceAnswer> {
        let (answer, answered) = oneshot::channel();
        let stopping = || ApiError::new(ErrorCode::Draining, "search is stopping; announce again later");
        self.0.send(Waiting { batch, answer }).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

/// Applies batches as they come, for ever.
pub async fn work(app: App, mut queue: mpsc::Receiver<Waiting>) {
    while let Some(first) = queue.recv().await {
        let (mut len, mut group) = (first.batch.items.len(), vec![first]);
        while group.len() < WAITING_MAX
            && len < GROUP_LEN_MAX
            && let Ok(next) = queue.try_recv()
        {
            len += next.batch.items.len();
            group.push(next);
        }
        let (batches, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|waiting| (waiting.batch, waiting.answer)).unzip();
        match apply_group(&app, &batches).await {
            Ok(results) => {
                for (answer, result) in answers.into_iter().zip(results) {
                    let _gone = answer.send(result);
                }
            }
            Err(failure) => {
                let error = ApiError::from(failure);
                for answer in answers {
                    let _gone = answer.send(Err(error.clone()));
                }
            }
        }
    }
}

async fn apply_group(
    app: &App,
    batches: &[AnnounceBatch],
) -> Result<Vec<ApiResult<AnnounceAnswer>>, Failure> {
    let mut tx = app.db.write().await?;
    let Applied { answers, items, effect, sweeps, forgot } = apply(&mut tx, batches).await?;
    if items > 0 || forgot {
        tx.commit().await?;
        app.metrics.announcements.increment(items);
        app.publish_effect(effect);
        if sweeps {
            app.sweep_due.notify_one();
        }
    }
    Ok(answers)
}

/// What a group of batches did.
struct Applied {
    /// For each batch.
    answers: Vec<ApiResult<AnnounceAnswer>>,
    /// Announcements applied; those known before are not counted.
    items: u64,
    effect: Effect,
    /// Whether snapshots ended.
    sweeps: bool,
    /// Whether announcements were found to be lost here.
    forgot: bool,
}

/// How far an announcer is.
#[derive(Debug, Clone, Copy)]
struct Position {
    epoch: i64,
    next_seq: i64,
    /// Mark of the snapshot that it is sending; 0 for none.
    snapshot: i64,
    /// Whether it is asked for a snapshot: until one has ended that covers all its slots.
    resync: i64,
}

impl Default for Position {
    fn default() -> Self {
        Self { epoch: 0, next_seq: 1, snapshot: 0, resync: 0 }
    }
}

/// Applies the part of each batch that is new. A batch that leaves a gap changes nothing.
async fn apply(conn: &mut Connection, batches: &[AnnounceBatch]) -> Result<Applied, Failure> {
    let keys: Vec<String> = batches.iter().map(|batch| key_of(&batch.announcer)).collect();
    let mut positions = positions(conn, &keys).await?;
    let mut new_items = Vec::with_capacity(batches.len());
    let mut answers = Vec::with_capacity(batches.len());
    let forgot = batches.iter().zip(&keys).any(|(batch, key)| {
        let position = positions.get(key).copied().unwrap_or_default();
        is_node(key) && position.resync == 0 && is_gap(batch, &position)
    });
    if forgot {
        // What one node told is lost here, so what others told may be: perhaps of slots that are on the way between them.
        ask_all_for_snapshots(conn).await?;
        let nodes = positions.iter_mut().filter(|(key, _)| is_node(key));
        nodes.for_each(|(_, position)| position.resync = 1);
    }
    for (batch, key) in batches.iter().zip(&keys) {
        let position = positions.entry(key).or_default();
        let new = new_part(batch, key, position);
        answers.push(new.as_ref().map(|new| answer(position, new)).map_err(Clone::clone));
        new_items.push(new.unwrap_or_default());
    }
    let new = || batches.iter().zip(&keys).zip(&new_items);
    let items = new_items.iter().map(|items| items.len() as u64).sum();
    if items == 0 {
        return Ok(Applied { answers, items, effect: Effect::default(), sweeps: false, forgot });
    }
    let all = || new().flat_map(|((batch, _), items)| items.iter().map(move |item| (batch, item)));
    let names: BTreeSet<&ContentName> = all().filter_map(|(_, item)| name_of(item)).collect();
    let withdrawn: BTreeSet<&ContentName> = all()
        .filter(|(_, item)| matches!(item, Announcement::Withdraw { .. }))
        .filter_map(|(_, item)| name_of(item))
        .collect();
    let holders: BTreeSet<Holder> = new()
        .filter(|(_, items)| !items.is_empty())
        .map(|((batch, _), _)| holder_of(&batch.announcer))
        .collect();
    let providers = providers(conn, &names).await?;
    let mut entries = Entries::read(conn, &names, &holders, &withdrawn).await?;
    // What is told now is newer than all snapshots before, also those whose sweep is still to come.
    let mut mark = sweep::mark(conn).await?;
    let mut sweeps = false;
    for ((batch, key), items) in new() {
        let holder = holder_of(&batch.announcer);
        let Some(position) = positions.get_mut(key) else { continue };
        for item in *items {
            match item {
                Announcement::SnapshotBegin => {
                    mark = sweep::next_mark(conn).await?;
                    position.snapshot = mark;
                }
                Announcement::SnapshotEnd { slots } => {
                    if position.snapshot > 0 {
                        sweep::enqueue(conn, position.snapshot, &holder, slots).await?;
                        sweeps = true;
                        if let Announcer::Node(node) = &batch.announcer
                            && position.resync != 0
                            && slots::are_all_in(conn, node, slots).await?
                        {
                            position.resync = 0;
                        }
                    }
                    position.snapshot = 0;
                }
                Announcement::Hold { name, version, len, media_type, provider } => {
                    if !is_provider(&providers, name, provider) {
                        tracing::warn!(%name, %provider, ?holder, "announced with a provider that the bucket does not have; skipped");
                        continue;
                    }
                    let media_type = if media_type.len() <= MEDIA_TYPE_LEN_MAX { media_type } else { "" };
                    let content = Content {
                        version: *version,
                        len: integer(*len, "the content's length")?,
                        media_type: media_type.to_owned(),
                        provider: provider.to_string(),
                    };
                    entries.of(name).hold(&holder, content, mark);
                }
                Announcement::Release { name, version } => entries.of(name).release(&holder, *version),
                Announcement::Withdraw { name, version } => entries.of(name).withdraw(*version),
            }
        }
    }
    let effect = entries.write(conn).await?;
    write_positions(conn, &positions).await?;
    Ok(Applied { answers, items, effect, sweeps, forgot })
}

fn key_of(announcer: &Announcer) -> String {
    match announcer {
        Announcer::Node(node) => format!("node:{node}"),
        Announcer::Origin(name) => format!("origin:{name}"),
    }
}

/// Whether a key is a storage node's: of those snapshots are asked.
fn is_node(key: &str) -> bool {
    key.starts_with("node:")
}

fn holder_of(announcer: &Announcer) -> Holder {
    match announcer {
        Announcer::Node(node) => Holder::site(node.site()),
        Announcer::Origin(name) => Holder::origin(name.as_str()),
    }
}

fn answer(position: &Position, new: &[Announcement]) -> AnnounceAnswer {
    let begins = new.iter().any(|item| matches!(item, Announcement::SnapshotBegin));
    let asks = position.resync != 0 && position.snapshot == 0;
    AnnounceAnswer { next_seq: natural(position.next_seq), resync: asks && !begins }
}

/// Whether announcements before this batch are not known here.
fn is_gap(batch: &AnnounceBatch, position: &Position) -> bool {
    let next = if batch.epoch > natural(position.epoch) { 1 } else { natural(position.next_seq) };
    batch.first_seq > next
}

/// The announcements of a batch that are to be applied, and its announcer moved behind them. A higher epoch begins at 1
/// again.
fn new_part<'a>(
    batch: &'a AnnounceBatch,
    key: &str,
    position: &mut Position,
) -> Result<&'a [Announcement], ApiError> {
    let invalid = |message: String| ApiError::new(ErrorCode::InvalidRequest, message);
    let number = |value: u64, what: &str| integer(value, what).map_err(ApiError::from);
    let (epoch, first) = (number(batch.epoch, "epoch")?, number(batch.first_seq, "first_seq")?);
    if first == 0 {
        return Err(invalid("announcements are numbered from 1".to_owned()));
    }
    for item in &batch.items {
        check_numbers(item)?;
    }
    if epoch < position.epoch {
        let message =
            format!("{key} announces in epoch {epoch}, but has announced in epoch {} before", position.epoch);
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    if epoch > position.epoch {
        *position = Position { epoch, next_seq: 1, snapshot: 0, resync: position.resync };
    }
    if first > position.next_seq {
        return Ok(&[]);
    }
    let known = usize::try_from(position.next_seq - first).unwrap_or(usize::MAX);
    let new = batch.items.get(known..).unwrap_or_default();
    position.next_seq += i64::try_from(new.len()).unwrap_or(i64::MAX);
    Ok(new)
}

fn check_numbers(item: &Announcement) -> Result<(), ApiError> {
    let time = |version: &Version| integer(version.time.0, "the version's time").map(drop);
    match item {
        Announcement::Hold { version, len, .. } => {
            time(version)?;
            integer(*len, "the content's length").map(drop)?;
        }
        Announcement::Release { version, .. } | Announcement::Withdraw { version, .. } => time(version)?,
        Announcement::SnapshotBegin | Announcement::SnapshotEnd { .. } => {}
    }
    Ok(())
}

fn name_of(item: &Announcement) -> Option<&ContentName> {
    match item {
        Announcement::Hold { name, .. }
        | Announcement::Release { name, .. }
        | Announcement::Withdraw { name, .. } => Some(name),
        Announcement::SnapshotBegin | Announcement::SnapshotEnd { .. } => None,
    }
}

async fn positions<'a>(
    conn: &mut Connection,
    keys: &'a [String],
) -> Result<HashMap<&'a String, Position>, Failure> {
    let distinct: HashSet<&'a String> = keys.iter().collect();
    let texts: Vec<&str> = distinct.iter().map(|key| key.as_str()).collect();
    let select = "SELECT announcer, epoch, next_seq, snapshot, resync FROM announcers WHERE announcer";
    let rows: Vec<(String, i64, i64, i64, i64)> = select_in(conn, select, &[], &texts).await?;
    let known = rows.into_iter().filter_map(|(key, epoch, next_seq, snapshot, resync)| {
        Some((*distinct.get(&key)?, Position { epoch, next_seq, snapshot, resync }))
    });
    Ok(known.collect())
}

async fn write_positions(
    conn: &mut Connection,
    positions: &HashMap<&String, Position>,
) -> Result<(), Failure> {
    const ANNOUNCERS: Table<'_> = Table {
        insert: "INSERT INTO announcers (announcer, epoch, next_seq, snapshot, resync)",
        columns: 5,
        conflict:
            "ON CONFLICT (announcer) DO UPDATE SET epoch = excluded.epoch, next_seq = excluded.next_seq,
             snapshot = excluded.snapshot, resync = excluded.resync",
    };
    let rows: Vec<(&&String, &Position)> = positions.iter().filter(|(_, p)| p.next_seq > 1).collect();
    ANNOUNCERS
        .put(conn, &rows, |query, (key, position)| {
            let Position { epoch, next_seq, snapshot, resync } = **position;
            Ok(query.bind((**key).clone()).bind(epoch).bind(next_seq).bind(snapshot).bind(resync))
        })
        .await
}

/// Asks all nodes of a site that ever announced for snapshots; answers how many those are.
pub async fn ask_for_snapshots(conn: &mut Connection, site: &str) -> Result<u64, Failure> {
    // A site's name has none of the signs that LIKE treats specially.
    let done = sqlx::query("UPDATE announcers SET resync = 1 WHERE announcer LIKE $1")
        .bind(format!("node:{site}.%"))
        .execute(conn)
        .await?;
    Ok(done.rows_affected())
}

async fn ask_all_for_snapshots(conn: &mut Connection) -> Result<(), Failure> {
    sqlx::query("UPDATE announcers SET resync = 1 WHERE resync = 0 AND announcer LIKE 'node:%'")
        .execute(conn)
        .await?;
    Ok(())
}

/// Asks the new owner of slots for a snapshot if the owner before owes one: its own, that it may have sent already, did not
/// cover these slots, and the other one's will not.
pub async fn ask_after_move(conn: &mut Connection, from: &NodeId, to: &NodeId) -> Result<(), Failure> {
    sqlx::query(
        "INSERT INTO announcers (announcer, epoch, next_seq, snapshot, resync)
         SELECT CAST($1 AS TEXT), 0, 1, 0, 1
         WHERE NOT EXISTS (SELECT 1 FROM announcers WHERE announcer = $2 AND resync = 0 AND snapshot = 0)
         ON CONFLICT (announcer) DO UPDATE SET resync = 1",
    )
    .bind(format!("node:{to}"))
    .bind(format!("node:{from}"))
    .execute(conn)
    .await?;
    Ok(())
}

/// Providers of the buckets that contents are in.
type Providers = HashMap<BucketName, ClientId>;

async fn providers(conn: &mut Connection, names: &BTreeSet<&ContentName>) -> Result<Providers, Failure> {
    let mut providers = Providers::new();
    let buckets: HashSet<BucketName> = names.iter().map(|name| name.bucket_name()).collect();
    for bucket in buckets {
        if let Some(record) = buckets::find(conn, &bucket).await? {
            providers.insert(bucket, record.provider);
        }
    }
    Ok(providers)
}

/// Whoever is named as provider is paid, so an announcement cannot name another than the bucket's.
fn is_provider(providers: &Providers, name: &ContentName, claimed: &ClientId) -> bool {
    providers.get(&name.bucket_name()).is_none_or(|provider| provider == claimed)
}
