//! Libraries and usage: what a client holds, what it gave up, what it is charged for, and what it may take.

use std::time::{Duration, Instant};

use common::api::gateway::{ClientUsage, SiteUsage};
use common::api::node::{LibraryPage, LibraryRow};
use common::api::peer::SiteHolders;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SOON, eventually};
use crate::http::Client;
use crate::{both_ways, fresh_bytes};

/// The client's usage, once these bytes are counted as its own and as shared.
fn await_usage(client: &Client, unique: u64, shared_held: u64) -> ClientUsage {
    eventually("what the client holds is counted", SOON, || {
        let usage: ClientUsage = client.get("/v1/usage").expect(200).json();
        let counted = (usage.unique_bytes, usage.shared_held_bytes) == (unique, shared_held);
        if counted { Ok(usage) } else { Err(format!("{usage:?}")) }
    })
}

/// Bounds a client that has asked for nothing yet: gateways remember for a while what they know of others.
fn limit(cluster: &Cluster, client: &Client, limits: &Value) {
    let search = cluster.operator(&cluster.endpoints.search.http);
    search.send_json("POST", &format!("/v1/clients/{}/limits", client.name), limits).expect(200);
}

both_ways! {
    fn a_library_lists_what_a_client_holds(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        for key in ["a/1", "a/2", "b/1"] {
            alice.put_content(&format!("{bucket}/{key}"), &fresh_bytes(1000)).expect(201);
            bob.get_content(&format!("{bucket}/{key}")).expect(200);
        }
        bob.get_content(&format!("{bucket}/a/1")).expect(200);
        let names = |query: &str| -> Vec<String> {
            let page: LibraryPage = bob.get(&format!("/v1/library{query}")).expect(200).json();
            page.rows.iter().map(|row| row.name.key().to_owned()).collect()
        };
        assert_eq!(names(""), ["a/1", "a/2", "b/1"]);
        assert_eq!(names(&format!("?prefix={bucket}%2Fa")), ["a/1", "a/2"]);
        let page: LibraryPage = bob.get("/v1/library?limit=2").expect(200).json();
        assert_eq!(page.rows.len(), 2);
        let next = common::client::encode(&page.next.expect("there is more")).to_string();
        assert_eq!(names(&format!("?limit=2&after={next}")), ["b/1"]);
        let row: LibraryRow = bob.get(&format!("/v1/library/{bucket}/a/1")).expect(200).json();
        assert_eq!((row.deliveries, row.recent.len(), row.len), (2, 2, 1000));
        assert_eq!(row.provider.as_str(), alice.name);
        assert_eq!(alice.get("/v1/library").expect(200).json::<LibraryPage>().rows.len(), 3, "its own contents");
    }

    fn a_dropped_content_is_a_purchase_again(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let name = format!("{bucket}/song");
        alice.put_content(&name, &fresh_bytes(5000)).expect(201);
        let class = || bob.get_content(&name).expect(200).header("dozo-class").unwrap().to_owned();
        assert_eq!([class(), class()], ["purchase", "reference"]);
        let drop = || bob.send("DELETE", &format!("/v1/library/{name}"), &[], &[]);
        drop().expect(204);
        assert_eq!(drop().expect(404).code(), "content_not_found");
        assert_eq!(bob.get(&format!("/v1/library/{name}")).expect(404).code(), "content_not_found");
        assert_eq!([class(), class()], ["purchase", "reference"]);
        for usage in cluster.await_billed(&bob, &[("complete", 4)]) {
            assert_eq!((usage.classes["purchase"], usage.classes["reference"]), (2, 2));
        }
    }

    fn usage_tells_what_a_client_holds_and_shares(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        alice.put_content(&format!("{bucket}/shared"), &fresh_bytes(4000)).expect(201);
        alice.put_content(&format!("{bucket}/own"), &fresh_bytes(3000)).expect(201);
        for _ in 0..3 {
            bob.get_content(&format!("{bucket}/shared")).expect(200);
        }
        let usage = await_usage(&alice, 3000, 4000);
        assert_eq!((usage.contents, usage.logical_bytes, usage.deliveries), (2, 7000, 0));
        // Of what others share at this moment there are more than two clients to a chunk, never fewer.
        assert!((1..=2000).contains(&usage.shared_bytes), "{usage:?}");
        assert_eq!(usage.physical_bytes, usage.unique_bytes + usage.shared_bytes);
        assert_eq!(usage.savings_bytes, usage.logical_bytes - usage.physical_bytes);
        let billed = eventually("bob's usage has its bookings", SOON, || {
            let usage: ClientUsage = bob.get("/v1/usage").expect(200).json();
            assert_eq!((usage.contents, usage.logical_bytes, usage.deliveries), (1, 4000, 3));
            let service = usage.service_usage.ok_or("service billing did not answer")?;
            let content = usage.content_usage.ok_or("content billing did not answer")?;
            let complete = [&service, &content].map(|u| u.deliveries.get("complete").copied().unwrap_or(0));
            if complete == [3, 3] { Ok([service, content]) } else { Err(format!("{complete:?}")) }
        });
        assert!(billed.iter().all(|usage| usage.bytes_sent == 12_000), "{billed:?}");
    }

    fn what_all_clients_take_comes_to_what_is_stored(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(5000);
        let name = format!("{bucket}/song");
        alice.put_content(&name, &bytes).expect(201);
        // The same bytes under another name take no space.
        alice.put_content(&format!("{bucket}/same"), &bytes).expect(201);
        assert_eq!(await_usage(&alice, 5000, 0).savings_bytes, 5000);
        bob.get_content(&name).expect(200);
        await_usage(&alice, 0, 5000);
        await_usage(&bob, 0, 5000);
        let site: SiteUsage = cluster.operator(cluster.gateway("tokyo")).get("/v1/peer/usages").expect(200).json();
        assert_eq!(site.clients.iter().map(|client| client.physical_bytes).sum::<u64>(), site.physical_bytes);
        assert_eq!(site.unique_bytes + site.shared_bytes, site.physical_bytes);
        let listed = |client: &Client| site.clients.iter().any(|usage| usage.client.as_str() == client.name);
        assert!(listed(&alice) && listed(&bob));

        alice.send("DELETE", &format!("/v1/contents/{name}"), &[], &[]).expect(204);
        await_usage(&alice, 0, 5000);
        bob.send("DELETE", &format!("/v1/library/{name}"), &[], &[]).expect(204);
        let left = await_usage(&alice, 5000, 0);
        assert_eq!((left.contents, left.logical_bytes), (1, 5000));
        let nothing = await_usage(&bob, 0, 0);
        assert_eq!((nothing.contents, nothing.logical_bytes, nothing.physical_bytes), (0, 0, 0));
    }

    fn a_client_holds_no_more_than_its_quota(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        for key in ["1", "2", "3"] {
            alice.put_content(&format!("{bucket}/{key}"), &fresh_bytes(1000)).expect(201);
        }
        let bob = cluster.new_client("bob", "tokyo");
        limit(cluster, &bob, &json!({"quota_bytes": 2500, "quota_contents": 3}));
        let own = cluster.bucket(&bob, "private");
        let too_long = bob.put_content(&format!("{own}/long"), &fresh_bytes(2501)).expect(507);
        assert_eq!(too_long.code(), "quota_exceeded");
        assert!(too_long.text().contains("2500"), "{}", too_long.text());
        bob.put_content(&format!("{own}/a"), &fresh_bytes(1500)).expect(201);
        bob.get_content(&format!("{bucket}/1")).expect(200);
        let refused = bob.get_content(&format!("{bucket}/2")).expect(507);
        assert_eq!(refused.code(), "quota_exceeded");
        let usage: ClientUsage = bob.get("/v1/usage").expect(200).json();
        assert_eq!((usage.contents, usage.logical_bytes), (2, 2500));
        // What it has it gets, and a shorter version makes room.
        bob.get_content(&format!("{bucket}/1")).expect(200);
        bob.put_content(&format!("{own}/a"), &fresh_bytes(500)).expect(200);
        bob.get_content(&format!("{bucket}/2")).expect(200);
        bob.put_content(&format!("{own}/b"), b"").expect(507);
        bob.send("DELETE", &format!("/v1/library/{bucket}/2"), &[], &[]).expect(204);
        bob.put_content(&format!("{own}/b"), b"").expect(201);
        // A refused purchase leaves no holder behind.
        let path = format!("/v1/peer/who-holds?name={bucket}%2F3");
        bob.get_content(&format!("{bucket}/3")).expect(507);
        let holders: SiteHolders = cluster.operator(cluster.gateway("tokyo")).get(&path).expect(200).json();
        assert_eq!(holders.clients.len(), 1, "{holders:?}");
    }

    fn uploads_at_the_same_time_do_not_pass_a_quota_together(cluster) {
        let bob = cluster.new_client("bob", "tokyo");
        limit(cluster, &bob, &json!({"quota_bytes": 5000}));
        let bucket = cluster.bucket(&bob, "private");
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let puts: Vec<_> = (0..12)
                .map(|n| {
                    let (bob, name) = (bob.clone(), format!("{bucket}/{n}"));
                    scope.spawn(move || bob.put_content(&name, &fresh_bytes(1000)).status)
                })
                .collect();
            puts.into_iter().map(|put| put.join().unwrap()).collect()
        });
        let taken = statuses.iter().filter(|status| **status == 201).count();
        assert_eq!(taken, 5, "{statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, 201 | 507)), "{statuses:?}");
        let usage = await_usage(&bob, 5000, 0);
        assert_eq!((usage.contents, usage.logical_bytes), (5, 5000));
    }

    fn requests_beyond_a_rate_are_refused_and_bytes_slowed(cluster) {
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&bob, "private");
        let eager = cluster.new_client("eager", "tokyo");
        limit(cluster, &eager, &json!({"requests_per_s": 1}));
        let answers: Vec<_> = (0..20).map(|_| eager.get("/v1/library")).collect();
        let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
        assert!(answers.iter().any(|answer| answer.status == 200) && !refused.is_empty());
        assert!(refused.iter().all(|answer| answer.code() == "too_many_requests"));
        assert!(refused.iter().all(|answer| answer.header("retry-after") == Some("1")));
        eventually("there is room again", SOON, || {
            let answer = eager.get("/v1/library");
            if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
        });

        let bytes = fresh_bytes(100_000);
        bob.put_content(&format!("{bucket}/a"), &bytes).expect(201);
        let slow = cluster.new_client("slow", "tokyo");
        limit(cluster, &slow, &json!({"bytes_per_s": 100_000}));
        let own = cluster.bucket(&slow, "private");
        let started = Instant::now();
        slow.put_content(&format!("{own}/a"), &bytes).expect(201);
        assert_eq!(slow.get_content(&format!("{own}/a")).expect(200).body, bytes);
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(1990), "200 kB at 100 kB/s took {took:?}");
    }

    fn the_content_list_tells_who_got_what_when(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let name = format!("{bucket}/song");
        alice.put_content(&name, &fresh_bytes(2000)).expect(201);
        let fans: Vec<Client> = (0..3).map(|_| cluster.new_client("fan", "tokyo")).collect();
        for (index, fan) in fans.iter().enumerate() {
            (0..=index).for_each(|_| drop(fan.get_content(&name).expect(200)));
        }
        let operator = cluster.operator(cluster.gateway("tokyo"));
        let path = format!("/v1/peer/who-holds?name={}", common::client::encode(&name));
        let all: SiteHolders = operator.get(&path).expect(200).json();
        assert_eq!(all.provider.map(|provider| provider.to_string()), Some(alice.name.clone()));
        assert_eq!((all.clients_total, all.holders.len(), all.next), (4, 4, None));
        for (index, fan) in fans.iter().enumerate() {
            let holder = all.holders.iter().find(|holder| holder.client.as_str() == fan.name).unwrap();
            assert_eq!((holder.deliveries, holder.recent.len()), (index as u64 + 1, index + 1));
            assert!(holder.recent.iter().all(|time| *time >= holder.since));
        }
        let first: SiteHolders = operator.get(&format!("{path}&limit=3")).expect(200).json();
        let next = first.next.expect("there is one more");
        let second: SiteHolders = operator.get(&format!("{path}&limit=3&after={next}")).expect(200).json();
        let paged: Vec<_> = first.clients.into_iter().chain(second.clients).collect();
        assert_eq!((paged, second.next), (all.clients, None));
    }

    fn a_private_bucket_is_its_providers_alone(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "private");
        let name = format!("{bucket}/diary");
        let bytes = fresh_bytes(2000);
        alice.put_content(&name, &bytes).expect(201);
        assert_eq!(alice.get_content(&name).expect(200).body, bytes);
        for site in crate::cluster::SITES {
            let other = cluster.new_client("other", site);
            assert_eq!(other.get_content(&name).expect(403).code(), "forbidden");
            assert_eq!(other.get(&format!("/v1/contents/{bucket}")).expect(403).code(), "forbidden");
            assert_eq!(other.get(&format!("/v1/buckets/{bucket}")).expect(403).code(), "forbidden");
            let head = other.send("HEAD", &format!("/v1/contents/{name}"), &[], &[]);
            assert_eq!(head.status, 403);
            cluster.await_billed(&other, &[]);
        }
        // Knowing the bytes, and so the hash, opens nothing.
        let thief = cluster.new_client("thief", "tokyo");
        let own = cluster.bucket(&thief, "private");
        thief.put_content(&format!("{own}/same"), &bytes).expect(201);
        assert_eq!(thief.get_content(&name).expect(403).code(), "forbidden");
        let taken = thief.send_json("PUT", &format!("/v1/buckets/{bucket}"), &serde_json::json!({"visibility": "public"}));
        assert!(taken.status == 403 || taken.status == 409, "{}", taken.text());
    }
}
