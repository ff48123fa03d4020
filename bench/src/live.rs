//! The load as it goes, on standard error: a few lines that are drawn again each second on a terminal, or one line a
//! second.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::progress::{Done, Progress, Snapshot};
use crate::report::show_us;
use crate::report::text::{show_bytes_short, show_number};

const EVERY: Duration = Duration::from_secs(1);
/// Seconds that are drawn as bars.
const BARS: u64 = 48;
/// The newest seconds are not shown yet: parts of them, from other threads and agents, are still to come.
const HELD_BACK_S: u64 = 2;
/// Events that are shown on a terminal.
const NOTES_SHOWN: usize = 5;

/// Shows until dropped.
pub struct Live {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// `is_plain`: a line a second also on a terminal.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(progress: Arc<Progress>, is_plain: bool) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let is_plain = is_plain || !std::io::stderr().is_terminal();
        let mut screen = Screen { is_plain, ..Screen::default() };
        let thread = std::thread::Builder::new().name("live".into()).spawn(move || {
            loop {
                let is_over = !matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
                let text = progress.look(|snapshot| screen.draw(snapshot, is_over));
                // Who closed standard error wants to see nothing.
                let _is_closed = std::io::stderr().write_all(text.as_bytes());
                if is_over {
                    return;
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A view that broke is no reason to lose a result.
            let _panicked = thread.join();
        }
    }
}

#[derive(Default)]
struct Screen {
    is_plain: bool,
    /// The first second that was not told yet.
    next: u64,
    notes_told: usize,
    /// Lines of the last picture.
    height: usize,
}

impl Screen {
    fn draw(&mut self, snapshot: &Snapshot, is_over: bool) -> String {
        let Some(newest) = snapshot.recent.keys().next_back() else { return String::new() };
        let end = if is_over { newest + 1 } else { newest.saturating_sub(HELD_BACK_S - 1) };
        if self.is_plain { self.lines(snapshot, end) } else { self.picture(snapshot, end) }
    }

    fn lines(&mut self, snapshot: &Snapshot, end: u64) -> String {
        let mut out = String::new();
        for note in &snapshot.notes[self.notes_told..] {
            let _infallible = writeln!(out, "{:>7}  event: {note}", "");
        }
        self.notes_told = snapshot.notes.len();
        for second in self.next..end {
            let nothing = Done::default();
            let done = snapshot.recent.get(&second).unwrap_or(&nothing);
            let _infallible = writeln!(
                out,
                "{second:>5} s  {:>9}/s {:>11}/s  p50 {:>8}  p99 {:>8}  p99.9 {:>8}  errors {}",
                show_number(done.requests as f64),
                show_bytes_short(done.bytes as f64),
                quantile(done, 0.5),
                quantile(done, 0.99),
                quantile(done, 0.999),
                done.errors
            );
        }
        self.next = end.max(self.next);
        out
    }

    fn picture(&mut self, snapshot: &Snapshot, end: u64) -> String {
        let seconds = end.saturating_sub(BARS)..end;
        let nothing = Done::default();
        let of = |second: u64| snapshot.recent.get(&second).unwrap_or(&nothing);
        let last = of(end.saturating_sub(1));
        let (requests, errors) = snapshot
            .total
            .values()
            .fold((0, 0), |(requests, errors), done| (requests + done.requests, errors + done.errors));
        let mut lines = vec![format!("{end} s, {requests} answers, {errors} errors")];
        let bars = |value: &dyn Fn(&Done) -> f64| -> String {
            bars(&seconds.clone().map(|second| value(of(second))).collect::<Vec<_>>())
        };
        let rate = format!("{}/s", show_number(last.requests as f64));
        lines.push(format!("rate   {rate:>12}  {}", bars(&|done| done.requests as f64)));
        for (name, at) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
            let times = bars(&|done| done.response.at(at).as_secs_f64());
            lines.push(format!("{name:<6} {:>12}  {times}", quantile(last, at)));
        }
        lines.push(format!("errors {:>12}  {}", last.errors, bars(&|done| done.errors as f64)));
        lines
            .extend(snapshot.notes.iter().rev().take(NOTES_SHOWN).rev().map(|note| format!("event  {note}")));
        // Back to the first line of the picture before, and each line anew.
        let mut out = if self.height > 0 { format!("\x1b[{}A", self.height) } else { String::new() };
        for line in &lines {
            let _infallible = writeln!(out, "\r\x1b[2K{line}");
        }
        self.height = lines.len();
        out
    }
}

fn quantile(done: &Done, at: f64) -> String {
    if done.requests == 0 { "-".to_owned() } else { show_us(done.response.at(at).as_secs_f64() * 1e6) }
}

/// Values as bars, the highest of them full.
fn bars(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().fold(0.0, f64::max);
    let bar = |value: &f64| match *value {
        value if value <= 0.0 => ' ',
        value => BARS[((value / highest * 8.0).ceil() as usize).clamp(1, 8) - 1],
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latency;
    use crate::measure::Source;
    use crate::plan::Op;
    use crate::timeline::Second;

    fn answered(requests: u64, ms: u64) -> Second {
        let mut response = Latency::default();
        (0..requests).for_each(|_| response.record(Duration::from_millis(ms)));
        Second { requests, bytes: requests * 1024, response: response.take_buckets(), ..Second::default() }
    }

    #[test]
    fn each_second_is_told_once_and_silent_ones_too() {
        let progress = Progress::default();
        let mut screen = Screen { is_plain: true, ..Screen::default() };
        let mut draw = |is_over| progress.look(|snapshot| screen.draw(snapshot, is_over));
        assert_eq!(draw(false), "");
        progress.add(0, (Op::Get, Source::Hit), &answered(10, 2));
        assert_eq!(draw(false), "", "more of the first second may come");
        progress.note("node kill n3".into());
        progress.add(3, (Op::Get, Source::Hit), &answered(5, 900));
        let text = draw(false);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("event: node kill n3"), "{text}");
        assert!(
            lines[1].contains("0 s") && lines[1].contains("10/s") && lines[1].contains("10.0 KiB/s"),
            "{text}"
        );
        assert!(lines[2].contains("1 s") && lines[2].contains("p99        -"), "{text}");
        assert_eq!(lines.len(), 3);
        assert!(draw(true).contains("900 ms"));
        assert_eq!(draw(true), "");
    }

    #[test]
    fn a_picture_is_drawn_over_the_one_before() {
        let progress = Progress::default();
        let mut screen = Screen::default();
        progress.add(0, (Op::Get, Source::Hit), &answered(10, 2));
        progress.add(1, (Op::Get, Source::Hit), &answered(20, 2));
        let first = progress.look(|snapshot| screen.draw(snapshot, true));
        assert!(!first.starts_with("\x1b[6A") && first.lines().count() == 6, "{first}");
        assert!(first.contains("▄█") && first.contains("30 answers"), "{first}");
        progress.note("drain n1".into());
        let second = progress.look(|snapshot| screen.draw(snapshot, true));
        assert!(second.starts_with("\x1b[6A") && second.lines().count() == 7, "{second}");
        assert_eq!(bars(&[0.0, 1.0, 4.0, 8.0]), " ▁▄█");
    }
}
