//! One worker: picks a request, sends it, and checks everything about the answer.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::api::gateway::{ContentListing, DELIVERY, Published};
use common::client::encode;
use common::id::DeliveryId;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Run;
use super::bookings::Expected;
use super::model::{Keys, Version};
use super::recorder::{Fault, FaultKind, Op};
use super::session::{Ask, Session};
use crate::content::{Choices, Content};
use crate::protocol::Listed;
use crate::wire::{WireError, read_text};

/// How often each operation is chosen, of 100.
const MIX: [(Op, u64); 7] = [
    (Op::Put, 20),
    (Op::Get, 20),
    (Op::Cross, 22),
    (Op::Range, 10),
    (Op::Head, 10),
    (Op::List, 10),
    (Op::Delete, 8),
];
/// Contents that all workers put again and again, under keys of their own: the same bytes are stored once, however
/// often they come and go.
const POOL: u64 = 32;
/// A stale listing is asked for again for this long, to tell when it became right.
const LATE_MAX: Duration = Duration::from_secs(5);
const LATE_POLL: Duration = Duration::from_millis(50);
/// After a failure a worker waits, so that a server that is gone is not asked a thousand times a second.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A request that was decided on; what it needs is made before its time runs.
enum Step {
    Put(usize, Version),
    Get(usize),
    Cross(u64),
    Range(usize),
    Head(usize),
    List,
    Delete(usize),
}

impl Step {
    fn op(&self) -> Op {
        match self {
            Self::Put(..) => Op::Put,
            Self::Get(_) => Op::Get,
            Self::Cross(_) => Op::Cross,
            Self::Range(_) => Op::Range,
            Self::Head(_) => Op::Head,
            Self::List => Op::List,
            Self::Delete(_) => Op::Delete,
        }
    }
}

pub struct Worker {
    index: u64,
    run: Arc<Run>,
    session: Session,
    keys: Keys,
    choices: Choices,
    puts: u64,
    /// The key that was changed last, if a read of it is to follow.
    follow_up: Option<usize>,
    deliveries: Expected,
}

/// What is left of a worker.
pub struct Done {
    pub deliveries: Expected,
    /// Paths that may have a content now, and whose bucket they are in.
    pub paths: Vec<String>,
}

impl Worker {
    pub fn new(index: u64, run: Arc<Run>, session: Session, keys: Keys) -> Self {
        let choices = Choices::new(run.plan.seed, index);
        let deliveries = Expected::default();
        Self { index, run, session, keys, choices, puts: 0, follow_up: None, deliveries }
    }

    /// Works until the load is stopped, then reads everything back.
    pub async fn work(mut self) -> Done {
        while let Some(intended) = self.run.next_start().await {
            let step = self.choose();
            self.perform(&step, intended).await;
        }
        if !self.run.abandoned.load(Ordering::Relaxed) {
            self.read_back().await;
        }
        Done { deliveries: self.deliveries, paths: self.keys.paths().collect() }
    }

    /// Everything of its own, a listing, and its share of the stable contents.
    async fn read_back(&mut self) {
        let share = (self.index..self.run.plan.stable).step_by(self.run.plan.workers);
        let own = (0..self.keys.len()).map(Step::Get);
        let steps: Vec<Step> = own.chain([Step::List]).chain(share.map(Step::Cross)).collect();
        for step in steps {
            self.perform(&step, Instant::now()).await;
        }
    }

    fn choose(&mut self) -> Step {
        let followed = self.follow_up.take();
        let slot = followed.unwrap_or_else(|| self.choices.below(self.keys.len() as u64) as usize);
        let op = match followed {
            Some(_) => [Op::Get, Op::Head, Op::List][self.choices.below(3) as usize],
            None => self.choose_op(),
        };
        match op {
            Op::Put => Step::Put(slot, self.next_version()),
            Op::Delete if self.keys.present(slot).is_none() => Step::Put(slot, self.next_version()),
            Op::Delete => Step::Delete(slot),
            Op::Get => Step::Get(slot),
            Op::Cross if self.run.plan.stable == 0 => Step::Get(slot),
            Op::Cross => Step::Cross(self.choices.below(self.run.plan.stable)),
            Op::Range => Step::Range(slot),
            Op::Head => Step::Head(slot),
            Op::List => Step::List,
        }
    }

    fn choose_op(&mut self) -> Op {
        let mut at = self.choices.below(100);
        for (op, share) in MIX {
            if at < share {
                return op;
            }
            at -= share;
        }
        Op::Get
    }

    /// Mostly bytes that were never put before; sometimes those that others put too.
    fn next_version(&mut self) -> Version {
        let plan = &self.run.plan;
        let content = if self.choices.below(4) == 0 {
            let id = self.choices.below(POOL);
            Content::new(plan.seed, id, plan.size_of(id))
        } else {
            self.puts += 1;
            Content::new(plan.seed, ((self.index + 1) << 40) + self.puts, plan.size_of(self.puts))
        };
        Version::of(content)
    }

    async fn perform(&mut self, step: &Step, intended: Instant) {
        let started = self.run.recorder.started(intended);
        let limit = self.run.plan.request_time_max;
        let attempt = async {
            match step {
                Step::Put(slot, version) => self.put(*slot, *version).await,
                Step::Get(slot) => self.get(*slot).await,
                Step::Cross(id) => self.cross(*id).await,
                Step::Range(slot) => self.range(*slot).await,
                Step::Head(slot) => self.head(*slot).await,
                Step::List => self.list().await,
                Step::Delete(slot) => self.delete(*slot).await,
            }
        };
        let outcome = tokio::time::timeout(limit, attempt).await;
        let outcome = outcome.unwrap_or_else(|_| {
            self.session.cut_off(matches!(step, Step::Get(_) | Step::Cross(_) | Step::Range(_)));
            Err(Fault::new(FaultKind::Timeout, format!("no answer within {limit:?}")))
        });
        match outcome {
            Ok(bytes) => {
                self.run.recorder.succeeded(step.op(), started, bytes);
                if let Step::Put(slot, _) | Step::Delete(slot) = step
                    && self.choices.below(2) == 0
                {
                    self.follow_up = Some(*slot);
                }
            }
            Err(fault) => {
                let request = self.request_of(step);
                self.run.recorder.failed(step.op(), started, request, self.session.gateway(), fault);
                if let Step::Put(slot, _) | Step::Delete(slot) = step {
                    self.keys.settle(*slot);
                }
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }

    fn request_of(&self, step: &Step) -> String {
        match step {
            Step::Put(slot, version) => {
                format!("PUT {} ({} bytes)", self.keys.path(*slot), version.content.len)
            }
            Step::Get(slot) => format!("GET {}", self.keys.path(*slot)),
            Step::Cross(id) => format!("GET {}", self.run.stable_path(*id)),
            Step::Range(slot) => format!("GET {} in two ranges", self.keys.path(*slot)),
            Step::Head(slot) => format!("HEAD {}", self.keys.path(*slot)),
            Step::List => format!("GET {}", self.listing_path("")),
            Step::Delete(slot) => format!("DELETE {}", self.keys.path(*slot)),
        }
    }

    async fn put(&mut self, slot: usize, version: Version) -> Result<u64, Fault> {
        let path = self.keys.path(slot);
        self.keys.changing(slot);
        let ask = Ask { body: Some(version.content), ..Ask::new(Method::PUT, &path) };
        let response = self.session.send(&ask).await?;
        let text = read_text(response.into_body()).await?;
        self.keys.changed(slot, Some(version));
        let published: Published = serde_json::from_slice(&text).map_err(|error| {
            Fault::new(FaultKind::WrongAnswer, format!("the answer cannot be read: {error}"))
        })?;
        if published.hash != version.hash || published.len != version.content.len {
            let told = format!("the answer tells {} bytes with the hash {}", published.len, published.hash);
            return Err(Fault::new(FaultKind::WrongAnswer, told));
        }
        Ok(version.content.len)
    }

    async fn delete(&mut self, slot: usize) -> Result<u64, Fault> {
        let path = self.keys.path(slot);
        self.keys.changing(slot);
        match self.session.send(&Ask::new(Method::DELETE, &path)).await {
            Ok(response) => drop(read_text(response.into_body()).await?),
            // The first of the two was carried out.
            Err(WireError::Refused { status: 404, .. }) if self.session.was_repeated() => {}
            Err(error) => return Err(error.into()),
        }
        self.keys.changed(slot, None);
        Ok(0)
    }

    async fn get(&mut self, slot: usize) -> Result<u64, Fault> {
        let path = self.keys.path(slot);
        match self.keys.present(slot) {
            Some(version) => {
                let (_, bytes) = self.fetch(&path, version, None, Some(slot)).await?;
                Ok(bytes)
            }
            None => self.expect_nothing(Method::GET, slot, &path).await,
        }
    }

    async fn cross(&mut self, id: u64) -> Result<u64, Fault> {
        let path = self.run.stable_path(id);
        let version =
            Version { content: self.run.plan.stable_content(id), hash: self.run.stable[id as usize] };
        let (_, bytes) = self.fetch(&path, version, None, None).await?;
        Ok(bytes)
    }

    /// A download that stops and goes on: both ranges are one delivery, unless too much time passes between them.
    async fn range(&mut self, slot: usize) -> Result<u64, Fault> {
        let path = self.keys.path(slot);
        let Some(version) = self.keys.present(slot) else {
            return self.expect_nothing(Method::GET, slot, &path).await;
        };
        let len = version.content.len;
        if len < 2 {
            return self.get(slot).await;
        }
        let cut = 1 + self.choices.below(len - 1);
        let (first, _) = self.fetch(&path, version, Some(0..cut), Some(slot)).await?;
        let (second, _) = self.fetch(&path, version, Some(cut..len), Some(slot)).await?;
        if first == second {
            self.deliveries.whole.insert(first);
        } else {
            self.deliveries.split += 1;
        }
        Ok(len)
    }

    async fn head(&mut self, slot: usize) -> Result<u64, Fault> {
        let path = self.keys.path(slot);
        let Some(version) = self.keys.present(slot) else {
            return self.expect_nothing(Method::HEAD, slot, &path).await;
        };
        let response = self.session.send(&Ask::new(Method::HEAD, &path)).await?;
        self.check_etag(response.headers(), version, Some(slot))?;
        let len = text(response.headers(), &CONTENT_LENGTH);
        if len != Some(version.content.len.to_string().as_str()) {
            return Err(Fault::new(FaultKind::WrongAnswer, format!("Content-Length is {len:?}")));
        }
        Ok(0)
    }

    /// A key that was deleted, or never put.
    async fn expect_nothing(&mut self, method: Method, slot: usize, path: &str) -> Result<u64, Fault> {
        match self.session.send(&Ask::new(method, path)).await {
            Err(WireError::Refused { status: 404, .. }) => Ok(0),
            Err(error) => Err(error.into()),
            Ok(response) => {
                self.deliveries.begun.extend(delivery(response.headers()));
                let etag = text(response.headers(), &ETAG).map(|etag| etag.trim_matches('"'));
                let told = format!("answered {}: {}", response.status(), self.keys.tell(slot, etag));
                drain(response.into_body()).await?;
                Err(Fault::new(FaultKind::StaleRead, told))
            }
        }
    }

    fn listing_path(&self, after: &str) -> String {
        let (bucket, prefix) = (self.keys.bucket(), encode(self.keys.prefix()));
        format!("/v1/contents/{bucket}?prefix={prefix}&after={}&limit=1000", encode(after))
    }

    async fn list(&mut self) -> Result<u64, Fault> {
        let Some(fault) = self.listing_fault().await? else { return Ok(0) };
        let asked = Instant::now();
        while asked.elapsed() < LATE_MAX {
            tokio::time::sleep(LATE_POLL).await;
            if self.listing_fault().await?.is_none() {
                let late = asked.elapsed().as_millis();
                return Err(Fault::new(FaultKind::WrongList, format!("{fault}; right {late} ms later")));
            }
        }
        Err(Fault::new(FaultKind::WrongList, format!("{fault}; still wrong {LATE_MAX:?} later")))
    }

    async fn listing_fault(&mut self) -> Result<Option<String>, Fault> {
        let mut listed = Vec::new();
        let mut after = String::new();
        loop {
            let path = self.listing_path(&after);
            let response = self.session.send(&Ask::new(Method::GET, &path)).await?;
            let text = read_text(response.into_body()).await?;
            let page: ContentListing = serde_json::from_slice(&text).map_err(|error| {
                Fault::new(FaultKind::WrongAnswer, format!("the listing cannot be read: {error}"))
            })?;
            let lines = page.contents.into_iter();
            listed.extend(lines.map(|line| Listed { key: line.key, tag: line.hash, len: line.len }));
            match page.next {
                Some(next) => after = next,
                None => return Ok(self.keys.listing_fault(&listed)),
            }
        }
    }

    /// GETs a version, whole or in part, and checks it.
    async fn fetch(
        &mut self,
        path: &str,
        version: Version,
        range: Option<Range<u64>>,
        slot: Option<usize>,
    ) -> Result<(DeliveryId, u64), Fault> {
        let wrong = |answer: String| Fault::new(FaultKind::WrongAnswer, answer);
        let mut ask = Ask::new(Method::GET, path);
        if let Some(range) = &range {
            let value = format!("bytes={}-{}", range.start, range.end - 1);
            ask.range = HeaderValue::try_from(value).ok();
        }
        let response = self.session.send(&ask).await?;
        let headers = response.headers();
        let delivery = delivery(headers);
        self.deliveries.begun.extend(delivery);
        let len = version.content.len;
        let wanted = range.clone().unwrap_or(0..len);
        let shape = match &range {
            None => (response.status() == StatusCode::OK).then_some(()),
            Some(range) => {
                let told = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                let partial = response.status() == StatusCode::PARTIAL_CONTENT;
                (partial && text(headers, &CONTENT_RANGE) == Some(told.as_str())).then_some(())
            }
        };
        let status = response.status();
        let etag = self.check_etag(headers, version, slot);
        let content_range = text(headers, &CONTENT_RANGE).map(str::to_owned);
        let body = read_checked(response.into_body(), version.content, wanted.start).await;
        etag?;
        let received = match body? {
            Received { wrong_at: Some(at), .. } => {
                let told = format!("{status}, a wrong byte between {at} and the next 64 KiB");
                return Err(Fault::new(FaultKind::WrongBytes, told));
            }
            received => received.len,
        };
        if shape.is_none() {
            return Err(wrong(format!("answered {status}, Content-Range {content_range:?}")));
        }
        if received != wanted.end - wanted.start {
            return Err(Fault::new(FaultKind::WrongBytes, format!("{received} bytes came of {wanted:?}")));
        }
        let delivery = delivery.ok_or_else(|| wrong("the answer names no delivery".to_owned()))?;
        if received == len {
            self.deliveries.whole.insert(delivery);
        }
        Ok((delivery, received))
    }

    fn check_etag(&self, headers: &HeaderMap, version: Version, slot: Option<usize>) -> Result<(), Fault> {
        let etag = text(headers, &ETAG).map(|etag| etag.trim_matches('"'));
        if etag == Some(version.hash.to_string().as_str()) {
            return Ok(());
        }
        Err(match slot {
            Some(slot) => Fault::new(FaultKind::StaleRead, self.keys.tell(slot, etag)),
            None => Fault::new(FaultKind::WrongAnswer, format!("the ETag is {etag:?}")),
        })
    }
}

struct Received {
    len: u64,
    wrong_at: Option<u64>,
}

async fn read_checked(mut body: Incoming, content: Content, start: u64) -> Result<Received, WireError> {
    let mut received = Received { len: 0, wrong_at: None };
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame.map_err(WireError::Transport)?.into_data() {
            let at = start + received.len;
            if received.wrong_at.is_none() && !content.matches(at, &bytes) {
                received.wrong_at = Some(at);
            }
            received.len += bytes.len() as u64;
        }
    }
    Ok(received)
}

async fn drain(mut body: Incoming) -> Result<(), WireError> {
    while let Some(frame) = body.frame().await {
        frame.map_err(WireError::Transport)?;
    }
    Ok(())
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn delivery(headers: &HeaderMap) -> Option<DeliveryId> {
    text(headers, &DELIVERY).and_then(|id| id.parse().ok())
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Self {
        let kind = match &error {
            WireError::Connect(_)
            | WireError::Transport(_)
            | WireError::Broken(_)
            | WireError::Unready { .. } => FaultKind::Connection,
            WireError::Timeout(_) => FaultKind::Timeout,
            WireError::Refused { .. } => FaultKind::Refused,
            WireError::Answer | WireError::Request(_) => FaultKind::WrongAnswer,
        };
        Self::new(kind, common::error::chain(&error).to_string())
    }
}
