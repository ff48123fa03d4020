//! The HTTP `Range` header for one range of bytes (RFC 9110, section 14).

use std::ops::Range;

/// What a request asks of a content of a known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// No range, or one that the rules say to ignore (another unit, several ranges).
    Whole,
    /// `206`: these bytes; never empty.
    Part(Range<u64>),
}

/// Refused ranges; each has its own answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// `400`: not a range at all.
    #[error("the Range header {0:?} is not valid: use bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT")]
    Malformed(String),
    /// `416`: begins at or after the end.
    #[error("the range begins beyond the content's {len} bytes")]
    Unsatisfiable { len: u64 },
}

/// Reads a `Range` header against a content of `len` bytes.
///
/// Several ranges in one header are answered with the whole content, as RFC 9110 allows.
pub fn parse(header: Option<&str>, len: u64) -> Result<Wanted, RangeError> {
    let Some(header) = header else { return Ok(Wanted::Whole) };
    let malformed = || RangeError::Malformed(header.chars().take(80).collect());
    let (unit, spec) = header.split_once('=').ok_or_else(malformed)?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return Ok(Wanted::Whole);
    }
    let (first, last) = spec.trim().split_once('-').ok_or_else(malformed)?;
    let number = |text: &str| -> Result<Option<u64>, RangeError> {
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        // More digits than a u64 holds is far beyond any end.
        Ok(Some(text.parse().unwrap_or(u64::MAX)))
    };
    match (number(first.trim())?, number(last.trim())?) {
        (None, None) => Err(malformed()),
        (Some(first), Some(last)) if first > last => Err(malformed()),
        (Some(first), _) if first >= len => Err(RangeError::Unsatisfiable { len }),
        (Some(first), last) => Ok(Wanted::Part(first..last.map_or(len, |l| l.saturating_add(1).min(len)))),
        (None, Some(0)) => Err(RangeError::Unsatisfiable { len }),
        (None, Some(_)) if len == 0 => Err(RangeError::Unsatisfiable { len }),
        (None, Some(count)) => Ok(Wanted::Part(len - count.min(len)..len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_rfc_9110() {
        use RangeError::{Malformed, Unsatisfiable};
        let of_100 = |text| parse(Some(text), 100);
        assert_eq!(parse(None, 100), Ok(Wanted::Whole));
        assert_eq!(of_100("bytes=0-"), Ok(Wanted::Part(0..100)));
        assert_eq!(of_100("bytes=0-0"), Ok(Wanted::Part(0..1)));
        assert_eq!(of_100("bytes=90-200"), Ok(Wanted::Part(90..100)));
        assert_eq!(of_100("bytes=-10"), Ok(Wanted::Part(90..100)));
        assert_eq!(of_100("bytes=-1000"), Ok(Wanted::Part(0..100)));
        assert_eq!(of_100("items=1-2"), Ok(Wanted::Whole));
        assert_eq!(of_100("bytes=0-1,5-6"), Ok(Wanted::Whole));
        assert_eq!(of_100("bytes=0-99999999999999999999999"), Ok(Wanted::Part(0..100)));
        assert_eq!(of_100("bytes=100-"), Err(Unsatisfiable { len: 100 }));
        assert_eq!(of_100("bytes=-0"), Err(Unsatisfiable { len: 100 }));
        for bad in ["bytes", "bytes=", "bytes=-", "bytes=5-2", "bytes=a-b", "bytes=+1-2", "bytes=1"] {
            assert!(matches!(of_100(bad), Err(Malformed(_))), "{bad}");
        }
        assert_eq!(parse(Some("bytes=0-"), 0), Err(Unsatisfiable { len: 0 }));
    }

    proptest! {
        #[test]
        fn never_panics_and_parts_are_in_bounds(text in "(bytes=)?[0-9,\\- a-z=]{0,24}", len in 0u64..1000) {
            if let Ok(Wanted::Part(range)) = parse(Some(&text), len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }
    }
}
