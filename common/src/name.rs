//! Content names: `bucket/key`.
//!
//! A key is any UTF-8 text of 1 to 1024 bytes, as S3 allows it. It is a name in an index and never a
//! path in a file system, so `..`, `//` or a leading slash mean nothing special.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{BucketName, InvalidId, deserialize_text};

/// The name a client asks for: a bucket and a key in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentName {
    text: Arc<str>,
    bucket_len: u8,
}

impl ContentName {
    /// Longest key, in bytes of UTF-8.
    pub const KEY_LEN_MAX: usize = 1024;

    pub fn new(bucket: &BucketName, key: &str) -> Result<Self, InvalidId> {
        check_key(key)?;
        let bucket_len = bucket.as_str().len() as u8; // a bucket has at most 63 bytes
        Ok(Self { text: format!("{bucket}/{key}").into(), bucket_len })
    }

    pub fn bucket(&self) -> &str {
        &self.text[..usize::from(self.bucket_len)]
    }

    pub fn bucket_name(&self) -> BucketName {
        BucketName::new(self.bucket()).expect("checked when this name was made")
    }

    pub fn key(&self) -> &str {
        &self.text[usize::from(self.bucket_len) + 1..]
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for ContentName {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let text = utoipa::openapi::Object::with_type(utoipa::openapi::Type::String);
        utoipa::openapi::Schema::Object(text).into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for ContentName {}

impl fmt::Display for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.text)
    }
}

impl FromStr for ContentName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (bucket, key) =
            text.split_once('/').ok_or_else(|| InvalidId::new("content name", text, "BUCKET/KEY"))?;
        BucketName::check(bucket)?;
        check_key(key)?;
        Ok(Self { text: text.into(), bucket_len: bucket.len() as u8 })
    }
}

fn check_key(key: &str) -> Result<(), InvalidId> {
    if key.is_empty() || key.len() > ContentName::KEY_LEN_MAX || key.contains('\0') {
        return Err(InvalidId::new("key", key, "1 to 1024 bytes of UTF-8 without NUL"));
    }
    Ok(())
}

impl Serialize for ContentName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ContentName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_names_not_paths() {
        for key in ["a", "../../etc/passwd", "/leading", "a//b", "日本語 +%.txt", &"k".repeat(1024)] {
            let name: ContentName = format!("alice/{key}").parse().unwrap();
            assert_eq!((name.bucket(), name.key()), ("alice", key));
        }
    }

    #[test]
    fn names_without_bucket_or_key_are_refused() {
        for bad in
            ["", "alice", "alice/", "/key", "AL/x", &format!("alice/{}", "k".repeat(1025)), "alice/a\0b"]
        {
            assert!(bad.parse::<ContentName>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_valid_key_survives_text_and_json(key in "\\PC{1,200}") {
            prop_assume!(key.len() <= 1024);
            let name = ContentName::new(&BucketName::new("some-bucket").unwrap(), &key).unwrap();
            prop_assert_eq!(name.as_str().parse::<ContentName>().unwrap(), name.clone());
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<ContentName>(&json).unwrap(), name);
        }
    }
}
