//! The billing servers: batches of delivery records in, usage and invoices out. Both servers speak alike; what
//! they compute from the same records differs.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};

use crate::api::form::Compact;
use crate::auth::Role;
use crate::client::{Call, CallError, ServerClient, encode};
use crate::hash::RecordDigest;
use crate::id::{ClientId, NodeId};
use crate::money::{Currency, Money};
use crate::name::ContentName;
use crate::record::ChainedRecord;
use crate::time::UnixMillis;

/// Most records in one batch.
pub const BATCH_RECORDS_MAX: usize = 4096;

/// In a mark: nothing more comes from the node in this epoch, ever. The last millisecond of the year 9999.
pub const CHAIN_ENDED: UnixMillis = UnixMillis(253_402_300_799_999);

/// Records of one node in order. `POST /v1/batches`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecordBatch {
    pub node: NodeId,
    pub epoch: u64,
    pub records: Vec<ChainedRecord>,
    /// The sender's word that every delivery of the node which began before this (milliseconds since 1970) is among
    /// these records or before them: what a month's close waits for. Sent when all is booked, with the last
    /// record so that a server which has lost it says so;
    /// [`CHAIN_ENDED`] once the node has left.
    #[serde(default)]
    pub passed: Option<UnixMillis>,
}

impl Compact for RecordBatch {
    const VERSION: u8 = 1;
}

/// What became of a batch. Everything up to `through` is booked, durably.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum BatchAnswer {
    /// Booked, or known before.
    Booked { through: u64 },
    /// Records are missing before the batch: send from `expected`.
    Gap { expected: u64 },
    /// A record contradicts one that was booked under its number, or its chain. Nothing of the batch was booked;
    /// an operator must look.
    Fork { seq: u64, reason: String },
}

/// A client's usage in a period. `GET /v1/usage?client=[&period=YYYY-MM]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Usage {
    pub client: ClientId,
    pub period: String,
    /// Deliveries by status: `complete`, `partial`, `void`, `recovered`.
    pub deliveries: BTreeMap<String, u64>,
    /// Deliveries that were charged, by class: `purchase`, `reference`.
    pub classes: BTreeMap<String, u64>,
    pub bytes_sent: u64,
    /// Charges booked, by currency.
    pub charges: Vec<Money>,
}

/// What a delivery would be charged now. `GET /v1/quote?client=&content=&provider=&bytes=`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quote {
    pub currency: Currency,
    /// Millionths of the minor unit, before tax: if the client does not hold the content, and if it does.
    pub purchase_micros: i64,
    pub reference_micros: i64,
    /// Tax on a whole invoice.
    pub tax_basis_points: u32,
    /// Version of the tariff that says so.
    pub tariff: i64,
}

/// How far one chain of records is booked. `GET /v1/chains`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChainView {
    pub node: NodeId,
    pub epoch: u64,
    pub last_seq: u64,
    pub last_digest: RecordDigest,
    /// Every delivery of the node that began before this (milliseconds since 1970) is booked; 0: it never said.
    pub passed_ms: UnixMillis,
}

/// The records of one month in sum. `GET /v1/periods/YYYY-MM/totals`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MonthTotals {
    /// Deliveries by status.
    pub records: BTreeMap<String, u64>,
    pub bytes_sent: u64,
}

/// What the two servers' books say in sum. `GET /v1/totals`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Totals {
    /// Delivery records booked (each once), by status.
    pub records: BTreeMap<String, u64>,
    pub journals: u64,
    /// Records that could not be rated and wait in suspense.
    pub exceptions: u64,
    /// Sum over all postings by currency; zero, or the books are broken.
    pub imbalance_micros: i64,
}

/// Typed client of one billing server.
#[derive(Clone)]
pub struct BillingClient {
    server: ServerClient,
    base: String,
    audience: Role,
}

impl BillingClient {
    /// `role` is [`Role::ServiceBilling`] or [`Role::ContentBilling`].
    pub fn new(server: ServerClient, base: &str, role: Role) -> Self {
        Self { server, base: base.to_owned(), audience: role }
    }

    pub async fn send_batch(&self, batch: &RecordBatch) -> Result<BatchAnswer, CallError> {
        let limit = Duration::from_secs(30);
        self.server.ask(&self.base, self.audience, "/v1/batches", batch, limit).await
    }

    /// Of the present month, if none is named: the server knows in which zone months are counted.
    pub async fn usage(&self, client: &ClientId, period: Option<&str>) -> Result<Usage, CallError> {
        let period = period.map_or_else(String::new, |period| format!("&period={}", encode(period)));
        self.get(&format!("/v1/usage?client={client}{period}")).await
    }

    pub async fn totals(&self) -> Result<Totals, CallError> {
        self.get("/v1/totals").await
    }

    /// How far all chains of records are booked.
    pub async fn chains(&self) -> Result<Vec<ChainView>, CallError> {
        self.get("/v1/chains").await
    }

    pub async fn month_totals(&self, period: &str) -> Result<MonthTotals, CallError> {
        self.get(&format!("/v1/periods/{period}/totals")).await
    }

    /// The digest of a booked record; `NotFound` if there is none of this number.
    pub async fn record_digest(
        &self,
        node: &NodeId,
        epoch: u64,
        seq: u64,
    ) -> Result<RecordDigest, CallError> {
        self.get(&format!("/v1/records/digest?node={node}&epoch={epoch}&seq={seq}")).await
    }

    /// What a delivery would be charged now.
    pub async fn quote(
        &self,
        client: &ClientId,
        content: &ContentName,
        provider: &ClientId,
        bytes: u64,
        away: bool,
    ) -> Result<Quote, CallError> {
        let content = encode(content.as_str());
        let path = format!(
            "/v1/quote?client={client}&content={content}&provider={provider}&bytes={bytes}&away={away}"
        );
        self.get(&path).await
    }

    /// Any of the server's documents as JSON.
    pub async fn get<A: serde::de::DeserializeOwned>(&self, path: &str) -> Result<A, CallError> {
        self.server.get_json(&self.base, self.audience, path, Duration::from_secs(10)).await
    }

    /// A document or bank file, as it is.
    pub async fn file(&self, path: &str) -> Result<Bytes, CallError> {
        self.server.bytes(self.call(Method::GET, path, Bytes::new())).await
    }

    /// A document with its headers, its body still to be read.
    pub async fn open(&self, path: &str) -> Result<http::Response<hyper::body::Incoming>, CallError> {
        self.server.call(self.call(Method::GET, path, Bytes::new())).await
    }

    /// Hands a bank's file over.
    pub async fn post_file<A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        file: Bytes,
    ) -> Result<A, CallError> {
        self.server.json(self.call(Method::POST, path, file)).await
    }

    fn call<'a>(&'a self, method: Method, path: &'a str, body: Bytes) -> Call<'a> {
        let (headers, limit) = (HeaderMap::new(), Duration::from_secs(60));
        Call { method, base: &self.base, audience: self.audience, path, headers, body, limit }
    }

    pub async fn post<Q: Serialize, A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, CallError> {
        let limit = Duration::from_secs(30);
        self.server.send_json(Method::POST, &self.base, self.audience, path, body, limit).await
    }

    pub async fn put<Q: Serialize, A: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<A, CallError> {
        let limit = Duration::from_secs(30);
        self.server.send_json(Method::PUT, &self.base, self.audience, path, body, limit).await
    }
}
