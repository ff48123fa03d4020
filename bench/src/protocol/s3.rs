//! The little XML that S3 speaks.

use common::client::encode;
use quick_xml::Reader;
use quick_xml::events::Event;

/// Length of the parts of a content that is put in parts; S3 takes no smaller than 5 MiB but for the last.
pub const PART_LEN: u64 = 8 << 20;

/// One object of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    pub etag: String,
    pub len: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub objects: Vec<Object>,
    pub truncated: bool,
}

/// The query of a listing, in the order in which it is signed.
pub fn list_query(prefix: &str, after: &str, max: u64) -> String {
    let (prefix, after) = (encode(prefix), encode(after));
    let start = if after.to_string().is_empty() { String::new() } else { format!("&start-after={after}") };
    format!("list-type=2&max-keys={max}&prefix={prefix}{start}")
}

/// Calls `each` with every element that has only text in it: the name of the element around it, its own, and the text.
fn texts(xml: &[u8], mut each: impl FnMut(&str, &str, String)) -> Option<()> {
    let mut reader = Reader::from_reader(xml);
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => {
                path.push(String::from_utf8_lossy(start.local_name().as_ref()).into_owned());
                text.clear();
            }
            Event::Text(part) => text.push_str(&part.decode().ok()?),
            Event::GeneralRef(reference) => {
                let name = reference.decode().ok()?;
                match reference.resolve_char_ref().ok()? {
                    Some(character) => text.push(character),
                    None => text.push_str(quick_xml::escape::resolve_predefined_entity(&name)?),
                }
            }
            Event::End(_) => {
                let name = path.pop()?;
                each(path.last().map_or("", String::as_str), &name, std::mem::take(&mut text));
            }
            Event::Eof => return Some(()),
            _ => {}
        }
    }
}

/// The text of the first element of this name.
pub fn first(xml: &[u8], wanted: &str) -> Option<String> {
    let mut found = None;
    texts(xml, |_, name, text| {
        if name == wanted && found.is_none() {
            found = Some(text);
        }
    })?;
    found
}

/// Answer to `GET ?list-type=2`; `None` when it is not one.
pub fn parse_listing(xml: &[u8]) -> Option<Listing> {
    let mut listing = Listing::default();
    let mut object = Object::default();
    let mut known = false;
    texts(xml, |parent, name, text| match (parent, name) {
        ("Contents", "Key") => object.key = text,
        ("Contents", "ETag") => object.etag = text,
        ("Contents", "Size") => object.len = text.trim().parse().unwrap_or(u64::MAX),
        (_, "Contents") => listing.objects.push(std::mem::take(&mut object)),
        (_, "IsTruncated") => listing.truncated = text.trim() == "true",
        (_, "ListBucketResult") => known = true,
        _ => {}
    })?;
    known.then_some(listing)
}

/// What completes a content that was put in parts.
pub fn part_list(etags: &[String]) -> String {
    let part = |(number, etag): (usize, &String)| {
        let etag = quick_xml::escape::escape(etag.as_str());
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    };
    let parts: String = (1..).zip(etags).map(part).collect();
    format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
}

/// Whether a bucket was refused because it is there.
pub fn is_there_already(code: &str) -> bool {
    code == "BucketAlreadyOwnedByYou" || code == "BucketAlreadyExists"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_and_errors_are_read() {
        let xml = br#"<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <IsTruncated>true</IsTruncated><Contents><Key>a&amp;b/1</Key><ETag>&quot;e1&quot;</ETag><Size>12</Size>
            </Contents><Contents><Key>c</Key><Size>0</Size><ETag>"e2"</ETag></Contents></ListBucketResult>"#;
        let listing = parse_listing(xml).unwrap();
        let object = |key: &str, etag: &str, len| Object { key: key.into(), etag: etag.into(), len };
        assert_eq!(listing.objects, [object("a&b/1", "\"e1\"", 12), object("c", "\"e2\"", 0)]);
        assert!(listing.truncated);
        let error = b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>";
        assert_eq!(first(error, "Code").as_deref(), Some("NoSuchKey"));
        assert_eq!((parse_listing(error), first(error, "X"), first(b"{}", "Code")), (None, None, None));
    }

    #[test]
    fn what_is_asked_is_written_as_it_is_signed() {
        assert_eq!(list_query("a/b", "", 10), "list-type=2&max-keys=10&prefix=a%2Fb");
        assert_eq!(list_query("a", "a/1", 10), "list-type=2&max-keys=10&prefix=a&start-after=a%2F1");
        assert_eq!(
            part_list(&["\"x\"".into()]),
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;x&quot;</ETag></Part>\
             </CompleteMultipartUpload>"
        );
    }
}
