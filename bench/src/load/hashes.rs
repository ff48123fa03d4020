//! Hashes of contents that are asked for often. A table of fixed size: with more contents than it has places, some are
//! hashed again, and no number of contents makes it grow.

use common::hash::ContentHash;

use crate::content::Content;

/// About 2 MiB for each thread of the generator.
const PLACES: usize = 1 << 14;

#[derive(Default)]
pub struct Hashes(Vec<Option<(Content, ContentHash)>>);

impl Hashes {
    pub fn of(&mut self, content: Content) -> ContentHash {
        if self.0.is_empty() {
            self.0.resize(PLACES, None);
        }
        let place = &mut self.0[content.place_among(PLACES)];
        match place {
            Some((known, hash)) if *known == content => *hash,
            _ => place.insert((content, content.hash())).1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_the_contents_own_however_many_share_a_place() {
        let mut hashes = Hashes::default();
        let contents = (0..2 * PLACES as u64).map(|id| Content::new(1, id, 3));
        for content in contents.clone().chain(contents.take(100)) {
            assert_eq!(hashes.of(content), content.hash());
        }
        assert_eq!(hashes.0.len(), PLACES);
    }
}
