//! Following a collection that another gateway of the site carries out: what it has stored is there for the readers
//! here, and what they wait for is asked of it.

use std::sync::Arc;

use common::api::collect::{CollectorAddress, Opened, Outcome};
use common::api::peer::PeerClient;
use common::client::CallError;
use common::error::{ApiError, chain};
use common::name::ContentName;

use super::Collector;
use super::collection::Collection;
use super::holders::is_not_there;

/// What became of a collection that was followed.
pub enum Followed {
    /// It ended, well or not.
    Ended(Result<(), ApiError>),
    /// The gateway does not know it any more.
    Unknown,
    /// The gateway does not answer.
    Silent,
}

impl Collector {
    fn colleague(&self, address: &CollectorAddress) -> PeerClient {
        PeerClient::gateway(self.server.clone(), &address.http)
    }

    /// The collection that another gateway has at work; `None` if it has none.
    pub(super) async fn opened_by(
        &self,
        name: &ContentName,
        address: &CollectorAddress,
    ) -> Result<Option<Opened>, CallError> {
        match self.colleague(address).collection(name).await {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if is_not_there(error.code()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Follows until the end, or until the gateway is lost.
    pub(super) async fn follow(
        &self,
        collection: &Arc<Collection>,
        address: &CollectorAddress,
        run: u64,
    ) -> Followed {
        let (peer, name) = (self.colleague(address), &collection.holding.name);
        let wishes = async {
            loop {
                collection.wish().await;
                if let Some(place) = collection.wanted()
                    && let Err(error) = peer.want(name, run, place).await
                {
                    tracing::debug!(content = %name, error = chain(&error), "a wish was not passed on");
                }
            }
        };
        let news = async {
            let mut told = 0;
            loop {
                let progress = match peer.progress(name, run, told).await {
                    Ok(progress) => progress,
                    Err(error) if is_not_there(error.code()) => return Followed::Unknown,
                    Err(error) => {
                        tracing::warn!(content = %name, gateway = %address.gateway, error = chain(&error), "the gateway that collects does not answer");
                        return Followed::Silent;
                    }
                };
                told += progress.stored.len();
                for place in progress.stored {
                    if (place as usize) < collection.chunks.len() {
                        collection.stored(place as usize);
                    }
                }
                match progress.outcome {
                    Some(Outcome::Complete) => return Followed::Ended(Ok(())),
                    // Here there are readers.
                    Some(Outcome::Stopped) => return Followed::Unknown,
                    Some(Outcome::Failed(body)) => {
                        return Followed::Ended(Err(ApiError::new(body.code, body.message)));
                    }
                    None => {}
                }
            }
        };
        tokio::select! {
            followed = news => followed,
            () = wishes => Followed::Silent,
        }
    }
}
