//! Temporary content: what the site keeps for clients of other sites while they visit it.
//!
//! ```text
//! keep (home confirmed it) ──▶ being fetched ──complete──▶ whole ──┐
//!   prolongs what is there        │                                │ its time is over: the visitor's row goes,
//!                                 └────────────────────────────────┴▶ with the last visitor the content
//! ```
//! All rows are in the slot of the name. One content serves every visitor that was confirmed the same version; its
//! chunks carry its reference tag as those of a holding do, so what the site has already is not stored again, and what
//! goes is given back by the same reaper. It is no holding: search is not told of it, and nobody else is offered it.
//!
//! It lasts until what home confirmed last expires. Each confirmation prolongs it, for it is a new word of home; a use
//! while home is away does not.
//!
//! A delivery while home is away is recorded by this site, in the shard of the name, with the client's home in its
//! record: it is booked once as every record is, by number and chain, and nothing has to be handed over later. (A record
//! that waits to be handed to home would need a second protocol to be exactly once, and would not be booked while home
//! stays away.) It is a reference, as home confirmed that the client holds the content. The client's library, which is
//! at home, is not changed by it.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::api::node::{JoinRequest, RefTag};
use common::api::temporary::{
    BeginAwayRequest, CompleteRequest, KeepAnswer, KeepRequest, Kept, TemporaryContent,
};
use common::error::{ApiError, ApiResult, ErrorCode, chain};
use common::id::{ClientId, NodeId};
use common::name::ContentName;
use common::placement::Slot;
use common::possession::Possession;
use common::record::{DeliveryClass, DeliveryPath};
use common::time::UnixMillis;

use crate::catalog::key::{self, Key, Tag};
use crate::catalog::rows::{OpenDelivery, ReapValue, Row, TemporaryValue, VisitorValue};
use crate::catalog::txn::{Rows, Txn};
use crate::deliveries::{self, Begun};
use crate::shard::Shard;
use crate::tally::due;

/// How often it is looked for what expired.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How soon it is looked again at the earliest.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// Visitors whose time is over that go in one commit.
const PIECE_LEN: usize = 256;

/// What a shard keeps, as it was seen last.
#[derive(Default)]
pub struct Figures {
    contents: AtomicU64,
    bytes: AtomicU64,
}

/// Contents that shards keep, and their bytes.
pub fn figures(shards: &[Arc<Shard>]) -> (u64, u64) {
    let sum = |of: fn(&Figures) -> &AtomicU64| {
        shards.iter().map(|shard| of(&shard.temporary).load(Ordering::Relaxed)).sum()
    };
    (sum(|figures| &figures.contents), sum(|figures| &figures.bytes))
}

/// Keeps a content for a visitor: from now on, or longer than before.
pub fn keep(txn: &mut Txn<'_>, request: &KeepRequest, now: UnixMillis) -> ApiResult<KeepAnswer> {
    let KeepRequest { possession, manifest, proof, ref_tag } = request;
    let (name, client) = (&possession.name, &possession.client);
    let (mut same, mut others) = (None, Vec::new());
    for (tag, content) in contents(txn, name)? {
        if content.version == possession.version { same = Some((tag, content)) } else { others.push(tag) }
    }
    for tag in others {
        leave(txn, name, tag, client)?;
    }
    let (tag, complete) = same.map_or((*ref_tag, false), |(tag, content)| (tag, content.complete));
    if !txn.has(Key::Temporary(name, tag))? {
        let content = TemporaryValue {
            version: possession.version,
            manifest: manifest.clone(),
            provider: possession.provider.clone(),
            complete,
            since: now,
        };
        txn.put(Key::Temporary(name, tag), &content);
    }
    let key = Key::Visitor(name, tag, client);
    let known = txn.get::<VisitorValue>(key)?;
    if known.is_none() && complete {
        due::visitor_changed(txn, name, tag, client);
    }
    // Confirmations may arrive in another order than they were given.
    if known.as_ref().is_none_or(|known| known.possession.expires < possession.expires) {
        let visitor = VisitorValue {
            possession: possession.clone(),
            proof: *proof,
            since: known.as_ref().map_or(now, |known| known.since),
            newest: known.and_then(|known| known.newest),
        };
        txn.put(key, &visitor);
    }
    Ok(KeepAnswer { ref_tag: tag, complete })
}

/// What [`keep`] would answer, if that would hardly prolong what is there: less than a tenth of the time is over.
pub fn is_kept(rows: &(impl Rows + ?Sized), request: &KeepRequest) -> ApiResult<Option<KeepAnswer>> {
    let asked = &request.possession;
    for (ref_tag, content) in contents(rows, &asked.name)? {
        if content.version != asked.version {
            continue;
        }
        let visitor = rows.get::<VisitorValue>(Key::Visitor(&asked.name, ref_tag, &asked.client))?;
        let lasts = asked.expires.since(asked.issued);
        let is_fresh =
            |known: &Possession| known.home == asked.home && asked.expires.since(known.expires) < lasts / 10;
        if visitor.is_some_and(|visitor| is_fresh(&visitor.possession)) {
            return Ok(Some(KeepAnswer { ref_tag, complete: content.complete }));
        }
    }
    Ok(None)
}

/// Every chunk is there. Answers whether the content still is.
pub fn complete(txn: &mut Txn<'_>, request: &CompleteRequest) -> ApiResult<bool> {
    let key = Key::Temporary(&request.name, request.ref_tag);
    let Some(content) = txn.get::<TemporaryValue>(key)? else { return Ok(false) };
    if !content.complete {
        txn.put(key, &TemporaryValue { complete: true, ..content });
        due::completed(txn, &request.name, request.ref_tag);
    }
    Ok(true)
}

/// The temporary contents of a name, one for each version.
pub(crate) fn contents(
    rows: &(impl Rows + ?Sized),
    name: &ContentName,
) -> ApiResult<Vec<(RefTag, TemporaryValue)>> {
    let mut contents = Vec::new();
    rows.scan(&key::temporaries(name), &mut |key, value| {
        if let Some((_, tag, _)) = key::tally_of(key) {
            contents.push((tag, TemporaryValue::decode(value)?));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(contents)
}

/// What is kept for a client under a name at this moment.
pub fn kept(
    rows: &(impl Rows + ?Sized),
    name: &ContentName,
    client: &ClientId,
    now: UnixMillis,
) -> ApiResult<Option<Kept>> {
    for (ref_tag, content) in contents(rows, name)? {
        let visitor = rows.get::<VisitorValue>(Key::Visitor(name, ref_tag, client))?;
        if let Some(VisitorValue { possession, proof, .. }) = visitor
            && possession.expires > now
        {
            let TemporaryValue { manifest, complete, .. } = content;
            return Ok(Some(Kept { possession, manifest, proof, ref_tag, complete }));
        }
    }
    Ok(None)
}

/// A content is no longer kept for a client; with the last one it goes.
pub(crate) fn leave(txn: &mut Txn<'_>, name: &ContentName, tag: RefTag, client: &ClientId) -> ApiResult<()> {
    let visitor = Key::Visitor(name, tag, client);
    if !txn.has(visitor)? {
        return Ok(());
    }
    txn.delete(visitor);
    let Some(content) = txn.get::<TemporaryValue>(Key::Temporary(name, tag))? else { return Ok(()) };
    if content.complete {
        due::visitor_changed(txn, name, tag, client);
    }
    if txn.is_empty(&key::visitors(name, tag))? {
        txn.delete(Key::Temporary(name, tag));
        let chunks = content.manifest.chunks;
        if content.complete {
            due::temporary_gone(txn, name, tag, &chunks);
        }
        txn.put(Key::Reap(tag, name), &ReapValue { name: name.clone(), ref_tag: tag, chunks });
    }
    Ok(())
}

/// Records the begin of a delivery while the client's home is away, or the request in the delivery that it joins.
///
/// # Errors
/// `ContentNotFound` when the content is not kept whole for the client, or no longer.
pub fn begin_away(
    txn: &mut Txn<'_>,
    request: &BeginAwayRequest,
    shard: &NodeId,
    join_window: Duration,
    now: UnixMillis,
) -> ApiResult<Begun> {
    if let Some(open) = txn.get::<OpenDelivery>(Key::OpenDelivery(&request.delivery))? {
        return Ok(Begun { delivery: open.delivery, class: open.class, opened: false });
    }
    let (name, tag, client) = (&request.name, request.ref_tag, &request.client);
    let content = txn.get::<TemporaryValue>(Key::Temporary(name, tag))?.filter(|content| content.complete);
    let visitor = txn.get::<VisitorValue>(Key::Visitor(name, tag, client))?;
    let visitor = visitor.filter(|visitor| visitor.possession.expires > now);
    let (Some(content), Some(mut visitor)) = (content, visitor) else {
        let message = format!("{name} is not kept here for {client}, or no longer");
        return Err(ApiError::new(ErrorCode::ContentNotFound, message));
    };
    let hash = content.manifest.hash;
    if let Some((delivery, recorded_in)) = visitor.newest.clone().filter(|_| request.range_start > 0)
        && recorded_in == *shard
    {
        let (shard, client, request) = (recorded_in, client.clone(), request.delivery);
        let join = JoinRequest { shard, delivery, request, hash, client };
        if let Some(begun) = deliveries::join(txn, &join, join_window, now)? {
            return Ok(begun);
        }
    }
    let class = DeliveryClass::Reference;
    let open = OpenDelivery {
        delivery: request.delivery,
        client: client.clone(),
        name: name.clone(),
        hash,
        provider: content.provider,
        class,
        path: DeliveryPath::Hit,
        source: None,
        searched: false,
        surrogate: Some(visitor.possession.surrogate.clone()),
        mobile_access: request.mobile_access.clone(),
        bytes_total: content.manifest.len,
        bytes_sent: 0,
        begin: now,
        touched: now,
        in_flight: vec![request.delivery],
        ended: Vec::new(),
        outcome: None,
        home: Some(visitor.possession.home.clone()),
    };
    txn.put(Key::OpenDelivery(&request.delivery), &open);
    visitor.newest = Some((request.delivery, shard.clone()));
    txn.put(Key::Visitor(name, tag, client), &visitor);
    Ok(Begun { delivery: request.delivery, class, opened: true })
}

/// Adds up to `max` contents of a slot that are kept at this moment, behind `after`; of one client, or of all.
pub fn list(
    rows: &(impl Rows + ?Sized),
    slot: Slot,
    client: Option<&ClientId>,
    after: Option<&(ContentName, ClientId)>,
    max: usize,
    now: UnixMillis,
    into: &mut Vec<TemporaryContent>,
) -> ApiResult<()> {
    let prefix = key::slot_rows(Tag::Visitor, slot);
    let after = after.filter(|(name, _)| Slot::of_name(name) == slot);
    // A name has several tags: those before the wanted client are passed by below.
    let from = after.map(|(name, _)| key::visitors_of(name));
    let from = from.as_deref().unwrap_or(&prefix);
    let mut found: Vec<TemporaryContent> = Vec::new();
    rows.scan_raw(&prefix, Bound::Included(from), &mut |key, value| {
        let Some((name, tag, visiting)) = key::tally_of(key) else { return Ok(ControlFlow::Continue(())) };
        // Rows of one name are put in order when all of them are there.
        if found.len() >= max && found.last().is_some_and(|last| last.name != name) {
            return Ok(ControlFlow::Break(()));
        }
        let is_behind =
            after.is_none_or(|(last, who)| (last.as_str(), who.as_str()) < (name.as_str(), visiting));
        if !is_behind || client.is_some_and(|wanted| wanted.as_str() != visiting) {
            return Ok(ControlFlow::Continue(()));
        }
        let VisitorValue { possession, since, .. } = VisitorValue::decode(value)?;
        let content = rows.get::<TemporaryValue>(Key::Temporary(&name, tag))?;
        if let Some(content) = content.filter(|_| possession.expires > now) {
            found.push(TemporaryContent {
                name,
                client: possession.client,
                home: possession.home,
                hash: content.manifest.hash,
                len: content.manifest.len,
                complete: content.complete,
                since,
                expires: possession.expires,
            });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    found.sort_by(|a, b| (a.name.as_str(), &a.client).cmp(&(b.name.as_str(), &b.client)));
    found.truncate(max);
    into.append(&mut found);
    Ok(())
}

/// Ends, for ever, what is kept for visitors whose time is over.
pub async fn expire(shard: Arc<Shard>) {
    loop {
        let pause = match expire_due(&shard).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(shard = %shard.id, error = chain(&error), "what was kept for visitors does not go yet");
                LOOK_INTERVAL
            }
        };
        tokio::time::sleep(pause.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL)).await;
    }
}

/// What a look at a shard's rows found.
#[derive(Default)]
struct Look {
    due: Vec<(ContentName, RefTag, ClientId)>,
    next: Option<UnixMillis>,
    contents: u64,
    bytes: u64,
}

/// Answers how long nothing more will expire.
async fn expire_due(shard: &Arc<Shard>) -> ApiResult<Duration> {
    let (reader, now) = (shard.clone(), shard.node.clock.now());
    let look = tokio::task::spawn_blocking(move || look(&reader, now)).await;
    let look = look.map_err(|error| ApiError::internal(&error))??;
    shard.temporary.contents.store(look.contents, Ordering::Relaxed);
    shard.temporary.bytes.store(look.bytes, Ordering::Relaxed);
    for piece in look.due.chunks(PIECE_LEN) {
        let (piece, slots) = (piece.to_vec(), shard.slots.clone());
        let expire = move |txn: &mut Txn<'_>| {
            let mut expired = 0;
            for (name, tag, client) in &piece {
                // One whose slot is on the move goes with its next owner.
                if slots.check(Slot::of_name(name)).is_ok() {
                    expired += u64::from(expire_visitor(txn, name, *tag, client, now)?);
                }
            }
            Ok(expired)
        };
        let expired = shard.catalog.commit(expire).await?;
        shard.node.metrics.temporary.expired.increment(expired);
        shard.signals.reap_queued.notify_one();
        shard.signals.tally_queued.notify_one();
    }
    Ok(look.next.map_or(LOOK_INTERVAL, |next| next.since(now)))
}

/// Lets a visitor go whose time is over, unless it was prolonged meanwhile. Answers whether it went.
fn expire_visitor(
    txn: &mut Txn<'_>,
    name: &ContentName,
    tag: RefTag,
    client: &ClientId,
    now: UnixMillis,
) -> ApiResult<bool> {
    let visitor = txn.get::<VisitorValue>(Key::Visitor(name, tag, client))?;
    if visitor.is_none_or(|visitor| visitor.possession.expires > now) {
        return Ok(false);
    }
    leave(txn, name, tag, client)?;
    Ok(true)
}

fn look(shard: &Shard, now: UnixMillis) -> ApiResult<Look> {
    shard.catalog.read(|rows| {
        let mut look = Look::default();
        let owned = |key: &[u8]| {
            key::tally_of(key)
                .filter(|(name, ..)| shard.slots.owns(Slot::of_name(name)))
                .map(|(name, tag, _)| (name, tag))
        };
        rows.scan(&key::all(Tag::Temporary), &mut |key, value| {
            if owned(key).is_some() {
                look.contents += 1;
                look.bytes += TemporaryValue::decode(value)?.manifest.len;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        rows.scan(&key::all(Tag::Visitor), &mut |key, value| {
            let Some((name, tag)) = owned(key) else { return Ok(ControlFlow::Continue(())) };
            let possession = VisitorValue::decode(value)?.possession;
            if possession.expires <= now {
                look.due.push((name, tag, possession.client));
            } else {
                look.next = Some(look.next.map_or(possession.expires, |next| next.min(possession.expires)));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(look)
    })
}

#[cfg(test)]
mod tests;
