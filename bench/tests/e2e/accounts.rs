//! Libraries and usage: what a client holds, what it gave up, what it is charged for.

use common::api::gateway::ClientUsage;
use common::api::node::{LibraryPage, LibraryRow};

use crate::both_ways;
use crate::cluster::{SOON, eventually};
use crate::fresh_bytes;

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
        let usage: ClientUsage = alice.get("/v1/usage").expect(200).json();
        assert_eq!((usage.contents, usage.logical_bytes), (2, 7000));
        assert_eq!((usage.unique_bytes, usage.shared_bytes, usage.deliveries), (3000, 4000, 0));
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
