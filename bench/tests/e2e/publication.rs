//! Publishing, listing, overwriting, withdrawing.

use std::time::Duration;

use common::api::gateway::{ContentListing, Published};
use common::hash::ContentHash;

use crate::both_ways;
use crate::cluster::{SOON, eventually};
use crate::{etag_of, fresh_bytes};

both_ways! {
    fn a_published_content_is_listed_and_got_at_the_same_site(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(300_000);
        let headers = [("content-type", "text/plain"), ("dozo-meta-mood", "calm")];
        let answer = alice.send("PUT", &format!("/v1/contents/{bucket}/a/b.txt"), &headers, &bytes).expect(201);
        assert_eq!(answer.header("etag"), Some(etag_of(&bytes).as_str()));
        let published: Published = answer.json();
        assert_eq!(published.name, format!("{bucket}/a/b.txt"));
        assert_eq!((published.hash, published.len), (ContentHash::of(&bytes), 300_000));
        assert_eq!(published.new_bytes, 300_000);
        assert!(published.chunks >= 1);

        let listing: ContentListing = alice.get(&format!("/v1/contents/{bucket}")).expect(200).json();
        assert_eq!(listing.contents.len(), 1, "{listing:?}");
        let listed = &listing.contents[0];
        assert_eq!((listed.key.as_str(), listed.len, listed.hash), ("a/b.txt", 300_000, published.hash));
        assert_eq!((listed.media_type.as_str(), listed.provider.as_str()), ("text/plain", alice.name.as_str()));

        let bob = cluster.new_client("bob", "tokyo");
        for client in [&alice, &bob] {
            let answer = client.get_content(&published.name).expect(200);
            assert_eq!(answer.body, bytes);
            assert_eq!(answer.header("etag"), Some(etag_of(&bytes).as_str()));
            assert_eq!(answer.header("content-type"), Some("text/plain"));
            assert_eq!(answer.header("content-length"), Some("300000"));
            assert_eq!(answer.header("dozo-meta-mood"), Some("calm"));
            assert_eq!(answer.header("dozo-source"), Some("hit"));
        }
    }

    fn names_are_any_text_and_never_paths(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let keys = ["../../etc/passwd", "a//b", "%2e%2e", "日本語/歌 1.wav", "a b+c&d=e?f#g", "./x", "x/"];
        for (index, key) in keys.iter().enumerate() {
            let path = format!("{bucket}/{}", common::client::encode(key));
            let bytes = format!("content {index}").into_bytes();
            alice.put_content(&path, &bytes).expect(201);
            assert_eq!(alice.get_content(&path).expect(200).body, bytes, "{key}");
        }
        let listing: ContentListing = alice.get(&format!("/v1/contents/{bucket}")).expect(200).json();
        let mut listed: Vec<String> = listing.contents.into_iter().map(|content| content.key).collect();
        listed.sort();
        let mut keys = keys.map(str::to_owned).to_vec();
        keys.sort();
        assert_eq!(listed, keys);
    }

    fn an_empty_content_is_a_content(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let published: Published = alice.put_content(&format!("{bucket}/empty"), b"").expect(201).json();
        assert_eq!((published.len, published.hash), (0, ContentHash::of(b"")));
        let answer = alice.get_content(&format!("{bucket}/empty")).expect(200);
        assert!(answer.body.is_empty());
        assert_eq!(answer.header("etag"), Some(etag_of(b"").as_str()));
        cluster.await_billed(&alice, &[("complete", 1)]);
    }

    fn listings_have_prefixes_delimiters_and_pages(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        for key in ["a/1", "a/2", "a/b/3", "c", "d/4"] {
            alice.put_content(&format!("{bucket}/{key}"), key.as_bytes()).expect(201);
        }
        let list = |query: &str| -> ContentListing {
            alice.get(&format!("/v1/contents/{bucket}?{query}")).expect(200).json()
        };
        let keys = |listing: &ContentListing| -> Vec<String> {
            listing.contents.iter().map(|content| content.key.clone()).collect()
        };
        assert_eq!(keys(&list("prefix=a/")), ["a/1", "a/2", "a/b/3"]);
        let top = list("delimiter=/");
        assert_eq!(keys(&top), ["c"]);
        assert_eq!(top.prefixes, ["a/", "d/"]);
        let inner = list("prefix=a/&delimiter=/");
        assert_eq!(keys(&inner), ["a/1", "a/2"]);
        assert_eq!(inner.prefixes, ["a/b/"]);
        let (mut seen, mut after, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = list(&format!("limit=2&after={}", common::client::encode(&after)));
            assert!(page.contents.len() <= 2);
            seen.extend(keys(&page));
            pages += 1;
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        assert_eq!(seen, ["a/1", "a/2", "a/b/3", "c", "d/4"]);
        assert_eq!(pages, 3);
        // The other site lists the same: search knows all.
        let carol = cluster.new_client("carol", "osaka");
        let listing: ContentListing = carol.get(&format!("/v1/contents/{bucket}")).expect(200).json();
        assert_eq!(keys(&listing).len(), 5);
    }

    fn the_same_bytes_are_stored_once(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let bytes = fresh_bytes(6 << 20);
        let first: Published = alice.put_content(&format!("{bucket}/one"), &bytes).expect(201).json();
        assert_eq!(first.new_bytes, 6 << 20);
        assert!(first.chunks > 1);
        let used = cluster.used_bytes("tokyo");
        let second: Published = alice.put_content(&format!("{bucket}/two"), &bytes).expect(201).json();
        assert_eq!((second.hash, second.new_bytes), (first.hash, 0));
        let bob = cluster.new_client("bob", "tokyo");
        let other = cluster.bucket(&bob, "private");
        let third: Published = bob.put_content(&format!("{other}/three"), &bytes).expect(201).json();
        assert_eq!(third.new_bytes, 0, "another client's same bytes are not stored again");
        // Other tests write meanwhile, but not 6 MiB twice over.
        let grown = cluster.used_bytes("tokyo").saturating_sub(used);
        println!("used bytes grew by {grown} while 12 MiB were put again");
        // A byte in front moves everything: content-defined chunks are still mostly the same.
        let shifted = [b"!".as_slice(), &bytes].concat();
        let shifted: Published = alice.put_content(&format!("{bucket}/shifted"), &shifted).expect(201).json();
        assert!(shifted.new_bytes < 5 << 20, "{} of {} bytes are new", shifted.new_bytes, shifted.len);
        assert_eq!(bob.get_content(&format!("{other}/three")).expect(200).body, bytes);
    }

    fn writes_can_be_conditional(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let path = format!("/v1/contents/{bucket}/c");
        let put = |headers: &[(&str, &str)], bytes: &[u8]| alice.send("PUT", &path, headers, bytes);
        put(&[("if-none-match", "*")], b"one").expect(201);
        assert_eq!(put(&[("if-none-match", "*")], b"two").expect(412).code(), "precondition_failed");
        assert_eq!(put(&[("if-match", &etag_of(b"two"))], b"two").expect(412).code(), "precondition_failed");
        assert_eq!(alice.get(&path).expect(200).body, b"one");
        put(&[("if-match", &etag_of(b"one"))], b"two").expect(200);
        assert_eq!(alice.get(&path).expect(200).body, b"two");
        let wrong = [("dozo-content-hash", &etag_of(b"other")[1..65])];
        assert_eq!(put(&wrong, b"three").expect(400).code(), "content_mismatch");
        assert_eq!(alice.get(&path).expect(200).body, b"two");
        let delete = |tag: &str| alice.send("DELETE", &path, &[("if-match", tag)], &[]);
        assert_eq!(delete(&etag_of(b"one")).expect(412).code(), "precondition_failed");
        delete(&etag_of(b"two")).expect(204);
    }

    fn an_overwrite_by_the_provider_is_seen_at_the_other_site(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let carol = cluster.new_client("carol", "osaka");
        let bucket = cluster.bucket(&alice, "public");
        let name = format!("{bucket}/news");
        let (old, new) = (fresh_bytes(50_000), fresh_bytes(70_000));
        alice.put_content(&name, &old).expect(201);
        let first = carol.get_content(&name).expect(200);
        assert_eq!(first.header("dozo-source"), Some("peer"));
        assert_eq!(first.body, old);
        alice.put_content(&name, &new).expect(200);
        assert_eq!(alice.get_content(&name).expect(200).body, new, "home sees its own write at once");
        eventually("osaka delivers the new version", Duration::from_secs(5), || {
            let body = carol.get_content(&name).expect(200).body;
            if body == new {
                Ok(())
            } else if body == old {
                Err("still the old version".into())
            } else {
                panic!("bytes of neither version")
            }
        });
    }

    fn a_withdrawn_content_is_not_sold_any_more_but_holders_keep_it(cluster) {
        let alice = cluster.new_client("alice", "tokyo");
        let bob = cluster.new_client("bob", "tokyo");
        let carol = cluster.new_client("carol", "osaka");
        let late = cluster.new_client("late", "tokyo");
        let bucket = cluster.bucket(&alice, "public");
        let name = format!("{bucket}/gone");
        let bytes = fresh_bytes(40_000);
        alice.put_content(&name, &bytes).expect(201);
        bob.get_content(&name).expect(200);
        carol.get_content(&name).expect(200);
        alice.send("DELETE", &format!("/v1/contents/{name}"), &[], &[]).expect(204);
        let listing: ContentListing = alice.get(&format!("/v1/contents/{bucket}")).expect(200).json();
        assert!(listing.contents.is_empty(), "{listing:?}");
        assert_eq!(late.get_content(&name).expect(404).code(), "content_not_found");
        // Another client each time: one that is served before osaka has heard of it holds the content from then on.
        eventually("osaka hears of it", SOON, || {
            let status = cluster.new_client("late", "osaka").get_content(&name).status;
            if status == 404 { Ok(()) } else { Err(status.to_string()) }
        });
        assert_eq!(bob.get_content(&name).expect(200).body, bytes);
        assert_eq!(carol.get_content(&name).expect(200).body, bytes);
        // The name can be used again.
        let again = fresh_bytes(1_000);
        alice.put_content(&name, &again);
        assert_eq!(late.get_content(&name).expect(200).body, again);
    }
}
