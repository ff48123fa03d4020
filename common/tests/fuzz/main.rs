//! Every decoder of this crate, fed with rotten encodings; see [`driver`].

#![expect(clippy::unwrap_used, reason = "a panic is how a target fails")]

mod driver;

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use common::api::mobile_access::{AccessAnswer, AccessRequest, REQUEST_LEN};
use common::auth::{ClusterSecret, Role, TokenError};
use common::card::PublicKey;
use common::hash::{ChunkHash, ContentHash};
use common::id::{BucketName, ClientId, DeliveryId, NodeId, ServerName, SiteId};
use common::manifest::{ChunkList, ChunkRef, Manifest, check_chunks, slices};
use common::name::ContentName;
use common::range::{RangeError, Wanted, parse};
use common::time::UnixMillis;
use common::visit::{Authorization, Challenge, Nonce, Visitor};
use driver::{ROUNDS, Target, corpus, fuzz};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn run(name: &str, target: Target, examples: &[Vec<u8>]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    fuzz(target, ROUNDS, &corpus(&path, examples));
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// The first bytes as a number, and the rest.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    let (head, rest) = bytes.split_at(bytes.len().min(8));
    let mut number = [0; 8];
    number[..head.len()].copy_from_slice(head);
    (u64::from_le_bytes(number), rest)
}

/// The length of a content, then a header.
fn range_header(bytes: &[u8]) {
    let (len, header) = number(bytes);
    let header = String::from_utf8_lossy(header);
    match parse(Some(&header), len) {
        Ok(Wanted::Part(part)) => {
            assert!(part.start < part.end && part.end <= len);
            let again = format!("bytes={}-{}", part.start, part.end - 1);
            assert_eq!(parse(Some(&again), len), Ok(Wanted::Part(part)));
        }
        Ok(Wanted::Whole) => assert!(!header.starts_with("bytes=") || header.contains(',')),
        Err(RangeError::Unsatisfiable { len: told }) => assert_eq!(told, len),
        Err(RangeError::Malformed(told)) => assert!(told.chars().count() <= 80),
    }
}

#[test]
fn a_range_is_within_the_content() {
    let headers =
        ["bytes=0-", "bytes=5-9", "bytes=-7", "bytes=0-1,4-5", "bytes = 1 - 2", "items=0-1", "bytes=9-5"];
    let of_len = |len: u64| {
        headers.iter().map(move |header| [len.to_le_bytes().as_slice(), header.as_bytes()].concat())
    };
    let examples: Vec<Vec<u8>> = [0, 1, 8, 100, u64::MAX].into_iter().flat_map(of_len).collect();
    run("range", range_header, &examples);
}

/// A value that was read is written and read again as itself, in every form that it has.
fn survives_every_form<T>(value: &T)
where
    T: FromStr + Display + Debug + PartialEq + Serialize + DeserializeOwned,
    <T as FromStr>::Err: Debug,
{
    assert_eq!(&value.to_string().parse::<T>().unwrap(), value);
    assert_eq!(&serde_json::from_str::<T>(&serde_json::to_string(value).unwrap()).unwrap(), value);
    assert_eq!(&postcard::from_bytes::<T>(&postcard::to_stdvec(value).unwrap()).unwrap(), value);
}

fn content_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(name) = text.parse::<ContentName>() {
        assert_eq!(name.as_str(), text);
        assert_eq!(format!("{}/{}", name.bucket(), name.key()), text);
        assert!((1..=ContentName::KEY_LEN_MAX).contains(&name.key().len()) && !text.contains('\0'));
        assert_eq!(ContentName::new(&name.bucket_name(), name.key()).unwrap(), name);
        survives_every_form(&name);
    }
}

#[test]
fn a_content_name_is_its_text() {
    let long = format!("alice/{}", "k".repeat(1024));
    run(
        "content-name",
        content_name,
        &texts(&["alice/song.wav", "a.b-c/../x//y", "bob/日本語 +%.txt", &long]),
    );
}

fn any_id(bytes: &[u8]) {
    fn check<T>(text: &str)
    where
        T: FromStr + Display + Debug + PartialEq + Serialize + DeserializeOwned,
        <T as FromStr>::Err: Debug,
    {
        if let Ok(id) = text.parse::<T>() {
            assert!(id.to_string().eq_ignore_ascii_case(text));
            survives_every_form(&id);
        }
    }
    let text = String::from_utf8_lossy(bytes);
    check::<SiteId>(&text);
    check::<ClientId>(&text);
    check::<BucketName>(&text);
    check::<DeliveryId>(&text);
    check::<ContentHash>(&text);
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(format!("{}.{}", node.site(), node.name()), text);
        survives_every_form(&node);
    }
}

#[test]
fn an_id_is_its_text() {
    let hash = ContentHash::of(b"x").to_string();
    run("id", any_id, &texts(&["tokyo", "tokyo.n1", "my.bucket-1", &hash[..32], &hash, &"x".repeat(40)]));
}

fn stored_chunk_list(bytes: &[u8]) {
    let decoded = ChunkList::decode(bytes);
    assert_eq!(decoded.is_ok(), bytes.len().is_multiple_of(ChunkRef::ENCODED_LEN));
    let Ok(chunks) = decoded else { return };
    assert_eq!(ChunkList::encode(&chunks), bytes);
    let len = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    let range = len / 3..len - len / 4;
    if check_chunks(&chunks, len).is_ok() {
        let pieces = slices(&chunks, range.clone());
        assert_eq!(
            pieces.iter().map(|piece| piece.wanted.len() as u64).sum::<u64>(),
            range.end - range.start
        );
    }
}

fn chunks(count: u8) -> Vec<ChunkRef> {
    (0..count).map(|n| ChunkRef { hash: ChunkHash::of(&[n]), len: u32::from(n) * 65_000 + 1 }).collect()
}

#[test]
fn a_stored_chunk_list_is_its_bytes() {
    run("chunk-list", stored_chunk_list, &[0, 1, 3, 30].map(|count| ChunkList::encode(&chunks(count))));
}

/// In JSON, as servers send it.
fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let json = serde_json::to_vec(&manifest).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&json).unwrap(), manifest);
        if manifest.check().is_ok() {
            assert!(
                manifest.chunk_count() <= ChunkList::COUNT_MAX
                    || matches!(manifest.chunks, ChunkList::Inline(_))
            );
        }
    }
}

#[test]
fn a_manifest_survives_json() {
    let of = |chunks: ChunkList, len| Manifest {
        hash: ContentHash::of(b"content"),
        len,
        media_type: "audio/wav".into(),
        metadata: [("artist".to_owned(), "alice".to_owned())].into(),
        chunks,
    };
    let list = ChunkRef { hash: ChunkHash::of(b"list"), len: 3600 };
    let examples = [of(ChunkList::Inline(chunks(3)), 195_003), of(ChunkList::Stored { list, count: 100 }, 7)];
    run("manifest", manifest, &examples.map(|manifest| serde_json::to_vec(&manifest).unwrap()));
}

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn secret() -> ClusterSecret {
    ClusterSecret::new("a secret for tests, which is long enough").unwrap()
}

fn verify<'a>(secret: &ClusterSecret, header: &'a str) -> Result<&'a str, TokenError> {
    secret.verify(Some(header), Role::StorageNode, "GET", "/v1/x?a=1", NOW)
}

/// A header that came over the wire: good only if it says what a signed one of the corpus said.
fn server_token(bytes: &[u8]) {
    let header = String::from_utf8_lossy(bytes);
    if let Ok(caller) = verify(&secret(), &header) {
        let parts: Vec<&str> = header.split(' ').collect();
        assert_eq!(parts.len(), 5);
        assert_eq!(caller, parts[1]);
        assert!(SIGNED.iter().any(|signed| {
            let signed: Vec<&str> = signed.split(' ').collect();
            let is_same_time = signed[2].parse::<u64>() == parts[2].parse();
            is_same_time
                && signed[1] == parts[1]
                && signed[3] == parts[3]
                && signed[4].eq_ignore_ascii_case(parts[4])
        }));
    }
}

/// Made with [`secret`] at [`NOW`].
const SIGNED: [&str; 2] = [
    "Dozo tokyo.n1 1790000000000 ebcf74dce38ac4f5-0 5bef875ff8f9846a2a1e07f1e82b6dc241b30fe7733949e8b29cb37d930f2064",
    "Dozo gateway 1790000000000 ebcf74dce38ac4f5-1 3cca86ecd51b6f1ec6cc6966d4c5650d08039984739f4237bac543050d671d41",
];

#[test]
fn a_server_token_cannot_be_made_from_others() {
    for header in SIGNED {
        assert!(verify(&secret(), header).is_ok(), "tokens of an earlier version are good: {header}");
    }
    run("server-token", server_token, &texts(&SIGNED));
}

/// Caller, method and path, parted by line ends, as they are signed.
fn signed_call(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\n');
    let (Some(caller), Some(method), Some(path)) = (parts.next(), parts.next(), parts.next()) else { return };
    let secret = secret();
    let header = secret.sign(caller, Role::Search, method, path, NOW);
    let verified = secret.verify(Some(&header), Role::Search, method, path, NOW);
    // A space parts the fields of a token, so a caller with one is nobody, and never somebody else.
    let expected = if caller.contains(' ') { Err(TokenError::Malformed) } else { Ok(caller) };
    assert_eq!(verified, expected);
    let other = secret.verify(Some(&header), Role::Search, method, &format!("{path}x"), NOW);
    assert!(other.is_err());
}

#[test]
fn a_signed_call_names_its_caller() {
    run("signed-call", signed_call, &texts(&["tokyo.n1\nGET\n/v1/x?a=1", "g1\nPUT\n/", "a b\nGET\n/x"]));
}

const CHALLENGE: &str = "01056f73616b61056361726f6c4030313031303130313031303130313031303130313031303130313031303130313031\
    303130313031303130313031303130313031303130313031303130313031026d3105746f6b796f80d8c1a28c34020202\
    0202020202020202020202020253f7d8759a59465e1d77f56fc2afcc786dc029061dc52298ec923bed299e0a3b";
const TOKEN: &str = "01056f73616b61056361726f6c4030313031303130313031303130313031303130313031303130313031303130313031\
    303130313031303130313031303130313031303130313031303130313031403033303330333033303330333033303330\
    333033303330333033303330333033303330333033303330333033303330333033303330333033303330333033303305\
    746f6b796f026d3180d8c1a28c34a0cff8a28c3400000000f502624f67d790a21ce4576a818f2547c2ce2bd6fee67c39\
    c9dbd5f7692e4e8a";

fn osaka() -> SiteId {
    SiteId::new("osaka").unwrap()
}

fn tokyo() -> SiteId {
    SiteId::new("tokyo").unwrap()
}

/// Whatever a stranger sends for a challenge or a token: taken only if it is one that was sealed.
fn sealed(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if Challenge::open(&text, &secret(), &osaka(), NOW).is_ok() {
        assert!(text.eq_ignore_ascii_case(CHALLENGE));
    }
    if Visitor::open(&text, &secret(), &tokyo(), NOW).is_ok() {
        assert!(text.eq_ignore_ascii_case(TOKEN));
    }
    let _either = Challenge::read(&text);
    if let Some(given) = Authorization::parse(&text) {
        assert!(text.starts_with(given.token));
    }
}

#[test]
fn nothing_is_sealed_but_by_those_who_have_the_secret() {
    assert!(Challenge::open(CHALLENGE, &secret(), &osaka(), NOW).is_ok(), "of an earlier version");
    assert!(Visitor::open(TOKEN, &secret(), &tokyo(), NOW).is_ok(), "of an earlier version");
    let signed = format!("{TOKEN} {} {} {}", NOW.0, "00".repeat(16), "11".repeat(64));
    run("sealed", sealed, &texts(&[CHALLENGE, TOKEN, &signed]));
}

/// A datagram of anybody is read as itself or not at all.
fn datagram(bytes: &[u8]) {
    if let Ok(request) = AccessRequest::decode(bytes) {
        assert_eq!(AccessRequest::decode(&request.encode()), Ok(request));
    }
    if let Ok(answer) = AccessAnswer::decode(bytes) {
        assert!(answer.encode().len() <= REQUEST_LEN);
    }
}

#[test]
fn a_datagram_is_read_as_itself() {
    let request = AccessRequest {
        client: ClientId::new("carol").unwrap(),
        home: osaka(),
        card: PublicKey::from_bytes([1; 32]),
        nonce: Nonce([2; 16]),
    };
    let name = ServerName::new("mobile-access").unwrap();
    let answer = AccessAnswer { nonce: Nonce([2; 16]), name, http: "http://127.0.0.1:8004".into() };
    run("datagram", datagram, &[request.encode(), answer.encode()]);
}
