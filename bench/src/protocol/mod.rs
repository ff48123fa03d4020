//! What the generator can drive: Dozo's own API, any S3 endpoint, any plain HTTP server. One seam for all three: a
//! [`Protocol`] says where and as whom, a [`Client`] makes requests of it over one connection and reads the answers.
//!
//! | | native | `s3://` | `http://` |
//! |---|---|---|---|
//! | GET, HEAD, ranges | yes | yes | yes |
//! | PUT, DELETE | yes | yes | where the server takes them |
//! | LIST | yes | yes | no |
//! | MULTIPART | no | yes | no |
//! | COLLECT, ROAM | at several sites | no | no |
//! | every byte checked | yes | yes | yes |
//! | ETag of what was prepared | the BLAKE3 of the content | its MD5, if all PUTs named it so | its MD5, if all PUTs named it so |
//! | ETag of what the run put | the BLAKE3 of the content | as the PUT named it | as the PUT named it |
//! | deliveries and books | yes | no | no |

mod client;
mod etag;
pub mod http1;
mod s3;
pub mod signature;

use std::path::PathBuf;

pub use client::{Client, Listed, Page, Stored};
pub use etag::EtagRule;
use serde::{Deserialize, Serialize};
use signature::Credentials;

use crate::plan::Op;

/// How a target is spoken to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Protocol {
    /// Dozo's own API.
    Native { token: String, bucket: String },
    /// Path style, Signature Version 4.
    S3 { credentials: Credentials, bucket: String },
    /// GET of what lies below a path, and PUT where the server takes it.
    Plain {
        /// Without a slash at its ends; may be empty.
        prefix: String,
        /// The folder that the server serves at the prefix: objects are prepared as files in it.
        root: Option<PathBuf>,
    },
}

impl Protocol {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Native { .. } => "native",
            Self::S3 { .. } => "s3",
            Self::Plain { .. } => "http",
        }
    }

    /// How its ETags follow from the bytes, where that is known of every server.
    pub fn etags(&self) -> Option<EtagRule> {
        self.is_native().then_some(EtagRule::Blake3)
    }

    pub fn is_native(&self) -> bool {
        matches!(self, Self::Native { .. })
    }

    /// Whether there is such an operation.
    pub fn has(&self, op: Op) -> bool {
        match (self, op) {
            (Self::S3 { .. } | Self::Plain { .. }, op) if op.crosses_sites() => false,
            (Self::S3 { .. }, _) => true,
            (Self::Native { .. }, op) => op != Op::Multipart,
            (Self::Plain { .. }, op) => !matches!(op, Op::List | Op::Multipart),
        }
    }
}
