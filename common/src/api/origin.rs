//! What the operator asks of an origin: its sources, how far they are registered, and changes to them. What
//! collecting gateways ask is in [`crate::api::peer`].

use std::time::Duration;

use http::{HeaderMap, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::auth::Role;
use crate::client::{Call, CallError, ServerClient};
use crate::id::{BucketName, ClientId};
use crate::time::UnixMillis;

const LIMIT: Duration = Duration::from_secs(20);

/// Where a bucket's original content is. `GET|POST /v1/sources`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Bucket that the contents appear in; made (public) if search does not know it. A bucket has one source.
    pub bucket: BucketName,
    /// The client that provides, and is paid for, the contents.
    pub provider: ClientId,
    /// `dir:/path`, `s3://bucket/prefix?endpoint=URL&region=R&credentials=FILE` or `memory:`. Keys are never part of it.
    pub url: String,
    /// Most parts that are read from the source at a time; if not set, as many as the origin reads in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub read_concurrency: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Its first scan is about to begin.
    Waiting,
    Scanning,
    /// The last scan came to its end; the next begins by itself.
    Scanned,
    /// The last scan did not come to its end; it is tried again.
    Failing,
    /// It could not be opened: nothing of it is sent.
    Closed,
    /// Its contents are being withdrawn; then it is forgotten.
    Removing,
}

impl SourceState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Scanning => "scanning",
            Self::Scanned => "scanned",
            Self::Failing => "failing",
            Self::Closed => "closed",
            Self::Removing => "removing",
        }
    }
}

/// How far a scan is, or how far the last one came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScanProgress {
    pub started: Option<UnixMillis>,
    pub ended: Option<UnixMillis>,
    /// Objects that the listing brought.
    pub listed: u64,
    /// Objects that were read because they are new or changed, and their bytes.
    pub read: u64,
    pub read_bytes: u64,
    /// Objects whose names cannot be keys.
    pub left_out: u64,
    /// Objects and folders that could not be read.
    pub unreadable: u64,
}

/// Contents that are missing in a source and still announced: too many at once to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldWithdrawals {
    pub contents: u64,
    /// Only the operator's word withdraws them; else the next scan does, if it finds the same.
    pub needs_word: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    #[serde(flatten)]
    pub source: Source,
    pub state: SourceState,
    /// What is wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Changes are noticed when they happen; otherwise by the next scan.
    pub watched: bool,
    /// Contents that are announced, and their bytes.
    pub contents: u64,
    pub bytes: u64,
    pub scan: ScanProgress,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HeldWithdrawals>,
    pub reads_inflight: u64,
    pub reads_waiting: u64,
}

/// An origin, as it is asked for by its operator. `GET /v1/status`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginStatus {
    pub name: String,
    pub sources: Vec<SourceStatus>,
    /// Announcements that search has not taken yet.
    pub announcements_pending: u64,
}

/// Scan a source now. `POST /v1/sources/{bucket}/rescan`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescan {
    /// What this scan does not find is gone, however much it is.
    #[serde(default)]
    pub withdraw: bool,
}

/// Typed client of an origin's operator interface.
#[derive(Clone)]
pub struct OriginClient {
    server: ServerClient,
    base: String,
}

impl OriginClient {
    pub fn new(server: ServerClient, base: &str) -> Self {
        Self { server, base: base.to_owned() }
    }

    pub async fn status(&self) -> Result<OriginStatus, CallError> {
        self.server.get_json(&self.base, Role::Origin, "/v1/status", LIMIT).await
    }

    /// Adds a source, or changes its provider or limit. Durable when answered; its scan goes on behind.
    pub async fn add(&self, source: &Source) -> Result<Source, CallError> {
        self.server.send_json(Method::POST, &self.base, Role::Origin, "/v1/sources", source, LIMIT).await
    }

    /// Withdraws all of a source's contents and forgets it; goes on behind, also after a restart.
    pub async fn remove(&self, bucket: &BucketName) -> Result<(), CallError> {
        let path = format!("/v1/sources/{bucket}");
        let call = Call {
            method: Method::DELETE,
            base: &self.base,
            audience: Role::Origin,
            path: &path,
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
            limit: LIMIT,
        };
        self.server.json(call).await
    }

    pub async fn rescan(&self, bucket: &BucketName, rescan: Rescan) -> Result<(), CallError> {
        let path = format!("/v1/sources/{bucket}/rescan");
        self.server.send_json(Method::POST, &self.base, Role::Origin, &path, &rescan, LIMIT).await
    }
}
