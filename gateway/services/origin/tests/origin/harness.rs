//! A search server that knows site `tokyo` and client `studio`, and an origin with the folder `files`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use common::api::origin::OriginClient;
use common::api::peer::PeerClient;
use common::api::search::{ContentInfo, NewClient, Registration, SearchClient};
use common::auth::{ClusterSecret, Role};
use common::client::{CallError, HttpClient, ServerClient, read_body};
use common::error::ErrorCode;
use common::id::InvalidId;
use common::manifest::{ChunkList, ChunkRef};
use common::name::ContentName;
use common::server::Running;
use common::time::Clock;
use http::{Method, Request, Response};
use http_body_util::Full;

pub const LONG: Duration = Duration::from_secs(60);

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub search_server: Running,
    pub origin_server: Running,
    pub search: SearchClient,
    pub peer: PeerClient,
}

pub fn id<T: std::str::FromStr<Err = InvalidId>>(text: &str) -> T {
    text.parse().unwrap()
}

pub fn secret() -> ClusterSecret {
    ClusterSecret::new("a cluster secret for tests, long enough").unwrap()
}

fn caller() -> ServerClient {
    ServerClient::new(HttpClient::new(), secret(), "test", Clock::System)
}

pub async fn start_search(data_dir: PathBuf, listen: SocketAddr) -> Running {
    let admin = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = search::Config {
        lease_ms: 600_000,
        heartbeat_ms: 100,
        ..search::Config::in_folder(listen, admin, data_dir)
    };
    search::start(config, secret()).await.unwrap()
}

pub async fn add_studio(search: &SearchClient) {
    let gateway = Registration {
        role: Role::Gateway,
        name: id("g1"),
        site: Some(id("tokyo")),
        zone: None,
        http: "http://127.0.0.1:1".into(),
        s3: None,
        admin: "http://127.0.0.1:1".into(),
        node: None,
    };
    search.register(&gateway).await.unwrap();
    search.create_client(&NewClient { client: id("studio"), site: id("tokyo") }).await.unwrap();
}

impl Bed {
    pub async fn new(rescan_ms: u64) -> Self {
        Self::with_files(rescan_ms, &[]).await
    }

    pub async fn with_files(rescan_ms: u64, files: &[(&str, &[u8])]) -> Self {
        Self::with_settling(rescan_ms, 100, files).await
    }

    pub async fn with_settling(rescan_ms: u64, settle_ms: u64, files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        for (name, bytes) in files {
            write(&dir, name, bytes);
        }
        let search_server = start_search(dir.path().join("search"), ([127, 0, 0, 1], 0).into()).await;
        let search = SearchClient::new(caller(), &search_server.http);
        add_studio(&search).await;
        let source = source("studio", &url_of(&dir, "files"));
        let times = Times { rescan_ms, settle_ms };
        let origin_server = start_origin(&dir, &search_server.http, times, vec![source]).await;
        let peer = PeerClient::origin(caller(), &origin_server.http);
        Self { dir, search_server, origin_server, search, peer }
    }

    /// Stops and starts the origin, with no source in its configuration.
    pub async fn restart_origin(self, rescan_ms: u64) -> Self {
        let Self { dir, search_server, origin_server, search, .. } = self;
        origin_server.stop().await;
        let times = Times { rescan_ms, settle_ms: 100 };
        let origin_server = start_origin(&dir, &search_server.http, times, Vec::new()).await;
        let peer = PeerClient::origin(caller(), &origin_server.http);
        Self { dir, search_server, origin_server, search, peer }
    }

    /// What the operator asks it.
    pub fn origin(&self) -> OriginClient {
        OriginClient::new(caller(), &self.origin_server.http)
    }

    /// A signed call whose answer is looked at whole.
    pub async fn raw(&self, path: &str) -> Response<impl Sized> {
        let url = format!("{}{path}", self.origin_server.http);
        let token = format!("Bearer {}", secret().admin_token());
        let request = Request::builder().uri(url).header("authorization", token);
        HttpClient::new().send(request.body(Full::default()).unwrap(), LONG).await.unwrap()
    }

    pub async fn metrics(&self) -> String {
        send(Method::GET, &format!("{}/metrics", self.origin_server.admin), None, "").await.1
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        write(&self.dir, name, bytes);
    }

    /// Waits until search knows the name, and `wanted` holds of what it knows.
    pub async fn found(&self, name: &str, wanted: impl Fn(&ContentInfo) -> bool) -> ContentInfo {
        let name: ContentName = id(name);
        let found = async || match self.search.lookup(&name).await {
            Ok(info) => Some(info).filter(&wanted),
            Err(error) => not_found(error),
        };
        eventually(&format!("{name} found"), found).await
    }

    pub async fn lost(&self, name: &str) {
        let name: ContentName = id(name);
        let lost = async || self.search.lookup(&name).await.is_err().then_some(());
        eventually(&format!("{name} withdrawn"), lost).await;
    }

    /// Collects a content as a gateway does: manifest, list, chunks, each verified.
    pub async fn collect(&self, name: &str) -> Vec<u8> {
        let name: ContentName = id(name);
        let holding = self.peer.holding(&name).await.unwrap();
        holding.manifest.check().unwrap();
        let chunks = match &holding.manifest.chunks {
            ChunkList::Inline(chunks) => chunks.clone(),
            ChunkList::Stored { list, count } => {
                let bytes = self.peer.chunk(&name, list, 0).await.unwrap();
                assert_eq!(common::hash::ChunkHash::of(&bytes), list.hash);
                let chunks = ChunkList::decode(&bytes).unwrap();
                assert_eq!(chunks.len(), *count as usize);
                chunks
            }
        };
        let mut whole = Vec::new();
        for chunk in chunks {
            let bytes = self.peer.chunk(&name, &chunk, whole.len() as u64).await.unwrap();
            assert_eq!(common::hash::ChunkHash::of(&bytes), chunk.hash);
            whole.extend_from_slice(&bytes);
        }
        assert_eq!(common::hash::ContentHash::of(&whole), holding.manifest.hash);
        assert_eq!(whole.len() as u64, holding.manifest.len);
        whole
    }

    pub async fn first_chunk(&self, name: &str) -> ChunkRef {
        let holding = self.peer.holding(&id(name)).await.unwrap();
        match holding.manifest.chunks {
            ChunkList::Inline(chunks) => chunks[0],
            ChunkList::Stored { list, .. } => list,
        }
    }
}

fn not_found<T>(error: CallError) -> Option<T> {
    assert_eq!(error.code(), Some(ErrorCode::ContentNotFound), "{error}");
    None
}

/// A source of client `studio`.
pub fn source(bucket: &str, url: &str) -> origin::Source {
    origin::Source { bucket: id(bucket), provider: id("studio"), url: url.to_owned(), read_concurrency: None }
}

pub fn url_of(dir: &tempfile::TempDir, folder: &str) -> String {
    format!("dir:{}", dir.path().join(folder).display())
}

pub fn write(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) {
    let path = dir.path().join("files").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    // In one step, so that no scan meets a half-written file.
    let whole = dir.path().join("being-written");
    std::fs::write(&whole, bytes).unwrap();
    std::fs::rename(whole, path).unwrap();
}

struct Times {
    rescan_ms: u64,
    settle_ms: u64,
}

async fn start_origin(
    dir: &tempfile::TempDir,
    search: &str,
    times: Times,
    sources: Vec<origin::Source>,
) -> Running {
    let config = origin::Config {
        listen: ([127, 0, 0, 1], 0).into(),
        admin: ([127, 0, 0, 1], 0).into(),
        name: id("archive"),
        search: search.to_owned(),
        data_dir: dir.path().join("origin"),
        advertise: None,
        rescan_ms: times.rescan_ms.into(),
        settle_ms: times.settle_ms.into(),
        read_concurrency: 4,
        read_queue: 8,
        sources,
    };
    origin::start(config, secret()).await.unwrap()
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let begin = std::time::Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < LONG, "not within {LONG:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A plain call, with a bearer token or without.
pub async fn send(method: Method, url: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(url);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(Full::new(body.to_owned().into())).unwrap();
    let response = HttpClient::new().send(request, LONG).await.unwrap();
    let status = response.status().as_u16();
    let bytes = read_body(url, response.into_body(), 1 << 20).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

/// Bytes that look random (xorshift64*).
pub fn noise(len: usize, mut state: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
