//! The API's description: by the rules of OpenAPI 3.1, and by what the server answers.

use std::path::PathBuf;

use billing::{Config, Fee, demo_tariffs, start};
use common::api::billing::{BillingClient, RecordBatch};
use common::auth::{ClusterSecret, OPERATOR, Role};
use common::client::{HttpClient, ServerClient};
use common::id::{NodeId, ServerName};
use common::server::Running;
use common::time::Clock;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::checkers::Checkers;
use crate::fixtures::{chain, record};

fn write(dir: &TempDir, name: &str, document: &Value) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, document.to_string()).unwrap();
    path
}

#[test]
fn the_api_is_described_as_openapi_wants_it() {
    let Some(checkers) = Checkers::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let api = serde_json::to_value(billing::description()).unwrap();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1."), "{}", api["openapi"]);
    assert_eq!(checkers.openapi_breaches(&write(&dir, "api.json", &api)), "");

    // The checker does look.
    let mut wrong = api.clone();
    wrong["paths"]["/v1/usage"]["get"]["responses"]["200"] =
        json!({"$ref": "#/components/responses/Nothing"});
    assert_ne!(checkers.openapi_breaches(&write(&dir, "wrong.json", &wrong)), "");
    let mut wrong = api;
    wrong["paths"]["/v1/verify"]["get"]["responses"] = json!(7);
    assert_ne!(checkers.openapi_breaches(&write(&dir, "wrong.json", &wrong)), "");
}

async fn server(dir: &TempDir, secret: &ClusterSecret) -> Running {
    let config = Config {
        advertise: None,
        role: Fee::Service,
        listen: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        name: ServerName::new("b1").unwrap(),
        // Nobody listens there: the server serves all the same.
        search: "http://127.0.0.1:1".into(),
        data_dir: Some(dir.path().into()),
        database: None,
        database_password_file: None,
        close_grace_hours: 0,
        tariff: Some(demo_tariffs()),
        tariff_file: None,
    };
    start(config, secret.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_as_they_are_described() {
    let Some(checkers) = Checkers::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    let secret = ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap();
    let running = server(&dir, &secret).await;
    let client = |name: &str| {
        let server = ServerClient::new(HttpClient::new(), secret.clone(), name, Clock::System);
        BillingClient::new(server, &running.http, Role::ServiceBilling)
    };
    let (operator, node) = (client(OPERATOR), client("storage-node/tokyo.n1"));
    let mut answers: Vec<(String, Value)> = Vec::new();

    // A year earlier, so that the month is over on any clock.
    let earlier = |n| {
        let mut record = record(n);
        record.begin.0 -= 365 * 86_400_000;
        record.bytes_total = 200_000_000;
        record
    };
    let records = chain("tokyo.n1", 1, (0..60).map(earlier));
    let batch = RecordBatch { node: NodeId::new("tokyo.n1").unwrap(), epoch: 1, records, passed: None };
    answers.push(("post /v1/batches".into(), node.post("/v1/batches", &batch).await.unwrap()));
    let ahead = RecordBatch { records: batch.records[..5].to_vec(), epoch: 2, ..batch.clone() };
    answers.push(("post /v1/batches".into(), node.post("/v1/batches", &ahead).await.unwrap()));
    let close = "/v1/periods/2025-10/close";
    for query in ["?dry_run=true", ""] {
        let report = operator.post(&format!("{close}{query}"), &json!({})).await.unwrap();
        answers.push(("post /v1/periods/{period}/close".into(), report));
    }
    let deliveries = json!([{"node": "tokyo.n1", "epoch": 1, "seq": 1}]);
    let correction = json!({"deliveries": deliveries, "reason": "it was heard to crackle"});
    answers
        .push(("post /v1/corrections".into(), operator.post("/v1/corrections", &correction).await.unwrap()));
    let payment = json!({"invoice": "S-0000002", "minor": 1, "reference": "bank 7"});
    answers.push(("post /v1/payments".into(), operator.post("/v1/payments", &payment).await.unwrap()));
    let party =
        json!({"party": "client:bob", "valid_from": "2026-01-01", "name": "Bob Ltd.", "payout": "wallet"});
    answers.push(("put /v1/parties".into(), operator.put("/v1/parties", &party).await.unwrap()));
    let mut tariff = serde_json::to_value(&demo_tariffs().service.tariffs[0]).unwrap();
    tariff["valid_from"] = json!("2030-01-01");
    answers.push(("put /v1/tariffs".into(), operator.put("/v1/tariffs", &tariff).await.unwrap()));
    for (path, asked) in [
        ("/v1/usage", "/v1/usage?client=bob&period=2025-10"),
        ("/v1/quote", "/v1/quote?client=bob&content=alice/x&provider=alice&bytes=1000"),
        ("/v1/invoices", "/v1/invoices"),
        ("/v1/invoices/{file}", "/v1/invoices/S-0000001.json"),
        ("/v1/invoices/{file}", "/v1/invoices/S-0000004.json"),
        ("/v1/invoices/{number}/deliveries", "/v1/invoices/S-0000001/deliveries"),
        ("/v1/statements", "/v1/statements?period=2025-10"),
        ("/v1/statements/{party}/{file}", "/v1/statements/site:tokyo/2025-10.json"),
        ("/v1/chains", "/v1/chains"),
        ("/v1/records/digest", "/v1/records/digest?node=tokyo.n1&epoch=1&seq=7"),
        ("/v1/periods/{period}/totals", "/v1/periods/2025-10/totals"),
        ("/v1/tariffs", "/v1/tariffs"),
        ("/v1/splits", "/v1/splits"),
        ("/v1/parties", "/v1/parties"),
        ("/v1/totals", "/v1/totals"),
        ("/v1/records", "/v1/records?node=tokyo.n1&epoch=1"),
        ("/v1/accounts", "/v1/accounts"),
        ("/v1/periods", "/v1/periods"),
        ("/v1/reconciliation/{period}", "/v1/reconciliation/2025-10"),
        ("/v1/verify", "/v1/verify"),
    ] {
        let answer: Value = operator.get(asked).await.unwrap();
        assert!(!answer.as_array().is_some_and(Vec::is_empty), "{asked} gives nothing to check");
        answers.push((format!("get {path}"), answer));
    }
    running.stop().await;

    let api = serde_json::to_value(billing::description()).unwrap();
    let file = write(&dir, "answers.json", &json!({"api": api, "answers": answers}));
    assert_eq!(checkers.answer_breaches(&file), "");
    let wrong = json!([["get /v1/totals", {"records": {}, "journals": "many"}]]);
    let wrong = write(&dir, "wrong.json", &json!({"api": api, "answers": wrong}));
    assert_ne!(checkers.answer_breaches(&wrong), "", "the checker does look");
}
