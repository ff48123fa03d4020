//! Bad input, full nodes, and servers that are away: a clear answer with a code of the closed list, and nothing lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::error::ErrorCode;

use crate::both_ways;
use crate::cluster::{Cluster, Mode, Options, SOON, eventually};
use crate::fresh_bytes;
use crate::http::Answer;

fn is_of_the_closed_list(answer: &Answer) {
    let code = answer.code();
    let known = ErrorCode::ALL.iter().find(|known| known.as_str() == code);
    assert_eq!(known.unwrap_or_else(|| panic!("{code} is no code")).status().as_u16(), answer.status);
}

both_ways! {
    fn bad_requests_are_answered_with_their_status_and_code(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        alice.put_content(&format!("{bucket}/x"), b"content").expect(201);
        let path = format!("/v1/contents/{bucket}/x");
        let mut nobody = alice.clone();
        nobody.token = String::new();
        let mut stranger = alice.clone();
        stranger.token = "not-a-token".into();
        let long_key = "k".repeat(1025);
        let other = cluster.new_client("other", "tokyo");
        let cases: Vec<(Answer, u16, &str)> = vec![
            (nobody.get(&path), 401, "unauthenticated"),
            (stranger.get(&path), 401, "unauthenticated"),
            (stranger.put_content(&format!("{bucket}/x"), b"y"), 401, "unauthenticated"),
            (alice.get(&format!("/v1/contents/{bucket}/none")), 404, "content_not_found"),
            (alice.get("/v1/contents/no-such-bucket/x"), 404, "bucket_not_found"),
            (alice.get("/v1/contents/no-such-bucket"), 404, "bucket_not_found"),
            (alice.put_content("no-such-bucket/x", b"y"), 404, "bucket_not_found"),
            (other.put_content(&format!("{bucket}/x"), b"y"), 403, "forbidden"),
            (other.send("DELETE", &path, &[], &[]), 403, "forbidden"),
            (alice.get("/v1/contents/BAD!/x"), 400, "invalid_name"),
            (alice.get(&format!("/v1/contents/{bucket}/%ff")), 400, "invalid_name"),
            (alice.get(&format!("/v1/contents/{bucket}/{long_key}")), 400, "invalid_name"),
            (alice.get(&format!("/v1/contents/{bucket}?limit=0")), 400, "invalid_request"),
            (alice.get(&format!("/v1/contents/{bucket}?limit=x")), 400, "invalid_request"),
            (alice.send("GET", &path, &[("range", "bytes=5-2")], &[]), 400, "invalid_range"),
            (alice.send("GET", &path, &[("range", "bytes=7-")], &[]), 416, "range_not_satisfiable"),
            (alice.send("PUT", &path, &[("if-none-match", "\"x\"")], b"y"), 400, "invalid_request"),
            (alice.send("PUT", &path, &[("dozo-content-hash", "xyz")], b"y"), 400, "invalid_request"),
            (alice.send("PATCH", &path, &[], &[]), 405, "method_not_allowed"),
            (alice.get("/v1/nothing-here"), 404, "not_found"),
            (alice.send("PUT", "/v1/buckets/new-one", &[], b"no json"), 400, "invalid_request"),
            (alice.get("/v1/library?limit=0"), 400, "invalid_request"),
        ];
        for (index, (answer, status, code)) in cases.into_iter().enumerate() {
            assert_eq!((answer.status, answer.code().as_str()), (status, code), "case {index}: {}", answer.text());
            is_of_the_closed_list(&answer);
        }
        assert_eq!(alice.get(&path).expect(200).body, b"content", "nothing of it changed anything");
    }

    fn routes_between_servers_are_closed_to_clients(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let node = cluster.site("tokyo").nodes[0].http.clone();
        let search = cluster.endpoints.search.http.clone();
        let billing = cluster.endpoints.service_billing.clone().unwrap().http;
        for (base, path) in [
            (node.as_str(), "/v1/library?client=alice"),
            (&search, "/v1/clients"),
            (&billing, "/v1/totals"),
            (&alice.base, "/v1/peer/ping"),
            (&alice.base, "/v1/peer/holding?name=alice/x"),
        ] {
            assert_eq!(alice.at(base).get(path).expect(401).code(), "unauthenticated", "{base}{path}");
        }
        let posted = alice.at(&billing).send_json("POST", "/v1/batches", &serde_json::json!({}));
        assert_eq!(posted.status, 401);
    }

    fn a_content_beyond_the_limit_is_refused_before_it_is_sent(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let address = alice.base.trim_start_matches("http://");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let head = format!(
            "PUT /v1/contents/{bucket}/huge HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            alice.token,
            200u64 << 30
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        let mut piece = [0u8; 1024];
        while !answer.contains("too_large") {
            let len = stream.read(&mut piece).unwrap();
            assert!(len > 0, "{answer}");
            answer.push_str(&String::from_utf8_lossy(&piece[..len]));
        }
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert_eq!(alice.get_content(&format!("{bucket}/huge")).status, 404);
    }

    fn an_upload_that_breaks_off_leaves_nothing(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let name = format!("{bucket}/half");
        let mut upload = alice.begin_put(&name, 8 << 20).unwrap();
        upload.send(&fresh_bytes(5 << 20)).unwrap();
        drop(upload);
        assert_eq!(alice.get_content(&name).expect(404).code(), "content_not_found");
        let whole = fresh_bytes(8 << 20);
        alice.put_content(&name, &whole).expect(201);
        let mut upload = alice.begin_put(&name, 8 << 20).unwrap();
        upload.send(&fresh_bytes(5 << 20)).unwrap();
        drop(upload);
        assert!(alice.get_content(&name).expect(200).body == whole, "the version before stays");
    }
}

#[test]
fn a_full_node_takes_no_more_but_serves_and_frees() {
    let options = Options { node_size: "320MiB".into(), ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let alice = cluster.new_client("alice", "tokyo");
    let bucket = cluster.bucket(&alice, "public");
    let mut kept = Vec::new();
    let refused = loop {
        let (name, bytes) = (format!("{bucket}/{}", kept.len()), fresh_bytes(16 << 20));
        let answer = alice.put_content(&name, &bytes);
        if answer.status != 201 {
            break answer;
        }
        kept.push((name, bytes));
        assert!(kept.len() < 64, "1 GiB went into nodes of 640 MiB together");
    };
    assert_eq!(refused.expect(507).code(), "node_full");
    assert!(kept.len() >= 4, "only {} times 16 MiB fitted", kept.len());
    for (name, bytes) in &kept {
        assert!(alice.get_content(name).expect(200).body == *bytes, "{name}");
    }
    cluster.await_billed(&alice, &[("complete", kept.len() as u64)]);
    let (gone, stay) = kept.split_at(kept.len() / 2);
    for (name, _) in gone {
        alice.send("DELETE", &format!("/v1/contents/{name}"), &[], &[]).expect(204);
    }
    let again = fresh_bytes(16 << 20);
    eventually("the space can be used again", Duration::from_secs(60), || {
        let answer = alice.put_content(&format!("{bucket}/again"), &again);
        if answer.status == 201 { Ok(()) } else { Err(answer.text()) }
    });
    assert!(alice.get_content(&format!("{bucket}/again")).expect(200).body == again);
    for (name, bytes) in stay {
        assert!(alice.get_content(name).expect(200).body == *bytes, "{name}");
    }
    println!("{} contents of 16 MiB fitted", kept.len());
}

#[test]
fn while_search_is_down_sites_serve_what_they_hold_and_the_rest_is_a_clear_503() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let (alice, bob, carol) = (cluster.client("alice"), cluster.client("bob"), cluster.client("carol"));
    let (held, fresh) = (fresh_bytes(2 << 20), fresh_bytes(3 << 20));
    alice.put_content("alice/held", &held).expect(201);
    alice.put_content("alice/tokyo-only", &held).expect(201);
    bob.get_content("alice/held").expect(200);
    carol.get_content("alice/held").expect(200);
    cluster.await_billed(&carol, &[("complete", 1)]);

    cluster.kill("search");
    assert!(bob.get_content("alice/held").expect(200).body == held);
    assert!(carol.get_content("alice/held").expect(200).body == held);
    assert_eq!(carol.get_content("alice/tokyo-only").expect(503).code(), "search_unavailable");
    assert_eq!(alice.get("/v1/contents/alice").expect(503).code(), "search_unavailable");
    // Publishing needs search only to be found by others: the announcement waits.
    alice.put_content("alice/published-meanwhile", &fresh).expect(201);
    assert!(bob.get_content("alice/published-meanwhile").expect(200).body == fresh);
    cluster.await_billed(&bob, &[("complete", 3)]);

    cluster.restart("search");
    cluster.await_ready("search");
    eventually("the waiting announcement arrives", SOON, || {
        cluster.lookup("alice/published-meanwhile").map(drop)
    });
    let body = eventually("osaka collects again", SOON, || {
        let answer = carol.get_content("alice/published-meanwhile");
        if answer.status == 200 { Ok(answer.body) } else { Err(answer.text()) }
    });
    assert!(body == fresh, "the bytes differ");
    cluster.await_billed(&carol, &[("complete", 3)]);
}

#[test]
fn while_billing_is_down_deliveries_go_on_and_are_booked_once_afterwards() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let (alice, bob) = (cluster.client("alice"), cluster.client("bob"));
    alice.put_content("alice/x", &fresh_bytes(100_000)).expect(201);
    cluster.kill("service-billing");
    for _ in 0..20 {
        bob.get_content("alice/x").expect(200);
    }
    cluster.kill("content-billing");
    for _ in 0..20 {
        bob.get_content("alice/x").expect(200);
    }
    // Usage still tells what the site knows.
    let usage: common::api::gateway::ClientUsage = bob.get("/v1/usage").expect(200).json();
    assert_eq!((usage.deliveries, usage.service_usage, usage.content_usage), (40, None, None));
    for name in ["service-billing", "content-billing"] {
        cluster.restart(name);
        cluster.await_ready(name);
    }
    let usage = cluster.await_billed(&bob, &[("complete", 40)]);
    assert!(usage.iter().all(|usage| usage.bytes_sent == 4_000_000), "{usage:?}");
    let [service, content] = cluster.totals();
    assert_eq!(service.records, content.records);
    assert_eq!((service.imbalance_micros, content.imbalance_micros), (0, 0));
}

#[test]
fn while_a_node_is_down_the_rest_is_served_or_a_clear_503_and_all_returns_with_it() {
    let options = Options { cache_bytes: 0, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let (alice, bob) = (cluster.client("alice"), cluster.client("bob"));
    let contents: Vec<_> = (0..12).map(|i| (format!("alice/{i}"), fresh_bytes(40_000))).collect();
    for (name, bytes) in &contents {
        alice.put_content(name, bytes).expect(201);
    }
    cluster.kill("tokyo.n2");
    let mut complete = 0;
    for (name, bytes) in &contents {
        let answer = bob.get_content(name);
        if answer.status == 200 {
            complete += 1;
            assert!(answer.body == *bytes, "{name}");
        } else {
            assert_eq!(answer.clone().expect(503).code(), "node_unavailable", "{name}");
        }
    }
    cluster.restart("tokyo.n2");
    cluster.await_ready("tokyo.n2");
    for (name, bytes) in &contents {
        let body = eventually("the node's contents return", SOON, || {
            let answer = bob.get_content(name);
            if answer.status == 200 { Ok(answer.body) } else { Err(answer.text()) }
        });
        complete += 1;
        assert!(body == *bytes, "{name}");
    }
    let billed = cluster.billed(&bob);
    println!("{complete} deliveries, booked so far {billed:?}");
    eventually("every delivery is booked", SOON, || {
        let done = cluster.billed(&bob).map(|usage| usage.deliveries.get("complete").copied().unwrap_or(0));
        if done == [complete, complete] { Ok(()) } else { Err(format!("{done:?} of {complete}")) }
    });
}

#[test]
fn while_the_other_site_is_down_what_only_it_holds_is_a_clear_503() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let (alice, carol) = (cluster.client("alice"), cluster.client("carol"));
    let bytes = fresh_bytes(4 << 20);
    alice.put_content("alice/far", &bytes).expect(201);
    // A PUT waits for search a second at most.
    eventually("search knows it", SOON, || {
        let listing = carol.get("/v1/contents/alice?prefix=far").text();
        if listing.contains("alice/far") || listing.contains("\"far\"") { Ok(()) } else { Err(listing) }
    });
    cluster.kill("tokyo.g1");
    assert_eq!(carol.get_content("alice/far").expect(503).code(), "source_unavailable");
    cluster.restart("tokyo.g1");
    cluster.await_ready("tokyo.g1");
    let body = eventually("osaka collects once tokyo is back", SOON, || {
        let answer = carol.get_content("alice/far");
        if answer.status == 200 { Ok(answer.body) } else { Err(answer.text()) }
    });
    assert!(body == bytes);
    cluster.await_billed(&carol, &[("complete", 1)]);
    // The origin away: its contents likewise, and those that a site holds are served.
    carol.get_content("studio/notes/hello.txt").expect(200);
    cluster.kill("origin");
    carol.get_content("studio/notes/hello.txt").expect(200);
    assert_eq!(carol.get_content("studio/film.bin").expect(503).code(), "source_unavailable");
    cluster.restart("origin");
    cluster.await_ready("origin");
    eventually("the origin sends again", SOON + Duration::from_secs(20), || {
        let answer = carol.get_content("studio/film.bin");
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    });
}
