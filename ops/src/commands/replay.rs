//! `billing replay`: a file of delivery records, booked into two empty ledgers of its own.

use std::collections::BTreeMap;
use std::path::Path;

use billing::period::Period;
use billing::replay::ReplayFile;
use billing::{Fee, Terms};
use common::error::chain;

use crate::error::Failure;
use crate::output;

/// Books `file` under the terms of `config` and prints what both ledgers say. Without `data_dir` they are not kept.
pub async fn replay(
    file: &Path,
    config: Option<&Path>,
    data_dir: Option<&Path>,
    months: &[Period],
) -> Result<(), Failure> {
    let terms = match config {
        None => billing::demo_tariffs(),
        Some(path) => read_terms(path)?,
    };
    let open = std::fs::File::open(file).map_err(|error| Failure::file("reading", file, &error))?;
    let records = ReplayFile::read(std::io::BufReader::new(open))
        .map_err(|error| Failure::new(format!("{}: {}", file.display(), chain(&error))))?;
    let temporary = tempfile::tempdir()
        .map_err(|error| Failure::file("making a folder in", &std::env::temp_dir(), &error))?;
    let folder = data_dir.unwrap_or(temporary.path());
    let mut reports = BTreeMap::new();
    for fee in [Fee::Service, Fee::Content] {
        let report = records
            .book(folder, fee, &terms, months)
            .await
            .map_err(|error| Failure::new(format!("booking the {fee} fee: {}", chain(&error))))?;
        reports.insert(fee.as_str(), report);
    }
    output::json(&reports)
}

fn read_terms(path: &Path) -> Result<Terms, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file("reading", path, &error))?;
    toml::from_str(&text).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}
