//! Libraries: the contents that a client holds, one row each, in the slot of the client.

use std::ops::{Bound, ControlFlow};

use common::api::node::{AddRequest, DropRequest, LibraryPage};
use common::error::{ApiError, ApiResult};
use common::id::ClientId;
use common::time::UnixMillis;

use crate::catalog::key::{self, Key};
use crate::catalog::rows::{LibraryValue, Row};
use crate::catalog::txn::{Rows, Txn};

/// Most rows of one page.
pub const PAGE_LEN_MAX: u32 = 1000;

/// Adds what the client publishes: it holds its own content without a purchase.
pub fn add(txn: &mut Txn<'_>, request: &AddRequest, now: UnixMillis) -> ApiResult<()> {
    let key = Key::Library(&request.client, &request.name);
    let row = match txn.get::<LibraryValue>(key)? {
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
        },
    };
    txn.put(key, &row);
    Ok(())
}

/// Drops a row; the next delivery is a purchase again. Answers whether there was one.
pub fn drop_row(txn: &mut Txn<'_>, request: &DropRequest) -> ApiResult<bool> {
    let key = Key::Library(&request.client, &request.name);
    let held = txn.has(key)?;
    if held {
        txn.delete(key);
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
