//! BLAKE3 hashes of contents and chunks (what `b3sum` prints), as distinct types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{InvalidId, deserialize_text};

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    f.write_str(hex_digits(bytes, &mut [0; 64]))
}

/// At most 32 bytes as hexadecimal digits.
pub(crate) fn hex_digits<'a>(bytes: &[u8], text: &'a mut [u8; 64]) -> &'a str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (digits, byte) in text.chunks_exact_mut(2).zip(bytes) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
    // Cannot fail: they are digits.
    std::str::from_utf8(&text[..2 * bytes.len()]).unwrap_or_default()
}

/// The value of each byte as a hexadecimal digit; those that are none have [`NO_DIGIT`].
const DIGIT_VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        values[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    values
};
const NO_DIGIT: u8 = 0xFF;

pub(crate) fn parse_hex(text: &str, out: &mut [u8]) -> Result<(), ()> {
    let text = text.as_bytes();
    if text.len() != 2 * out.len() {
        return Err(());
    }
    let mut seen = 0;
    for (digits, byte) in text.chunks_exact(2).zip(out) {
        let [high, low] = [0, 1].map(|place| DIGIT_VALUES[usize::from(digits[place])]);
        seen |= high | low;
        *byte = high << 4 | (low & 0xF);
    }
    if seen == NO_DIGIT { Err(()) } else { Ok(()) }
}

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String))]
        pub struct $name([u8; 32]);

        impl $name {
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// First ten hexadecimal digits, for logs.
            pub fn short(&self) -> String {
                self.to_string()[..10].to_owned()
            }
        }

        impl From<blake3::Hash> for $name {
            fn from(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0[..5])
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let mut bytes = [0u8; 32];
                parse_hex(text, &mut bytes)
                    .map_err(|()| InvalidId::new($kind, text, "64 hexadecimal digits"))?;
                Ok(Self(bytes))
            }
        }

        // Text in JSON, 32 raw bytes in binary formats (the log on disk).
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    // Not through a formatter: records and chunk lists have many.
                    serializer.serialize_str(hex_digits(&self.0, &mut [0; 64]))
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    deserialize_text(deserializer)
                } else {
                    <[u8; 32]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

hash_type!(
    /// BLAKE3 of a whole content: its identity, and its ETag.
    ContentHash, "content hash"
);
hash_type!(
    /// BLAKE3 of one chunk: its address on the storage nodes.
    ChunkHash, "chunk hash"
);
hash_type!(
    /// BLAKE3 over a delivery record and the digest before it: a link of the record chain.
    RecordDigest, "record digest"
);
hash_type!(
    /// BLAKE3 keyed hash by which a home site proves that it confirmed a possession.
    PossessionProof, "possession proof"
);

impl RecordDigest {
    /// What the first record of a chain is linked to.
    pub const ZERO: Self = Self([0; 32]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_what_b3sum_prints() {
        let empty = ContentHash::of(b"");
        let text = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(empty.to_string(), text);
        assert_eq!(text.parse::<ContentHash>().unwrap(), empty);
        assert_eq!(serde_json::to_string(&empty).unwrap(), format!("\"{text}\""));
        assert_eq!(postcard::to_stdvec(&empty).unwrap().len(), 32);
        assert!("abc".parse::<ChunkHash>().is_err());
        for wrong in ["g", "/", ":", "@", "G", "`", "\u{e9}", " "] {
            let text = format!("{wrong}{}", &text[wrong.len()..]);
            assert!(text.parse::<ContentHash>().is_err(), "{text}");
        }
        assert_eq!(text.to_uppercase().parse::<ContentHash>().unwrap(), empty);
    }
}
