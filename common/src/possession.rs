//! What the home site of a client confirms to a site that the client visits, and the proof of it.
//!
//! The proof is a BLAKE3 keyed hash over the confirmation and the content's manifest. The key is derived from the
//! cluster's secret and the name of the home site, so a confirmation of one site is none of another. The visited site
//! checks it when it comes, keeps it beside what it stores for the client, and checks it again before it relies on it
//! while home is away: what was changed on a disk or came from elsewhere opens nothing. It protects against mistakes and
//! damage between servers that share the secret; it does not protect against one of those that has the secret and lies.

use serde::{Deserialize, Serialize};

use crate::api::node::BeginAnswer;
use crate::hash::PossessionProof;
use crate::id::{ClientId, ServerName, SiteId};
use crate::manifest::Manifest;
use crate::name::ContentName;
use crate::time::UnixMillis;
use crate::version::Version;

/// "This client may have this version of this content at that site until then."
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Possession {
    /// The site that confirms.
    pub home: SiteId,
    /// The site that it is confirmed to.
    pub surrogate: SiteId,
    /// The mobile access server that brought the client there.
    pub mobile_access: Option<ServerName>,
    pub client: ClientId,
    pub name: ContentName,
    pub version: Version,
    pub provider: ClientId,
    /// The delivery that home recorded, and whether it is the purchase; `None` when nothing is to be delivered: a HEAD, an
    /// unmodified content or a range that cannot be satisfied.
    pub begin: Option<BeginAnswer>,
    pub issued: UnixMillis,
    /// Until when the visited site may keep the content for the client.
    pub expires: UnixMillis,
}

/// Signs and checks confirmations. Has no `Debug` and no `Display`.
#[derive(Clone)]
pub struct PossessionKeys {
    secret: [u8; 32],
}

impl PossessionKeys {
    /// `secret` is known to the cluster's servers alone.
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self { secret }
    }

    pub fn sign(&self, possession: &Possession, manifest: &Manifest) -> PossessionProof {
        let bytes = self.mac(possession, manifest);
        PossessionProof::from_bytes(*bytes.as_bytes())
    }

    /// Whether the home site that is named confirmed exactly this. Takes the same time wherever it differs.
    pub fn verify(&self, possession: &Possession, manifest: &Manifest, proof: &PossessionProof) -> bool {
        self.mac(possession, manifest) == blake3::Hash::from_bytes(*proof.as_bytes())
    }

    fn mac(&self, possession: &Possession, manifest: &Manifest) -> blake3::Hash {
        let material = [&self.secret[..], possession.home.as_str().as_bytes()].concat();
        let key = blake3::derive_key("dozo possession proof v1", &material);
        let facts = postcard::to_stdvec(&(possession, manifest)).expect("plain values always encode");
        blake3::keyed_hash(&key, &facts)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::auth::ClusterSecret;
    use crate::hash::ContentHash;
    use crate::id::{DeliveryId, NodeId};
    use crate::manifest::ChunkList;
    use crate::record::DeliveryClass;
    use crate::version::HybridTime;

    fn keys() -> PossessionKeys {
        ClusterSecret::new("0123456789abcdef0123456789abcdef").unwrap().possession_keys()
    }

    fn confirmed() -> (Possession, Manifest) {
        let hash = ContentHash::of(b"film");
        let site = |name| SiteId::new(name).unwrap();
        let possession = Possession {
            home: site("osaka"),
            surrogate: site("tokyo"),
            mobile_access: None,
            client: ClientId::new("carol").unwrap(),
            name: "alice/film".parse().unwrap(),
            version: Version { time: HybridTime(7), hash },
            provider: ClientId::new("alice").unwrap(),
            begin: Some(BeginAnswer {
                delivery: DeliveryId::from_bytes([1; 16]),
                class: DeliveryClass::Purchase,
                shard: NodeId::new("osaka.n1").unwrap(),
            }),
            issued: UnixMillis(1000),
            expires: UnixMillis(2000),
        };
        let chunks = ChunkList::Inline(Vec::new());
        let (media_type, metadata) = ("video/mp4".to_owned(), BTreeMap::new());
        (possession, Manifest { hash, len: 0, media_type, metadata, chunks })
    }

    #[test]
    fn the_proof_of_a_confirmation_is_pinned() {
        let (possession, manifest) = confirmed();
        let proof = keys().sign(&possession, &manifest).to_string();
        assert_eq!(
            proof, "1ca8b59c128a2449d3571d884ee1a95d64bf7c4b7afd8bb00a10b7491b63344d",
            "kept proofs would be worth nothing"
        );
    }

    #[test]
    fn a_proof_is_good_for_what_was_confirmed_and_for_nothing_else() {
        let (possession, manifest) = confirmed();
        let proof = keys().sign(&possession, &manifest);
        // As it travels: JSON there and back.
        let json = serde_json::to_string(&possession).unwrap();
        let arrived: Possession = serde_json::from_str(&json).unwrap();
        assert!(keys().verify(&arrived, &manifest, &proof));
        let changes: [fn(&mut Possession); 8] = [
            |p| p.home = SiteId::new("kyoto").unwrap(),
            |p| p.surrogate = SiteId::new("kyoto").unwrap(),
            |p| p.mobile_access = Some(ServerName::new("m1").unwrap()),
            |p| p.client = ClientId::new("dave").unwrap(),
            |p| p.name = "alice/other".parse().unwrap(),
            |p| p.version.time = HybridTime(8),
            |p| p.begin = None,
            |p| p.expires = UnixMillis(3000),
        ];
        for change in changes {
            let mut other = possession.clone();
            change(&mut other);
            assert!(!keys().verify(&other, &manifest, &proof), "{other:?}");
        }
        let longer = Manifest { len: 1, ..manifest.clone() };
        assert!(!keys().verify(&possession, &longer, &proof));
        let stranger = ClusterSecret::new("another secret of at least 32 characters").unwrap();
        assert!(!stranger.possession_keys().verify(&possession, &manifest, &proof));
    }
}
