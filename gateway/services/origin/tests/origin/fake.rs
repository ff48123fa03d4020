//! A small S3 server that counts what is asked of it and misbehaves when it is told to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use common::hash::ChunkHash;
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;

pub const BUCKET: &str = "archive";
const PAGE: usize = 1000;

#[derive(Default)]
pub struct Fake {
    pub objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Objects read: whole, or in part.
    pub gets: AtomicUsize,
    pub listings: AtomicUsize,
    inflight: AtomicUsize,
    pub most_inflight: AtomicUsize,
    /// Every read takes so long.
    pub delay_ms: AtomicUsize,
    /// Pages of listings after the first are refused.
    pub breaks_listings: AtomicUsize,
    pub saw_signature: AtomicUsize,
    /// Keys are refused without the rights for it.
    pub forbids: Mutex<Option<String>>,
}

impl Fake {
    pub async fn start() -> (Arc<Self>, SocketAddr) {
        let fake = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (fake, address)
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        self.objects.lock().unwrap().insert(key.to_owned(), bytes.to_vec());
    }

    pub fn remove(&self, key: &str) {
        self.objects.lock().unwrap().remove(key).unwrap();
    }

    pub fn gets(&self) -> usize {
        self.gets.load(Ordering::SeqCst)
    }
}

fn refuse(status: StatusCode, code: &str) -> Response {
    (status, format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>")).into_response()
}

fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", ChunkHash::of(bytes))
}

async fn answer(
    State(fake): State<Arc<Fake>>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    if request.headers().contains_key("authorization") {
        fake.saw_signature.fetch_add(1, Ordering::SeqCst);
    }
    let path = percent_decode_str(request.uri().path()).decode_utf8().unwrap().into_owned();
    let Some(key) = path.strip_prefix(&format!("/{BUCKET}")) else {
        return refuse(StatusCode::NOT_FOUND, "NoSuchBucket");
    };
    let key = key.strip_prefix('/').unwrap_or(key);
    match *request.method() {
        Method::GET if key.is_empty() => list(&fake, &query),
        Method::GET | Method::HEAD => get(&fake, key, request.method(), request.headers()).await,
        _ => refuse(StatusCode::FORBIDDEN, "AccessDenied"),
    }
}

fn list(fake: &Fake, query: &BTreeMap<String, String>) -> Response {
    fake.listings.fetch_add(1, Ordering::SeqCst);
    let after = query.get("continuation-token").or(query.get("start-after")).cloned().unwrap_or_default();
    if !after.is_empty() && fake.breaks_listings.load(Ordering::SeqCst) > 0 {
        return refuse(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let max: usize = query.get("max-keys").map_or(PAGE, |max| max.parse().unwrap());
    let objects = fake.objects.lock().unwrap();
    let mut xml = String::from("<ListBucketResult>");
    let mut last = None;
    let mut behind = objects.range(after.clone()..).filter(|(k, _)| **k != after && k.starts_with(&prefix));
    for (key, bytes) in behind.by_ref().take(max) {
        let escaped = key.replace('&', "&amp;").replace('<', "&lt;");
        write!(
            xml,
            "<Contents><Key>{escaped}</Key><Size>{}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>{}</ETag></Contents>",
            bytes.len(),
            tag(bytes)
        )
        .unwrap();
        last = Some(escaped);
    }
    if let (Some(last), true) = (last, behind.next().is_some()) {
        write!(xml, "<NextContinuationToken>{last}</NextContinuationToken><IsTruncated>true</IsTruncated>")
            .unwrap();
    }
    xml.push_str("</ListBucketResult>");
    xml.into_response()
}

async fn get(fake: &Fake, key: &str, method: &Method, headers: &HeaderMap) -> Response {
    if fake.forbids.lock().unwrap().as_deref() == Some(key) {
        return refuse(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let Some(bytes) = fake.objects.lock().unwrap().get(key).cloned() else {
        return refuse(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    let tag = tag(&bytes);
    if headers.get("if-match").is_some_and(|wanted| wanted != tag.as_str()) {
        return refuse(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    let mut response =
        Response::builder().header("etag", &tag).header("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT");
    if method == Method::HEAD {
        return response.header("content-length", bytes.len()).body(Body::empty()).unwrap();
    }
    fake.gets.fetch_add(1, Ordering::SeqCst);
    let now = fake.inflight.fetch_add(1, Ordering::SeqCst) + 1;
    fake.most_inflight.fetch_max(now, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(fake.delay_ms.load(Ordering::SeqCst) as u64)).await;
    fake.inflight.fetch_sub(1, Ordering::SeqCst);
    let body = match headers.get("range") {
        None => bytes,
        Some(range) => {
            let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
            let to = to.min(bytes.len() - 1);
            let content_range = format!("bytes {from}-{to}/{}", bytes.len());
            response = response.status(StatusCode::PARTIAL_CONTENT).header("content-range", content_range);
            bytes[from..=to].to_vec()
        }
    };
    response.body(Body::from(body)).unwrap()
}
