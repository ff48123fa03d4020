//! What spans two slots: one node may own both, or each of two nodes one.

use common::api::node::{OpenAnswer, OpenBatch, OpenRequest};
use common::cluster::NodeState;
use common::error::ErrorBody;

use super::*;

/// A site of two nodes, each with its share of the slots.
struct Pair {
    nodes: [TestNode; 2],
    search: std::sync::Arc<Fake>,
    _dir: tempfile::TempDir,
}

impl Pair {
    async fn start() -> Self {
        Self::start_after(async |_| ()).await
    }

    /// With something done while the first node still has all slots.
    async fn start_after(alone: impl AsyncFnOnce(&TestNode)) -> Self {
        let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
        // Deliveries that may be closed are closed within half a second.
        let first = config("n1", "memory:", dir.path(), &search.url);
        let first = start(Config { delivery_open_max_ms: 5_000, ..first }).await;
        ready(&first).await;
        alone(&first).await;
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

fn open_request(client: &ClientId, name: &ContentName, range: Option<&str>) -> OpenRequest {
    OpenRequest {
        delivery: DeliveryId::generate(Clock::System.now()),
        client: client.clone(),
        name: name.clone(),
        range: range.map(str::to_owned),
        surrogate: None,
        mobile_access: None,
        quota: Default::default(),
    }
}

/// One delivery in a batch of its own.
async fn open(node: &TestNode, request: OpenRequest) -> Result<OpenAnswer, ErrorBody> {
    node.client.open(&OpenBatch { opens: vec![request] }).await.unwrap().answers.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_is_for_the_node_that_owns_both_slots() {
    let pair = Pair::start().await;
    let song = name("alice/song");
    let owner = pair.owner(Slot::of_name(&song));
    let manifest = manifest(b"la", ChunkList::Inline(vec![chunk(b"la")]));
    owner.client.hold(&publication(&song, manifest, RefTag(7))).await.unwrap();
    let (here, elsewhere) = pair.clients(&song);
    let request = |client: &ClientId| open_request(client, &song, None);
    let opened = open(owner, request(&here)).await.unwrap();
    let begin = opened.begin.unwrap();
    assert_eq!((begin.class, &begin.shard), (DeliveryClass::Purchase, &owner.id));
    assert!(owner.client.library_row(&here, &song).await.unwrap().is_some());
    let held_by = async || {
        let page = owner.client.holding_clients(&song, "", 10).await.unwrap();
        page.clients.into_iter().map(|holder| holder.client).collect::<Vec<_>>()
    };
    assert_eq!(held_by().await, [client_id("alice"), here.clone()]);
    for node in &pair.nodes {
        let refused = open(node, request(&elsewhere)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::WrongNode);
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

/// Eight clients get half of eight contents while one node has all slots, the other half when two have them.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_range_joins_its_delivery_after_the_clients_slot_has_moved() {
    let bytes = b"la la la";
    let wanted: Vec<(ClientId, ContentName)> =
        (0..8).map(|n| (client_id(&format!("client-{n}")), name(&format!("alice/song-{n}")))).collect();
    let mut deliveries = Vec::new();
    let pair = Pair::start_after(async |first| {
        for (client, song) in &wanted {
            let manifest = manifest(bytes, ChunkList::Inline(vec![chunk(bytes)]));
            first.client.hold(&publication(song, manifest, RefTag(7))).await.unwrap();
            let opened = open(first, open_request(client, song, Some("bytes=0-3"))).await.unwrap();
            let begin = opened.begin.unwrap();
            first.client.end(&ends(&begin.shard, begin.delivery, 4)).await.unwrap();
            deliveries.push(begin.delivery);
        }
    })
    .await;
    let [first, second] = &pair.nodes;
    let (mut begun, mut opened, mut left) = (0, 0, 0);
    for ((client, song), delivery) in wanted.iter().zip(deliveries) {
        let owner = pair.owner(Slot::of_client(client));
        let has_both = pair.owner(Slot::of_name(song)).id == owner.id;
        let later = open_request(client, song, Some("bytes=4-"));
        let request = later.delivery;
        let at_once = if has_both { open(owner, later).await.unwrap().begin } else { None };
        assert_eq!(at_once.is_some(), has_both && owner.id == first.id, "only there the delivery is at hand");
        let answer = if let Some(begun) = at_once {
            begun
        } else if !has_both && owner.id == second.id && left == 0 {
            // This one does not come back.
            left += 1;
            continue;
        } else {
            let begin = BeginRequest { range_start: 4, ..begin_request(client.as_str(), song, bytes) };
            let begin = BeginRequest { delivery: request, ..begin };
            let answer = owner.client.begin(&begin).await.unwrap();
            assert_eq!(owner.client.begin(&begin).await.unwrap().delivery, answer.delivery, "the same again");
            answer
        };
        assert_eq!((answer.delivery, &answer.shard), (delivery, &first.id));
        assert_eq!(answer.class, DeliveryClass::Purchase);
        let ends = vec![EndRequest { delivery, request, bytes_sent: 4 }];
        first.client.end(&EndBatch { shard: answer.shard, ends }).await.unwrap();
        let row = owner.client.library_row(client, song).await.unwrap().unwrap();
        assert_eq!(row.deliveries, 1);
        *(if has_both { &mut opened } else { &mut begun }) += usize::from(owner.id == second.id);
    }
    assert!(begun > 0 && opened > 0 && left > 0, "the names are such that each case is there");
    until("those that are complete are booked", async || pair.search.record_count() == 7).await;

    // The one that is left waits for the rest, but not when its node is to go.
    pair.search.change(|site| (site.nodes[0].weight, site.nodes[0].state) = (0, NodeState::Draining));
    until("what is left is booked", async || pair.search.record_count() == 8).await;
    let records = pair.search.books.lock().unwrap().records.clone();
    let records: Vec<_> = records
        .into_iter()
        .flat_map(|((node, _), links)| {
            assert_eq!(node, first.id);
            links.into_iter().map(|link| (link.record.status, link.record.bytes_sent))
        })
        .collect();
    assert_eq!(records[..7], [(DeliveryStatus::Complete, 8); 7]);
    assert_eq!(records[7], (DeliveryStatus::Partial, 4));
    pair.stop().await;
}
