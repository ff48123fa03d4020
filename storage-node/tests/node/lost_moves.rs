//! Search dies while slots move: whoever has the rows serves them, nobody else does, and when search is back nothing
//! that was acknowledged is lost or there twice.

use std::sync::{Arc, Mutex};

use common::client::CallError;
use common::cluster::ClusterMap;
use common::placement::{SLOT_COUNT, preferred_owner};

use super::fake::Death;
use super::*;

const NAMES: usize = 60;
const BYTES: &[u8] = b"la la la";

/// Nodes that keep their address when they are restarted, and one who asks them as a gateway does.
struct Site {
    dir: tempfile::TempDir,
    search: Arc<Fake>,
    nodes: Vec<Option<TestNode>>,
    /// What a gateway knows.
    map: Mutex<ClusterMap>,
}

impl Site {
    async fn start(count: usize) -> Self {
        let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
        let mut site = Self { dir, search, nodes: Vec::new(), map: Mutex::default() };
        for _ in 0..count {
            site.add().await;
        }
        site
    }

    fn config(&self, index: usize) -> Config {
        let name = format!("n{}", index + 1);
        std::fs::create_dir_all(self.dir.path().join(&name)).unwrap();
        let store = format!("file:{}/{name}/store?size=256MiB", self.dir.path().display());
        config(&name, &store, self.dir.path(), &self.search.url)
    }

    async fn add(&mut self) {
        let node = start(self.config(self.nodes.len())).await;
        self.nodes.push(Some(node));
    }

    /// Answers its address.
    async fn stop_node(&mut self, index: usize) -> String {
        let running = self.nodes[index].take().unwrap().running;
        let address = running.http.trim_start_matches("http://").to_owned();
        running.stop().await;
        address
    }

    async fn start_node(&mut self, index: usize, address: &str) {
        let node = start(Config { listen: address.parse().unwrap(), ..self.config(index) }).await;
        ready(&node).await;
        self.nodes[index] = Some(node);
    }

    async fn restart(&mut self, index: usize) {
        let address = self.stop_node(index).await;
        self.start_node(index, &address).await;
    }

    fn node(&self, index: usize) -> &TestNode {
        self.nodes[index].as_ref().unwrap()
    }

    /// A second node joins, and search dies at its first move of slots.
    async fn loses_a_move(&mut self, death: Death) {
        self.search.dies(death);
        self.add().await;
        until("search dies", async || self.search.is_away()).await;
    }

    fn learn(&self, map: ClusterMap) {
        let mut known = self.map.lock().unwrap();
        if map.epoch > known.epoch {
            *known = map;
        }
    }

    /// Once to the node that the gateway takes for the right one; then maps are exchanged if it is not.
    async fn ask<A>(
        &self,
        slot: Slot,
        call: impl AsyncFn(NodeClient) -> Result<A, CallError>,
    ) -> Result<A, CallError> {
        if !self.search.is_away() {
            self.learn(self.search.map.borrow().clone());
        }
        let known = self.map.lock().unwrap().clone();
        let node = NodeClient::new(server_client(), &known.sites[0].slot_primary(slot).unwrap().http);
        let answer = call(node.clone()).await;
        if answer.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::WrongNode))
            && let Ok(theirs) = node.map().await
        {
            if theirs.epoch < known.epoch {
                node.hand_on_map(&known).await.unwrap();
            }
            self.learn(theirs);
        }
        answer
    }

    /// Again and again, as long as a gateway has patience.
    async fn asked<A>(&self, slot: Slot, call: impl AsyncFn(NodeClient) -> Result<A, CallError>) -> A {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(15);
        loop {
            match self.ask(slot, &call).await {
                Ok(answer) => return answer,
                Err(error) => {
                    assert!(error.is_retryable() && tokio::time::Instant::now() < deadline, "{error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    async fn hold(&self, name: &ContentName) -> Version {
        let manifest = manifest(BYTES, ChunkList::Inline(vec![chunk(BYTES)]));
        let request = HoldRequest { announce_wait_ms: 0, ..publication(name, manifest, RefTag::generate()) };
        self.asked(Slot::of_name(name), async |node| node.hold(&request).await).await.version
    }

    async fn held(&self, name: &ContentName) -> Option<Version> {
        let request = ResolveRequest { name: name.clone(), client: None };
        let answer = self.asked(Slot::of_name(name), async |node| node.resolve(&request).await).await;
        answer.holding.map(|holding| holding.version)
    }

    /// One delivery, whole.
    async fn deliver(&self, client: &ClientId, name: &ContentName) {
        let begin = begin_request(client.as_str(), name, BYTES);
        let begun = self.asked(Slot::of_client(client), async |node| node.begin(&begin).await).await;
        // Delivered means recorded by the shard in which it began, wherever the slot goes.
        let primary = self.map.lock().unwrap().sites[0].shard_primary(&begun.shard).unwrap().http.clone();
        let end = ends(&begun.shard, begun.delivery, BYTES.len() as u64);
        NodeClient::new(server_client(), &primary).end(&end).await.unwrap();
    }

    async fn deliveries(&self, client: &ClientId, name: &ContentName) -> u64 {
        let row =
            self.asked(Slot::of_client(client), async |node| node.library_row(client, name).await).await;
        row.map_or(0, |row| row.deliveries)
    }

    /// Waits until every slot is with the node that is to have it, and nothing of a move is left.
    async fn settled(&self) {
        until("every slot is where it belongs", async || {
            let map = self.search.map.borrow();
            let site = &map.sites[0];
            let is_home = |slot: Slot| {
                let owner = site.slot_owner(slot).map(|node| &node.id);
                owner == preferred_owner(site, slot).map(|node| &node.id)
            };
            (0..SLOT_COUNT).map(Slot).all(is_home)
        })
        .await;
        for node in self.nodes.iter().flatten() {
            until("nothing waits to be fetched", async || {
                let status: NodeStatus = server_client()
                    .get_json(&node.running.admin, Role::StorageNode, "/v1/node", Duration::from_secs(5))
                    .await
                    .unwrap();
                status.unsettled == 0
            })
            .await;
        }
    }

    async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            node.running.stop().await;
        }
    }
}

fn names() -> Vec<ContentName> {
    (0..NAMES).map(|n| name(&format!("alice/song-{n}"))).collect()
}

fn listener(n: usize) -> ClientId {
    client_id(&format!("listener-{n}"))
}

/// What happens while search is away, beside writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    RestartOld,
    RestartNew,
    RestartBoth,
}

/// Every name is written and delivered before search dies, while it is away, and when it is back.
async fn survives(death: Death, meanwhile: Meanwhile) {
    let mut site = Site::start(1).await;
    ready(site.node(0)).await;
    let names = names();
    let round = async |site: &Site| {
        let mut versions = Vec::new();
        for (n, name) in names.iter().enumerate() {
            versions.push(site.hold(name).await);
            site.deliver(&listener(n), name).await;
        }
        versions
    };
    let check = async |site: &Site, versions: &[Version], rounds: u64| {
        for (n, (name, version)) in names.iter().zip(versions).enumerate() {
            assert_eq!(site.held(name).await, Some(*version), "{name}");
            assert_eq!(site.deliveries(&listener(n), name).await, rounds, "{name}");
        }
    };
    let before = round(&site).await;
    site.loses_a_move(death).await;
    if death == Death::AfterMove {
        // The placement is always the same: before a move that is not made the same slots are on their way.
        let map = site.search.map.borrow();
        let moved =
            names.iter().filter(|name| map.sites[0].slot_owners[usize::from(Slot::of_name(name).0)] == 1);
        assert!(moved.count() > 0, "some of the names are in the slots that move first");
    }
    check(&site, &before, 1).await;
    let mut newest = round(&site).await;
    for (index, who) in [(0, Meanwhile::RestartOld), (1, Meanwhile::RestartNew)] {
        if meanwhile == who || meanwhile == Meanwhile::RestartBoth {
            site.restart(index).await;
        }
    }
    check(&site, &newest, 2).await;
    let mut rounds = 2;
    if meanwhile != Meanwhile::Nothing {
        newest = round(&site).await;
        rounds += 1;
    }
    site.search.comes_back();
    check(&site, &newest, rounds).await;
    site.settled().await;
    check(&site, &newest, rounds).await;
    newest = round(&site).await;
    check(&site, &newest, rounds + 1).await;
    let delivered = NAMES * (rounds as usize + 1);
    until("every delivery is booked", async || site.search.record_count() >= delivered).await;
    assert_eq!(site.search.record_count(), delivered);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_search_did_not_get_is_taken_back_and_made_later() {
    survives(Death::BeforeMove, Meanwhile::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_of_which_nobody_heard_goes_through_with_all_that_was_written_since() {
    survives(Death::AfterMove, Meanwhile::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_owner_remembers_that_it_took_slots_back() {
    survives(Death::BeforeMove, Meanwhile::RestartOld).await;
    survives(Death::AfterMove, Meanwhile::RestartOld).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_owner_remembers_what_it_promised() {
    survives(Death::BeforeMove, Meanwhile::RestartNew).await;
    survives(Death::AfterMove, Meanwhile::RestartNew).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_owners_may_be_restarted_while_search_is_away() {
    survives(Death::BeforeMove, Meanwhile::RestartBoth).await;
    survives(Death::AfterMove, Meanwhile::RestartBoth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_new_owner_slots_are_not_taken_back_and_the_error_says_why() {
    let mut site = Site::start(1).await;
    ready(site.node(0)).await;
    let names = names();
    for name in &names {
        site.hold(name).await;
    }
    site.loses_a_move(Death::AfterMove).await;
    let address = site.stop_node(1).await;
    let first = site.node(0).client.clone();
    let refusals = async || {
        let mut told = Vec::new();
        for name in &names {
            let request = ResolveRequest { name: name.clone(), client: None };
            if let Err(error) = first.resolve(&request).await {
                assert_eq!(error.code(), Some(ErrorCode::SlotMoving), "{error}");
                told.push(error.to_string());
            }
        }
        told
    };
    until("the old owner says what it waits for", async || {
        let told = refusals().await;
        assert!(!told.is_empty(), "nobody promised anything");
        told.iter().all(|told| told.contains("search does not answer, nor does tokyo.n2"))
    })
    .await;
    site.start_node(1, &address).await;
    until("it takes them back", async || refusals().await.is_empty()).await;
    site.search.comes_back();
    site.settled().await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_heard_of_the_move_tells_the_new_owner() {
    for is_taken_back in [false, true] {
        let mut site = Site::start(1).await;
        ready(site.node(0)).await;
        let names = names();
        let mut versions = Vec::new();
        for name in &names {
            versions.push(site.hold(name).await);
        }
        site.loses_a_move(Death::AfterMove).await;
        if is_taken_back {
            for (name, version) in names.iter().zip(&mut versions) {
                *version = site.hold(name).await;
            }
        }
        let told = site.search.map.borrow().clone();
        let moved = site.search.owned(&site.node(1).id);
        assert!(moved > 0);
        site.learn(told.clone());
        for (name, version) in names.iter().zip(&mut versions) {
            assert_eq!(site.held(name).await, Some(*version), "{name}, taken back: {is_taken_back}");
            *version = site.hold(name).await;
        }
        // No other node may serve what moved, whoever asks.
        let of_second = |name: &&ContentName| {
            told.sites[0].slot_owner(Slot::of_name(name)).unwrap().id == site.node(1).id
        };
        for name in names.iter().filter(of_second) {
            let request = ResolveRequest { name: name.clone(), client: None };
            let refused = site.node(0).client.resolve(&request).await.unwrap_err();
            assert!(
                matches!(refused.code(), Some(ErrorCode::WrongNode | ErrorCode::SlotMoving)),
                "{refused}"
            );
        }
        assert!(site.search.is_away());
        site.search.comes_back();
        site.settled().await;
        for (name, version) in names.iter().zip(&versions) {
            assert_eq!(site.held(name).await, Some(*version), "{name}, taken back: {is_taken_back}");
        }
        site.stop().await;
    }
}
