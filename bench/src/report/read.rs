//! Reading a report back.

use std::path::{Path, PathBuf};

use super::{Report, SCHEMA};

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{path} cannot be read", path = .path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} is no report of `bench run --json`", path = .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
    #[error("{path} has the form {found:?}, not {SCHEMA:?}: measure again with this version", path = .path.display())]
    Schema { path: PathBuf, found: String },
}

impl Report {
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = std::fs::read(path).map_err(|source| ReadError::File { path: path.to_owned(), source })?;
        let form = |source| ReadError::Form { path: path.to_owned(), source };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(form)?;
        match value.get("schema").and_then(serde_json::Value::as_str) {
            Some(schema) if schema != SCHEMA => {
                Err(ReadError::Schema { path: path.to_owned(), found: schema.to_owned() })
            }
            _ => serde_json::from_value(value).map_err(form),
        }
    }
}
