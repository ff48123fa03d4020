//! Files that a report is written to: their endings say in which form.

use std::path::{Path, PathBuf};

use super::{Report, SCHEMA};

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("{path} cannot be written", path = .path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be read", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a report of the form {SCHEMA}", path = .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
    #[error("{path} has the form {found}, not {SCHEMA}: read it with the version that wrote it", path = .path.display())]
    Version { path: PathBuf, found: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
    Markdown,
    Html,
}

/// A file for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    path: PathBuf,
    form: Form,
}

impl std::str::FromStr for Output {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        let form = match path.extension().and_then(|ending| ending.to_str()) {
            Some("json") => Form::Json,
            Some("csv") => Form::Csv,
            Some("md") => Form::Markdown,
            Some("html") => Form::Html,
            _ => return Err(format!("{text:?} must end with .json, .csv, .md or .html")),
        };
        Ok(Self { path, form })
    }
}

impl Output {
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, report: &Report) -> Result<(), OutputError> {
        let failed = |source| OutputError::Write { path: self.path.clone(), source };
        let text = match self.form {
            Form::Json => serde_json::to_string_pretty(report).map_err(|error| failed(error.into()))? + "\n",
            Form::Csv => report.to_csv(),
            Form::Markdown => report.to_markdown(),
            Form::Html => report.to_html(),
        };
        std::fs::write(&self.path, text).map_err(failed)
    }
}

/// Reads a report that was kept as JSON.
///
/// # Errors
/// There is none, or it is of another version.
pub fn read(path: &Path) -> Result<Report, OutputError> {
    #[derive(serde::Deserialize)]
    struct Head {
        schema: String,
    }
    let text = std::fs::read(path).map_err(|source| OutputError::Read { path: path.to_owned(), source })?;
    let form = |source| OutputError::Form { path: path.to_owned(), source };
    let head: Head = serde_json::from_slice(&text).map_err(form)?;
    if head.schema != SCHEMA {
        return Err(OutputError::Version { path: path.to_owned(), found: head.schema });
    }
    serde_json::from_slice(&text).map_err(form)
}
