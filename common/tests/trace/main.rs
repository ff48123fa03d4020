//! Spans reach a collector: one that speaks OTLP over HTTP, as far as is needed to look at what comes.
#![cfg(feature = "otlp")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use common::auth::Role;
use common::client::HttpClient;
use common::error::{ApiError, ErrorCode};
use common::server::{Listen, Running, Server};
use common::trace::{self, Stage, otlp};
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(10);
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A collector on a free port, and what it is sent.
async fn collector() -> (String, mpsc::UnboundedReceiver<Value>) {
    let (sender, received) = mpsc::unbounded_channel();
    let take = async |State(sender): State<mpsc::UnboundedSender<Value>>, Json(document): Json<Value>| {
        sender.send(document).unwrap();
        Json(serde_json::json!({}))
    };
    let routes = Router::new().route("/v1/traces", post(take)).with_state(sender);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    tokio::spawn(common::server::accept_loop(listener, routes, CancellationToken::new()));
    (url, received)
}

async fn server(role: Role, name: &str, routes: Router) -> Running {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(role, name, &Listen { listen: free, admin: free }).await.unwrap();
    server.run(routes, Router::new(), async {})
}

fn request(url: &str) -> Request<Full<Bytes>> {
    Request::get(url).body(Full::default()).unwrap()
}

/// The spans that came, by the server and route that they are of.
fn spans(document: &Value) -> HashMap<(String, String), Value> {
    let mut spans = HashMap::new();
    for resource in document["resourceSpans"].as_array().unwrap() {
        let attributes = resource["resource"]["attributes"].as_array().unwrap();
        let instance = attributes.iter().find(|a| a["key"] == "service.instance.id").unwrap();
        let server = instance["value"]["stringValue"].as_str().unwrap();
        for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
            let name = span["name"].as_str().unwrap();
            spans.insert((server.to_owned(), name.to_owned()), span.clone());
        }
    }
    spans
}

#[tokio::test]
async fn a_collector_gets_one_trace_of_all_servers_that_a_request_went_through() {
    let (url, mut received) = collector().await;
    otlp::start(otlp::Settings { url, ratio: 0.0 });

    let fails = || async { ApiError::new(ErrorCode::Unavailable, "planted") };
    let second = server(Role::Search, "search", Router::new().route("/v1/fails", get(fails))).await;
    let asked = Arc::new(format!("{}/v1/fails", second.http));
    let ask = move || {
        let asked = asked.clone();
        async move {
            let answer = trace::stage(Stage::Search, HttpClient::new().send(request(&asked), LIMIT)).await;
            answer.unwrap().status().as_u16().to_string()
        }
    };
    let first = server(Role::Gateway, "tokyo.g1", Router::new().route("/v1/asks/{what}", get(ask))).await;

    let mut sent = request(&format!("{}/v1/asks/this", first.http));
    sent.headers_mut().insert("traceparent", PARENT.parse().unwrap());
    sent.headers_mut().insert("x-request-id", "abc".parse().unwrap());
    let answer = HttpClient::new().send(sent, LIMIT).await.unwrap();
    assert_eq!(answer.headers()["dozo-trace-id"], &PARENT[3..35]);
    // Of the traces that begin here none is exported at this ratio.
    HttpClient::new().send(request(&format!("{}/v1/asks/that", first.http)), LIMIT).await.unwrap();
    otlp::flush().await;

    let document = received.try_recv().expect("the spans were sent before the flush ended");
    let spans = spans(&document);
    assert_eq!(spans.len(), 2, "{document:#}");
    let of = |server: &str, name: &str| spans[&(server.to_owned(), name.to_owned())].clone();
    let (outer, inner) =
        (of("gateway/tokyo.g1", "GET /v1/asks/{what}"), of("search/search", "GET /v1/fails"));
    assert_eq!((&outer["traceId"], &inner["traceId"]), (&PARENT[3..35].into(), &PARENT[3..35].into()));
    assert_eq!((&outer["parentSpanId"], &inner["parentSpanId"]), (&PARENT[36..52].into(), &outer["spanId"]));
    assert_eq!((&outer["status"]["code"], &inner["status"]["code"]), (&0.into(), &2.into()));
    let nanos = |span: &Value, which: &str| span[which].as_str().unwrap().parse::<u64>().unwrap();
    assert!(nanos(&outer, "startTimeUnixNano") <= nanos(&inner, "startTimeUnixNano"));
    assert!(nanos(&outer, "endTimeUnixNano") > nanos(&outer, "startTimeUnixNano"));
    let told = |span: &Value, key: &str| {
        let attributes = span["attributes"].as_array().unwrap();
        attributes.iter().find(|a| a["key"] == key).map(|a| a["value"].clone())
    };
    for span in [&outer, &inner] {
        assert_eq!(told(span, "dozo.request_id"), Some(serde_json::json!({"stringValue": "abc"})));
    }
    assert_eq!(told(&inner, "http.response.status_code"), Some(serde_json::json!({"intValue": "503"})));
    assert!(told(&outer, "dozo.stage.search_ms").unwrap()["doubleValue"].as_f64().unwrap() > 0.0);
    first.stop().await;
    second.stop().await;
}
