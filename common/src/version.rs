//! Versions of a content name: the newest wins everywhere, without trusting any one clock's order.

use serde::{Deserialize, Serialize};

use crate::hash::ContentHash;
use crate::time::UnixMillis;

/// One version of a name: a hybrid logical time, ties broken by the content's hash.
///
/// The time is milliseconds since 1970 shifted left by 16 bits, plus a counter: a writer takes
/// `max(now, newest seen + 1)`, so a later write is newer even when its machine's clock is behind.
/// (Kulkarni et al., "Logical Physical Clocks", 2014.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    pub time: HybridTime,
    pub hash: ContentHash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// A time after `seen` and not before `now`.
    pub fn next(now: UnixMillis, seen: Option<HybridTime>) -> Self {
        let physical = now.0 << 16;
        Self(seen.map_or(physical, |s| physical.max(s.0 + 1)))
    }

    pub fn millis(self) -> UnixMillis {
        UnixMillis(self.0 >> 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_write_is_newer_even_when_the_clock_went_back() {
        let first = HybridTime::next(UnixMillis(5_000), None);
        let second = HybridTime::next(UnixMillis(1_000), Some(first));
        assert!(second > first);
        assert_eq!(second.millis(), UnixMillis(5_000));
    }
}
