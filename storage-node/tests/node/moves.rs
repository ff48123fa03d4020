//! Chunks go to where the map says they belong, with all that refers to them, and lost ones come back.

use std::collections::BTreeSet;
use std::sync::Arc;

use common::api::node::ChunkReleaseRequest;
use common::cluster::{NodeState, SiteEntry};
use common::placement::{nodes_of_chunk, rank_for_chunk};

use super::*;

const LIMIT: Duration = Duration::from_secs(5);

/// A site whose nodes are real and whose map is edited by hand.
struct Site {
    nodes: Vec<TestNode>,
    search: Arc<Fake>,
    dir: tempfile::TempDir,
    moves_bytes_per_s: u64,
}

/// A chunk and what refers to it.
struct Stored {
    bytes: Bytes,
    hash: ChunkHash,
    refs: Vec<(RefTag, ContentName)>,
}

impl Stored {
    /// `number` makes the bytes, the length, and the number of references: 1 to 3.
    fn new(number: usize) -> Self {
        let bytes = Bytes::from(format!("chunk {number} ").into_bytes().repeat(500 + number % 7 * 100));
        let refs = (0..=number % 3).map(|n| (RefTag(n as u64 + 1), name(&format!("alice/{number}-{n}"))));
        Self { hash: ChunkHash::of(&bytes), bytes, refs: refs.collect() }
    }
}

impl Site {
    async fn start(nodes: usize, replicas: u8) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .try_init();
        let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
        let mut site = Self { nodes: Vec::new(), search, dir, moves_bytes_per_s: 0 };
        for _ in 0..nodes {
            site.add().await;
        }
        site.edit(|site| site.replicas = replicas).await;
        site
    }

    /// Changes the map, and waits until all nodes know.
    async fn edit(&self, change: impl FnOnce(&mut SiteEntry)) {
        self.search.change(change);
        let epoch = self.search.map.borrow().epoch;
        for node in &self.nodes {
            until("the map is known", async || node.client.map().await.unwrap().epoch >= epoch).await;
        }
    }

    fn config(&self, number: usize) -> Config {
        let name = format!("n{number}");
        let store = format!("file:{}/{name}.store?size=300MiB", self.dir.path().display());
        let moves_bytes_per_s = self.moves_bytes_per_s.into();
        Config { moves_bytes_per_s, ..config(&name, &store, self.dir.path(), &self.search.url) }
    }

    async fn add(&mut self) {
        let node = start(self.config(self.nodes.len() + 1)).await;
        ready(&node).await;
        self.nodes.push(node);
    }

    /// Stops a node; search takes it for down.
    async fn stop_node(&mut self, index: usize) -> NodeId {
        let node = self.nodes.remove(index);
        node.running.stop().await;
        self.search.lose(&node.id);
        self.edit(|_| {}).await;
        node.id
    }

    async fn restart(&mut self, id: &NodeId) {
        let number = id.name().trim_start_matches('n').parse().unwrap();
        let node = start(self.config(number)).await;
        ready(&node).await;
        self.nodes.push(node);
    }

    fn entry(&self) -> SiteEntry {
        self.search.map.borrow().sites[0].clone()
    }

    fn node(&self, id: &NodeId) -> &TestNode {
        self.nodes.iter().find(|node| &node.id == id).unwrap()
    }

    fn right(&self, hash: &ChunkHash) -> BTreeSet<NodeId> {
        let site = self.entry();
        nodes_of_chunk(&site, hash).into_iter().map(|index| site.nodes[index].id.clone()).collect()
    }

    /// Writes as a gateway does: to the first nodes of the ranking that are there.
    async fn write(&self, stored: &Stored) {
        let site = self.entry();
        let ranked = rank_for_chunk(&site, &stored.hash).into_iter().map(|index| &site.nodes[index]);
        let writers = ranked.filter(|node| node.takes_writes()).take(usize::from(site.replicas));
        for writer in writers {
            let client = &self.node(&writer.id).client;
            for (tag, name) in &stored.refs {
                client.put_chunk(&stored.hash, name, *tag, stored.bytes.clone()).await.unwrap();
            }
        }
    }

    async fn write_some(&self, count: usize) -> Vec<Stored> {
        let stored: Vec<Stored> = (0..count).map(Stored::new).collect();
        for stored in &stored {
            self.write(stored).await;
        }
        stored
    }

    /// Who has a chunk, and how many references each has to it.
    async fn holders(&self, hash: &ChunkHash) -> Vec<(NodeId, u64)> {
        let mut holders = Vec::new();
        for node in &self.nodes {
            if let Some(count) = refs(&node.client, *hash).await {
                holders.push((node.id.clone(), count));
            }
        }
        holders.sort();
        holders
    }

    async fn is_settled(&self, stored: &[Stored]) -> bool {
        for Stored { hash, refs, .. } in stored {
            let right = self.right(hash).into_iter().map(|id| (id, refs.len() as u64));
            if self.holders(hash).await != right.collect::<Vec<_>>() {
                return false;
            }
        }
        true
    }

    async fn settle(&self, stored: &[Stored]) {
        until("every chunk is at its nodes and nowhere else", async || self.is_settled(stored).await).await;
        until("nothing is pending", async || self.pending_bytes().await == 0).await;
    }

    async fn pending_bytes(&self) -> u64 {
        let mut sum = 0;
        for node in &self.nodes {
            sum += status(node).await.moves_pending_bytes;
        }
        sum
    }

    /// A figure, summed over the nodes.
    async fn figure(&self, name: &str) -> u64 {
        let mut sum = 0;
        for node in &self.nodes {
            sum += figure(node, name).await;
        }
        sum
    }

    async fn stop(self) {
        for node in self.nodes {
            node.running.stop().await;
        }
    }
}

async fn status(node: &TestNode) -> NodeStatus {
    server_client().get_json(&node.running.admin, Role::StorageNode, "/v1/node", LIMIT).await.unwrap()
}

async fn figure(node: &TestNode, name: &str) -> u64 {
    let request = http::Request::get(format!("{}/metrics", node.running.admin)).body(Default::default());
    let response = HttpClient::new().send(request.unwrap(), LIMIT).await.unwrap();
    let text = common::client::read_body("metrics", response.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_gets_its_chunks_once_and_the_others_drop_theirs() {
    let mut site = Site::start(3, 2).await;
    let stored = site.write_some(90).await;
    site.settle(&stored).await;
    let before: Vec<_> = stored.iter().map(|stored| site.right(&stored.hash)).collect();
    // A walk may have met a chunk between its two writes.
    let sent_before = site.figure("dozo_node_moves_bytes_total").await;
    let dropped_before = site.figure("dozo_node_moves_dropped_chunks_total").await;

    site.add().await;
    site.settle(&stored).await;
    let (mut wanted, mut dropped, mut all) = (0, 0, 0);
    for (stored, before) in stored.iter().zip(before) {
        let right = site.right(&stored.hash);
        wanted += right.difference(&before).count() * stored.bytes.len();
        dropped += before.difference(&right).count() as u64;
        all += right.len() * stored.bytes.len();
    }
    // Rendezvous: a quarter, give or take what so few chunks scatter.
    assert!((all / 8..all * 3 / 8).contains(&wanted), "{wanted} of {all}");
    assert_eq!(site.figure("dozo_node_moves_bytes_total").await, sent_before + wanted as u64);
    until("drops are counted", async || {
        site.figure("dozo_node_moves_dropped_chunks_total").await == dropped_before + dropped
    })
    .await;
    for stored in &stored {
        for id in site.right(&stored.hash) {
            assert_eq!(site.node(&id).client.get_chunk_bytes(&stored.hash).await.unwrap(), stored.bytes);
        }
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_empties_itself_and_fills_again() {
    let site = Site::start(3, 2).await;
    let stored = site.write_some(40).await;
    site.search.change(|site| (site.nodes[0].weight, site.nodes[0].state) = (0, NodeState::Draining));
    site.settle(&stored).await;
    until("nothing is left", async || {
        let status = status(&site.nodes[0]).await;
        (status.chunks, status.logical_bytes) == (0, 0)
    })
    .await;

    site.search.change(|site| (site.nodes[0].weight, site.nodes[0].state) = (100, NodeState::Active));
    site.settle(&stored).await;
    assert!(status(&site.nodes[0]).await.chunks > 0);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_or_fewer_copies_are_made_and_dropped() {
    let site = Site::start(3, 1).await;
    let stored = site.write_some(20).await;
    for replicas in [3, 1, 2] {
        site.search.change(|site| site.replicas = replicas);
        site.settle(&stored).await;
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_gets_what_it_lacks_and_the_stand_in_drops_it() {
    let mut site = Site::start(3, 2).await;
    let away = site.stop_node(2).await;
    let stored = site.write_some(30).await;
    assert!(stored.iter().any(|stored| site.right(&stored.hash).contains(&away)));
    for Stored { hash, .. } in &stored {
        assert_eq!(site.holders(hash).await.len(), 2, "a stand-in keeps its copy while the node is away");
    }
    site.restart(&away).await;
    site.settle(&stored).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_in_the_middle_of_its_moves_goes_on_with_them() {
    let mut site = Site::start(1, 1).await;
    let stored = site.write_some(60).await;
    let total: usize = stored.iter().map(|stored| stored.bytes.len()).sum();
    // So slow that it stops long before the end.
    site.moves_bytes_per_s = total as u64 / 20;
    let slow = site.stop_node(0).await;
    site.restart(&slow).await;
    site.add().await;
    until("moves are under way", async || site.figure("dozo_node_moves_chunks_total").await >= 2).await;
    let sender = site.nodes.iter().position(|node| node.id == slow).unwrap();
    let status = status(&site.nodes[sender]).await;
    assert!(status.moves_pending_bytes > 0 && status.moves_rate_bytes_per_s > 0);
    assert_eq!(status.moves_limit_bytes_per_s, site.moves_bytes_per_s);
    assert!(!site.is_settled(&stored).await);

    let slow = site.stop_node(sender).await;
    site.moves_bytes_per_s = 0;
    site.restart(&slow).await;
    site.settle(&stored).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_at_the_wrong_node_moves_without_a_walk() {
    let site = Site::start(3, 2).await;
    site.settle(&[]).await;
    let stored = Stored::new(0);
    let site_entry = site.entry();
    let ranked = rank_for_chunk(&site_entry, &stored.hash);
    // As when one node did not take it: the third stands in for the second.
    for index in [ranked[0], ranked[2]] {
        let client = &site.node(&site_entry.nodes[index].id).client;
        for (tag, name) in &stored.refs {
            client.put_chunk(&stored.hash, name, *tag, stored.bytes.clone()).await.unwrap();
        }
    }
    site.settle(&[stored]).await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn references_released_while_chunks_move_take_no_other_with_them() {
    let mut site = Site::start(2, 1).await;
    let stored: Vec<Stored> = (0..60).map(|n| Stored::new(3 * n + 1)).collect();
    for stored in &stored {
        site.write(stored).await;
    }
    site.add().await;
    for Stored { hash, refs, .. } in &stored {
        let (ref_tag, name) = refs[1].clone();
        for node in &site.nodes {
            let request = ChunkReleaseRequest { name: name.clone(), ref_tag, chunks: vec![*hash] };
            node.client.release_chunks(&request).await.unwrap();
        }
    }
    until("every chunk is at its node alone", async || {
        for Stored { hash, .. } in &stored {
            let holders = site.holders(hash).await;
            if holders.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>() != site.right(hash) {
                return false;
            }
        }
        true
    })
    .await;
    for Stored { hash, refs: made, .. } in &stored {
        let client = &site.node(site.right(hash).first().unwrap()).client;
        let before = refs(client, *hash).await.unwrap();
        assert!((1..=2).contains(&before), "surplus at most");
        let (ref_tag, name) = made[0].clone();
        let claim = ClaimRequest { name, ref_tag, chunks: vec![*hash] };
        assert!(client.claim(&claim).await.unwrap().missing.is_empty());
        assert_eq!(refs(client, *hash).await, Some(before), "the reference that stays was there");
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holding_is_released_at_once_where_it_can_be_and_later_where_a_node_was_away() {
    let mut site = Site::start(2, 2).await;
    until("slots are shared", async || site.search.owned(&site.nodes[1].id) > 400).await;
    let song = {
        let entry = site.entry();
        let is_first = |name: &ContentName| {
            entry.slot_owner(Slot::of_name(name)).is_some_and(|owner| owner.id == site.nodes[0].id)
        };
        (0..).map(|n| name(&format!("alice/song-{n}"))).find(is_first).unwrap()
    };
    // A chunk list of its own, as a long content has.
    let bytes = Bytes::from_static(b"la la la");
    let chunks = vec![chunk(&bytes)];
    let list_bytes = Bytes::from(ChunkList::encode(&chunks));
    let list = chunk(&list_bytes);
    let tag = RefTag(7);
    for node in &site.nodes {
        for bytes in [&bytes, &list_bytes] {
            node.client.put_chunk(&ChunkHash::of(bytes), &song, tag, bytes.clone()).await.unwrap();
        }
    }
    let manifest = manifest(&bytes, ChunkList::Stored { list, count: 1 });
    site.nodes[0].client.hold(&publication(&song, manifest, tag)).await.unwrap();

    let away = site.stop_node(1).await;
    let withdraw = ReleaseRequest {
        name: song.clone(),
        client: client_id("alice"),
        precondition: Precondition::None,
        announce_wait_ms: 0,
    };
    until("it is withdrawn", async || {
        let answer = site.nodes[0].client.withdraw(&withdraw).await;
        answer.is_ok_and(|answer| answer.released)
    })
    .await;
    let hash = chunks[0].hash;
    let here = site.nodes[0].client.clone();
    until("the node that is there deletes the chunk", async || refs(&here, hash).await.is_none()).await;
    assert_eq!(refs(&here, list.hash).await, Some(1), "the list stays until all have read it");

    site.restart(&away).await;
    for node in &site.nodes {
        until("the chunk goes everywhere", async || refs(&node.client, hash).await.is_none()).await;
        until("so does the list", async || refs(&node.client, list.hash).await.is_none()).await;
    }
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_answered_and_put_back_from_another_nodes_copy() {
    let site = Site::start(2, 2).await;
    let stored = Stored::new(5);
    site.write(&stored).await;
    site.settle(std::slice::from_ref(&stored)).await;
    let file = site.dir.path().join("n1.store");
    flip_a_bit(&file, &stored.bytes[..200]);
    let node = &site.nodes[0];
    assert_eq!(node.client.get_chunk_bytes(&stored.hash).await.unwrap(), stored.bytes);
    assert_eq!(figure(node, "dozo_node_repaired_chunks_total").await, 1);
    assert_eq!(node.client.get_chunk_bytes(&stored.hash).await.unwrap(), stored.bytes);
    assert_eq!(figure(node, "dozo_node_repaired_chunks_total").await, 1, "it is good now");
    site.settle(&[stored]).await;
    site.stop().await;
}

/// Whatever the maps say one after the other, also before anything could settle: every chunk is somewhere at every
/// moment, and in the end where it belongs, with every reference.
#[tokio::test(flavor = "multi_thread")]
async fn no_sequence_of_maps_loses_a_chunk_or_a_reference() {
    let site = Site::start(4, 2).await;
    let stored = site.write_some(30).await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..40 {
        let (index, what) = (draw(4) as usize, draw(4));
        let weight = [0, 0, 50, 100, 300][draw(5) as usize];
        site.search.change(|site| match what {
            0 => site.replicas = 1 + (site.replicas % 3),
            1 => site.nodes[index].alive ^= true,
            _ => site.nodes[index].weight = weight,
        });
        tokio::time::sleep(Duration::from_millis(draw(400))).await;
        let Stored { hash, bytes, .. } = &stored[draw(30) as usize];
        let mut copies = 0;
        // A copy may go from a node already asked to one yet to be; then it is there on the second look.
        for node in site.nodes.iter().chain(&site.nodes) {
            match node.client.get_chunk_bytes(hash).await {
                Ok(read) if read == bytes => copies += 1,
                Ok(_) => panic!("other bytes"),
                Err(error) => assert_eq!(error.code(), Some(ErrorCode::ChunkNotFound)),
            }
        }
        assert!(copies > 0);
    }
    site.search.change(|site| {
        site.replicas = 2;
        site.nodes.iter_mut().for_each(|node| (node.weight, node.alive) = (100, true));
    });
    site.settle(&stored).await;
    site.stop().await;
}
