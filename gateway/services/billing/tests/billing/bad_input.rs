//! Bad input over HTTP: refused with a clear code, counted where it smells, and nothing of it booked.

use billing::demo_tariffs;
use common::api::billing::{BatchAnswer, BillingClient, RecordBatch};
use common::auth::{ClusterSecret, Role};
use common::client::{HttpClient, ServerClient};
use common::error::ErrorCode;
use common::id::NodeId;
use common::record::{ChainedRecord, DeliveryRecord};
use common::server::Running;
use common::time::Clock;
use serde_json::{Value, json};

use crate::fixtures::{chain, record};
use crate::http::{SECRET, code, server, text};

fn caller(running: &Running, name: &str) -> BillingClient {
    let secret = ClusterSecret::new(SECRET).unwrap();
    let server = ServerClient::new(HttpClient::new(), secret, name, Clock::System);
    BillingClient::new(server, &running.http, Role::ServiceBilling)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_the_books_is_refused_and_counted_and_nothing_of_it_is_booked() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _) = server(&dir).await;
    let (client, node) = (caller(&running, "operator"), caller(&running, "storage-node/tokyo.n1"));
    // The last is sound as a record, but no content has so many bytes.
    let vast = |n| DeliveryRecord { bytes_total: u64::MAX, ..record(n) };
    let records = chain("tokyo.n1", 1, (0..20).map(record).chain([vast(20)]));
    let batch = |records: &[ChainedRecord]| {
        let name = NodeId::new("tokyo.n1").unwrap();
        RecordBatch { node: name, epoch: 1, records: records.to_vec(), passed: None }
    };
    node.send_batch(&batch(&records[..10])).await.unwrap();
    let books = async || {
        let accounts: Value = client.get("/v1/accounts").await.unwrap();
        let chains: Value = client.get("/v1/chains").await.unwrap();
        (client.totals().await.unwrap(), accounts, chains)
    };
    let before = books().await;

    let mut tampered = records[10..20].to_vec();
    tampered[3].record.bytes_total -= 1;
    let answer = node.send_batch(&batch(&tampered)).await.unwrap();
    assert!(
        matches!(&answer, BatchAnswer::Fork { seq: 14, reason } if reason.contains("digest")),
        "{answer:?}"
    );
    let answer = node.send_batch(&batch(&records[15..20])).await.unwrap();
    assert_eq!(answer, BatchAnswer::Gap { expected: 11 });
    let half = r#"{"node": "tokyo.n1", "epoch": 1, "records": [{"seq": 11, "#;
    assert_eq!(
        code(node.post_file::<Value>("/v1/batches", half.into()).await),
        Some(ErrorCode::InvalidRequest)
    );

    let tariff = |field: &str, value: &str| {
        let mut tariff = serde_json::to_value(&demo_tariffs().service.tariffs[0]).unwrap();
        tariff["valid_from"] = json!("2027-01-01");
        tariff[field] = json!(value);
        tariff
    };
    let mut overlapping = tariff("valid_from", "2020-01-01");
    overlapping["per_delivery"] = json!("7");
    for (document, refusal, told) in [
        (tariff("currency", "BTC"), ErrorCode::InvalidRequest, "currency \"BTC\" is not known: use JPY, EUR"),
        (tariff("per_delivery", "1000000001"), ErrorCode::InvalidRequest, "at most 1000000000"),
        (tariff("per_delivery", "9".repeat(40).as_str()), ErrorCode::InvalidRequest, "is not a price"),
        (tariff("per_delivery", "0.0000001"), ErrorCode::InvalidRequest, "at most 6 after a point"),
        (tariff("zone", "Mars"), ErrorCode::InvalidRequest, "zone \"Mars\""),
        (tariff("valid_from", "2019-12-31"), ErrorCode::Conflict, "a new version must begin later"),
        (overlapping, ErrorCode::Conflict, "version 1 holds from 2019-12-31T15:00:00"),
    ] {
        let refused = client.put::<_, Value>("/v1/tariffs", &document).await.unwrap_err();
        assert_eq!(refused.code(), Some(refusal), "{refused}");
        assert!(refused.to_string().contains(told), "{told} is not in {refused}");
    }
    assert_eq!(books().await, before);

    assert_eq!(node.send_batch(&batch(&records[10..])).await.unwrap(), BatchAnswer::Booked { through: 21 });
    assert_eq!(client.totals().await.unwrap().exceptions, 1, "it waits, and holds up nothing");
    let metrics = text(&format!("{}/metrics", running.admin)).await;
    for line in [
        "dozo_billing_records_total{fee=\"service\",result=\"booked\"} 20",
        "dozo_billing_records_total{fee=\"service\",result=\"refused\"} 10",
        "dozo_billing_records_total{fee=\"service\",result=\"exception\"} 1",
        "dozo_billing_batches_total{fee=\"service\",outcome=\"fork\"} 1",
        "dozo_billing_batches_total{fee=\"service\",outcome=\"gap\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let verified: Value = client.get("/v1/verify").await.unwrap();
    assert_eq!(verified["ok"], true, "{verified}");
    running.stop().await;
}
