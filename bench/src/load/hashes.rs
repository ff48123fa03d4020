//! What ETags of contents that are asked for often must be. A table of fixed size: with more contents than it has places,
//! some are computed again, and no number of contents makes it grow.

use common::hash::ContentHash;

use crate::content::Content;
use crate::protocol::EtagRule;

/// About 2 MiB for each thread of the generator.
const PLACES: usize = 1 << 14;

pub struct Hashes {
    rule: EtagRule,
    places: Vec<Option<(Content, ContentHash)>>,
}

impl Hashes {
    pub fn new(rule: EtagRule) -> Self {
        Self { rule, places: Vec::new() }
    }

    /// The tag of the content, by the rule.
    pub fn of(&mut self, content: Content) -> ContentHash {
        if self.places.is_empty() {
            self.places.resize(PLACES, None);
        }
        let place = &mut self.places[content.place_among(PLACES)];
        match place {
            Some((known, hash)) if *known == content => *hash,
            _ => place.insert((content, self.rule.tag(&content))).1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_contents_own_however_many_share_a_place() {
        let mut hashes = Hashes::new(EtagRule::Blake3);
        let contents = (0..2 * PLACES as u64).map(|id| Content::new(1, id, 3));
        for content in contents.clone().chain(contents.take(100)) {
            assert_eq!(hashes.of(content), content.hash());
        }
        assert_eq!(hashes.places.len(), PLACES);
    }
}
