//! One collection at work: which chunks are there, and the newest of them in memory for those who wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use common::api::node::Holding;
use common::error::ApiError;
use common::manifest::ChunkRef;
use common::record::{DeliveryPath, Source};
use tokio::sync::watch;

/// Chunks kept in memory for waiting readers; slower ones read from the storage nodes.
const WINDOW_LEN: usize = 8;

pub struct Collection {
    pub holding: Holding,
    pub chunks: Arc<[ChunkRef]>,
    /// The nearest source, which the collection began with.
    pub source: Source,
    pub path: DeliveryPath,
    state: Mutex<State>,
    /// Counts changes of `state`, to wake those who wait.
    changed: watch::Sender<u64>,
}

struct State {
    /// Durable at the site, by index.
    stored: Vec<bool>,
    window: VecDeque<(usize, Bytes)>,
    outcome: Option<Result<(), ApiError>>,
}

impl Collection {
    pub fn new(holding: Holding, chunks: Arc<[ChunkRef]>, source: Source, path: DeliveryPath) -> Self {
        let state = State { stored: vec![false; chunks.len()], window: VecDeque::new(), outcome: None };
        Self { holding, chunks, source, path, state: Mutex::new(state), changed: watch::Sender::new(0) }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_modify(|count| *count += 1);
    }

    /// A verified chunk, for those who wait; it is being stored at the same time.
    pub(super) fn tee(&self, index: usize, bytes: Bytes) {
        self.change(|state| {
            if state.window.len() == WINDOW_LEN {
                state.window.pop_front();
            }
            state.window.push_back((index, bytes));
        });
    }

    /// The chunk is durable at the site.
    pub(super) fn stored(&self, index: usize) {
        self.change(|state| state.stored[index] = true);
    }

    pub(super) fn finish(&self, outcome: Result<(), ApiError>) {
        self.change(|state| {
            state.outcome = Some(outcome);
            state.window.clear();
        });
    }

    /// Waits until chunk `index` is there: its bytes if they are in memory, `None` if it is to be read from the
    /// site's nodes.
    pub async fn chunk(&self, index: usize) -> Result<Option<Bytes>, ApiError> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, bytes)) = state.window.iter().find(|(i, _)| *i == index) {
                    return Ok(Some(bytes.clone()));
                }
                if state.stored.get(index).copied().unwrap_or(false) {
                    return Ok(None);
                }
                match &state.outcome {
                    Some(Err(error)) => return Err(error.clone()),
                    Some(Ok(())) => return Ok(None),
                    None => {}
                }
            }
            if changed.changed().await.is_err() {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use common::api::node::{HoldingState, RefTag};
    use common::error::ErrorCode;
    use common::hash::{ChunkHash, ContentHash};
    use common::id::{ClientId, SiteId};
    use common::manifest::{ChunkList, Manifest};
    use common::time::UnixMillis;
    use common::version::{HybridTime, Version};

    use super::*;

    fn collection(count: usize) -> Collection {
        let chunks: Vec<ChunkRef> =
            (0..count).map(|i| ChunkRef { hash: ChunkHash::of(&[i as u8]), len: 1 }).collect();
        let hash = ContentHash::of(b"x");
        let manifest = Manifest {
            hash,
            len: count as u64,
            media_type: "text/plain".into(),
            metadata: BTreeMap::new(),
            chunks: ChunkList::Inline(chunks.clone()),
        };
        let holding = Holding {
            name: "alice/x".parse().unwrap(),
            version: Version { time: HybridTime(1), hash },
            manifest,
            provider: ClientId::new("alice").unwrap(),
            state: HoldingState::Collecting,
            ref_tag: RefTag(1),
            since: UnixMillis(0),
        };
        let source = Source::Site(SiteId::new("osaka").unwrap());
        Collection::new(holding, chunks.into(), source, DeliveryPath::Peer)
    }

    #[tokio::test]
    async fn a_reader_gets_a_chunk_as_soon_as_it_was_fetched_and_later_from_the_nodes() {
        let collection = Arc::new(collection(20));
        let reader = tokio::spawn({
            let collection = collection.clone();
            async move { collection.chunk(0).await }
        });
        collection.tee(0, Bytes::from_static(b"a"));
        assert_eq!(reader.await.unwrap().unwrap(), Some(Bytes::from_static(b"a")));
        for index in 0..20 {
            collection.tee(index, Bytes::from_static(b"b"));
            collection.stored(index);
        }
        assert_eq!(
            collection.chunk(0).await.unwrap(),
            None,
            "out of the window, so it is read from its node"
        );
        assert!(collection.chunk(19).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn everyone_who_waits_learns_that_a_collection_failed() {
        let collection = Arc::new(collection(2));
        let reader = tokio::spawn({
            let collection = collection.clone();
            async move { collection.chunk(1).await }
        });
        collection.finish(Err(ApiError::new(ErrorCode::SourceUnavailable, "gone")));
        assert_eq!(reader.await.unwrap().unwrap_err().code, ErrorCode::SourceUnavailable);
    }
}
