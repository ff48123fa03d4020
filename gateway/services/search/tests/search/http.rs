//! What the typed client hides: tokens, refusals, discovery, metrics.

use std::time::Duration;

use common::client::{HttpClient, read_body};
use common::error::{ErrorBody, ErrorCode};
use common::name::ContentName;
use http::{Method, Request};
use http_body_util::Full;

use crate::harness::{SOON, TestSearch, gateway, hold, node, secret};

async fn send(method: Method, url: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(body.to_owned().into())).unwrap();
    let response = HttpClient::new().send(request, SOON).await.unwrap();
    let status = response.status().as_u16();
    let bytes = read_body(url, response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

fn error_of(body: &str) -> ErrorBody {
    serde_json::from_str(body).unwrap_or_else(|_| panic!("not an error of ours: {body}"))
}

#[tokio::test]
async fn only_servers_and_the_operator_are_answered() {
    let search = TestSearch::new().await;
    let url = format!("{}/v1/map", search.running.http);
    for token in [None, Some("dozo_0123")] {
        let (status, body) = send(Method::GET, &url, token, "").await;
        assert_eq!((status, error_of(&body).code), (401, ErrorCode::Unauthenticated));
    }
    let (status, _) = send(Method::GET, &url, Some(secret().admin_token()), "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn bad_input_is_refused_with_the_reason() {
    let search = TestSearch::new().await.with_alice().await;
    let long = "k".repeat(2000);
    let cases = [
        (Method::POST, "/v1/servers".to_owned(), "{", "JSON", 400),
        (
            Method::POST,
            "/v1/servers".to_owned(),
            r#"{"role":"gateway","name":"G 1","http":"http://h","admin":"http://h"}"#,
            "1 to 40",
            400,
        ),
        (
            Method::POST,
            "/v1/servers".to_owned(),
            r#"{"role":"gateway","name":"g1","http":"http://h","admin":"http://h"}"#,
            "needs a site",
            400,
        ),
        (
            Method::POST,
            "/v1/servers".to_owned(),
            r#"{"role":"gateway","site":"tokyo","name":"g1","http":"h:1","admin":"http://h"}"#,
            "http://HOST:PORT",
            400,
        ),
        (
            Method::POST,
            "/v1/servers".to_owned(),
            r#"{"role":"storage-node","site":"tokyo","name":"n1","http":"http://h","admin":"http://h"}"#,
            "log id",
            400,
        ),
        (Method::GET, "/v1/map?after=x".to_owned(), "", "after", 400),
        (Method::GET, "/v1/contents/lookup?name=alice".to_owned(), "", "BUCKET/KEY", 400),
        (Method::GET, format!("/v1/contents/lookup?name=alice/{long}"), "", "1 to 1024", 400),
        (Method::GET, "/v1/contents/lookup".to_owned(), "", "name", 400),
        (Method::GET, "/v1/contents/list?bucket=alice&limit=0".to_owned(), "", "1 to 1000", 400),
        (Method::GET, "/v1/contents/list?bucket=alice&limit=1001".to_owned(), "", "1 to 1000", 400),
        (Method::GET, format!("/v1/contents/list?bucket=alice&prefix={long}"), "", "at most 1024", 400),
        (Method::GET, "/v1/contents/list?bucket=A".to_owned(), "", "3 to 63", 400),
        (Method::GET, "/v1/contents/search?limit=3".to_owned(), "", "q", 400),
        (
            Method::PUT,
            "/v1/buckets/UP".to_owned(),
            r#"{"provider":"alice","visibility":"public"}"#,
            "3 to 63",
            400,
        ),
        (
            Method::PUT,
            "/v1/buckets/news".to_owned(),
            r#"{"provider":"alice","visibility":"open"}"#,
            "open",
            400,
        ),
        (Method::GET, "/v1/buckets/%ff%fe%fd".to_owned(), "", "UTF-8", 400),
        (
            Method::POST,
            "/v1/announcements".to_owned(),
            r#"{"announcer":{"node":"tokyo.n1"},"epoch":99999999999999999999,"first_seq":1,"items":[]}"#,
            "JSON",
            400,
        ),
        (
            Method::POST,
            "/v1/announcements".to_owned(),
            r#"{"announcer":{"node":"tokyo.n1"},"epoch":9999999999999999999,"first_seq":1,"items":[]}"#,
            "epoch",
            400,
        ),
        (Method::DELETE, "/v1/map".to_owned(), "", "method", 405),
        (Method::GET, "/v1/nothing".to_owned(), "", "nothing", 404),
    ];
    for (method, path, body, reason, expected) in cases {
        let url = format!("{}{path}", search.running.http);
        let (status, answer) = send(method.clone(), &url, Some(secret().admin_token()), body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        let error = error_of(&answer);
        assert!(error.message.contains(reason), "{method} {path}: {}", error.message);
        assert!(!error.request_id.is_empty());
    }
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused() {
    let search = TestSearch::new().await;
    let url = format!("{}/v1/clients", search.running.http);
    let (status, body) = send(Method::POST, &url, Some(secret().admin_token()), &" ".repeat(70 << 10)).await;
    assert_eq!((status, error_of(&body).code), (413, ErrorCode::TooLarge));
}

#[tokio::test]
async fn prometheus_finds_every_server_without_a_token() {
    let search = TestSearch::new().await;
    search.client.register(&gateway("tokyo", "g1")).await.unwrap();
    search.client.register(&node("tokyo", "n1", "a", 1)).await.unwrap();
    for base in [&search.running.http, &search.running.admin] {
        let (status, body) = send(Method::GET, &format!("{base}/v1/sd/prometheus"), None, "").await;
        assert_eq!(status, 200);
        let targets: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(targets[0]["labels"], serde_json::json!({"job": "search", "instance": "search"}));
        assert_eq!(targets[0]["targets"][0], search.running.admin.trim_start_matches("http://"));
        assert_eq!(
            targets[1]["labels"],
            serde_json::json!({"job": "gateway", "instance": "tokyo.g1", "site": "tokyo"})
        );
        assert_eq!(targets[2]["labels"]["instance"], "tokyo.n1");
        assert_eq!(targets[2]["targets"][0], "127.0.0.1:81");
    }
}

#[tokio::test]
async fn the_figures_follow_what_is_announced() {
    let search = TestSearch::new().await.with_alice().await;
    search.announce("tokyo.n1", 1, vec![hold("alice/a", 1), hold("alice/b", 1)]).await;
    search.announce("osaka.n1", 1, vec![hold("alice/a", 2)]).await;
    let name: ContentName = "alice/none".parse().unwrap();
    let _refused = search.client.lookup(&name).await;
    let (_, text) = send(Method::GET, &format!("{}/metrics", search.running.admin), None, "").await;
    for line in [
        "dozo_search_contents 2",
        "dozo_search_holders 3",
        "dozo_search_map_epoch 2",
        "dozo_search_announcements_total 3",
        r#"dozo_http_requests_total{route="GET /v1/contents/lookup",code="404"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    let ready = format!("{}/readyz?verbose", search.running.admin);
    let (status, body) =
        tokio::time::timeout(Duration::from_secs(5), send(Method::GET, &ready, None, "")).await.unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("[+] database ok"), "{body}");
}
