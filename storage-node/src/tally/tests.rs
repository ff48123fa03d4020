use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::api::node::{
    Account, AddRequest, BeginRequest, DropRequest, EndRequest, HoldRequest, HoldingState, Precondition,
    Quota, ReleaseRequest,
};
use common::api::temporary::{CompleteRequest, KeepRequest};
use common::hash::{ContentHash, PossessionProof};
use common::id::{DeliveryId, NodeId, SiteId};
use common::manifest::{ChunkList, Manifest};
use common::placement::SLOT_COUNT;
use common::possession::Possession;
use common::record::DeliveryPath;
use common::telemetry::MetricsRegistry;
use common::time::UnixMillis;
use common::version::{HybridTime, Version};
use proptest::prelude::*;

use super::*;
use crate::catalog::Catalog;
use crate::catalog::rows::{LibraryValue, TemporaryValue};
use crate::deliveries::{self, Joining, Recorder};
use crate::{holdings, library, store, temporary};

const CLIENTS: u8 = 3;
const NAMES: u8 = 3;

fn client(n: u8) -> ClientId {
    ClientId::new(&format!("client-{n}")).unwrap()
}

fn name(n: u8) -> ContentName {
    format!("bucket/n{n}").parse().unwrap()
}

/// A chunk and its length, made up.
fn chunk(n: u8) -> ChunkRef {
    ChunkRef { hash: ChunkHash::of(&[n]), len: 10 + u32::from(n) }
}

#[derive(Debug, Clone)]
enum Op {
    /// A publication of client 0: these chunks.
    Put {
        name: u8,
        chunks: Vec<u8>,
    },
    /// A collection of what somebody else provides, complete at once or later.
    Collect {
        name: u8,
        chunks: Vec<u8>,
    },
    Complete {
        name: u8,
    },
    Get {
        name: u8,
        client: u8,
        /// Nothing was sent: the purchase is taken back.
        void: bool,
    },
    Drop {
        name: u8,
        client: u8,
    },
    Withdraw {
        name: u8,
    },
    /// A visitor's home confirmed it a content of these chunks.
    Keep {
        name: u8,
        client: u8,
        chunks: Vec<u8>,
    },
    /// All temporary contents of the name are whole.
    CompleteKept {
        name: u8,
    },
    /// What was kept for visitors until now goes.
    Expire,
    /// Everything that is due is sent.
    Drain,
    /// What is due is sent, after a change that came meanwhile, or with the answer lost.
    SendLate {
        lost: bool,
        meanwhile: Box<Op>,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let chunks = || prop::collection::vec(0..6u8, 0..4);
    let simple = prop_oneof![
        3 => (0..NAMES, chunks()).prop_map(|(name, chunks)| Op::Put { name, chunks }),
        1 => (0..NAMES, chunks()).prop_map(|(name, chunks)| Op::Collect { name, chunks }),
        1 => (0..NAMES).prop_map(|name| Op::Complete { name }),
        4 => (0..NAMES, 1..CLIENTS, any::<bool>()).prop_map(|(name, client, void)| Op::Get { name, client, void }),
        3 => (0..NAMES, 0..CLIENTS).prop_map(|(name, client)| Op::Drop { name, client }),
        1 => (0..NAMES).prop_map(|name| Op::Withdraw { name }),
        3 => (0..NAMES, 0..CLIENTS, chunks()).prop_map(|(name, client, chunks)| Op::Keep { name, client, chunks }),
        2 => (0..NAMES).prop_map(|name| Op::CompleteKept { name }),
        1 => Just(Op::Expire),
        1 => Just(Op::Drain),
    ];
    let simple = simple.boxed();
    let late = (any::<bool>(), simple.clone())
        .prop_map(|(lost, meanwhile)| Op::SendLate { lost, meanwhile: Box::new(meanwhile) });
    prop_oneof![5 => simple, 2 => late]
}

struct Site {
    catalog: Catalog,
    now: u64,
    _dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = store::open(&"memory:".parse().unwrap(), Path::new("/nowhere"), &MetricsRegistry::new())
            .await
            .unwrap();
        let catalog = Catalog::open(dir.path(), opened.log, &opened.log_id, 1 << 20).await.unwrap();
        Self { catalog, now: 1000, _dir: dir }
    }

    async fn commit<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Txn<'_>) -> ApiResult<T> + Send + 'static,
    ) -> T {
        self.catalog.commit(change).await.unwrap()
    }

    async fn run(&mut self, op: Op) {
        self.now += 1;
        let now = UnixMillis(self.now);
        match op {
            Op::Put { name, chunks } => {
                let hold = self.hold(name, &chunks, HoldingState::Complete, None);
                self.commit(move |txn| {
                    holdings::hold(txn, &hold, now)?;
                    let add = AddRequest {
                        client: hold.provider,
                        name: hold.name,
                        hash: hold.manifest.hash,
                        len: hold.manifest.len,
                        provider: client(0),
                        quota: Quota::default(),
                    };
                    library::add(txn, &add, now, true)
                })
                .await;
            }
            Op::Collect { name, chunks } => {
                let time = Some(HybridTime::next(now, None));
                let hold = self.hold(name, &chunks, HoldingState::Collecting, time);
                self.commit(move |txn| holdings::hold(txn, &hold, now)).await;
            }
            Op::Complete { name } => {
                let Some(holding) = self.holding(name) else { return };
                let hold = HoldRequest {
                    manifest: holding.manifest,
                    ref_tag: holding.ref_tag,
                    ..self.hold(name, &[], HoldingState::Complete, Some(holding.version.time))
                };
                self.commit(move |txn| holdings::hold(txn, &hold, now)).await;
            }
            Op::Get { name, client, void } => self.get(name, client, void).await,
            Op::Drop { name: n, client: c } => {
                let (drop, release) = (DropRequest { client: client(c), name: name(n) }, release(n, c));
                self.commit(move |txn| {
                    library::drop_row(txn, &drop)?;
                    holdings::release(txn, &release)
                })
                .await;
            }
            Op::Withdraw { name: n } => {
                let (drop, release) = (DropRequest { client: client(0), name: name(n) }, release(n, 0));
                self.commit(move |txn| {
                    holdings::withdraw(txn, &release)?;
                    library::drop_row(txn, &drop)
                })
                .await;
            }
            Op::Keep { name, client, chunks } => self.keep(name, client, &chunks).await,
            Op::CompleteKept { name: n } => {
                for (tag, _) in self.kept(n) {
                    let request = CompleteRequest { name: name(n), ref_tag: tag };
                    self.commit(move |txn| temporary::complete(txn, &request)).await;
                }
            }
            Op::Expire => {
                for n in 0..NAMES {
                    for (tag, _) in self.kept(n) {
                        for c in 0..CLIENTS {
                            self.commit(move |txn| temporary::leave(txn, &name(n), tag, &client(c))).await;
                        }
                    }
                }
            }
            Op::Drain => self.drain().await,
            Op::SendLate { lost, meanwhile } => {
                let jobs = self.jobs();
                Box::pin(self.run(*meanwhile)).await;
                self.send(&jobs).await;
                if !lost {
                    self.settle(jobs).await;
                }
            }
        }
    }

    fn hold(&self, n: u8, chunks: &[u8], state: HoldingState, time: Option<HybridTime>) -> HoldRequest {
        let chunks: Vec<ChunkRef> = chunks.iter().map(|n| chunk(*n)).collect();
        HoldRequest {
            name: name(n),
            manifest: Manifest {
                hash: ContentHash::of(&self.now.to_le_bytes()),
                len: chunks.iter().map(|chunk| u64::from(chunk.len)).sum(),
                media_type: "text/plain".into(),
                metadata: BTreeMap::new(),
                chunks: ChunkList::Inline(chunks),
            },
            provider: client(0),
            state,
            ref_tag: RefTag(self.now),
            version_time: time,
            client: time.is_none().then(|| client(0)),
            add_to_library: time.is_none(),
            quota: Quota::default(),
            precondition: Precondition::None,
            announce_wait_ms: 0,
        }
    }

    async fn keep(&self, n: u8, who: u8, chunks: &[u8]) {
        let hold = self.hold(n, chunks, HoldingState::Complete, None);
        // Equal chunks are the same version, so that visitors share it.
        let hash = ContentHash::of(chunks);
        let manifest = Manifest { hash, ..hold.manifest };
        let possession = Possession {
            home: SiteId::new("osaka").unwrap(),
            surrogate: SiteId::new("tokyo").unwrap(),
            mobile_access: None,
            client: client(who),
            name: name(n),
            version: Version { time: HybridTime(1), hash },
            provider: client(0),
            begin: None,
            issued: UnixMillis(0),
            expires: UnixMillis(u64::MAX),
        };
        let proof = PossessionProof::of(b"home");
        let keep = KeepRequest { possession, manifest, proof, ref_tag: hold.ref_tag };
        let now = UnixMillis(self.now);
        self.commit(move |txn| temporary::keep(txn, &keep, now)).await;
    }

    /// Temporary contents of a name.
    fn kept(&self, n: u8) -> Vec<(RefTag, TemporaryValue)> {
        self.catalog.read(|rows| temporary::contents(rows, &name(n))).unwrap()
    }

    async fn get(&self, n: u8, who: u8, void: bool) {
        let Some(holding) = self.holding(n).filter(holdings::is_current) else { return };
        let (now, delivery) =
            (UnixMillis(self.now), DeliveryId::from_bytes(u128::from(self.now).to_be_bytes()));
        let begin = BeginRequest {
            delivery,
            client: client(who),
            name: holding.name,
            hash: holding.manifest.hash,
            provider: holding.provider,
            bytes_total: holding.manifest.len,
            range_start: 0,
            path: DeliveryPath::Hit,
            source: None,
            searched: false,
            surrogate: None,
            mobile_access: None,
            quota: Quota::default(),
        };
        let sent = if void { 0 } else { begin.bytes_total };
        let recorder =
            Recorder { node: NodeId::new("tokyo.n1").unwrap(), home: SiteId::new("tokyo").unwrap() };
        let window = std::time::Duration::from_secs(1);
        let joining = Joining { shard: recorder.node.clone(), window, elsewhere: true };
        self.commit(move |txn| {
            holdings::add_client(txn, &begin.name, &begin.client, now)?;
            deliveries::begin(txn, &begin, &joining, now)?;
            deliveries::end(
                txn,
                &recorder,
                &EndRequest { delivery, request: delivery, bytes_sent: sent },
                now,
            )
        })
        .await;
    }

    fn holding(&self, n: u8) -> Option<common::api::node::Holding> {
        self.catalog.read(|rows| rows.get(Key::Holding(&name(n)))).unwrap()
    }

    fn jobs(&self) -> Vec<due::Job> {
        self.catalog
            .read(|rows| {
                let mut jobs = Vec::new();
                for tag in [Tag::TallyClient, Tag::TallyHolding] {
                    for (key, value) in due::page(rows, tag, &key::all(tag), 1000, |_| true)? {
                        // So little at once that holdings with several clients take several rounds.
                        jobs.extend(due::job(rows, &key, &value, 4)?);
                    }
                }
                Ok(jobs)
            })
            .unwrap()
    }

    async fn send(&self, jobs: &[due::Job]) {
        for job in jobs.iter().cloned() {
            let ChunkList::Inline(chunks) = job.chunks else { panic!("all lists are inline here") };
            let change = TallyChange {
                name: job.name,
                ref_tag: job.ref_tag,
                held: job.held,
                clients: job.clients,
                chunks,
            };
            self.commit(move |txn| {
                for chunk in &change.chunks {
                    change.clients.iter().try_for_each(|client| apply(txn, &change, client, chunk))?;
                }
                Ok(())
            })
            .await;
        }
    }

    async fn settle(&self, jobs: Vec<due::Job>) {
        self.commit(move |txn| jobs.iter().try_for_each(|job| due::settle(txn, job).map(drop))).await;
    }

    async fn drain(&self) {
        for _ in 0..1000 {
            let jobs = self.jobs();
            if jobs.is_empty() {
                return;
            }
            self.send(&jobs).await;
            self.settle(jobs).await;
        }
        panic!("what is due is never settled");
    }

    fn sums(&self) -> TallySums {
        let mut all = TallySums::default();
        for slot in (0..SLOT_COUNT).map(Slot) {
            self.catalog.read(|rows| sums(rows, slot, None, &mut all)).unwrap();
        }
        all
    }

    /// Slow and obvious: which client holds which chunks.
    fn held(&self) -> BTreeMap<ClientId, BTreeSet<(ChunkHash, u32)>> {
        let mut held: BTreeMap<ClientId, BTreeSet<_>> = BTreeMap::new();
        for (n, (tag, content)) in
            (0..NAMES).flat_map(|n| self.kept(n).into_iter().map(move |kept| (n, kept)))
        {
            let ChunkList::Inline(chunks) = content.manifest.chunks else {
                panic!("all lists are inline here")
            };
            for visitor in (0..CLIENTS).map(client).filter(|_| content.complete) {
                if self.catalog.read(|rows| rows.has(Key::Visitor(&name(n), tag, &visitor))).unwrap() {
                    held.entry(visitor)
                        .or_default()
                        .extend(chunks.iter().map(|chunk| (chunk.hash, chunk.len)));
                }
            }
        }
        for n in 0..NAMES {
            let Some(holding) = self.holding(n).filter(|h| h.state != HoldingState::Collecting) else {
                continue;
            };
            let ChunkList::Inline(chunks) = holding.manifest.chunks else {
                panic!("all lists are inline here")
            };
            let page = self.catalog.read(|rows| holdings::clients(rows, &name(n), "", 1000)).unwrap();
            for holder in page.clients {
                let chunks = chunks.iter().map(|chunk| (chunk.hash, chunk.len));
                held.entry(holder.client).or_default().extend(chunks);
            }
        }
        held
    }

    fn check_accounts(&self) {
        for n in 0..CLIENTS {
            let client = client(n);
            let (kept, mut counted) =
                self.catalog.read(|rows| Ok((library::account(rows, &client)?, Account::default()))).unwrap();
            self.catalog
                .read(|rows| {
                    rows.scan(&key::library(&client, ""), &mut |_, value| {
                        let row = LibraryValue::decode(value)?;
                        counted.contents += 1;
                        counted.logical_bytes += row.len;
                        counted.deliveries += row.deliveries;
                        Ok(ControlFlow::Continue(()))
                    })
                })
                .unwrap();
            assert_eq!(kept, counted, "the account of {client}");
        }
    }

    fn check_tally(&self) {
        let (held, sums) = (self.held(), self.sums());
        let mut holders: BTreeMap<(ChunkHash, u32), u64> = BTreeMap::new();
        held.values().flatten().for_each(|chunk| *holders.entry(*chunk).or_default() += 1);
        let mut expected: BTreeMap<ClientId, ClientTally> = BTreeMap::new();
        for (client, chunks) in held.iter().filter(|(_, chunks)| !chunks.is_empty()) {
            let tally = expected.entry(client.clone()).or_default();
            for chunk in chunks {
                let sum =
                    if holders[chunk] == 1 { &mut tally.unique_bytes } else { &mut tally.shared_held_bytes };
                *sum += u64::from(chunk.1);
            }
        }
        assert_eq!(sums.clients, expected);
        let physical: u64 = holders.keys().map(|(_, len)| u64::from(*len)).sum();
        assert_eq!(sums.physical_bytes(), physical);
        let charged: u64 = sums.fair_shares().values().sum::<u64>()
            + sums.clients.values().map(|tally| tally.unique_bytes).sum::<u64>();
        assert_eq!(charged, physical, "all clients together come to what is stored");
        for (client, share) in sums.fair_shares() {
            let floor = sums.fair_share(&sums.clients[&client]);
            assert!(share == floor || share == floor + 1);
        }
        let rows = self.catalog.read(|rows| rows.count(&key::all(Tag::ChunkTally))).unwrap();
        assert_eq!(rows as usize, holders.len(), "chunks that nobody holds leave nothing");
    }
}

fn release(n: u8, who: u8) -> ReleaseRequest {
    ReleaseRequest {
        name: name(n),
        client: client(who),
        precondition: Precondition::None,
        announce_wait_ms: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_clients_hold_adds_up_after_any_history(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut site = Site::new().await;
            for op in ops {
                site.run(op).await;
                site.check_accounts();
            }
            site.drain().await;
            site.check_tally();
        });
    }
}

#[tokio::test]
async fn rows_from_before_there_was_a_tally_are_counted_once() {
    let mut site = Site::new().await;
    for n in 0..NAMES {
        site.run(Op::Put { name: n, chunks: vec![0, n] }).await;
        site.run(Op::Get { name: n, client: 1, void: false }).await;
    }
    // As an older program left it.
    let everything = |site: &Site, tag| {
        let mut keys = Vec::new();
        let scan = |rows: &crate::catalog::txn::Reader| {
            rows.scan(&key::all(tag), &mut |key, _| {
                keys.push(key.to_vec());
                Ok(ControlFlow::Continue(()))
            })
        };
        site.catalog.read(scan).unwrap();
        keys
    };
    let mut keys = Vec::new();
    for tag in [Tag::TallyHolding, Tag::TallyClient, Tag::Account] {
        keys.extend(everything(&site, tag));
    }
    site.commit(move |txn| {
        keys.into_iter().for_each(|key| txn.delete_raw(key));
        Ok(())
    })
    .await;
    site.drain().await;
    assert_eq!(site.sums(), TallySums::default());
    site.check_accounts();

    for slot in (0..SLOT_COUNT).map(Slot) {
        site.commit(move |txn| due::build_empty(txn, &[slot])).await;
        let built = site.catalog.read(|rows| rows.has(Key::TallyBuilt(slot))).unwrap();
        let mut after = Some(String::new()).filter(|_| !built);
        while let Some(from) = after {
            let next = site.commit(move |txn| due::build(txn, slot, &from, 1)).await;
            after = next.map(|name| name.to_string());
        }
        assert!(site.catalog.read(|rows| rows.has(Key::TallyBuilt(slot))).unwrap());
    }
    site.drain().await;
    site.check_tally();
    assert!(site.sums().physical_bytes() > 0);
    site.run(Op::Drop { name: 0, client: 1 }).await;
    site.check_accounts();
}

#[tokio::test]
async fn a_quota_binds_what_is_new_and_nothing_else() {
    let site = Site::new().await;
    let add = |n: u8, len: u64, quota: Quota, strict: bool| {
        let request = AddRequest {
            client: client(0),
            name: name(n),
            hash: ContentHash::of(b"x"),
            len,
            provider: client(0),
            quota,
        };
        site.catalog.commit(move |txn| library::add(txn, &request, UnixMillis(1), strict))
    };
    let bytes = |max| Quota { bytes: Some(max), contents: None };
    let refused = |result: ApiResult<()>| {
        let error = result.unwrap_err();
        assert_eq!(error.code, common::error::ErrorCode::QuotaExceeded);
        error.message
    };
    add(0, 60, bytes(100), true).await.unwrap();
    let message = refused(add(1, 41, bytes(100), true).await);
    assert!(message.contains("holds 60 bytes of the 100") && message.contains("41 more"), "{message}");
    add(1, 40, bytes(100), true).await.unwrap();
    refused(add(1, 41, bytes(100), true).await);
    add(1, 41, bytes(100), false).await.unwrap();
    // Beyond it already: smaller is allowed, and so is what stays as it is.
    add(1, 41, bytes(100), true).await.unwrap();
    add(0, 59, bytes(100), true).await.unwrap();
    let contents = Quota { bytes: None, contents: Some(2) };
    let message = refused(add(2, 0, contents, false).await);
    assert!(message.contains("2 contents of the 2"), "{message}");
    add(1, 1000, contents, true).await.unwrap();
}

#[tokio::test]
async fn a_collection_that_a_withdrawal_overtakes_is_counted_for_who_waited_for_it() {
    let mut site = Site::new().await;
    site.run(Op::Collect { name: 1, chunks: vec![0] }).await;
    site.run(Op::Get { name: 1, client: 1, void: false }).await;
    site.drain().await;
    assert_eq!(site.sums(), TallySums::default(), "not while it is being collected");
    site.run(Op::Withdraw { name: 1 }).await;
    site.drain().await;
    site.check_tally();
    assert_eq!(site.sums().unique_bytes, 10);
}
