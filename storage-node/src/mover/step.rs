//! One page of a walk: offer references, send bytes, take back what was released meanwhile, drop what is not
//! to be here.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use common::api::node::{AdoptRequest, ChunkRefs, ChunkReleaseRequest, RefTag};
use common::client::CallError;
use common::cluster::{MapEpoch, NodeEntry, SiteEntry};
use common::error::{ApiResult, ErrorCode, chain};
use common::hash::ChunkHash;
use common::id::NodeId;
use common::name::ContentName;
use common::placement::nodes_of_chunk;
use futures_util::{StreamExt, future, stream};

use super::with_site;
use crate::catalog::key::Key;
use crate::catalog::rows::ChunkValue;
use crate::catalog::txn::Rows;
use crate::chunks::{self, ChunkLocks, store_error};
use crate::node::Node;

/// Chunks of a page.
pub(super) const PAGE_LEN: usize = 256;
/// A page is not continued beyond so many references.
const PAGE_REFS: usize = 4 * AdoptRequest::REFS_MAX;
/// Chunks that are read and sent at the same time; each has at most 4 MiB.
const IN_FLIGHT: usize = 8;

/// What is done about bytes that a node lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Counting those that are this node's to send.
    Count,
    /// Sending them.
    Send,
    /// Sending also what others could: they do not know of it.
    SendAll,
}

/// Nodes that are not asked again in this walk.
#[derive(Default)]
pub(super) struct Aside(Mutex<HashMap<NodeId, Why>>);

/// Why a node is not asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It is full, or does not answer.
    TakesNothing,
    /// It knows another map. Whether it has a chunk is not known.
    OtherMap,
}

impl Aside {
    /// True if it was not known before.
    fn set(&self, node: &NodeId, why: Why) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), why).is_none()
    }

    fn get(&self, node: &NodeId) -> Option<Why> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(node).copied()
    }
}

/// What came of a step, or of many.
pub(super) struct Outcome {
    pub sent_bytes: u64,
    /// Bytes that this node has to send and has not sent.
    pub left_bytes: u64,
    /// Nothing has to be tried again, as far as the nodes that are there go.
    pub is_settled: bool,
}

impl Default for Outcome {
    fn default() -> Self {
        Self { sent_bytes: 0, left_bytes: 0, is_settled: true }
    }
}

impl Outcome {
    pub fn add(&mut self, other: Self) {
        self.sent_bytes += other.sent_bytes;
        self.left_bytes += other.left_bytes;
        self.is_settled &= other.is_settled;
    }
}

/// A chunk of this node and all that refers to it here.
pub(super) struct Referenced {
    pub hash: ChunkHash,
    len: u32,
    refs: Vec<(RefTag, ContentName)>,
}

/// Chunks behind `after`, in the order of their hashes.
pub(super) fn page_after(node: &Node, after: Option<&ChunkHash>) -> ApiResult<Vec<Referenced>> {
    node.catalog.read(|rows| load(rows, &chunks::rows_after(rows, after, PAGE_LEN)?))
}

/// These chunks, without those that have no row; at least one, but not too many references at once.
pub(super) fn load(rows: &(impl Rows + ?Sized), hashes: &[ChunkHash]) -> ApiResult<Vec<Referenced>> {
    let (mut page, mut count) = (Vec::with_capacity(hashes.len()), 0);
    for hash in hashes {
        let Some(ChunkValue { len }) = rows.get(Key::Chunk(hash))? else { continue };
        let refs = chunks::refs(rows, hash)?;
        count += refs.len();
        page.push(Referenced { hash: *hash, len, refs });
        if count >= PAGE_REFS {
            break;
        }
    }
    Ok(page)
}

/// A chunk on its way; nodes are places in [`SiteEntry::nodes`].
struct Item {
    chunk: Referenced,
    /// Who is to have it, best first.
    right: Vec<usize>,
    /// Who was given references, or may have been.
    given: Vec<usize>,
    /// Who said that it has the chunk, with every reference that is in `chunk`.
    confirmed: Vec<usize>,
}

/// One page under one map.
pub(super) struct Step<'a> {
    node: &'a Arc<Node>,
    aside: &'a Aside,
    epoch: MapEpoch,
    site: SiteEntry,
    me: usize,
}

impl<'a> Step<'a> {
    /// `None` while this node is not in the map.
    pub fn new(node: &'a Arc<Node>, aside: &'a Aside) -> Option<Self> {
        let (epoch, site) = with_site(node, |epoch, site| (epoch, site.clone()))?;
        let me = site.node_index(&node.id)?;
        Some(Self { node, aside, epoch, site, me })
    }

    pub fn site(&self) -> &SiteEntry {
        &self.site
    }

    pub async fn run(&self, page: Vec<Referenced>, task: Task) -> ApiResult<Outcome> {
        // What nothing refers to is the reaper's.
        let referenced = page.into_iter().filter(|chunk| !chunk.refs.is_empty());
        let mut items: Vec<Item> = referenced.map(|chunk| self.item(chunk)).collect();
        let mut outcome = Outcome::default();
        self.offer(&mut items).await;
        match task {
            Task::Count => outcome.left_bytes = items.iter().map(|item| self.lacking_bytes(item)).sum(),
            Task::Send => self.send(&mut items, Self::is_sender, &mut outcome).await,
            Task::SendAll => self.send(&mut items, |_, _| true, &mut outcome).await,
        }
        self.take_back(&items).await?;
        let has_waiting = items.iter().any(|item| self.is_waiting(item));
        let all_answer = items.iter().all(|item| self.can_ask(item).all(|index| !self.is_aside(index)));
        let all_sent = task == Task::Count || outcome.left_bytes == 0;
        outcome.is_settled = self.drop_surplus(&items).await? && !has_waiting && all_answer && all_sent;
        Ok(outcome)
    }

    fn item(&self, chunk: Referenced) -> Item {
        let right = nodes_of_chunk(&self.site, &chunk.hash);
        Item { chunk, right, given: Vec::new(), confirmed: Vec::new() }
    }

    fn entry(&self, index: usize) -> &NodeEntry {
        &self.site.nodes[index]
    }

    fn is_aside(&self, index: usize) -> bool {
        self.aside.get(&self.entry(index).id).is_some()
    }

    /// The other nodes that are to have a chunk and are there.
    fn can_ask<'i>(&'i self, item: &'i Item) -> impl Iterator<Item = usize> + 'i {
        item.right.iter().copied().filter(|index| *index != self.me && self.entry(*index).alive)
    }

    /// Whether it is this node that sends a chunk to those that lack it: the best of those that are to have
    /// it does, and if none of them has it, whoever has.
    fn is_sender(&self, item: &Item) -> bool {
        let mut before_me = item.right.iter().take_while(|index| **index != self.me);
        let is_other_map = |index| self.aside.get(&self.entry(index).id) == Some(Why::OtherMap);
        !before_me.any(|index| item.confirmed.contains(index) || is_other_map(*index))
    }

    fn lacking(&self, item: &Item) -> Vec<usize> {
        self.can_ask(item).filter(|index| !item.confirmed.contains(index)).collect()
    }

    fn lacking_bytes(&self, item: &Item) -> u64 {
        let count = if self.is_sender(item) { self.lacking(item).len() } else { 0 };
        count as u64 * u64::from(item.chunk.len)
    }

    /// Offers every chunk's references to all that are to have the chunk.
    async fn offer(&self, items: &mut [Item]) {
        let mut offers: HashMap<usize, Vec<usize>> = HashMap::new();
        for (place, item) in items.iter().enumerate() {
            for index in self.can_ask(item).filter(|index| !self.is_aside(*index)) {
                offers.entry(index).or_default().push(place);
            }
        }
        let asked = offers.iter().map(|(index, places)| {
            let chunks = places.iter().map(|place| &items[*place].chunk).collect::<Vec<_>>();
            async move { (*index, places, self.adopted(*index, &chunks).await) }
        });
        for (index, places, missing) in future::join_all(asked.collect::<Vec<_>>()).await {
            for place in places {
                let item = &mut items[*place];
                item.given.push(index);
                if missing.as_ref().is_some_and(|missing| !missing.contains(&item.chunk.hash)) {
                    item.confirmed.push(index);
                }
            }
        }
    }

    /// Which of the chunks a node lacks; it has the references to all others. `None` if it did not say.
    async fn adopted(&self, index: usize, chunks: &[&Referenced]) -> Option<HashSet<ChunkHash>> {
        let peer = self.node.peer(self.entry(index));
        let mut missing = HashSet::new();
        for request in requests(chunks) {
            match peer.adopt_chunks(&request).await {
                Ok(answer) => missing.extend(answer.missing),
                Err(error) => {
                    self.failed(index, &error).await;
                    return None;
                }
            }
        }
        Some(missing)
    }

    async fn failed(&self, index: usize, error: &CallError) {
        let entry = self.entry(index);
        let is_other_map = error.code() == Some(ErrorCode::WrongNode);
        let why = if is_other_map { Why::OtherMap } else { Why::TakesNothing };
        let is_new = self.aside.set(&entry.id, why);
        match error {
            CallError::Unreachable { .. } | CallError::Timeout { .. } if is_new => {
                tracing::warn!(node = %self.node.id, other = %entry.id, error = chain(error), "another node takes no chunks");
                // Search looks itself; what it finds comes with the next map.
                drop(self.node.search.suspect(&entry.id).await);
            }
            CallError::Refused { .. } if error.code() == Some(ErrorCode::NodeFull) => {
                if is_new {
                    tracing::warn!(node = %self.node.id, other = %entry.id, "another node is full; what it is to have stays here for now");
                }
            }
            _ => {
                tracing::debug!(node = %self.node.id, other = %entry.id, error = chain(error), "another node takes no chunks");
            }
        }
    }

    async fn send(
        &self,
        items: &mut [Item],
        is_sender: impl Fn(&Self, &Item) -> bool,
        outcome: &mut Outcome,
    ) {
        let mut wanted = Vec::new();
        for (place, item) in items.iter().enumerate().filter(|(_, item)| is_sender(self, item)) {
            let to = self.lacking(item);
            if !to.is_empty() {
                wanted.push((place, to));
            }
        }
        let sending: Vec<_> = wanted
            .into_iter()
            .map(|(place, to)| {
                let chunk = &items[place].chunk;
                async move { (place, to.len() as u64, self.send_chunk(chunk, to).await) }
            })
            .collect();
        let sent: Vec<_> = stream::iter(sending).buffer_unordered(IN_FLIGHT).collect().await;
        for (place, wanted, to) in sent {
            let item = &mut items[place];
            let (len, count) = (u64::from(item.chunk.len), to.confirmed.len() as u64);
            outcome.sent_bytes += count * len;
            if !to.is_lost {
                outcome.left_bytes += (wanted - count) * len;
            }
            item.given.extend(to.given);
            item.confirmed.extend(to.confirmed);
        }
    }

    /// Sends a chunk's bytes, then all its references.
    async fn send_chunk(&self, chunk: &Referenced, to: Vec<usize>) -> SentTo {
        let mut sent = SentTo::default();
        let Some((tag, name)) = chunk.refs.first() else { return sent };
        let bytes = match chunks::read(self.node, &chunk.hash).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(node = %self.node.id, chunk = %chunk.hash, error = chain(&error), "a chunk cannot be sent");
                // What is not here any more others will have to send.
                sent.is_lost = matches!(error.code, ErrorCode::ChunkNotFound | ErrorCode::Damaged);
                return sent;
            }
        };
        let (moves, metrics) = (&self.node.moves, &self.node.metrics.moves);
        for index in to {
            if self.is_aside(index) {
                continue;
            }
            moves.admit(u64::from(chunk.len)).await;
            sent.given.push(index);
            let peer = self.node.peer(self.entry(index));
            if let Err(error) = peer.put_chunk(&chunk.hash, name, *tag, bytes.clone()).await {
                self.failed(index, &error).await;
                continue;
            }
            moves.sent(u64::from(chunk.len));
            metrics.bytes_out.increment(u64::from(chunk.len));
            metrics.chunks.increment(1);
            if self.adopted(index, &[chunk]).await.is_some_and(|missing| missing.is_empty()) {
                sent.confirmed.push(index);
            }
        }
        sent
    }

    /// Releases elsewhere what was given there and has been released here since.
    async fn take_back(&self, items: &[Item]) -> ApiResult<()> {
        let mut gone: HashMap<(usize, RefTag, &ContentName), Vec<ChunkHash>> = HashMap::new();
        self.node.catalog.read(|rows| {
            for Item { chunk, given, .. } in items.iter().filter(|item| !item.given.is_empty()) {
                let hash = &chunk.hash;
                for (tag, name) in &chunk.refs {
                    if !rows.has(Key::ChunkRef(hash, *tag, name))? {
                        given.iter().for_each(|to| gone.entry((*to, *tag, name)).or_default().push(*hash));
                    }
                }
            }
            Ok(())
        })?;
        for ((index, ref_tag, name), chunks) in gone {
            let request = ChunkReleaseRequest { name: name.clone(), ref_tag, chunks };
            if let Err(error) = self.node.peer(self.entry(index)).release_chunks(&request).await {
                self.failed(index, &error).await;
            }
        }
        Ok(())
    }

    /// Deletes the copies that are not to be here, if all that are to have them have them. Answers false if
    /// one could not go because it, or the map, changed meanwhile.
    async fn drop_surplus(&self, items: &[Item]) -> ApiResult<bool> {
        let surplus: Vec<&Item> = items.iter().filter(|item| self.is_surplus(item)).collect();
        let mut all_gone = true;
        for group in surplus.chunk_by(|a, b| ChunkLocks::is_shared(&a.chunk.hash, &b.chunk.hash)) {
            all_gone &= self.drop_group(group).await?;
        }
        Ok(all_gone)
    }

    fn is_surplus(&self, item: &Item) -> bool {
        let right = &item.right;
        !right.is_empty() && right.iter().all(|index| *index != self.me && item.confirmed.contains(index))
    }

    /// A copy that is not to be here waits for another node to send its own to those that lack it. While one
    /// of those is down there is nothing to wait for; the map will say that it is back.
    fn is_waiting(&self, item: &Item) -> bool {
        let mut right = item.right.iter();
        right.all(|index| *index != self.me && self.entry(*index).alive) && !self.is_surplus(item)
    }

    async fn drop_group(&self, group: &[&Item]) -> ApiResult<bool> {
        let Some(first) = group.first() else { return Ok(true) };
        let _alone = self.node.chunk_locks.deleting(&first.chunk.hash).await;
        if with_site(self.node, |epoch, _| epoch) != Some(self.epoch) {
            return Ok(false);
        }
        // Asked in a commit: a put that its caller gave up may have left a change in the queue, and this
        // comes behind it.
        let given: Vec<_> = group.iter().map(|item| (item.chunk.hash, item.chunk.refs.clone())).collect();
        let unchanged = self.node.catalog.commit(move |txn| {
            let mut unchanged = Vec::with_capacity(given.len());
            for (hash, refs) in given {
                // Fewer may be left by now, more may not.
                if chunks::refs(txn, &hash)?.iter().all(|now| refs.binary_search(now).is_ok()) {
                    unchanged.push(hash);
                }
            }
            Ok(unchanged)
        });
        let unchanged = unchanged.await?;
        // From the store first, so that a crash in between leaves rows, of which the next walk makes the same
        // again.
        let deleted = unchanged.iter().map(|hash| self.node.chunks.delete(hash));
        future::try_join_all(deleted).await.map_err(|error| store_error(&error))?;
        let count = unchanged.len();
        let handed_off = self.node.catalog.commit(move |txn| {
            unchanged.iter().try_fold(0, |bytes, hash| Ok(bytes + chunks::hand_off(txn, hash)?))
        });
        self.node.metrics.add_logical_bytes(-(handed_off.await? as i64));
        self.node.metrics.moves.dropped_chunks.increment(count as u64);
        Ok(count == group.len())
    }
}

/// What became of one chunk's sending.
#[derive(Default)]
struct SentTo {
    given: Vec<usize>,
    confirmed: Vec<usize>,
    /// The bytes are not here.
    is_lost: bool,
}

/// As few requests as the references fit in.
fn requests(chunks: &[&Referenced]) -> Vec<AdoptRequest> {
    let (mut requests, mut open, mut room) = (Vec::new(), Vec::new(), AdoptRequest::REFS_MAX);
    for chunk in chunks {
        let mut rest = chunk.refs.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(room));
            open.push(ChunkRefs { hash: chunk.hash, refs: now.to_vec() });
            (rest, room) = (later, room - now.len());
            if room == 0 {
                requests.push(AdoptRequest { chunks: std::mem::take(&mut open) });
                room = AdoptRequest::REFS_MAX;
            }
        }
    }
    if !open.is_empty() {
        requests.push(AdoptRequest { chunks: open });
    }
    requests
}
