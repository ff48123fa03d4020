//! Shards with followers: nothing that was acknowledged is lost with a node, and no delivery is recorded twice.

use std::path::Path;
use std::sync::Arc;

use common::client::CallError;
use common::cluster::ShardEntry;

use super::*;

struct Site {
    dir: tempfile::TempDir,
    search: Arc<Fake>,
    /// `None` while a node is stopped.
    nodes: Vec<Option<TestNode>>,
}

impl Site {
    /// `count` nodes that follow each other, `replicas` copies of each shard.
    async fn start(count: usize, replicas: u8) -> Self {
        let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
        let mut site = Self { dir, search, nodes: Vec::new() };
        for index in 0..count {
            let node = site.start_node(index).await;
            ready(&node).await;
            site.nodes.push(Some(node));
        }
        site.search.set_replicas(replicas);
        site.in_sync(usize::from(replicas) - 1).await;
        site
    }

    fn name(index: usize) -> String {
        format!("n{}", index + 1)
    }

    async fn start_node(&self, index: usize) -> TestNode {
        let name = Self::name(index);
        let data_dir: &Path = self.dir.path();
        std::fs::create_dir_all(data_dir.join(&name)).unwrap();
        let store = format!("file:{}?size=256MiB", data_dir.join(&name).join("store").display());
        start(config(&name, &store, data_dir, &self.search.url)).await
    }

    fn shard(&self, index: usize) -> ShardEntry {
        self.search.map.borrow().sites[0].nodes[index].shard.clone()
    }

    /// Waits until every shard has so many followers.
    async fn in_sync(&self, followers: usize) {
        until("every shard has its followers", async || {
            let map = self.search.map.borrow();
            map.sites[0].nodes.iter().all(|node| node.shard.followers.len() == followers)
        })
        .await;
    }

    /// Takes a node away; search sees it.
    async fn lose(&mut self, index: usize) -> NodeId {
        let node = self.nodes[index].take().unwrap();
        let id = node.id.clone();
        node.running.stop().await;
        self.search.lose(&id);
        id
    }

    async fn bring_back(&mut self, index: usize) {
        self.nodes[index] = Some(self.start_node(index).await);
    }

    /// The node that decides for a slot, as the map has it.
    fn primary(&self, slot: Slot) -> usize {
        let map = self.search.map.borrow();
        map.sites[0].slot_primary_index(slot).unwrap()
    }

    async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            node.running.stop().await;
        }
    }
}

/// Asks again while the answer is that another node, or a later moment, is right.
async fn asked<A>(
    site: &Site,
    primary: impl Fn() -> usize,
    call: impl AsyncFn(NodeClient) -> Result<A, CallError>,
) -> A {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let node = site.nodes[primary()].as_ref().expect("search has seen it go").client.clone();
        match call(node).await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_retryable() && tokio::time::Instant::now() < deadline, "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn asked_for<A>(site: &Site, slot: Slot, call: impl AsyncFn(NodeClient) -> Result<A, CallError>) -> A {
    asked(site, || site.primary(slot), call).await
}

async fn hold(site: &Site, name: &ContentName, bytes: &'static [u8]) -> Version {
    let manifest = manifest(bytes, ChunkList::Inline(vec![chunk(bytes)]));
    let request = publication(name, manifest, RefTag::generate());
    asked_for(site, Slot::of_name(name), async |node| node.hold(&request).await).await.version
}

async fn held(site: &Site, name: &ContentName) -> Option<Version> {
    let request = ResolveRequest { name: name.clone(), client: None };
    let answer = asked_for(site, Slot::of_name(name), async |node| node.resolve(&request).await).await;
    answer.holding.map(|holding| holding.version)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_served_by_a_follower_when_a_node_is_lost() {
    let mut site = Site::start(3, 2).await;
    let names: Vec<ContentName> = (0..60).map(|i| name(&format!("alice/song-{i}"))).collect();
    let mut versions = Vec::new();
    for name in &names {
        versions.push(hold(&site, name, b"la la la").await);
    }
    // A delivery that is under way when its node is lost, and one that is over.
    let bob = Slot::of_client(&client_id("bob"));
    let (open, over) =
        (begin_request("bob", &names[0], b"la la la"), begin_request("bob", &names[1], b"la la la"));
    let begun = asked_for(&site, bob, async |node| node.begin(&open).await).await;
    assert_eq!(begun.class, DeliveryClass::Purchase);
    asked_for(&site, bob, async |node| node.begin(&over).await).await;
    let lost = site.primary(bob);
    let shard = site.nodes[lost].as_ref().unwrap().id.clone();
    assert_eq!(begun.shard, shard);
    asked_for(&site, bob, async |node| node.end(&ends(&shard, over.delivery, 8)).await).await;

    site.lose(lost).await;
    assert_ne!(site.primary(bob), lost);
    for (name, version) in names.iter().zip(&versions) {
        assert_eq!(held(&site, name).await, Some(*version), "{name}");
    }
    // The same begin again is the same delivery; its end is recorded in the chain of the lost node.
    let again = asked_for(&site, bob, async |node| node.begin(&open).await).await;
    assert_eq!(
        (again.delivery, again.class, &again.shard),
        (begun.delivery, DeliveryClass::Purchase, &shard)
    );
    asked_for(&site, bob, async |node| node.end(&ends(&shard, open.delivery, 8)).await).await;
    until("both deliveries are booked", async || site.search.record_count() == 2).await;
    {
        let books = site.search.books.lock().unwrap();
        let records = &books.records[&(shard.clone(), 1)];
        assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), [1, 2]);
        assert!(records.iter().all(|record| record.record.status == DeliveryStatus::Complete));
    }
    // What changes meanwhile is at the node when it serves its shard again.
    let (later, version) = (name("alice/later"), hold(&site, &name("alice/later"), b"later").await);
    let newest = hold(&site, &names[3], b"new words").await;
    site.bring_back(lost).await;
    until("the node serves its own shard again", async || usize::from(site.shard(lost).primary) == lost)
        .await;
    assert_eq!(held(&site, &later).await, Some(version));
    assert_eq!(held(&site, &names[3]).await, Some(newest));
    let third = begin_request("bob", &names[0], b"la la la");
    let begun = asked_for(&site, bob, async |node| node.begin(&third).await).await;
    assert_eq!((begun.class, &begun.shard), (DeliveryClass::Reference, &shard));
    asked_for(&site, bob, async |node| node.end(&ends(&shard, third.delivery, 8)).await).await;
    until("it is booked too", async || site.search.record_count() == 3).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_may_be_lost_in_turn_while_writes_go_on() {
    let mut site = Site::start(3, 2).await;
    let mut known: Vec<(ContentName, Version)> = Vec::new();
    for round in 0..6 {
        let lost = round % 3;
        site.lose(lost).await;
        for i in 0..15 {
            let name = name(&format!("alice/song-{round}-{i}"));
            let version = hold(&site, &name, b"la la la").await;
            known.push((name, version));
        }
        site.bring_back(lost).await;
        site.in_sync(1).await;
        until("every node serves its own shard", async || {
            (0..3).all(|index| usize::from(site.shard(index).primary) == index)
        })
        .await;
        for (name, version) in &known {
            assert_eq!(held(&site, name).await, Some(*version), "{name} after round {round}");
        }
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_replaced_and_does_not_know_acknowledges_nothing() {
    // Which of the two hears first that search holds one for lost is open: every order comes up in some round.
    for _ in 0..10 {
        let site = Site::start(2, 2).await;
        let song = name("alice/song");
        hold(&site, &song, b"la la la").await;
        let old = site.nodes[site.primary(Slot::of_name(&song))].as_ref().unwrap();
        site.search.lose(&old.id);
        let manifest = manifest(b"other words", ChunkList::Inline(vec![chunk(b"other words")]));
        let request = publication(&song, manifest, RefTag::generate());
        let answer = old.client.hold(&request).await;
        let now = held(&site, &song).await.unwrap();
        match answer {
            // The new primary took it before it was one.
            Ok(held) => assert_eq!(now, held.version),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        site.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_names_the_contents_that_no_node_has_whole() {
    let site = Site::start(2, 1).await;
    let (whole, lost) = (name("alice/whole"), name("alice/lost"));
    hold(&site, &lost, b"nobody has these bytes").await;
    let version = hold(&site, &whole, b"somebody has these").await;
    let chunk = chunk(b"somebody has these");
    let bytes = Bytes::from_static(b"somebody has these");
    // Which node has it does not matter.
    let other = site.nodes[1 - site.primary(Slot::of_name(&whole))].as_ref().unwrap();
    other.client.put_chunk(&chunk.hash, &whole, RefTag::generate(), bytes).await.unwrap();
    let (mut checked, mut incomplete) = (0, Vec::new());
    for node in site.nodes.iter().flatten() {
        let page = node.client.audit(&node.id, None).await.unwrap();
        assert_eq!(page.next, None);
        checked += page.checked;
        incomplete.extend(page.incomplete);
    }
    assert_eq!(checked, 2);
    let [only] = &incomplete[..] else { panic!("{incomplete:?}") };
    assert_eq!((&only.name, only.missing_bytes, only.clients), (&lost, 22, 1));
    assert_ne!(only.version, version);
    site.stop().await;
}

/// Writes and deliveries from several tasks, asked of whoever the map names, again until they are acknowledged.
struct Writer {
    search: Arc<Fake>,
    id: usize,
    stop: tokio_util::sync::CancellationToken,
    acknowledged: Vec<(ContentName, Version)>,
    delivered: u64,
}

impl Writer {
    async fn write(mut self) -> Self {
        for round in 0.. {
            if self.stop.is_cancelled() {
                break;
            }
            // Every third time a new version of the same name.
            let name = name(&format!("alice/{}-{}", self.id, round - round % 3));
            let manifest = manifest(b"la la la", ChunkList::Inline(vec![chunk(b"la la la")]));
            let request = publication(&name, manifest, RefTag::generate());
            let held = self.ask(Slot::of_name(&name), async |node| node.hold(&request).await).await;
            self.acknowledged.retain(|(known, _)| *known != name);
            self.acknowledged.push((name.clone(), held.version));
            let client = format!("client-{}", self.id);
            let begin = begin_request(&client, &name, b"la la la");
            let slot = Slot::of_client(&begin.client);
            let begun = self.ask(slot, async |node| node.begin(&begin).await).await;
            let end = ends(&begun.shard, begun.delivery, 8);
            let search = self.search.clone();
            self.ask_until(
                || {
                    let map = search.map.borrow();
                    map.sites[0].shard_primary(&begun.shard).map(|node| node.http.clone())
                },
                async |node| node.end(&end).await,
            )
            .await;
            self.delivered += 1;
        }
        self
    }

    async fn ask<A>(&self, slot: Slot, call: impl AsyncFn(NodeClient) -> Result<A, CallError>) -> A {
        let primary = || {
            let map = self.search.map.borrow();
            map.sites[0].slot_primary(slot).map(|node| node.http.clone())
        };
        self.ask_until(primary, call).await
    }

    async fn ask_until<A>(
        &self,
        primary: impl Fn() -> Option<String>,
        call: impl AsyncFn(NodeClient) -> Result<A, CallError>,
    ) -> A {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let node = NodeClient::new(server_client(), &primary().unwrap());
            match tokio::time::timeout(Duration::from_secs(10), call(node)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) => {
                    assert!(error.is_retryable(), "{error}");
                    assert!(tokio::time::Instant::now() < deadline, "no node answers: {error}");
                }
                Err(_) => assert!(tokio::time::Instant::now() < deadline, "no node answers in time"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// How many deliveries are booked as complete: each once, in chains without gaps.
fn complete_deliveries(search: &Fake) -> u64 {
    let books = search.books.lock().unwrap();
    let mut complete = std::collections::HashSet::new();
    for ((shard, epoch), records) in &books.records {
        for (expected, record) in (1..).zip(records) {
            assert_eq!(record.seq, expected, "{shard} {epoch}");
            // One whose begin was asked for again at another moment may have been begun without being answered.
            if record.record.status == DeliveryStatus::Complete {
                assert!(
                    complete.insert(record.record.delivery),
                    "{shard}: {:?} twice",
                    record.record.delivery
                );
            }
        }
    }
    complete.len() as u64
}

/// Nodes are lost, or held for lost while they run, one after the other, under load: what was acknowledged is there at the
/// end, and every delivery is in some chain once.
async fn lives(replicas: u8, seed: u64) {
    use rand::{RngExt, SeedableRng};
    eprintln!("seed {seed}");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut site = Site::start(3, replicas).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let writers: Vec<_> = (0..4)
        .map(|id| Writer {
            search: site.search.clone(),
            id,
            stop: stop.clone(),
            acknowledged: Vec::new(),
            delivered: 0,
        })
        .map(|writer| {
            let runtime = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || runtime.block_on(writer.write()))
        })
        .collect();
    for _ in 0..8 {
        let node = random.random_range(0..3);
        if random.random_bool(0.5) {
            site.lose(node).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
            site.bring_back(node).await;
        } else {
            site.search.lose(&site.nodes[node].as_ref().unwrap().id);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        // A shard whose last copy with all rows were lost would be lost: that is not what this is about.
        site.in_sync(usize::from(replicas) - 1).await;
    }
    stop.cancel();
    let mut delivered = 0;
    for writer in writers {
        let writer = writer.await.unwrap();
        delivered += writer.delivered;
        for (name, version) in &writer.acknowledged {
            assert_eq!(held(&site, name).await, Some(*version), "{name}");
        }
    }
    assert!(delivered > 0);
    until("every delivery is booked", async || site.search.record_count() as u64 >= delivered).await;
    assert_eq!(complete_deliveries(&site.search), delivered);
    site.stop().await;
}

/// `DOZO_STRESS_ROUNDS` rounds with seeds from `DOZO_STRESS_SEED` on.
async fn many_lives(replicas: u8) {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (rounds, first) = (number("DOZO_STRESS_ROUNDS", 1), number("DOZO_STRESS_SEED", 0x0d02_0001));
    for seed in first..first + rounds {
        lives(replicas, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_any_losses_keep_what_was_acknowledged_with_two_copies() {
    many_lives(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_any_losses_keep_what_was_acknowledged_with_three_copies() {
    many_lives(3).await;
}
