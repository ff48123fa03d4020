//! Pictures as SVG: lines over time with bands for events, a spectrum of quantiles, a heat map.
//!
//! Colours are classes (`s0` to `s7`), which the page's style sheet sets for light and dark; the palette is Okabe and
//! Ito's, which people with any kind of colour blindness can tell apart. Dashes tell apart what shares a colour.

use std::fmt::Write as _;

use common::html::escape;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 290.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 46.0;
/// Colours of the palette.
pub const COLOURS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// Values of zero and below are not drawn.
    Log,
}

pub struct Axis<'a> {
    pub label: &'a str,
    pub scale: Scale,
    pub from: f64,
    pub to: f64,
    /// How values are shown.
    pub show: &'a dyn Fn(f64) -> String,
    pub ticks: Ticks,
}

/// Where an axis has its marks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ticks {
    /// At round numbers of this unit, as 1024.
    Of(f64),
    /// At the median and each further nine; the axis is of 1/(1-p).
    Nines,
}

#[derive(Debug, Clone)]
pub struct Line {
    pub name: String,
    /// Of the palette.
    pub colour: usize,
    pub is_dashed: bool,
    /// Where there is no value the line is broken.
    pub points: Vec<(f64, Option<f64>)>,
}

/// A time that is marked: with a letter at `from`, and shaded until `to`.
pub struct Band {
    pub letter: String,
    pub what: String,
    pub from: f64,
    pub to: f64,
}

pub struct Chart<'a> {
    pub title: &'a str,
    /// What one sees, in a sentence.
    pub note: &'a str,
    pub x: Axis<'a>,
    pub y: Axis<'a>,
    pub lines: Vec<Line>,
    pub bands: &'a [Band],
    /// What is not measured, at the beginning and at the end.
    pub unmeasured: &'a [(f64, f64, &'static str)],
    pub unit_of_x: &'a str,
}

impl Axis<'_> {
    /// 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let span =
            |from: f64, to: f64, value: f64| if to > from { (value - from) / (to - from) } else { 0.5 };
        match self.scale {
            Scale::Linear => span(self.from, self.to, value),
            Scale::Log => span(self.from.ln(), self.to.ln(), value.max(self.from).ln()),
        }
    }

    fn ticks(&self, wanted: f64) -> Vec<f64> {
        match (self.ticks, self.scale) {
            (Ticks::Nines, _) => {
                let nines = (1..).map(|power| 10f64.powi(power)).take_while(|tick| *tick <= self.to * 1.001);
                [1.0, 2.0].into_iter().chain(nines).collect()
            }
            (Ticks::Of(unit), Scale::Linear) => {
                let ticks = linear_ticks(self.from / unit, self.to / unit, wanted);
                ticks.into_iter().map(|tick| tick * unit).collect()
            }
            (Ticks::Of(_), Scale::Log) => log_ticks(self.from, self.to, wanted),
        }
    }
}

/// Round numbers between two, about as many as are wanted.
fn linear_ticks(from: f64, to: f64, wanted: f64) -> Vec<f64> {
    if to <= from {
        return vec![from];
    }
    let raw = (to - from) / wanted;
    let decade = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * decade).into_iter().find(|step| *step >= raw * 0.999);
    let step = step.unwrap_or(decade * 10.0);
    let first = (from / step - 1e-9).ceil() as i64;
    (first..).map(|n| n as f64 * step).take_while(|tick| *tick <= to * (1.0 + 1e-9)).collect()
}

/// Powers of ten, and 2 and 5 times them where there is room.
fn log_ticks(from: f64, to: f64, wanted: f64) -> Vec<f64> {
    let decades = (to / from).log10().max(1e-9);
    let steps: &[f64] = match wanted / decades {
        per_decade if per_decade >= 3.0 => &[1.0, 2.0, 5.0],
        per_decade if per_decade >= 1.6 => &[1.0, 3.0],
        _ => &[1.0],
    };
    let (first, last) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let all = (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
    all.filter(|tick| *tick >= from * 0.999 && *tick <= to * 1.001).collect()
}

/// Bounds for a linear axis: from zero to a round number above the highest.
pub fn linear_bounds(highest: f64) -> (f64, f64) {
    let highest = if highest > 0.0 { highest } else { 1.0 };
    let ticks = linear_ticks(0.0, highest, 5.0);
    let step = ticks.get(1).copied().unwrap_or(highest);
    (0.0, (highest / step - 1e-9).ceil() * step)
}

/// Bounds for a logarithmic axis, at 1, 2 or 5 times a power of ten, at least a factor of ten apart.
pub fn log_bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let positive = values.filter(|value| *value > 0.0);
    let (low, high) = positive.fold((f64::MAX, 0f64), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.001, 1.0);
    }
    let round = |value: f64, up: bool| {
        let decade = 10f64.powf(value.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
        let found = if up {
            steps.into_iter().find(|step| *step >= value * 0.9999)
        } else {
            steps.into_iter().rfind(|step| *step <= value * 1.0001)
        };
        found.unwrap_or(value)
    };
    let (low, high) = (round(low, false), round(high, true));
    if high / low < 10.0 { (low, low * 10.0) } else { (low, high) }
}

fn x_of(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)
}

fn y_of(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM)
}

impl Chart<'_> {
    /// The figure with its title, its legend and its picture.
    pub fn to_html(&self) -> String {
        let mut out = String::new();
        self.open(&mut out);
        self.draw_legend(&mut out);
        self.open_picture(&mut out);
        self.draw_bands(&mut out);
        self.draw_axes(&mut out);
        for (index, line) in self.lines.iter().enumerate() {
            self.draw_line(&mut out, index, line);
        }
        out.push_str("<line class=\"cursor\" y1=\"26\" y2=\"244\" x1=\"-9\" x2=\"-9\"/></svg></figure>\n");
        out
    }

    /// The figure with cells in place of lines: `(x, y, width in x, upper y, strength 0 to 1)`.
    pub fn to_heat_map(&self, cells: &[(f64, f64, f64, f64, f64)]) -> String {
        const STEPS: usize = 8;
        let mut out = String::new();
        self.open(&mut out);
        self.open_picture(&mut out);
        let mut paths = vec![String::new(); STEPS];
        for (x, low, width, high, strength) in cells {
            let (left, right) = (x_of(&self.x, *x), x_of(&self.x, x + width));
            let (top, bottom) = (y_of(&self.y, *high), y_of(&self.y, *low));
            let step = ((strength * STEPS as f64) as usize).min(STEPS - 1);
            // Writing to a String cannot fail.
            let _infallible = write!(paths[step], "M{left:.1} {top:.1}H{right:.1}V{bottom:.1}H{left:.1}z",);
        }
        for (step, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
            let opacity = 0.14 + 0.86 * step as f64 / (STEPS - 1) as f64;
            let _infallible =
                write!(out, "<path class=\"heat\" fill-opacity=\"{opacity:.2}\" d=\"{path}\"/>");
        }
        self.draw_bands(&mut out);
        self.draw_axes(&mut out);
        out.push_str("</svg></figure>\n");
        out
    }

    fn open(&self, out: &mut String) {
        let _infallible = write!(
            out,
            "<figure><figcaption><b>{}</b> <span>{}</span></figcaption>",
            escape(self.title),
            escape(self.note)
        );
    }

    fn open_picture(&self, out: &mut String) {
        let _infallible = write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" data-x=\"{}\">",
            escape(self.title),
            escape(self.unit_of_x)
        );
    }

    /// Names of lines, which are switches for who has scripts.
    fn draw_legend(&self, out: &mut String) {
        out.push_str("<div class=\"legend\">");
        for (index, line) in self.lines.iter().enumerate() {
            let dash = if line.is_dashed { " dashed" } else { "" };
            let _infallible = write!(
                out,
                "<button type=\"button\" data-line=\"{index}\" aria-pressed=\"true\"><svg viewBox=\"0 0 22 10\"><path class=\"line s{}{dash}\" d=\"M0 5H22\"/></svg>{}</button>",
                line.colour % COLOURS,
                escape(&line.name)
            );
        }
        out.push_str("</div>");
    }

    fn draw_bands(&self, out: &mut String) {
        let (top, bottom) = (TOP, HEIGHT - BOTTOM);
        for (from, to, what) in self.unmeasured.iter().filter(|(from, to, _)| to > from) {
            let (left, right) = (x_of(&self.x, *from), x_of(&self.x, to.min(self.x.to)));
            let _infallible = write!(
                out,
                "<rect class=\"unmeasured\" x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"><title>{what}</title></rect>",
                right - left,
                bottom - top
            );
        }
        let mut free_from = f64::MIN;
        let mut row = 0;
        for band in self.bands {
            let (left, right) = (x_of(&self.x, band.from), x_of(&self.x, band.to.min(self.x.to)));
            // Marks that would lie on each other take turns above and below the border.
            row = if left < free_from { 1 - row } else { 0 };
            free_from = left + 17.0;
            let y = TOP - 10.0 + 18.0 * f64::from(row);
            let _infallible = write!(
                out,
                "<g class=\"event\"><title>{}</title><rect x=\"{left:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <line x1=\"{left:.1}\" x2=\"{left:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
                 <circle cx=\"{left:.1}\" cy=\"{y}\" r=\"8\"/><text x=\"{left:.1}\" y=\"{:.1}\">{}</text></g>",
                escape(&band.what),
                (right - left).max(0.0),
                bottom - top,
                y + 4.0,
                escape(&band.letter)
            );
        }
    }

    fn draw_axes(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in self.y.ticks(5.0) {
            let y = y_of(&self.y, tick);
            let _infallible = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 7.0,
                y + 4.0,
                escape(&(self.y.show)(tick))
            );
        }
        let mut free_from = f64::MIN;
        for tick in self.x.ticks(9.0) {
            let x = x_of(&self.x, tick);
            let _infallible = write!(
                out,
                "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\"/>",
                bottom + 4.0
            );
            let label = (self.x.show)(tick);
            let half = 4.0 * label.chars().count() as f64;
            if x - half >= free_from && x + half <= WIDTH {
                free_from = x + half + 6.0;
                let _infallible = write!(
                    out,
                    "<text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                    bottom + 17.0,
                    escape(&label)
                );
            }
        }
        let _infallible = write!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
             <text class=\"label\" x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"rotate(-90)\" x=\"{:.1}\" y=\"13\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 8.0,
            escape(self.x.label),
            -(TOP + bottom) / 2.0,
            escape(self.y.label)
        );
    }

    fn draw_line(&self, out: &mut String, index: usize, line: &Line) {
        let (mut path, mut xs, mut values) = (String::new(), String::new(), String::new());
        let mut is_broken = true;
        for (x, value) in &line.points {
            let is_drawn = |value: &f64| value.is_finite() && (self.y.scale == Scale::Linear || *value > 0.0);
            let Some(value) = value.filter(is_drawn) else {
                is_broken = true;
                continue;
            };
            let (left, y) = (x_of(&self.x, *x), y_of(&self.y, value));
            // A point between gaps is drawn as a dot: a line of no length with round ends.
            let command = if is_broken { format!("M{left:.1} {y:.1}h0") } else { String::new() };
            let _infallible = write!(path, "{command}L{left:.1} {y:.1}");
            let separator = if xs.is_empty() { "" } else { "|" };
            let _infallible = write!(xs, "{separator}{left:.1};{}", escape(&(self.x.show)(*x)));
            let _infallible = write!(values, "{separator}{}", escape(&(self.y.show)(value)));
            is_broken = false;
        }
        let dash = if line.is_dashed { " dashed" } else { "" };
        let _infallible = write!(
            out,
            "<path class=\"line s{}{dash}\" data-line=\"{index}\" data-name=\"{}\" data-at=\"{xs}\" data-values=\"{values}\" d=\"{path}\"/>",
            line.colour % COLOURS,
            escape(&line.name)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        assert_eq!(linear_ticks(0.0, 10.0, 5.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(linear_ticks(0.0, 61.0, 9.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        let close = |ticks: Vec<f64>, expected: &[f64]| {
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            assert!(ticks.iter().zip(expected).all(|(a, b)| (a / b - 1.0).abs() < 1e-9), "{ticks:?}");
        };
        close(log_ticks(1.0, 100_000.0, 5.0), &[1.0, 10.0, 100.0, 1e3, 1e4, 1e5]);
        close(log_ticks(0.001, 0.01, 5.0), &[0.001, 0.002, 0.005, 0.01]);
        assert_eq!(linear_bounds(930.0), (0.0, 1000.0));
        assert_eq!(linear_bounds(0.0), (0.0, 1.0));
        let (low, high) = log_bounds([0.0, 0.0032, 0.7].into_iter());
        assert!((low - 0.002).abs() < 1e-9 && (high - 1.0).abs() < 1e-9, "{low} {high}");
        assert_eq!(log_bounds(std::iter::empty()), (0.001, 1.0));
    }

    #[test]
    fn lines_break_where_there_is_nothing_and_names_are_escaped() {
        let show = |value: f64| format!("{value}");
        let axis = |label| Axis {
            label,
            scale: Scale::Linear,
            from: 0.0,
            to: 4.0,
            show: &show,
            ticks: Ticks::Of(1.0),
        };
        let points =
            vec![(0.0, Some(1.0)), (1.0, Some(2.0)), (2.0, None), (3.0, Some(4.0)), (4.0, Some(f64::NAN))];
        let chart = Chart {
            title: "<title>",
            note: "a & b",
            x: axis("x"),
            y: axis("y"),
            lines: vec![Line { name: "\"><script>".into(), colour: 9, is_dashed: true, points }],
            bands: &[Band { letter: "A".into(), what: "run <x>".into(), from: 1.0, to: 9.0 }],
            unmeasured: &[(0.0, 0.5, "warm-up")],
            unit_of_x: "s",
        };
        let html = chart.to_html();
        assert!(
            !html.contains("<script>") && !html.contains("<x>") && html.contains("&lt;title&gt;"),
            "{html}"
        );
        let path = html.rsplit_once(" d=\"M").unwrap().1;
        assert_eq!(html.matches("h0").count(), 2, "two pieces: {path}");
        assert!(!html.contains("NaN"));
        let heat = chart.to_heat_map(&[(0.0, 1.0, 1.0, 2.0, 1.0), (1.0, 1.0, 1.0, 2.0, 0.0)]);
        assert_eq!(heat.matches("class=\"heat\"").count(), 2);
    }
}
