//! Delivering what a site holds, and collecting what it does not.

use common::api::gateway::Published;
use common::hash::ContentHash;

use crate::both_ways;
use crate::cluster::{SOON, eventually};
use crate::{etag_of, fresh_bytes};

both_ways! {
    fn a_delivery_is_on_both_billing_servers_exactly_once(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(123_456);
        alice.put_content(&format!("{bucket}/song"), &bytes).expect(201);

        let first = bob.get_content(&format!("{bucket}/song")).expect(200);
        assert_eq!(first.header("dozo-class"), Some("purchase"));
        assert_eq!(first.header("dozo-source"), Some("hit"));
        assert_eq!(first.header("dozo-source-site"), None);
        let second = bob.get_content(&format!("{bucket}/song")).expect(200);
        assert_eq!(second.header("dozo-class"), Some("reference"));
        let ids = [&first, &second].map(|answer| answer.header("dozo-delivery").unwrap().to_owned());
        assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 32), "{ids:?}");

        for usage in cluster.await_billed(&bob, &[("complete", 2)]) {
            assert_eq!(usage.bytes_sent, 2 * 123_456);
            assert_eq!((usage.classes["purchase"], usage.classes["reference"]), (1, 1));
        }
        let [service, content] = cluster.totals();
        assert_eq!((service.imbalance_micros, content.imbalance_micros), (0, 0));
    }

    fn what_delivers_nothing_records_nothing(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(10_000);
        let path = format!("/v1/contents/{bucket}/song");
        alice.send("PUT", &path, &[], &bytes).expect(201);

        let head = bob.send("HEAD", &path, &[], &[]).expect(200);
        assert_eq!((head.header("content-length"), head.header("dozo-delivery")), (Some("10000"), None));
        assert_eq!(head.header("etag"), Some(etag_of(&bytes).as_str()));
        let delivered = bob.get(&path).expect(200);
        let (etag, modified) = (etag_of(&bytes), delivered.header("last-modified").unwrap().to_owned());
        for headers in [("if-none-match", etag.as_str()), ("if-none-match", "*"), ("if-modified-since", &modified)] {
            let answer = bob.send("GET", &path, &[headers], &[]).expect(304);
            assert_eq!(answer.header("dozo-delivery"), None, "{headers:?}");
            assert_eq!(answer.header("etag"), Some(etag.as_str()));
            assert!(answer.body.is_empty());
        }
        let other = bob.send("GET", &path, &[("if-match", "\"00\"")], &[]).expect(412);
        assert_eq!(other.code(), "precondition_failed");
        let beyond = bob.send("GET", &path, &[("range", "bytes=10000-")], &[]).expect(416);
        assert_eq!((beyond.header("dozo-delivery"), beyond.code().as_str()), (None, "range_not_satisfiable"));
        assert_eq!(bob.send("GET", &path, &[("if-none-match", "\"00\"")], &[]).expect(200).body, bytes);
        assert_eq!(bob.send("GET", &path, &[("if-match", &etag)], &[]).expect(200).body, bytes);
        cluster.await_billed(&bob, &[("complete", 3)]);
    }

    fn ranges_have_the_right_bytes_and_join_one_delivery(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let len = 7 << 20;
        let bytes = fresh_bytes(len);
        let path = format!("/v1/contents/{bucket}/film");
        alice.send("PUT", &path, &[], &bytes).expect(201);
        let range = |range: &str, status: u16| {
            bob.send("GET", &path, &[("range", range)], &[]).expect(status)
        };
        let first = range("bytes=0-999999", 206);
        let delivery = first.header("dozo-delivery").unwrap().to_owned();
        assert_eq!(first.body, &bytes[..1_000_000]);
        assert_eq!(first.header("content-range"), Some(format!("bytes 0-999999/{len}").as_str()));
        assert_eq!(first.header("content-length"), Some("1000000"));
        for (text, from, to) in [
            ("bytes=1000000-1999999", 1_000_000, 2_000_000),
            ("bytes=-100", len - 100, len),
            ("bytes=3000000-3000000", 3_000_000, 3_000_001),
        ] {
            let answer = range(text, 206);
            assert_eq!(answer.body, &bytes[from..to], "{text}");
            assert_eq!(answer.header("content-range"), Some(format!("bytes {from}-{}/{len}", to - 1).as_str()));
            assert_eq!(answer.header("dozo-delivery"), Some(delivery.as_str()), "{text} is part of the download");
        }
        assert_eq!(range("bytes=99999999-", 416).header("content-range"), Some(format!("bytes */{len}").as_str()));
        assert_eq!(range("bytes=x-y", 400).code(), "invalid_range");
        let rest = range("bytes=2000000-", 206);
        assert_eq!(rest.body, &bytes[2_000_000..]);
        assert_eq!(rest.header("dozo-delivery"), Some(delivery.as_str()));
        // Together that is every byte, so the delivery is over.
        cluster.await_billed(&bob, &[("complete", 1)]);
        let next = range("bytes=0-", 206);
        assert_ne!(next.header("dozo-delivery"), Some(delivery.as_str()));
        assert_eq!(next.body, bytes);
        // A range of another version gives the whole of this one.
        let answer = bob.send("GET", &path, &[("range", "bytes=5-"), ("if-range", "\"00\"")], &[]).expect(200);
        assert_eq!(answer.body.len(), len);
        cluster.await_billed(&bob, &[("complete", 3)]);
    }

    fn a_big_content_is_collected_from_the_other_site_once(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let carol = cluster.new_client("carol", "osaka");
        let dave = cluster.new_client("dave", "osaka");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(64 << 20);
        let hash = ContentHash::of(&bytes);
        let name = format!("{bucket}/big");
        let published: Published = alice.put_content(&name, &bytes).expect(201).json();
        assert_eq!((published.hash, published.new_bytes), (hash, 64 << 20));

        let first = carol.get_content(&name).expect(200);
        assert_eq!(first.header("dozo-source"), Some("peer"));
        assert_eq!(first.header("dozo-source-site"), Some("tokyo"));
        assert_eq!(first.header("dozo-class"), Some("purchase"));
        assert!(first.body == bytes, "the bytes differ");
        // The last bytes reach the client a moment before the site holds the whole.
        let mut references = 0;
        eventually("the site holds it", SOON, || {
            let again = carol.get_content(&name).expect(200);
            references += 1;
            assert_eq!(again.header("dozo-class"), Some("reference"));
            assert!(again.body == bytes, "the bytes differ");
            let source = again.header("dozo-source").unwrap_or("none").to_owned();
            if source == "hit" { Ok(()) } else { Err(source) }
        });
        assert!(references <= 3, "it took {references} more deliveries until one was a hit");
        let other = dave.get_content(&name).expect(200);
        assert_eq!((other.header("dozo-source"), other.header("dozo-class")), (Some("hit"), Some("purchase")));
        eventually("search knows both sites", SOON, || {
            let mut sites: Vec<String> = cluster.lookup(&name)?.sites.iter().map(ToString::to_string).collect();
            sites.sort();
            if sites == ["osaka", "tokyo"] { Ok(()) } else { Err(format!("{sites:?}")) }
        });
        for usage in cluster.await_billed(&carol, &[("complete", 1 + references)]) {
            assert_eq!(usage.bytes_sent, (1 + references) * (64 << 20));
            assert_eq!((usage.classes["purchase"], usage.classes["reference"]), (1, references));
        }
        cluster.await_billed(&dave, &[("complete", 1)]);
    }

    fn many_who_ask_at_once_cost_one_collection(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(12 << 20);
        let name = format!("{bucket}/hot");
        alice.put_content(&name, &bytes).expect(201);
        let clients: Vec<_> = (0..6).map(|_| cluster.new_client("fan", "osaka")).collect();
        let before = cluster.metric("osaka.g1", "dozo_gateway_collected_bytes_total", "");
        std::thread::scope(|scope| {
            for client in &clients {
                let (name, bytes) = (&name, &bytes);
                scope.spawn(move || {
                    let answer = client.get_content(name).expect(200);
                    assert!(answer.body == *bytes, "the bytes differ");
                    assert_eq!(answer.header("dozo-class"), Some("purchase"));
                });
            }
        });
        let collected = cluster.metric("osaka.g1", "dozo_gateway_collected_bytes_total", "") - before;
        // Other tests collect meanwhile, so this bound shows one collection only when it holds.
        println!("{collected} bytes were collected for 6 times {}", bytes.len());
        for client in &clients {
            cluster.await_billed(client, &[("complete", 1)]);
        }
    }

    fn a_range_of_a_content_not_yet_held_is_collected(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let carol = cluster.new_client("carol", "osaka");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(9 << 20);
        let name = format!("{bucket}/part");
        alice.put_content(&name, &bytes).expect(201);
        let path = format!("/v1/contents/{name}");
        let answer = carol.send("GET", &path, &[("range", "bytes=8000000-8000099")], &[]).expect(206);
        assert_eq!(answer.body, &bytes[8_000_000..8_000_100]);
        assert!(carol.get(&path).expect(200).body == bytes, "the bytes differ");
    }

    fn origin_content_is_collected_once_and_then_found_at_the_site(cluster) {
        let bob = cluster.new_client("bob", "tokyo");
        let eve = cluster.new_client("eve", "tokyo");
        let listing: common::api::gateway::ContentListing =
            bob.get("/v1/contents/studio").expect(200).json();
        assert!(!listing.contents.is_empty());
        // The smallest that nobody else's test asks for: each asks for one of its own by position.
        let mut contents = listing.contents;
        contents.sort_by_key(|content| content.len);
        let chosen = contents.iter().find(|content| content.len > 0).unwrap();
        let name = format!("studio/{}", common::client::encode(&chosen.key));
        let first = bob.get_content(&name).expect(200);
        assert_eq!(first.header("dozo-source"), Some("origin"), "{:?}", first.headers);
        assert!(first.header("dozo-source-site").is_some());
        assert_eq!((first.body.len() as u64, ContentHash::of(&first.body)), (chosen.len, chosen.hash));
        eventually("the site holds it", SOON, || {
            let source = bob.get_content(&name).expect(200).header("dozo-source").unwrap().to_owned();
            if source == "hit" { Ok(()) } else { Err(source) }
        });
        let second = eve.get_content(&name).expect(200);
        assert_eq!((second.header("dozo-source"), second.header("dozo-class")), (Some("hit"), Some("purchase")));
        assert_eq!(second.body, first.body);
        cluster.await_billed(&eve, &[("complete", 1)]);
    }

    fn a_download_that_breaks_off_is_resumed_in_the_same_delivery(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(24 << 20);
        let path = format!("/v1/contents/{bucket}/long");
        alice.send("PUT", &path, &[], &bytes).expect(201);
        let mut download = bob.open("GET", &path, &[]).unwrap();
        let delivery = download.header("dozo-delivery").unwrap().to_owned();
        let got = download.read_exact(3 << 20).unwrap();
        assert!(got == bytes[..3 << 20]);
        drop(download);
        let range = format!("bytes={}-", 3 << 20);
        let rest = bob.send("GET", &path, &[("range", &range), ("if-range", &etag_of(&bytes))], &[]).expect(206);
        assert!(rest.body == bytes[3 << 20..]);
        assert_eq!(rest.header("dozo-delivery"), Some(delivery.as_str()));
        let usage = cluster.await_billed(&bob, &[("complete", 1)]);
        assert!(usage.iter().all(|usage| usage.bytes_sent >= bytes.len() as u64), "{usage:?}");
    }

    fn curl_with_a_bearer_token_does_the_same(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(500_000);
        let file = cluster.path(&format!("{bucket}.bin"));
        std::fs::write(&file, &bytes).unwrap();
        let url = format!("{}/v1/contents/{bucket}/by-curl", alice.base);
        let authorization = format!("Authorization: Bearer {}", alice.token);
        let curl = |arguments: &[&str]| {
            let mut command = std::process::Command::new("curl");
            command.args(["--silent", "--show-error", "--fail", "--header", &authorization]).args(arguments);
            let output = command.output().expect("curl is installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        let answer = curl(&["--upload-file", file.to_str().unwrap(), &url]);
        let published: Published = serde_json::from_slice(&answer).unwrap();
        assert_eq!(published.hash, ContentHash::of(&bytes));
        assert_eq!(curl(&[&url]), bytes);
        assert_eq!(curl(&["--range", "10-19", &url]), &bytes[10..20]);
    }
}
