//! The books of a running system: prices before a delivery, reconciliation after it, and who sees what of them.

use std::collections::BTreeMap;

use common::api::billing::RecordBatch;
use common::api::gateway::ClientUsage;
use common::auth::{ClusterSecret, Role};
use common::hash::{ContentHash, RecordDigest};
use common::id::{DeliveryId, NodeId, SiteId};
use common::record::{ChainedRecord, DeliveryClass, DeliveryPath, DeliveryRecord, DeliveryStatus};
use common::time::UnixMillis;
use serde_json::{Value, json};

use crate::cards::run;
use crate::cluster::{Cluster, Mode, Options, SECRET, SOON, eventually, unix_millis};
use crate::fresh_bytes;
use crate::http::{Answer, Client};

const DAY_MS: u64 = 86_400_000;

/// Months are counted in Tokyo.
fn month_of(time: UnixMillis) -> String {
    let (year, month, _) = UnixMillis(time.0 + 9 * 3_600_000).civil();
    format!("{year:04}-{month:02}")
}

pub fn this_month() -> String {
    month_of(UnixMillis(unix_millis()))
}

/// What a command of `dozo billing` prints, and whether it succeeded.
pub fn billing(cluster: &Cluster, arguments: &[&str]) -> (bool, BTreeMap<String, Value>) {
    let output = run(cluster, &[&["billing"], arguments].concat(), &[]);
    let answers = serde_json::from_slice(&output.stdout);
    let said = || BTreeMap::from([("stderr".to_owned(), String::from_utf8_lossy(&output.stderr).into())]);
    (output.status.success(), answers.unwrap_or_else(|_| said()))
}

#[test]
fn what_was_quoted_is_charged_and_logs_and_books_agree() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let alice = cluster.new_client("alice", "tokyo");
    let bob = cluster.new_client("bob", "osaka");
    let bucket = cluster.bucket(&alice, "public");
    let name = format!("{bucket}/song");
    alice.put_content(&name, &fresh_bytes(2_000_000)).expect(201);

    let (_, quotes) = eventually("search knows the content", SOON, || {
        let (found, quotes) = billing(&cluster, &["quote", &name, "--as", &bob.name]);
        if found { Ok((found, quotes)) } else { Err(format!("{quotes:?}")) }
    });
    // A client asks its gateway.
    let asked = |class: &str| {
        let quote: Value = bob.get(&format!("/v1/quote/{name}")).expect(200).json();
        assert_eq!((quote["class"].as_str(), quote["len"].as_u64()), (Some(class), Some(2_000_000)));
        assert_eq!(quote["service"], quotes["service"]);
        assert_eq!(quote["content"], quotes["content"]);
    };
    asked("purchase");
    bob.get_content(&name).expect(200);
    asked("reference");
    bob.get_content(&name).expect(200);
    let private = cluster.bucket(&alice, "private");
    alice.put_content(&format!("{private}/diary"), b"dear diary").expect(201);
    assert_eq!(bob.get(&format!("/v1/quote/{private}/diary")).expect(403).code(), "forbidden");
    let charged = cluster.await_billed(&bob, &[("complete", 2)]).map(|usage| usage.charges[0].micros);
    for (fee, charged) in ["service", "content"].into_iter().zip(charged) {
        let quote = |class: &str| quotes[fee][class].as_i64().unwrap();
        assert_eq!(quote("purchase_micros") + quote("reference_micros"), charged, "{fee}: {quotes:?}");
    }

    let month = this_month();
    let reconcile = || billing(&cluster, &["reconcile", &month]);
    let reports = eventually("all sides agree", SOON, || {
        let (agrees, reports) = reconcile();
        if agrees { Ok(reports) } else { Err(format!("{reports:?}")) }
    });
    for fee in ["service", "content"] {
        assert_eq!(reports[fee]["this"]["records"]["complete"], 2, "{reports:?}");
        assert!(reports[fee]["chains"].as_u64().unwrap() > 0);
    }

    // One server is away: the other tells whom it could not ask, and once it is back who is behind until it is not.
    cluster.kill("content-billing");
    bob.get_content(&name).expect(200);
    let service = cluster.billing(true);
    let path = format!("/v1/reconciliation/{month}");
    let report: Value = service.get(&path).expect(200).json();
    assert_eq!(report["ok"], false);
    assert!(report["unreachable"][0].as_str().unwrap().starts_with("content billing"), "{report}");
    cluster.restart("content-billing");
    cluster.await_ready("content-billing");
    cluster.await_billed(&bob, &[("complete", 3)]);
    eventually("all sides agree again", SOON, || {
        let (agrees, reports) = reconcile();
        if agrees { Ok(()) } else { Err(format!("{reports:?}")) }
    });
}

/// What a node delivered so long ago that its month is over, and the grace of its close too: one purchase for each client.
fn old_batch(node: &str, begin: UnixMillis, provider: &Client, clients: &[&Client]) -> RecordBatch {
    let node = NodeId::new(node).unwrap();
    let mut records: Vec<ChainedRecord> = Vec::new();
    for client in clients {
        let record = DeliveryRecord {
            delivery: DeliveryId::generate(begin),
            begin,
            end: begin,
            client: client.name.parse().unwrap(),
            content: format!("{}/song", provider.name).parse().unwrap(),
            hash: ContentHash::of(b"song"),
            provider: provider.name.parse().unwrap(),
            class: DeliveryClass::Purchase,
            path: DeliveryPath::Hit,
            home: SiteId::new(node.site()).unwrap(),
            source: None,
            searched: false,
            surrogate: None,
            mobile_access: None,
            status: DeliveryStatus::Complete,
            bytes_total: 300_000_000,
            bytes_sent: 300_000_000,
        };
        let previous = records.last().map_or(RecordDigest::ZERO, |last| last.digest);
        records.push(ChainedRecord::append(&node, 1, records.len() as u64, previous, record));
    }
    RecordBatch { node, epoch: 1, records, passed: None }
}

/// Sends a batch to one of the servers as whoever has this secret and says to be `name`.
fn send_batch(cluster: &Cluster, service: bool, (secret, name): (&str, &str), batch: &RecordBatch) -> Answer {
    let role = if service { Role::ServiceBilling } else { Role::ContentBilling };
    let now = UnixMillis(unix_millis());
    let token = ClusterSecret::new(secret).unwrap().sign(name, role, "POST", "/v1/batches", now);
    let server = Client { token: String::new(), ..cluster.billing(service) };
    server.send("POST", "/v1/batches", &[("authorization", &token)], &serde_json::to_vec(batch).unwrap())
}

#[test]
fn each_sees_its_own_part_of_the_books_and_changes_nothing() {
    let cluster = Cluster::start(Mode::ProcessPerServer, &Options::default());
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| cluster.client(name));
    let begin = UnixMillis(unix_millis() - 70 * DAY_MS);
    let month = month_of(begin);
    let batch = old_batch("tokyo.n9", begin, &alice, &[&bob, &carol]);

    // Nobody books but nodes of the site, and whoever tries is told of.
    let no_secret = "a secret that the cluster does not have at all";
    for (service, server) in [(true, "service-billing"), (false, "content-billing")] {
        let forged = send_batch(&cluster, service, (no_secret, "storage-node/tokyo.n9"), &batch);
        assert_eq!(forged.expect(401).code(), "unauthenticated");
        for name in ["storage-node/osaka.n1", "gateway/tokyo.g1", "operator"] {
            let refused = send_batch(&cluster, service, (SECRET, name), &batch).expect(403);
            assert_eq!(refused.code(), "forbidden", "{name}");
        }
        assert_eq!(cluster.metric(server, "dozo_billing_calls_forbidden_total", ""), 3.0);
        assert!(cluster.log(server).contains("storage-node/osaka.n1"), "{}", cluster.log(server));
        assert_eq!(
            cluster.billing(service).get("/v1/records?node=tokyo.n9&epoch=1").text(),
            r#"{"records":[],"next":null}"#
        );
        send_batch(&cluster, service, (SECRET, "storage-node/tokyo.n2"), &batch).expect(200);
        let close = format!("/v1/periods/{month}/close");
        cluster.billing(service).send_json("POST", &close, &json!({})).expect(200);
    }

    for fee in ["service", "content"] {
        let list = format!("/v1/invoices?fee={fee}");
        let numbers = [&bob, &carol].map(|client| {
            let invoices: Vec<Value> = client.get(&list).expect(200).json();
            let [invoice] = &invoices[..] else { panic!("{invoices:?}") };
            assert_eq!(
                (invoice["client"].as_str(), invoice["fee"].as_str()),
                (Some(&*client.name), Some(fee))
            );
            assert_eq!(invoice["period"], month);
            invoice["number"].as_str().unwrap().to_owned()
        });
        assert_ne!(numbers[0], numbers[1]);
        let forms = [
            ("json", "application/json", "bob"),
            ("csv", "text/csv; charset=utf-8", "bob"),
            ("html", "text/html; charset=utf-8", "bob"),
        ];
        for (form, media_type, text) in forms {
            let path = format!("/v1/invoices/{}.{form}", numbers[0]);
            let document = bob.get(&path).expect(200);
            assert_eq!(document.header("content-type"), Some(media_type));
            assert!(document.text().contains(text), "{}", document.text());
            assert_eq!(carol.get(&path).expect(404).code(), "not_found");
            assert_eq!(alice.get(&path).expect(404).code(), "not_found");
            assert_eq!(Client { token: String::new(), ..bob.clone() }.get(&path).status, 401);
        }
        let deliveries = format!("/v1/invoices/{}/deliveries", numbers[0]);
        let page: Value = bob.get(&deliveries).expect(200).json();
        assert_eq!(page["records"].as_array().unwrap().len(), 1, "{page}");
        assert_eq!(page["records"][0]["delivery"], batch.records[0].record.delivery.to_string());
        assert_eq!(carol.get(&deliveries).expect(404).code(), "not_found");
        assert_eq!(
            bob.get(&format!("{list}&period={month}&limit=1")).expect(200).json::<Vec<Value>>().len(),
            1
        );
    }
    assert_eq!(bob.get("/v1/invoices").expect(400).code(), "invalid_request", "of which fee?");
    assert_eq!(bob.get("/v1/invoices?fee=service&client=carol").expect(400).code(), "invalid_request");
    assert_eq!(bob.get("/v1/invoices/S-0000099.json").expect(404).code(), "not_found");

    // Of the two fees a provider has a part of one.
    let statements: Vec<Value> = alice.get("/v1/statements?fee=content").expect(200).json();
    assert_eq!(statements.len(), 1, "{statements:?}");
    assert_eq!(
        (&statements[0]["party"]["party"], &statements[0]["period"]),
        (&json!("provider:alice"), &json!(month))
    );
    for form in ["json", "csv", "html"] {
        let path = format!("/v1/statements/{month}.{form}?fee=content&currency=JPY");
        assert!(alice.get(&path).expect(200).text().contains("provider:alice"));
        let others = bob.get(&path);
        assert!(others.status == 404 || others.text() == "[]", "{}", others.text());
    }
    assert_eq!(alice.get("/v1/statements?fee=service").expect(200).text(), "[]");

    // This month's usage is of the month in the tariff's zone.
    let usage: ClientUsage = bob.get("/v1/usage").expect(200).json();
    assert_eq!(usage.service_usage.map(|usage| usage.period), Some(this_month()));

    let token = run(&cluster, &["billing", "auditor-token"], &[]);
    let token = String::from_utf8(token.stdout).unwrap().trim().to_owned();
    for service in [true, false] {
        let auditor = Client { token: token.clone(), ..cluster.billing(service) };
        assert_eq!(auditor.get("/v1/verify").expect(200).json::<Value>()["ok"], true);
        assert_eq!(auditor.get("/v1/invoices").expect(200).json::<Vec<Value>>().len(), 2);
        auditor.get(&format!("/v1/statements?period={month}")).expect(200);
        let split = json!({"valid_from": "2030-01-01"});
        assert_eq!(auditor.send_json("PUT", "/v1/splits", &split).expect(403).code(), "forbidden");
        for path in ["/v1/batches", "/v1/corrections", &format!("/v1/periods/{month}/close?dry_run=true")] {
            assert_eq!(auditor.send_json("POST", path, &json!({})).expect(403).code(), "forbidden");
        }
    }
    let elsewhere = [&cluster.endpoints.search.http, cluster.gateway("tokyo")];
    for path in ["/v1/clients", "/v1/peer/usages"] {
        for base in elsewhere {
            let auditor = Client::new("auditor", base, &token);
            assert!(matches!(auditor.get(path).status, 401 | 404), "{base}{path}");
        }
    }

    let anybody = Client { token: String::new(), ..cluster.billing(false) };
    let api: Value = anybody.get("/v1/openapi.json").expect(200).json();
    let printed = run(&cluster, &["billing", "openapi"], &[]);
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), api);
}
