//! How a server's ETags follow from the bytes, where they do: then a GET's ETag is checked without remembering what each
//! PUT was answered.

use common::hash::ContentHash;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::content::Content;

const PIECE_LEN: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EtagRule {
    /// The BLAKE3 hash: Dozo's own API.
    Blake3,
    /// The MD5 hash, as most S3 servers have it of what was put in one part.
    Md5,
}

impl EtagRule {
    /// What [`super::Client::tag`] makes of the ETag that a content has by this rule.
    pub fn tag(self, content: &Content) -> ContentHash {
        match self {
            Self::Blake3 => content.hash(),
            Self::Md5 => tag_of_text(&md5_of(content)),
        }
    }
}

/// What stands for an ETag that is no BLAKE3 hash.
pub fn tag_of_text(etag: &str) -> ContentHash {
    ContentHash::of(etag.as_bytes())
}

/// In hexadecimal.
fn md5_of(content: &Content) -> String {
    let (mut hasher, mut piece, mut offset) = (Md5::new(), vec![0u8; PIECE_LEN], 0);
    while offset < content.len {
        let len = piece.len().min((content.len - offset) as usize);
        content.fill(offset, &mut piece[..len]);
        hasher.update(&piece[..len]);
        offset += len as u64;
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_that_of_the_etag_which_the_bytes_have() {
        let empty = Content::new(1, 2, 0);
        assert_eq!(EtagRule::Md5.tag(&empty), tag_of_text("d41d8cd98f00b204e9800998ecf8427e"));
        assert_eq!(EtagRule::Blake3.tag(&empty), ContentHash::of(b""));
        let long = Content::new(1, 2, 3 * PIECE_LEN as u64 + 1);
        let whole = Md5::digest(long.bytes(0, long.len as usize));
        let hex: String = whole.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(EtagRule::Md5.tag(&long), tag_of_text(&hex));
    }
}
