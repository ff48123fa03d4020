//! kill -9 of each server in the middle of PUT, GET and collection.
//!
//! After the restart: what was acknowledged is intact, what was not is all there or not at all, and the books of both
//! billing servers are equal to each other and to what the clients received.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cluster::{Cluster, Mode, Options, eventually};
use crate::fresh_bytes;
use crate::http::{Client, Incoming};

/// Long enough that neither sockets nor buffers swallow it whole.
const LEN: usize = 48 << 20;
/// Bytes after which a transfer is certainly under way.
const UNDER_WAY: usize = 2 << 20;
const KILLED: [&str; 7] =
    ["tokyo.g1", "tokyo.n1", "tokyo.n2", "search", "service-billing", "content-billing", "origin"];
/// Open deliveries are given up after twice the join window, counted from the restart.
const BOOKED_SOON: Duration = Duration::from_secs(60);

/// What the clients of a test know.
#[derive(Default)]
struct Ledger {
    /// Deliveries whose every byte arrived.
    whole: BTreeSet<String>,
    /// Deliveries that were begun and broke off.
    broken: BTreeSet<String>,
    /// Requests that got no answer.
    unanswered: u64,
}

impl Ledger {
    /// Gets a content whole; a refusal is told, a break-off is noted.
    fn get(&mut self, client: &Client, name: &str, expected: &[u8]) -> Result<(), String> {
        let path = format!("/v1/contents/{name}");
        match client.open("GET", &path, &[]) {
            Err(error) => {
                self.unanswered += 1;
                Err(error.to_string())
            }
            Ok(incoming) => self.finish(incoming, &[], expected),
        }
    }

    /// Reads the rest of a download.
    fn finish(&mut self, incoming: Incoming, got: &[u8], expected: &[u8]) -> Result<(), String> {
        let status = incoming.status;
        let delivery = incoming.header("dozo-delivery").map(str::to_owned);
        match incoming.finish() {
            Ok(answer) if status == 200 => {
                assert!([got, &answer.body].concat() == expected, "wrong bytes under a 200");
                self.whole.insert(delivery.expect("a delivery has an id"));
                Ok(())
            }
            Ok(answer) => {
                // A begun delivery that could not send its first byte is refused, and recorded as void.
                self.unanswered += 1;
                Err(answer.text())
            }
            Err(error) => {
                self.broken.extend(delivery);
                Err(error.to_string())
            }
        }
    }

    /// Gets a content, again until it comes.
    #[track_caller]
    fn get_eventually(&mut self, client: &Client, name: &str, expected: &[u8]) {
        eventually(&format!("{name} is delivered"), BOOKED_SOON, || self.get(client, name, expected));
    }

    /// Waits until both servers booked the same records, complete ones as many as arrived whole, and in all no more
    /// than there were requests.
    #[track_caller]
    fn await_books(&self, cluster: &Cluster) {
        let (whole, broken) = (self.whole.len() as u64, self.broken.len() as u64);
        let sum = |records: &std::collections::BTreeMap<String, u64>| records.values().sum::<u64>();
        eventually("the books equal the deliveries", BOOKED_SOON, || {
            let [service, content] = cluster.totals();
            assert_eq!((service.imbalance_micros, content.imbalance_micros), (0, 0));
            let told = format!(
                "service {:?}, content {:?}; {whole} whole, {broken} broken off, {} without an answer",
                service.records, content.records, self.unanswered
            );
            let complete = service.records.get("complete").copied().unwrap_or(0);
            let recovered = service.records.get("recovered").copied().unwrap_or(0);
            let all = sum(&service.records);
            assert!(all <= whole + broken + self.unanswered, "more records than deliveries: {told}");
            let equal = service.records == content.records;
            // The last bytes may have left just before the kill, and the word of it not.
            let arrived = complete + recovered >= whole && complete <= whole + broken;
            if equal && arrived && all >= whole + broken { Ok(()) } else { Err(told) }
        });
        std::thread::sleep(Duration::from_millis(500));
        let [service, content] = cluster.totals();
        assert_eq!(service.records, content.records);
        assert!(sum(&service.records) <= whole + broken + self.unanswered, "{:?}", service.records);
    }
}

/// A cluster with one acknowledged content, delivered once.
fn cluster_with_a_content(ledger: &mut Ledger) -> (Cluster, Vec<u8>) {
    // Without a cache in the gateways, what a node has can come from that node alone.
    let options = Options { cache_bytes: 0, ..Options::default() };
    let cluster = Cluster::start(Mode::ProcessPerServer, &options);
    let bytes = fresh_bytes(LEN);
    cluster.client("alice").put_content("alice/before", &bytes).expect(201);
    ledger.get(&cluster.client("bob"), "alice/before", &bytes).expect("it was acknowledged");
    (cluster, bytes)
}

fn killed_in_the_middle_of_a_put(server: &str) {
    let mut ledger = Ledger::default();
    let (cluster, before) = cluster_with_a_content(&mut ledger);
    let (alice, bob) = (cluster.client("alice"), cluster.client("bob"));
    let new = fresh_bytes(LEN);
    // One PUT makes a name, the other replaces one.
    let mut uploads: Vec<_> = ["alice/new", "alice/before"]
        .into_iter()
        .map(|name| (name, alice.begin_put(name, LEN as u64).unwrap()))
        .collect();
    for (_, upload) in &mut uploads {
        upload.send(&new[..LEN / 2]).unwrap();
    }
    cluster.kill(server);
    let mut acknowledged = Vec::new();
    for (name, mut upload) in uploads {
        let answer = upload.send(&new[LEN / 2..]).and_then(|()| upload.finish());
        let done = answer.as_ref().is_ok_and(|answer| answer.status == 200 || answer.status == 201);
        println!("{server} killed: PUT {name} gave {:?}", answer.map(|answer| answer.status));
        acknowledged.push((name, done));
    }
    cluster.restart(server);
    cluster.await_ready(server);
    for (name, done) in acknowledged {
        let expected = eventually("the content is there whole, or not at all", BOOKED_SOON, || {
            let head = alice.try_send("HEAD", &format!("/v1/contents/{name}"), &[], &[]);
            let head = head.map_err(|error| error.to_string())?;
            match (head.status, head.header("etag")) {
                (404, _) => Ok(None),
                (200, Some(etag)) if etag == crate::etag_of(&new) => Ok(Some(&new)),
                (200, Some(etag)) if etag == crate::etag_of(&before) => Ok(Some(&before)),
                (200, etag) => panic!("{name} is neither version: {etag:?}"),
                (status, _) => Err(status.to_string()),
            }
        });
        match expected {
            None => assert!(!done && name == "alice/new", "{name} was acknowledged and is gone"),
            Some(expected) => {
                assert!(!done || expected == &new, "{name} was acknowledged and is the old version");
                ledger.get_eventually(&bob, name, expected);
            }
        }
    }
    // And it goes on as before.
    alice.put_content("alice/after", &new).expect(201);
    ledger.get_eventually(&bob, "alice/after", &new);
    ledger.await_books(&cluster);
}

fn killed_in_the_middle_of_a_get(server: &str) {
    let mut ledger = Ledger::default();
    let (cluster, bytes) = cluster_with_a_content(&mut ledger);
    let (alice, bob) = (cluster.client("alice"), cluster.client("bob"));
    let mut downloads: Vec<_> = [&alice, &bob]
        .into_iter()
        .map(|client| client.open("GET", "/v1/contents/alice/before", &[]).unwrap())
        .map(|mut download| {
            let got = download.read_exact(UNDER_WAY).unwrap();
            (download, got)
        })
        .collect();
    cluster.kill(server);
    // While it is away whatever is asked is served or refused, never wrong.
    let meanwhile = ledger.get(&bob, "alice/before", &bytes);
    println!("{server} killed: a new GET gave {meanwhile:?}");
    for (download, got) in downloads.drain(..) {
        println!("{server} killed: the download gave {:?}", ledger.finish(download, &got, &bytes));
    }
    cluster.restart(server);
    cluster.await_ready(server);
    ledger.get_eventually(&bob, "alice/before", &bytes);
    ledger.get_eventually(&alice, "alice/before", &bytes);
    ledger.await_books(&cluster);
}

fn killed_in_the_middle_of_a_collection(server: &str) {
    let mut ledger = Ledger::default();
    let (cluster, bytes) = cluster_with_a_content(&mut ledger);
    let carol = cluster.client("carol");
    let film = std::fs::read(cluster.path("studio/film.bin")).unwrap();
    let mut downloads = Vec::new();
    for (name, under_way) in [("alice/before", UNDER_WAY), ("studio/film.bin", 1 << 20)] {
        let mut download = carol.open("GET", &format!("/v1/contents/{name}"), &[]).unwrap();
        assert_ne!(download.header("dozo-source"), Some("hit"), "{name}");
        let got = download.read_exact(under_way).unwrap();
        downloads.push((name, download, got));
    }
    cluster.kill(server);
    for (name, download, got) in downloads {
        let expected = if name == "alice/before" { &bytes } else { &film };
        println!("{server} killed: collecting {name} gave {:?}", ledger.finish(download, &got, expected));
    }
    cluster.restart(server);
    cluster.await_ready(server);
    for _ in 0..2 {
        ledger.get_eventually(&carol, "alice/before", &bytes);
        ledger.get_eventually(&carol, "studio/film.bin", &film);
    }
    ledger.await_books(&cluster);
}

#[test]
fn killed_in_the_middle_of_a_put_acknowledged_content_is_intact_and_the_rest_all_or_nothing() {
    for server in KILLED {
        killed_in_the_middle_of_a_put(server);
    }
}

#[test]
fn killed_in_the_middle_of_a_get_every_delivery_is_booked_once() {
    for server in KILLED {
        killed_in_the_middle_of_a_get(server);
    }
}

#[test]
fn killed_in_the_middle_of_a_collection_it_goes_on_after_the_restart() {
    for server in KILLED.into_iter().chain(["osaka.g1", "osaka.n2"]) {
        killed_in_the_middle_of_a_collection(server);
    }
}

#[test]
fn everything_killed_at_once_loses_nothing_acknowledged() {
    let mut ledger = Ledger::default();
    let (cluster, bytes) = cluster_with_a_content(&mut ledger);
    let (alice, bob, carol) = (cluster.client("alice"), cluster.client("bob"), cluster.client("carol"));
    let small: Vec<_> = (0..30).map(|i| (format!("alice/small-{i}"), fresh_bytes(3000))).collect();
    for (name, bytes) in &small {
        alice.put_content(name, bytes).expect(201);
        ledger.get(&bob, name, bytes).expect("it was acknowledged");
    }
    let mut download = carol.open("GET", "/v1/contents/alice/before", &[]).unwrap();
    let got = download.read_exact(UNDER_WAY).unwrap();
    let names: Vec<String> = cluster.servers().into_iter().map(|(name, _)| name).collect();
    for name in &names {
        cluster.kill(name);
    }
    // Broken, or whole if the sockets held it all.
    let _outcome = ledger.finish(download, &got, &bytes);
    for name in &names {
        cluster.restart(name);
    }
    for name in &names {
        cluster.await_ready(name);
    }
    for (name, bytes) in &small {
        ledger.get_eventually(&bob, name, bytes);
    }
    ledger.get_eventually(&carol, "alice/before", &bytes);
    ledger.await_books(&cluster);
}
