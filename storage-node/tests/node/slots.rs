//! What spans two slots: one node may own both, or each of two nodes one.

use common::api::node::OpenRequest;

use super::*;

/// A site of two nodes, each with its share of the slots.
struct Pair {
    nodes: [TestNode; 2],
    search: std::sync::Arc<Fake>,
    _dir: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
        let first = start(config("n1", "memory:", dir.path(), &search.url)).await;
        ready(&first).await;
        let second = start(config("n2", "memory:", dir.path(), &search.url)).await;
        ready(&second).await;
        until("the second node has a share", async || search.owned(&second.id) > 400).await;
        until("every slot is where it belongs", async || {
            let map = search.map.borrow();
            let site = &map.sites[0];
            let at_home = |slot| {
                let preferred = common::placement::preferred_owner(site, slot).map(|node| &node.id);
                site.slot_owner(slot).map(|node| &node.id) == preferred
            };
            (0..common::placement::SLOT_COUNT).map(Slot).all(at_home)
        })
        .await;
        let epoch = search.map.borrow().epoch;
        for node in [&first, &second] {
            until("the map is known", async || node.client.map().await.unwrap().epoch >= epoch).await;
        }
        Self { nodes: [first, second], search, _dir: dir }
    }

    fn owner(&self, slot: Slot) -> &TestNode {
        let map = self.search.map.borrow();
        let owner = map.sites[0].slot_owner(slot).unwrap().id.clone();
        self.nodes.iter().find(|node| node.id == owner).unwrap()
    }

    /// A client whose slot is at the node that owns the name's slot, and one whose slot is not.
    fn clients(&self, name: &ContentName) -> (ClientId, ClientId) {
        let owner = &self.owner(Slot::of_name(name)).id;
        let is_here = |client: &ClientId| &self.owner(Slot::of_client(client)).id == owner;
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            (0..100).map(|n| client_id(&format!("client-{n}"))).partition(is_here);
        (here[0].clone(), elsewhere[0].clone())
    }

    async fn stop(self) {
        for node in self.nodes {
            node.running.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_is_for_the_node_that_owns_both_slots() {
    let pair = Pair::start().await;
    let song = name("alice/song");
    let owner = pair.owner(Slot::of_name(&song));
    let manifest = manifest(b"la", ChunkList::Inline(vec![chunk(b"la")]));
    owner.client.hold(&publication(&song, manifest, RefTag(7))).await.unwrap();
    let (here, elsewhere) = pair.clients(&song);
    let request = |client: &ClientId| OpenRequest {
        delivery: DeliveryId::generate(Clock::System.now()),
        client: client.clone(),
        name: song.clone(),
        range: None,
        surrogate: None,
        mobile_access: None,
        quota: Default::default(),
    };
    let opened = owner.client.open(&request(&here)).await.unwrap();
    let begin = opened.begin.unwrap();
    assert_eq!((begin.class, &begin.shard), (DeliveryClass::Purchase, &owner.id));
    assert!(owner.client.library_row(&here, &song).await.unwrap().is_some());
    let held_by = async || {
        let page = owner.client.holding_clients(&song, "", 10).await.unwrap();
        page.clients.into_iter().map(|holder| holder.client).collect::<Vec<_>>()
    };
    assert_eq!(held_by().await, [client_id("alice"), here.clone()]);
    for node in &pair.nodes {
        let refused = node.client.open(&request(&elsewhere)).await.unwrap_err();
        assert_eq!(refused.code(), Some(ErrorCode::WrongNode));
    }
    assert_eq!(held_by().await, [client_id("alice"), here.clone()]);
    owner.client.end(&ends(&begin.shard, begin.delivery, 2)).await.unwrap();
    until("the delivery is booked", async || pair.search.record_count() == 1).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_is_in_its_providers_library_when_the_hold_is_answered() {
    let pair = Pair::start().await;
    let song = name("alice/song");
    let (here, elsewhere) = pair.clients(&song);
    for (client, tag) in [(here, 1), (elsewhere, 2)] {
        let manifest = manifest(b"la", ChunkList::Inline(vec![chunk(b"la")]));
        let hold = HoldRequest {
            client: Some(client.clone()),
            add_to_library: true,
            ..publication(&song, manifest, RefTag(tag))
        };
        let owner = pair.owner(Slot::of_name(&song));
        let held = owner.client.hold(&hold).await.unwrap();
        assert!(held.announced && held.in_library);
        let library = pair.owner(Slot::of_client(&client));
        let row = library.client.library_row(&client, &song).await.unwrap().unwrap();
        assert_eq!((row.deliveries, row.len), (0, 2));
    }
    pair.stop().await;
}
