//! One worker: chooses a request, sends it over its connection, checks everything about the answer, and takes the time.
//!
//! It reads objects that were put before the run, by their popularity, and writes keys of its own, of which it knows
//! exactly what a read or a listing must show ([`Keys`]): half of the reads that follow a change read what was changed.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::hash::ContentHash;
use common::id::DeliveryId;

use super::lines::{Lines, Published};
use super::{Local, Publications, Shared};
use crate::content::{Choices, Content};
use crate::measure::{Kind, SizeClass, Source, Times};
use crate::mixed::model::{Keys, Version};
use crate::pacer::Arrival;
use crate::plan::{Object, Op, Pace, Verify};
use crate::protocol::http1::Head;
use crate::protocol::{Listed, Stored};
use crate::wire::WireError;
use crate::workload::Popularity;

/// A worker without a connection tries again after this.
const RECONNECT_AFTER: Duration = Duration::from_millis(20);

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Prepared(Object),
    /// A key of the worker's own.
    Own(usize),
    /// What was published at another site.
    Published(u64),
}

/// A request that was decided on.
#[derive(Debug)]
enum Step {
    Get(Asked),
    Head(Asked),
    /// The next piece of the download that is under way.
    Range(Range<u64>),
    Put(usize, Content),
    Multipart(usize, Content),
    Delete(usize),
    List,
    /// The content that was made ready, or why there is none.
    Collect(Result<u64, WireError>),
    Roam(Object),
}

impl Step {
    fn op(&self) -> Op {
        match self {
            Self::Get(_) => Op::Get,
            Self::Head(_) => Op::Head,
            Self::Range(_) => Op::Range,
            Self::Put(..) => Op::Put,
            Self::Multipart(..) => Op::Multipart,
            Self::Delete(_) => Op::Delete,
            Self::List => Op::List,
            Self::Collect(_) => Op::Collect,
            Self::Roam(_) => Op::Roam,
        }
    }

    /// The key that it changes.
    fn changes(&self) -> Option<usize> {
        match self {
            Self::Put(slot, _) | Self::Multipart(slot, _) | Self::Delete(slot) => Some(*slot),
            _ => None,
        }
    }
}

/// A download in ranges.
struct Download {
    object: Object,
    content: Content,
    next: u64,
    /// The delivery of its pieces so far.
    delivery: Option<DeliveryId>,
    /// All pieces so far were one delivery.
    one_delivery: bool,
}

/// A request that succeeded.
struct Answered {
    /// Of the content, in bytes.
    len: u64,
    /// That went over the wire.
    bytes: u64,
    source: Source,
}

impl Answered {
    /// Nothing but a head.
    const BARE: Self = Self { len: 0, bytes: 0, source: Source::None };
}

/// What is checked when a request's time has been taken, since it is the harness's own work.
struct Check {
    content: Content,
    tag: ContentHash,
    /// In words, what named the tag.
    by: &'static str,
}

/// What a worker leaves behind.
pub struct Left {
    pub keys: Keys,
    pub publications: Option<Publications>,
}

pub struct Worker {
    number: u64,
    lines: Lines,
    shared: Arc<Shared>,
    local: Rc<RefCell<Local>>,
    choices: Choices,
    keys: Keys,
    /// Keys are written in turn; this many writes so far.
    writes: u64,
    puts: u64,
    /// The key that was changed last, if a read of it is to follow.
    follow_up: Option<usize>,
    download: Option<Download>,
    check: Option<Check>,
    /// What is written before the name of a prepared object, and the key that is being asked for.
    prefix: String,
    key: String,
}

impl Worker {
    /// At the gateway `at`; `provider` is where its contents are published, if it collects.
    pub fn new(
        number: u64,
        at: (SocketAddr, &str),
        provider: Option<(SocketAddr, &str)>,
        shared: Arc<Shared>,
        local: Rc<RefCell<Local>>,
    ) -> Self {
        let prefix = shared.plan.prefix();
        Self {
            number,
            lines: Lines::new(&shared.plan, &shared.target, number, at, provider),
            choices: Choices::new(shared.plan.seed, number),
            keys: Keys::new("", format!("{prefix}w{number}/"), shared.keys_per_worker),
            shared,
            local,
            writes: 0,
            puts: 0,
            follow_up: None,
            download: None,
            check: None,
            prefix,
            key: String::new(),
        }
    }

    /// Works until there is nothing more to send; answers with what it put.
    pub async fn run(mut self) -> Left {
        let span = self.shared.span;
        let give_up = span.end + self.shared.plan.request_time_max;
        let open = self.shared.plan.pace != Pace::Closed;
        self.make_ready().await;
        tokio::time::sleep_until(span.start.into()).await;
        loop {
            let now = Instant::now();
            let arrival = match open {
                false => Some(Arrival { intended: now, nth: 0 }).filter(|_| now < span.end),
                true if now >= give_up => None,
                true => self.shared.queue.next().await,
            };
            let Some(arrival) = arrival else {
                return Left { publications: self.lines.publications(), keys: self.keys };
            };
            self.request(arrival).await;
            if open {
                self.shared.queue.served();
            }
            if open || Instant::now() < span.end {
                self.make_ready().await;
            }
        }
    }

    /// Makes ready what the next operations may need, in nobody's time.
    async fn make_ready(&mut self) {
        if let Some(Published { key, content, stored }) = self.lines.make_ready(&self.shared.plan).await {
            self.key = key;
            self.check_stored(content, stored, true);
            if let Some(check) = self.check.take() {
                self.check_tag(&check);
            }
        }
    }

    async fn request(&mut self, arrival: Arrival) {
        let Arrival { intended, nth } = arrival;
        let step = self.choose(nth, intended);
        let (op, changes) = (step.op(), step.changes());
        let limit = self.shared.plan.request_time_max;
        let sent = Instant::now();
        let answer = tokio::time::timeout(limit, self.perform(step)).await;
        let answer = answer.unwrap_or(Err(WireError::Timeout(limit)));
        let now = Instant::now();
        let at = now - self.shared.span.start;
        let measured = intended >= self.shared.span.measured_from;
        if let Some(check) = self.check.take() {
            self.check_tag(&check);
        }
        match answer {
            Ok(answered) => {
                let mut local = self.local.borrow_mut();
                if measured {
                    local.last_answer = local.last_answer.max(now);
                }
                let kind = Kind { op, source: answered.source, size: SizeClass::of(answered.len) };
                let times = Times { response: now - intended, service: now - sent };
                local.tally.record(kind, answered.bytes, times, at, measured);
                drop(local);
                if changes.is_some() && self.choices.below(2) == 0 {
                    self.follow_up = changes;
                }
            }
            Err(error) => {
                // What is left of a broken answer would be taken for the next one.
                if !matches!(error, WireError::Refused { .. })
                    && let Ok(line) = self.lines.of(op)
                {
                    line.close();
                }
                self.count_error(op, &error, at);
                if let Some(slot) = changes {
                    self.keys.settle(slot);
                }
                if op == Op::Range {
                    // Its pieces so far stay a delivery in part.
                    self.download = None;
                }
                if matches!(error, WireError::Connect(_) | WireError::Unready { .. }) {
                    tokio::time::sleep(RECONNECT_AFTER).await;
                }
            }
        }
    }

    fn count_error(&self, op: Op, error: &WireError, at: Duration) {
        let tally = &mut self.local.borrow_mut().tally;
        tally.deliveries.unanswered += u64::from(error.is_unanswered() && op.delivers());
        tally.error(op, error.code(), at);
    }

    fn choose(&mut self, nth: u64, intended: Instant) -> Step {
        let plan = &self.shared.plan;
        if let Some(trace) = &plan.trace {
            let request = trace.requests[nth as usize];
            let object = Object::Traced { id: request.id, size_bytes: request.size_bytes };
            return Step::Get(Asked::Prepared(object));
        }
        match plan.workload.mix.draw(&mut self.choices) {
            Op::Get => Step::Get(self.choose_read(intended)),
            Op::Head => Step::Head(self.choose_read(intended)),
            Op::Range => self.next_range(intended),
            Op::List => Step::List,
            Op::Put => {
                let (slot, content) = self.choose_write();
                Step::Put(slot, content)
            }
            Op::Multipart => {
                let (slot, content) = self.choose_write();
                Step::Multipart(slot, content)
            }
            Op::Delete => self.choose_delete(),
            Op::Collect => Step::Collect(self.lines.take_published()),
            Op::Roam => Step::Roam(self.choose_popular(intended)),
        }
    }

    fn choose_read(&mut self, intended: Instant) -> Asked {
        if let Some(slot) = self.follow_up.take() {
            return Asked::Own(slot);
        }
        let shared = &self.shared;
        if !shared.one_hits.is_empty() && self.choices.unit() < shared.plan.workload.one_hit_ratio {
            let nth = shared.one_hits.start + shared.one_hits_used.fetch_add(1, Ordering::Relaxed);
            if nth < shared.one_hits.end {
                return Asked::Prepared(Object::OneHit(nth));
            }
        }
        if let Popularity::Latest { .. } = shared.plan.workload.popularity {
            let age = shared.popular.rank(&mut self.choices);
            let written = self.writes.min(self.keys.len() as u64);
            if age < written {
                return Asked::Own(((self.writes - 1 - age) % self.keys.len() as u64) as usize);
            }
            return Asked::Prepared(Object::Popular(shared.popular.object_at(age - written)));
        }
        Asked::Prepared(self.choose_popular(intended))
    }

    fn choose_popular(&mut self, intended: Instant) -> Object {
        let since = intended.saturating_duration_since(self.shared.span.start);
        Object::Popular(self.shared.popular.draw(&mut self.choices, since))
    }

    /// Goes on with the download that is under way, or begins one.
    fn next_range(&mut self, intended: Instant) -> Step {
        if self.download.is_none() {
            let object = match self.choose_read(intended) {
                Asked::Prepared(object) => object,
                other => return Step::Get(other),
            };
            let content = self.shared.plan.content(object);
            if content.len == 0 {
                return Step::Get(Asked::Prepared(object));
            }
            let download = Download { object, content, next: 0, delivery: None, one_delivery: true };
            self.download = Some(download);
        }
        let piece = self.shared.plan.workload.range.0;
        let (next, len) = self.download.as_ref().map_or((0, 0), |d| (d.next, d.content.len));
        Step::Range(next..len.min(next + piece))
    }

    fn choose_write(&mut self) -> (usize, Content) {
        let slot = (self.writes % self.keys.len() as u64) as usize;
        self.writes += 1;
        let plan = &self.shared.plan;
        if plan.workload.dup_ratio > 0.0 && self.choices.unit() < plan.workload.dup_ratio {
            let rank = self.shared.popular.rank(&mut self.choices);
            return (slot, plan.content(Object::Popular(self.shared.popular.object_at(rank))));
        }
        self.puts += 1;
        (slot, plan.fresh(self.number, self.puts - 1))
    }

    /// Deletes what is there; without anything, it puts what can be deleted next.
    fn choose_delete(&mut self) -> Step {
        let count = self.keys.len();
        let first = self.choices.below(count as u64) as usize;
        let mut slots = (0..count).map(|step| (first + step) % count);
        match slots.find(|slot| self.keys.present(*slot).is_some()) {
            Some(slot) => Step::Delete(slot),
            None => {
                let (slot, content) = self.choose_write();
                Step::Put(slot, content)
            }
        }
    }

    async fn perform(&mut self, step: Step) -> Result<Answered, WireError> {
        match step {
            Step::Get(asked) => self.get(Op::Get, asked).await,
            Step::Head(asked) => self.head(asked).await,
            Step::Range(range) => self.range(range).await,
            Step::Put(slot, content) => self.put(slot, content, false).await,
            Step::Multipart(slot, content) => self.put(slot, content, true).await,
            Step::Delete(slot) => self.delete(slot).await,
            Step::List => self.list().await,
            Step::Collect(ready) => self.get(Op::Collect, Asked::Published(ready?)).await,
            Step::Roam(object) => self.get(Op::Roam, Asked::Prepared(object)).await,
        }
    }

    /// Writes the key that is asked for; answers with what it must have.
    fn look_up(&mut self, asked: Asked) -> Option<Content> {
        use std::fmt::Write as _;
        match asked {
            Asked::Own(slot) => {
                self.key = self.keys.name(slot);
                self.keys.present(slot).map(|version| version.content)
            }
            Asked::Prepared(object) => {
                self.key.clear();
                self.key.push_str(&self.prefix);
                // Writing to a String cannot fail.
                let _infallible = write!(self.key, "{object}");
                Some(self.shared.plan.content(object))
            }
            Asked::Published(nth) => {
                let (key, content) = self.shared.plan.published(self.number, nth);
                self.key = key;
                Some(content)
            }
        }
    }

    /// A GET of the whole, over the line of `op`.
    async fn get(&mut self, op: Op, asked: Asked) -> Result<Answered, WireError> {
        let content = self.look_up(asked);
        let head = match (self.lines.of(op)?.get(&self.key, None).await, content) {
            (Err(WireError::Refused { status: 404, .. }), None) => return Ok(Answered::BARE),
            (head, _) => head?,
        };
        self.count_delivery(&head);
        let Some(content) = content else {
            self.resurrected(asked, &head);
            while self.lines.of(op)?.piece().await?.is_some() {}
            self.delivered_in_part(&head);
            return Ok(Answered::BARE);
        };
        self.check_head(asked, content, &head);
        if head.status != 200 {
            self.wrong(format!("answered {} to a GET of the whole", head.status));
        }
        if op == Op::Collect && self.verifies() && !matches!(head.source, Source::Peer | Source::Origin) {
            let source = head.source.as_str();
            self.wrong(format!("its source is {source}, but nobody at this site could have it yet"));
        }
        match self.receive(op, content, 0..content.len).await {
            Ok(()) => self.local.borrow_mut().tally.deliveries.whole.extend(head.delivery),
            Err(error) => {
                self.local.borrow_mut().tally.deliveries.broken.extend(head.delivery);
                return Err(error);
            }
        }
        Ok(Answered { len: content.len, bytes: content.len, source: head.source })
    }

    async fn range(&mut self, range: Range<u64>) -> Result<Answered, WireError> {
        let Some((object, content)) = self.download.as_ref().map(|d| (d.object, d.content)) else {
            return Err(WireError::Answer);
        };
        self.look_up(Asked::Prepared(object));
        let head = self.lines.home().get(&self.key, Some(&range)).await?;
        self.count_delivery(&head);
        self.delivered_in_part(&head);
        self.check_head(Asked::Prepared(object), content, &head);
        let told = format!("bytes {}-{}/{}", range.start, range.end - 1, content.len);
        if head.status != 206 || head.content_range.as_deref() != Some(told.as_str()) {
            let what = format!("answered {} with Content-Range {:?}", head.status, head.content_range);
            self.wrong(format!("{what} to a GET of {told}"));
        }
        let bytes = range.end - range.start;
        self.receive(Op::Range, content, range.clone()).await?;
        if let Some(download) = &mut self.download {
            download.one_delivery &= download.delivery.is_none() || download.delivery == head.delivery;
            download.delivery = head.delivery;
            download.next = range.end;
            if range.end == content.len {
                if download.one_delivery {
                    self.local.borrow_mut().tally.deliveries.whole.extend(download.delivery);
                }
                self.download = None;
            }
        }
        Ok(Answered { len: bytes, bytes, source: head.source })
    }

    async fn head(&mut self, asked: Asked) -> Result<Answered, WireError> {
        let content = self.look_up(asked);
        let head = match (self.lines.home().head(&self.key).await, content) {
            (Err(WireError::Refused { status: 404, .. }), None) => return Ok(Answered::BARE),
            (head, _) => head?,
        };
        match content {
            None => self.resurrected(asked, &head),
            Some(content) => {
                self.check_etag(asked, content, &head);
                // A server need not tell the length to HEAD; ours does.
                let told = head.len.is_some() || self.shared.target.protocol.is_native();
                if self.verifies() && told && head.len != Some(content.len) {
                    self.wrong(format!("HEAD tells {:?} bytes of {}", head.len, content.len));
                }
            }
        }
        Ok(Answered::BARE)
    }

    async fn put(&mut self, slot: usize, content: Content, in_parts: bool) -> Result<Answered, WireError> {
        self.key = self.keys.name(slot);
        self.keys.changing(slot);
        let stored = match in_parts {
            true => self.lines.home().put_in_parts(&self.key, content).await?,
            false => self.lines.home().put(&self.key, content).await?,
        };
        self.keys.changed(slot, Some(Version { content, hash: stored.tag.unwrap_or(UNNAMED) }));
        self.check_stored(content, stored, !in_parts);
        Ok(Answered { len: content.len, bytes: content.len, source: Source::None })
    }

    /// Checks what the answer to a PUT says of what was stored; what was put in parts has an ETag of another kind.
    fn check_stored(&mut self, content: Content, stored: Stored, in_one_part: bool) {
        let Stored { tag, len } = stored;
        if self.verifies() && len.is_some_and(|len| len != content.len) {
            self.wrong(format!("the answer to the PUT tells {len:?} bytes of {}", content.len));
        }
        if in_one_part
            && self.shared.etags.is_some()
            && self.shared.plan.verify == Verify::Full
            && let Some(tag) = tag
        {
            self.check = Some(Check { content, tag, by: "the answer to the PUT" });
        }
    }

    async fn delete(&mut self, slot: usize) -> Result<Answered, WireError> {
        self.key = self.keys.name(slot);
        self.keys.changing(slot);
        self.lines.home().delete(&self.key).await?;
        self.keys.changed(slot, None);
        Ok(Answered::BARE)
    }

    async fn list(&mut self) -> Result<Answered, WireError> {
        let mut listed: Vec<Listed> = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.lines.home().list(self.keys.prefix(), &after).await?;
            listed.extend(page.lines);
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        if self.verifies()
            && let Some(fault) = self.keys.listing_fault(&listed)
        {
            self.stale(format!("a listing is not what was put: {fault}"));
        }
        Ok(Answered::BARE)
    }

    /// Receives the bytes of a part and checks them.
    async fn receive(&mut self, op: Op, content: Content, part: Range<u64>) -> Result<(), WireError> {
        let full = self.shared.plan.verify == Verify::Full;
        let (mut at, mut matches) = (part.start, true);
        let line = self.lines.of(op)?;
        while let Some(piece) = line.piece().await? {
            matches &= !full || content.matches(at, piece);
            at += piece.len() as u64;
        }
        if self.verifies() && (at != part.end || !matches) {
            let (len, wanted) = (at - part.start, part.end - part.start);
            self.wrong(format!("{len} bytes received, {wanted} expected, or bytes differ"));
        }
        Ok(())
    }

    fn verifies(&self) -> bool {
        self.shared.plan.verify != Verify::Off
    }

    fn wrong(&self, what: String) {
        self.local.borrow_mut().tally.wrong(format!("{}: {what}", self.key));
    }

    fn stale(&self, what: String) {
        self.wrong(what);
        self.local.borrow_mut().tally.stale += 1;
    }

    /// A read of a key that has nothing was answered.
    fn resurrected(&mut self, asked: Asked, head: &Head) {
        if let Asked::Own(slot) = asked {
            let tag = head.etag.as_ref().map(|etag| self.lines.home().tag(etag).to_string());
            self.stale(format!("answered {}: {}", head.status, self.keys.tell(slot, tag.as_deref())));
        }
    }

    fn count_delivery(&self, head: &Head) {
        let counts = &mut self.local.borrow_mut().tally.deliveries;
        let source = (head.source != Source::None).then(|| head.source.as_str());
        for (value, counts) in [(source, &mut counts.sources), (head.class, &mut counts.classes)] {
            if let Some(value) = value {
                match counts.get_mut(value) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(value.to_owned(), 1)),
                }
            }
        }
    }

    fn delivered_in_part(&self, head: &Head) {
        self.local.borrow_mut().tally.deliveries.in_part.extend(head.delivery);
    }

    fn check_head(&mut self, asked: Asked, content: Content, head: &Head) {
        if self.verifies() && self.shared.target.protocol.is_native() && head.delivery.is_none() {
            self.wrong("the answer names no delivery".to_owned());
        }
        self.check_etag(asked, content, head);
    }

    /// A version of the worker's own is known by what the answer to its PUT named it; what was prepared, by its bytes where
    /// ETags follow from them.
    fn check_etag(&mut self, asked: Asked, content: Content, head: &Head) {
        if !self.verifies() {
            return;
        }
        let tag = head.etag.as_ref().map(|etag| self.lines.home().tag(etag));
        match asked {
            Asked::Own(slot) => {
                let named = self.keys.present(slot).map(|version| version.hash).filter(|h| *h != UNNAMED);
                if named.is_some() && tag != named {
                    let tag = tag.map(|tag| tag.to_string());
                    self.stale(self.keys.tell(slot, tag.as_deref()));
                }
            }
            Asked::Prepared(_) | Asked::Published(_) if self.shared.etags.is_some() => match tag {
                Some(tag) => self.check = Some(Check { content, tag, by: "the ETag" }),
                None => self.wrong("the answer has no ETag".to_owned()),
            },
            Asked::Prepared(_) | Asked::Published(_) => {}
        }
    }

    fn check_tag(&self, check: &Check) {
        let expected = self.local.borrow_mut().hashes.as_mut().map(|hashes| hashes.of(check.content));
        if let Some(expected) = expected.filter(|expected| *expected != check.tag) {
            self.wrong(format!("{} is {}, not {expected}", check.by, check.tag));
        }
    }
}

/// Stands for a version whose PUT was answered without a name for it.
const UNNAMED: ContentHash = ContentHash::from_bytes([0; 32]);
