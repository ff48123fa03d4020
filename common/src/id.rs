//! Names of sites, servers, clients and buckets, and the ids of nodes and deliveries.
//!
//! Each is a newtype that is checked when it is made, so a value that exists is valid. They are
//! written into URLs, logs, metrics targets and the log on disk, hence the narrow alphabets.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name that breaks its rule: says which kind, what was given and what the rule is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {given:?} is not valid: {rule}")]
pub struct InvalidId {
    pub kind: &'static str,
    pub given: String,
    pub rule: &'static str,
}

impl InvalidId {
    pub(crate) fn new(kind: &'static str, given: &str, rule: &'static str) -> Self {
        let given = given.chars().take(80).collect();
        Self { kind, given, rule }
    }
}

/// Reads a value that is written as text, without a copy of the text.
pub(crate) fn deserialize_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err = InvalidId>,
    D: Deserializer<'de>,
{
    struct Text<T>(PhantomData<T>);

    impl<T: FromStr<Err = InvalidId>> Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("text")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Text(PhantomData))
}

fn is_label(text: &str, min: usize, max: usize, extra: &[u8]) -> bool {
    let bytes = text.as_bytes();
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (min..=max).contains(&bytes.len())
        && bytes.iter().all(|b| word(b) || extra.contains(b))
        && bytes.first().is_some_and(word)
        && bytes.last().is_some_and(word)
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
        #[schemars(inline)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                Self::check(text).map(|()| Self(text.into()))
            }

            /// Whether text follows the rule.
            pub(crate) fn check(text: &str) -> Result<(), InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(()) } else { Err(InvalidId::new($kind, text, $rule)) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_text(deserializer)
            }
        }
    };
}

text_id!(
    /// A site: gateways and storage nodes that serve the same clients.
    SiteId, "site", "1 to 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    |t| is_label(t, 1, 40, b"-")
);
text_id!(
    /// A server's short name, unique in its site (`n1`, `g1`) or, for servers without a site, in the cluster.
    ServerName, "server name", "1 to 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    |t| is_label(t, 1, 40, b"-")
);
text_id!(
    /// A client: who asks, holds, provides and pays.
    ClientId, "client", "1 to 40 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
    |t| is_label(t, 1, 40, b"-")
);
text_id!(
    /// A bucket: the first part of a content name; belongs to one client, its provider.
    BucketName, "bucket", "3 to 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit",
    |t| is_label(t, 3, 63, b"-.") && !t.contains("..")
);
text_id!(
    /// A storage node in the whole cluster: `site.name`, as in `tokyo.n1`. Stable for the node's life.
    NodeId, "node", "SITE.NAME, each 1 to 40 of a-z, 0-9 and '-'",
    |t| t.split_once('.').is_some_and(|(s, n)| is_label(s, 1, 40, b"-") && is_label(n, 1, 40, b"-"))
);

impl NodeId {
    pub fn of(site: &SiteId, name: &ServerName) -> Self {
        Self(format!("{site}.{name}").into())
    }

    pub fn site(&self) -> &str {
        self.0.split_once('.').map_or("", |(site, _)| site)
    }

    pub fn name(&self) -> &str {
        self.0.split_once('.').map_or("", |(_, name)| name)
    }
}

/// One act of delivery to one client: the unit of billing. 128 bits, made by the gateway before it asks a
/// node to record the delivery, so that a repeated request is recognised. The first 48 bits are
/// milliseconds since 1970, so ids sort by time (as in RFC 9562, version 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String))]
pub struct DeliveryId([u8; 16]);

impl DeliveryId {
    pub fn generate(now: crate::time::UnixMillis) -> Self {
        let mut bytes = [0u8; 16];
        bytes[..6].copy_from_slice(&now.0.to_be_bytes()[2..]);
        crate::auth::fill_random(&mut bytes[6..]);
        Self(bytes)
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::hash::write_hex(f, &self.0)
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeliveryId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let mut bytes = [0u8; 16];
        crate::hash::parse_hex(text, &mut bytes)
            .map_err(|()| InvalidId::new("delivery id", text, "32 hexadecimal digits"))?;
        Ok(Self(bytes))
    }
}

// Text in every format: so the rows of earlier versions have it.
impl Serialize for DeliveryId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(crate::hash::hex_digits(&self.0, &mut [0; 64]))
    }
}

impl<'de> Deserialize<'de> for DeliveryId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_text(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_their_alphabet_are_refused_with_the_rule() {
        for bad in ["", "-a", "a-", "A", "a b", "a/b", "a.b", &"x".repeat(41)] {
            let error = SiteId::new(bad).unwrap_err();
            assert!(error.to_string().contains("1 to 40"), "{error}");
        }
        assert!(SiteId::new("tokyo-2").is_ok());
        assert!(BucketName::new("ab").is_err());
        assert!(BucketName::new("a..b").is_err());
        assert!(BucketName::new("my.bucket-1").is_ok());
    }

    #[test]
    fn a_node_id_is_its_site_and_name() {
        let id = NodeId::of(&SiteId::new("tokyo").unwrap(), &ServerName::new("n1").unwrap());
        assert_eq!((id.as_str(), id.site(), id.name()), ("tokyo.n1", "tokyo", "n1"));
        assert!(NodeId::new("tokyo").is_err());
    }

    #[test]
    fn delivery_ids_sort_by_time_and_survive_text() {
        let a = DeliveryId::generate(crate::time::UnixMillis(1_000));
        let b = DeliveryId::generate(crate::time::UnixMillis(2_000));
        assert!(a < b);
        assert_eq!(a.to_string().parse::<DeliveryId>().unwrap(), a);
    }
}
