//! What a change sees and does, and what a reader sees.
//!
//! A change writes into an overlay of its own, over the overlay of its batch, over the index. So an error simply
//! drops its writes, and the next change of the batch sees those of the one before.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use common::error::{ApiError, ApiResult};
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::key::Key;
use super::rows::Row;

pub(super) const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");

/// What a visitor of rows says: go on, or stop here.
pub type Visit = ApiResult<ControlFlow<()>>;
pub type Visitor<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Visit;

fn failed(error: redb::StorageError) -> ApiError {
    ApiError::internal(&error)
}

/// Rows as bytes.
pub trait RawRows {
    fn get_raw(&self, key: &[u8]) -> ApiResult<Option<Vec<u8>>>;

    /// Visits the rows from `from` (inclusive) that begin with `prefix`, in order.
    fn scan_raw(&self, prefix: &[u8], from: Bound<&[u8]>, visit: Visitor<'_>) -> ApiResult<()>;
}

/// Rows as values.
pub trait Rows: RawRows {
    fn get<R: Row>(&self, key: Key<'_>) -> ApiResult<Option<R>> {
        self.get_raw(&key.encode())?.map(|bytes| R::decode(&bytes)).transpose().map_err(ApiError::from)
    }

    fn has(&self, key: Key<'_>) -> ApiResult<bool> {
        Ok(self.get_raw(&key.encode())?.is_some())
    }

    /// Visits every row whose key begins with `prefix`.
    fn scan(&self, prefix: &[u8], visit: Visitor<'_>) -> ApiResult<()> {
        self.scan_raw(prefix, Bound::Included(prefix), visit)
    }

    fn count(&self, prefix: &[u8]) -> ApiResult<u64> {
        let mut count = 0;
        self.scan(prefix, &mut |_, _| {
            count += 1;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(count)
    }

    fn is_empty(&self, prefix: &[u8]) -> ApiResult<bool> {
        let mut empty = true;
        self.scan(prefix, &mut |_, _| {
            empty = false;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(empty)
    }
}

impl<T: RawRows + ?Sized> Rows for T {}

fn get_from(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &[u8],
) -> ApiResult<Option<Vec<u8>>> {
    Ok(table.get(key).map_err(failed)?.map(|guard| guard.value().to_vec()))
}

fn scan_from(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    from: Bound<&[u8]>,
    visit: Visitor<'_>,
) -> ApiResult<()> {
    for row in table.range::<&[u8]>((from, Bound::Unbounded)).map_err(failed)? {
        let (key, value) = row.map_err(failed)?;
        if !key.value().starts_with(prefix) || visit(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}

/// `key` behind the prefix of a scope.
pub(super) fn placed<'a>(scope: &[u8], key: &'a [u8]) -> Cow<'a, [u8]> {
    if scope.is_empty() { Cow::Borrowed(key) } else { Cow::Owned([scope, key].concat()) }
}

/// Scans rows whose keys lie behind the prefix `scope`; the visitor sees them without it.
fn scan_scoped(
    rows: &(impl RawRows + ?Sized),
    scope: &[u8],
    prefix: &[u8],
    from: Bound<&[u8]>,
    visit: Visitor<'_>,
) -> ApiResult<()> {
    if scope.is_empty() {
        return rows.scan_raw(prefix, from, visit);
    }
    let from = from.map(|from| placed(scope, from));
    let from = match &from {
        Bound::Included(from) => Bound::Included(from.as_ref()),
        Bound::Excluded(from) => Bound::Excluded(from.as_ref()),
        Bound::Unbounded => Bound::Unbounded,
    };
    rows.scan_raw(&placed(scope, prefix), from, &mut |key, value| visit(&key[scope.len()..], value))
}

/// A view of what was durable when it was made.
pub struct Reader {
    table: ReadOnlyTable<&'static [u8], &'static [u8]>,
    scope: Arc<[u8]>,
}

impl Reader {
    /// Of the rows whose keys begin with `scope`, by the rest of their keys.
    pub(super) fn new(index: &Database, scope: Arc<[u8]>) -> ApiResult<Self> {
        let txn = index.begin_read().map_err(|error| ApiError::internal(&error))?;
        Ok(Self { table: txn.open_table(ROWS).map_err(|error| ApiError::internal(&error))?, scope })
    }
}

impl RawRows for Reader {
    fn get_raw(&self, key: &[u8]) -> ApiResult<Option<Vec<u8>>> {
        get_from(&self.table, &placed(&self.scope, key))
    }

    fn scan_raw(&self, prefix: &[u8], from: Bound<&[u8]>, visit: Visitor<'_>) -> ApiResult<()> {
        let table = TableRows(&self.table);
        scan_scoped(&table, &self.scope, prefix, from, visit)
    }
}

struct TableRows<'a>(&'a ReadOnlyTable<&'static [u8], &'static [u8]>);

impl RawRows for TableRows<'_> {
    fn get_raw(&self, key: &[u8]) -> ApiResult<Option<Vec<u8>>> {
        get_from(self.0, key)
    }

    fn scan_raw(&self, prefix: &[u8], from: Bound<&[u8]>, visit: Visitor<'_>) -> ApiResult<()> {
        scan_from(self.0, prefix, from, visit)
    }
}

impl RawRows for Table<'_, &'static [u8], &'static [u8]> {
    fn get_raw(&self, key: &[u8]) -> ApiResult<Option<Vec<u8>>> {
        get_from(self, key)
    }

    fn scan_raw(&self, prefix: &[u8], from: Bound<&[u8]>, visit: Visitor<'_>) -> ApiResult<()> {
        scan_from(self, prefix, from, visit)
    }
}

/// Row changes by key: a new value, or `None` for a removal.
#[derive(Default)]
pub(super) struct Overlay {
    pub changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Keys and values, roughly.
    pub bytes: usize,
}

impl Overlay {
    pub fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.changes.insert(key, value);
    }

    pub fn absorb(&mut self, newer: Overlay) {
        self.bytes += newer.bytes;
        if self.changes.is_empty() {
            self.changes = newer.changes;
        } else {
            self.changes.extend(newer.changes);
        }
    }

    fn range<'a>(
        &'a self,
        prefix: &'a [u8],
        from: Bound<&[u8]>,
    ) -> impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)> {
        self.changes
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }
}

/// One change at work in the committer.
pub struct Txn<'a> {
    base: &'a dyn RawRows,
    /// Prefix of the rows that it sees, in `base`.
    scope: &'a [u8],
    batch: &'a Overlay,
    own: Overlay,
}

impl<'a> Txn<'a> {
    /// `batch` has the changes before it, by their keys in the scope.
    pub(super) fn new(base: &'a dyn RawRows, scope: &'a [u8], batch: &'a Overlay) -> Self {
        Self { base, scope, batch, own: Overlay::default() }
    }

    pub(super) fn into_changes(self) -> Overlay {
        self.own
    }

    pub fn put<R: Row>(&mut self, key: Key<'_>, row: &R) {
        self.own.set(key.encode(), Some(row.encode()));
    }

    /// Adds a member to a set whose rows have no value.
    pub fn put_empty(&mut self, key: Key<'_>) {
        self.own.set(key.encode(), Some(Vec::new()));
    }

    pub fn put_raw(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.own.set(key, Some(value));
    }

    pub fn delete(&mut self, key: Key<'_>) {
        self.own.set(key.encode(), None);
    }

    pub fn delete_raw(&mut self, key: Vec<u8>) {
        self.own.set(key, None);
    }
}

impl RawRows for Txn<'_> {
    fn get_raw(&self, key: &[u8]) -> ApiResult<Option<Vec<u8>>> {
        match self.own.changes.get(key).or_else(|| self.batch.changes.get(key)) {
            Some(value) => Ok(value.clone()),
            None => self.base.get_raw(&placed(self.scope, key)),
        }
    }

    fn scan_raw(&self, prefix: &[u8], from: Bound<&[u8]>, visit: Visitor<'_>) -> ApiResult<()> {
        let mut changed: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        for overlay in [self.batch, &self.own] {
            changed.extend(overlay.range(prefix, from).map(|(k, v)| (k.as_slice(), v.as_deref())));
        }
        let mut changed = changed.into_iter().peekable();
        let mut stopped = false;
        scan_scoped(self.base, self.scope, prefix, from, &mut |key, value| {
            while let Some((newer, change)) = changed.next_if(|(newer, _)| *newer < key) {
                if let Some(change) = change
                    && visit(newer, change)?.is_break()
                {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
            }
            let flow = match changed.next_if(|(newer, _)| *newer == key) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(change))) => visit(key, change)?,
                None => visit(key, value)?,
            };
            stopped = flow.is_break();
            Ok(flow)
        })?;
        if stopped {
            return Ok(());
        }
        for (key, change) in changed {
            if let Some(change) = change
                && visit(key, change)?.is_break()
            {
                break;
            }
        }
        Ok(())
    }
}
