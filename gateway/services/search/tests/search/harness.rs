//! A search server on a temporary directory, and short ways to write the values it takes.

use std::path::Path;
use std::time::Duration;

use common::api::search::{
    AnnounceBatch, Announcement, Announcer, FollowersChange, NewBucket, NewClient, NodeFacts, Registration,
    SearchClient, Visibility,
};
use common::auth::{ClusterSecret, Role};
use common::client::{CallError, HttpClient, ServerClient};
use common::cluster::{MapEpoch, MapId, SiteEntry};
use common::error::ErrorCode;
use common::hash::ContentHash;
use common::server::Running;
use common::time::Clock;
use common::version::{HybridTime, Version};

pub const SECRET: &str = "a cluster secret for tests, long enough";
/// Long enough that nothing waits for it, short enough to fail soon.
pub const SOON: Duration = Duration::from_secs(20);
pub const AT_ONCE: Duration = Duration::ZERO;

pub struct TestSearch {
    pub dir: tempfile::TempDir,
    pub running: Running,
    pub client: SearchClient,
}

pub fn secret() -> ClusterSecret {
    ClusterSecret::new(SECRET).unwrap()
}

pub fn config(dir: &Path, lease_ms: u64) -> search::Config {
    let any_port = ([127, 0, 0, 1], 0).into();
    search::Config {
        lease_ms,
        heartbeat_ms: 50,
        database: crate::database(dir),
        ..search::Config::in_folder(any_port, any_port, dir.to_owned())
    }
}

pub async fn start(config: search::Config) -> Running {
    search::start(config, secret()).await.unwrap_or_else(|e| panic!("{}", common::error::chain(&e)))
}

pub async fn start_in(dir: &Path, lease_ms: u64) -> Running {
    start(config(dir, lease_ms)).await
}

pub fn client_of(running: &Running) -> SearchClient {
    let server = ServerClient::new(HttpClient::new(), secret(), "test", Clock::System);
    SearchClient::new(server, &running.http)
}

impl TestSearch {
    pub async fn new() -> Self {
        Self::with_lease(600_000).await
    }

    pub async fn with_lease(lease_ms: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = start_in(dir.path(), lease_ms).await;
        let client = client_of(&running);
        Self { dir, running, client }
    }

    pub async fn restart(self) -> Self {
        let Self { dir, running, .. } = self;
        running.stop().await;
        let running = start_in(dir.path(), 600_000).await;
        let client = client_of(&running);
        Self { dir, running, client }
    }

    /// Site `tokyo`, client `alice` there, public bucket `alice`.
    pub async fn with_alice(self) -> Self {
        self.client.register(&gateway("tokyo", "g1")).await.unwrap();
        let alice = NewClient { client: id("alice"), site: id("tokyo") };
        self.client.create_client(&alice).await.unwrap();
        let bucket = NewBucket { provider: id("alice"), visibility: Visibility::Public };
        self.client.put_bucket(&id("alice"), &bucket).await.unwrap();
        self
    }

    pub async fn epoch(&self) -> MapEpoch {
        self.client.map(MapEpoch(0), AT_ONCE).await.unwrap().epoch
    }

    /// Announces as a node in its first epoch; panics unless all is taken.
    pub async fn announce(&self, node: &str, first_seq: u64, items: Vec<Announcement>) {
        let next = first_seq + items.len() as u64;
        let answer = self.client.announce(&batch(node, 1, first_seq, items)).await.unwrap();
        assert_eq!(answer.next_seq, next);
    }
}

pub fn id<T: std::str::FromStr<Err = common::id::InvalidId>>(text: &str) -> T {
    text.parse().unwrap()
}

pub fn gateway(site: &str, name: &str) -> Registration {
    Registration {
        role: Role::Gateway,
        name: id(name),
        site: Some(id(site)),
        zone: None,
        // Nobody listens there.
        http: format!("http://127.0.0.1:1/{site}-{name}"),
        s3: None,
        admin: "http://127.0.0.1:81".into(),
        node: None,
    }
}

pub fn node(site: &str, name: &str, log_id: &str, capacity_gib: u64) -> Registration {
    let facts = NodeFacts {
        log_id: log_id.into(),
        capacity_bytes: capacity_gib << 30,
        used_bytes: 7,
        map: MapId::default(),
        record_epoch: 0,
    };
    Registration { role: Role::StorageNode, node: Some(facts), ..gateway(site, name) }
}

pub fn origin(name: &str) -> Registration {
    Registration { role: Role::Origin, site: None, ..gateway("x", name) }
}

pub fn version(time: u64) -> Version {
    Version { time: HybridTime(time), hash: ContentHash::of(&time.to_le_bytes()) }
}

pub fn hold(name: &str, time: u64) -> Announcement {
    Announcement::Hold {
        name: id(name),
        version: version(time),
        len: 10 + time,
        media_type: "text/plain".into(),
        provider: id("alice"),
    }
}

pub fn release(name: &str, time: u64) -> Announcement {
    Announcement::Release { name: id(name), version: version(time) }
}

pub fn withdraw(name: &str, time: u64) -> Announcement {
    Announcement::Withdraw { name: id(name), version: version(time) }
}

pub fn batch(node: &str, epoch: u64, first_seq: u64, items: Vec<Announcement>) -> AnnounceBatch {
    AnnounceBatch { announcer: Announcer::Node(id(node)), epoch, first_seq, items }
}

#[track_caller]
pub fn assert_code<T: std::fmt::Debug>(result: Result<T, CallError>, code: ErrorCode) {
    let error = result.expect_err("the call should be refused");
    assert_eq!(error.code(), Some(code), "{error}");
}

impl TestSearch {
    /// Site `tokyo` with nodes of 1 GiB each.
    pub async fn with_nodes(self, names: &[&str]) -> Self {
        for name in names {
            self.client.register(&node("tokyo", name, name, 1)).await.unwrap();
        }
        self
    }

    pub async fn tokyo(&self) -> SiteEntry {
        self.client.map(MapEpoch(0), AT_ONCE).await.unwrap().site(&id("tokyo")).unwrap().clone()
    }

    /// Says that a node cannot be reached. The addresses of [`node`] answer nothing, so it is down after
    /// this.
    pub async fn lose(&self, node: &str) {
        assert!(!self.client.suspect(&id(node)).await.unwrap().alive);
    }

    /// Lets nodes follow a shard of `tokyo`, asked by its present primary.
    pub async fn follow(&self, shard: &str, followers: &[&str]) -> SiteEntry {
        let site = self.tokyo().await;
        let primary = site.shard_primary(&id(shard)).unwrap().id.clone();
        let change = FollowersChange {
            site: id("tokyo"),
            shard: id(shard),
            primary,
            term: site.node(&id(shard)).unwrap().shard.term,
            add: followers.iter().map(|name| id(name)).collect(),
            remove: Vec::new(),
        };
        let map = self.client.change_followers(&change).await.unwrap();
        map.site(&id("tokyo")).unwrap().clone()
    }
}

/// Term, primary and followers of a shard, nodes by name.
pub fn shard_of<'a>(site: &'a SiteEntry, shard: &str) -> (u64, &'a str, Vec<&'a str>) {
    let name = |index: &u16| site.nodes[usize::from(*index)].id.name();
    let shard = &site.node(&id(shard)).unwrap().shard;
    (shard.term, name(&shard.primary), shard.followers.iter().map(name).collect())
}
