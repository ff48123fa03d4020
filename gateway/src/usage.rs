//! A client's library and usage: what it holds, what that takes, what was delivered to it.

use std::collections::BTreeSet;

use common::api::billing::Usage;
use common::api::gateway::{ClientUsage, SiteUsage};
use common::api::node::{
    Account, ClientTally, DropRequest, LibraryPage, ReleaseRequest, TallySums, TallySumsRequest,
};
use common::api::search::ClientRecord;
use common::auth::Role;
use common::error::{ApiResult, ErrorCode};
use common::id::ClientId;
use common::name::ContentName;
use common::placement::Slot;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::server::Gateway;

/// Clients that are asked about at once.
const AT_ONCE: usize = 16;

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
        self.release(&client.client, name).await?;
        Ok(dropped.released)
    }

    /// A client is no longer a holder of the name.
    pub async fn release(&self, client: &ClientId, name: &ContentName) -> ApiResult<()> {
        let release = ReleaseRequest {
            name: name.clone(),
            client: client.clone(),
            precondition: Default::default(),
            announce_wait_ms: 0,
        };
        let release = &release;
        self.site.ask_owner(Slot::of_name(name), |node| async move { node.release(release).await }).await?;
        Ok(())
    }

    /// A few rows of each node, however much the client holds.
    pub async fn usage(&self, client: &ClientId) -> ApiResult<ClientUsage> {
        let (account, sums) = tokio::try_join!(self.account(client), self.tally(Some(vec![client.clone()])))?;
        let tally = sums.clients.get(client).copied().unwrap_or_default();
        let (service_usage, content_usage) = tokio::join!(
            self.billed(Role::ServiceBilling, client),
            self.billed(Role::ContentBilling, client),
        );
        let usage = usage_of(client, &account, &tally, sums.fair_share(&tally));
        Ok(ClientUsage { service_usage, content_usage, ..usage })
    }

    /// What every client holds that is at home here, or holds something here.
    pub async fn site_usage(&self) -> ApiResult<SiteUsage> {
        let sums = self.tally(None).await?;
        let known = self.directory.search.clients().await.map_err(|error| {
            error.to_api(ErrorCode::SearchUnavailable, "search, which knows the clients, does not answer")
        })?;
        let at_home = known.into_iter().filter(|client| client.site == self.site.id).map(|c| c.client);
        let at_home: BTreeSet<ClientId> = at_home.collect();
        let clients: BTreeSet<ClientId> = at_home.iter().chain(sums.clients.keys()).cloned().collect();
        let shares = sums.fair_shares();
        let usages = stream::iter(clients).map(|client| {
            let (sums, shares, at_home) = (&sums, &shares, &at_home);
            async move {
                let account = self.account(&client).await?;
                let tally = sums.clients.get(&client).copied().unwrap_or_default();
                let share = shares.get(&client).copied().unwrap_or(0);
                let usage = usage_of(&client, &account, &tally, share);
                ApiResult::Ok(ClientUsage { visiting: !at_home.contains(&client), ..usage })
            }
        });
        let clients = usages.buffered(AT_ONCE).try_collect().await?;
        let (physical_bytes, unique_bytes) = (sums.physical_bytes(), sums.unique_bytes);
        Ok(SiteUsage {
            site: self.site.id.clone(),
            physical_bytes,
            unique_bytes,
            shared_bytes: sums.shared_bytes,
            clients,
        })
    }

    async fn account(&self, client: &ClientId) -> ApiResult<Account> {
        let slot = Slot::of_client(client);
        self.site.ask_owner(slot, |node| async move { node.account(client).await }).await
    }

    /// Who holds which bytes of the site; of `clients`, or of all.
    async fn tally(&self, clients: Option<Vec<ClientId>>) -> ApiResult<TallySums> {
        let asked = self.site.ask_all_owners(|node, slots| {
            let request = TallySumsRequest { slots, clients: clients.clone() };
            async move { node.tally_sums(&request).await }
        });
        let mut sums = TallySums::default();
        asked.await?.iter().for_each(|part| sums.add(part));
        Ok(sums)
    }

    /// This month's usage as a billing server has it, which knows when months begin; `None` while it does not answer.
    async fn billed(&self, role: Role, client: &ClientId) -> Option<Usage> {
        match self.billing(role).ok()?.usage(client, None).await {
            Ok(usage) => Some(usage),
            Err(error) => {
                tracing::debug!(%role, error = %common::error::chain(&error), "no usage from billing");
                None
            }
        }
    }
}

fn usage_of(client: &ClientId, account: &Account, tally: &ClientTally, shared_bytes: u64) -> ClientUsage {
    let physical_bytes = tally.unique_bytes + shared_bytes;
    ClientUsage {
        client: client.clone(),
        contents: account.contents,
        logical_bytes: account.logical_bytes,
        unique_bytes: tally.unique_bytes,
        shared_bytes,
        shared_held_bytes: tally.shared_held_bytes,
        physical_bytes,
        savings_bytes: account.logical_bytes.saturating_sub(physical_bytes),
        deliveries: account.deliveries,
        visiting: false,
        service_usage: None,
        content_usage: None,
    }
}
