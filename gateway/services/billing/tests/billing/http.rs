//! The server, asked as nodes, gateways and the operator ask it.

use billing::{Config, Fee, demo_tariffs, start};
use common::api::billing::{BatchAnswer, BillingClient, RecordBatch};
use common::auth::{ClusterSecret, OPERATOR, Role};
use common::client::{CallError, HttpClient, ServerClient, read_body};
use common::error::ErrorCode;
use common::id::{NodeId, ServerName};
use common::record::{ChainedRecord, DeliveryRecord};
use common::server::Running;
use common::time::Clock;
use serde_json::{Value, json};

use crate::fixtures::{chain, record};

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

pub async fn server(dir: &tempfile::TempDir) -> (Running, BillingClient) {
    let config = Config {
        role: Fee::Service,
        listen: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        name: ServerName::new("b1").unwrap(),
        advertise: None,
        // Nobody listens there: the server serves all the same.
        search: "http://127.0.0.1:1".into(),
        data_dir: Some(dir.path().join("billing")),
        database: crate::database(dir.path()),
        database_password_file: None,
        close_grace_hours: 72,
        tariff: Some(demo_tariffs()),
        tariff_file: None,
    };
    let running = start(config, ClusterSecret::new(SECRET).unwrap()).await.unwrap();
    let client = client(&running, SECRET, OPERATOR);
    (running, client)
}

/// Somebody who has this secret and calls under this name.
fn client(running: &Running, secret: &str, name: &str) -> BillingClient {
    let secret = ClusterSecret::new(secret).unwrap();
    let server = ServerClient::new(HttpClient::new(), secret, name, Clock::System);
    BillingClient::new(server, &running.http, Role::ServiceBilling)
}

fn node(running: &Running) -> BillingClient {
    client(running, SECRET, "storage-node/tokyo.n1")
}

fn batch(records: Vec<ChainedRecord>) -> RecordBatch {
    RecordBatch { node: NodeId::new("tokyo.n1").unwrap(), epoch: 1, records, passed: None }
}

/// One year earlier than its like, so that the month is over on any clock.
fn earlier(n: u64) -> DeliveryRecord {
    let mut record = record(n);
    record.begin.0 -= 365 * 86_400_000;
    record
}

/// The status of an answer, and its body.
async fn ask(running: &Running, method: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let url = format!("{}{path}", running.http);
    let mut request = http::Request::builder().method(method).uri(&url);
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let request = request.body(Default::default()).unwrap();
    let response = HttpClient::new().send(request, std::time::Duration::from_secs(10)).await.unwrap();
    let status = response.status().as_u16();
    let bytes = read_body(&url, response.into_body(), 4 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

pub fn code<T: std::fmt::Debug>(result: Result<T, CallError>) -> Option<ErrorCode> {
    result.unwrap_err().code()
}

pub async fn text(url: &str) -> String {
    let request = http::Request::get(url).body(Default::default()).unwrap();
    let response = HttpClient::new().send(request, std::time::Duration::from_secs(5)).await.unwrap();
    let bytes = read_body(url, response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_book_and_everyone_reads_the_same_books_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = server(&dir).await;
    let batch = batch(chain("tokyo.n1", 1, (0..40).map(record)));
    for _ in 0..2 {
        assert_eq!(node(&running).send_batch(&batch).await.unwrap(), BatchAnswer::Booked { through: 40 });
    }
    let usage = client.usage(&"bob".parse().unwrap(), Some("2026-10")).await.unwrap();
    assert_eq!(usage.deliveries.values().sum::<u64>(), 14);
    let totals = client.totals().await.unwrap();
    assert_eq!((totals.records.values().sum::<u64>(), totals.imbalance_micros), (40, 0));

    let delivery = batch.records[9].record.delivery;
    let found: Value = client.get(&format!("/v1/records?delivery={delivery}")).await.unwrap();
    assert_eq!(
        (found["records"][0]["seq"].as_u64(), found["records"].as_array().unwrap().len()),
        (Some(10), 1)
    );
    let page: Value = client.get("/v1/records?node=tokyo.n1&epoch=1&after=30&limit=5").await.unwrap();
    assert_eq!((page["records"][0]["seq"].as_u64(), page["next"].as_u64()), (Some(31), Some(35)));

    let drafts: Value = client.post("/v1/periods/2026-10/close?dry_run=true", &json!({})).await.unwrap();
    assert_eq!(drafts["invoices"].as_array().unwrap().len(), 3);
    let verified: Value = client.get("/v1/verify").await.unwrap();
    assert_eq!((verified["ok"].as_bool(), verified["records"].as_u64()), (Some(true), Some(40)));

    let metrics = text(&format!("{}/metrics", running.admin)).await;
    for line in [
        "dozo_billing_records_total{fee=\"service\",result=\"booked\"} 40",
        "dozo_billing_records_total{fee=\"service\",result=\"duplicate\"} 40",
        "dozo_billing_ledger_imbalance_minor_units{fee=\"service\"} 0",
        "dozo_billing_batches_total{fee=\"service\",outcome=\"booked\"} 2",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    running.stop().await;

    let (running, client) = server(&dir).await;
    assert_eq!(client.totals().await.unwrap(), totals, "the books outlive the server");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_opens_to_its_deliveries() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = server(&dir).await;
    let records = chain("tokyo.n1", 1, (0..40).map(earlier));
    node(&running).send_batch(&batch(records)).await.unwrap();
    let closed: Value = client.post("/v1/periods/2025-10/close", &json!({})).await.unwrap();
    assert_eq!(closed["issued"], 3);
    let invoice: Value = client.get("/v1/invoices/S-0000001.json").await.unwrap();
    assert_eq!(invoice, closed["invoices"][0]);
    let (mut seen, mut after, mut micros) = (0, 0, 0);
    loop {
        let path = format!("/v1/invoices/S-0000001/deliveries?after={after}&limit=5");
        let page: Value = client.get(&path).await.unwrap();
        for record in page["records"].as_array().unwrap() {
            assert_eq!(record["client"], invoice["client"]);
            micros += record["charge_micros"].as_i64().unwrap();
            seen += 1;
        }
        match page["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    let lines = invoice["lines"].as_array().unwrap();
    assert_eq!(seen, lines.iter().map(|l| l["deliveries"].as_i64().unwrap()).sum::<i64>());
    assert_eq!(micros, invoice["charges_micros"].as_i64().unwrap());
    let all: Value = client.get("/v1/invoices?period=2025-10&after=S-0000001").await.unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_a_code() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = server(&dir).await;
    let node = node(&running);
    let giant = batch(chain("tokyo.n1", 1, (0..4097).map(record)));
    assert_eq!(code(node.send_batch(&giant).await), Some(ErrorCode::TooLarge));
    let body = json!({"node": "tokyo.n1", "epoch": 1, "records": [], "padding": "x".repeat(17 << 20)});
    let too_long = node.post::<_, Value>("/v1/batches", &body).await;
    assert_eq!(code(too_long), Some(ErrorCode::TooLarge));
    let holed = RecordBatch { records: vec![giant.records[0].clone(), giant.records[2].clone()], ..giant };
    assert_eq!(code(node.send_batch(&holed).await), Some(ErrorCode::InvalidRequest));

    for path in [
        "/v1/usage?client=bob&period=2026-13",
        "/v1/usage?client=NOBODY&period=2026-10",
        "/v1/usage",
        "/v1/records",
        "/v1/records?node=tokyo.n1&epoch=1&limit=0",
        "/v1/invoices?after=7",
    ] {
        assert_eq!(code(client.get::<Value>(path).await), Some(ErrorCode::InvalidRequest), "{path}");
    }
    for path in ["/v1/invoices/S-0000001.json", "/v1/invoices/x", "/v1/invoices/S-0000009/deliveries"] {
        assert_eq!(code(client.get::<Value>(path).await), Some(ErrorCode::NotFound), "{path}");
    }
    let mut split = serde_json::to_value(&demo_tariffs().service.splits[0]).unwrap();
    split["valid_from"] = json!("2027-01-01");
    split["hit"]["home"] = json!(7000);
    let refused = client.put::<_, Value>("/v1/splits", &split).await.unwrap_err();
    assert!(refused.to_string().contains("sum to 9000"), "{refused}");
    let mut tariff = serde_json::to_value(&demo_tariffs().service.tariffs[0]).unwrap();
    tariff["per_delivery"] = json!("0.30");
    assert_eq!(code(client.put::<_, Value>("/v1/tariffs", &tariff).await), Some(ErrorCode::Conflict));
    tariff["valid_from"] = json!("2027-01-01");
    let stored: Value = client.put("/v1/tariffs", &tariff).await.unwrap();
    assert_eq!(stored["version"], 2);
    let listed: Value = client.get("/v1/tariffs").await.unwrap();
    assert_eq!(listed[1]["document"]["per_delivery"], "0.30");
    let party = json!({"party": "client:bob", "valid_from": "2026-01-01", "name": "Bob Ltd."});
    client.put::<_, Value>("/v1/parties", &party).await.unwrap();
    let parties: Value = client.get("/v1/parties").await.unwrap();
    assert_eq!(parties[0]["name"], "Bob Ltd.");
    let running_month = client.post::<_, Value>("/v1/periods/9999-01/close", &json!({})).await;
    assert_eq!(code(running_month), Some(ErrorCode::Conflict));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_come_from_nodes_of_their_own_site_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (running, operator) = server(&dir).await;
    let batch = batch(chain("tokyo.n1", 1, (0..5).map(record)));
    let others = [
        "storage-node/osaka.n1",
        "gateway/tokyo.g1",
        "service-billing/b2",
        "storage-node",
        "search",
        OPERATOR,
    ];
    for name in others {
        let refused = client(&running, SECRET, name).send_batch(&batch).await;
        assert_eq!(code(refused), Some(ErrorCode::Forbidden), "{name}");
    }
    let forger = client(&running, "another secret of at least 32 characters", "storage-node/tokyo.n1");
    assert_eq!(code(forger.send_batch(&batch).await), Some(ErrorCode::Unauthenticated));
    assert_eq!(operator.totals().await.unwrap().records.values().sum::<u64>(), 0);
    let metrics = text(&format!("{}/metrics", running.admin)).await;
    let counted = format!("dozo_billing_calls_forbidden_total{{fee=\"service\"}} {}", others.len());
    assert!(metrics.contains(&counted), "{metrics}");

    // The node that stands in for a lost one is of the same site.
    let follower = client(&running, SECRET, "storage-node/tokyo.n2");
    assert_eq!(follower.send_batch(&batch).await.unwrap(), BatchAnswer::Booked { through: 5 });
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_what_the_description_says_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _) = server(&dir).await;
    let secret = ClusterSecret::new(SECRET).unwrap();
    let (status, described) = ask(&running, "GET", "/v1/openapi.json", None).await;
    assert_eq!(status, 200);
    let api: Value = serde_json::from_str(&described).unwrap();
    let signed = |name: &str, method: &str, path: &str| {
        secret.sign(name, Role::ServiceBilling, method, path, Clock::System.now())
    };
    let mut routes = 0;
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let needs = operation["security"].to_string();
            // About one client, as a gateway must ask; what is wrong with it otherwise does not matter here.
            let path = path.replace(['{', '}'], "") + "?client=bob&party=provider:bob";
            let method = method.to_uppercase();
            let callers = [
                ("\"operator\"", format!("Bearer {}", secret.admin_token())),
                ("\"operator\"", signed(OPERATOR, &method, &path)),
                ("\"auditor\"", format!("Bearer {}", secret.auditor_token())),
                ("\"storage-node\"", signed("storage-node/tokyo.n1", &method, &path)),
                ("\"gateway\"", signed("gateway/tokyo.g1", &method, &path)),
                ("\"content-billing\"", signed("content-billing/b2", &method, &path)),
                ("\"search\"", signed("search", &method, &path)),
            ];
            for (need, token) in &callers {
                let (status, answer) = ask(&running, &method, &path, Some(token)).await;
                let open = path.starts_with("/v1/openapi.json");
                let may = open || needs.contains(need);
                assert_ne!(status, 401, "{need} {method} {path}: {answer}");
                assert_eq!(status != 403, may, "{need} {method} {path}: {status} {answer}");
                assert_eq!(need == &"\"auditor\"" && may, need == &"\"auditor\"" && method == "GET");
                let head = if method == "GET" { "HEAD" } else { method.as_str() };
                let (status, _) = ask(&running, head, &path, None).await;
                assert_eq!(status == 401, !open, "nobody {head} {path}: {status}");
            }
            routes += 1;
        }
    }
    assert!(routes > 25, "{routes}");
    for path in ["/v1/usage", "/v1/invoices", "/v1/invoices/S-0000001.json", "/v1/statements?period=2026-10"]
    {
        let (status, _) = ask(&running, "GET", path, Some(&signed("gateway/tokyo.g1", "GET", path))).await;
        assert_eq!(status, 403, "a gateway has no reason to ask for all: {path}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_or_provider_gets_its_own_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (running, operator) = server(&dir).await;
    let records = chain("tokyo.n1", 1, (0..40).map(earlier));
    node(&running).send_batch(&batch(records)).await.unwrap();
    operator.post::<_, Value>("/v1/periods/2025-10/close", &json!({})).await.unwrap();
    let gateway = client(&running, SECRET, "gateway/tokyo.g1");
    let all: Value = operator.get("/v1/invoices").await.unwrap();
    assert_eq!(all.as_array().unwrap().len(), 3);
    for invoice in all.as_array().unwrap() {
        let number = invoice["number"].as_str().unwrap();
        for client in ["bob", "carol", "dave", "nobody"] {
            let is_own = invoice["client"] == client;
            for form in ["json", "csv", "html"] {
                let document = gateway.file(&format!("/v1/invoices/{number}.{form}?client={client}")).await;
                assert_eq!(document.is_ok(), is_own, "{number}.{form} for {client}");
                if let Err(error) = document {
                    assert_eq!(error.code(), Some(ErrorCode::NotFound));
                }
            }
            let path = format!("/v1/invoices/{number}/deliveries?client={client}");
            assert_eq!(gateway.get::<Value>(&path).await.is_ok(), is_own, "{path}");
            let listed: Value = gateway.get(&format!("/v1/invoices?client={client}")).await.unwrap();
            assert_eq!(listed.as_array().unwrap().contains(invoice), is_own, "{listed}");
        }
    }
    let of = |party: &str, more: &str| format!("/v1/statements?party={party}{more}");
    let statements: Value = gateway.get(&of("site:tokyo", "")).await.unwrap();
    assert_eq!(
        (statements[0]["period"].as_str(), statements.as_array().unwrap().len()),
        (Some("2025-10"), 1)
    );
    let none: Value = gateway.get(&of("site:tokyo", "&after=2025-10")).await.unwrap();
    assert_eq!(none, json!([]));
    let both = operator.get::<Value>(&of("site:tokyo", "&period=2025-10")).await;
    assert_eq!(code(both), Some(ErrorCode::InvalidRequest));
    running.stop().await;
}
