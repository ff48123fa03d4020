//! What `dozo up --demo` enters into search before clients come: its clients and their buckets. Each step looks first
//! whether it was done, so a second run, or one after a crash, changes nothing.

use std::path::{Path, PathBuf};

use common::api::search::{NewBucket, NewCard, NewClient, SearchClient, Visibility};
use common::card::PrivateKey;
use common::error::ErrorCode;
use common::id::{BucketName, ClientId, SiteId};

use crate::card::CardFile;
use crate::endpoints::{ClientEndpoint, Keyring};
use crate::error::Failure;

/// The provider of the sample contents, and their bucket.
pub const STUDIO: &str = "studio";

/// Clients of the demo with the place of their home among the sites.
const CLIENTS: [(&str, usize); 4] = [("alice", 0), ("bob", 0), ("carol", 1), (STUDIO, 0)];
/// Public buckets; each belongs to the client of its name.
const BUCKETS: [&str; 3] = ["alice", "carol", STUDIO];

/// The client that travels, and so has a card.
pub const TRAVELLER: &str = "carol";

/// Makes the traveller's card unless it is there, and makes it known; a card that is known already stays as it is.
pub async fn enter_card(search: &SearchClient, ring: &Keyring, folder: &Path) -> Result<PathBuf, Failure> {
    let client = ClientId::new(TRAVELLER)?;
    let home = ring.get(&client).map(|client| client.site.clone());
    let home = home.ok_or_else(|| Failure::new(format!("client {client} has no home")))?;
    std::fs::create_dir_all(folder).map_err(|e| Failure::file("making", folder, &e))?;
    let path = folder.join(format!("{client}.card"));
    if !path.exists() {
        CardFile::with_key(client, home, &PrivateKey::generate()).write_new(&path)?;
    }
    let card = CardFile::read(&path)?;
    search.add_card(&NewCard { client: card.client, card: card.public_key }).await?;
    Ok(path)
}

/// Makes the demo's clients and buckets. Keys of new clients go to the key ring before the next one is made.
pub async fn enter_clients(
    search: &SearchClient,
    ring: &mut Keyring,
    sites: &[SiteId],
) -> Result<(), Failure> {
    let known = search.clients().await?;
    for (name, home) in CLIENTS {
        let client = ClientId::new(name)?;
        match (known.iter().any(|k| k.client == client), ring.get(&client)) {
            (true, Some(_)) => {}
            (true, None) => {
                return Err(Failure::new(format!(
                    "client {client} exists, but its keys are not in this data folder"
                ))
                .with_next_step(
                    "put back the folder's clients.json, or begin anew with another --data-dir",
                ));
            }
            (false, _) => {
                let site = sites.get(home).or(sites.first()).cloned();
                let site = site.ok_or_else(|| Failure::new("there is no site for the demo's clients"))?;
                let keys = search.create_client(&NewClient { client, site }).await?;
                ring.add(ClientEndpoint::from(keys))?;
            }
        }
    }
    for name in BUCKETS {
        let bucket = BucketName::new(name)?;
        match search.bucket(&bucket).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(ErrorCode::BucketNotFound) => {
                let new = NewBucket { provider: ClientId::new(name)?, visibility: Visibility::Public };
                search.put_bucket(&bucket, &new).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
