//! `put`, `get`, `ls`, `library`, `rm`: contents through a gateway, as a client. Files are streamed; every byte that
//! goes up or comes down is hashed on the way and compared with the server's hash.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use common::api::gateway::{CLASS, ContentListing, DELIVERY, ListedContent, Published, SOURCE, SOURCE_SITE};
use common::api::node::{LibraryPage, LibraryRow};
use common::client::encode;
use common::config::show_bytes;
use common::hash::ContentHash;
use common::id::BucketName;
use common::name::ContentName;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter};

use crate::error::Failure;
use crate::http::{Body, GatewayClient, STALL_MAX, read_json};
use crate::output::{self, JsonArray, OutputArgs};
use crate::progress::Progress;
use crate::session::{ClientArgs, ReaderArgs};

/// Bytes read from or written to a file at a time.
const BLOCK_LEN: usize = 256 << 10;
/// Lines asked for at a time.
const PAGE_LEN: u32 = 1000;

#[derive(Debug, clap::Args)]
pub struct PutArgs {
    /// The file to send
    pub file: PathBuf,
    /// BUCKET/KEY; a key that ends in `/` gets the file's name
    #[arg(value_name = "BUCKET/KEY")]
    pub name: String,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct GetArgs {
    #[arg(value_name = "BUCKET/KEY")]
    pub name: ContentName,
    /// Where to write it: by default the last part of the key, here; `-` is standard output
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub client: ReaderArgs,
}

#[derive(Debug, clap::Args)]
pub struct LsArgs {
    #[arg(value_name = "BUCKET[/PREFIX]")]
    pub place: String,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct LibraryArgs {
    /// Only contents whose BUCKET/KEY begins so
    #[arg(default_value = "")]
    pub prefix: String,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub struct RmArgs {
    #[arg(value_name = "BUCKET/KEY")]
    pub name: ContentName,
    /// Drop it from the client's library; without this its provider withdraws it for everybody
    #[arg(long)]
    pub from_library: bool,
    #[command(flatten)]
    pub client: ClientArgs,
}

fn content_path(name: &ContentName) -> String {
    format!("/v1/contents/{}/{}", name.bucket(), encode_key(name.key()))
}

/// Slashes stay: they look better in logs, and mean the same.
fn encode_key(key: &str) -> String {
    key.split('/').map(|part| encode(part).to_string()).collect::<Vec<_>>().join("/")
}

pub async fn put(args: PutArgs) -> Result<(), Failure> {
    let gateway = args.client.connect()?;
    let name = target_name(&args.name, &args.file)?;
    let (file, path) = (&args.file, content_path(&name));
    let meta = tokio::fs::metadata(file).await.map_err(|e| Failure::file("reading", file, &e))?;
    if !meta.is_file() {
        return Err(Failure::usage(format!("{} is not a file", file.display())));
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(meta.len()));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type(file)));
    let progress = Progress::bytes(meta.len(), name.as_str());
    let hasher = Arc::new(Mutex::new(blake3::Hasher::new()));
    let response = gateway
        .upload(Method::PUT, &path, &headers, async || {
            let opened = File::open(file).await.map_err(|e| Failure::file("reading", file, &e))?;
            lock(&hasher).reset();
            Ok(file_body(opened, hasher.clone(), progress.clone()))
        })
        .await;
    progress.finish();
    let published: Published = read_json(&path, response?).await?;
    let sent = ContentHash::from(lock(&hasher).finalize());
    if sent != published.hash {
        return Err(Failure::new(format!("{name} arrived with hash {}, sent was {sent}", published.hash))
            .with_next_step("see that nothing writes to the file, then put it again"));
    }
    if args.output.json {
        return output::json(&published);
    }
    output::text_block(&format!(
        "{}\n  hash    {}\n  size    {} ({} bytes)\n  chunks  {}\n  new     {} ({} bytes were not at the site before)\n",
        published.name,
        published.hash,
        show_bytes(published.len),
        published.len,
        published.chunks,
        show_bytes(published.new_bytes),
        published.new_bytes,
    ))
}

fn target_name(text: &str, file: &Path) -> Result<ContentName, Failure> {
    let file_name = file.file_name().and_then(|n| n.to_str());
    match file_name {
        Some(file_name) if text.ends_with('/') => Ok(format!("{text}{file_name}").parse()?),
        _ => Ok(text.parse()?),
    }
}

fn lock(hasher: &Mutex<blake3::Hasher>) -> std::sync::MutexGuard<'_, blake3::Hasher> {
    hasher.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file as a body, hashed and counted as it is read.
fn file_body(file: File, hasher: Arc<Mutex<blake3::Hasher>>, progress: Progress) -> Body {
    let blocks = stream::try_unfold(file, move |mut file| {
        let (hasher, progress) = (hasher.clone(), progress.clone());
        async move {
            let mut block = BytesMut::with_capacity(BLOCK_LEN);
            if file.read_buf(&mut block).await? == 0 {
                return Ok::<_, io::Error>(None);
            }
            let block: Bytes = block.freeze();
            lock(&hasher).update(&block);
            progress.advance(block.len() as u64);
            Ok(Some((Frame::data(block), file)))
        }
    });
    StreamBody::new(blocks).boxed_unsync()
}

/// The media type that a file name's ending stands for.
fn media_type(file: &Path) -> &'static str {
    let ending = file.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match ending.as_str() {
        "txt" | "log" => "text/plain; charset=utf-8",
        "md" => "text/markdown; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "html" | "htm" => "text/html; charset=utf-8",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "svg" => "image/svg+xml",
        "wav" => "audio/wav",
        "mp3" => "audio/mpeg",
        "ogg" => "audio/ogg",
        "flac" => "audio/flac",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "zip" => "application/zip",
        _ => "application/octet-stream",
    }
}

pub async fn get(args: GetArgs) -> Result<(), Failure> {
    fetch(args.client.connect()?, &args.name, args.file, true).await
}

/// Gets a content into a file, by default one named as the key ends, and says so if `tell`.
pub async fn fetch(
    gateway: GatewayClient,
    name: &ContentName,
    file: Option<PathBuf>,
    tell: bool,
) -> Result<(), Failure> {
    let target = match file {
        Some(file) => file,
        None => file_name_of(name)?,
    };
    let response = gateway.send(Method::GET, &content_path(name)).await?;
    if target.as_os_str() == "-" {
        receive(response, name, &mut tokio::io::stdout()).await?;
        return Ok(());
    }
    let facts = delivery_facts(response.headers());
    let mut part = target.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    let received = receive_file(response, name, &part).await;
    let len = match received {
        Ok(len) => len,
        Err(failure) => {
            // The failure to tell is the transfer's.
            let _not_there = tokio::fs::remove_file(&part).await;
            return Err(failure);
        }
    };
    tokio::fs::rename(&part, &target).await.map_err(|e| Failure::file("writing", &target, &e))?;
    if !tell {
        return Ok(());
    }
    output::text_block(&format!("{name} -> {} ({})\n{facts}", target.display(), show_bytes(len)))
}

/// The last part of the key, if that is fit for a file name.
fn file_name_of(name: &ContentName) -> Result<PathBuf, Failure> {
    match name.key().rsplit('/').next() {
        Some(last) if !last.is_empty() && last != "." && last != ".." => Ok(PathBuf::from(last)),
        _ => Err(Failure::usage(format!("the key of {name} does not end in a file name"))
            .with_next_step("name the file: dozo get BUCKET/KEY FILE")),
    }
}

/// What the gateway says about the delivery, a line each.
fn delivery_facts(headers: &HeaderMap) -> String {
    let facts: [(&str, HeaderName); 5] =
        [("hash", ETAG), ("delivery", DELIVERY), ("class", CLASS), ("source", SOURCE), ("from", SOURCE_SITE)];
    let line = |(label, header): &(&str, HeaderName)| {
        let value = headers.get(header)?.to_str().ok()?.trim_matches('"');
        Some(format!("  {label:<8}  {value}\n"))
    };
    facts.iter().filter_map(line).collect()
}

async fn receive_file(response: Response<Incoming>, name: &ContentName, part: &Path) -> Result<u64, Failure> {
    let failed = |e: io::Error| Failure::file("writing", part, &e);
    let mut file = BufWriter::with_capacity(BLOCK_LEN, File::create(part).await.map_err(failed)?);
    receive(response, name, &mut file).await
}

/// Writes the body to `target` and compares its hash with the `ETag`. Answers with the length.
async fn receive(
    response: Response<Incoming>,
    name: &ContentName,
    target: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, Failure> {
    let header = |name: HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok());
    let total = header(CONTENT_LENGTH).and_then(|v| v.parse().ok()).unwrap_or(0);
    let expected = header(ETAG).and_then(|v| v.trim_matches('"').parse::<ContentHash>().ok());
    let progress = Progress::bytes(total, name.as_str());
    let (mut hasher, mut len) = (blake3::Hasher::new(), 0u64);
    let mut body = response.into_body();
    loop {
        let frame = tokio::time::timeout(STALL_MAX, body.frame()).await.map_err(|_| {
            Failure::new(format!("{name}: no byte came for {STALL_MAX:?}, after {len} bytes"))
        })?;
        let frame = match frame {
            None => break,
            Some(frame) => frame.map_err(|e| {
                Failure::new(format!("{name}: the transfer broke off after {len} of {total} bytes: {e}"))
                    .with_next_step("`dozo status` shows who is down; then get it again")
            })?,
        };
        if let Ok(bytes) = frame.into_data() {
            hasher.update(&bytes);
            target.write_all(&bytes).await.map_err(write_failed)?;
            len += bytes.len() as u64;
            progress.advance(bytes.len() as u64);
        }
    }
    target.flush().await.map_err(write_failed)?;
    progress.finish();
    let got = ContentHash::from(hasher.finalize());
    match expected {
        Some(expected) if expected != got => {
            Err(Failure::new(format!("{name} came with hash {got}, promised was {expected}"))
                .with_next_step("get it again; if it happens again, look for a faulty disk or network"))
        }
        Some(_) => Ok(len),
        None => Err(Failure::new(format!("{name} came without an ETag to check it against"))),
    }
}

fn write_failed(error: io::Error) -> Failure {
    Failure::new(format!("writing what was received: {error}"))
}

pub async fn ls(args: LsArgs) -> Result<(), Failure> {
    let gateway = args.client.connect()?;
    let (bucket, prefix) = args.place.split_once('/').unwrap_or((&args.place, ""));
    let bucket = BucketName::new(bucket)?;
    let mut array = args.output.json.then(JsonArray::begin);
    let (mut after, mut first) = (String::new(), true);
    loop {
        let (prefix, from) = (encode(prefix), encode(&after));
        let path = format!("/v1/contents/{bucket}?prefix={prefix}&after={from}&limit={PAGE_LEN}");
        let page: ContentListing = gateway.get_json(&path).await?;
        for content in &page.contents {
            match &mut array {
                Some(array) => array.item(content)?,
                None => {
                    if first {
                        output::line(&format!("{:>14}  {:<24}  {:<28}  key", "bytes", "modified", "type"))?;
                    }
                    output::line(&listed(content))?;
                }
            }
            first = false;
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    array.map_or(Ok(()), JsonArray::end)
}

fn listed(content: &ListedContent) -> String {
    let ListedContent { key, len, media_type, modified, .. } = content;
    format!("{len:>14}  {:<24}  {media_type:<28}  {key}", modified.to_string())
}

pub async fn library(args: LibraryArgs) -> Result<(), Failure> {
    let gateway = args.client.connect()?;
    let mut array = args.output.json.then(JsonArray::begin);
    let (mut after, mut first) = (String::new(), true);
    loop {
        let (prefix, from) = (encode(&args.prefix), encode(&after));
        let path = format!("/v1/library?prefix={prefix}&after={from}&limit={PAGE_LEN}");
        let page: LibraryPage = gateway.get_json(&path).await?;
        for row in &page.rows {
            match &mut array {
                Some(array) => array.item(row)?,
                None => {
                    if first {
                        output::line(&format!(
                            "{:>14}  {:>10}  {:<24}  {:<12}  name",
                            "bytes", "deliveries", "held since", "provider"
                        ))?;
                    }
                    output::line(&held(row))?;
                }
            }
            first = false;
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    array.map_or(Ok(()), JsonArray::end)
}

fn held(row: &LibraryRow) -> String {
    let LibraryRow { name, len, provider, since, deliveries, .. } = row;
    let (since, provider) = (since.to_string(), provider.as_str());
    format!("{len:>14}  {deliveries:>10}  {since:<24}  {provider:<12}  {name}")
}

pub async fn rm(args: RmArgs) -> Result<(), Failure> {
    let gateway = args.client.connect()?;
    let name = &args.name;
    if args.from_library {
        let path = format!("/v1/library/{}/{}", name.bucket(), encode_key(name.key()));
        gateway.send(Method::DELETE, &path).await?;
        return output::line(&format!("{name} is no longer in the library of {}", args.client.client));
    }
    gateway.send(Method::DELETE, &content_path(name)).await?;
    output::line(&format!("{name} is withdrawn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_encoded_part_by_part() {
        let name: ContentName = "alice/a b/ü?.txt".parse().unwrap();
        assert_eq!(content_path(&name), "/v1/contents/alice/a%20b/%C3%BC%3F.txt");
    }

    #[test]
    fn a_key_that_ends_in_a_slash_gets_the_files_name() {
        let file = Path::new("/tmp/song.wav");
        assert_eq!(target_name("alice/music/", file).unwrap().as_str(), "alice/music/song.wav");
        assert_eq!(target_name("alice/x", file).unwrap().as_str(), "alice/x");
        assert!(target_name("alice", file).is_err());
    }

    #[test]
    fn a_key_never_becomes_a_path_outside_the_folder() {
        let name = |text: &str| text.parse::<ContentName>().unwrap();
        assert_eq!(file_name_of(&name("alice/../../etc/passwd")).unwrap(), Path::new("passwd"));
        for bad in ["alice/..", "alice/a/", "alice/x/."] {
            assert!(file_name_of(&name(bad)).is_err(), "{bad}");
        }
    }
}
