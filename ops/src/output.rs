//! What commands print: lines, tables and JSON on standard output. A reader that closes early (`dozo ls | head`)
//! is no error.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::Failure;

/// How a listing is printed.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints a line.
pub fn line(text: &str) -> Result<(), Failure> {
    text_block(&format!("{text}\n"))
}

/// Prints text as it is.
pub fn text_block(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("writing to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as JSON, indented.
pub fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(format!("the answer cannot be written as JSON: {e}")))?;
    line(&text)
}

/// Prints the items of a JSON array one by one, so that a long listing needs no memory.
pub struct JsonArray {
    empty: bool,
}

impl JsonArray {
    pub fn begin() -> Self {
        Self { empty: true }
    }

    pub fn item<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|e| Failure::new(format!("the answer cannot be written as JSON: {e}")))?;
        text_block(&format!("{}{text}", if self.empty { "[" } else { ",\n" }))?;
        self.empty = false;
        Ok(())
    }

    pub fn end(self) -> Result<(), Failure> {
        line(if self.empty { "[]" } else { "]" })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// Rows under headings, each column as wide as its widest cell.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text; each line begins with `indent` spaces.
    pub fn render(&self, indent: usize) -> String {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |i: usize| lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.columns.len()).map(|i| width(i).unwrap_or(0)).collect();
        let mut text = String::new();
        for cells in lines {
            let mut line = " ".repeat(indent);
            for ((cell, width), (_, align)) in cells.iter().zip(&widths).zip(&self.columns) {
                // Writing to a String cannot fail.
                let _always_ok = match align {
                    Align::Left => write!(line, "{cell:<width$}  "),
                    Align::Right => write!(line, "{cell:>width$}  "),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("name", Align::Left), ("bytes", Align::Right)]);
        table.row(vec!["a".into(), "1".into()]);
        table.row(vec!["longer".into(), "123456".into()]);
        assert_eq!(table.render(2), "  name     bytes\n  a            1\n  longer  123456\n");
    }
}
