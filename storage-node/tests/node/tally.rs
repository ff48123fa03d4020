//! Who holds which bytes, on two nodes that take the slots of names and chunks apart.

use common::api::node::{ClientTally, TallySums, TallySumsRequest};

use super::*;

/// The sums over all slots, each asked of the node that owns it.
async fn sums(search: &Fake, nodes: &[&TestNode]) -> Option<TallySums> {
    let mut sums = TallySums::default();
    let site = search.map.borrow().sites[0].clone();
    for node in nodes {
        let slots = site.slots_owned_by(&node.id).collect();
        sums.add(&node.client.tally_sums(&TallySumsRequest { slots, clients: None }).await.ok()?);
    }
    Some(sums)
}

async fn until_sums(search: &Fake, nodes: &[&TestNode], expected: &[(&str, u64, u64)]) {
    let clients: BTreeMap<ClientId, ClientTally> = expected
        .iter()
        .map(|(client, unique_bytes, shared_held_bytes)| {
            let tally = ClientTally { unique_bytes: *unique_bytes, shared_held_bytes: *shared_held_bytes };
            (client_id(client), tally)
        })
        .collect();
    let mut last = None;
    for _ in 0..1000 {
        last = sums(search, nodes).await;
        if last.as_ref().is_some_and(|sums| sums.clients == clients) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("expected {clients:?}, got {last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_counted_at_chunks_on_other_nodes_and_go_along_with_slots() {
    let (dir, search) = (tempfile::tempdir().unwrap(), Fake::start().await);
    let first = start(config("n1", "memory:", dir.path(), &search.url)).await;
    ready(&first).await;
    let texts: Vec<&'static [u8]> = (0..20u8).map(|n| &*Box::leak(vec![n; 100].into_boxed_slice())).collect();
    for (n, text) in texts.iter().enumerate() {
        publish(&first.client, &name(&format!("alice/song-{n}")), text).await;
    }
    until_sums(&search, &[&first], &[("alice", 2000, 0)]).await;

    let second = start(config("n2", "memory:", dir.path(), &search.url)).await;
    ready(&second).await;
    until("the second node has a share", async || search.owned(&second.id) > 400).await;
    for n in 0..10 {
        let song = name(&format!("alice/song-{n}"));
        let resolve = ResolveRequest { name: song.clone(), client: Some(client_id("bob")) };
        ask_owner(&first, &second, async |node: &NodeClient| node.resolve(&resolve).await).await;
    }
    until_sums(&search, &[&first, &second], &[("alice", 1000, 1000), ("bob", 0, 1000)]).await;

    // A new version with other bytes: bob goes on with it, and nobody holds the old ones.
    let (song, bytes) = (name("alice/song-0"), b"another text".as_slice());
    let held = manifest(bytes, ChunkList::Inline(vec![chunk(bytes)]));
    let hold = publication(&song, held, RefTag::generate());
    ask_owner(&first, &second, async |node: &NodeClient| node.hold(&hold).await).await;
    until_sums(&search, &[&first, &second], &[("alice", 1000, 912), ("bob", 0, 912)]).await;

    for n in 0..10 {
        let release = ReleaseRequest {
            name: name(&format!("alice/song-{n}")),
            client: client_id("alice"),
            precondition: Precondition::None,
            announce_wait_ms: 0,
        };
        ask_owner(&first, &second, async |node: &NodeClient| node.release(&release).await).await;
    }
    until_sums(&search, &[&first, &second], &[("alice", 1000, 0), ("bob", 912, 0)]).await;
    let sums = sums(&search, &[&first, &second]).await.unwrap();
    assert_eq!((sums.physical_bytes(), sums.shared_bytes, sums.shared_held_bytes), (1912, 0, 0));
    first.running.stop().await;
    second.running.stop().await;
}
