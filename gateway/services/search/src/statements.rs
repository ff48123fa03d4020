//! Statements on many rows at once, in runs of a few lengths: so few texts exist, and each stays prepared.

use sqlx::any::AnyRow;
use sqlx::query::Query;
use sqlx::{Any, AssertSqlSafe, FromRow};

use crate::db::Connection;
use crate::error::Failure;

type AnyQuery = Query<'static, Any, sqlx::any::AnyArguments>;

/// Longest first.
const RUNS: [usize; 3] = [128, 16, 1];

/// Splits `rows` into runs of these lengths.
fn runs<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let len = RUNS.into_iter().find(|len| *len <= rows.len())?;
        let (run, rest) = rows.split_at(len);
        rows = rest;
        Some(run)
    })
}

/// How rows of a table are put.
pub struct Table<'a> {
    /// `INSERT INTO table (columns)`
    pub insert: &'a str,
    pub columns: usize,
    /// What becomes of a row that is there.
    pub conflict: &'a str,
}

impl Table<'_> {
    /// Puts rows, no key twice; `bind` gives a row's columns.
    pub async fn put<T>(
        &self,
        conn: &mut Connection,
        rows: &[T],
        bind: impl Fn(AnyQuery, &T) -> Result<AnyQuery, Failure>,
    ) -> Result<(), Failure> {
        for run in runs(rows) {
            let mut text = format!("{} VALUES ", self.insert);
            for row in 0..run.len() {
                text.push_str(if row == 0 { "(" } else { ", (" });
                push_places(&mut text, row * self.columns + 1, self.columns);
                text.push(')');
            }
            text.push(' ');
            text.push_str(self.conflict);
            let query = run.iter().try_fold(sqlx::query(AssertSqlSafe(text)), &bind)?;
            query.execute(&mut *conn).await?;
        }
        Ok(())
    }
}

/// Rows of a `SELECT` that ends where `IN (keys)` is to follow; `first` are the values before that.
pub async fn select_in<T>(
    conn: &mut Connection,
    select: &str,
    first: &[&str],
    keys: &[&str],
) -> Result<Vec<T>, Failure>
where
    T: for<'r> FromRow<'r, AnyRow> + Send + Unpin,
{
    let mut found = Vec::new();
    for run in keys.chunks(RUNS[0]) {
        // The last key once more does no harm, and saves texts.
        let len = RUNS.into_iter().rev().find(|len| *len >= run.len()).unwrap_or(RUNS[0]);
        let mut text = format!("{select} IN (");
        push_places(&mut text, first.len() + 1, len);
        text.push(')');
        let mut query = sqlx::query_as(AssertSqlSafe(text));
        let padded = run.iter().chain(run.last().into_iter().cycle()).take(len);
        for value in first.iter().chain(padded) {
            query = query.bind((*value).to_owned());
        }
        found.extend(query.fetch_all(&mut *conn).await?);
    }
    Ok(found)
}

fn push_places(text: &mut String, from: usize, count: usize) {
    use std::fmt::Write;
    for place in from..from + count {
        let separator = if place == from { "" } else { ", " };
        // Writing to a String cannot fail.
        let _written = write!(text, "{separator}${place}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_row_once() {
        let rows: Vec<u32> = (0..300).collect();
        let lens: Vec<usize> = runs(&rows).map(<[u32]>::len).collect();
        assert_eq!(lens, [vec![128, 128], vec![16, 16], vec![1; 12]].concat());
        assert_eq!(runs(&rows).flatten().copied().collect::<Vec<_>>(), rows);
    }
}
