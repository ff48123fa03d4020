//! Traces of requests in the plain format of webcachesim: one request a line, `time id size`, times in seconds from any
//! zero and ascending, ids numbers, sizes in bytes. Further columns and lines that begin with `#` are passed over.
//!
//! A trace is held in memory, 24 bytes for each line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A trace that cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{path} cannot be read", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: {what}; a line is `time id size`, as in `12.5 4711 65536`", path = .path.display())]
    Line { path: PathBuf, line: u64, what: String },
    #[error("{path} has no request", path = .path.display())]
    Empty { path: PathBuf },
}

/// One request of a trace.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// Since the first request.
    pub at: Duration,
    pub id: u64,
    pub size_bytes: u64,
}

/// Requests in the order of their times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    pub requests: Vec<Request>,
}

impl Trace {
    /// Reads a trace; `time_scale` 2 plays it in half of its time.
    pub fn read(path: &Path, time_scale: f64) -> Result<Self, TraceError> {
        let read = |source| TraceError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let mut requests: Vec<Request> = Vec::new();
        let mut first = None;
        for (line, text) in (1..).zip(BufReader::new(file).lines()) {
            let text = text.map_err(read)?;
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let wrong = |what: String| TraceError::Line { path: path.to_owned(), line, what };
            let (seconds, id, size_bytes) = fields(&text).map_err(wrong)?;
            let since = seconds - *first.get_or_insert(seconds);
            let at = Duration::try_from_secs_f64(since / time_scale)
                .map_err(|_| wrong(format!("the time {seconds} is before the first")))?;
            if requests.last().is_some_and(|last| last.at > at) {
                return Err(wrong(format!("the time {seconds} is before that of the line above")));
            }
            requests.push(Request { at, id, size_bytes });
        }
        if requests.is_empty() {
            return Err(TraceError::Empty { path: path.to_owned() });
        }
        Ok(Self { requests })
    }

    /// Time from the first request to the last.
    pub fn length(&self) -> Duration {
        self.requests.last().map_or(Duration::ZERO, |last| last.at)
    }

    /// Every object once, in the order in which they are first asked for: an id with another size is another object.
    pub fn objects(&self) -> Vec<(u64, u64)> {
        let mut seen = HashSet::new();
        let objects = self.requests.iter().map(|request| (request.id, request.size_bytes));
        objects.filter(|object| seen.insert(*object)).collect()
    }
}

fn fields(text: &str) -> Result<(f64, u64, u64), String> {
    let mut fields = text.split_ascii_whitespace();
    let mut next = |what: &str| fields.next().ok_or_else(|| format!("the {what} is missing"));
    let (time, id, size) = (next("time")?, next("id")?, next("size")?);
    let number = |what: &str, text: &str| {
        text.parse::<u64>().map_err(|_| format!("the {what} {text:?} is not a whole number"))
    };
    let time: f64 = time.parse().map_err(|_| format!("the time {time:?} is not a number"))?;
    Ok((time, number("id", id)?, number("size", size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, time_scale: f64) -> Result<Trace, TraceError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        std::fs::write(&path, text).unwrap();
        Trace::read(&path, time_scale)
    }

    #[test]
    fn a_trace_is_read_and_scaled() {
        let trace = read("# made up\n100 1 4096\n100.5 2 10 7 8\n\n104 1 4096\n106 1 5\n", 2.0).unwrap();
        let times: Vec<u64> = trace.requests.iter().map(|r| r.at.as_millis() as u64).collect();
        assert_eq!(times, [0, 250, 2000, 3000]);
        assert_eq!(trace.objects(), [(1, 4096), (2, 10), (1, 5)]);
        assert_eq!(trace.length(), Duration::from_secs(3));
    }

    #[test]
    fn what_is_no_trace_is_told_with_its_line() {
        for (text, told) in [
            ("", "no request"),
            ("0 1\n", "line 1: the size is missing"),
            ("0 1 2\nx 1 2\n", "line 2: the time \"x\""),
            ("0 a 2\n", "the id \"a\""),
            ("5 1 2\n4 1 2\n", "line 2: the time 4 is before the first"),
            ("1 1 2\n5 1 2\n4 1 2\n", "line 3: the time 4 is before that of the line above"),
        ] {
            let error = read(text, 1.0).unwrap_err().to_string();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }
}
