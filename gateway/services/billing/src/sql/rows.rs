//! Inserting many rows: statements of a few fixed lengths, each prepared once, so that a batch of a thousand
//! costs a handful of statements.

use std::sync::Arc;

use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Sqlite};

/// A statement with its values bound so far.
pub(crate) type Bound = sqlx::query::Query<'static, Sqlite, SqliteArguments>;

/// Rows per statement. 128 rows of the widest table stay far below SQLite's 32,766 parameters.
const GROUPS: [usize; 3] = [128, 16, 1];

/// An insert of any number of rows.
pub(crate) struct Insert {
    texts: [Arc<str>; GROUPS.len()],
}

impl Insert {
    /// `head` is the text up to VALUES, `tail` what follows the rows.
    pub fn new(head: &str, columns: usize, tail: &str) -> Self {
        let row = format!("({})", vec!["?"; columns].join(","));
        let text =
            |rows: usize| format!("{head} VALUES {} {tail}", vec![row.as_str(); rows].join(",")).into();
        Self { texts: GROUPS.map(text) }
    }

    /// Inserts `rows` in order; `bind` binds one row's values.
    pub async fn run<R>(
        &self,
        connection: &mut SqliteConnection,
        rows: &[R],
        bind: impl Fn(Bound, &R) -> Bound,
    ) -> Result<(), sqlx::Error> {
        let mut rest = rows;
        for (text, len) in self.texts.iter().zip(GROUPS) {
            while rest.len() >= len {
                let (group, after) = rest.split_at(len);
                rest = after;
                // The text is made of constants alone; values are bound.
                let query = sqlx::query(AssertSqlSafe(text.clone()));
                group.iter().fold(query, &bind).execute(&mut *connection).await?;
            }
        }
        Ok(())
    }
}
