//! Who is asking, and whose bucket is it: answers of search, kept for a while.
//!
//! Fresh answers are used for [`FRESH`]; when search does not answer, older ones serve up to [`STALE_MAX`], so a
//! site goes on delivering to the clients it knows.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::api::search::{BucketRecord, CardHolder, ClientRecord, SearchClient, Visibility};
use common::auth::{bearer, token_hash};
use common::card::PublicKey;
use common::client::CallError;
use common::error::{ApiError, ErrorCode};
use common::id::{BucketName, ClientId};
use common::trace;

use crate::server::Gateway;

const FRESH: Duration = Duration::from_secs(5);
const STALE_MAX: Duration = Duration::from_secs(3600);
const ENTRIES_MAX: usize = 100_000;

/// A bounded map of answers with their age.
struct Known<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Hash + Eq + Clone, V: Clone> Known<K, V> {
    fn new() -> Self {
        Self { entries: Mutex::new(HashMap::new()) }
    }

    fn get(&self, key: &K, age_max: Duration) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(at, _)| at.elapsed() < age_max).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= ENTRIES_MAX {
            entries.retain(|_, (at, _)| at.elapsed() < FRESH);
            if entries.len() >= ENTRIES_MAX {
                entries.clear();
            }
        }
        entries.insert(key, (Instant::now(), value));
    }

    fn remove(&self, key: &K) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// The known answer if fresh, else `ask`'s, else the stale one while search is away.
    async fn fetch<F>(
        &self,
        key: &K,
        missing: ErrorCode,
        ask: impl FnOnce() -> F,
    ) -> Result<Option<V>, ApiError>
    where
        F: Future<Output = Result<V, CallError>>,
    {
        match self.get(key, FRESH) {
            Some(value) => Ok(Some(value)),
            None => Box::pin(self.ask(key, missing, ask())).await,
        }
    }

    /// `ask`'s answer, or the stale one while search is away.
    async fn ask(
        &self,
        key: &K,
        missing: ErrorCode,
        ask: impl Future<Output = Result<V, CallError>>,
    ) -> Result<Option<V>, ApiError> {
        match ask.await {
            Ok(value) => {
                self.put(key.clone(), value.clone());
                Ok(Some(value))
            }
            Err(error) if error.code() == Some(missing) => {
                self.remove(key);
                Ok(None)
            }
            Err(error) => match self.get(key, STALE_MAX) {
                Some(value) => Ok(Some(value)),
                None => Err(error.to_api(
                    ErrorCode::SearchUnavailable,
                    "search does not answer, and this gateway has not seen you before; try again in a moment",
                )),
            },
        }
    }
}

#[derive(Clone)]
pub struct Directory {
    pub search: SearchClient,
    clients: Arc<Known<String, ClientRecord>>,
    buckets: Arc<Known<BucketName, BucketRecord>>,
    cards: Arc<Known<PublicKey, CardHolder>>,
    /// Cards that are being looked up behind the requests of their visitors.
    looked_up: Arc<Mutex<HashSet<PublicKey>>>,
}

impl Directory {
    pub fn new(search: SearchClient) -> Self {
        Self {
            search,
            clients: Arc::new(Known::new()),
            buckets: Arc::new(Known::new()),
            cards: Arc::new(Known::new()),
            looked_up: Arc::default(),
        }
    }

    /// The client whose bearer token the request carries.
    pub async fn authenticate(&self, headers: &http::HeaderMap) -> Result<ClientRecord, ApiError> {
        let refuse = |message: &str| ApiError::new(ErrorCode::Unauthenticated, message);
        let token = bearer(headers).ok_or_else(|| {
            refuse("this needs a client's token: send the header Authorization: Bearer TOKEN")
        })?;
        let hash = token_hash(token);
        let ask = || self.search.client_by_token(&hash);
        let client = self.clients.fetch(&hash, ErrorCode::ClientNotFound, ask).await?;
        match client {
            None => Err(refuse("no client has this token; look for a typing error or ask for a new one")),
            Some(client) if client.disabled => {
                Err(ApiError::new(ErrorCode::Forbidden, format!("client {} is disabled", client.client)))
            }
            Some(client) => Ok(client),
        }
    }

    pub async fn bucket(&self, bucket: &BucketName) -> Result<BucketRecord, ApiError> {
        let ask = || self.search.bucket(bucket);
        self.buckets
            .fetch(bucket, ErrorCode::BucketNotFound, ask)
            .await?
            .ok_or_else(|| ApiError::new(ErrorCode::BucketNotFound, format!("there is no bucket {bucket}")))
    }

    /// Whose card it is, `None` if nobody's. Always asked, so a card that was disabled a moment ago is refused. Only while
    /// search is away an answer from before does, for [`STALE_MAX`] at most; nobody can disable a card meanwhile.
    pub async fn card(&self, card: &PublicKey) -> Result<Option<CardHolder>, ApiError> {
        self.cards.ask(card, ErrorCode::CardUnknown, self.search.card(card)).await
    }

    /// The same, as far as it is known here, for a client that has shown its visitor token: waits for nobody. What is not
    /// fresh is looked up behind the request, for the next one.
    pub fn card_of_visitor(&self, card: &PublicKey) -> Option<CardHolder> {
        if let Some(holder) = self.cards.get(card, FRESH) {
            return Some(holder);
        }
        let known = self.cards.get(card, STALE_MAX);
        if self.looked_up().insert(*card) {
            let (this, card) = (self.clone(), *card);
            trace::spawn(async move {
                if let Err(error) = this.card(&card).await {
                    tracing::debug!(
                        card = card.short(),
                        error = common::error::chain(&error),
                        "a visitor's card cannot be looked up"
                    );
                }
                this.looked_up().remove(&card);
            });
        }
        known
    }

    fn looked_up(&self) -> MutexGuard<'_, HashSet<PublicKey>> {
        self.looked_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was just made or changed through this gateway holds at once here.
    pub fn note_bucket(&self, record: &BucketRecord) {
        self.buckets.put(record.bucket.clone(), record.clone());
    }
}

impl Gateway {
    /// *authenticate*: who asks, and whether it may ask once more at this moment.
    pub async fn authenticate(&self, headers: &http::HeaderMap) -> Result<ClientRecord, ApiError> {
        let client = self.directory.authenticate(headers).await?;
        self.limits.admit(&client)?;
        Ok(client)
    }
}

/// Whether a client may read any content of a bucket without holding it already.
pub fn may_read(client: &ClientId, bucket: &BucketRecord) -> bool {
    bucket.visibility == Visibility::Public || &bucket.provider == client
}
