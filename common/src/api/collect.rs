//! Collecting: the lease under which one gateway of a site collects a content, how the other gateways follow it,
//! and how a source hands out the beginning of a content.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use crate::api::node::Holding;
use crate::chunker::CHUNK_LEN_MAX;
use crate::client::{CallError, encode};
use crate::error::ErrorBody;
use crate::id::ServerName;
use crate::name::ContentName;
use crate::record::{DeliveryPath, Source};

/// A lease that is not renewed for this long is over.
pub const LEASE_TIME: Duration = Duration::from_secs(5);

/// A gateway that collects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorAddress {
    pub gateway: ServerName,
    /// Base address that the site's other gateways reach it at.
    pub http: String,
}

/// Asks to be the site's one collector of a name, or to stay it. `POST /v1/collections/lease`, to the owner of the
/// name's slot. Leases are kept in memory: they save work, and what is stored is right without them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseRequest {
    pub name: ContentName,
    pub collector: CollectorAddress,
    /// Address of a collector that does not answer: its lease is over.
    #[serde(default)]
    pub instead_of: Option<String>,
}

/// Who collects the name now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseAnswer {
    pub collector: CollectorAddress,
    /// What the site has of the name, as it was found when the lease was given: whoever had it before is done.
    #[serde(default)]
    pub holding: Option<Holding>,
}

/// The collection is over. `POST /v1/collections/release`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseEnd {
    pub name: ContentName,
    /// Address of the collector that gives its lease back; another's stays.
    pub http: String,
}

/// The beginning of a content: its holding, its chunk list where that is stored, its first chunk.
/// `GET /v1/peer/open?name=`, to a source. In the body: the length of the head as four bytes, little-endian, the head
/// as JSON, the encoded list, the first chunk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenHead {
    pub holding: Holding,
    /// Bytes of the stored chunk list that follows; 0 when the manifest has the chunks.
    pub list_len: u32,
    /// Bytes of the first chunk that follows; 0 for none.
    pub first_len: u32,
    /// Of a collection at work, which another gateway of the site follows.
    #[serde(default)]
    pub collection: Option<CollectionHead>,
}

/// A collection at work. `GET /v1/peer/collection?name=`, answered like `open`, without a first chunk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CollectionHead {
    /// Tells this run of the collection from others of the same name.
    pub run: u64,
    /// What it began with.
    pub source: Source,
    pub path: DeliveryPath,
    /// The holding's tag is that of a temporary content: it is collected for visitors.
    #[serde(default)]
    pub is_temporary: bool,
}

/// How far a collection is. `GET /v1/peer/collection/progress?name=&run=&after=`, answered when there is something new,
/// or after a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Places of chunks that have become durable at the site, in that order, behind the first `after` of them.
    pub stored: Vec<u32>,
    pub outcome: Option<Outcome>,
}

/// How a collection ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Complete,
    /// Nobody waited for it there.
    Stopped,
    Failed(ErrorBody),
}

/// Longest head that is read: one with all the chunks that a manifest may carry.
const HEAD_LEN_MAX: usize = 1 << 20;
/// How long a source may be silent in the middle of an answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What [`OpenHead`] and its list come to on the wire; the first chunk is sent behind it.
pub fn encode_open(head: &OpenHead, list: Option<&Bytes>) -> Bytes {
    let json = serde_json::to_vec(head).expect("heads are plain values, which always encode");
    let mut bytes = BytesMut::with_capacity(4 + json.len() + list.map_or(0, Bytes::len));
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(list.map_or(&[], |list| &list[..]));
    bytes.freeze()
}

/// The beginning of a content as it comes in.
pub struct Opened {
    pub holding: Holding,
    /// The encoded chunk list, not verified yet; `None` when the manifest has the chunks.
    pub list: Option<Bytes>,
    pub collection: Option<CollectionHead>,
    pub first: FirstChunk,
}

impl Opened {
    /// Reads as far as the list.
    pub(super) async fn read(url: String, body: Incoming) -> Result<Self, CallError> {
        let mut rest = FirstChunk { url, body, come: BytesMut::new(), len: 0 };
        let head_len = rest.take(4).await?.get_u32_le() as usize;
        if head_len > HEAD_LEN_MAX {
            return Err(rest.wrong(format!("the head has {head_len} bytes, at most {HEAD_LEN_MAX} are read")));
        }
        let head = rest.take(head_len).await?;
        let head: OpenHead = serde_json::from_slice(&head).map_err(|error| rest.wrong(error))?;
        let (list_len, first_len) = (head.list_len as usize, head.first_len as usize);
        if list_len.max(first_len) > CHUNK_LEN_MAX {
            return Err(rest.wrong(format!("a list or chunk has more than {CHUNK_LEN_MAX} bytes")));
        }
        let list = match list_len {
            0 => None,
            len => Some(rest.take(len).await?),
        };
        rest.len = first_len;
        Ok(Self { holding: head.holding, list, collection: head.collection, first: rest })
    }
}

/// The first chunk on its way. Dropping it ends the transfer.
pub struct FirstChunk {
    url: String,
    body: Incoming,
    come: BytesMut,
    len: usize,
}

impl FirstChunk {
    /// Its bytes, which the caller verifies; `None` when the source sends none.
    pub async fn bytes(mut self) -> Result<Option<Bytes>, CallError> {
        match self.len {
            0 => Ok(None),
            len => self.take(len).await.map(Some),
        }
    }

    async fn take(&mut self, len: usize) -> Result<Bytes, CallError> {
        self.come.reserve(len.saturating_sub(self.come.len()));
        while self.come.len() < len {
            match tokio::time::timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(Some(Ok(frame))) => self.come.extend(frame.into_data()),
                Ok(Some(Err(error))) => {
                    return Err(CallError::Unreachable { url: self.url.clone(), source: error.into() });
                }
                Ok(None) => return Err(self.wrong("the answer ends too early")),
                Err(_) => return Err(CallError::Timeout { url: self.url.clone(), limit: SILENCE_MAX }),
            }
        }
        Ok(self.come.split_to(len).freeze())
    }

    fn wrong(&self, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
        CallError::Answer { url: self.url.clone(), source: what.into() }
    }
}

impl super::node::NodeClient {
    pub async fn lease_collection(&self, request: &LeaseRequest) -> Result<LeaseAnswer, CallError> {
        self.post("/v1/collections/lease", request).await
    }

    pub async fn release_collection(&self, end: &LeaseEnd) -> Result<(), CallError> {
        self.post("/v1/collections/release", end).await
    }
}

impl super::peer::PeerClient {
    /// The newest complete version that the source holds, with its first chunk; `ContentNotFound` when none.
    pub async fn open(&self, name: &ContentName) -> Result<Opened, CallError> {
        self.opened("/v1/peer/open", name).await
    }

    /// A collection at work at another gateway of the site; `ContentNotFound` when there is none.
    pub async fn collection(&self, name: &ContentName) -> Result<Opened, CallError> {
        self.opened("/v1/peer/collection", name).await
    }

    async fn opened(&self, path: &str, name: &ContentName) -> Result<Opened, CallError> {
        let path = format!("{path}?name={}", encode(name.as_str()));
        let limit = Duration::from_secs(10);
        let call = self.get(&path, limit);
        let url = format!("{}{path}", call.base);
        let response = self.server().call(call).await?;
        Opened::read(url, response.into_body()).await
    }

    /// Waits for what is new behind the first `after` chunks that came. `ContentNotFound` when that run is over and
    /// forgotten.
    pub async fn progress(&self, name: &ContentName, run: u64, after: usize) -> Result<Progress, CallError> {
        let name = encode(name.as_str());
        let path = format!("/v1/peer/collection/progress?name={name}&run={run}&after={after}");
        self.server().json(self.get(&path, PROGRESS_WAIT + PROGRESS_LATE_MAX)).await
    }

    /// A reader waits for the chunk at `place`. `GET /v1/peer/collection/want?name=&run=&place=`
    pub async fn want(&self, name: &ContentName, run: u64, place: usize) -> Result<(), CallError> {
        let name = encode(name.as_str());
        let path = format!("/v1/peer/collection/want?name={name}&run={run}&place={place}");
        self.server().json(self.get(&path, PROGRESS_WAIT)).await
    }
}

/// How much later it may come on a busy machine: whoever takes a colleague for lost collects the same beside it. A
/// colleague that is gone refuses the connection at once.
const PROGRESS_LATE_MAX: Duration = Duration::from_secs(5);
/// How long an answer to `progress` waits for news.
pub const PROGRESS_WAIT: Duration = Duration::from_secs(2);
