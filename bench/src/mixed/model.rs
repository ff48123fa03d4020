//! What one worker knows of its own keys. Nobody else writes them, so what a read or a listing must show is known
//! exactly: the last acknowledged version, or that there is none.

use std::collections::{BTreeMap, BTreeSet};

use common::hash::ContentHash;

use crate::content::Content;
use crate::protocol::Listed;

/// A content under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub content: Content,
    /// What answers and listings name it by: the hash of its bytes where the protocol says that, else of what it says.
    pub hash: ContentHash,
}

impl Version {
    pub fn of(content: Content) -> Self {
        Self { content, hash: content.hash() }
    }
}

#[derive(Debug, Default)]
struct Key {
    /// A key whose state is not known is given up; its place goes on under the next name.
    generation: u32,
    present: Option<Version>,
    /// What was there before the last change, to tell what a stale answer shows.
    before: Option<Version>,
    in_doubt: bool,
}

/// The keys of one worker.
#[derive(Debug)]
pub struct Keys {
    bucket: String,
    prefix: String,
    keys: Vec<Key>,
    given_up: BTreeSet<String>,
}

impl Keys {
    /// `prefix` is that of all its keys in `bucket`; both need no percent-encoding but for `/`.
    pub fn new(bucket: &str, prefix: String, count: usize) -> Self {
        let keys = (0..count).map(|_| Key::default()).collect();
        Self { bucket: bucket.to_owned(), prefix, keys, given_up: BTreeSet::new() }
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn name(&self, slot: usize) -> String {
        format!("{}k{slot}-{}", self.prefix, self.keys[slot].generation)
    }

    pub fn path(&self, slot: usize) -> String {
        format!("/v1/contents/{}/{}", self.bucket, self.name(slot))
    }

    /// Names of the keys that have something, and what.
    pub fn all_present(&self) -> impl Iterator<Item = (String, Version)> + '_ {
        (0..self.keys.len()).filter_map(|slot| Some((self.name(slot), self.keys[slot].present?)))
    }

    /// Names of keys that were given up: what they have is not known.
    pub fn given_up(&self) -> impl Iterator<Item = &String> + '_ {
        self.given_up.iter()
    }

    /// Paths of everything that may be there.
    pub fn paths(&self) -> impl Iterator<Item = String> + '_ {
        let present = (0..self.keys.len()).filter(|slot| self.keys[*slot].present.is_some());
        let given_up = self.given_up.iter().map(|name| format!("/v1/contents/{}/{name}", self.bucket));
        present.map(|slot| self.path(slot)).chain(given_up)
    }

    /// What a read of the key must give now.
    pub fn present(&self, slot: usize) -> Option<Version> {
        self.keys[slot].present
    }

    /// A change is on its way; until it is [`Keys::changed`], the key's state is not known.
    pub fn changing(&mut self, slot: usize) {
        self.keys[slot].in_doubt = true;
    }

    /// A change was acknowledged: the key has this version, or nothing.
    pub fn changed(&mut self, slot: usize, now: Option<Version>) {
        let key = &mut self.keys[slot];
        (key.before, key.present, key.in_doubt) = (key.present, now, false);
    }

    /// Gives up the key if its change was not acknowledged: it may still be carried out, at any time.
    pub fn settle(&mut self, slot: usize) {
        if self.keys[slot].in_doubt {
            self.given_up.insert(self.name(slot));
            let generation = self.keys[slot].generation + 1;
            self.keys[slot] = Key { generation, ..Key::default() };
        }
    }

    /// In words, what an answer with this hash shows in place of what is there.
    pub fn tell(&self, slot: usize, hash: Option<&str>) -> String {
        let key = &self.keys[slot];
        let is =
            |version: &Option<Version>| version.is_some_and(|v| hash == Some(v.hash.to_string().as_str()));
        let shown = if is(&key.present) {
            "the present version"
        } else if is(&key.before) {
            "the version before"
        } else {
            "a version that was never the last"
        };
        match key.present {
            Some(_) => format!("{shown} in place of the present one"),
            None => format!("{shown} of a deleted content"),
        }
    }

    /// What is wrong with a listing of the whole prefix.
    pub fn listing_fault(&self, listed: &[Listed]) -> Option<String> {
        let slots: BTreeMap<String, usize> =
            (0..self.keys.len()).map(|slot| (self.name(slot), slot)).collect();
        let mut shown = BTreeSet::new();
        for content in listed {
            if self.given_up.contains(&content.key) {
                continue;
            }
            let Some(slot) = slots.get(&content.key) else {
                return Some(format!("{} is listed and was never put", content.key));
            };
            if !shown.insert(*slot) {
                return Some(format!("{} is listed twice", content.key));
            }
            let hash = content.tag.to_string();
            match self.present(*slot) {
                Some(version) if version.hash == content.tag && version.content.len == content.len => {}
                _ => return Some(format!("{} is listed as {}", content.key, self.tell(*slot, Some(&hash)))),
            }
        }
        let missing =
            (0..self.keys.len()).find(|slot| self.present(*slot).is_some() && !shown.contains(slot));
        missing.map(|slot| format!("{} is not listed", self.name(slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(id: u64) -> Version {
        Version::of(Content::new(1, id, 100))
    }

    fn line(key: &str, version: Version) -> Listed {
        Listed { key: key.into(), tag: version.hash, len: version.content.len }
    }

    fn keys() -> Keys {
        let mut keys = Keys::new("bench-bob", "1/w0/".into(), 4);
        for (slot, id) in [(0, 1), (1, 2), (1, 3)] {
            keys.changing(slot);
            keys.changed(slot, Some(version(id)));
        }
        keys
    }

    #[test]
    fn every_stale_listing_is_found_and_told() {
        let mut keys = keys();
        let right = [line("1/w0/k0-0", version(1)), line("1/w0/k1-0", version(3))];
        assert_eq!(keys.listing_fault(&right), None);
        let fault = |keys: &Keys, listed: &[Listed]| keys.listing_fault(listed).unwrap();
        assert_eq!(fault(&keys, &right[..1]), "1/w0/k1-0 is not listed");
        let old = [right[0].clone(), line("1/w0/k1-0", version(2))];
        assert!(fault(&keys, &old).contains("the version before in place of"), "{}", fault(&keys, &old));
        let twice = [right[0].clone(), right[0].clone(), right[1].clone()];
        assert!(fault(&keys, &twice).contains("twice"));
        let more = [right[0].clone(), right[1].clone(), line("1/w0/k2-0", version(9))];
        assert!(
            fault(&keys, &more).contains("never the last of a deleted content"),
            "{}",
            fault(&keys, &more)
        );
        assert!(fault(&keys, &[line("1/w0/x", version(9))]).contains("never put"));
        keys.changing(0);
        keys.changed(0, None);
        assert!(fault(&keys, &right).contains("the version before of a deleted content"));
        assert_eq!(keys.listing_fault(&right[1..]), None);
    }

    #[test]
    fn a_key_in_doubt_is_given_up_and_its_place_goes_on_under_another_name() {
        let mut keys = keys();
        keys.changing(0);
        keys.settle(0);
        assert_eq!((keys.present(0), keys.path(0)), (None, "/v1/contents/bench-bob/1/w0/k0-1".into()));
        let given_up = line("1/w0/k0-0", version(77));
        assert_eq!(keys.listing_fault(&[given_up, line("1/w0/k1-0", version(3))]), None);
        assert_eq!(keys.listing_fault(&[line("1/w0/k1-0", version(3))]), None);
        keys.settle(1);
        assert_eq!(keys.present(1), Some(version(3)), "an acknowledged change is not in doubt");
        assert_eq!(keys.paths().count(), 2);
    }
}
