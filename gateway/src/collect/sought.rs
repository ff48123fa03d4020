//! What is collected, and how the site keeps it: as a holding, or for a while for visitors.

use common::api::node::{Holding, HoldingState, RefTag};
use common::api::search::ContentInfo;
use common::id::ClientId;
use common::manifest::Manifest;
use common::name::ContentName;
use common::possession::Possession;

/// A content that somebody waits for.
#[derive(Clone, Copy)]
pub enum Sought<'a> {
    /// The newest version, for a client of this site, who is noted among those who hold the name.
    Held { name: &'a ContentName, client: &'a ClientId },
    /// The version that home confirmed to a visitor.
    Visited(&'a Visit),
}

impl<'a> Sought<'a> {
    pub fn name(self) -> &'a ContentName {
        match self {
            Self::Held { name, .. } => name,
            Self::Visited(visit) => &visit.holding.name,
        }
    }

    /// What home confirmed, if it is home that did.
    pub fn confirmed(self) -> Option<&'a ContentInfo> {
        match self {
            Self::Held { .. } => None,
            Self::Visited(visit) => Some(&visit.confirmed),
        }
    }
}

/// A version that a visitor's home confirmed.
#[derive(Clone)]
pub struct Visit {
    /// As if the site held it; the tag is that of the temporary content.
    pub holding: Holding,
    /// Home as its holder: search may not know that, for home may be collecting it at this moment.
    pub confirmed: ContentInfo,
}

impl Visit {
    pub fn new(possession: &Possession, manifest: Manifest, ref_tag: RefTag) -> Self {
        let confirmed = ContentInfo {
            name: possession.name.clone(),
            version: possession.version,
            len: manifest.len,
            media_type: manifest.media_type.clone(),
            provider: possession.provider.clone(),
            sites: vec![possession.home.clone()],
            origins: Vec::new(),
        };
        let holding = Holding {
            name: possession.name.clone(),
            version: possession.version,
            manifest,
            provider: possession.provider.clone(),
            state: HoldingState::Complete,
            ref_tag,
            since: possession.issued,
        };
        Self { holding, confirmed }
    }
}

/// How a content that is collected is kept. Its chunks carry the tag, and when all are there its rows say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// In the content list; search is told when it is whole.
    Holding(RefTag),
    /// For visitors, until home's word ends. Nobody is told.
    Temporary(RefTag),
}

impl Keep {
    pub fn tag(self) -> RefTag {
        match self {
            Self::Holding(tag) | Self::Temporary(tag) => tag,
        }
    }
}
