use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::api::node::{BeginAnswer, EndRequest};
use common::hash::{ChunkHash, ContentHash, PossessionProof};
use common::id::{DeliveryId, SiteId};
use common::manifest::{ChunkList, ChunkRef, Manifest};
use common::possession::Possession;
use common::record::{ChainedRecord, DeliveryStatus, RecordNumber};
use common::telemetry::MetricsRegistry;
use common::version::{HybridTime, Version};
use proptest::prelude::*;

use super::*;
use crate::catalog::Catalog;
use crate::deliveries::{Recorder, set_epoch};
use crate::{holdings, store};

const WINDOW: Duration = Duration::from_secs(60);

struct Fixture {
    catalog: Catalog,
    _dir: tempfile::TempDir,
}

fn name() -> ContentName {
    "alice/film".parse().unwrap()
}

fn client(n: u8) -> ClientId {
    ClientId::new(&format!("client-{n}")).unwrap()
}

fn shard() -> NodeId {
    NodeId::new("tokyo.n1").unwrap()
}

fn manifest(version: u8) -> Manifest {
    let chunk = ChunkRef { hash: ChunkHash::of(&[version]), len: 100 };
    Manifest {
        hash: ContentHash::of(&[version]),
        len: 100,
        media_type: "video/mp4".into(),
        metadata: BTreeMap::new(),
        chunks: ChunkList::Inline(vec![chunk]),
    }
}

fn request(who: u8, version: u8, tag: u64, expires: u64) -> KeepRequest {
    let manifest = manifest(version);
    let possession = Possession {
        home: SiteId::new("osaka").unwrap(),
        surrogate: SiteId::new("tokyo").unwrap(),
        mobile_access: None,
        client: client(who),
        name: name(),
        version: Version { time: HybridTime(u64::from(version)), hash: manifest.hash },
        provider: ClientId::new("alice").unwrap(),
        begin: None,
        issued: UnixMillis(0),
        expires: UnixMillis(expires),
    };
    KeepRequest { possession, manifest, proof: PossessionProof::of(b"home said so"), ref_tag: RefTag(tag) }
}

fn away(n: u8, who: u8, tag: RefTag, range_start: u64) -> BeginAwayRequest {
    let delivery = DeliveryId::from_bytes([n; 16]);
    BeginAwayRequest {
        delivery,
        client: client(who),
        name: name(),
        ref_tag: tag,
        range_start,
        mobile_access: None,
    }
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = store::open(&"memory:".parse().unwrap(), Path::new("/nowhere"), &MetricsRegistry::new())
            .await
            .unwrap();
        let catalog = Catalog::open(dir.path(), opened.log, &opened.log_id, 1 << 20).await.unwrap();
        catalog.commit(|txn| set_epoch(txn, 1)).await.unwrap();
        Self { catalog, _dir: dir }
    }

    async fn keep(&self, request: KeepRequest, now: u64) -> KeepAnswer {
        self.catalog.commit(move |txn| keep(txn, &request, UnixMillis(now))).await.unwrap()
    }

    async fn complete(&self, tag: RefTag) -> bool {
        let request = CompleteRequest { name: name(), ref_tag: tag };
        self.catalog.commit(move |txn| complete(txn, &request)).await.unwrap()
    }

    async fn begin(&self, request: BeginAwayRequest, now: u64) -> ApiResult<Begun> {
        let begin = move |txn: &mut Txn<'_>| begin_away(txn, &request, &shard(), WINDOW, UnixMillis(now));
        self.catalog.commit(begin).await
    }

    async fn pass(&self, now: u64) {
        let mut visitors = Vec::new();
        self.scan(Tag::Visitor, |key, _| {
            let (name, tag, client) = key::tally_of(key).unwrap();
            visitors.push((name, tag, ClientId::new(client).unwrap()));
        });
        let now = UnixMillis(now);
        let expire = move |txn: &mut Txn<'_>| {
            visitors.iter().try_for_each(|(name, tag, c)| expire_visitor(txn, name, *tag, c, now).map(drop))
        };
        self.catalog.commit(expire).await.unwrap();
    }

    fn kept(&self, who: u8, now: u64) -> Option<Kept> {
        self.catalog.read(|rows| kept(rows, &name(), &client(who), UnixMillis(now))).unwrap()
    }

    fn listed(&self, after: Option<(ContentName, ClientId)>, max: usize, now: u64) -> Vec<TemporaryContent> {
        let (slot, mut found) = (Slot::of_name(&name()), Vec::new());
        let now = UnixMillis(now);
        self.catalog.read(|rows| list(rows, slot, None, after.as_ref(), max, now, &mut found)).unwrap();
        found
    }

    fn scan(&self, tag: Tag, mut visit: impl FnMut(&[u8], &[u8])) {
        let scan = |rows: &crate::catalog::txn::Reader| {
            rows.scan(&key::all(tag), &mut |key, value| {
                visit(key, value);
                Ok(ControlFlow::Continue(()))
            })
        };
        self.catalog.read(scan).unwrap();
    }

    fn tags(&self, tag: Tag) -> BTreeSet<RefTag> {
        let mut tags = BTreeSet::new();
        self.scan(tag, |key, value| {
            tags.insert(match tag {
                Tag::Reap => ReapValue::decode(value).unwrap().ref_tag,
                _ => key::tally_of(key).unwrap().1,
            });
        });
        tags
    }
}

#[derive(Debug, Clone)]
enum Op {
    Keep { client: u8, version: u8, for_ms: u64 },
    Complete { version: u8 },
    Begin { client: u8 },
    Pass { ms: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3u8, 0..2u8, 1..60u64).prop_map(|(client, version, for_ms)| Op::Keep { client, version, for_ms }),
        2 => (0..2u8).prop_map(|version| Op::Complete { version }),
        2 => (0..3u8).prop_map(|client| Op::Begin { client }),
        3 => (1..40u64).prop_map(|ms| Op::Pass { ms }),
    ]
}

/// Slow and obvious: who has what until when, and what is there for it.
#[derive(Default)]
struct Model {
    /// By client: version and expiry.
    visitors: BTreeMap<u8, (u8, u64)>,
    /// By version: tag, and whether it is whole.
    contents: BTreeMap<u8, (RefTag, bool)>,
    reaped: BTreeSet<RefTag>,
}

impl Model {
    fn tidy(&mut self) {
        let used: BTreeSet<u8> = self.visitors.values().map(|(version, _)| *version).collect();
        self.contents.retain(|version, (tag, _)| {
            let stays = used.contains(version);
            if !stays {
                self.reaped.insert(*tag);
            }
            stays
        });
    }
}

async fn run(ops: Vec<Op>) {
    let (fixture, mut model, mut now) = (Fixture::new().await, Model::default(), 1000);
    for (n, op) in (1u8..).zip(ops) {
        match op {
            Op::Keep { client, version, for_ms } => {
                let kept = fixture.keep(request(client, version, u64::from(n), now + for_ms), now).await;
                let known = model.visitors.get(&client).copied();
                let until = match known {
                    Some((same, until)) if same == version => until.max(now + for_ms),
                    _ => now + for_ms,
                };
                model.visitors.insert(client, (version, until));
                let content = model.contents.entry(version).or_insert((RefTag(u64::from(n)), false));
                assert_eq!((kept.ref_tag, kept.complete), *content);
                model.tidy();
            }
            Op::Complete { version } => {
                let Some(content) = model.contents.get_mut(&version) else { continue };
                content.1 = true;
                assert!(fixture.complete(content.0).await);
            }
            Op::Begin { client } => {
                let kept = fixture.kept(client, now);
                let tag = kept.as_ref().map_or(RefTag(0), |kept| kept.ref_tag);
                let begun = fixture.begin(away(n, client, tag, 0), now).await;
                assert_eq!(begun.is_ok(), kept.is_some_and(|kept| kept.complete), "{begun:?}");
            }
            Op::Pass { ms } => {
                now += ms;
                fixture.pass(now).await;
                model.visitors.retain(|_, (_, until)| *until > now);
                model.tidy();
            }
        }
        for client in 0..3 {
            let expected = model.visitors.get(&client).map(|(version, until)| {
                let (tag, complete) = model.contents[version];
                (manifest(*version), UnixMillis(*until), tag, complete)
            });
            let kept = fixture.kept(client, now);
            assert_eq!(kept.map(|k| (k.manifest, k.possession.expires, k.ref_tag, k.complete)), expected);
        }
        let there: BTreeSet<RefTag> = model.contents.values().map(|(tag, _)| *tag).collect();
        assert_eq!(fixture.tags(Tag::Temporary), there);
        assert_eq!(fixture.tags(Tag::Reap), model.reaped, "what goes is given back, once");
        for tag in &there {
            assert!(fixture.catalog.read(|rows| holdings::needs_ref(rows, &name(), *tag)).unwrap());
        }
        let all = fixture.listed(None, 100, now);
        assert_eq!(all.len(), model.visitors.len());
        let mut paged: Vec<TemporaryContent> = Vec::new();
        while let [one] =
            &fixture.listed(paged.last().map(|l| (l.name.clone(), l.client.clone())), 1, now)[..]
        {
            paged.push(one.clone());
        }
        assert_eq!(paged, all, "page by page as at once");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn contents_are_kept_for_visitors_until_they_expire_after_any_history(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(ops));
    }
}

#[tokio::test]
async fn a_delivery_while_home_is_away_is_a_reference_and_its_record_names_home_and_surrogate() {
    let fixture = Fixture::new().await;
    let tag = fixture.keep(request(0, 1, 7, 5000), 1000).await.ref_tag;
    let refused = fixture.begin(away(1, 0, tag, 0), 1000).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ContentNotFound, "not while parts may be missing");
    fixture.complete(tag).await;
    let begun = fixture.begin(away(1, 0, tag, 0), 1000).await.unwrap();
    assert_eq!((begun.class, begun.opened), (DeliveryClass::Reference, true));
    let again = fixture.begin(away(1, 0, tag, 0), 1001).await.unwrap();
    assert_eq!((again.delivery, again.opened), (begun.delivery, false), "the answer was lost");
    let later = fixture.begin(away(2, 0, tag, 40), 1002).await.unwrap();
    assert_eq!(later.delivery, begun.delivery, "a later range joins");
    let other = fixture.begin(away(3, 1, tag, 0), 1003).await.unwrap_err();
    assert_eq!(other.code, ErrorCode::ContentNotFound, "it is kept for others alone");
    let expired = fixture.begin(away(4, 0, tag, 0), 5000).await.unwrap_err();
    assert_eq!(expired.code, ErrorCode::ContentNotFound);
    let recorder = Recorder { node: shard(), home: SiteId::new("tokyo").unwrap() };
    for (request, bytes_sent) in [(1, 40), (2, 60)] {
        let (delivery, request) = (begun.delivery, DeliveryId::from_bytes([request; 16]));
        let (end, recorder) = (EndRequest { delivery, request, bytes_sent }, recorder.clone());
        let end = move |txn: &mut Txn<'_>| deliveries::end(txn, &recorder, &end, UnixMillis(1010));
        fixture.catalog.commit(end).await.unwrap();
    }
    let number = Key::Record(RecordNumber { epoch: 1, seq: 1 });
    let record = fixture.catalog.read(|rows| rows.get::<ChainedRecord>(number)).unwrap().unwrap().record;
    assert_eq!((record.home.as_str(), record.status), ("osaka", DeliveryStatus::Complete));
    assert_eq!(record.surrogate.unwrap().as_str(), "tokyo");
    let library = Key::Library(&client(0), &name());
    assert!(!fixture.catalog.read(|rows| rows.has(library)).unwrap(), "the library is at home");
}

#[tokio::test]
async fn a_confirmation_that_comes_late_shortens_nothing() {
    let fixture = Fixture::new().await;
    fixture.keep(request(0, 1, 7, 5000), 1000).await;
    let begin = BeginAnswer {
        delivery: DeliveryId::from_bytes([1; 16]),
        class: DeliveryClass::Purchase,
        shard: shard(),
    };
    let mut older = request(0, 1, 8, 4000);
    older.possession.begin = Some(begin);
    fixture.keep(older, 1001).await;
    assert_eq!(fixture.kept(0, 1001).unwrap().possession, request(0, 1, 7, 5000).possession);
}
