//! Progress of a transfer: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// A transfer in progress; the bar is gone when it is dropped.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A transfer of `total` bytes; 0 while the length is not known.
    pub fn bytes(total: u64, what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::new(total).with_style(style);
        bar.set_message(what.to_owned());
        Self(bar)
    }

    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// So many bytes of it are done.
    pub fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// There is more, or less, to do than was thought.
    pub fn set_total(&self, bytes: u64) {
        self.0.set_length(bytes);
    }

    pub fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
