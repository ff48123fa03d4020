//! Libraries: the contents that a client holds, one row each, in the slot of the client.

use std::ops::{Bound, ControlFlow};

use common::api::node::{Account, AddRequest, DropRequest, LibraryPage, Quota};
use common::error::{ApiError, ApiResult, ErrorCode};
use common::id::ClientId;
use common::name::ContentName;
use common::time::UnixMillis;

use crate::catalog::key::{self, Key};
use crate::catalog::rows::{LibraryValue, Row};
use crate::catalog::txn::{Rows, Txn};

/// Most rows of one page.
pub const PAGE_LEN_MAX: u32 = 1000;

/// What the rows of a client's library come to. Kept beside them; counted, should there be none from before it was.
pub fn account(rows: &(impl Rows + ?Sized), client: &ClientId) -> ApiResult<Account> {
    if let Some(account) = rows.get(Key::Account(client))? {
        return Ok(account);
    }
    let mut account = Account::default();
    rows.scan(&key::library(client, ""), &mut |_, value| {
        count(&mut account, None, Some(&LibraryValue::decode(value)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(account)
}

fn count(account: &mut Account, before: Option<&LibraryValue>, after: Option<&LibraryValue>) {
    if let Some(row) = before {
        account.contents = account.contents.saturating_sub(1);
        account.logical_bytes = account.logical_bytes.saturating_sub(row.len);
        account.deliveries = account.deliveries.saturating_sub(row.deliveries);
    }
    if let Some(row) = after {
        account.contents += 1;
        account.logical_bytes = account.logical_bytes.saturating_add(row.len);
        account.deliveries += row.deliveries;
    }
}

/// The one place where library rows change: makes, changes (`after`) or deletes (`None`) a row, and the account with it.
///
/// `QuotaExceeded` when the library would grow beyond `quota`.
pub fn change(
    txn: &mut Txn<'_>,
    client: &ClientId,
    name: &ContentName,
    after: Option<&LibraryValue>,
    quota: &Quota,
) -> ApiResult<()> {
    let key = Key::Library(client, name);
    let before = txn.get::<LibraryValue>(key)?;
    let old = account(txn, client)?;
    let mut new = old;
    count(&mut new, before.as_ref(), after);
    check(client, &old, &new, quota)?;
    match after {
        Some(row) => txn.put(key, row),
        None => txn.delete(key),
    }
    if new != old || !txn.has(Key::Account(client))? {
        txn.put(Key::Account(client), &new);
    }
    Ok(())
}

/// Refuses growth beyond a quota; what is beyond it already may stay as it is.
fn check(client: &ClientId, old: &Account, new: &Account, quota: &Quota) -> ApiResult<()> {
    let refuse = |what: String| {
        let advice = "drop contents from the library, or ask the operator for more";
        Err(ApiError::new(ErrorCode::QuotaExceeded, format!("client {client} {what}; {advice}")))
    };
    if let Some(max) = quota.contents.filter(|max| new.contents > *max && new.contents > old.contents) {
        return refuse(format!("holds {} contents of the {max} that its quota allows", old.contents));
    }
    if let Some(max) =
        quota.bytes.filter(|max| new.logical_bytes > *max && new.logical_bytes > old.logical_bytes)
    {
        let more = new.logical_bytes - old.logical_bytes;
        return refuse(format!(
            "holds {} bytes of the {max} that its quota allows, and this takes {more} more",
            old.logical_bytes
        ));
    }
    Ok(())
}

/// Adds what the client publishes: it holds its own content without a purchase.
///
/// With `strict` the quota binds also a new version of what the client has: in the commit that holds it. Elsewhere that
/// version is held already.
pub fn add(txn: &mut Txn<'_>, request: &AddRequest, now: UnixMillis, strict: bool) -> ApiResult<()> {
    let before = txn.get::<LibraryValue>(Key::Library(&request.client, &request.name))?;
    let quota = if strict || before.is_none() { request.quota } else { Quota::default() };
    let row = match before {
        Some(row) => LibraryValue {
            hash: request.hash,
            len: request.len,
            provider: request.provider.clone(),
            made_by: None,
            purchase_owed: false,
            ..row
        },
        None => LibraryValue {
            hash: request.hash,
            len: request.len,
            provider: request.provider.clone(),
            since: now,
            deliveries: 0,
            recent: Vec::new(),
            newest: None,
            made_by: None,
            purchase_owed: false,
            newest_shard: None,
        },
    };
    change(txn, &request.client, &request.name, Some(&row), &quota)
}

/// Drops a row; the next delivery is a purchase again. Answers whether there was one.
pub fn drop_row(txn: &mut Txn<'_>, request: &DropRequest) -> ApiResult<bool> {
    let held = txn.has(Key::Library(&request.client, &request.name))?;
    if held {
        change(txn, &request.client, &request.name, None, &Quota::default())?;
    }
    Ok(held)
}

/// Rows whose names begin with `prefix`, behind `after`, in order of their names.
pub fn page(
    rows: &(impl Rows + ?Sized),
    client: &ClientId,
    prefix: &str,
    after: &str,
    limit: u32,
) -> ApiResult<LibraryPage> {
    let limit = limit.clamp(1, PAGE_LEN_MAX) as usize;
    let (whole, wanted, behind) =
        (key::library(client, ""), key::library(client, prefix), key::library(client, after));
    let from = if behind < wanted { Bound::Included(&wanted[..]) } else { Bound::Excluded(&behind[..]) };
    let mut page = LibraryPage::default();
    rows.scan_raw(&wanted, from, &mut |key, value| {
        if page.rows.len() == limit {
            page.next = page.rows.last().map(|row| row.name.to_string());
            return Ok(ControlFlow::Break(()));
        }
        let name = std::str::from_utf8(&key[whole.len()..]).map_err(|error| ApiError::internal(&error))?;
        page.rows.push(LibraryValue::decode(value)?.to_api(name.parse()?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}
