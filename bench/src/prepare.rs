//! What is done at a target beside the load: objects are put before it, what it put is read back after it, and all of
//! it is removed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::api::mobile_access::AccessClient;
use common::api::search::Visibility;
use common::client::HttpClient;
use common::cluster::ClusterMap;
use common::config::show_bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::content::{Choices, Content};
use crate::load::{Load, LoadError};
use crate::measure::Tally;
use crate::operator::Operator;
use crate::plan::{Object, Op, Plan, Verify};
use crate::protocol::{Client, EtagRule, Protocol};
use crate::run::ReadBack;
use crate::target::{Target, resolve};
use crate::visit::Pass;
use crate::wire::WireError;

/// Connections for preparing and cleaning up.
const CONNECTIONS: usize = 8;
/// Most contents that are read back after PUTs.
const READ_BACK_MAX: usize = 256;

async fn connect(target: &Target, nth: usize) -> Result<Client, LoadError> {
    connect_as(&target.protocol, &target.gateways, nth).await
}

async fn connect_as(protocol: &Protocol, gateways: &[String], nth: usize) -> Result<Client, LoadError> {
    let (address, host) = resolve(&gateways[nth % gateways.len()]).await?;
    Ok(Client::new(protocol, address, &host))
}

fn failed(what: String) -> impl FnOnce(WireError) -> LoadError {
    move |source| LoadError::Request { what, source }
}

fn key_of(plan: &Plan, object: Object) -> String {
    format!("{}{object}", plan.prefix())
}

/// The folder of a run's files, where the target's files are written and not put.
fn folder_of(plan: &Plan, target: &Target) -> Option<PathBuf> {
    match &target.protocol {
        Protocol::Plain { root: Some(root), .. } => Some(root.join(plan.prefix())),
        _ => None,
    }
}

/// What was put before a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prepared {
    pub bytes: u64,
    /// How the server's ETags follow from the bytes, if that showed.
    pub etags: Option<EtagRule>,
}

/// Puts what the plan's reads need, and says how much that is.
pub async fn prepare(plan: &Plan, target: &Target, say: &impl Fn(&str)) -> Result<Prepared, LoadError> {
    let ops = plan.ops();
    if let Some(op) = ops.iter().copied().find(|op| !target.protocol.has(*op)) {
        return Err(LoadError::NoOperation { protocol: target.protocol.name(), op });
    }
    if ops.contains(&Op::Collect) {
        prepare_collecting(target).await?;
    }
    if ops.contains(&Op::Roam) {
        try_visit(target).await?;
    }
    let (mut count, mut bytes) = (0u64, 0u64);
    for object in plan.prepared() {
        count += 1;
        bytes += plan.content(object).len;
    }
    refuse_beyond_space(bytes, plan, target).await?;
    let made = connect(target, 0).await?.make_bucket(Visibility::Private).await;
    made.map_err(failed("making the bucket".into()))?;
    if count == 0 {
        say("nothing is prepared: no operation reads what was there before");
        return Ok(Prepared::default());
    }
    let once = plan.one_hit_objects();
    let once = if once > 0 { format!(", {once} of them to be asked for once") } else { String::new() };
    say(&format!("preparing {count} objects, {} in all{once}", show_bytes(bytes)));
    let etags = match folder_of(plan, target) {
        Some(folder) => write_files(plan, &folder).map(|()| None)?,
        None => put_all(plan, target).await?,
    };
    Ok(Prepared { bytes, etags })
}

/// Makes the bucket of what is published to be collected.
async fn prepare_collecting(target: &Target) -> Result<(), LoadError> {
    let missing = || LoadError::NoProvider { client: target.client.clone() };
    let provider = target.provider.as_ref().ok_or_else(missing)?;
    let mut client = connect_as(&provider.protocol(), &provider.gateways, 0).await?;
    let made = client.make_bucket(Visibility::Public).await;
    made.map_err(failed(format!("making the bucket of {}", provider.client)))
}

/// Opens a visit, as each worker will, so that what keeps the client from it is told before anything else is done.
async fn try_visit(target: &Target) -> Result<(), LoadError> {
    let missing = || LoadError::NoCard { client: target.client.clone() };
    let roaming = target.roaming.as_ref().ok_or_else(missing)?;
    let access = AccessClient::new(HttpClient::new(), &roaming.mobile_access);
    Pass::open(&access, &roaming.card, 0).await.map(drop).map_err(LoadError::Visit)
}

/// A load that cannot fit is refused before it begins, where the space is known: on the disk of a folder, or in all nodes
/// of a site.
async fn refuse_beyond_space(needed: u64, plan: &Plan, target: &Target) -> Result<(), LoadError> {
    let (free, place) = match (&target.protocol, &target.control) {
        (Protocol::Plain { root: Some(root), .. }, _) => (free_bytes(root), root.display().to_string()),
        (_, Some(control)) if plan.prepared().next().is_some() => {
            let map = Operator::new(&control.admin_token);
            let map = map.get::<ClusterMap>(&format!("{}/v1/map?after=0&wait_ms=0", control.search)).await;
            let site = map.ok().and_then(|map| map.sites.into_iter().find(|s| s.id.as_str() == control.site));
            let capacity = site.map(|site| site.nodes.iter().map(|node| node.capacity_bytes).sum());
            (capacity, format!("the nodes of {}", control.site))
        }
        _ => (None, String::new()),
    };
    match free {
        Some(free) if needed > free => Err(LoadError::Space { needed, free, place }),
        _ => Ok(()),
    }
}

/// Of the file system that the folder is on; `None` where it cannot be told.
fn free_bytes(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and `stat` is as large as what is written to it.
    let done = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    // SAFETY: a call that answers with 0 has filled it.
    (done == 0).then(|| unsafe { stat.assume_init() }).map(|stat| stat.f_bavail * stat.f_frsize)
}

fn write_files(plan: &Plan, folder: &Path) -> Result<(), LoadError> {
    use std::io::Write as _;
    const PIECE_LEN: u64 = 1 << 20;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for object in plan.prepared() {
            let content = plan.content(object);
            let mut file = std::fs::File::create(folder.join(object.to_string()))?;
            let mut offset = 0;
            while offset < content.len {
                let len = PIECE_LEN.min(content.len - offset);
                file.write_all(&content.bytes(offset, len as usize))?;
                offset += len;
            }
        }
        Ok(())
    };
    write().map_err(|source| LoadError::Root { path: folder.to_owned(), source })
}

/// Puts all that is prepared; answers with how ETags follow from the bytes, if all the answers agree on it.
async fn put_all(plan: &Plan, target: &Target) -> Result<Option<EtagRule>, LoadError> {
    let (known, verifies) = (target.protocol.etags(), plan.verify != Verify::Off);
    let by_md5 = AtomicBool::new(known.is_none() && verifies);
    let lanes = stream::iter(0..CONNECTIONS).map(|lane| {
        let by_md5 = &by_md5;
        async move {
            let mut client = connect(target, lane).await?;
            for object in plan.prepared().skip(lane).step_by(CONNECTIONS) {
                let content = plan.content(object);
                let key = key_of(plan, object);
                let stored = client.put(&key, content).await.map_err(failed(format!("PUT {key}")))?;
                if let (Some(rule), Some(got), true) = (known, stored.tag, verifies) {
                    let expected = rule.tag(&content);
                    if got != expected {
                        return Err(LoadError::WrongHash { key, got, expected });
                    }
                }
                if by_md5.load(Ordering::Relaxed) && stored.tag != Some(EtagRule::Md5.tag(&content)) {
                    by_md5.store(false, Ordering::Relaxed);
                }
            }
            Ok::<(), LoadError>(())
        }
    });
    lanes.buffer_unordered(CONNECTIONS).try_collect::<()>().await?;
    Ok(known.or(by_md5.into_inner().then_some(EtagRule::Md5)))
}

/// Gets a sample of what PUTs were acknowledged and checks every byte.
pub async fn read_back(plan: &Plan, target: &Target, load: &mut Load) -> Result<ReadBack, LoadError> {
    if plan.verify == Verify::Off || load.written.is_empty() {
        return Ok(ReadBack::default());
    }
    let mut choices = Choices::new(plan.seed, 0x7265_6164);
    let count = load.written.len().min(READ_BACK_MAX);
    for slot in 0..count {
        let other = slot as u64 + choices.below((load.written.len() - slot) as u64);
        load.written.swap(slot, other as usize);
    }
    let mut client = connect(target, 0).await?;
    let mut tally = Tally::default();
    for (key, content) in &load.written[..count] {
        match read_one(&mut client, key, *content, target.protocol.is_native(), &mut tally).await {
            Ok(true) => {}
            Ok(false) => tally.wrong(format!("{key}: it is not what was put")),
            Err(error) => {
                client.close();
                tally.deliveries.unanswered += u64::from(error.is_unanswered());
                tally.wrong(format!("{key}: {error}"));
            }
        }
    }
    let result = ReadBack { read: count as u64, wrong: tally.wrong };
    load.tally.merge(tally);
    Ok(result)
}

/// Whether what was put is read.
async fn read_one(
    client: &mut Client,
    key: &str,
    content: Content,
    shows_hash: bool,
    tally: &mut Tally,
) -> Result<bool, WireError> {
    let head = client.get(key, None).await?;
    tally.deliveries.in_part.extend(head.delivery);
    let named = head.etag.map(|etag| client.tag(&etag));
    let mut matches = !shows_hash || named == Some(content.hash());
    let mut received = 0;
    while let Some(piece) = client.piece().await? {
        matches &= content.matches(received, piece);
        received += piece.len() as u64;
    }
    tally.deliveries.whole.extend(head.delivery);
    Ok(matches && received == content.len)
}

/// Removes what the run put; answers with the number of contents that could not be removed.
pub async fn clean(plan: &Plan, target: &Target, load: &Load) -> Result<u64, LoadError> {
    let folder = folder_of(plan, target);
    let lanes = stream::iter(0..CONNECTIONS).map(|lane| {
        let is_file = folder.is_some();
        async move {
            let mut client = connect(target, lane).await?;
            let prepared =
                plan.prepared().filter(move |_| !is_file).map(|object| (key_of(plan, object), true));
            let written = load.written.iter().map(|(key, _)| (key.clone(), true));
            // What is not known to be there may be absent.
            let unsure = load.unsure.iter().map(|key| (key.clone(), false));
            let mut left = 0;
            for (key, present) in prepared.chain(written).chain(unsure).skip(lane).step_by(CONNECTIONS) {
                let gone = client.delete(&key).await;
                left += u64::from(gone.is_err() && present);
            }
            Ok::<u64, LoadError>(left)
        }
    });
    let left: Vec<u64> = lanes.buffer_unordered(CONNECTIONS).try_collect().await?;
    let left = left.iter().sum::<u64>() + clean_published(plan, target, load).await?;
    if let Some(folder) = folder
        && folder.exists()
    {
        let removed = std::fs::remove_dir_all(&folder);
        removed.map_err(|source| LoadError::Root { path: folder.clone(), source })?;
    }
    Ok(left)
}

/// Removes what was published at another site and drops it from the library of who collected it.
async fn clean_published(plan: &Plan, target: &Target, load: &Load) -> Result<u64, LoadError> {
    let Some(provider) = target.provider.as_ref().filter(|_| !load.published.is_empty()) else {
        return Ok(0);
    };
    let reader = provider.protocol_for(&target.protocol);
    let lanes = stream::iter(0..CONNECTIONS).map(|lane| {
        let reader = &reader;
        async move {
            let mut publisher = connect_as(&provider.protocol(), &provider.gateways, lane).await?;
            let mut reader = connect_as(reader, &target.gateways, lane).await?;
            let all = load.published.iter().flat_map(|of| (0..of.count).map(|nth| (of.worker, nth)));
            let mut left = 0;
            for (worker, nth) in all.skip(lane).step_by(CONNECTIONS) {
                let (key, _) = plan.published(worker, nth);
                let gone = [publisher.delete(&key).await, reader.drop_held(&key).await];
                // What was never published, or never collected, is not there.
                left += u64::from(!gone.iter().all(is_gone));
            }
            Ok::<u64, LoadError>(left)
        }
    });
    let left: Vec<u64> = lanes.buffer_unordered(CONNECTIONS).try_collect().await?;
    Ok(left.iter().sum())
}

fn is_gone(deleted: &Result<(), WireError>) -> bool {
    matches!(deleted, Ok(()) | Err(WireError::Refused { status: 404, .. }))
}
