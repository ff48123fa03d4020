//! The books of a running system: prices before a delivery, reconciliation after it.

use std::collections::BTreeMap;

use common::time::UnixMillis;
use serde_json::Value;

use crate::cards::run;
use crate::cluster::{Cluster, Mode, Options, SOON, eventually, unix_millis};
use crate::fresh_bytes;

pub fn this_month() -> String {
    // Months are counted in Tokyo.
    let (year, month, _) = UnixMillis(unix_millis() + 9 * 3_600_000).civil();
    format!("{year:04}-{month:02}")
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
