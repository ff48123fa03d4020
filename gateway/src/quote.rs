//! What a delivery would cost, before it is made.

use common::api::billing::Quote;
use common::api::gateway::ContentQuote;
use common::api::search::ClientRecord;
use common::auth::Role;
use common::error::{ApiResult, ErrorCode};
use common::name::ContentName;
use common::record::DeliveryClass;

use crate::books::unavailable;
use crate::server::Gateway;

impl Gateway {
    /// The two fees of a content for a client that is at home here, as they are now.
    pub async fn quote(&self, client: &ClientRecord, name: &ContentName) -> ApiResult<ContentQuote> {
        let id = &client.client;
        self.authorise(id, name).await?;
        let class = match self.holds(id, name).await? {
            true => DeliveryClass::Reference,
            false => DeliveryClass::Purchase,
        };
        let info = self.directory.search.lookup(name).await.map_err(|error| {
            error.to_api(ErrorCode::SearchUnavailable, "search, which knows the content, does not answer")
        })?;
        let quote = async |role: Role| -> ApiResult<Quote> {
            let quote = self.billing(role)?.quote(id, name, &info.provider, info.len, false).await;
            quote.map_err(|error| error.to_api(ErrorCode::BillingUnavailable, &unavailable(role)))
        };
        let (service, content) = tokio::try_join!(quote(Role::ServiceBilling), quote(Role::ContentBilling))?;
        Ok(ContentQuote {
            name: name.clone(),
            len: info.len,
            provider: info.provider,
            class,
            service,
            content,
        })
    }
}
