//! A client's library and usage: what it holds, what that takes, what was delivered to it.

use common::api::billing::{BillingClient, Usage};
use common::api::gateway::ClientUsage;
use common::api::node::{CountsRequest, DropRequest, LibraryPage, ReleaseRequest};
use common::api::search::ClientRecord;
use common::auth::Role;
use common::cluster::ServerEntry;
use common::error::ApiResult;
use common::id::ClientId;
use common::name::ContentName;
use common::placement::Slot;

use crate::server::Gateway;

const PAGE: u32 = 1000;

impl Gateway {
    pub async fn library(
        &self,
        client: &ClientId,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> ApiResult<LibraryPage> {
        let slot = Slot::of_client(client);
        self.site
            .ask_owner(slot, |node| async move { node.library(client, prefix, after, limit).await })
            .await
    }

    /// Removes a content from a client's library; true when it was there.
    pub async fn drop_from_library(&self, client: &ClientRecord, name: &ContentName) -> ApiResult<bool> {
        let drop = DropRequest { client: client.client.clone(), name: name.clone() };
        let drop = &drop;
        let slot = Slot::of_client(&client.client);
        let dropped = self.site.ask_owner(slot, |node| async move { node.library_drop(drop).await }).await?;
        let release = ReleaseRequest {
            name: name.clone(),
            client: client.client.clone(),
            precondition: Default::default(),
            announce_wait_ms: 0,
        };
        let release = &release;
        self.site.ask_owner(Slot::of_name(name), |node| async move { node.release(release).await }).await?;
        Ok(dropped.released)
    }

    /// Walks the client's library once; exact at the moment it is asked.
    pub async fn usage(&self, client: &ClientId) -> ApiResult<ClientUsage> {
        let mut usage = ClientUsage {
            client: client.clone(),
            contents: 0,
            logical_bytes: 0,
            unique_bytes: 0,
            shared_bytes: 0,
            deliveries: 0,
            service_usage: None,
            content_usage: None,
        };
        let mut after = String::new();
        loop {
            let page = self.library(client, "", &after, PAGE).await?;
            let names: Vec<ContentName> = page.rows.iter().map(|row| row.name.clone()).collect();
            let holders = self.holder_counts(&names).await?;
            for (row, holders) in page.rows.iter().zip(holders) {
                usage.contents += 1;
                usage.logical_bytes += row.len;
                usage.deliveries += row.deliveries;
                if holders > 1 {
                    usage.shared_bytes += row.len;
                } else {
                    usage.unique_bytes += row.len;
                }
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        let map = self.site.map();
        usage.service_usage = self.billed(map.service_billing.as_ref(), Role::ServiceBilling, client).await;
        usage.content_usage = self.billed(map.content_billing.as_ref(), Role::ContentBilling, client).await;
        Ok(usage)
    }

    /// How many clients of the site hold each name.
    async fn holder_counts(&self, names: &[ContentName]) -> ApiResult<Vec<u64>> {
        let mut by_slot: std::collections::BTreeMap<Slot, Vec<usize>> = Default::default();
        for (index, name) in names.iter().enumerate() {
            by_slot.entry(Slot::of_name(name)).or_default().push(index);
        }
        let mut counts = vec![0; names.len()];
        for (slot, indexes) in by_slot {
            let request = CountsRequest { names: indexes.iter().map(|i| names[*i].clone()).collect() };
            let request = &request;
            let answer = self.site.ask_owner(slot, |node| async move { node.counts(request).await }).await?;
            for (index, count) in indexes.into_iter().zip(answer.clients) {
                counts[index] = count;
            }
        }
        Ok(counts)
    }

    /// This month's usage as a billing server has it; `None` while it does not answer.
    async fn billed(&self, server: Option<&ServerEntry>, role: Role, client: &ClientId) -> Option<Usage> {
        let (year, month, _) = self.clock.now().civil();
        let billing = BillingClient::new(self.server.clone(), &server?.http, role);
        match billing.usage(client, &format!("{year:04}-{month:02}")).await {
            Ok(usage) => Some(usage),
            Err(error) => {
                tracing::debug!(%role, error = %common::error::chain(&error), "no usage from billing");
                None
            }
        }
    }
}
