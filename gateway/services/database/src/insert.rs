//! Inserting many rows with few statements, each prepared once.
//!
//! SQLite takes runs of rows in one `VALUES`; a row's first column must not be NULL. PostgreSQL takes a whole batch as one array for each column (`unnest`):
//! its cost of a statement grows with the number of parameters. The arrays go as text, since the `Any` driver binds
//! none.

use std::fmt::Write;
use std::sync::Arc;

use sqlx::any::AnyArguments;
use sqlx::error::BoxDynError;
use sqlx::{Arguments, AssertSqlSafe};

use crate::{Connection, Dialect};

/// Rows of a statement of SQLite, longest first: each statement costs two changes of threads, so they are few. A statement may
/// be longer than what is left by an eighth: the rest is rows of NULL, which are left out.
const RUNS: [usize; 11] = [1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// SQLite takes 32,766.
const PARAMETERS_MAX: usize = 32_000;
/// Rows of a statement of PostgreSQL; bounds the length of its arrays.
const ARRAY_LEN_MAX: usize = 4096;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Integer(&'static str),
    Text(&'static str),
    Bytes(&'static str),
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Integer(name) | Self::Text(name) | Self::Bytes(name) => name,
        }
    }

    fn array_type(self) -> &'static str {
        match self {
            Self::Integer(_) => "bigint[]",
            Self::Text(_) => "text[]",
            Self::Bytes(_) => "bytea[]",
        }
    }

    /// NULL of the column's type.
    fn add_null(self, arguments: &mut AnyArguments) -> Result<(), BoxDynError> {
        match self {
            Self::Integer(_) => arguments.add(None::<i64>),
            Self::Text(_) => arguments.add(None::<String>),
            Self::Bytes(_) => arguments.add(None::<Vec<u8>>),
        }
    }
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    Integer(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(value)
    }
}

impl<'a> From<&'a [u8]> for Value<'a> {
    fn from(value: &'a [u8]) -> Self {
        Self::Bytes(value)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// An insert of any number of rows.
pub struct Insert {
    columns: &'static [Column],
    /// Each for so many rows, the longest first.
    sqlite: Vec<(usize, Arc<str>)>,
    postgres: Arc<str>,
}

impl Insert {
    /// Into `columns` of `table`; `tail` follows the rows, an `ON CONFLICT` for example.
    pub fn new(table: &str, columns: &'static [Column], tail: &str) -> Self {
        let names: Vec<&str> = columns.iter().map(|c| c.name()).collect();
        let head = format!("INSERT INTO {table} ({})", names.join(", "));
        // Not `$1` and so on: SQLite looks names of parameters up one by one, and there are thousands.
        let row = format!("({})", vec!["?"; columns.len()].join(","));
        // The first column of a row that is there is never NULL.
        let run = |len: usize| {
            let rows = vec![row.as_str(); len].join(",");
            (len, format!("{head} SELECT * FROM (VALUES {rows}) WHERE column1 IS NOT NULL {tail}").into())
        };
        let runs = RUNS.into_iter().filter(|len| len * columns.len() <= PARAMETERS_MAX);
        let array = |(n, column): (usize, &Column)| format!("${}::text::{}", n + 1, column.array_type());
        let arrays: Vec<String> = columns.iter().enumerate().map(array).collect();
        let postgres = format!("{head} SELECT * FROM unnest({}) {tail}", arrays.join(", ")).into();
        Self { columns, sqlite: runs.map(run).collect(), postgres }
    }

    /// Inserts `rows` in order; `values` gives a row's values, one for each column.
    pub async fn run<'r, R>(
        &self,
        connection: &mut Connection,
        dialect: Dialect,
        rows: &'r [R],
        values: impl Fn(&'r R, &mut Vec<Value<'r>>),
    ) -> Result<(), sqlx::Error> {
        match dialect {
            Dialect::Sqlite => self.run_sqlite(connection, rows, values).await,
            Dialect::Postgres => self.run_postgres(connection, rows, values).await,
        }
    }

    async fn run_sqlite<'r, R>(
        &self,
        connection: &mut Connection,
        mut rows: &'r [R],
        values: impl Fn(&'r R, &mut Vec<Value<'r>>),
    ) -> Result<(), sqlx::Error> {
        let mut of_row = Vec::with_capacity(self.columns.len());
        for (len, text) in &self.sqlite {
            while rows.len() + rows.len() / 8 >= *len && !rows.is_empty() {
                let (run, rest) = rows.split_at(rows.len().min(*len));
                rows = rest;
                let mut arguments = AnyArguments::default();
                for row in run {
                    of_row.clear();
                    values(row, &mut of_row);
                    debug_assert_eq!(of_row.len(), self.columns.len());
                    for (value, column) in of_row.iter().zip(self.columns) {
                        match value {
                            Value::Null => column.add_null(&mut arguments),
                            Value::Integer(value) => arguments.add(*value),
                            Value::Text(value) => arguments.add((*value).to_owned()),
                            Value::Bytes(value) => arguments.add(value.to_vec()),
                        }
                        .map_err(sqlx::Error::Encode)?;
                    }
                }
                for column in (run.len()..*len).flat_map(|_| self.columns) {
                    column.add_null(&mut arguments).map_err(sqlx::Error::Encode)?;
                }
                // The text is made of constants alone; values are bound.
                let query = sqlx::query_with(AssertSqlSafe(text.clone()), arguments);
                query.execute(&mut *connection).await?;
            }
        }
        Ok(())
    }

    async fn run_postgres<'r, R>(
        &self,
        connection: &mut Connection,
        rows: &'r [R],
        values: impl Fn(&'r R, &mut Vec<Value<'r>>),
    ) -> Result<(), sqlx::Error> {
        let mut of_row = Vec::with_capacity(self.columns.len());
        for run in rows.chunks(ARRAY_LEN_MAX) {
            let mut arrays = vec![String::from("{"); self.columns.len()];
            for (n, row) in run.iter().enumerate() {
                of_row.clear();
                values(row, &mut of_row);
                debug_assert_eq!(of_row.len(), self.columns.len());
                for (array, value) in arrays.iter_mut().zip(&of_row) {
                    if n > 0 {
                        array.push(',');
                    }
                    push_element(array, value);
                }
            }
            let mut query = sqlx::query(AssertSqlSafe(self.postgres.clone()));
            for mut array in arrays {
                array.push('}');
                query = query.bind(array);
            }
            query.execute(&mut *connection).await?;
        }
        Ok(())
    }
}

/// As PostgreSQL reads elements of arrays: texts in quotes, with quotes and backslashes behind a backslash.
fn push_element(array: &mut String, value: &Value<'_>) {
    match value {
        Value::Null => array.push_str("NULL"),
        Value::Integer(value) => {
            // Writing to a String cannot fail.
            let _written = write!(array, "{value}");
        }
        Value::Text(text) => {
            array.push('"');
            for part in text.chars() {
                if matches!(part, '"' | '\\') {
                    array.push('\\');
                }
                array.push(part);
            }
            array.push('"');
        }
        Value::Bytes(bytes) => {
            array.push_str("\"\\\\x");
            for byte in *bytes {
                for digit in [byte >> 4, byte & 15] {
                    array.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
                }
            }
            array.push('"');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_arrays_are_quoted() {
        let mut array = String::new();
        let values = [
            Value::from(-5),
            Value::from(r#"a "b" \ {c}, NULL"#),
            Value::from(&[0u8, 255][..]),
            Value::from(None::<i64>),
        ];
        for value in &values {
            push_element(&mut array, value);
            array.push(' ');
        }
        assert_eq!(array, r#"-5 "a \"b\" \\ {c}, NULL" "\\x00ff" NULL "#);
    }

    #[test]
    fn statements_number_their_values() {
        const COLUMNS: &[Column] = &[Column::Integer("a"), Column::Text("b")];
        let insert = Insert::new("t", COLUMNS, "ON CONFLICT DO NOTHING");
        assert_eq!(
            &*insert.sqlite[10].1,
            "INSERT INTO t (a, b) SELECT * FROM (VALUES (?,?)) WHERE column1 IS NOT NULL ON CONFLICT DO NOTHING"
        );
        assert_eq!(insert.sqlite[6].1.matches("(?,?)").count(), 16);
        assert_eq!(
            &*insert.postgres,
            "INSERT INTO t (a, b) SELECT * FROM unnest($1::text::bigint[], $2::text::text[]) ON CONFLICT DO NOTHING"
        );
    }
}
