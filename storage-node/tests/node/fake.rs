//! A search and two billing servers in one, small enough to be obviously right.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use common::api::billing::{BatchAnswer, RecordBatch};
use common::api::extract::{ApiJson, ApiQuery};
use common::api::search::{
    AnnounceAnswer, AnnounceBatch, Announcement, Announcer, Change, ChangePage, Fence, FenceRequest,
    FollowersChange, HandOver, Registered, Registration, SlotMove, Suspicion, SuspicionAnswer,
};
use common::cluster::{ClusterMap, MapEpoch, NodeEntry, NodeState, ServerEntry, ShardEntry, SiteEntry};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::RecordDigest;
use common::id::{NodeId, ServerName};
use common::placement::{SLOT_COUNT, Slot};
use common::record::ChainedRecord;
use common::time::UnixMillis;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub struct Books {
    fences: HashMap<Slot, u64>,
    next_fence: u64,
    epochs: HashMap<NodeId, (String, u64)>,
    pub announced: Vec<Announcement>,
    next_announcement: HashMap<(String, u64), u64>,
    pub records: BTreeMap<(NodeId, u64), Vec<ChainedRecord>>,
    pub billing_down: bool,
    /// Up to when a shard said that all is booked, each time.
    pub marks: Vec<(NodeId, u64, UnixMillis)>,
}

/// When search is to die.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Death {
    BeforeMove,
    /// Of which nobody hears.
    AfterMove,
}

pub struct Fake {
    pub url: String,
    /// Search does not answer; billing does.
    away: watch::Sender<bool>,
    death: Mutex<Option<Death>>,
    pub books: Mutex<Books>,
    pub map: watch::Sender<ClusterMap>,
    pub changes: watch::Sender<Vec<Change>>,
}

type Shared = State<Arc<Fake>>;

impl Fake {
    pub async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let billing = |name: &str| {
            let name = ServerName::new(name).unwrap();
            Some(ServerEntry { name, http: url.clone(), admin: String::new() })
        };
        let map = ClusterMap {
            epoch: MapEpoch(1),
            service_billing: billing("service-billing"),
            content_billing: billing("content-billing"),
            ..ClusterMap::default()
        };
        let (map, changes) = (watch::Sender::new(map), watch::Sender::new(Vec::new()));
        let (away, death) = (watch::Sender::new(false), Mutex::default());
        let fake = Arc::new(Self { url, away, death, books: Mutex::default(), map, changes });
        let search = Router::new()
            .route("/v1/servers", post(register))
            .route("/v1/map", get(map_after))
            .route("/v1/map/slots/fence", post(fence))
            .route("/v1/map/slots/move", post(move_slots))
            .route("/v1/map/shards/followers", post(change_followers))
            .route("/v1/map/shards/hand-over", post(hand_over))
            .route("/v1/nodes/suspect", post(suspect))
            .route("/v1/announcements", post(announce))
            .route("/v1/changes", get(changes_after))
            .layer(middleware::from_fn_with_state(fake.clone(), unless_away));
        let app = search.route("/v1/batches", post(book)).with_state(fake.clone());
        tokio::spawn(common::server::accept_loop(listener, app, CancellationToken::new()));
        fake
    }

    /// Search dies at the next move of slots.
    pub fn dies(&self, death: Death) {
        *self.death.lock().unwrap() = Some(death);
    }

    pub fn is_away(&self) -> bool {
        *self.away.borrow()
    }

    pub fn comes_back(&self) {
        *self.death.lock().unwrap() = None;
        self.away.send_replace(false);
    }

    pub fn owned(&self, node: &NodeId) -> usize {
        let map = self.map.borrow();
        map.sites.first().map_or(0, |site| site.slots_owned_by(node).count())
    }

    pub fn set_replicas(&self, replicas: u8) {
        self.change(|site| site.replicas = replicas);
    }

    /// Changes the site as search would.
    pub fn change(&self, change: impl FnOnce(&mut SiteEntry)) {
        self.map.send_modify(|map| {
            change(&mut map.sites[0]);
            map.epoch.0 += 1;
        });
    }

    /// What search does when a node is lost: the first follower that is there takes its place, and it follows nobody.
    pub fn lose(&self, node: &NodeId) {
        self.change(|site| {
            let lost = site.node_index(node).unwrap() as u16;
            site.nodes[usize::from(lost)].alive = false;
            let alive: Vec<bool> = site.nodes.iter().map(|n| n.alive).collect();
            for entry in site.nodes.iter_mut().map(|n| &mut n.shard) {
                entry.followers.retain(|follower| *follower != lost);
                let next = entry.followers.iter().position(|follower| alive[usize::from(*follower)]);
                if let Some(next) = next.filter(|_| entry.primary == lost) {
                    entry.primary = entry.followers.remove(next);
                    entry.term += 1;
                }
            }
        });
    }

    pub fn record_count(&self) -> usize {
        self.books.lock().unwrap().records.values().map(Vec::len).sum()
    }
}

async fn unless_away(State(fake): Shared, request: Request, next: Next) -> Response {
    let mut away = fake.away.subscribe();
    tokio::select! {
        biased;
        _away = away.wait_for(|away| *away) => is_away().into_response(),
        answer = next.run(request) => answer,
    }
}

fn is_away() -> ApiError {
    ApiError::new(ErrorCode::SearchUnavailable, "search is away")
}

async fn register(
    State(fake): Shared,
    ApiJson(registration): ApiJson<Registration>,
) -> ApiResult<ApiJson<Registered>> {
    let (site, facts) = (registration.site.unwrap(), registration.node.unwrap());
    let id = NodeId::of(&site, &registration.name);
    fake.map.send_if_modified(|map| {
        if map.site(&site).is_none() {
            map.sites.push(SiteEntry::new(site.clone()));
        }
        let entry = NodeEntry {
            id: id.clone(),
            http: registration.http.clone(),
            admin: registration.admin.clone(),
            state: NodeState::Active,
            alive: true,
            weight: 100,
            capacity_bytes: 100 << 30,
            shard: ShardEntry::default(),
        };
        let site = map.sites.iter_mut().find(|s| s.id == site).unwrap();
        let primary = site.nodes.iter().position(|n| n.id == id).unwrap_or(site.nodes.len()) as u16;
        let known = site.node(&id).map(|n| n.shard.clone());
        let shard = known.unwrap_or(ShardEntry { term: 1, primary, followers: Vec::new() });
        let entry = NodeEntry { shard, ..entry };
        match site.nodes.iter_mut().find(|n| n.id == id) {
            // What a test made of the node stays.
            Some(known) if known.alive && known.http == entry.http => return false,
            Some(known) => (known.alive, known.http, known.admin) = (true, entry.http, entry.admin),
            None => site.nodes.push(entry),
        }
        if site.slot_owners.is_empty() {
            site.slot_owners = vec![0; usize::from(SLOT_COUNT)];
        }
        map.epoch.0 += 1;
        true
    });
    let mut books = fake.books.lock().unwrap();
    let known = books.epochs.entry(id).or_insert_with(|| (facts.log_id.clone(), 1));
    if known.0 != facts.log_id {
        *known = (facts.log_id, known.1 + 1);
    }
    let record_epoch = Some(known.1);
    Ok(ApiJson(Registered { map_epoch: fake.map.borrow().epoch, record_epoch, heartbeat_ms: 200 }))
}

#[derive(serde::Deserialize)]
struct After {
    after: u64,
    wait_ms: u64,
}

async fn map_after(State(fake): Shared, ApiQuery(query): ApiQuery<After>) -> ApiJson<ClusterMap> {
    let mut map = fake.map.subscribe();
    let newer = map.wait_for(|map| map.epoch.0 > query.after);
    drop(tokio::time::timeout(Duration::from_millis(query.wait_ms), newer).await);
    let map = map.borrow().clone();
    ApiJson(map)
}

fn owned_by(map: &ClusterMap, site: &common::id::SiteId, owner: &NodeId, slots: &[Slot]) -> ApiResult<()> {
    let site = map.site(site).unwrap();
    let owns = |slot: &Slot| site.slot_owner(*slot).is_some_and(|n| &n.id == owner);
    if slots.iter().all(owns) { Ok(()) } else { Err(ApiError::new(ErrorCode::Conflict, "another owner")) }
}

async fn fence(State(fake): Shared, ApiJson(request): ApiJson<FenceRequest>) -> ApiResult<ApiJson<Fence>> {
    owned_by(&fake.map.borrow(), &request.site, &request.owner, &request.slots)?;
    let mut books = fake.books.lock().unwrap();
    books.next_fence += 1;
    let fence = books.next_fence;
    books.fences.extend(request.slots.iter().map(|slot| (*slot, fence)));
    Ok(ApiJson(Fence { fence }))
}

async fn move_slots(State(fake): Shared, ApiJson(step): ApiJson<SlotMove>) -> ApiResult<ApiJson<ClusterMap>> {
    let books = fake.books.lock().unwrap();
    owned_by(&fake.map.borrow(), &step.site, &step.from, &step.slots)?;
    if step.slots.iter().any(|slot| books.fences.get(slot) != Some(&step.fence)) {
        return Err(ApiError::new(ErrorCode::Conflict, "another fence"));
    }
    let death = fake.death.lock().unwrap().take();
    if death.is_some() {
        fake.away.send_replace(true);
    }
    if death == Some(Death::BeforeMove) {
        return Err(is_away());
    }
    fake.map.send_modify(|map| {
        let site = map.sites.iter_mut().find(|s| s.id == step.site).unwrap();
        let to = site.nodes.iter().position(|n| n.id == step.to).unwrap() as u16;
        step.slots.iter().for_each(|slot| site.slot_owners[usize::from(slot.0)] = to);
        map.epoch.0 += 1;
    });
    if death.is_some() {
        return Err(is_away());
    }
    Ok(ApiJson(fake.map.borrow().clone()))
}

async fn announce(State(fake): Shared, ApiJson(batch): ApiJson<AnnounceBatch>) -> ApiJson<AnnounceAnswer> {
    let Announcer::Node(node) = batch.announcer else { panic!("only nodes announce here") };
    let mut books = fake.books.lock().unwrap();
    let books = &mut *books;
    let next = books.next_announcement.entry((node.to_string(), batch.epoch)).or_insert(1);
    for (seq, item) in (batch.first_seq..).zip(batch.items) {
        if seq == *next {
            *next += 1;
            books.announced.push(item);
        }
    }
    ApiJson(AnnounceAnswer { next_seq: *next, resync: false })
}

async fn changes_after(State(fake): Shared, ApiQuery(query): ApiQuery<After>) -> ApiJson<ChangePage> {
    let mut changes = fake.changes.subscribe();
    let newer = changes.wait_for(|all| all.last().is_some_and(|change| change.seq > query.after));
    drop(tokio::time::timeout(Duration::from_millis(query.wait_ms), newer).await);
    let changes: Vec<Change> = changes.borrow().iter().filter(|c| c.seq > query.after).cloned().collect();
    let last = changes.last().map_or(query.after, |change| change.seq);
    ApiJson(ChangePage { changes, last })
}

/// Both billing servers: what one booked, the other sends again, as after a lost answer.
async fn book(State(fake): Shared, ApiJson(batch): ApiJson<RecordBatch>) -> ApiResult<ApiJson<BatchAnswer>> {
    let mut books = fake.books.lock().unwrap();
    if books.billing_down {
        return Err(ApiError::new(ErrorCode::Unavailable, "down"));
    }
    let (node, epoch) = (batch.node, batch.epoch);
    let booked = books.records.entry((node.clone(), epoch)).or_default();
    for record in batch.records {
        let previous = booked.last().map_or(RecordDigest::ZERO, |last| last.digest);
        if record.seq <= booked.len() as u64 {
            assert_eq!(booked[record.seq as usize - 1], record);
            continue;
        }
        if record.seq > booked.len() as u64 + 1 {
            return Ok(ApiJson(BatchAnswer::Gap { expected: booked.len() as u64 + 1 }));
        }
        record.check(&node, epoch, booked.len() as u64, &previous).unwrap();
        booked.push(record);
    }
    let through = booked.len() as u64;
    books.marks.extend(batch.passed.map(|passed| (node, epoch, passed)));
    Ok(ApiJson(BatchAnswer::Booked { through }))
}

/// The entry of a shard, if `primary` serves it in `term`.
fn entry_of<'a>(
    site: &'a mut SiteEntry,
    shard: &NodeId,
    primary: &NodeId,
    term: u64,
) -> Option<&'a mut ShardEntry> {
    let (primary, shard) = (site.node_index(primary)?, site.node_index(shard)?);
    let entry = &mut site.nodes[shard].shard;
    (usize::from(entry.primary) == primary && entry.term == term).then_some(entry)
}

fn conflict() -> ApiError {
    ApiError::new(ErrorCode::Conflict, "another primary or term")
}

async fn change_followers(
    State(fake): Shared,
    ApiJson(change): ApiJson<FollowersChange>,
) -> ApiResult<ApiJson<ClusterMap>> {
    let mut result = Ok(());
    fake.change(|site| {
        let index = |id: &NodeId| site.node_index(id).unwrap() as u16;
        let add: Vec<u16> = change.add.iter().map(index).collect();
        let remove: Vec<u16> = change.remove.iter().map(index).collect();
        let all_alive = add.iter().all(|index| site.nodes[usize::from(*index)].alive);
        match entry_of(site, &change.shard, &change.primary, change.term) {
            Some(entry) if all_alive => {
                entry.followers.retain(|follower| !remove.contains(follower) && !add.contains(follower));
                entry.followers.extend(add);
            }
            _ => result = Err(conflict()),
        }
    });
    result.map(|()| ApiJson(fake.map.borrow().clone()))
}

async fn hand_over(
    State(fake): Shared,
    ApiJson(request): ApiJson<HandOver>,
) -> ApiResult<ApiJson<ClusterMap>> {
    let mut result = Err(conflict());
    fake.change(|site| {
        let to = site.node_index(&request.to).unwrap() as u16;
        if let Some(entry) = entry_of(site, &request.shard, &request.primary, request.term)
            && let Some(place) = entry.followers.iter().position(|follower| *follower == to)
        {
            entry.followers[place] = std::mem::replace(&mut entry.primary, to);
            entry.term += 1;
            result = Ok(());
        }
    });
    result.map(|()| ApiJson(fake.map.borrow().clone()))
}

async fn suspect(
    State(fake): Shared,
    ApiJson(of): ApiJson<Suspicion>,
) -> ApiResult<ApiJson<SuspicionAnswer>> {
    let map = fake.map.borrow();
    let alive = map.sites[0].node(&of.node).is_some_and(|node| node.alive);
    Ok(ApiJson(SuspicionAnswer { alive }))
}
