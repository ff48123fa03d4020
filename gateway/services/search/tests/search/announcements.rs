//! Announcements, versions, withdrawals, the change feed.

use common::api::search::{
    AnnounceBatch, Announcement, Announcer, ChangeKind, ClientLimits, HolderName, ListQuery, MissingAt,
    NewBucket, NewClient, Visibility,
};
use common::error::ErrorCode;
use common::placement::{SLOT_COUNT, Slot};

use crate::harness::{AT_ONCE, SOON, TestSearch, assert_code, batch, hold, id, release, version, withdraw};

#[tokio::test]
async fn a_batch_is_applied_once_and_a_gap_not_at_all() {
    let search = TestSearch::new().await.with_alice().await;
    let items = vec![hold("alice/a", 1), hold("alice/b", 1)];
    search.announce("tokyo.n1", 1, items.clone()).await;
    search.announce("tokyo.n1", 1, items).await;
    // Overlaps what is known: only the new part counts, so the release of `a` before it is not undone.
    search.announce("tokyo.n1", 3, vec![release("alice/a", 1)]).await;
    search.announce("tokyo.n1", 2, vec![hold("alice/b", 1), release("alice/a", 1), hold("alice/c", 1)]).await;
    assert_code(search.client.lookup(&id("alice/a")).await, ErrorCode::ContentNotFound);
    search.client.lookup(&id("alice/c")).await.unwrap();

    let gap = search.client.announce(&batch("tokyo.n1", 1, 9, vec![hold("alice/z", 1)])).await.unwrap();
    assert_eq!(gap.next_seq, 5);
    assert_code(search.client.lookup(&id("alice/z")).await, ErrorCode::ContentNotFound);
}

#[tokio::test]
async fn a_higher_epoch_begins_at_one_and_a_lower_one_is_refused() {
    let search = TestSearch::new().await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 1), hold("alice/b", 1)]).await;
    let gap = search.client.announce(&batch("tokyo.n1", 2, 3, vec![hold("alice/c", 1)])).await.unwrap();
    assert_eq!(gap.next_seq, 1);
    let taken = search.client.announce(&batch("tokyo.n1", 2, 1, vec![hold("alice/c", 1)])).await.unwrap();
    assert_eq!(taken.next_seq, 2);
    let old = search.client.announce(&batch("tokyo.n1", 1, 3, vec![hold("alice/d", 1)])).await;
    assert_code(old, ErrorCode::Conflict);
    let zero = search.client.announce(&batch("tokyo.n1", 2, 0, vec![])).await;
    assert_code(zero, ErrorCode::InvalidRequest);
}

#[tokio::test]
async fn the_newest_version_wins_in_whatever_order_it_is_announced() {
    let search = TestSearch::new().await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 2)]).await;
    search.announce("osaka.n1", 1, vec![hold("alice/a", 1)]).await;
    let info = search.client.lookup(&id("alice/a")).await.unwrap();
    assert_eq!((info.version, info.len, info.sites), (version(2), 12, vec![id("tokyo")]));
    assert_eq!(info.provider, id("alice"));
    search.announce("osaka.n2", 1, vec![hold("alice/a", 2)]).await;
    let by_origin = AnnounceBatch {
        announcer: Announcer::Origin(id("studio")),
        epoch: 5,
        first_seq: 1,
        items: vec![hold("alice/a", 2)],
    };
    search.client.announce(&by_origin).await.unwrap();
    let info = search.client.lookup(&id("alice/a")).await.unwrap();
    assert_eq!(info.sites, [id("osaka"), id("tokyo")]);
    assert_eq!(info.origins, [id("studio")]);
    // Releasing an older version than it holds changes nothing; releasing the newest leaves the others.
    search
        .announce("tokyo.n1", 2, vec![release("alice/a", 1), hold("alice/a", 3), release("alice/a", 3)])
        .await;
    assert_code(search.client.lookup(&id("alice/a")).await, ErrorCode::ContentNotFound);
    search.announce("osaka.n1", 2, vec![hold("alice/a", 3)]).await;
    assert_eq!(search.client.lookup(&id("alice/a")).await.unwrap().sites, [id("osaka")]);
}

#[tokio::test]
async fn a_withdrawn_content_comes_back_only_with_a_newer_version() {
    let search = TestSearch::new().await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 5), withdraw("alice/a", 5)]).await;
    assert_code(search.client.lookup(&id("alice/a")).await, ErrorCode::ContentNotFound);
    search.announce("osaka.n1", 1, vec![hold("alice/a", 4), hold("alice/a", 5)]).await;
    assert_code(search.client.lookup(&id("alice/a")).await, ErrorCode::ContentNotFound);
    search.announce("osaka.n1", 3, vec![hold("alice/a", 6)]).await;
    assert_eq!(search.client.lookup(&id("alice/a")).await.unwrap().version, version(6));
    // A withdrawal of an older version leaves the newer.
    search.announce("tokyo.n1", 3, vec![withdraw("alice/a", 5)]).await;
    search.client.lookup(&id("alice/a")).await.unwrap();
    // A withdrawal may come before the announcement that it takes back.
    search.announce("tokyo.n1", 4, vec![withdraw("alice/early", 3)]).await;
    search.announce("osaka.n1", 4, vec![hold("alice/early", 3)]).await;
    assert_code(search.client.lookup(&id("alice/early")).await, ErrorCode::ContentNotFound);
}

#[tokio::test]
async fn the_change_feed_tells_holders_what_they_missed() {
    let search = TestSearch::new().await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 2), hold("alice/b", 1)]).await;
    let page = search.client.changes(0, AT_ONCE).await.unwrap();
    assert!(page.changes.is_empty(), "first versions supersede nothing");

    let waiting = tokio::spawn({
        let (client, last) = (search.client.clone(), page.last);
        async move { client.changes(last, SOON).await.unwrap() }
    });
    search.announce("osaka.n1", 1, vec![hold("alice/a", 3)]).await;
    let page = waiting.await.unwrap();
    let told: Vec<_> = page.changes.iter().map(|c| (c.kind, c.name.as_str(), c.version)).collect();
    assert_eq!(told, [(ChangeKind::NewVersion, "alice/a", version(3))]);
    // A site that announces what is older already, or withdrawn, is told as well.
    search.announce("kyoto.n1", 1, vec![hold("alice/a", 1)]).await;
    search.announce("tokyo.n1", 3, vec![withdraw("alice/b", 1)]).await;
    search.announce("kyoto.n1", 2, vec![hold("alice/b", 1)]).await;
    let page = search.client.changes(page.last, AT_ONCE).await.unwrap();
    let told: Vec<_> = page.changes.iter().map(|c| (c.kind, c.name.as_str(), c.version)).collect();
    assert_eq!(
        told,
        [(ChangeKind::NewVersion, "alice/a", version(3)), (ChangeKind::Withdrawn, "alice/b", version(1))]
    );
    assert_eq!(page.last, page.changes[1].seq);
    let beyond = search.client.changes(1_000_000, SOON).await.unwrap();
    assert_eq!(beyond.changes.len(), 2, "a number of another feed is answered from the beginning");
}

#[tokio::test]
async fn nobody_is_paid_for_a_bucket_that_is_not_theirs() {
    let search = TestSearch::new().await.with_alice().await;
    let forged = Announcement::Hold {
        name: id("alice/a"),
        version: version(1),
        len: 1,
        media_type: "text/plain".into(),
        provider: id("mallory"),
    };
    search.announce("tokyo.n1", 1, vec![forged]).await;
    assert_code(search.client.lookup(&id("alice/a")).await, ErrorCode::ContentNotFound);
}

#[tokio::test]
async fn a_holder_without_the_content_is_forgotten() {
    let search = TestSearch::new().await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 2)]).await;
    search.announce("osaka.n1", 1, vec![hold("alice/a", 2)]).await;
    let missing =
        async |time, at| search.client.report_missing(&id("alice/a"), version(time), &at).await.unwrap();
    missing(1, MissingAt::Site(id("tokyo"))).await;
    assert_eq!(search.client.lookup(&id("alice/a")).await.unwrap().sites.len(), 2);
    missing(2, MissingAt::Site(id("tokyo"))).await;
    missing(2, MissingAt::Origin(id("osaka"))).await;
    assert_eq!(search.client.lookup(&id("alice/a")).await.unwrap().sites, [id("osaka")]);
    missing(2, MissingAt::Site(id("osaka"))).await;
    assert_code(search.client.lookup(&id("alice/a")).await, ErrorCode::ContentNotFound);
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let search = TestSearch::new().await.with_alice().await;
    let keys =
        search.client.create_client(&NewClient { client: id("bob"), site: id("tokyo") }).await.unwrap();
    search.client.disable_client(&id("bob")).await.unwrap();
    let limits =
        ClientLimits { quota_bytes: Some(1 << 40), requests_per_s: Some(5), ..ClientLimits::default() };
    assert_eq!(search.client.limit_client(&id("bob"), &limits).await.unwrap().limits, limits);
    let none = ClientLimits { bytes_per_s: Some(0), ..limits };
    assert_code(search.client.limit_client(&id("bob"), &none).await, ErrorCode::InvalidRequest);
    assert_code(search.client.limit_client(&id("nobody"), &limits).await, ErrorCode::ClientNotFound);
    search
        .announce("tokyo.n1", 1, vec![hold("alice/a", 1), hold("alice/b", 1), withdraw("alice/b", 1)])
        .await;
    let before = (
        search.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap(),
        search.client.lookup(&id("alice/a")).await.unwrap(),
        search.client.changes(0, AT_ONCE).await.unwrap().changes,
        search.client.clients().await.unwrap(),
        search.client.buckets().await.unwrap(),
    );
    let search = search.restart().await;
    let after = (
        search.client.map(common::cluster::MapEpoch(0), AT_ONCE).await.unwrap(),
        search.client.lookup(&id("alice/a")).await.unwrap(),
        search.client.changes(0, AT_ONCE).await.unwrap().changes,
        search.client.clients().await.unwrap(),
        search.client.buckets().await.unwrap(),
    );
    assert_eq!(before, after);
    let hash = common::auth::token_hash(&keys.token);
    let bob = search.client.client_by_token(&hash).await.unwrap();
    assert!(bob.disabled);
    assert_eq!(bob.limits, limits);
    search.announce("tokyo.n1", 4, vec![hold("alice/c", 1)]).await;
}

#[tokio::test]
async fn clients_and_buckets_are_made_once() {
    let search = TestSearch::new().await.with_alice().await;
    let bob = NewClient { client: id("bob"), site: id("tokyo") };
    let keys = search.client.create_client(&bob).await.unwrap();
    assert!(keys.access_key.starts_with("DZ") && keys.access_key.len() == 20, "{}", keys.access_key);
    assert_eq!((keys.secret_key.len(), keys.token.len()), (40, 53));
    assert_code(search.client.create_client(&bob).await, ErrorCode::Conflict);
    let nowhere = NewClient { client: id("carol"), site: id("tokio") };
    assert_code(search.client.create_client(&nowhere).await, ErrorCode::InvalidRequest);
    let record = search.client.client_by_token(&common::auth::token_hash(&keys.token)).await.unwrap();
    assert_eq!((record.client, record.site, record.disabled), (id("bob"), id("tokyo"), false));
    assert_code(search.client.client_by_token("x").await, ErrorCode::ClientNotFound);
    assert_code(search.client.disable_client(&id("nobody")).await, ErrorCode::ClientNotFound);

    let private = |provider: &str| NewBucket { provider: id(provider), visibility: Visibility::Private };
    let made = search.client.put_bucket(&id("bobs"), &private("bob")).await.unwrap();
    assert_eq!(search.client.put_bucket(&id("bobs"), &private("bob")).await.unwrap(), made);
    assert_code(search.client.put_bucket(&id("bobs"), &private("alice")).await, ErrorCode::Conflict);
    assert_code(search.client.put_bucket(&id("news"), &private("nobody")).await, ErrorCode::ClientNotFound);
    assert_code(search.client.bucket(&id("news")).await, ErrorCode::BucketNotFound);
    let public = NewBucket { visibility: Visibility::Public, ..private("bob") };
    let changed = search.client.put_bucket(&id("bobs"), &public).await.unwrap();
    assert_eq!((changed.visibility, changed.created), (Visibility::Public, made.created));
    let names: Vec<_> = search.client.buckets().await.unwrap().into_iter().map(|b| b.bucket).collect();
    assert_eq!(names, [id("alice"), id("bobs")]);
}

#[tokio::test]
async fn a_snapshot_confirms_what_is_held_and_the_rest_goes_without_a_moment_in_which_anything_is_missing() {
    let search = TestSearch::new().await.with_alice().await;
    let names: Vec<String> = (0..600).map(|i| format!("alice/{i}")).collect();
    let all: Vec<_> = names.iter().map(|name| hold(name, 1)).collect();
    search.announce("tokyo.n1", 1, all.clone()).await;
    search.announce("osaka.n1", 1, vec![hold("alice/0", 1)]).await;
    let slots: Vec<Slot> = (0..SLOT_COUNT).map(Slot).collect();
    // Asked for by the operator: told with every answer until the snapshot begins.
    assert_eq!(search.client.resync(&id("tokyo")).await.unwrap().nodes, 1);
    let answer = search.client.announce(&batch("tokyo.n1", 1, 601, vec![])).await.unwrap();
    assert_eq!((answer.next_seq, answer.resync), (601, true));
    let begin = batch("tokyo.n1", 1, 601, vec![Announcement::SnapshotBegin]);
    assert!(!search.client.announce(&begin).await.unwrap().resync);
    assert!(!search.client.announce(&batch("tokyo.n1", 1, 602, vec![])).await.unwrap().resync);
    // Half of it is confirmed; of the rest, what happens meanwhile counts as well.
    search.announce("tokyo.n1", 602, all[..300].to_vec()).await;
    search.announce("tokyo.n1", 902, vec![hold("alice/450", 2), release("alice/7", 1)]).await;
    for name in names.iter().filter(|name| *name != "alice/7") {
        search.client.lookup(&id(name)).await.unwrap();
    }
    // Slots that have moved to another node meanwhile are not the snapshot's affair.
    let elsewhere = Slot::of_name(&id("alice/599"));
    let covered = slots.iter().copied().filter(|slot| *slot != elsewhere).collect();
    // What is told after the end, before its sweep, is no less there than what the snapshot told.
    let end = Announcement::SnapshotEnd { slots: covered };
    search.announce("tokyo.n1", 904, vec![end, hold("alice/451", 2), hold("alice/452", 1)]).await;
    let is_left = |i: usize| {
        (i < 300 && i != 7)
            || (450..453).contains(&i)
            || Slot::of_name(&id(&format!("alice/{i}"))) == elsewhere
    };
    let begin = std::time::Instant::now();
    loop {
        let mut wrong = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let sites = search.client.holders(&id(name)).await.unwrap().holders;
            let tokyo = sites.iter().any(|line| line.holder == HolderName::Site(id("tokyo")));
            assert!(tokyo || !is_left(i), "{name} was withdrawn");
            if tokyo != is_left(i) {
                wrong.push(name);
            }
        }
        if wrong.is_empty() {
            break;
        }
        assert!(begin.elapsed() < SOON, "not withdrawn: {wrong:?}");
    }
    assert_eq!(search.client.lookup(&id("alice/0")).await.unwrap().sites.len(), 2);
}

#[tokio::test]
async fn batches_that_arrive_together_are_as_if_each_came_alone() {
    let search = TestSearch::new().await.with_alice().await;
    let nodes = (0..40).map(|node| {
        let client = search.client.clone();
        tokio::spawn(async move {
            let (node, name) = (format!("s{node}.n1"), format!("alice/own-{node}"));
            let items = vec![
                hold("alice/shared", 5),
                hold(&name, 1),
                hold("alice/gone", 3),
                release("alice/gone", 3),
            ];
            let gap = client.announce(&batch(&node, 1, 2, vec![hold("alice/gap", 1)])).await.unwrap();
            let taken = client.announce(&batch(&node, 1, 1, items.clone())).await.unwrap();
            let again = client.announce(&batch(&node, 1, 1, items)).await.unwrap();
            let zero = client.announce(&batch(&node, 1, 0, vec![])).await;
            assert_code(zero, ErrorCode::InvalidRequest);
            (gap.next_seq, taken.next_seq, again.next_seq)
        })
    });
    for node in nodes.collect::<Vec<_>>() {
        assert_eq!(node.await.unwrap(), (1, 5, 5));
    }
    assert_eq!(search.client.lookup(&id("alice/shared")).await.unwrap().sites.len(), 40);
    for name in ["alice/gone", "alice/gap"] {
        assert_code(search.client.lookup(&id(name)).await, ErrorCode::ContentNotFound);
    }
    let page = search.client.list(&id("alice"), &ListQuery::default()).await.unwrap();
    assert_eq!(page.contents.len(), 41);
}
