//! Which contents the site no longer has whole: after a node was given up, what had a single copy there is told by
//! name.
//!
//! It walks the content list of one shard and asks every node that is there for the chunks; nothing is changed. A content
//! that is not whole is collected anew, where another site or an origin holds it, when somebody asks for it.

use std::collections::{BTreeMap, HashSet};
use std::ops::{Bound, ControlFlow};

use common::api::node::{AuditPage, ChunkRefsRequest, Holding, HoldingState, Incomplete};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::hash::ChunkHash;
use common::manifest::{ChunkList, ChunkRef};
use common::name::ContentName;
use common::placement::Slot;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::Row;
use crate::catalog::txn::Rows;
use crate::chunks::store_error;
use crate::node::Node;
use crate::reaper;
use crate::shard::Shard;

/// Most holdings that are looked at for one page.
pub const PAGE_LEN_MAX: u32 = 256;
/// Chunks that a node is asked for at once.
const QUESTION_LEN: usize = 4096;

/// Looks at up to `limit` holdings behind the name `after`, in the order of the shard's rows.
///
/// # Errors
/// `NodeUnavailable` when a node that is there does not answer: what only it has would be told as missing.
pub async fn page(shard: &Shard, after: Option<&ContentName>, limit: u32) -> ApiResult<AuditPage> {
    let limit = limit.clamp(1, PAGE_LEN_MAX) as usize;
    let held = shard.catalog.read(|rows| holdings_after(rows, after, limit))?;
    let next = (held.len() == limit).then(|| held.last().map(|holding| holding.name.clone())).flatten();
    let (mut checked, mut contents) = (0, Vec::new());
    for holding in held {
        // Rows of a slot that went are deleted behind it; its new owner tells of them.
        if holding.state == HoldingState::Collecting || !shard.slots.owns(Slot::of_name(&holding.name)) {
            continue;
        }
        checked += 1;
        contents.push(needs_of(&shard.node, holding).await?);
    }
    let mut absent: HashSet<ChunkHash> =
        contents.iter().flat_map(|needs| needs.chunks.iter().map(|chunk| chunk.hash)).collect();
    forget_present(&shard.node, &mut absent).await?;
    let incomplete = contents
        .into_iter()
        .filter_map(|needs| needs.incomplete(&absent))
        .map(|mut incomplete| {
            let count = shard.catalog.read(|rows| rows.count(&key::holding_clients(&incomplete.name)))?;
            incomplete.clients = count;
            Ok(incomplete)
        })
        .collect::<ApiResult<_>>()?;
    Ok(AuditPage { checked, incomplete, next })
}

fn holdings_after(
    rows: &(impl Rows + ?Sized),
    after: Option<&ContentName>,
    limit: usize,
) -> ApiResult<Vec<Holding>> {
    let prefix = key::all(Tag::Holding);
    let from = after.map(|name| Key::Holding(name).encode());
    let from = from.as_deref().map_or(Bound::Included(prefix.as_slice()), Bound::Excluded);
    let mut held = Vec::new();
    rows.scan_raw(&prefix, from, &mut |_, value| {
        held.push(Holding::decode(value)?);
        Ok(if held.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(held)
}

/// The chunks that a content needs.
struct Needs {
    holding: Holding,
    chunks: Vec<ChunkRef>,
    /// Its chunk list is at no node, so what it needs beside that is not known.
    lacks_list: bool,
}

async fn needs_of(node: &Node, holding: Holding) -> ApiResult<Needs> {
    let (chunks, lacks_list) = match &holding.manifest.chunks {
        ChunkList::Inline(chunks) => (chunks.clone(), false),
        ChunkList::Stored { list, .. } => match reaper::read_list(node, list).await? {
            Some(mut chunks) => {
                chunks.push(*list);
                (chunks, false)
            }
            None => (Vec::new(), true),
        },
    };
    Ok(Needs { holding, chunks, lacks_list })
}

impl Needs {
    fn incomplete(self, absent: &HashSet<ChunkHash>) -> Option<Incomplete> {
        let missing: BTreeMap<ChunkHash, u32> = self
            .chunks
            .iter()
            .filter(|chunk| absent.contains(&chunk.hash))
            .map(|chunk| (chunk.hash, chunk.len))
            .collect();
        if missing.is_empty() && !self.lacks_list {
            return None;
        }
        let missing_bytes = match self.lacks_list {
            true => self.holding.manifest.len,
            false => missing.values().map(|len| u64::from(*len)).sum(),
        };
        let Holding { name, version, manifest, .. } = self.holding;
        Some(Incomplete { name, version, len: manifest.len, missing_bytes, clients: 0 })
    }
}

/// Takes out what some node has.
async fn forget_present(node: &Node, absent: &mut HashSet<ChunkHash>) -> ApiResult<()> {
    for hash in absent.clone() {
        if node.chunks.contains(&hash).await.map_err(|error| store_error(&error))? {
            absent.remove(&hash);
        }
    }
    let view = node.maps.view();
    for other in view.others().filter(|other| other.alive) {
        let asked: Vec<ChunkHash> = absent.iter().copied().collect();
        for chunks in asked.chunks(QUESTION_LEN) {
            let request = ChunkRefsRequest { chunks: chunks.to_vec() };
            let answer = node.peer(other).chunk_refs(&request).await.map_err(|error| {
                error.to_api(ErrorCode::NodeUnavailable, "a node of the site does not say what it has")
            })?;
            if answer.refs.len() != chunks.len() {
                return Err(ApiError::new(ErrorCode::Internal, "a node answered for other chunks"));
            }
            let present = chunks.iter().zip(answer.refs).filter(|(_, refs)| refs.is_some());
            for (hash, _) in present {
                absent.remove(hash);
            }
        }
    }
    Ok(())
}
