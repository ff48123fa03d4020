//! A client at a site that is not its home (claim 8): served there, through home, and recorded at home.

use common::api::node::LibraryRow;

use crate::both_ways;
use crate::{etag_of, fresh_bytes};

both_ways! {
    fn a_client_away_from_home_gets_content_through_its_home(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let carol = cluster.new_client("carol", "osaka");
        let visiting = carol.at(cluster.gateway("tokyo"));
        let bucket = cluster.bucket(&alice, "public");
        let name = format!("{bucket}/film");
        let bytes = fresh_bytes(5 << 20);
        alice.put_content(&name, &bytes).expect(201);

        let first = visiting.get_content(&name).expect(200);
        assert!(first.body == bytes, "the bytes differ");
        assert_eq!(first.header("dozo-class"), Some("purchase"));
        assert_eq!(first.header("etag"), Some(etag_of(&bytes).as_str()));
        let delivery = first.header("dozo-delivery").unwrap().to_owned();
        // The library row is at home, made in the same commit as the record.
        let row: LibraryRow = carol.get(&format!("/v1/library/{name}")).expect(200).json();
        assert_eq!((row.deliveries, row.len), (1, 5 << 20));
        let second = visiting.get_content(&name).expect(200);
        assert_eq!(second.header("dozo-class"), Some("reference"));
        assert_ne!(second.header("dozo-delivery"), Some(delivery.as_str()));
        let third = carol.get_content(&name).expect(200);
        assert_eq!(third.header("dozo-class"), Some("reference"));
        assert!(third.body == bytes, "the bytes differ");
        cluster.await_billed(&carol, &[("complete", 3)]);
        for service in [true, false] {
            let path = format!("/v1/records?delivery={delivery}");
            let found: serde_json::Value = cluster.billing(service).get(&path).expect(200).json();
            let records = found["records"].as_array().unwrap();
            assert_eq!(records.len(), 1, "{found}");
            assert_eq!(records[0]["home"], "osaka", "{found}");
            assert_eq!(records[0]["surrogate"], "tokyo", "{found}");
        }
    }

    fn away_from_home_ranges_and_conditions_work_alike(cluster) {
        let carol = cluster.new_client("carol", "osaka");
        let visiting = carol.at(cluster.gateway("tokyo"));
        let bucket = cluster.bucket(&carol, "private");
        let path = format!("/v1/contents/{bucket}/notes");
        let bytes = fresh_bytes(2 << 20);
        carol.send("PUT", &path, &[], &bytes).expect(201);
        let head = visiting.send("HEAD", &path, &[], &[]).expect(200);
        assert_eq!((head.header("content-length"), head.header("dozo-delivery")), (Some("2097152"), None));
        let etag = etag_of(&bytes);
        let unchanged = visiting.send("GET", &path, &[("if-none-match", &etag)], &[]).expect(304);
        assert_eq!(unchanged.header("dozo-delivery"), None);
        let beyond = visiting.send("GET", &path, &[("range", "bytes=2097152-")], &[]).expect(416);
        assert_eq!(beyond.code(), "range_not_satisfiable");
        cluster.await_billed(&carol, &[]);
        let first = visiting.send("GET", &path, &[("range", "bytes=0-1048575")], &[]).expect(206);
        let rest = visiting.send("GET", &path, &[("range", "bytes=1048576-")], &[]).expect(206);
        assert!([first.body.clone(), rest.body.clone()].concat() == bytes, "the bytes differ");
        assert_eq!(first.header("dozo-delivery"), rest.header("dozo-delivery"));
        cluster.await_billed(&carol, &[("complete", 1)]);
    }

    fn what_changes_a_library_is_done_at_home(cluster) {
        let carol = cluster.new_client("carol", "osaka");
        let visiting = carol.at(cluster.gateway("tokyo"));
        let bucket = cluster.bucket(&carol, "public");
        for answer in [
            visiting.put_content(&format!("{bucket}/x"), b"x"),
            visiting.get("/v1/library"),
            visiting.get("/v1/usage"),
            visiting.send("DELETE", &format!("/v1/contents/{bucket}/x"), &[], &[]),
        ] {
            assert_eq!(answer.expect(421).code(), "wrong_site");
        }
        // But reading what is nobody's business is refused away from home as it is at home.
        let alice = cluster.new_client("alice", "tokyo");
        let private = cluster.bucket(&alice, "private");
        alice.put_content(&format!("{private}/x"), b"x").expect(201);
        assert_eq!(visiting.get_content(&format!("{private}/x")).expect(403).code(), "forbidden");
        assert_eq!(visiting.get_content(&format!("{bucket}/nothing")).expect(404).code(), "content_not_found");
    }
}
